"""Random sets beside which a method's are judged."""

from __future__ import annotations

import pytest
import torch

from attriboard.evaluation.controls import matched_draw


@pytest.mark.parametrize("k", [1, 5, 20])
def test_matched_draws_have_as_many_components_in_every_layer(k: int) -> None:
    layer_of = torch.arange(6).repeat_interleave(10)
    top = torch.zeros(60, dtype=torch.bool)
    top[torch.randperm(60, generator=torch.Generator().manual_seed(k))[:k]] = True
    draws = [matched_draw(top, layer_of, d) for d in range(4)]
    for draw in draws:
        assert torch.equal(torch.bincount(layer_of[draw], minlength=6), torch.bincount(layer_of[top], minlength=6))
    assert torch.equal(draws[0], matched_draw(top, layer_of, 0))
    assert any(not torch.equal(draws[0], other) for other in draws[1:])
