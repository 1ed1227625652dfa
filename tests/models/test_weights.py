"""Weights under TransformerLens' names against the activations they make."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from attriboard.components import LEVELS
from attriboard.method import methods
from attriboard.model import Model, hook_name
from tests.bench.models import (
    D_MODEL,
    EVERY,
    EXAMPLES,
    LAYERS,
    PARTS,
    WITH_NEURONS,
    close,
    fresh,
    get,
    hooked,
    tiny,
    tokenizer,
)
from tests.bench.sites import LINEAR_SITES, names


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_head_and_neuron_outputs_with_biases_add_up_to_the_sub_layers(family: str) -> None:
    model = hooked(family)
    run = model.run(model.batch(EXAMPLES[:1]), names(*LINEAR_SITES))
    for layer in range(LAYERS):
        z, post = run[hook_name("z", layer)], run[hook_name("post", layer)]
        bias = torch.zeros(D_MODEL) if model.b_O(layer) is None else model.b_O(layer)
        gain = 1.0 if model.attn_gain(layer, z) is None else model.attn_gain(layer, z)
        assert close(model.head_outputs(layer, z).sum(-2) + gain * bias, run[hook_name("attn_out", layer)], 1e-5)
        bias = torch.zeros(D_MODEL) if model.b_out(layer) is None else model.b_out(layer)
        gain = 1.0 if model.mlp_gain(layer, post) is None else model.mlp_gain(layer, post)
        terms = torch.einsum("btj,jd->btjd", post, model.W_out(layer)).sum(2) + bias
        assert close(gain * terms, run[hook_name("mlp_out", layer)], 1e-5)


@pytest.mark.parametrize("family", EVERY)
def test_value_weights_times_the_normalized_input_give_the_values_up_to_a_constant_bias(family: str) -> None:
    """``v = norm(x) W_V + b``: over two prompts, whatever ``b`` is, it must be the same at every position."""
    model = hooked(family)
    run = model.run(model.batch([EXAMPLES[2]]), names("resid_pre", "v"))
    for layer in range(LAYERS):
        path = PARTS[family].ln1
        norm = get(model.blocks[layer], path) if path else torch.nn.Identity()
        x = norm(run[hook_name("resid_pre", layer)])[0]
        made = torch.einsum("td,hde->hte", x, model.W_V(layer))
        bias = run[hook_name("v", layer)][0] - made
        assert close(bias, bias.mean(1, keepdim=True).expand_as(bias), 1e-4) or float(bias.abs().max()) < 1e-5
        assert float(made.abs().max()) > 0.1
        if path is None:
            assert bool((model.ln1_weight(layer) == 1).all() and (model.ln1_scale(layer, x) == 1).all())
            continue
        weight = model.ln1_weight(layer)
        zero = torch.zeros(1, 1, D_MODEL)
        step = torch.randn(1, 1, D_MODEL)
        scale = (
            (step.square().mean() + 1e-6).sqrt() if model.architecture.rms else (step.var(correction=0) + 1e-5).sqrt()
        )
        centered = step if model.architecture.rms else step - step.mean()
        assert close(norm(step) - norm(zero), centered / scale * weight, 1e-3)


def as_multi_head(family: str) -> Any:
    """A copy without grouped queries: every query head gets its own copy of its group's key and value weights."""
    grouped = tiny(family)
    config = copy.deepcopy(grouped.config)
    groups = config.num_attention_heads // config.num_key_value_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.num_key_value_heads = config.num_attention_heads
    hf = AutoModelForCausalLM.from_config(config)
    state = dict(grouped.state_dict())
    for key, weight in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            heads = weight.view(-1, d_head, *weight.shape[1:])
            state[key] = torch.stack([heads[h // groups] for h in range(config.num_attention_heads)]).flatten(0, 1)
    hf.load_state_dict(state)
    return hf


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_grouped_queries_score_as_the_multi_head_copy_with_repeated_weights(family: str) -> None:
    grouped, multi = hooked(family), Model(as_multi_head(family), tokenizer())
    assert (grouped.n_kv_heads, multi.n_kv_heads) == (2, 4)
    for layer in range(LAYERS):
        assert torch.equal(grouped.W_V(layer), multi.W_V(layer))
        assert torch.equal(grouped.W_O(layer), multi.W_O(layer))
    for name in ("query_neurons", "in_context_heads", "log_prob_increase", "attribution_patching", "head_ablation"):
        method = methods.make(name)
        for level in method.levels:
            one, other = (method.attribute(m, EXAMPLES, LEVELS[level]).values for m in (grouped, multi))
            assert close(one, other, 1e-4), f"{name} at {level}"


@pytest.mark.parametrize("family", EVERY)
def test_a_token_enters_the_first_block_alike_wherever_it_stands_but_for_position_embeddings(family: str) -> None:
    model = hooked(family)
    example = EXAMPLES[0]
    repeated = replace(example, tokens=(example.tokens[0],) * 4, counterfactual=None)
    name = hook_name("resid_pre", 0)
    (rows,) = model.run(model.batch([repeated]), [name])[name]
    assert model.has_position_embeddings == (not close(rows, rows[:1].expand_as(rows), 1e-6))


def test_the_weights_hash_changes_with_any_weight_and_only_then() -> None:
    first = Model(fresh("llama")).weights_sha256
    assert Model(fresh("llama")).weights_sha256 == first
    changed = fresh("llama")
    changed.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    assert Model(changed).weights_sha256 != first
    assert Model(fresh("llama").double()).weights_sha256 != first
    assert len(first) == 64
