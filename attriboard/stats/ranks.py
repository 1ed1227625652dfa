"""Ranks: of methods over tables, and of scores against scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from .intervals import ALPHA, Array
from .tests import FLIPS


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
    ranks within each table: all permutations where they are no more than :data:`FLIPS`, else that many random ones.

    Raises:
        ValueError: fewer than 2 tables or 3 methods, or a value that is not finite.
    """
    values = np.asarray(values, dtype=float)
    n, k = values.shape
    if n < 2 or k < 3 or not np.isfinite(values).all():
        raise ValueError(f"a rank test needs 2 tables and 3 methods with finite values, not {n} and {k}.")
    ranks = scipy.stats.rankdata(values, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = float(scipy.stats.friedmanchisquare(*ranks.T).statistic)
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
