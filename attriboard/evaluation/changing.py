"""What evaluations that change a model's weights have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..levels import COMPONENTS
from .base import Evaluation

if TYPE_CHECKING:
    from ..task import Task


class ChangingEvaluation(Evaluation):
    """An evaluation that changes the weights of components, and so has only levels at which that can be done."""

    def refuses(self, task: Task, level: str, model: str) -> str | None:
        able = self.measurement.levels
        if level in COMPONENTS and level not in able:
            return (
                f"{self.name} is measured of {' and '.join(able)}, not of {level}; move {level} to a group without it."
            )
        return None
