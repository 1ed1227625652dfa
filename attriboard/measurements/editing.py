"""Editing: does changing what a method ranks highest change the answer, everywhere it is asked, and nothing else?

Three kinds of edit act on the output weights of the top k components:

- *suppress*: one edit for the whole task, the weights scaled by 0 (or a factor below 1); away from the answer.
- *boost*: one edit for the whole task, the weights scaled by 2 (or a factor above 1); towards the answer.
- *rewrite* (of neurons): one edit for each example, a change of rank one; from the answer to the foil.

Each is judged on the test split:

- *efficacy*, the share of examples that reach the edit's target. By argmax: the answer is no longer given (suppress);
  an example answered wrongly before is answered (boost); the foil is given (rewrite). "Given" means the top token, or
  for a choice the likelier of answer and foil. By probability: the foil is likelier than the answer (suppress,
  rewrite); p(answer) rises (boost).
- *generality*: the efficacy by argmax on an example's paraphrases, which no edit was made with; those that the
  untouched model answers (for boost: answers wrongly). Averaged over an example's paraphrases first.
- *locality*: on other prompts, the share whose top token stays, and KL(before || after) in nats over the whole
  vocabulary at the last token.
- *capability kept*, in 0..1, with the edit in place; of rewrites, the mean over the first few examples' edits.
- *score*: the harmonic mean of efficacy (by argmax), generality, locality (share kept) and capability kept, as many of
  them as were measured, and 0 if any of them is 0. Without efficacy there is no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from ..levels import names_where
from ..stats.intervals import Array, bootstrap_interval, nanmean
from . import base
from .base import Measurement, Metric, Scalar, Shaped, Statistic, Strict
from .capability import Capability, kept

EditKind = Literal["suppress", "boost", "rewrite"]
EDITS: dict[EditKind, str] = {
    "suppress": "the top components' output weights are scaled by suppress_factor, 0 by default; changed means: no "
    "longer the answer",
    "boost": "the top components' output weights are scaled by boost_factor, 2 by default; changed means: the answer "
    "where the model was wrong before",
    "rewrite": "for each example, a rank-one change of the top neurons' output vectors towards its foil; changed "
    "means: the foil",
}
"""The kinds of edits, and what each does and is after."""
KINDS = tuple(EDITS)
SIZES = (10, 50, 200)
"""Numbers k of edited components to choose from, as far as they are at most half of the level."""

Values = list[float | None]


def _metrics(kind: EditKind) -> tuple[Metric, ...]:
    """The metrics of one kind of edit, a block of their own."""

    def metric(
        name: str,
        title: str,
        text: str,
        unit: str = "share",
        better: Literal["higher", "lower"] = "higher",
    ) -> Metric:
        return Metric(
            f"edit_{kind}_{name}",
            title=f"{kind}: {title}",
            unit=unit,
            better=better,
            optional=True,
            block=kind,
            sorts=(kind, name) == ("suppress", "score"),
            text=f"{text} ({kind}: {EDITS[kind]}.)",
        )

    return (
        metric(
            "score",
            "score",
            "Harmonic mean of efficacy, generality, locality and capability kept, of those measured: high only where "
            "all are.",
        ),
        metric("efficacy", "efficacy", "Share of test examples whose answer the edit changes, by top token."),
        metric(
            "efficacy_probability",
            "efficacy by p",
            "As efficacy, by probability: p(foil) above p(answer); for boost, p(answer) higher than before.",
        ),
        metric("generality", "generality", "As efficacy, on paraphrases that the edit never saw."),
        metric(
            "locality",
            "locality",
            "Share of other prompts whose top token stays: neutral prompts, and for rewrite other examples.",
        ),
        metric(
            "locality_kl",
            "KL elsewhere",
            "Mean divergence KL(before || after) of the next token's distribution on those other prompts.",
            unit="nats",
            better="lower",
        ),
        metric(
            "capability_kept",
            "capability kept",
            "What the edited model keeps of general ability: mean over the capability tasks of accuracy after over "
            "before, or perplexity before over after, each at most 1.",
        ),
    )


class EditResult(Strict, Shaped):
    """What one kind of edit did, example by example.

    Attributes:
        factor: by which weights are scaled; None for rewrites.
        k: the number of edited components.
        train: ``(k, efficacy, locality)`` on the train split, for every k that could have been chosen; empty if that is
            only one.
        argmax, probability, generality: ``[n]``, efficacy and generality of each example in 0..1; None where it has
            none.
        stays, kl: ``[1][P]``, or of rewrites ``[n][P]`` (no prompts for examples that are not rewritten): whether the
            top token of each other prompt stays, and KL(before || after) there.
        strengths: ``[n]``, the length of each rewrite's change of the weights; None for other kinds.
        capability: what the model can do with the edit in place; of rewrites, under each of the first few examples'.
    """

    shapes: ClassVar = {
        **dict.fromkeys(("argmax", "probability", "generality"), "examples"),
        "stays": "edits",
        "kl": "edits",
        "strengths": "examples?",
    }

    factor: float | None
    k: int
    train: list[tuple[int, float, float]]
    argmax: Values
    probability: Values
    generality: Values
    stays: list[list[float]]
    kl: list[list[float]]
    strengths: Values | None
    capability: list[Capability]

    def check_values(self) -> None:
        if [len(row) for row in self.stays] != [len(row) for row in self.kl]:
            raise ValueError("stays and kl are not of the same prompts")
        if self.one_edit and len(self.stays) != 1:
            raise ValueError(f"stays has {len(self.stays)} entries where there is 1 edit")
        if not self.one_edit and len(self.stays) != len(self.argmax):
            raise ValueError(f"stays has {len(self.stays)} entries where there are {len(self.argmax)} examples")

    @property
    def one_edit(self) -> bool:
        """Whether one edit was made for the whole task."""
        return self.factor is not None


class Editing(Measurement):
    """Per-example measurements of every kind of edit.

    Attributes:
        kept: how many test examples were kept; they come first.
        wrong: how many test examples were answered wrongly by the untouched model; they follow (0 without boost).
        kinds: by kind of edit.
        capability: what the untouched model can do; None if that was not measured.
        not_measured: by metric name (or ``edit_<kind>`` for all of a kind), why it was not measured.
    """

    name = "editing"
    levels = names_where(inputs=False, editable=True)
    uses_capability = True
    position = 60
    over_kept = False
    metrics = tuple(metric for kind in KINDS for metric in _metrics(kind))

    class Options(base.Options):
        """How editing is measured.

        Attributes:
            sizes: among these numbers of components the train split chooses, one for each kind of edit.
            suppress_factor, boost_factor: what edits scale output weights by.
        """

        sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(SIZES, min_length=1)
        suppress_factor: float = Field(0.0, ge=0, lt=1)
        boost_factor: float = Field(2.0, gt=1)

    kept: int
    wrong: int
    kinds: dict[str, EditResult]
    capability: Capability | None
    not_measured: dict[str, str]

    @property
    def n(self) -> int:
        return self.kept + self.wrong

    def check_values(self) -> None:
        for name, kind in self.kinds.items():
            if len(kind.argmax) != self.n:
                raise ValueError(
                    f"kinds.{name}.argmax has {len(kind.argmax)} entries where there are {self.n} examples"
                )

    def gaps(self) -> dict[str, str]:
        return self.not_measured | ({} if self.capability is None else self.capability.gaps())

    def capability_kept(self, name: str) -> float | None:
        """In 0..1, the mean over the edits of a kind under which capability was measured; None without any."""
        if self.capability is None:
            return None
        shares = [kept(self.capability, after) for after in self.kinds[name].capability]
        measured = [share for share in shares if not np.isnan(share)]
        return float(np.mean(measured)) if measured else None

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., n]``, the kept ones first.

        Metrics without a value are left out.
        """
        statistics: dict[str, Statistic] = {}
        for name, kind in self.kinds.items():
            values = {
                "efficacy": _array(kind.argmax),
                "efficacy_probability": _array(kind.probability),
                "generality": _array(kind.generality),
            }
            if not kind.one_edit:
                values["locality"], values["locality_kl"] = _row_means(kind.stays), _row_means(kind.kl)
            means = {metric: nanmean(x) for metric, x in values.items() if np.isfinite(x).any()}
            statistics |= {f"edit_{name}_{metric}": mean for metric, mean in means.items()}
            if "efficacy" in means:
                parts = [means[metric] for metric in ("efficacy", "generality", "locality") if metric in means]
                if kind.one_edit:
                    parts.append(_constant(float(np.mean(kind.stays))))
                if (left := self.capability_kept(name)) is not None:
                    parts.append(_constant(left))
                statistics[f"edit_{name}_score"] = _harmonic_of(parts)
        return statistics

    def scalars(self) -> dict[str, Scalar]:
        """Locality of an edit that is one for the whole task, with intervals over prompts; capability kept."""
        scalars: dict[str, Scalar] = {}
        for name, kind in self.kinds.items():
            if kind.one_edit:
                for metric, (row,) in (("locality", kind.stays), ("locality_kl", kind.kl)):
                    mean = nanmean(_array(row))
                    low, high = bootstrap_interval(len(row), mean) or (None, None)
                    scalars[f"edit_{name}_{metric}"] = (float(np.mean(row)), low, high)
            if (left := self.capability_kept(name)) is not None:
                scalars[f"edit_{name}_capability_kept"] = (left, None, None)
        return scalars


def _array(values: Sequence[float | None]) -> Array:
    """``[N]`` with NaN for None."""
    return np.array(values, dtype=np.float64)


def _row_means(rows: Sequence[Sequence[float]]) -> Array:
    """``[N]``: the mean of each row, NaN for an empty one."""
    return np.array([np.mean(row) if row else np.nan for row in rows])


def _constant(value: float) -> Statistic:
    return lambda index: np.full(index.shape[:-1], value)


def _harmonic_of(parts: Sequence[Statistic]) -> Statistic:
    return lambda index: harmonic_mean(np.stack([part(index) for part in parts]))


def harmonic_mean(values: Array) -> Array:
    """The harmonic mean over the first axis of values in 0..1; 0 where any of them is 0."""
    with np.errstate(divide="ignore"):
        return len(values) / (1.0 / values).sum(0)
