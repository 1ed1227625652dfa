"""Faithfulness: is what a method ranks high enough for the answer (sufficiency), and needed for it (necessity)?

Two curves over set sizes k: keep the top k components and replace the rest; replace the top k and keep the rest. With
``m`` the task's metric averaged over examples, ``f(k) = (m_k - m_empty) / (m_full - m_empty)``, where ``m_full`` is the
untouched model and ``m_empty`` the model with every component of the level replaced. Never clipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import TaskError
from ..measurements.base import Family, Statistic
from ..stats.intervals import Array

if TYPE_CHECKING:
    from ..components import Level
    from ..interventions import Replacement
    from ..scores import Scores
    from .context import Context

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_METRIC = 0
"""Index of the task's metric among the measures."""


def nearest(fraction: float, n: int) -> int:
    """The whole number nearest to a fraction of ``n``, at least 1."""
    return max(1, int(fraction * n + 0.5))


def sizes(n: int) -> list[int]:
    """The distinct whole numbers nearest to 0.1 ... 100 % of ``n``, at least 1."""
    return sorted({nearest(fraction, n) for fraction in FRACTIONS})


def mib_sizes(n: int) -> list[int]:
    """``floor(k n)`` for MIB's ten fractions (0 for small levels)."""
    return [int(np.floor(fraction * n + 1e-9)) for fraction in FRACTIONS]


class Faithfulness(Family):
    """Per-example metrics behind the curves; every aggregate can be recomputed from them.

    Attributes:
        sizes: the curves' sizes k.
        full, empty: ``[N]``, the metric of each test example untouched and with everything replaced.
        sufficiency, necessity: ``[sizes][N]``.
        mib_sizes: MIB's sizes.
        mib_signed, mib_absolute: ``[mib_sizes][N]``, keeping the top by signed and by absolute score.
    """

    sizes: list[int]
    full: list[float]
    empty: list[float]
    sufficiency: list[list[float]]
    necessity: list[list[float]]
    mib_sizes: list[int]
    mib_signed: list[list[float]]
    mib_absolute: list[list[float]]

    @property
    def n(self) -> int:
        return len(self.full)

    def statistics(self) -> dict[str, Statistic]:
        n = self.sizes[-1]
        log_x = np.log(np.array(self.sizes) / n)

        def log_area(f: Array) -> Array:
            length = log_x[-1] - log_x[0]
            return np.trapezoid(f, log_x, axis=0) / length if length > 0 else f[0]

        def f(curve: list[list[float]]) -> Statistic:
            return lambda index: self.curve(curve, index)

        suff, need, signed, absolute = (
            f(c) for c in (self.sufficiency, self.necessity, self.mib_signed, self.mib_absolute)
        )
        return {
            "sufficiency_log_area": lambda index: log_area(suff(index)),
            "necessity_log_area": lambda index: log_area(1.0 - need(index)),
            "cpr": lambda index: cpr(signed(index)),
            "cmd": lambda index: cmd(absolute(index)),
        }

    def curve(self, values: list[list[float]], index: NDArray[np.intp]) -> Array:
        """``[K, ...]``: f at each size for example indices ``[..., N]``."""
        full, empty = (np.asarray(v)[index].mean(-1) for v in (self.full, self.empty))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (np.asarray(values)[:, index].mean(-1) - empty) / (full - empty)


def cpr(f: Array) -> Array:
    """MIB's circuit performance ratio (Mueller et al. 2025) of ``f`` ``[10, ...]`` at :data:`FRACTIONS`."""
    return np.trapezoid(f, np.array(FRACTIONS), axis=0)


def cmd(f: Array) -> Array:
    """MIB's circuit-model distance of ``f`` ``[10, ...]`` at :data:`FRACTIONS`."""
    return np.trapezoid(np.abs(1.0 - f), np.array(FRACTIONS), axis=0)


def evaluate(context: Context, scores: Scores, level: Level, replacement: Replacement) -> Faithfulness:
    """Both curves and MIB's, on the test split.

    Raises:
        TaskError: replacing every component leaves the metric where it was, so there is nothing to explain.
    """
    n = level.size(context.model)
    signed, absolute = scores.ranking(), scores.ranking(absolute=True)
    ks, mib = sizes(n), mib_sizes(n)
    kept_signed = [_top(signed, k) for k in ks]
    wanted = [
        torch.zeros(n, dtype=torch.bool),
        torch.ones(n, dtype=torch.bool),
        *(~top for top in kept_signed),
        *kept_signed,
        *(~_top(signed, k) for k in mib),
        *(~_top(absolute, k) for k in mib),
    ]
    metric = context.measure(level, replacement, torch.stack(wanted))[:, :, _METRIC]
    rows = metric.tolist()
    full, empty = rows[0], rows[1]
    if not bool(metric.isfinite().all()):
        raise TaskError(
            f"the metric of task {context.task.name!r} is not finite when {level.name} are replaced ({replacement}) in "
            f"{context.model.dtype}; choose another dtype."
        )
    if abs(float(np.mean(full)) - float(np.mean(empty))) < 1e-6:
        raise TaskError(
            f"replacing all {n} {level.name} ({replacement}) does not change the metric of task {context.task.name!r}, "
            f"so no set of them can be faithful or not."
        )
    at = 2
    curves = []
    for length in (len(ks), len(ks), len(mib), len(mib)):
        curves.append(rows[at : at + length])
        at += length
    return Faithfulness(
        sizes=ks,
        full=full,
        empty=empty,
        sufficiency=curves[0],
        necessity=curves[1],
        mib_sizes=mib,
        mib_signed=curves[2],
        mib_absolute=curves[3],
    )


def _top(ranking: Tensor, k: int) -> Tensor:
    mask = torch.zeros(len(ranking), dtype=torch.bool)
    mask[ranking[:k]] = True
    return mask
