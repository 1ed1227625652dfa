"""Slices: a smaller plain model computes what the masked one does, judged by literal runs with activations zeroed."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from attriboard.components import LEVELS
from attriboard.errors import ModelError, SkipCell
from attriboard.evaluation.pruning import check_slice
from attriboard.model import Model
from attriboard.slicing import Arrangement, around, arrange, parameters, slice_model
from tests.bench.models import (
    EVERY,
    EXAMPLES,
    FAMILIES,
    MIXTURES,
    SEEING,
    WITH_NEURONS,
    close,
    fresh,
    hooked,
    literal_intervention,
    literal_replacements,
    plain_run,
    seeing,
    tiny_llava,
    vision_examples,
)

FREE = [f for f in FAMILIES if not f.startswith(("gpt", "neox", "opt"))]
FREE += ["granite", "olmo", "exaone4", "glm4", "ministral3", "mixtral", "qwen2_moe", "qwen3_moe", "llama4"]
"""Families whose models may have fewer heads of the same width."""
SLICED = [f for f in WITH_NEURONS if f != "bloom"]
CASES = [(family, "neurons") for family in SLICED] + [(family, "heads") for family in FREE]


def random_keep(model: Model, level: str, share: float, seed: int, equal: bool) -> Tensor:
    """``[n]``: about ``share`` of the components, equally many in every layer or not."""
    generator = torch.Generator().manual_seed(seed)
    shape = LEVELS[level].shape(model)
    drawn = torch.rand(shape, generator=generator)
    if not equal:
        return (drawn < share).flatten()
    return (drawn.argsort(1).argsort(1) < max(1, round(share * shape[1]))).flatten()


@torch.no_grad()
def last_logits(hf: Any, tokens: tuple[int, ...]) -> Tensor:
    return hf(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("equal", [True, False], ids=["layerwise", "global"])
@pytest.mark.parametrize(("family", "level"), CASES)
def test_a_slice_computes_what_the_masked_model_does(family: str, level: str, equal: bool) -> None:
    model, plain = hooked(family), plain_run(family)
    for seed, share in enumerate((0.1, 0.5, 0.7)):
        keep = random_keep(model, level, share, seed, equal)
        hf = slice_model(model, keep, LEVELS[level])
        assert type(hf) is type(model.hf) and not hf.training
        for e in EXAMPLES:
            zeros = literal_replacements(plain, e, level, "zero")
            expected = literal_intervention(plain, e, level, ~keep.view(LEVELS[level].shape(model)), zeros)
            assert close(last_logits(hf, e.tokens), expected, 1e-5)


@pytest.mark.parametrize("family", SLICED)
def test_a_slice_of_equal_layers_has_exactly_the_kept_neurons(family: str) -> None:
    model = hooked(family)
    hf = slice_model(model, random_keep(model, "neurons", 0.25, 0, equal=True), LEVELS["neurons"])
    sliced = around(model, hf)
    assert (sliced.d_mlp, sliced.n_heads) == (10, model.n_heads)
    a = model.architecture
    per_neuron = (len(a.mlp_in) + a.fused_gate + 1) * model.d_model
    per_neuron += sum(model.blocks[0].get_submodule(path).bias is not None for path in a.mlp_in)
    assert parameters(model.hf) - parameters(hf) == 30 * model.n_layers * per_neuron
    sliced.prove()


@pytest.mark.parametrize(("family", "level"), CASES)
def test_a_slice_is_saved_and_loaded_as_a_plain_model(family: str, level: str, tmp_path: Path) -> None:
    hf: Any = slice_model(hooked(family), random_keep(hooked(family), level, 0.5, 1, equal=True), LEVELS[level])
    hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(hf)
    for e in EXAMPLES:
        # experts are stored one by one and stacked anew, which may change the order of sums
        rounding = 1e-6 if family in MIXTURES else 0.0
        assert close(last_logits(loaded, e.tokens), last_logits(hf, e.tokens), rounding)


@pytest.mark.parametrize(("family", "level"), [("llama_biases_tied", "heads"), ("gpt2", "neurons")])
def test_the_original_stays_as_it_is_and_shares_no_memory_with_the_slice(family: str, level: str) -> None:
    original = fresh(family)
    before = Model(original).weights_sha256
    config = original.config.to_dict()
    hf = slice_model(Model(original), random_keep(hooked(family), level, 0.5, 0, equal=True), LEVELS[level])
    with torch.no_grad():
        for weight in hf.parameters():
            weight.zero_()
    assert Model(original, prove=False).weights_sha256 == before
    assert original.config.to_dict() == config


def test_every_pattern_of_kept_heads_is_laid_out_right() -> None:
    model, plain, level = hooked("mistral"), plain_run("mistral"), LEVELS["heads"]
    e = EXAMPLES[0]
    zeros = literal_replacements(plain, e, "heads", "zero")
    patterns = list(itertools.product([False, True], repeat=4))
    for i in range(len(patterns)):
        keep = torch.tensor([patterns[i], patterns[(5 * i + 3) % 16], patterns[(7 * i + 1) % 16]])
        hf: Any = slice_model(model, keep.flatten(), level)
        expected = literal_intervention(plain, e, "heads", ~keep, zeros)
        assert close(last_logits(hf, e.tokens), expected, 1e-5)
        assert parameters(hf) <= parameters(model.hf)


def test_an_arrangement_holds_every_kept_head_once_and_has_the_fewest_parameters() -> None:
    generator = torch.Generator().manual_seed(0)
    for n_heads, group in ((9, 3), (8, 4), (6, 1), (4, 4)):
        for _ in range(60):
            keep = torch.rand(3, n_heads, generator=generator) < torch.rand(1, generator=generator)
            kept = [torch.nonzero(row)[:, 0].tolist() for row in keep]
            found = arrange(kept, n_heads, group)
            for heads, places in zip(kept, found.places):
                assert sorted(h for place in places for h in place.heads) == heads
                assert all(h // group == place.kv for place in places for h in place.heads)
                assert all(len(place.heads) <= found.group for place in places) and len(places) <= found.n_kv
            costs = []
            for new in range(1, group + 1):
                counts = keep.view(3, -1, group).sum(-1).tolist()
                needed = max(1, *(sum(math.ceil(count / new) for count in row) for row in counts))
                costs.append(needed * (2 + 2 * new))
            assert found.cost == min(costs)


def test_an_arrangement_grows_until_the_configuration_accepts_it() -> None:
    # nine heads of d_model 576 in groups of three: five heads do not divide it, six do
    kept = [[0, 1, 2, 3, 6]]
    assert arrange(kept, 9, 3) == Arrangement(1, 5, arrange(kept, 9, 3).places)
    accepted = arrange(kept, 9, 3, lambda n_kv, n_heads: 576 % n_heads == 0)
    assert (accepted.group, accepted.n_kv, accepted.cost) == (3, 3, 24)
    one_group = arrange([[0, 1, 2]], 9, 3, lambda n_kv, n_heads: 576 % n_heads == 0)
    assert (one_group.group, one_group.n_kv) == (3, 1)


@pytest.mark.parametrize("level", ["neurons", "heads"])
def test_a_slice_of_a_model_that_sees_computes_what_the_masked_one_does(level: str) -> None:
    model = tiny_llava()
    keep = random_keep(model, level, 0.5, 2, equal=True)
    sliced = around(model, slice_model(model, keep, LEVELS[level]))
    assert check_slice(model, sliced, LEVELS[level], ~keep, vision_examples()) < 1e-5
    sliced.prove()


@pytest.mark.parametrize("family", SEEING)
def test_every_family_that_sees_can_be_sliced_and_saved(family: str, tmp_path: Path) -> None:
    model = seeing(family)
    for level in ("neurons", "heads") if model.architecture.free_heads else ("neurons",):
        keep = random_keep(model, level, 0.5, 2, equal=True)
        sliced = around(model, slice_model(model, keep, LEVELS[level]))
        assert check_slice(model, sliced, LEVELS[level], ~keep, EXAMPLES) < 1e-5
        sliced.prove()
        sliced.hf.save_pretrained(tmp_path / level)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / level)
        assert type(loaded) is type(model.hf)
        assert Model(loaded, prove=False).weights_sha256 == sliced.weights_sha256


def test_a_slice_in_bfloat16_stays_in_bfloat16() -> None:
    model = Model(fresh("llama").to(torch.bfloat16))
    keep = random_keep(model, "neurons", 0.5, 0, equal=True)
    hf = slice_model(model, keep, LEVELS["neurons"])
    assert {weight.dtype for weight in hf.parameters()} == {torch.bfloat16}
    assert check_slice(model, around(model, hf), LEVELS["neurons"], ~keep, EXAMPLES) < 0.05


def test_a_slice_that_computes_something_else_is_found_out() -> None:
    model, level = hooked("llama"), LEVELS["neurons"]
    keep = random_keep(model, "neurons", 0.5, 0, equal=True)
    sliced = around(model, slice_model(model, keep, level))
    sliced.hf.model.layers[1].mlp.down_proj.weight[:, 0] += 0.1
    with pytest.raises(ModelError, match="llama without 60 of its neurons gives other logits"):
        check_slice(model, sliced, level, ~keep, EXAMPLES)


def test_neurons_that_no_configuration_counts_cannot_be_removed() -> None:
    with pytest.raises(ModelError, match="Bloom model with fewer neurons does not exist"):
        slice_model(hooked("bloom"), torch.ones(3 * 128, dtype=torch.bool), LEVELS["neurons"])


@pytest.mark.parametrize("family", [f for f in EVERY if f not in (*FREE, "glm", "ministral")])
def test_families_with_heads_tied_to_the_width_of_the_model_are_refused(family: str) -> None:
    model = hooked(family)
    with pytest.raises(ModelError, match="model with fewer heads does not exist"):
        slice_model(model, torch.ones(12, dtype=torch.bool), LEVELS["heads"])


@pytest.mark.parametrize("level", ["nodes", "attn_neurons", "tokens"])
def test_other_levels_are_refused_by_name(level: str) -> None:
    with pytest.raises(SkipCell, match=f"^{level} cannot be pruned; the levels that can are heads and neurons"):
        slice_model(hooked("llama"), torch.ones(1, dtype=torch.bool), LEVELS[level])
