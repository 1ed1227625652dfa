"""How scores are compared with the truth; the metrics stand in :mod:`attriboard.measurements.ground_truth`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..components import InputLevel, Level
from ..errors import SkipCell
from ..loading import has_truth
from ..measurements.ground_truth import GroundTruth, JudgedScores
from ..scores import Scores
from ..task import Task
from ..truth import ByRole, Truth
from ..wiring import edge_roles
from .base import Evaluation, Job

if TYPE_CHECKING:
    from .context import Context


class GroundTruthEvaluation(Evaluation):
    """Scores beside the mechanism of a planted model."""

    name = "ground_truth"
    measurement = GroundTruth
    version = 2

    def refuses(self, task: Task, level: str, model: str) -> str | None:
        if has_truth(model):
            return None
        return (
            f"ground_truth is asked of {model}, of which no mechanism is known; choose a planted model, or take "
            f"ground_truth out of the evaluations."
        )

    def measure(self, job: Job) -> GroundTruth:
        return evaluate(job.context, job.scores, job.level)


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
    needed = _needed(context, truth, level)
    if not needed.helps | needed.hurts:
        why = "that these examples need" if truth.levels.get(level.name, True) else "at all"
        raise SkipCell(f"the mechanism of {model.name} has no part among the {level.name} {why}.")
    judged = [(n, float(s)) for n, s in zip(scores.names, scores.values.flatten()) if n not in needed.left_out]
    case = JudgedScores(
        scores=[s for _, s in judged],
        truth=[(n in needed.helps) - (n in needed.hurts) for n, _ in judged],
        left_out=len(needed.left_out),
    )
    return GroundTruth(cases=[case], each_example=False)


def _needed(context: Context, truth: Truth, level: Level) -> ByRole:
    """The parts that the train examples need, by role."""
    if level.name in truth.levels:
        return truth.at(level.name, [e.example for e in context.train])
    if level.edges:
        return edge_roles(context.model, truth, context.train)
    raise SkipCell(f"the truth of {context.model.name} says nothing about {level.name}.")


def _token_cases(
    context: Context, scores: Sequence[Tensor], level: InputLevel, marks: Sequence[str]
) -> list[JudgedScores]:
    model = context.model
    if level.image or not marks:
        raise SkipCell(f"the truth of {model.name} says nothing about {level.name}.")
    cases = []
    for encoded, own in zip(context.test, scores):
        if missing := [mark for mark in marks if not encoded.example.marks.get(mark)]:
            raise SkipCell(f"the truth of {model.name} is about the mark {missing[0]!r}, which these examples lack.")
        true = {position for mark in marks for position in model.mark_positions(encoded, mark)}
        truth = [int(position in true) for position in level.positions(model, encoded)]
        cases.append(JudgedScores(scores=own.flatten().tolist(), truth=truth))
    return cases
