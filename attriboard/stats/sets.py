"""Sizes of sets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import ConfigurationError

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's fractions of a level (Mueller et al. 2025)."""


def mib_sizes(n: int) -> list[int]:
    """``floor(k n)`` for MIB's ten fractions (0 for small levels)."""
    return [math.floor(fraction * n + 1e-9) for fraction in FRACTIONS]


def curve_sizes(n: int) -> list[int]:
    """The distinct sizes of MIB, ``floor(k n)`` for 0.1 ... 100 % of ``n``, at least 1."""
    return sorted({max(1, k) for k in mib_sizes(n)})


def nearest(fraction: float, n: int) -> int:
    """The whole number nearest to a fraction of ``n``, at least 1."""
    return max(1, int(fraction * n + 0.5))


def up_to_half(sizes: Sequence[int], n: int, kind: str = "components", owner: str = "the model") -> list[int]:
    """The distinct sizes that are at most half of ``n``, ascending.

    Args:
        sizes: numbers of components to edit.
        n: how many there are.
        kind, owner: what they are and whose, for the message.

    Raises:
        ConfigurationError: there is none, or one below 1.
    """
    chosen = sorted({k for k in sizes if k <= n // 2})
    if not chosen or chosen[0] < 1:
        raise ConfigurationError(
            f"the numbers of {kind} to edit are {', '.join(map(str, sizes)) or 'none'}; at least one from 1 to "
            f"{n // 2}, half of those of {owner}, is needed and none below 1."
        )
    return chosen
