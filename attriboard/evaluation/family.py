"""What every score family has in common: raw measurements, and the aggregates that follow from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..statistics import Array

Statistic = Callable[[NDArray[np.intp]], Array]
Scalar = tuple[float, float | None, float | None]
"""A value with the ends of its interval or spread, where it has them."""


class Family(BaseModel):
    """The measurements of one kind of evaluation in one cell; a subclass holds them, example by example."""

    model_config = ConfigDict(extra="forbid")

    @property
    @abstractmethod
    def n(self) -> int:
        """How many examples the statistics range over."""

    @abstractmethod
    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., n]``."""

    def scalars(self) -> dict[str, Scalar]:
        """By metric name, aggregates that do not range over examples."""
        return {}

    def gaps(self) -> dict[str, str]:
        """What was not measured, by metric or part, and why."""
        return {}
