"""What a model proves at load: it passes for every family, and every wrong part is named."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from attriboard.errors import ModelError, SkipCell
from attriboard.model import Model, hook_name
from attriboard.models import attention
from tests.bench.models import (
    CONFIGS,
    D_MODEL,
    EVERY,
    EXAMPLES,
    LAYERS,
    MIXTURES,
    PARTS,
    VOCAB,
    close,
    drawn,
    fresh,
    get,
    hooked,
    in_double,
    in_out,
    tiny,
)
from tests.bench.sites import ROUNDING, names


@pytest.mark.parametrize("family", EVERY)
def test_every_family_proves_itself_and_knows_its_shape(family: str) -> None:
    hf = tiny(family)
    model = Model(hf)
    parts = PARTS[family]
    out = in_out(get(get(hf, parts.layers)[0], parts.out))
    assert (model.n_layers, model.n_heads, model.d_model) == (LAYERS, 4, D_MODEL)
    if family in MIXTURES:
        with pytest.raises(SkipCell, match="mixtures of experts; choose heads"):
            assert model.d_mlp
    else:
        assert model.d_mlp == (4 * D_MODEL if family == "bloom" else 40)
    assert model.d_head * 4 == out.shape[0]
    assert model.d_vocab == VOCAB
    assert model.cost.flops == 0


@pytest.mark.parametrize("family", ["gptj", "gemma2", "qwen3", "neox_sequential"])
def test_a_double_precision_model_proves_itself_too(family: str) -> None:
    Model(in_double(tiny(family)))


BROKEN = {
    # a table entry that names another module of the right shape, and the part that the message must name
    "final norm": ("llama", {"final_norm": "model.layers.0.input_layernorm"}, "final norm"),
    "final norm's offset": ("gemma", {"unit_offset": False}, "final norm"),
    "final norm's centering": ("gpt2", {"rms": True}, "final norm"),
    "FFN projection": ("gpt2", {"mlp_down": "attn.c_proj"}, "neuron outputs of layer 0|residual stream of layer 0"),
    "attention projection": ("opt", {"attn_out": "self_attn.q_proj"}, "residual stream of layer 0"),
    "norm after attention": (
        "gemma2",
        {"attn_post_norm": "pre_feedforward_layernorm"},
        "(head outputs|residual stream|mid residual) of layer 0",
    ),
    "factor on what blocks add": ("granite", {"residual_multiplier": None}, "residual stream of layer 0"),
    "factor on the logits": ("cohere", {"logit_multiplier": None}, "final norm and unembedding"),
    "divisor of the logits": ("granite", {"logit_divisor": None}, "final norm and unembedding"),
    "values packed otherwise": ("phi3", {"fused": "by_group"}, "values of layer 0"),
    "values packed in turn": ("falcon_groups", {"fused": "in_turn"}, "values of layer 0"),
    "a norm before attention that is none": ("exaone4", {"ln1": "post_attention_layernorm"}, "values of layer 0"),
    "the other norm of a parallel block": ("falcon_groups", {"ln1": "ln_mlp"}, "values of layer 0"),
    "sums over the FFN's output": ("falcon", {"adds_in_place": False}, "neuron outputs of layer 0"),
    "parallel blocks": ("phi", {"parallel": False}, "does not see what attention writes"),
    "sequential blocks": ("llama", {"parallel": True}, "sees what attention writes"),
    "norm after the FFN": ("gemma3", {"mlp_post_norm": None}, "residual stream of layer 0"),
}


@pytest.mark.parametrize("entry", BROKEN)
def test_a_wrong_table_entry_fails_the_self_proof_by_name(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, change, part = BROKEN[entry]
    right = hooked(family).architecture
    monkeypatch.setattr("attriboard.models.weights.architecture_of", lambda config: replace(right, **change))
    with pytest.raises(ModelError, match=part):
        Model(tiny(family))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"value": "self_attn.k_proj"}),
        ("opt", {"value": "self_attn.q_proj"}),
        ("llama", {"ln1": "post_attention_layernorm"}),
        ("gpt2", {"ln1": "ln_2"}),
    ],
)
def test_a_wrong_value_projection_or_first_norm_fails_the_self_proof(
    family: str, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``W_V`` and ``ln1_weight`` make the keys of query neurons; nothing else would notice that they are wrong."""
    right = hooked(family).architecture
    monkeypatch.setattr("attriboard.models.weights.architecture_of", lambda config: replace(right, **change))
    with pytest.raises(ModelError, match=r"value|norm before attention"):
        Model(tiny(family))


