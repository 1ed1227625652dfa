"""How sure a number is: bootstrap intervals over examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable

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


def bootstrap_interval(
    n: int, statistic: Callable[[NDArray[np.intp]], Array], seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % bias-corrected and accelerated bootstrap interval of a statistic of ``n`` examples.

    Args:
        n: number of examples.
        statistic: from example indices ``[..., n]`` (drawn with replacement) to values ``[...]``.
        seed: of the resampling.

    Returns:
        (low, high); the percentile interval where the correction is undefined (equal values); None for fewer than two
        examples or where resamples give no finite value.
    """
    if n < 2:
        return None
    sample = (np.arange(n),)

    def over_last_axis(index: NDArray[np.intp], axis: int = -1) -> Array:
        return statistic(np.moveaxis(index, axis, -1))

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
