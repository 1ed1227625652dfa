"""Localization: does a method find the positions of the input (patches, tokens) that the answer follows from?

Judged twice. By the model: the *deletion* curve replaces the top k positions, the *insertion* curve replaces all but
the top k (Petsiuk et al. 2018, arXiv:1806.07421). With ``m`` the task's metric averaged over examples,
``f = (m_k - m_none) / (m_full - m_none)``, where ``m_full`` is the untouched model and ``m_none`` the model with every
position of the level replaced; never clipped. By the task: does the score lie on the marks or regions that the task
declares as evidence? The first says whether the model needs what is scored, the second whether people would have
marked it; a model that answers from the wrong place makes them differ.

Equal scores have no order: curves are means over random orders of them, and what is compared with marks is taken in
expectation over all orders.

Scores belong to single examples here, so each is judged on the example it was made for; no train split is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from ..levels import INPUTS
from ..stats.intervals import Array
from ..stats.sets import nearest
from . import base
from .base import Measure, Measurement, Metric, Shaped, Statistic

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""The bins of DeYoung et al. 2020 (arXiv:1911.03429)."""
COVERED = 0.25
"""The share of a patch that a region must cover for the patch to belong to it."""
PICTURES = 16
"""Of so many examples, the first, a record keeps the picture that the model saw."""

_RING = (
    " Each patch goes together with the eight around it, since attention in the vision tower writes an object into "
    "the features of neighboring patches; the axis is the share of patches really replaced."
)


def sizes(n: int) -> list[int]:
    """The distinct whole numbers nearest to 1 ... 100 % of ``n`` positions, at least 1."""
    return sorted({nearest(fraction, n) for fraction in FRACTIONS})


class RemovalCurves(Shaped):
    """One example's curves with one ring.

    Attributes:
        positions: ``[sizes]``: how many positions the top k are together with their rings.
        insertion, deletion: ``[sizes][2]``: the metric and log p(answer) with all but these, and with these replaced.

    All are means over the example's random orders of equal scores; of p(answer), so that the logarithm is of a mean.
    """

    model_config = ConfigDict(extra="forbid")

    shapes: ClassVar = {"positions": "sizes", "insertion": "sizes 2", "deletion": "sizes 2"}

    positions: list[float]
    insertion: list[list[float]]
    deletion: list[list[float]]

    def curve(self, kind: str, start: float, column: int = Measure.METRIC) -> tuple[Array, Array]:
        """Shares of positions replaced or restored, from 0, and what is measured there; ``start`` is that at 0."""
        values = [row[column] for row in (self.insertion if kind == "insertion" else self.deletion)]
        return np.array([0, *self.positions]) / self.positions[-1], np.array([start, *values])


