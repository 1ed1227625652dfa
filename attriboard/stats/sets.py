"""Sizes of sets."""

from __future__ import annotations


def nearest(fraction: float, n: int) -> int:
    """The whole number nearest to a fraction of ``n``, at least 1."""
    return max(1, int(fraction * n + 0.5))
