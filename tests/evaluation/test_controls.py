"""Random sets beside which a method's are judged."""

from __future__ import annotations

import pytest
import torch

from attriboard.evaluation.controls import matched_draw, shuffled_within


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


def test_shuffled_scores_stay_in_their_layer_and_reach_every_place_of_it() -> None:
    layer_of = torch.tensor([0, 1, 0, 1, 0, 2])
    values = torch.tensor([1.0, 10.0, 2.0, 20.0, 3.0, 100.0])
    shuffles = [shuffled_within(values, layer_of, seed) for seed in range(60)]
    for shuffled in shuffles:
        for layer in range(3):
            assert sorted(shuffled[layer_of == layer].tolist()) == values[layer_of == layer].tolist()
    assert {tuple(shuffled[layer_of == 0].tolist()) for shuffled in shuffles} == {
        (a, b, c) for a in (1.0, 2.0, 3.0) for b in (1.0, 2.0, 3.0) for c in (1.0, 2.0, 3.0) if len({a, b, c}) == 3
    }
    assert torch.equal(shuffles[0], shuffled_within(values, layer_of, 0))
