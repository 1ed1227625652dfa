"""What every score family has in common: raw measurements, and the aggregates that follow from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..stats.intervals import Array

Statistic = Callable[[NDArray[np.intp]], Array]
Scalar = tuple[float, float | None, float | None]
"""A value with the ends of its interval or spread, where it has them."""


class Family(BaseModel):
    """The measurements of one kind of evaluation in one cell; a subclass holds them, example by example.

    Attributes:
        over_kept: whether its examples are the test examples kept, in the record's order.
        base_items: where they are not, the base item of each; empty where that is not known.
    """

    model_config = ConfigDict(extra="forbid")

    over_kept: ClassVar[bool] = True
    base_items: list[str] = Field(default_factory=list)

    def clusters(self, kept: Sequence[str]) -> Sequence[str]:
        """The base item of each example, given those of the test examples kept; empty where they are not known."""
        return kept if self.over_kept else self.base_items

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
