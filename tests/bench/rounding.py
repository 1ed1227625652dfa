"""How far apart two float32 computations of the same number may lie.

Another processor, another batch size or padding takes the same sums in another order, and every number then moves by a
few units in the last place *of the largest number it was made from*: a difference of two metrics, each a difference of
two logits of size 8, is uncertain by some 1e-6 whether it comes out as 2 or as 0.001. So what such a difference may be
off by is stated in units of the logits' size, not of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps
STEPS = 8
"""Roundings by which a logit of the tiny models (three layers, sums of some 32 products) moves: 1e-6 of the largest."""


def rounding(size: Tensor | float, terms: int = 1) -> float:
    """What a sum of ``terms`` numbers may be off by if they were computed like logits whose largest one is ``size``.

    Independent errors add as their squares, so four logits (two metrics with a foil) are off by twice what one is.
    """
    largest = float(torch.as_tensor(size).detach().abs().max())
    return STEPS * EPS * largest * terms**0.5


def within_rounding(actual: Tensor, expected: Tensor, size: Tensor | float, terms: int = 1, rel: float = 0.0) -> bool:
    """Whether no element is off by more than :func:`rounding` allows, or ``rel`` of the largest expected one."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    allowed = max(rounding(size, terms), rel * float(expected.detach().abs().max()))
    return float((actual.double() - expected.double()).detach().abs().max()) <= allowed


def same_order(ranked: Iterable[int], values: Tensor, size: Tensor | float, terms: int = 1) -> bool:
    """Whether ``ranked`` begins the order of ``values``, largest first, but for ties within their rounding.

    ``ranked`` are indices into the flattened ``values``, each at most once.
    """
    order = torch.tensor(list(ranked), dtype=torch.long)
    assert len(order.unique()) == len(order)
    best = values.flatten().sort(descending=True).values[: len(order)]
    return within_rounding(values.flatten()[order], best, size, terms)
