"""How sure a number is, and whether two differ: bootstrap intervals, permutation tests, Holm's correction.

Examples that share a base item say much the same; they are resampled, and change sides, together.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 1000


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


def bootstrap_interval(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], seed: int = 0, items: Sequence[Hashable] = ()
) -> tuple[float, float] | None:
    """The 95 % bias-corrected and accelerated bootstrap interval of a statistic of ``n`` examples.

    Args:
        n: number of examples.
        statistic: from example indices ``[..., m]`` (drawn with replacement) to values ``[...]``.
        seed: of the resampling.
        items: the base item of each example; those that share one are drawn together.

    Returns:
        (low, high); the percentile interval where the correction is undefined (equal values); None for fewer than two
        base items or where resamples give no finite value.
    """
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
                confidence_level=LEVEL,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            return float(found.low), float(found.high)
    return None


def _of_clusters(
    drawn: NDArray[np.intp], clusters: Sequence[NDArray[np.intp]], statistic: Callable[[NDArray[np.intp]], Array]
) -> Array:
    """A statistic of the examples of drawn clusters ``[..., C]``; clusters may differ in size."""
    rows = drawn.reshape(-1, drawn.shape[-1])
    members = [np.concatenate([clusters[c] for c in row]) for row in rows]
    lengths = np.array([len(row) for row in members])
    values = np.empty(len(rows))
    for length in np.unique(lengths):  # rows of one length are one call
        at = np.nonzero(lengths == length)[0]
        values[at] = statistic(np.stack([members[i] for i in at]))
    return values.reshape(drawn.shape[:-1])


def pseudo_values(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> Array:
    """Jackknife pseudo-values ``[n]``: each example's share in a statistic; for a mean, the values themselves.

    ``n * statistic(all) - (n - 1) * statistic(all but i)`` (Tukey 1958). They make a ratio or an area of means a mean
    over examples, to first order, so that two methods can be compared example by example.
    """
    everyone = np.arange(n)
    if n < 2:
        return np.asarray(statistic(everyone), dtype=float).reshape(1).repeat(n)
    rest = np.array([np.delete(everyone, i) for i in range(n)])
    return n * np.asarray(statistic(everyone)) - (n - 1) * np.asarray(statistic(rest))


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
    if 2 ** len(sums) <= FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= observed - slack).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(FLIPS, len(sums)))
    return float((1 + (np.abs(signs @ sums) >= observed - slack).sum()) / (1 + FLIPS))


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
