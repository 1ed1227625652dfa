"""Reliability: would a method say the same of other examples of the task?

The train examples are divided into two halves, a base item never torn apart; the scores are averaged over each half,
and the two are compared by Spearman's rank correlation r over components and by the components that their tops have in
common. Of a set as large as the whole, Spearman and Brown's formula expects ``2 r / (1 + r)``.

A method that does not look at the examples agrees with itself whatever it says: reliability is worth nothing alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from ..levels import COMPONENTS
from ..stats.intervals import LEVEL
from . import base
from .base import Measurement, Metric, Scalar, Statistic

_HALVINGS = (
    "Mean over random halvings, the same for every method; brackets: the middle 95 % of the halvings, no interval. "
    "Of a method that scores all examples together: one halving."
)


class Reliability(Measurement):
    """What the halves of each halving have in common; ``base_items`` are those of the train examples.

    Attributes:
        halves: ``[H][E/2]``, the train examples of the first half; the second half has all others.
        top: the number of components at the top.
        rank_correlation: ``[H]``, Spearman's, of the two halves' scores over components.
        in_common: ``[H]``, the share of the first half's top that is in the second half's; where scores
            tie, in expectation over their orders.
    """

    name = "reliability"
    levels = COMPONENTS
    needs_method = True
    position = 80
    over_kept = False
    metrics = (
        Metric(
            "reliability",
            title="split halves",
            unit="rank correlation",
            better="higher",
            sorts=True,
            tested=False,
            text=f"Spearman's rank correlation over components of the scores averaged over two halves of the train "
            f"examples, no base item torn apart. {_HALVINGS} A method that does not look at the examples has 1.",
        ),
        Metric(
            "reliability_stepped_up",
            title="stepped up",
            unit="rank correlation",
            better="higher",
            text="Spearman and Brown's estimate of what the split halves' correlation r would be of sets as large as "
            "the whole: 2 r / (1 + |r|), of the mean r. Their formula is for sums of parallel parts; of ranks it is an "
            "approximation.",
        ),
        Metric(
            "reliability_top",
            title="top 20 in common",
            unit="share",
            better="higher",
            text=f"Share of the 20 highest-scored components that two halves of the train examples have in common (of "
            f"fewer than 40 components, of their upper half). {_HALVINGS}",
        ),
    )

    class Options(base.Options):
        """How reliability is measured.

        Attributes:
            halvings: most random halvings of the train examples.
        """

        halvings: int = Field(100, ge=1)

    shapes: ClassVar = {"rank_correlation": "halvings", "in_common": "halvings"}

    halves: list[list[int]]
    top: int
    rank_correlation: list[float]
    in_common: list[float]

    @property
    def n(self) -> int:
        return len(self.base_items)

    def check_values(self) -> None:
        if not self.rank_correlation:
            raise ValueError("rank_correlation is empty")

    def statistics(self) -> dict[str, Statistic]:
        return {}

    def scalars(self) -> dict[str, Scalar]:
        """Means over halvings, with the middle 95 % of them where there are several."""
        mean = float(np.mean(self.rank_correlation))
        return {
            "reliability": (mean, *_middle(self.rank_correlation)),
            # of two parallel halves the whole; the sign is kept, where the formula itself would run to minus infinity
            "reliability_stepped_up": (2 * mean / (1 + abs(mean)), None, None),
            "reliability_top": (float(np.mean(self.in_common)), *_middle(self.in_common)),
        }


def _middle(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
