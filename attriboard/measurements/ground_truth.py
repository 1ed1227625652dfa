"""Are the parts that a method finds those that make the answer? For models whose mechanism is known.

No intervention is made: scores are compared with the truth (:class:`attriboard.truth.Truth`). Components are judged
once, since their scores are of the train examples together; tokens example by example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.stats import rankdata

from ..levels import COMPONENTS
from ..stats.clusters import Clusters
from ..stats.intervals import Array
from .base import Measurement, Metric, Shaped, Statistic

TIED = 1e-5
"""Scores closer than this share of the largest in size are equal: single precision does not tell them apart."""

Flags = NDArray[np.bool_]

_TIES = "Scores closer than 1e-5 of the largest in size are ties. Parts that no scored example needs are not judged."


def _against_truth() -> tuple[Metric, ...]:
    """The metrics by signed scores, then the same by the size of the scores."""
    metrics = []
    for suffix, head, parts in (
        ("", "", "the parts that help the answer against all others, by signed scores"),
        (
            "_absolute",
            " (|score|)",
            "the parts that help or hurt the answer against those that do nothing, by size of the scores",
        ),
    ):
        for name, title, text in (
            (
                "auroc",
                "AUROC",
                f"Area under the ROC curve of {parts}: the share of pairs ordered right, ties counted half; chance is "
                f"one half.",
            ),
            (
                "average_precision",
                "AP",
                f"Average precision of {parts}; ties in random order, in expectation. By chance about the share of "
                f"true parts.",
            ),
            (
                "precision_at_size",
                "P at size",
                f"Precision of {parts}, among as many of the highest as there are true parts; ties broken at random, "
                f"in expectation. By chance the share of true parts.",
            ),
        ):
            metrics.append(
                Metric(
                    f"truth_{name}{suffix}",
                    title=f"{title}{head}",
                    unit="share",
                    better="higher",
                    optional=True,
                    sorts=name == "auroc" and not suffix,
                    exact=True,
                    version=2 if name == "average_precision" else 1,
                    text=f"{text} {_TIES}",
                )
            )
    return tuple(metrics)


class JudgedScores(Shaped):
    """Scores beside the truth; parts of the mechanism that no scored example needs are not among them.

    Attributes:
        scores: ``[n]``.
        truth: ``[n]``: 1 helps the answer, -1 works against it, 0 does nothing.
        left_out: how many were not judged.
    """

    model_config = ConfigDict(extra="forbid")

    shapes: ClassVar = {"scores": "components", "truth": "components"}

    scores: list[float]
    truth: list[int]
    left_out: int = 0


class GroundTruth(Measurement):
    """Scores against the truth: those of components once, or those of each test example.

    Attributes:
        cases: the scores of components alone, or of one test example after the other.
        each_example: whether they are of single examples.
    """

    name = "ground_truth"
    text = (
        "Measured of models whose mechanism is known ([ground_truth.md](ground_truth.md)); components are judged once, "
        "on the train examples that were scored."
    )
    levels = (*COMPONENTS, "tokens")
    position = 100
    metrics = (
        *_against_truth(),
        Metric(
            "suppressor_auroc",
            title="AUROC of suppressors",
            unit="share",
            better="higher",
            optional=True,
            exact=True,
            text="Area under the ROC curve of the parts that work against the answer, against all others, by lowest "
            f"signed score; only where the model has such parts. {_TIES}",
        ),
        Metric(
            "truth_share",
            title="share of true parts",
            unit="share of components",
            better="neither",
            optional=True,
            exact=True,
            text="Share of the judged components or positions that help the answer: the chance level of average "
            "precision and of precision at size.",
        ),
    )

    cases: list[JudgedScores]
    each_example: bool

    @property
    def n(self) -> int:
        return len(self.cases)

    def check_values(self) -> None:
        if not self.cases or not all(case.scores for case in self.cases):
            raise ValueError("cases, or the scores of one, are empty")

    def clusters(self, items: Sequence[str] = (), frames: Sequence[str] = ()) -> Clusters:
        return super().clusters(items, frames) if self.each_example else Clusters(self.n)

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the mean over cases; a metric is absent where any case leaves it undefined."""
        judged = [judge(np.array(case.scores), np.array(case.truth)) for case in self.cases]

        def mean(values: Array) -> Statistic:
            return lambda index: values[index].mean(-1)

        shared = [name for name in judged[0] if all(name in other for other in judged)]
        return {name: mean(np.array([values[name] for values in judged])) for name in shared}

    def gaps(self) -> dict[str, str]:
        if "truth_auroc" in self.statistics():
            return {}
        return {"truth_auroc": "nothing that was scored helps the answer, or everything does."}


def judge(scores: Array, truth: NDArray[np.int_]) -> dict[str, float]:
    """By metric name, how scores ``[n]`` agree with the truth ``[n]``; without what is undefined."""
    helps, hurts = truth > 0, truth < 0
    values: dict[str, float] = {}
    for suffix, ordered, positive in (("", scores, helps), ("_absolute", np.abs(scores), helps | hurts)):
        if positive.any() and not positive.all():
            ranks = tied(ordered)
            values |= {
                f"truth_auroc{suffix}": auroc(ranks, positive),
                f"truth_average_precision{suffix}": average_precision(ranks, positive),
                f"truth_precision_at_size{suffix}": precision_at_size(ranks, positive),
            }
    if hurts.any() and not hurts.all():
        values["suppressor_auroc"] = auroc(tied(-scores), hurts)
    return {**values, "truth_share": float(helps.mean())} if values else values


def tied(scores: Array) -> NDArray[np.intp]:
    """``[n]``: places from 0 for the lowest score; neighbors closer than :data:`TIED` of the largest size share one."""
    order = np.argsort(scores, kind="stable")
    apart = np.diff(scores[order]) > TIED * np.abs(scores).max(initial=0.0)
    places = np.empty(len(scores), dtype=np.intp)
    places[order] = np.concatenate([[0], np.cumsum(apart)])
    return places


def auroc(places: NDArray[np.intp], positive: Flags) -> float:
    """The share of pairs of a positive and another in which the positive stands higher; ties count half."""
    n, others = int(positive.sum()), int((~positive).sum())
    return float((rankdata(places)[positive].sum() - n * (n + 1) / 2) / (n * others))


def average_precision(places: NDArray[np.intp], positive: Flags) -> float:
    """The mean precision down to each positive, in expectation over the random orders of equal places.

    Of ``t`` equal places with ``h`` positives, the one that comes ``j``-th (from 0) is positive with probability
    ``h / t``, and then ``j (h - 1) / (t - 1)`` of those before it are, in expectation.
    """
    expected, above, found = 0.0, 0, 0
    for place in np.unique(places)[::-1]:
        level = places == place
        size, hits = int(level.sum()), int(positive[level].sum())
        if hits:
            j = np.arange(size)
            before = j * (hits - 1) / max(1, size - 1)
            expected += hits / size * float(((found + before + 1) / (above + j + 1)).sum())
        above, found = above + size, found + hits
    return expected / found


def precision_at_size(places: NDArray[np.intp], positive: Flags) -> float:
    """The share of positives among as many of the highest as there are positives, ties broken at random."""
    n = int(positive.sum())
    border = np.sort(places)[-n]
    above, level = places > border, places == border
    room = n - int(above.sum())
    return float((positive[above].sum() + room * positive[level].mean()) / n)
