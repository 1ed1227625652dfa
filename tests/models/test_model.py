"""Shared prefixes and rows that do not depend on one another."""

from __future__ import annotations

import pytest
import torch

from attriboard.model import hook_name
from tests.bench.models import EVERY, EXAMPLES, LAYERS, close, example, hooked, plain_run
from tests.bench.sites import ROUNDING, linear_sites, names


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", EVERY)
def test_behind_a_shared_prefix_everything_is_as_in_the_full_run(family: str, padding_side: str) -> None:
    model = hooked(family, padding_side=padding_side)
    for examples in (EXAMPLES, EXAMPLES[2:3]):
        batch = model.batch(examples)
        shared = model.share_prefix(batch)
        tail = shared.tokens.shape[1]
        assert tail < batch.tokens.shape[1]
        for full, part in ((batch, shared), (batch.counterfactual, shared.counterfactual)):
            assert full is not None
            assert part is not None
            all_names = names(*linear_sites(family))
            expected, found = model.run(full, all_names), model.run(part, all_names)
            assert close(found.logits, expected.logits, ROUNDING)
            for name in all_names:
                real = part.real.unsqueeze(-1).unsqueeze(-1) if "hook_z" in name else part.real.unsqueeze(-1)
                assert close(found[name] * real, expected[name][:, -tail:] * real, ROUNDING)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gptj", "opt"])
def test_restarts_patterns_and_gradients_work_behind_a_shared_prefix(family: str) -> None:
    model = hooked(family)
    batch = model.batch(EXAMPLES)
    shared = model.share_prefix(batch)
    tail = shared.tokens.shape[1]
    full, part = (model.run(b, names("resid_pre", "pattern", "v")) for b in (batch, shared))
    for name in names("pattern"):
        assert close(part[name], full[name][:, :, -tail:], ROUNDING)
    for name in names("v"):
        real = batch.mask[:, None, :, None]
        assert close(part[name] * real, full[name] * real, ROUNDING)
    for layer in range(LAYERS):
        # from the same kernels to the bit; from where attention gave its pattern, as of another order of summation
        plain_run = model.run(shared, names("resid_pre"))
        again = model.run(shared, start=(layer, plain_run[hook_name("resid_pre", layer)]))
        assert torch.equal(again.logits, plain_run.logits)
        again = model.run(shared, start=(layer, part[hook_name("resid_pre", layer)]))
        assert close(again.logits, plain_run.logits, ROUNDING)
    runs = [model.run(b, names("z"), gradients=True) for b in (batch, shared)]
    found = [r.gradients(model.metric(r.logits, b), names("z")) for r, b in zip(runs, (batch, shared))]
    assert all(close(found[1][n], found[0][n][:, -tail:], ROUNDING) for n in names("z"))


def test_a_batch_that_shares_nothing_is_returned_as_it_is() -> None:
    model = hooked("gpt2")
    for e in (example([5, 6, 7], [8, 6, 7]), example([5, 6, 7])):
        batch = model.batch([e])
        assert model.share_prefix(batch) is batch


def test_a_counterfactual_equal_to_its_prompt_leaves_the_last_token_to_run() -> None:
    model = hooked("gpt2")
    batch = model.batch([example([5, 6, 7], [5, 6, 7])])
    assert model.share_prefix(batch).tokens.tolist() == [[7]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_shared_prefix_never_swallows_the_last_token_of_a_short_prompt(padding_side: str) -> None:
    model = hooked("gpt2", padding_side=padding_side)
    batch = model.batch([example([5, 6, 7], [5, 6, 7]), example([5, 6, 7, 8, 9], [5, 6, 7, 8, 4])])
    assert close(model.run(model.share_prefix(batch)).logits, model.run(batch).logits, ROUNDING)


def test_a_prefix_and_what_follows_it_cost_one_forward_pass_together() -> None:
    """But for the prefix' products with the keys behind it, which are all masked: 4 · 3 of 7 · 7 in each layer."""
    model = hooked("llama")
    (e,) = EXAMPLES[:1]
    shared = model.share_prefix(model.batch([e]))
    assert shared.tokens.shape[1] == 3
    assert model.cost.forward == model.sizes.flops(4, logits=0)
    model.run(shared)
    assert model.cost.forward == model.full_pass(e) - 4 * 4 * 3 * 32 * 3


@pytest.mark.parametrize("family", EVERY)
def test_logits_do_not_depend_on_padding_batch_or_neighbors(family: str) -> None:
    plain = plain_run(family)
    expected = torch.stack([plain.run(e.tokens)[0] for e in EXAMPLES])
    for padding_side in ("left", "right"):
        model = hooked(family, padding_side=padding_side)
        for size in (1, 2, 3, 16):
            logits = torch.cat([model.run(batch).logits for batch in model.batches(EXAMPLES, size)])
            assert close(logits, expected, ROUNDING)
        turned = model.run(model.batch(EXAMPLES[::-1])).logits.flip(0)
        assert close(turned, expected, ROUNDING)
