"""How sure a number is: intervals over rows that depend on each other, and each row's share in a value.

Rows (examples, or repetitions of them) that share a base item, a frame or a train group say much the same; see
:mod:`attriboard.stats.clusters`.
``docs/statistics.md`` says in words what is tested and how; ``benchmarks/coverage.py`` measures how far it can be
trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from .clusters import Array, Clusters, Spread, clusters_of, members, spread_of_mean

__all__ = [
    "ALPHA",
    "LEVEL",
    "RESAMPLES",
    "VERSION",
    "Array",
    "bootstrap_interval",
    "clusters_of",
    "defined_examples",
    "each_example",
    "nanmean",
    "pseudo_values",
]

LEVEL = 0.95
RESAMPLES = 1000
VERSION = 3
"""Of the statistics: raised when intervals of the same measurements change."""
ALPHA = 0.05
"""Differences whose (adjusted) p-value is above this are not told apart."""


def nanmean(values: Array) -> Callable[[NDArray[np.intp]], Array]:
    """The mean of ``values`` ``[N]`` over the examples that have one (not NaN), of example indices ``[..., N]``."""

    def mean(index: NDArray[np.intp]) -> Array:
        chosen = values[index]
        known = np.isfinite(chosen)
        with np.errstate(invalid="ignore"):
            return np.where(known, chosen, 0.0).sum(-1) / known.sum(-1)

    return mean


def each_example(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> Array:
    """The statistic of each example alone ``[n]``: NaN where :func:`nanmean` has nothing to average."""
    with np.errstate(all="ignore"):
        return np.asarray(statistic(np.arange(n)[:, None]), dtype=float) if n else np.zeros(0)


def defined_examples(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], each: Array | None = None
) -> NDArray[np.intp]:
    """The indices of the examples that a statistic does not pass over for want of a value; all of them as a rule.

    An example without a value must neither be drawn in the place of one that has, nor be taken for one that agrees.

    Args:
        each: :func:`each_example` of the statistic, where that is known already.
    """
    everyone = np.arange(n)
    having = everyone[~np.isnan(each_example(n, statistic) if each is None else each)]
    if len(having) in (0, n):
        return everyone
    with np.errstate(all="ignore"):
        same = np.isclose(statistic(having), statistic(everyone), rtol=1e-9, atol=1e-12)
    return having if same else everyone  # the statistic puts together means over different examples


def bootstrap_interval(
    n: int,
    statistic: Callable[[NDArray[np.intp]], Array],
    seed: int = 0,
    items: Clusters | Sequence[Hashable] = (),
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic of ``n`` rows.

    Where rows depend on each other in one way (by base item), it is the bias-corrected and accelerated bootstrap
    interval (Efron 1987) over base items. Resamples of few examples spread too little, and their tails are no wider
    than the normal distribution's; the interval is therefore taken at the level at which that of a mean is as wide as
    Student's (Hesterberg 2015, the expanded percentile interval).

    Where they depend on each other in several ways, or by train group, there is no resampling that keeps all ways
    whole, and the interval is the statistic plus or minus t times its standard error: the multiway cluster-robust one
    of its jackknife pseudo-values (:func:`attriboard.stats.clusters.spread_of_mean`).

    Args:
        n: number of rows.
        statistic: from row indices ``[..., m]`` (drawn with replacement) to values ``[...]``.
        seed: of the resampling.
        items: how the rows depend on each other, or the base item of each row alone.

    Returns:
        (low, high); the percentile interval where the correction is undefined (equal values); None for fewer than two
        clusters in any way, or where resamples or pseudo-values are not finite. Rows without a value are left out
        (:func:`defined_examples`).
    """
    clusters = Clusters.of(items, n)
    having = defined_examples(n, statistic)
    if len(having) < n:
        return bootstrap_interval(len(having), lambda index: statistic(having[index]), seed, clusters.subset(having))
    if clusters.single is None:
        return _multiway_interval(n, statistic, clusters)
    return _bca_interval(n, statistic, seed, members(clusters.single))


def _multiway_interval(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], clusters: Clusters
) -> tuple[float, float] | None:
    """The t interval on the multiway variance."""
    with np.errstate(all="ignore"):
        shares = pseudo_values(n, statistic)
    spread = spread_of_mean(shares, clusters)
    if not np.isfinite(spread.variance):
        return None
    half = half_width(spread)
    return float(shares.mean()) - half, float(shares.mean()) + half


def half_width(spread: Spread) -> float:
    """How far the 95 % t interval of a mean reaches to either side."""
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, spread.df) * np.sqrt(spread.variance))


def _bca_interval(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], seed: int, clusters: Sequence[NDArray[np.intp]]
) -> tuple[float, float] | None:
    """The expanded bootstrap interval over clusters that are drawn whole."""
    if len(clusters) < 2:
        return None
    sample = (np.arange(len(clusters)),)

    def over_last_axis(index: NDArray[np.intp], axis: int = -1) -> Array:
        drawn = np.moveaxis(index, axis, -1)
        return statistic(drawn) if len(clusters) == n else _of_clusters(drawn, clusters, statistic)

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            interval = scipy.stats.bootstrap(
                sample,
                over_last_axis,
                vectorized=True,
                n_resamples=RESAMPLES,
                confidence_level=expanded_level(len(clusters)),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            return float(interval.low), float(interval.high)
    return None


def expanded_level(n: int) -> float:
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


@lru_cache(maxsize=8)
def _all_but_each(n: int) -> NDArray[np.intp]:
    """``[n, n - 1]``: the indices below n without the first, without the second, and so on."""
    rest = np.array([np.delete(np.arange(n), i) for i in range(n)])
    rest.flags.writeable = False
    return rest


def pseudo_values(n: int, statistic: Callable[[NDArray[np.intp]], Array]) -> Array:
    """Jackknife pseudo-values ``[n]``: each example's share in a statistic; for a mean, the values themselves.

    ``n * statistic(all) - (n - 1) * statistic(all but i)`` (Tukey 1958), moved together so that their mean is the
    statistic itself. They make a ratio or an area of means a mean over examples, to first order, so that two methods
    can be compared example by example. Examples that the statistic passes over belong left out before; see
    :func:`defined_examples`.
    """
    everyone = np.arange(n)
    if n < 2:
        return np.asarray(statistic(everyone), dtype=float).reshape(1).repeat(n)
    shares = -(n - 1) * np.asarray(statistic(_all_but_each(n)))
    return shares - shares.mean() + np.asarray(statistic(everyone))
