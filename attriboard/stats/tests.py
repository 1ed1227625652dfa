"""Whether two methods differ: permutation tests over base items, and Holm's correction."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

from .intervals import Array, clusters_of

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
    in_order = np.empty_like(p)
    in_order[order] = np.minimum(adjusted, 1.0)
    return [float(x) for x in in_order]
