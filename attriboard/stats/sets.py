"""Sizes of sets."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigurationError


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