@pytest.mark.parametrize(
    ("accessor", "part"),
    [("W_O", "head outputs of layer 1"), ("W_out", "neuron outputs of layer 1")],
)
def test_wrong_weights_fail_the_self_proof_by_layer(accessor: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    true = getattr(Model, accessor)
    monkeypatch.setattr(Model, accessor, lambda self, layer: true(self, layer).roll(int(layer == 1), 0))
    with pytest.raises(ModelError, match=part):
        Model(tiny("llama"))


def test_an_edit_that_reaches_nothing_fails_the_self_proof() -> None:
    hf = fresh("gpt2")
    hf.transformer.h[0].attn.c_proj.weight.zero_()
    with pytest.raises(ModelError, match="zeroing head 0"):
        Model(hf)


def test_the_self_proof_of_a_double_precision_model_is_as_strict_as_that_of_a_single_precision_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = Model.W_O
    monkeypatch.setattr(Model, "W_O", lambda self, layer: true(self, layer) * 1.02)
    with pytest.raises(ModelError, match="head outputs of layer 0"):
        Model(in_double(tiny("gpt2")))


def test_attention_that_is_not_what_is_written_out_fails_the_self_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were sinks forgotten, patterns would be those of another model."""
    true = attention.pattern_attention
    forgetful = functools.partial(_without_sinks, true)
    monkeypatch.setitem(AttentionInterface._global_mapping, "attriboard_pattern", forgetful)
    with pytest.raises(ModelError, match="logits with attention written out"):
        Model(tiny("gpt_oss"))


def _without_sinks(attend: Any, *args: Any, s_aux: Any = None, **kwargs: Any) -> Any:
    return attend(*args, **kwargs)


@pytest.mark.parametrize("new", [True, False])
def test_falcon_with_distances_added_to_scores_proves_itself(new: bool) -> None:
    """Not in the other tests, since transformers adds the distances twice where attention is eager."""
    config = CONFIGS["falcon_groups" if new else "falcon_heads"]()
    config.alibi = True
    hf = drawn(AutoModelForCausalLM.from_config(config).eval(), PARTS["falcon"].embed)
    model = Model(hf)
    run = model.run(model.batch(EXAMPLES), names("pattern", "v", "z"))
    for b, e in enumerate(EXAMPLES):
        assert close(run.logits[b], hf(torch.tensor([list(e.tokens)])).logits[0, -1], ROUNDING)
    for layer in range(LAYERS):
        pattern, value, z = (run[hook_name(site, layer)] for site in ("pattern", "v", "z"))
        assert close(torch.einsum("bhqk,bhkd->bqhd", pattern, value), z, ROUNDING)


def test_a_projection_that_is_never_called_is_named() -> None:
    """Bloom can multiply by slices of its output projection instead."""
    config = CONFIGS["bloom"]()
    config.pretraining_tp, config.slow_but_exact = 2, True
    with pytest.raises(ModelError, match=r"the module that makes blocks\.0\.attn\.hook_z is never called"):
        Model(AutoModelForCausalLM.from_config(config))


def test_a_residual_stream_that_starts_behind_the_norm_is_refused() -> None:
    config = CONFIGS["bloom"]()
    config.apply_residual_connection_post_layernorm = True
    with pytest.raises(ModelError, match="residual stream of layer 0"):
        Model(drawn(AutoModelForCausalLM.from_config(config).eval(), PARTS["bloom"].embed))
