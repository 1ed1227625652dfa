"""What follows from split halves."""

from __future__ import annotations

import pytest
import torch

from attriboard.measurements.reliability import Reliability
from attriboard.stats.ranks import rank_correlation


def test_the_stepped_up_value_is_the_reliability_of_the_whole() -> None:
    """Parallel parts: true scores of variance 1 and noise of variance 4 in each half, so 2 in their mean."""
    generator = torch.Generator().manual_seed(0)
    true, *noise = torch.randn(5, 200_000, generator=generator)
    halves = [true + 2 * x for x in noise]
    between_wholes = rank_correlation(halves[0] + halves[1], halves[2] + halves[3])
    r = rank_correlation(halves[0], halves[1])
    measured = Reliability(base_items=["a"], halves=[[0]], top=1, rank_correlation=[r], in_common=[1.0]).scalars()
    assert r == pytest.approx(1 / 5, abs=0.02)
    assert measured["reliability_stepped_up"][0] == pytest.approx(between_wholes, abs=0.02)