class LocalizedExample(Shaped):
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
        orders: over how many random orders of equal scores the curves are averaged; 1 where no two are equal.
    """

    model_config = ConfigDict(extra="forbid")

    shapes: ClassVar = {"scores": "positions", "pieces": "positions?", "full": "2", "empty": "2"}

    answer: str
    scores: list[float]
    pieces: list[str]
    coverage: dict[str, list[float]]
    picture: str
    full: list[float]
    empty: list[float]
    sizes: list[int]
    removal: list[RemovalCurves]
    orders: int = 1

    def check_values(self) -> None:
        if not self.scores:
            raise ValueError("scores are empty")
        if self.removal and not {nearest(fraction, len(self.scores)) for fraction in BINS} <= set(self.sizes):
            raise ValueError(f"sizes lack one that is asked for of {len(self.scores)} positions")
        for name, share in self.coverage.items():
            if len(share) != len(self.scores):
                raise ValueError(
                    f"coverage.{name} has {len(share)} entries where there are {len(self.scores)} positions"
                )
        for curves in self.removal:
            if len(curves.positions) != len(self.sizes) or not curves.positions[-1] > 0:
                raise ValueError(f"removal has {len(curves.positions)} entries where there are {len(self.sizes)} sizes")

    @property
    def probability(self) -> float:
        """p(answer) of the untouched model."""
        return float(np.exp(self.full[Measure.LOGPROB]))

    def area(self, ring: int, kind: str) -> float:
        """The linear area under the metric over the share of positions, from none to all."""
        x, y = self.removal[ring].curve(kind, (self.empty if kind == "insertion" else self.full)[Measure.METRIC])
        return float(np.trapezoid(y, x))

    def lost(self, ring: int, kind: str) -> float:
        """p(answer) lost, averaged over :data:`BINS`."""
        n = len(self.scores)
        rows = self.removal[ring].insertion if kind == "insertion" else self.removal[ring].deletion
        at = [self.sizes.index(nearest(fraction, n)) for fraction in BINS]
        return float(np.mean([self.probability - np.exp(rows[i][Measure.LOGPROB]) for i in at]))


class Localization(Measurement):
    """Per-example scores, marks and measurements; every aggregate can be recomputed from them.

    Attributes:
        grid: (rows, columns) of patches; None for tokens.
        evidence, distractors: the names of the marks or regions that the task declares, as far as they exist here.
        rings: by how many patches around each the sets of the curves grow; 0 comes first.
        examples: in the order of the test split.
    """

    class Options(base.Options):
        """How it is measured.

        Attributes:
            rings: by how many patches around each the sets of the curves grow, for patches; 0 is measured in any case.
        """

        rings: tuple[Literal[0, 1], ...] = (0,)

    name = "localization"
    text = (
        "At levels of inputs (patches, tokens) the f of faithfulness is taken over positions of the input: m_empty is "
        "the model with every position of the level replaced, and the sizes are those nearest to 1, 2, 5, 10, 20, 50 "
        "and 100 % of each example's own n positions. Areas belong to an example; like the metric itself they are "
        "averaged over examples before the division. Where scores of an example are equal, its curves are means over 8 "
        "random orders of these. *Evidence* and *distractors* are marks or regions that the task "
        "declares."
    )
    levels = INPUTS
    default = True
    replaces = True
    main = True
    position = 30
    metrics = (
        Metric(
            "insertion_auc",
            title="insertion",
            unit="1 = perfect",
            better="higher",
            perfect=1.0,
            headline=True,
            ranks=True,
            sorts=True,
            text="Linear area under f of the insertion curve (all positions replaced but the top k of each example) "
            "over the share k/n of positions, from 0 to 1 (Petsiuk et al. 2018, arXiv:1806.07421, normalized). Not "
            "clipped.",
        ),
        Metric(
            "deletion_auc",
            title="deletion",
            unit="0 = perfect",
            better="lower",
            ranks=True,
            sorts=True,
            text="Linear area under f of the deletion curve (the top k positions of each example replaced) over the "
            "share k/n of positions, from 0 to 1 (Petsiuk et al. 2018, arXiv:1806.07421, normalized). Not clipped.",
        ),
        Metric(
            "insertion_auc_ring1",
            title="insertion, ring 1",
            unit="1 = perfect",
            better="higher",
            optional=True,
            text=f"As the insertion area.{_RING}",
        ),
        Metric(
            "deletion_auc_ring1",
            title="deletion, ring 1",
            unit="0 = perfect",
            better="lower",
            optional=True,
            text=f"As the deletion area.{_RING}",
        ),
        Metric(
            "comprehensiveness_aopc",
            title="comp.",
            unit="probability",
            better="higher",
            text="Drop in p(answer) when the top 1, 5, 10, 20 and 50 % of the positions (at least one) are replaced, "
            "averaged over these five bins (DeYoung et al. 2020, arXiv:1911.03429; their formula also counts the "
            "empty bin, which multiplies by 5/6).",
        ),
        Metric(
            "sufficiency_aopc",
            title="suff.",
            unit="probability",
            better="lower",
            text="Drop in p(answer) when all positions but the top 1, 5, 10, 20 and 50 % (at least one) are replaced, "
            "averaged over these five bins (DeYoung et al. 2020, arXiv:1911.03429).",
        ),
        Metric(
            "pointing_game",
            title="pointing",
            unit="share of examples",
            better="higher",
            optional=True,
            version=2,
            text="Whether the highest position is evidence (of equal ones, the share that is), by the marks or regions "
            "that the task declares (Zhang et al. 2016, arXiv:1608.00507, without their margin). By chance: the share "
            "of evidence.",
        ),
        Metric(
            "precision_at_mark",
            title="precision",
            unit="share of positions",
            better="higher",
            optional=True,
            version=2,
            text="Share of evidence among as many top positions as there is evidence, in expectation over the orders "
            "of equal scores. By chance: the share of evidence.",
        ),
        Metric(
            "iou_best",
            title="IoU",
            unit="1 = perfect",
            better="higher",
            optional=True,
            text="Intersection over union of the evidence and the positions that score at least t, at the best t of "
            "each example. Never below the share of evidence, which marking everything gives.",
        ),
        Metric(
            "iou_half",
            title="IoU at 0.5",
            unit="1 = perfect",
            better="higher",
            optional=True,
            shown=False,
            text="Intersection over union of the evidence and the positions above the middle between an example's "
            "smallest and largest score; 0 where all scores are equal.",
        ),
        Metric(
            "mass_evidence",
            title="mass in evidence",
            unit="share of score",
            better="higher",
            optional=True,
            ranks=True,
            text="Share of the positive scores that lies in the evidence (relevance mass, Arras et al. 2022, "
            "arXiv:2003.07258); an example without a positive score counts as equal scores. By chance: the share of "
            "evidence.",
        ),
        Metric(
            "mass_other",
            title="mass in distractors",
            unit="share of score",
            better="lower",
            optional=True,
            text="As the mass in the evidence, for the marks or regions that the task declares as distractors. By "
            "chance: their share.",
        ),
        Metric(
            "mass_background",
            title="mass elsewhere",
            unit="share of score",
            better="lower",
            optional=True,
            shown=False,
            text="As the mass in the evidence, for positions that are neither evidence nor distractors. By chance: "
            "their share.",
        ),
        Metric(
            "evidence_share",
            title="share of evidence",
            unit="share of positions",
            better="neither",
            optional=True,
            shown=False,
            line="Evidence (the chance level of pointing, precision and the mass in it)",
            text="Share of the positions that is evidence: covered by it by at least a quarter or, where there is "
            "none, the one covered most. The chance level of pointing, precision and mass.",
        ),
        Metric(
            "other_share",
            title="share of distractors",
            unit="share of positions",
            better="neither",
            optional=True,
            shown=False,
            line="Distractors (of the mass in them)",
            text="Share of the positions that is distractors and not evidence: the chance level of the mass there.",
        ),
        Metric(
            "background_share",
            title="share elsewhere",
            unit="share of positions",
            better="neither",
            optional=True,
            shown=False,
            text="Share of the positions that is neither evidence nor distractors: the chance level of the mass there.",
        ),
        Metric(
            "comprehensiveness_aopc_ring1",
            title="comp., ring 1",
            unit="probability",
            better="higher",
            optional=True,
            shown=False,
            text="As comprehensiveness, each of the top patches together with the eight around it: a scattered top is "
            "then more patches than one that hangs together.",
        ),
        Metric(
            "sufficiency_aopc_ring1",
            title="suff., ring 1",
            unit="probability",
            better="lower",
            optional=True,
            shown=False,
            text="As sufficiency, each of the top patches together with the eight around it.",
        ),
    )

    grid: tuple[int, int] | None
    evidence: list[str]
    distractors: list[str]
    rings: list[int]
    examples: list[LocalizedExample]

    @property
    def n(self) -> int:
        return len(self.examples)

    def check_values(self) -> None:
        if not self.examples:
            raise ValueError("examples are empty")
        for at, example in enumerate(self.examples):
            if len(example.removal) != len(self.rings):
                raise ValueError(
                    f"examples.{at}.removal has {len(example.removal)} entries where there are {len(self.rings)} rings"
                )
            if self.grid is not None and self.grid[0] * self.grid[1] != len(example.scores):
                raise ValueError(f"examples.{at}.scores has {len(example.scores)} entries, which do not fill the grid")
            if self.evidence and not any(any(example.coverage.get(name, ())) for name in self.evidence):
                raise ValueError(f"examples.{at}.coverage has no position of the evidence")

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., N]``.

        A metric is absent where it was not measured: rings, and marks that the task does not declare.
        """
        full, empty = (
            np.array([getattr(e, name)[Measure.METRIC] for e in self.examples]) for name in ("full", "empty")
        )

        def normalized(area: Array) -> Statistic:
            def f(index: NDArray[np.intp]) -> Array:
                low = empty[index].mean(-1)
                with np.errstate(divide="ignore", invalid="ignore"):
                    return (area[index].mean(-1) - low) / (full[index].mean(-1) - low)

            return f

        def mean(values: Array) -> Statistic:
            return lambda index: values[index].mean(-1)

        statistics: dict[str, Statistic] = {}
        for at, ring in enumerate(self.rings):
            suffix = f"_ring{ring}" if ring else ""
            for kind, area, loss in (
                ("insertion", "insertion_auc", "sufficiency_aopc"),
                ("deletion", "deletion_auc", "comprehensiveness_aopc"),
            ):
                statistics[area + suffix] = normalized(np.array([e.area(at, kind) for e in self.examples]))
                statistics[loss + suffix] = mean(np.array([e.lost(at, kind) for e in self.examples]))
        if self.evidence:
            against = [self._against_marks(e) for e in self.examples]
            statistics |= {name: mean(np.array([values[name] for values in against])) for name in against[0]}
        return statistics

    def _against_marks(self, example: LocalizedExample) -> dict[str, float]:
        scores = np.asarray(example.scores)
        evidence = covered(example.coverage, self.evidence, len(scores))
        other = covered(example.coverage, self.distractors, len(scores)) & ~evidence
        return against_marks(scores, evidence, other if self.distractors else None)

    def curve(self, kind: str) -> tuple[Array, Array]:
        """f of the insertion or deletion curve without rings, at 0 and :data:`FRACTIONS` of the positions.

        Between the sizes of an example its metric is taken on a straight line, as in the areas.
        """
        full, empty = (np.mean([getattr(e, name)[Measure.METRIC] for e in self.examples]) for name in ("full", "empty"))
        x, values = np.array([0.0, *FRACTIONS]), []
        for e in self.examples:
            start = e.empty if kind == "insertion" else e.full
            values.append(np.interp(x, *e.removal[0].curve(kind, start[Measure.METRIC])))
        return x, (np.mean(values, axis=0) - empty) / (full - empty)

    def score_map(self, example: LocalizedExample) -> NDArray[np.float32]:
        """An example's scores as a grid of patches, ``[rows, columns]``; ``[1, n]`` for tokens."""
        return np.array(example.scores, dtype=np.float32).reshape(self.grid or (1, -1))


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
    marked = int(evidence.sum())
    low, high = scores.min(), scores.max()
    unit = (scores - low) / (high - low) if high > low else np.zeros(len(scores))
    positive = np.maximum(scores, 0.0)
    # scores that are nowhere positive say as little as equal ones
    mass = positive / positive.sum() if positive.any() else np.full(len(scores), 1 / len(scores))
    values = {
        "pointing_game": top_share(scores, evidence, 1),
        "precision_at_mark": top_share(scores, evidence, marked),
        "iou_best": max(_iou(scores >= threshold, evidence) for threshold in np.unique(scores)),
        "iou_half": _iou(unit > 0.5, evidence),
        "mass_evidence": float(mass[evidence].sum()),
        "evidence_share": float(evidence.mean()),
    }
    rest = ~evidence
    if other is not None:
        rest = rest & ~other
        values |= {"mass_other": float(mass[other].sum()), "other_share": float(other.mean())}
    return {**values, "mass_background": float(mass[rest].sum()), "background_share": float(rest.mean())}


def top_share(scores: Array, evidence: NDArray[np.bool_], k: int) -> float:
    """The share of evidence among the ``k`` highest of scores ``[n]``, in expectation over the orders of equal ones."""
    border = np.sort(scores)[-k]
    above, level = scores > border, scores == border
    return float((evidence[above].sum() + (k - above.sum()) * evidence[level].mean()) / k)


def _iou(chosen: NDArray[np.bool_], evidence: NDArray[np.bool_]) -> float:
    """Intersection over union; the evidence is never empty."""
    return float((chosen & evidence).sum() / (chosen | evidence).sum())
