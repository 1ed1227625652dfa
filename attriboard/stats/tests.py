"""Whether two methods differ: permutation and t tests over rows that depend on each other, and Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np
import scipy.stats

from .clusters import Array, Clusters, Labels, Spread, cluster_sums, members, number_of, spread_of_mean

FLIPS = 9999
"""Random permutations where all of them would be more."""


def paired_test(differences: Array, clusters: Clusters | Sequence[Hashable] = (), seed: int = 0) -> float:
    """The two-sided p-value of a mean difference of 0, of ``differences`` ``[n]`` on the same rows.

    *One way* (base items alone): the signs of clusters are changed together, and p is the share of changes that give a
    mean as large. Exact where all changes are no more than :data:`FLIPS`; else from that many random ones and the one
    observed.

    *Several ways, or train groups*: Student's t on the multiway variance with its degrees of freedom
    (:func:`attriboard.stats.clusters.spread_of_mean`). Train groups are too few for changes of sign. For items and
    frames, changes of the signs of whole clusters with a studentized mean (the restricted wild cluster bootstrap of
    MacKinnon, Nielsen and Webb 2021) were tried, and erred as often or more often on simulated data.

    Args:
        differences: of each row.
        clusters: how the rows depend on each other, or the base item of each row alone.
        seed: of the random changes of sign.

    Returns:
        p; no p is below :func:`smallest_p`. 1 where nothing differs, nothing is known (NaN), or one of several ways has
        a single cluster.
    """
    return float(paired_tests(np.asarray(differences, dtype=float)[None], clusters, seed)[0])


def paired_tests(differences: Array, clusters: Clusters | Sequence[Hashable] = (), seed: int = 0) -> Array:
    """``[tests]``: :func:`paired_test` of each row of ``differences`` ``[tests, n]``, all clustered alike."""
    d = np.asarray(differences, dtype=float)
    of = Clusters.of(clusters, d.shape[-1])
    p = np.ones(len(d))
    if not d.shape[-1]:
        return p
    told = np.isfinite(d).all(-1) & d.any(-1)
    d = d[told]
    if of.single is not None:
        p[told] = _flips(cluster_sums(d, of.single), seed)
        return p
    spread = spread_of_mean(d, of)
    students = _students(d.mean(-1), spread)
    p[told] = np.where(np.isfinite(spread.variance), np.maximum(students, smallest_p(of)), 1.0)
    return p


def smallest_p(clusters: Clusters | int) -> float:
    """What no p-value of :func:`paired_test` is below, of rows so clustered, or of so many base items in one way.

    That is what differences in one direction give. A t test is held to the same, by the one of items and frames that
    has more clusters: so few items or frames cannot make a difference surer.
    """
    if not isinstance(clusters, Clusters):
        return max(2.0 ** min(1 - clusters, 0), 1 / (1 + FLIPS))
    if clusters.single is not None:
        return smallest_p(number_of(clusters.single))
    most = max(number_of(labels) for labels in clusters.test_side().independent.values())
    return 2.0 ** min(1 - most, 0)


def at_random(clusters: Clusters) -> bool:
    """Whether the p-value of :func:`paired_test` is of random changes of sign, so that another seed gives another."""
    return clusters.single is not None and not _all_flips(number_of(clusters.single))


def _students(mean: Array | float, spread: Spread) -> Array:
    """The two-sided p-values of means by their variances and degrees of freedom; 0 where they have no variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * scipy.stats.t.sf(np.abs(mean) / np.sqrt(spread.variance), spread.df)
    return np.where(np.asarray(spread.variance) <= 0, np.where(mean, 0.0, 1.0), p)


def _flips(sums: Array, seed: int) -> Array:
    """``[tests]``: of each row of ``sums`` ``[tests, clusters]`` the share of changes of its signs whose total is as
    large."""
    signs = _signs(sums.shape[-1], seed)
    p = np.ones(len(sums))
    for at, row in enumerate(sums):  # all at once would be no faster, and take memory
        if not np.isfinite(row).all() or not row.any():
            continue
        observed = abs(row.sum())
        slack = 1e-9 * np.abs(row).sum()  # sums of the same numbers in another order count as equal
        extreme = int((np.abs(signs @ row) >= observed - slack).sum())
        p[at] = extreme / len(signs) if _all_flips(len(row)) else (1 + extreme) / (1 + len(signs))
    return p


def _all_flips(clusters: int) -> bool:
    return 2**clusters <= FLIPS


@lru_cache(maxsize=4)
def _signs(clusters: int, seed: int) -> Array:
    """``[flips, clusters]`` of 1 and -1: all of them where there are few, else random ones."""
    if _all_flips(clusters):
        return np.array(list(itertools.product((1.0, -1.0), repeat=clusters)))
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(FLIPS, clusters))


def unpaired_test(
    a: Array,
    b: Array,
    clusters_a: Clusters | Sequence[Hashable] = (),
    clusters_b: Clusters | Sequence[Hashable] = (),
    seed: int = 0,
) -> float:
    """The two-sided p-value of equal means of two samples of other examples.

    Where rows depend on each other in one way, by exchanging base items between the samples; the statistic is Welch's
    t over base items, which keeps the level where the samples differ in spread. Where either sample has several ways or
    train groups, by Welch's t on the sum of the two multiway variances (:func:`gap_of_means`).

    Returns:
        p; 1 where nothing differs, a sample has fewer than two clusters in any way, or something is not known (NaN).
    """
    x, y = (np.asarray(values, dtype=float) for values in (a, b))
    of_x, of_y = Clusters.of(clusters_a, len(x)), Clusters.of(clusters_b, len(y))
    if of_x.single is None or of_y.single is None:
        if min(len(x), len(y)) == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
            return 1.0
        gap, spread = gap_of_means(x, y, of_x, of_y)
        if not np.isfinite(spread.variance) or np.ptp(np.concatenate([x, y])) == 0:
            return 1.0
        return max(float(_students(gap, spread)), smallest_p(of_x), smallest_p(of_y))
    means = [_means(values, labels) for values, labels in ((x, of_x.single), (y, of_y.single))]
    return _exchanges(means[0], means[1], seed)


def gap_of_means(a: Array, b: Array, clusters_a: Clusters, clusters_b: Clusters) -> tuple[float, Spread]:
    """``mean(a) - mean(b)`` of rows of two samples, and how sure it is: variances add, degrees of freedom are Welch's.

    The variance is NaN where a sample has a way with fewer than two clusters.
    """
    one, other = spread_of_mean(a, clusters_a), spread_of_mean(b, clusters_b)
    variance = one.variance + other.variance
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (one.variance**2 / one.df + other.variance**2 / other.df)
    return float(np.mean(a) - np.mean(b)), Spread(variance, np.nan_to_num(df, nan=1.0))


def _means(values: Array, labels: Labels) -> Array:
    """The mean of each cluster's values."""
    return np.array([values[rows].mean() for rows in members(labels)])


def _exchanges(x: Array, y: Array, seed: int) -> float:
    """The share of exchanges of clusters between two samples whose Welch's t is as large."""
    pooled = np.concatenate([x, y])
    n = len(x)
    if min(n, len(y)) < 2 or not np.isfinite(pooled).all() or np.ptp(pooled) == 0:
        return 1.0

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
    in_order = np.empty_like(p)
    in_order[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in in_order]
