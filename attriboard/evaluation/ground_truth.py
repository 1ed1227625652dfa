"""Are the parts that a method finds those that make the answer? For models whose mechanism is known.

No intervention is made: scores are compared with :class:`attriboard.truth.Truth`. Components are judged once, since
their scores are of the train examples together; tokens example by example.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import rankdata
from torch import Tensor

from ..components import InputLevel, Level
from ..errors import SkipCell
from ..measurements.base import Family, Statistic
from ..scores import Scores
from ..stats.intervals import Array
from .context import Context

TIED = 1e-5
"""Scores closer than this share of the largest in size are equal: single precision does not tell them apart."""

Flags = NDArray[np.bool_]


class Case(BaseModel):
    """Scores beside the truth; parts of the mechanism that no scored example needs are not among them.

    Attributes:
        scores: ``[n]``.
        truth: ``[n]``: 1 helps the answer, -1 works against it, 0 does nothing.
        left_out: how many were not judged.
    """

    model_config = ConfigDict(extra="forbid")

    scores: list[float]
    truth: list[int]
    left_out: int = 0


class GroundTruth(Family):
    """Scores against the truth: one case of components, or one for each test example."""

    cases: list[Case]
    each_example: bool

    @property
    def n(self) -> int:
        return len(self.cases)

    def clusters(self, kept: Sequence[str]) -> Sequence[str]:
        return kept if self.each_example else []

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
    found: dict[str, float] = {}
    for suffix, values, positive in (("", scores, helps), ("_absolute", np.abs(scores), helps | hurts)):
        if positive.any() and not positive.all():
            ranks = tied(values)
            found |= {
                f"truth_auroc{suffix}": auroc(ranks, positive),
                f"truth_average_precision{suffix}": average_precision(ranks, positive),
                f"truth_precision_at_size{suffix}": precision_at_size(ranks, positive),
            }
    if hurts.any() and not hurts.all():
        found["suppressor_auroc"] = auroc(tied(-scores), hurts)
    return {**found, "truth_share": float(helps.mean())} if found else found


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
    """The precision down to each place that holds positives, weighted by how many; equal places come together."""
    down, at = np.unique(-places, return_inverse=True)
    hits = np.bincount(at, positive, len(down))
    precision = hits.cumsum() / np.bincount(at, minlength=len(down)).cumsum()
    return float((precision * hits).sum() / hits.sum())


def precision_at_size(places: NDArray[np.intp], positive: Flags) -> float:
    """The share of positives among as many of the highest as there are positives, ties broken at random."""
    n = int(positive.sum())
    border = np.sort(places)[-n]
    above, level = places > border, places == border
    room = n - int(above.sum())
    return float((positive[above].sum() + room * positive[level].mean()) / n)


def evaluate(context: Context, scores: Scores | Sequence[Tensor], level: Level) -> GroundTruth:
    """Compares scores with what is known of the model.

    Args:
        scores: of components (the truth is matched with the train examples that they are of), or one tensor for each
            test example.

    Raises:
        SkipCell: nothing is known of the model at this level, or its mechanism has no part there that these examples
            need.
    """
    model, truth = context.model, context.model.truth
    if truth is None:
        raise SkipCell(f"{model.name} has no planted mechanism; choose a planted model, such as planted-copy.")
    if isinstance(level, InputLevel):
        assert not isinstance(scores, Scores)
        return GroundTruth(cases=_token_cases(context, scores, level, truth.tokens), each_example=True)
    assert isinstance(scores, Scores)
    if level.name not in truth.levels:
        raise SkipCell(f"the truth of {model.name} says nothing about {level.name}.")
    needed = truth.at(level.name, [e.example for e in context.train])
    if not needed.helps | needed.hurts:
        why = "that these examples need" if truth.levels[level.name] else "at all"
        raise SkipCell(f"the mechanism of {model.name} has no part among the {level.name} {why}.")
    judged = [(n, float(s)) for n, s in zip(scores.names, scores.values.flatten()) if n not in needed.left_out]
    case = Case(
        scores=[s for _, s in judged],
        truth=[(n in needed.helps) - (n in needed.hurts) for n, _ in judged],
        left_out=len(needed.left_out),
    )
    return GroundTruth(cases=[case], each_example=False)


def _token_cases(context: Context, scores: Sequence[Tensor], level: InputLevel, marks: Sequence[str]) -> list[Case]:
    model = context.model
    if level.image or not marks:
        raise SkipCell(f"the truth of {model.name} says nothing about {level.name}.")
    cases = []
    for encoded, own in zip(context.test, scores):
        if missing := [mark for mark in marks if not encoded.example.marks.get(mark)]:
            raise SkipCell(f"the truth of {model.name} is about the mark {missing[0]!r}, which these examples lack.")
        true = {position for mark in marks for position in model.mark_positions(encoded, mark)}
        truth = [int(position in true) for position in level.positions(model, encoded)]
        cases.append(Case(scores=own.flatten().tolist(), truth=truth))
    return cases
