"""Rank correlation against ranks counted by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch

from attriboard.stats.ranks import rank_correlation


def counted_ranks(values: Sequence[float]) -> list[float]:
    return [sum(x < y for x in values) + (sum(x == y for x in values) + 1) / 2 for y in values]


def literal_rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.correlation(counted_ranks(a), counted_ranks(b))


def test_rank_correlation_is_that_of_counted_ranks_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(0, 6, (2, 30), generator=generator).double()
        assert rank_correlation(a, b) == pytest.approx(literal_rank_correlation(a.tolist(), b.tolist()), abs=1e-12)
        assert rank_correlation(a, a) == pytest.approx(1, abs=1e-12)
    assert math.isnan(rank_correlation(torch.ones(4), torch.arange(4.0)))
