"""What an evaluation is: how a measurement is made of scores, and where it refuses.

An evaluation is two files: what is stored and what follows from it (:mod:`attriboard.measurements`, without torch), and
how it is measured (:mod:`attriboard.evaluation`). Both are found by their names; nothing else lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..measurements.base import Measurement
from ..registry import Registry
from ..scores import Scores

if TYPE_CHECKING:
    from ..components import Level
    from ..measurements.capability import Capability
    from ..method import Method
    from ..model import Model
    from ..task import Task
    from .context import Context
    from .crossfit import Trial


@dataclass(frozen=True)
class CapabilityMeter:
    """Measures what a model can do, by the lm-eval tasks of the run.

    Attributes:
        measure: of a model as it stands.
        before: of the untouched model; measured once for all cells.
        limit: most documents of each task; None for all.
    """

    measure: Callable[[Model], Capability]
    before: Callable[[], Capability]
    limit: int | None


@dataclass(frozen=True)
class Job:
    """What an evaluation is given.

    Attributes:
        context: the task on the model, with its examples.
        level: what was scored.
        scores: of components, from the train examples; or one tensor for each test example at levels of inputs.
        trials: which examples are judged with which scores, where that is cross-fitted.
        options: of the evaluation (its measurement's ``Options``).
        replacement: what scored things are replaced by.
        method: that made the scores; None for precomputed ones.
        seed: of the cell.
        capability: a meter of general ability.
        speed_repeats: how often what is timed is repeated.
    """

    context: Context
    level: Level
    scores: Scores | list[Tensor]
    options: Any
    replacement: str
    method: Method | None
    seed: int
    trials: tuple[Trial, ...]
    capability: CapabilityMeter
    speed_repeats: int

    @property
    def component_scores(self) -> Scores:
        """The scores, at a level of components."""
        assert isinstance(self.scores, Scores)
        return self.scores

    @property
    def position_scores(self) -> Sequence[Tensor]:
        """The scores, at a level of inputs."""
        assert not isinstance(self.scores, Scores)
        return self.scores


class Evaluation:
    """Base class of all evaluations.

    Class attributes:
        name: that of the measurement.
        measurement: what it makes; says levels, options and metrics.
        version: raised when what is measured changes, so that records are measured again; see ``identity.lock``.
    """

    name: ClassVar[str] = ""
    measurement: ClassVar[type[Measurement]]
    version: ClassVar[int] = 1

    def refuses(self, task: Task, level: str, model: str) -> str | None:
        """Why a suite cannot ask for it on a task, level and model, known without loading anything; None if it can."""
        return None

    def applies(self, context: Context, level: Level) -> bool:
        """Whether there is anything to measure; where not, a record says nothing of it."""
        return True

    def measure(self, job: Job) -> Measurement:
        """Measures the scores.

        Raises:
            SkipCell: it cannot be measured of these scores; says why.
            AttriboardError: something is wrong; the cell's other evaluations go on.
        """
        raise NotImplementedError


evaluations: Registry[Evaluation] = Registry("evaluation", Evaluation, "attriboard.evaluation")
