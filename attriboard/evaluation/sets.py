"""Sets of components that are replaced in judging scores: all that a cell asks for is run together, and once.

Evaluations that replace sets say first which they need, of all trials. Equal sets on one example are then one row of a
forward pass, whoever asks for them, and all rows of some examples are sorted by the layer from which they have to be
run; see :meth:`attriboard.evaluation.context.Context.measure_all`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..interventions import Asked
from ..levels import USUAL_REPLACEMENT, Replacement
from ..measurements.base import Measurement
from .base import Evaluation, Job

if TYPE_CHECKING:
    from ..components import Level
    from .context import Context
    from .crossfit import Trial

ByName = dict[str, Tensor]
"""Sets ``[S, n]`` bool, or what was measured of them ``[S, N, 3]`` float32, by what they are for."""


@dataclass(frozen=True)
class Question:
    """What evaluations that replace sets are asked of one cell.

    Attributes:
        context: the task on the model, with its examples.
        level: what was scored, a level of components.
        trials: which examples are judged with which scores.
        replacement: what components are replaced by.
    """

    context: Context
    level: Level
    trials: Sequence[Trial]
    replacement: Replacement = USUAL_REPLACEMENT

    @property
    def n(self) -> int:
        """How many components there are."""
        return self.level.size(self.context.model)

    @property
    def layer_of(self) -> Tensor:
        """``[n]``: the layer of each component."""
        return self.level.layer_of(self.context.model)


class SetEvaluation(Evaluation):
    """An evaluation that replaces sets of components, and needs nothing else of the model."""

    @abstractmethod
    def sets(self, question: Question, options: Any) -> list[ByName]:
        """By trial, the sets that are replaced on its examples."""

    @abstractmethod
    def made(self, question: Question, measured: Sequence[ByName]) -> Measurement:
        """The measurement, from what every trial's sets gave.

        Raises:
            As :meth:`attriboard.evaluation.base.Evaluation.measure`.
        """

    def ask(self, question: Question, options: Any = None) -> Measurement:
        """Measures by itself.

        Args:
            options: of the measurement; its defaults if None.
        """
        asked = {self.name: (self, self.measurement.Options() if options is None else options)}
        outcome, _ = measure_together(question, asked)[self.name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure(self, job: Job) -> Measurement:
        question = Question(job.context, job.level, job.trials, cast(Replacement, job.replacement))
        return self.ask(question, job.options)


Outcome = tuple[Measurement | Exception, float]
"""What was measured or why it was not, and the seconds that it took."""


def measure_together(question: Question, asked: Mapping[str, tuple[SetEvaluation, Any]]) -> dict[str, Outcome]:
    """Several evaluations of one cell: their sets are run together.

    What fails in one costs no other, but for the passes that they share. The seconds of these are divided by how many
    sets each asked for.

    Args:
        asked: by name, the evaluation and its options.
    """
    failed: dict[str, Outcome] = {}
    sets: dict[str, list[ByName]] = {}
    spent: dict[str, float] = {}
    for name, (evaluation, options) in asked.items():
        start = time.perf_counter()
        try:
            sets[name] = evaluation.sets(question, options)
        except Exception as error:
            failed[name] = error, time.perf_counter() - start
        spent[name] = time.perf_counter() - start
    start = time.perf_counter()
    try:
        measured = _run(question, sets)
    except Exception as error:
        return {**failed, **dict.fromkeys(sets, (error, time.perf_counter() - start))}
    shared = time.perf_counter() - start
    rows = {name: sum(len(masks) for by_name in own for masks in by_name.values()) for name, own in sets.items()}
    found = {}
    for name in sets:
        start = time.perf_counter()
        try:
            outcome: Measurement | Exception = asked[name][0].made(question, measured[name])
        except Exception as error:
            outcome = error
        found[name] = outcome, spent[name] + shared * rows[name] / sum(rows.values()) + time.perf_counter() - start
    return {name: {**failed, **found}[name] for name in asked}


def _run(question: Question, sets: Mapping[str, list[ByName]]) -> dict[str, list[ByName]]:
    """By evaluation and trial, what its sets gave."""
    everything = [
        Asked(torch.cat(list(by_name.values())), trial.members)
        for own in sets.values()
        for trial, by_name in zip(question.trials, own, strict=True)
    ]
    if not everything:
        return {}
    results = iter(question.context.measure_all(question.level, question.replacement, everything))
    return {
        name: [dict(zip(by_name, next(results).split([len(m) for m in by_name.values()]))) for by_name in own]
        for name, own in sets.items()
    }


DIGITS = 6
"""To how many significant digits values of single rows are stored; float32 has about seven."""


def in_digits(values: Tensor) -> list[Any]:
    """A tensor as nested lists, its values to :data:`DIGITS` significant digits: shorter records, read faster."""
    if values.dim() > 1:
        return [in_digits(part) for part in values]
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
