"""Localization: does a method find the positions of the input (patches, tokens) that the answer follows from?

Judged twice. By the model: the *deletion* curve replaces the top k positions, the *insertion* curve replaces all but
the top k (Petsiuk et al. 2018, arXiv:1806.07421). With ``m`` the task's metric averaged over examples,
``f = (m_k - m_none) / (m_full - m_none)``, where ``m_full`` is the untouched model and ``m_none`` the model with every
position of the level replaced; never clipped. By the task: does the score lie on the marks or regions that the task
declares as evidence? The first says whether the model needs what is scored, the second whether people would have
marked it; a model that answers from the wrong place makes them differ.

Scores belong to single examples here, so each is judged on the example it was made for; no train split is involved.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..errors import MethodError, SkipCell, TaskError
from ..interventions import replace_positions, replacement_kind
from ..levels import InputReplacement
from ..measurements.base import Family, Statistic
from ..stats.intervals import Array
from .faithfulness import nearest

if TYPE_CHECKING:
    from ..components import InputLevel
    from ..model import EncodedExample, Model
    from ..task import Task
    from .context import Context

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The bins of DeYoung et al. 2020 (arXiv:1911.03429)."""
COVERED = 0.25
"""The share of a patch that a region must cover for the patch to belong to it."""
PICTURES = 16
"""Of so many examples, the first, a record keeps the picture that the model saw."""
_METRIC, _LOGPROB = 0, 1


def sizes(n: int) -> list[int]:
    """The distinct whole numbers nearest to 1 ... 100 % of ``n`` positions, at least 1."""
    return sorted({nearest(fraction, n) for fraction in FRACTIONS})


class Removal(BaseModel):
    """One example's curves with one ring.

    Attributes:
        positions: ``[sizes]``: how many positions the top k are together with their rings.
        insertion, deletion: ``[sizes][2]``: the metric and log p(answer) with all but these, and with these replaced.
    """

    model_config = ConfigDict(extra="forbid")

    positions: list[int]
    insertion: list[list[float]]
    deletion: list[list[float]]

    def curve(self, kind: str, start: float, column: int = _METRIC) -> tuple[Array, Array]:
        """Shares of positions replaced or restored, from 0, and what is measured there; ``start`` is that at 0."""
        values = [row[column] for row in (self.insertion if kind == "insertion" else self.deletion)]
        return np.array([0, *self.positions]) / self.positions[-1], np.array([start, *values])


class Judged(BaseModel):
    """What was measured of one test example.

    Attributes:
        answer: as typed.
        scores: ``[n]``, one for each position, in the order of ``InputLevel.positions``.
        pieces: the positions' tokens as text; empty for patches.
        coverage: by name of a mark or region of the example, ``[n]``: the share of each position it covers.
        picture: what the model saw, as JPEG in base64; empty for text and after the first :data:`PICTURES` examples.
        full, empty: the metric and log p(answer), untouched and with every position replaced.
        sizes: the numbers k of positions on the curves.
        removal: one for each ring of the :class:`Localization`.
    """

    model_config = ConfigDict(extra="forbid")

    answer: str
    scores: list[float]
    pieces: list[str]
    coverage: dict[str, list[float]]
    picture: str
    full: list[float]
    empty: list[float]
    sizes: list[int]
    removal: list[Removal]

    @property
    def probability(self) -> float:
        """p(answer) of the untouched model."""
        return float(np.exp(self.full[_LOGPROB]))

    def area(self, ring: int, kind: str) -> float:
        """The linear area under the metric over the share of positions, from none to all."""
        x, y = self.removal[ring].curve(kind, (self.empty if kind == "insertion" else self.full)[_METRIC])
        return float(np.trapezoid(y, x))

    def lost(self, ring: int, kind: str) -> float:
        """p(answer) lost, averaged over :data:`BINS`."""
        n = len(self.scores)
        rows = self.removal[ring].insertion if kind == "insertion" else self.removal[ring].deletion
        at = [self.sizes.index(nearest(fraction, n)) for fraction in BINS]
        return float(np.mean([self.probability - np.exp(rows[i][_LOGPROB]) for i in at]))


