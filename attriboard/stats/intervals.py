"""How sure a number is, and whether two differ: bootstrap intervals, permutation tests, ranks over tables, seeds.

Examples that share a base item say much the same; they are resampled, and change sides, together.
``docs/statistics.md`` says in words what is tested and how; ``benchmarks/coverage.py`` measures how far it can be
trusted.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 1000
ALPHA = 0.05
"""Differences whose (adjusted) p-value is above this are not told apart."""


def mean_of_known(values: Array) -> Callable[[NDArray[np.intp]], Array]:
    """The mean of ``values`` ``[N]`` over the examples that have one (not NaN), of example indices ``[..., N]``."""

    def mean(index: NDArray[np.intp]) -> Array:
        chosen = values[index]
        known = np.isfinite(chosen)
        with np.errstate(invalid="ignore"):
            return np.where(known, chosen, 0.0).sum(-1) / known.sum(-1)

    return mean


def clusters_of(items: Sequence[Hashable], n: int) -> list[NDArray[np.intp]]:
    """The example indices of each base item, in order of first appearance.

    An example without an item (an empty name), or all where ``items`` does not have ``n`` entries, stand alone.
    """
    if len(items) != n:
        return [np.array([i]) for i in range(n)]
    groups: dict[Hashable, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item if item != "" else ("", i), []).append(i)
    return [np.array(group) for group in groups.values()]


def alone(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> Array:
    """The statistic of each example alone ``[n]``: NaN where :func:`mean_of_known` has nothing to average."""
    with np.errstate(all="ignore"):
        return np.asarray(statistic(np.arange(n)[:, None]), dtype=float) if n else np.zeros(0)


def heeded(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> NDArray[np.intp]:
    """The indices of the examples that a statistic does not pass over for want of a value; all of them as a rule.

    An example without a value must neither be drawn in the place of one that has, nor be taken for one that agrees.
    """
    everyone = np.arange(n)
    having = everyone[~np.isnan(alone(n, statistic))]
    if len(having) in (0, n):
        return everyone
    with np.errstate(all="ignore"):
        same = np.isclose(statistic(having), statistic(everyone), rtol=1e-9, atol=1e-12)
    return having if same else everyone  # the statistic puts together means over different examples


def bootstrap_interval(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], seed: int = 0, items: Sequence[Hashable] = ()
) -> tuple[float, float] | None:
    """The 95 % bias-corrected and accelerated bootstrap interval of a statistic of ``n`` examples.

    Resamples of few examples spread too little, and their tails are no wider than the normal distribution's. The
    interval is therefore taken at the level at which that of a mean is as wide as Student's (Hesterberg 2015, the
    expanded percentile interval).

    Args:
        n: number of examples.
        statistic: from example indices ``[..., m]`` (drawn with replacement) to values ``[...]``.
        seed: of the resampling.
        items: the base item of each example; those that share one are drawn together.

    Returns:
        (low, high); the percentile interval where the correction is undefined (equal values); None for fewer than two
        base items or where resamples give no finite value. Examples without a value are left out (:func:`heeded`).
    """
    having = heeded(n, statistic)
    if len(having) < n:
        known = [items[i] for i in having.tolist()] if len(items) == n else ()
        return bootstrap_interval(len(having), lambda index: statistic(having[index]), seed, known)
    clusters = clusters_of(items, n)
    if len(clusters) < 2:
        return None
    sample = (np.arange(len(clusters)),)

    def over_last_axis(index: NDArray[np.intp], axis: int = -1) -> Array:
        drawn = np.moveaxis(index, axis, -1)
        return statistic(drawn) if len(clusters) == n else _of_clusters(drawn, clusters, statistic)

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = scipy.stats.bootstrap(
                sample,
                over_last_axis,
                vectorized=True,
                n_resamples=RESAMPLES,
                confidence_level=_expanded(len(clusters)),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            return float(found.low), float(found.high)
    return None


def _expanded(n: int) -> float:
    """The level at which a bootstrap interval over ``n`` independent draws is to be read for :data:`LEVEL`."""
    wide = np.sqrt(n / (n - 1)) * scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(1 - 2 * scipy.stats.norm.sf(wide))


def _of_clusters(
    drawn: NDArray[np.intp], clusters: Sequence[NDArray[np.intp]], statistic: Callable[[NDArray[np.intp]], Array]
) -> Array:
    """A statistic of the examples of drawn clusters ``[..., C]``; clusters may differ in size."""
    sizes = np.array([len(cluster) for cluster in clusters])
    padded = np.array([np.pad(cluster, (0, sizes.max() - len(cluster)), constant_values=-1) for cluster in clusters])
    rows = drawn.reshape(-1, drawn.shape[-1])
    lengths = sizes[rows].sum(1)
    values = np.empty(len(rows))
    for length in np.unique(lengths):  # rows of one length are one call
        at = np.nonzero(lengths == length)[0]
        members = padded[rows[at]].reshape(len(at), -1)
        values[at] = statistic(members[members >= 0].reshape(len(at), length))
    return values.reshape(drawn.shape[:-1])


def pseudo_values(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> Array:
    """Jackknife pseudo-values ``[n]``: each example's share in a statistic; for a mean, the values themselves.

    ``n * statistic(all) - (n - 1) * statistic(all but i)`` (Tukey 1958), moved together so that their mean is the
    statistic itself. They make a ratio or an area of means a mean over examples, to first order, so that two methods
    can be compared example by example. Examples that the statistic passes over belong left out before; see
    :func:`heeded`.
    """
    everyone = np.arange(n)
    if n < 2:
        return np.asarray(statistic(everyone), dtype=float).reshape(1).repeat(n)
    rest = np.array([np.delete(everyone, i) for i in range(n)])
    shares = -(n - 1) * np.asarray(statistic(rest))
    return shares - shares.mean() + np.asarray(statistic(everyone))


FLIPS = 9999
"""Random permutations where all of them would be more."""


def paired_test(differences: Array, items: Sequence[Hashable] = (), seed: int = 0) -> float:
    """The two-sided p-value of a mean difference of 0, by changing the signs of ``differences`` ``[n]``.

    Exact where all sign changes are no more than :data:`FLIPS`; else from that many random ones and the one observed.
    Examples that share a base item change sign together. 1 where nothing differs or nothing is known (NaN).
    """
    d = np.asarray(differences, dtype=float)
    sums = np.array([d[c].sum() for c in clusters_of(items, len(d))])
    if not len(sums) or not np.isfinite(sums).all() or not sums.any():
        return 1.0
    observed = abs(sums.sum())
    slack = 1e-9 * np.abs(sums).sum()  # sums of the same numbers in another order count as equal
    signs = _signs(len(sums), seed)
    extreme = int((np.abs(signs @ sums) >= observed - slack).sum())
    return extreme / len(signs) if _all_flips(len(sums)) else (1 + extreme) / (1 + len(signs))


def smallest_p(n_items: int) -> float:
    """What no p-value of :func:`paired_test` is below, for ``n_items`` base items: all differ in one direction."""
    return max(2.0 ** min(1 - n_items, 0), 1 / (1 + FLIPS))


def _all_flips(n_items: int) -> bool:
    return 2**n_items <= FLIPS


@lru_cache(maxsize=4)
def _signs(n_items: int, seed: int) -> Array:
    """``[flips, n_items]`` of 1 and -1: all of them where there are few, else random ones."""
    if _all_flips(n_items):
        return np.array(list(itertools.product((1.0, -1.0), repeat=n_items)))
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(FLIPS, n_items))


def unpaired_test(
    a: Array, b: Array, items_a: Sequence[Hashable] = (), items_b: Sequence[Hashable] = (), seed: int = 0
) -> float:
    """The two-sided p-value of equal means of two samples of other examples, by exchanging examples between them.

    The statistic is Welch's t over base items, which keeps the level where the samples differ in spread. 1 where
    nothing differs, a sample has fewer than two base items, or something is not known (NaN).
    """
    means = [
        np.array([np.asarray(values, dtype=float)[c].mean() for c in clusters_of(items, len(values))])
        for values, items in ((a, items_a), (b, items_b))
    ]
    pooled = np.concatenate(means)
    if min(map(len, means)) < 2 or not np.isfinite(pooled).all() or np.ptp(pooled) == 0:
        return 1.0
    n = len(means[0])

    def t(values: Array) -> Array:
        x, y = values[..., :n], values[..., n:]
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.sqrt(x.var(-1, ddof=1) / n + y.var(-1, ddof=1) / y.shape[-1])
            gap = x.mean(-1) - y.mean(-1)
            return np.abs(np.where(gap == 0, 0.0, gap / error))

    observed = t(pooled)
    rng = np.random.default_rng(seed)
    shuffled = t(rng.permuted(np.broadcast_to(pooled, (FLIPS, len(pooled))), axis=1))
    return float((1 + (shuffled >= observed * (1 - 1e-9)).sum()) / (1 + FLIPS))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): p-values that keep the family-wise error, in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    found = np.empty_like(p)
    found[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in found]


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
    found = np.asarray(values, dtype=float)
    return float(found.mean()), float(found.std(ddof=1)) if len(found) > 1 else float("nan")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's correlation of two lists of scores; NaN where one has no spread or fewer than two entries.

    Raises:
        ValueError: they differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"scores of {len(a)} and {len(b)} components cannot be correlated.")
    ranks = [scipy.stats.rankdata(values) for values in (a, b)]
    if len(a) < 2 or not all(np.ptp(r) for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
