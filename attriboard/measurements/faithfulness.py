"""Faithfulness: is what a method ranks high enough for the answer (sufficiency), and needed for it (necessity)?

Two curves over set sizes k: keep the top k components and replace the rest; replace the top k and keep the rest. With
``m`` the task's metric averaged over examples, ``f(k) = (m_k - m_empty) / (m_full - m_empty)``, where ``m_full`` is the
untouched model and ``m_empty`` the model with every component of the level replaced. Never clipped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..stats.intervals import Array
from ..stats.sets import nearest
from .base import Measurement, Metric, Statistic

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def sizes(n: int) -> list[int]:
    """The distinct whole numbers nearest to 0.1 ... 100 % of ``n``, at least 1."""
    return sorted({nearest(fraction, n) for fraction in FRACTIONS})


def mib_sizes(n: int) -> list[int]:
    """``floor(k n)`` for MIB's ten fractions (0 for small levels)."""
    return [int(np.floor(fraction * n + 1e-9)) for fraction in FRACTIONS]


class Faithfulness(Measurement):
    """Per-example metrics behind the curves; every aggregate can be recomputed from them.

    Attributes:
        sizes: the curves' sizes k.
        full, empty: ``[N]``, the metric of each test example untouched and with everything replaced.
        sufficiency, necessity: ``[sizes][N]``.
        mib_sizes: MIB's sizes.
        mib_signed, mib_absolute: ``[mib_sizes][N]``, keeping the top by signed and by absolute score.
    """

    name = "faithfulness"
    text = (
        "With *m* the task's metric (logit of the answer minus logit of the foil) averaged over test examples, "
        "f(k) = (m_k − m_empty) / (m_full − m_empty): m_full is the untouched model, m_empty the model with every "
        "component of the level replaced, at all positions. Sizes k are the distinct whole numbers nearest to 0.1, "
        "0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 % of the level's n components, at least 1; MIB's two scores use "
        "floor(k n). f is never clipped."
    )
    default = True
    replaces = True
    main = True
    position = 10
    metrics = (
        Metric(
            "sufficiency_log_area",
            title="S",
            unit="1 = perfect",
            better="higher",
            ranks=True,
            sorts=True,
            text="Area under the sufficiency curve (keep the top k components, replace the rest) over log(k/n), "
            "divided by the axis' length: 1 means that the first component alone already restores the metric. Not "
            "clipped.",
        ),
        Metric(
            "necessity_log_area",
            title="N",
            unit="1 = perfect",
            better="higher",
            ranks=True,
            sorts=True,
            text="Area under 1 - f of the necessity curve (replace the top k, keep the rest) over log(k/n), divided by "
            "the axis' length: 1 means that replacing the first component alone already destroys the metric. Not "
            "clipped.",
        ),
        Metric(
            "cpr",
            title="CPR",
            unit="at most about 0.999 if f <= 1",
            better="higher",
            text="MIB's circuit performance ratio: linear area under f at 0.1 to 100 % of the components, kept by "
            "signed score.",
        ),
        Metric(
            "cmd",
            title="CMD",
            unit="0 = perfect",
            better="lower",
            text="MIB's circuit-model distance: linear area between f and 1 at 0.1 to 100 % of the components, kept by "
            "absolute score. Equals 0.999 - CPR whenever f stays at or below 1 and no score is negative.",
        ),
    )

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
