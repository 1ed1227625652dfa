"""Ranks: of methods over tables, and of scores against scores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .intervals import ALPHA, RESAMPLES, Array, expanded_level
from .tests import FLIPS

TIES = 0.5
"""Every pair is taken to have met once more than it did, and tied: so much of a win for either."""
MANY_TABLES = 500
"""From how many tables on Friedman's statistic is taken to be chi-squared distributed."""
FEWEST_UNITS = 5
"""What resampling needs at least, to say anything about others that were not drawn."""


class RankTest(NamedTuple):
    """Whether methods differ in rank over tables, and by how much mean ranks must differ.

    Attributes:
        mean_ranks: ``[k]``, 1 is best.
        statistic: Friedman's chi-squared, corrected for ties; NaN where all are tied in every table.
        p: of the statistic, from permutations of the ranks within every table.
        critical_difference: Nemenyi's, of two mean ranks, at :data:`ALPHA`.
    """

    mean_ranks: Array
    statistic: float
    p: float
    critical_difference: float


def rank_test(values: Array, seed: int = 0) -> RankTest:
    """Friedman's test (1937) of ``values`` ``[tables, k]``, lower is better, and Nemenyi's critical difference.

    The chi-squared approximation is poor for the few tables there are here, so the p-value comes from permuting the
    ranks within each table: all permutations where they are no more than :data:`FLIPS`, else that many random ones. Of
    more than :data:`MANY_TABLES` tables it is that of the chi-squared distribution, which is then exact enough.

    Raises:
        ValueError: fewer than 2 tables or 3 methods, or a value that is not finite.
    """
    values = np.asarray(values, dtype=float)
    n, k = values.shape
    if n < 2 or k < 3 or not np.isfinite(values).all():
        raise ValueError(f"a rank test needs 2 tables and 3 methods with finite values, not {n} and {k}.")
    ranks = scipy.stats.rankdata(values, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        friedman = scipy.stats.friedmanchisquare(*ranks.T)
    statistic = float(friedman.statistic)
    if n > MANY_TABLES and np.isfinite(statistic):
        return RankTest(ranks.mean(0), statistic, float(friedman.pvalue), critical_difference(k, n))
    p = scipy.stats.permutation_test(
        tuple(ranks.T),
        # within a table the same ranks are shuffled, so the spread of rank sums orders permutations as the statistic
        lambda *columns, axis: np.stack([c.sum(axis) for c in columns]).var(0),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=FLIPS,
        rng=np.random.default_rng(seed),
    ).pvalue
    return RankTest(ranks.mean(0), statistic, float(p), critical_difference(k, n))


def critical_difference(methods: int, tables: int) -> float:
    """Nemenyi's critical difference of two mean ranks at :data:`ALPHA` (Demsar 2006, section 3.2.2)."""
    q = scipy.stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * tables)))


Resampled = Literal["blocks", "tables", "nothing"]


class WinShares(NamedTuple):
    """How often each of ``k`` methods wins, as a model of paired comparisons has it.

    Attributes:
        wins: ``[k]``, 0 to 1: its chance of beating another of them on one table, averaged over all others.
        low, high: ``[k]``, the ends of 95 % intervals; NaN where nothing was resampled.
        resampled: what was drawn for them: blocks; tables, where blocks are too few; or nothing.
        behind: ``[k]``, by how much its share is below the highest one at least: the lower end of the 95 % interval of
            the difference. Above 0 it is told from the best; NaN where nothing was resampled.
    """

    wins: Array
    low: Array
    high: Array
    resampled: Resampled
    behind: Array


def wins_of(values: Array) -> Array:
    """Who beats whom by ``values`` ``[k]``, lower is better: ``[k, k]``, the row's method against the column's.

    1 for a win, 0 for a loss, 0.5 where both are equal; NaN where either is NaN, and on the diagonal.
    """
    values = np.asarray(values, dtype=float)
    gap = values[None, :] - values[:, None]
    won = np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2)
    np.fill_diagonal(won, np.nan)
    return won