class Localization(Family):
    """Per-example scores, marks and measurements; every aggregate can be recomputed from them.

    Attributes:
        grid: (rows, columns) of patches; None for tokens.
        evidence, distractors: the names of the marks or regions that the task declares, as far as they exist here.
        rings: by how many patches around each the sets of the curves grow; 0 comes first.
        examples: in the order of the test split.
    """

    grid: tuple[int, int] | None
    evidence: list[str]
    distractors: list[str]
    rings: list[int]
    examples: list[Judged]

    @property
    def n(self) -> int:
        return len(self.examples)

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., N]``.

        A metric is absent where it was not measured: rings, and marks that the task does not declare.
        """
        full, empty = (np.array([getattr(e, name)[_METRIC] for e in self.examples]) for name in ("full", "empty"))

        def normalized(area: Array) -> Statistic:
            def f(index: NDArray[np.intp]) -> Array:
                low = empty[index].mean(-1)
                with np.errstate(divide="ignore", invalid="ignore"):
                    return (area[index].mean(-1) - low) / (full[index].mean(-1) - low)

            return f

        def mean(values: Array) -> Statistic:
            return lambda index: values[index].mean(-1)

        found: dict[str, Statistic] = {}
        for at, ring in enumerate(self.rings):
            suffix = f"_ring{ring}" if ring else ""
            for kind, area, loss in (
                ("insertion", "insertion_auc", "sufficiency_aopc"),
                ("deletion", "deletion_auc", "comprehensiveness_aopc"),
            ):
                found[area + suffix] = normalized(np.array([e.area(at, kind) for e in self.examples]))
                found[loss + suffix] = mean(np.array([e.lost(at, kind) for e in self.examples]))
        if self.evidence:
            against = [self._against_marks(e) for e in self.examples]
            found |= {name: mean(np.array([values[name] for values in against])) for name in against[0]}
        return found

    def _against_marks(self, example: Judged) -> dict[str, float]:
        scores = np.asarray(example.scores)
        evidence = covered(example.coverage, self.evidence, len(scores))
        other = covered(example.coverage, self.distractors, len(scores)) & ~evidence
        return against_marks(scores, evidence, other if self.distractors else None)

    def curve(self, kind: str) -> tuple[Array, Array]:
        """f of the insertion or deletion curve without rings, at 0 and :data:`FRACTIONS` of the positions.

        Between the sizes of an example its metric is taken on a straight line, as in the areas.
        """
        full, empty = (np.mean([getattr(e, name)[_METRIC] for e in self.examples]) for name in ("full", "empty"))
        x, values = np.array([0.0, *FRACTIONS]), []
        for e in self.examples:
            start = e.empty if kind == "insertion" else e.full
            values.append(np.interp(x, *e.removal[0].curve(kind, start[_METRIC])))
        return x, (np.mean(values, axis=0) - empty) / (full - empty)

    def score_map(self, example: Judged) -> Tensor:
        """An example's scores as a grid of patches, ``[rows, columns]``; ``[1, n]`` for tokens."""
        return torch.tensor(example.scores).view(self.grid or (1, -1))


def covered(coverage: Mapping[str, Sequence[float]], names: Sequence[str], n: int) -> NDArray[np.bool_]:
    """``[n]``: the positions that the named marks or regions together cover by at least :data:`COVERED`.

    Where there is none, the one they cover most; none at all if they cover nothing.
    """
    share = sum((np.asarray(coverage[name]) for name in names if name in coverage), np.zeros(n))
    inside: NDArray[np.bool_] = share >= COVERED
    if not inside.any() and share.any():
        inside[share.argmax()] = True
    return inside


def against_marks(scores: Array, evidence: NDArray[np.bool_], other: NDArray[np.bool_] | None) -> dict[str, float]:
    """By metric name, how scores ``[n]`` agree with marked positions ``[n]``.

    Args:
        evidence: where the answer can be read; at least one position.
        other: where wrong answers can be read, outside the evidence; None where the task has no such marks.
    """
    order = np.argsort(-scores, kind="stable")
    marked = int(evidence.sum())
    low, high = scores.min(), scores.max()
    unit = (scores - low) / (high - low) if high > low else np.zeros(len(scores))
    positive = np.maximum(scores, 0.0)
    # scores that are nowhere positive say as little as equal ones
    mass = positive / positive.sum() if positive.any() else np.full(len(scores), 1 / len(scores))
    found = {
        "pointing_game": float(evidence[order[0]]),
        "precision_at_mark": float(evidence[order[:marked]].mean()),
        "iou_best": max(_iou(scores >= threshold, evidence) for threshold in np.unique(scores)),
        "iou_half": _iou(unit > 0.5, evidence),
        "mass_evidence": float(mass[evidence].sum()),
        "evidence_share": float(evidence.mean()),
    }
    rest = ~evidence
    if other is not None:
        rest = rest & ~other
        found |= {"mass_other": float(mass[other].sum()), "other_share": float(other.mean())}
    return {**found, "mass_background": float(mass[rest].sum()), "background_share": float(rest.mean())}


def _iou(chosen: NDArray[np.bool_], evidence: NDArray[np.bool_]) -> float:
    """Intersection over union; the evidence is never empty."""
    return float((chosen & evidence).sum() / (chosen | evidence).sum())


def dilated(masks: Tensor, ring: int) -> Tensor:
    """``[S, rows, columns]`` bool: each set with all patches at most ``ring`` rows and columns away."""
    if ring == 0:
        return masks
    return torch.nn.functional.max_pool2d(masks.float(), 2 * ring + 1, stride=1, padding=ring) > 0


