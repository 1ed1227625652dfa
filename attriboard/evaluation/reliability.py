"""Reliability: would a method say the same of other examples of the task?

The train examples are divided into two halves, a base item never torn apart; the scores are averaged over each half,
and the two are compared by Spearman's rank correlation over components and by the components that their tops have in
common. Methods that score single examples are asked of many halvings without another pass. Methods that score all
examples together score the two halves of one halving.

A method that does not look at the examples agrees with itself whatever it says: reliability is worth nothing alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SkipCell
from ..measurements.base import Family, Scalar, Statistic
from ..method import checked
from ..stats.intervals import LEVEL, clusters_of

if TYPE_CHECKING:
    from ..components import Level
    from ..method import Method
    from ..model import EncodedExample
    from ..scores import Scores
    from .context import Context

TOP = 20
"""How many components are at the top of a ranking, if that is at most half of the level."""
MIN_ITEMS = 4
"""Halves of fewer base items than two each say nothing."""


class Reliability(Family):
    """What the halves of each halving have in common; ``base_items`` are those of the train examples.

    Attributes:
        halves: ``[H][E/2]``, the train examples of the first half; the second half has all others.
        top: the number of components at the top.
        rank_correlation: ``[H]``, Spearman's, of the two halves' scores over components.
        in_common: ``[H]``, the share of the first half's top that is in the second half's.
    """

    over_kept: ClassVar[bool] = False

    halves: list[list[int]]
    top: int
    rank_correlation: list[float]
    in_common: list[float]

    @property
    def n(self) -> int:
        return len(self.base_items)

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


def evaluate(context: Context, method: Method, scores: Scores, level: Level, draws: int) -> Reliability:
    """Compares halves of the train examples, the same ones for every method.

    Args:
        scores: the method's, of the train examples.
        draws: most halvings.

    Raises:
        SkipCell: fewer than :data:`MIN_ITEMS` base items, halves that the method cannot score, or a half whose scores
            are all equal.
    """
    model, examples = context.model, context.train
    items = [e.example.item for e in examples]
    groups = clusters_of(items, len(items))
    if len(groups) < MIN_ITEMS:
        raise SkipCell(
            f"reliability compares halves of the train examples, which needs {MIN_ITEMS} base items, but there are "
            f"{len(groups)}; raise max_train."
        )
    pairs = halvings(groups, draws, context.seed)
    each = None if scores.each is None else torch.stack(scores.each).flatten(1)
    if each is None:
        pairs = [_that_fits(method, examples, pairs)]

    def scored(half: Sequence[int]) -> Tensor:
        if each is not None:
            return each[list(half)].double().mean(0)
        found = method.attribute(model, [examples[i] for i in half], level)
        return checked(found, method, model, level).values.flatten()

    top = min(TOP, max(1, level.size(model) // 2))
    correlations, shares = [], []
    for pair in pairs:
        a, b = (scored(half) for half in pair)
        correlations.append(rank_correlation(a, b))
        if not math.isfinite(correlations[-1]):
            raise SkipCell(f"all scores of {method.name} are equal on half of the examples, so they have no ranks.")
        shares.append(len(_top(a, top) & _top(b, top)) / top)
    return Reliability(
        base_items=items,
        halves=[first for first, _ in pairs],
        top=top,
        rank_correlation=correlations,
        in_common=shares,
    )


def halvings(groups: Sequence[NDArray[np.intp]], draws: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """At most ``draws`` different ways to divide groups of examples into two halves, all of them if they are so few.

    Of an odd number of groups, the second half has one more.
    """
    n = len(groups)
    k = n // 2
    even = n % 2 == 0
    if math.comb(n, k) // (1 + even) <= draws:
        # with an even number each halving would come twice, its halves exchanged: the first group is always in the one
        chosen = [c for c in itertools.combinations(range(n), k) if not even or 0 in c]
    else:
        rng = np.random.default_rng(seed)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < draws:
            order = rng.permutation(n).tolist()
            half = order[:k] if not even or 0 in order[:k] else order[k:]
            drawn[tuple(sorted(half))] = None
        chosen = list(drawn)

    def members(which: Iterable[int]) -> list[int]:
        return sorted(int(i) for g in which for i in groups[g])

    return [(members(c), members(set(range(n)) - set(c))) for c in chosen]


def _that_fits(
    method: Method, examples: Sequence[EncodedExample], pairs: Sequence[tuple[list[int], list[int]]]
) -> tuple[list[int], list[int]]:
    """The first of the halvings whose halves both have what the method needs.

    Raises:
        SkipCell: there is none; says what the last one lacks.
    """
    why = ""
    for pair in pairs:
        try:
            for half in pair:
                method.check_examples([examples[i] for i in half])
        except SkipCell as error:
            why = str(error)
            continue
        return pair
    raise SkipCell(f"{method.name} scores all examples together, and no half of them is enough for it: {why}")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of scores ``[n]``, ties sharing their mean rank; NaN if all of one are equal."""
    x, y = a.numpy(), b.numpy()
    if len(x) < 2 or min(np.ptp(x), np.ptp(y)) == 0:
        return math.nan
    return float(scipy.stats.spearmanr(x, y).statistic)


def _top(scores: Tensor, k: int) -> set[int]:
    """The ``k`` highest, of equal ones the first."""
    return set(torch.argsort(scores, descending=True, stable=True)[:k].tolist())