def win_shares(outcomes: Array, blocks: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES) -> WinShares:
    """Bradley and Terry's model (1952) of paired comparisons over tables, in which not every two methods need meet.

    Method i beats method j on a table with probability ``1 / (1 + exp(s_j - s_i))``. The strengths s are those of
    maximum likelihood (by ``choix``, iterative Luce spectral ranking: Maystre and Grossglauser 2015), after adding
    :data:`TIES` to every pair: without it a method that never lost would be infinitely strong. Tables of one block
    share the weight of one.

    Intervals resample blocks, or single tables where blocks are fewer than :data:`FEWEST_UNITS`, or nothing where
    tables are too. They are percentile intervals, read at the level at which the interval of a mean of so many draws
    is as wide as Student's (Hesterberg 2015).

    Args:
        outcomes: ``[tables, k, k]``, the share of a table's comparisons that the row's method wins against the
            column's, ties counting half; NaN where they did not meet.
        blocks: of each table, what it shares with others that are no new evidence.
        seed: of the resampling.
        resamples: how often it is drawn; 0 for no intervals.

    Raises:
        ValueError: fewer than two methods, or no table.
    """
    outcomes = np.asarray(outcomes, dtype=float)
    n, k = outcomes.shape[:2]
    if n < 1 or k < 2:
        raise ValueError(f"paired comparisons need a table and 2 methods, not {n} and {k}.")
    names = {name: at for at, name in enumerate(dict.fromkeys(blocks))}
    block = np.array([names[b] for b in blocks])
    weights = 1 / np.bincount(block)[block]
    won = np.nan_to_num(outcomes) * weights[:, None, None]
    strengths = _strengths(won.sum(0))
    wins = _mean_chance(strengths)
    unknown = np.full(k, np.nan)
    resampled: Resampled = "blocks" if len(names) >= FEWEST_UNITS else "tables" if n >= FEWEST_UNITS else "nothing"
    if resampled == "nothing" or not resamples:
        return WinShares(wins, unknown, unknown, "nothing", unknown)
    unit = block if resampled == "blocks" else np.arange(n)
    units = int(unit.max()) + 1
    per_unit = np.zeros((units, k, k))
    np.add.at(per_unit, unit, won)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, k))
    flat = per_unit.reshape(units, -1)
    for row in drawn:
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        sums = (times @ flat).reshape(k, k)
        met = (sums + sums.T).sum(1) > 0
        row[:] = np.where(met, _mean_chance(_strengths(sums, strengths, 1e-4)), np.nan)
    outside = 50 * (1 - expanded_level(units))
    low, high = np.nanpercentile(drawn, (outside, 100 - outside), axis=0)
    behind = np.nanpercentile(drawn[:, [int(wins.argmax())]] - drawn, outside, axis=0)
    return WinShares(wins, low, high, resampled, behind)


def _strengths(won: Array, start: Array | None = None, tolerance: float = 1e-6) -> Array:
    """The strengths ``[k]`` behind sums of wins ``[k, k]``, :data:`TIES` added."""
    import choix  # half a second, and only overall ranks need it

    with_ties = won + TIES * (1 - np.eye(len(won)))
    return choix.ilsr_pairwise_dense(with_ties, initial_params=start, max_iter=1000, tol=tolerance)


def _mean_chance(strengths: Array) -> Array:
    """``[k]``: each method's chance of beating another, averaged over all others."""
    chances = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    return (chances.sum(1) - 0.5) / (len(strengths) - 1)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 in the denominator) of one number under several seeds; NaN for one alone."""
    numbers = np.asarray(values, dtype=float)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's correlation of two lists of scores ``[n]``, ties sharing their mean rank.

    NaN where all of one are equal, or there are fewer than two.

    Raises:
        ValueError: they differ in length.
    """
    x, y = np.asarray(a), np.asarray(b)
    if len(x) != len(y):
        raise ValueError(f"scores of {len(x)} and {len(y)} components cannot be correlated.")
    if len(x) < 2 or min(np.ptp(x), np.ptp(y)) == 0:
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic)