def evaluate(
    context: Context, found: Sequence[Tensor], level: InputLevel, replacement: InputReplacement, rings: Sequence[int]
) -> Localization:
    """Judges the scores of every test example.

    Args:
        context: the task on the model.
        found: one tensor of ``level.example_shape`` for each test example.
        level: patches or tokens.
        replacement: what removed positions are replaced by.
        rings: patches around each that go with it; measured beside the curves without one, and for patches alone.

    Raises:
        SkipCell: an example lacks the evidence that its task declares, or the region a replacement is made of; or the
            counterfactuals differ somewhere else.
        TaskError: replacing every position leaves the metric where it was, or makes it infinite.
        MethodError: scores of another shape.
        ConfigurationError, ExampleError: an example lacks a counterfactual that the replacement needs.
    """
    model, task = context.model, context.task
    known, grid = level.labels(task), level.grid(model)
    evidence, distractors = ([name for name in names if name in known] for names in (task.evidence, task.distractors))
    used = [0] if grid is None else sorted({0, *rings})
    for i, (encoded, scores) in enumerate(zip(context.test, found)):
        if tuple(scores.shape) != (expected := level.example_shape(model, encoded)):
            raise MethodError(f"the scores of example {i} have shape {tuple(scores.shape)}, expected {expected}.")
    if why_not := replacement_kind(replacement).why_not(model, context.test, level, task.name):
        raise SkipCell(why_not)
    coverages = [level.coverage(model, encoded) for encoded in context.test]
    for i, (scores, coverage) in enumerate(zip(found, coverages)):
        if evidence and not covered(coverage, evidence, scores.numel()).any():
            raise SkipCell(
                f"test example {i} of task {task.name!r} has no {level.name} marked {' or '.join(evidence)} to be "
                f"found."
            )
    examples = [
        _judge(model, encoded, scores, level, replacement, used, coverage, i < PICTURES)
        for i, (encoded, scores, coverage) in enumerate(zip(context.test, found, coverages))
    ]
    _check_measured(examples, task, level, replacement, str(model.dtype))
    return Localization(grid=grid, evidence=evidence, distractors=distractors, rings=used, examples=examples)


def _check_measured(
    examples: Sequence[Judged], task: Task, level: InputLevel, replacement: InputReplacement, dtype: str
) -> None:
    curves = [row for e in examples for r in e.removal for row in (*r.insertion, *r.deletion)]
    if not np.isfinite([*curves, *(row for e in examples for row in (e.full, e.empty))]).all():
        raise TaskError(
            f"the metric of task {task.name!r} is not finite when {level.name} are replaced ({replacement}) in "
            f"{dtype}; choose another dtype."
        )
    full, empty = (np.mean([getattr(e, name)[_METRIC] for e in examples]) for name in ("full", "empty"))
    if abs(full - empty) < 1e-6:
        raise TaskError(
            f"replacing all {level.name} ({replacement}) does not change the metric of task {task.name!r}, so none of "
            f"them can be what it depends on."
        )


def _judge(
    model: Model,
    encoded: EncodedExample,
    scores: Tensor,
    level: InputLevel,
    replacement: InputReplacement,
    rings: Sequence[int],
    coverage: dict[str, list[float]],
    with_picture: bool,
) -> Judged:
    flat = scores.flatten()
    n, ks = len(flat), sizes(len(flat))
    order = torch.argsort(flat, descending=True, stable=True)
    tops = torch.zeros(len(ks), n, dtype=torch.bool)
    for row, k in zip(tops, ks):
        row[order[:k]] = True
    sets = [dilated(tops.view(-1, *scores.shape), ring).view(-1, n) for ring in rings]
    ends = torch.tensor([[False], [True]]).expand(2, n)
    wanted = torch.cat([ends, *(masks for grown in sets for masks in (~grown, grown))])
    rows = replace_positions(model, encoded, level, replacement, wanted)[:, [_METRIC, _LOGPROB]].tolist()
    curves = [rows[at : at + len(ks)] for at in range(2, len(rows), len(ks))]
    return Judged(
        answer=encoded.example.answer,
        scores=flat.tolist(),
        pieces=level.pieces(model, encoded),
        coverage=coverage,
        picture=_jpeg(model, encoded) if with_picture else "",
        full=rows[0],
        empty=rows[1],
        sizes=ks,
        removal=[
            Removal(positions=grown.sum(1).tolist(), insertion=insertion, deletion=deletion)
            for grown, insertion, deletion in zip(sets, curves[::2], curves[1::2])
        ],
    )


def _jpeg(model: Model, encoded: EncodedExample) -> str:
    """What the model saw, as JPEG of quality 90 in base64; empty for text."""
    if model.vision is None or encoded.example.image is None:
        return ""
    file = io.BytesIO()
    model.vision.see(encoded.example.image).save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()
