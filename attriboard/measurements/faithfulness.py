"""Faithfulness: is what a method ranks high enough for the answer (sufficiency), and needed for it (necessity)?

Curves over set sizes k: keep the top k components and replace the rest; replace the top k and keep the rest. With ``m``
the task's metric averaged over examples, ``f(k) = (m_k - m_empty) / (m_full - m_empty)``, where ``m_full`` is the
untouched model and ``m_empty`` the model with every component of the level replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..stats.clusters import train_share
from ..stats.intervals import Array, pseudo_values
from ..stats.sets import FRACTIONS
from .base import Measurement, Metric, Scalar, Statistic


class Faithfulness(Measurement):
    """What lies behind the curves; every aggregate can be recomputed from it.

    A row is an example judged once; see :mod:`attriboard.evaluation.crossfit`. Where scores tie, or a control is drawn
    at random, a row's values are means over several orders or draws.

    Attributes:
        sizes: the curves' sizes k.
        examples: ``[rows]``, which example each is.
        full, empty: ``[examples]``, the metric of each untouched and with everything replaced.
        absolute, signed: ``[sizes][rows]``, the metric where the top k by absolute and by signed score are kept.
        answered: ``[sizes][rows]``, whether the answer then beats the foil (without one: is the top token), where the
            top k by absolute score are kept.
        removed: ``[sizes][rows]``, the metric where the top k by signed score are replaced.
        shuffled: ``[sizes][rows]``, as ``absolute``, by the same scores shuffled within each layer.
        mib_sizes: MIB's sizes; those above 0 are among ``sizes``, and of size 0 is what ``empty`` has.
        mib_signed, mib_absolute: ``[mib_sizes][rows]``, keeping the top by signed and by absolute score, of records
            whose ``sizes`` are other ones than MIB's; else empty, since it is what ``signed`` and ``absolute`` have.
    """

    name = "faithfulness"
    text = (
        "With *m* the task's metric (logit of the answer minus logit of the foil) averaged over examples, "
        "f(k) = (m_k − m_empty) / (m_full − m_empty): m_full is the untouched model, m_empty the model with every "
        "component of the level replaced, at all positions. Sizes k are MIB's: 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and "
        "100 % of the level's n components, rounded down; outside MIB's own two scores at least 1, and each once. "
        "Areas over log(k/n) are divided by the axis' length. Every example is judged with scores that were found on "
        "others (cross-fitting, docs/statistics.md)."
    )
    default = True
    replaces = True
    main = True
    position = 10
    cross_fitted = True
    over_kept = False
    metrics = (
        Metric(
            "log_cmd",
            version=2,
            title="log-CMD",
            unit="0 = perfect",
            better="lower",
            ranks=True,
            sorts=True,
            headline=True,
            bounds=(0.0, None),
            text="Circuit-model distance over a logarithmic axis: area between f and 1, |1 − f|, over log(k/n), where "
            "the top k components by absolute score are kept and the rest is replaced. 0 means that the first "
            "component alone already acts as the model does; a set that exceeds the model is as far from it as one "
            "that falls short. f is that of all rows together, each judged by the scores of its own group: where f "
            "stays at or below 1 that is the mean over the groups' circuits.",
        ),
        Metric(
            "necessity",
            version=2,
            title="necessity",
            unit="share",
            better="higher",
            ranks=True,
            bounds=(0.0, 1.0),
            text="Area under 1 − f over log(k/n), f clipped to 0 … 1, where the top k components by signed score are "
            "replaced and the rest is kept: how early the metric is lost. 1 would mean that replacing the first "
            "component alone already destroys it.",
        ),
        Metric(
            "performance",
            version=2,
            title="performance",
            unit="share",
            better="higher",
            bounds=(None, 1.0),
            text="Area under f over log(k/n), f clipped at 1, where the top k components by signed score are kept: "
            "how early the metric is restored. Components that work against the answer come last, so a set can do "
            "better than the model; that earns nothing here and stands under overshoot.",
        ),
        Metric(
            "overshoot",
            version=2,
            title="overshoot",
            unit="f above 1",
            better="neither",
            bounds=(0.0, None),
            text="Area of f above 1 over log(k/n) on the curve of performance: how far sets without what works "
            "against the answer exceed the model.",
        ),
        Metric(
            "accuracy_area",
            version=2,
            title="circuit accuracy",
            unit="share",
            better="higher",
            bounds=(0.0, 1.0),
            text="Area over log(k/n) under the share of examples whose answer beats its foil (without a foil: is the "
            "top token) where the top k components by absolute score are kept.",
        ),
        Metric(
            "within_layers",
            version=2,
            title="within layers",
            unit="log-CMD",
            better="higher",
            text="log-CMD of the method's own scores shuffled within each layer (at least 8 shuffles) minus its "
            "log-CMD: what it knows beyond which layers matter. 0 or less means nothing.",
        ),
        Metric(
            "stability",
            title="stability",
            unit="share of variance",
            better="neither",
            digits=2,
            optional=True,
            tested=False,
            text="1 minus the share of the variance of log-CMD that comes from the examples on which the scores were "
            "found; the rest comes from those on which they are judged. It is about this number's uncertainty; whether "
            "a method gives the same scores is the question of reliability. Rough: it rests on few groups of train "
            "examples, and where there are four it is below 1 even for scores that depend on none.",
        ),
        Metric(
            "cpr",
            title="CPR",
            unit="at most about 0.999 if f <= 1",
            better="higher",
            perfect=0.999,
            version=2,
            text="MIB's circuit performance ratio: linear area under f at 0.1 to 100 % of the components, kept by "
            "signed score. At edges it is MIB's own score, before pruning, which changes no circuit's answer; at other "
            "levels its formula in another setting: what is not of the level scored, such as the tokens and the other "
            "type of module, stays as it is, while MIB's graph has all of them.",
        ),
        Metric(
            "cmd",
            title="CMD",
            unit="0 = perfect",
            better="lower",
            version=2,
            bounds=(0.0, None),
            text="MIB's circuit-model distance: linear area between f and 1 at 0.1 to 100 % of the components, kept by "
            "absolute score, in the setting of CPR. Equals 0.999 - CPR whenever f stays at or below 1 and no score is "
            "negative.",
        ),
        Metric(
            "clipped_cpr",
            title="clipped CPR",
            unit="at most 0.999",
            better="higher",
            bounds=(None, 0.999),
            shown_at=("edges",),
            text="CPR with f clipped at 1. A ranking that puts what works against the answer last makes circuits that "
            "exceed the model, and may win CPR by them; here that earns nothing.",
        ),
        Metric(
            "cpr_overshoot",
            title="CPR above 1",
            unit="f above 1",
            better="neither",
            bounds=(0.0, None),
            shown_at=("edges",),
            text="What clipped CPR leaves out of CPR: the linear area of f above 1. The two add up to CPR.",
        ),
        Metric(
            "mib_accuracy",
            optional=True,
            title="MIB accuracy",
            unit="at most 0.999",
            better="higher",
            bounds=(0.0, 0.999),
            shown_at=("edges",),
            text="Linear area at 0.1 to 100 % of the components under the share of examples whose answer beats its "
            "foil (without a foil: is the top token), kept by absolute score: circuit accuracy on the axis of CPR.",
        ),
        Metric(
            "sufficiency_log_area",
            title="raw area",
            unit="f",
            better="neither",
            shown=False,
            version=3,
            text="Performance and overshoot together: the area under f over log(k/n), not clipped.",
        ),
        Metric(
            "necessity_log_area",
            title="raw necessity",
            unit="1 − f",
            better="neither",
            shown=False,
            version=3,
            text="As necessity, f not clipped.",
        ),
    )

    shapes: ClassVar = {
        "sizes": "sizes",
        "examples": "rows",
        "full": "examples",
        "empty": "examples",
        **dict.fromkeys(("absolute", "signed", "answered", "removed", "shuffled"), "sizes rows"),
        "mib_sizes": str(len(FRACTIONS)),
        **dict.fromkeys(("mib_signed", "mib_absolute"), f"{len(FRACTIONS)} rows?"),
    }

    sizes: list[int]
    examples: list[int]
    full: list[float]
    empty: list[float]
    absolute: list[list[float]]
    signed: list[list[float]]
    answered: list[list[float]]
    removed: list[list[float]]
    shuffled: list[list[float]]
    mib_sizes: list[int]
    mib_signed: list[list[float]] = Field(default_factory=list)
    mib_absolute: list[list[float]] = Field(default_factory=list)

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.examples)

    def check_values(self) -> None:
        if not self.sizes or not self.examples:
            raise ValueError("sizes or examples are empty")
        if self.sizes != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise ValueError("sizes are not whole numbers above 0 in ascending order")
        if not all(0 <= example < len(self.full) for example in self.examples):
            raise ValueError(f"examples name one that is not among the {len(self.full)} of full")
        if not self.mib_signed and not {*self.mib_sizes} <= {0, *self.sizes}:
            raise ValueError("mib_sizes are not among sizes")

    def statistics(self) -> dict[str, Statistic]:
        log_x = np.log(np.array(self.sizes) / self.sizes[-1])

        def log_area(curve: Array) -> Array:
            length = log_x[-1] - log_x[0]
            return np.trapezoid(curve, log_x, axis=0) / length if length > 0 else curve[0]

        normalized = self.normalized()

        def area(curve: list[list[float]], height: Callable[[Array], Array]) -> Statistic:
            values = np.asarray(curve)
            return lambda index: log_area(height(normalized(values, index)))

        own = area(self.absolute, _distance)
        layers = area(self.shuffled, _distance)
        answered = np.asarray(self.answered)
        mib_signed = np.asarray(self.mib_signed or self._at_mib_sizes(self.signed))
        mib_absolute = np.asarray(self.mib_absolute or self._at_mib_sizes(self.absolute))
        mib_answered = self._answered_at_mib_sizes()
        return {
            "log_cmd": own,
            "necessity": area(self.removed, lambda f: 1.0 - np.clip(f, 0.0, 1.0)),
            "performance": area(self.signed, lambda f: np.minimum(f, 1.0)),
            "overshoot": area(self.signed, lambda f: np.maximum(f - 1.0, 0.0)),
            "accuracy_area": lambda index: log_area(answered[:, index].mean(-1)),
            "within_layers": lambda index: layers(index) - own(index),
            "cpr": lambda index: cpr(normalized(mib_signed, index)),
            "cmd": lambda index: cmd(normalized(mib_absolute, index)),
            "clipped_cpr": lambda index: cpr(np.minimum(normalized(mib_signed, index), 1.0)),
            "cpr_overshoot": lambda index: cpr(np.maximum(normalized(mib_signed, index) - 1.0, 0.0)),
            **({} if mib_answered is None else {"mib_accuracy": lambda index: cpr(mib_answered[:, index].mean(-1))}),
            "sufficiency_log_area": area(self.signed, lambda f: f),
            "necessity_log_area": area(self.removed, lambda f: 1.0 - f),
        }

    def _answered_at_mib_sizes(self) -> Array | None:
        """``[mib_sizes][rows]``; None where a size of MIB's is none of the curves', as 0 is of small levels."""
        if not {*self.mib_sizes} <= {*self.sizes}:
            return None
        return np.asarray([self.answered[self.sizes.index(k)] for k in self.mib_sizes])

    def _at_mib_sizes(self, curve: list[list[float]]) -> list[list[float]]:
        """``[mib_sizes][rows]``: the points of a curve ``[sizes][rows]`` at MIB's sizes."""
        nothing = [self.empty[example] for example in self.examples]
        return [nothing if k == 0 else curve[self.sizes.index(k)] for k in self.mib_sizes]

    def scalars(self) -> dict[str, Scalar]:
        """Stability, where the scores were found on several groups of examples and log-CMD varies at all."""
        if not any(self.train_groups):
            return {}
        share = train_share(pseudo_values(self.n, self.statistics()["log_cmd"]), self.clusters())
        return {} if np.isnan(share) else {"stability": (1 - share, None, None)}

    def curve(self, values: list[list[float]], index: NDArray[np.intp]) -> Array:
        """``[K, ...]``: f at each size for row indices ``[..., N]``."""
        return self.normalized()(np.asarray(values), index)

    def normalized(self) -> Callable[[Array, NDArray[np.intp]], Array]:
        """From values ``[K, rows]`` and row indices ``[..., N]`` to f ``[K, ...]``."""
        examples = np.asarray(self.examples)
        full_of_row, empty_of_row = (np.asarray(v)[examples] for v in (self.full, self.empty))

        def f(values: Array, index: NDArray[np.intp]) -> Array:
            full, empty = full_of_row[index].mean(-1), empty_of_row[index].mean(-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return (values[:, index].mean(-1) - empty) / (full - empty)

        return f


def _distance(f: Array) -> Array:
    return np.abs(1.0 - f)


def cpr(f: Array) -> Array:
    """MIB's circuit performance ratio (Mueller et al. 2025) of ``f`` ``[10, ...]`` at :data:`.FRACTIONS`."""
    return np.trapezoid(f, np.array(FRACTIONS), axis=0)


def cmd(f: Array) -> Array:
    """MIB's circuit-model distance of ``f`` ``[10, ...]`` at :data:`.FRACTIONS`."""
    return np.trapezoid(np.abs(1.0 - f), np.array(FRACTIONS), axis=0)
