"""What a model proves at load: it passes for every family, and every wrong part is named."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from attriboard.errors import ExampleError, ModelError, SkipCell
from attriboard.model import Model, hook_name
from attriboard.models import attention
from attriboard.models.hooks import every_logit, model_inputs
from tests.bench.models import (
    CONFIGS,
    D_MODEL,
    EVERY,
    EXAMPLES,
    FOUR,
    LAYERS,
    MIXTURES,
    PARTS,
    VOCAB,
    close,
    drawn,
    example,
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


def test_an_edit_that_reaches_nothing_fails_the_self_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hook hands back is taken by the module, for every layer."""
    hf = fresh("gpt2")
    projection = hf.transformer.h[1].attn.c_proj
    monkeypatch.setattr(projection, "register_forward_pre_hook", lambda hook, **kwargs: _deaf(projection, hook))
    with pytest.raises(ModelError, match="the heads of layer 1 without one of them"):
        Model(hf)


def _deaf(module: Any, hook: Any) -> Any:
    """A hook that sees what enters and changes nothing."""

    def listen(module: Any, args: Any, kwargs: Any) -> None:
        hook(module, args, kwargs)

    return type(module).register_forward_pre_hook(module, listen, with_kwargs=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("what", ["one head", "all heads of a layer", "an FFN"])
def test_a_part_that_does_nothing_is_no_wrong_table(family: str, what: str) -> None:
    """Heads and FFNs that were pruned, saved and loaded again."""
    hf = fresh(family)
    block, parts = get(hf, PARTS[family].layers)[0], PARTS[family]
    weight = in_out(get(block, parts.down if what == "an FFN" else parts.out))
    weight[: len(weight) // 4 if what == "one head" else None] = 0
    Model(hf)


def test_saturated_logits_behind_a_soft_cap_pass() -> None:
    hf = fresh("gemma2")
    hf.model.norm.weight.add_(500.0)
    model = Model(hf)
    logits = model.run(model.batch(list(EXAMPLES))).logits
    assert bool((logits.abs() == model.config.final_logit_softcapping).any())
    assert torch.isfinite(logits).all()


def test_a_model_whose_rows_depend_on_each_other_fails_the_self_proof() -> None:
    hf = fresh("llama")
    query = hf.model.layers[1].self_attn.q_proj
    query.register_forward_hook(lambda module, args, output: output + 0.1 * output.mean(0, keepdim=True))
    with pytest.raises(ModelError, match="a row beside another row"):
        Model(hf)


def _stretched(hf: Any, whole_batch: bool) -> Any:
    """Positions are stretched as soon as one of the batch, or of the row, is the 8th or later; nothing says so."""
    rotary = hf.model.rotary_emb

    def forward(x: Any, position_ids: Any) -> Any:
        longest = position_ids.max() if whole_batch else position_ids.max(1, keepdim=True).values
        return type(rotary).forward(rotary, x, torch.where(longest >= 8, position_ids * 3, position_ids))

    rotary.forward = forward
    return hf


def test_positions_that_depend_on_the_longest_row_fail_the_self_proof() -> None:
    with pytest.raises(ModelError, match="a row beside another row"):
        Model(_stretched(fresh("llama"), whole_batch=True))


def test_prefixes_whose_keys_depend_on_what_follows_are_not_shared() -> None:
    hf = _stretched(fresh("llama"), whole_batch=False)
    model = Model(hf)
    batch = model.batch(list(EXAMPLES))
    assert model.share_prefix(batch) is batch
    expected = torch.stack([_alone(hf, e.tokens) for e in EXAMPLES])
    torch.testing.assert_close(model.run(batch).logits, expected, rtol=1e-4, atol=1e-4)
    found = model.continued(model.batch([EXAMPLES[0]]), [(5, 9)])[0, 0]
    torch.testing.assert_close(found, _alone(hf, (*EXAMPLES[0].tokens, 5, 9)), rtol=1e-4, atol=1e-4)
    assert hooked("llama").shares_prefixes


def test_a_model_that_does_not_mask_padding_at_the_left_is_padded_at_the_right() -> None:
    """A block whose forward was replaced by one that attends to two positions and forgets about padding."""
    hf = fresh("llama")
    for block in hf.model.layers[:2]:
        _narrow(block)
    expected = torch.stack([_alone(hf, e.tokens) for e in EXAMPLES])
    model = Model(hf)
    assert model.padding_side == "right"
    batch = model.batch(list(EXAMPLES))
    assert model.share_prefix(batch) is batch, "the narrow blocks take no keys from before"
    torch.testing.assert_close(model.run(batch).logits, expected, rtol=1e-4, atol=1e-4)


def _narrow(block: Any) -> None:
    old = block.forward

    def forward(hidden_states: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        i = torch.arange(hidden_states.shape[1])
        near = (i[None] <= i[:, None]) & (i[None] > i[:, None] - 2)
        band = torch.where(near, 0.0, torch.finfo(torch.float32).min)
        return old(hidden_states, attention_mask=band.expand(len(hidden_states), 1, -1, -1), **kwargs)

    block.forward = forward


@functools.cache
def _longrope(model_type: str) -> Any:
    rope = {"rope_theta": 1e4, "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 8}
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 6.0, 20.0]}
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(
        model_type, vocab_size=VOCAB, max_position_embeddings=64, rope_parameters={**rope, **factors}, **sizes
    )
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    return drawn(hf, "model.embed_tokens")


@torch.no_grad()
def _alone(hf: Any, tokens: Sequence[int]) -> torch.Tensor:
    return hf(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_a_short_row_beside_a_long_one_has_the_rotary_embeddings_it_has_alone(model_type: str) -> None:
    hf = _longrope(model_type)
    model = Model(hf)
    rows = [e.tokens for e in EXAMPLES]  # 7, 4, 9 and 6 tokens: the third is in the other regime
    found = model.run(model.batch(list(EXAMPLES))).logits
    expected = torch.stack([_alone(hf, row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wrong = hf(**model_inputs(model, model.batch(list(EXAMPLES)))).logits[:, -1]
    assert float((wrong[0] - expected[0]).abs().max()) > 0.1


def test_a_shared_prefix_has_the_keys_of_the_whole_prompt() -> None:
    hf = _longrope("llama")
    model = Model(hf)
    batch = model.batch([EXAMPLES[2]])
    shared = model.share_prefix(batch)
    assert shared.tokens.shape[1] == 3
    torch.testing.assert_close(model.run(shared).logits[0], _alone(hf, EXAMPLES[2].tokens), rtol=1e-4, atol=1e-4)


def test_a_path_behind_a_prompt_changes_the_keys_of_the_prompt() -> None:
    hf = _longrope("llama")
    model = Model(hf)
    paths = [(), (5, 9), (4,)]
    found = model.continued(model.batch([EXAMPLES[0]]), paths)[0]
    expected = torch.stack([_alone(hf, (*EXAMPLES[0].tokens, *path)) for path in paths])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_longer_than_the_model_takes_is_refused_also_as_token_ids() -> None:
    model = hooked("llama")
    with pytest.raises(ExampleError, match="65 tokens long, llama takes at most 64"):
        model.batch([example([4] * 65)])


def test_the_proof_and_a_pass_leave_the_users_modules_as_they_were() -> None:
    """A block whose forward was replaced keeps it, and is measured with it."""
    hf = fresh("llama")
    block = hf.model.layers[0]
    original = block.forward

    def turned_back(hidden_states: Any, *, position_embeddings: Any, **kwargs: Any) -> Any:
        cos, sin = position_embeddings
        return original(hidden_states, position_embeddings=(cos, -2 * sin), **kwargs)

    unchanged = _alone(hf, EXAMPLES[0].tokens)
    block.forward = turned_back
    before = {module: dict(vars(module)) for module in hf.modules()}
    expected = _alone(hf, EXAMPLES[0].tokens)
    assert float((expected - unchanged).abs().max()) > 0.1
    model = Model(hf)
    found = model.run(model.batch([EXAMPLES[0]]), capture=["blocks.1.attn.hook_pattern"]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert block.forward is turned_back
    assert all(vars(module).keys() == kept.keys() for module, kept in before.items())
    torch.testing.assert_close(_alone(hf, EXAMPLES[0].tokens), expected, rtol=0, atol=0)


def test_an_attention_method_that_was_replaced_is_kept() -> None:
    hf = fresh("gptj")
    attention = hf.transformer.h[0].attn
    name = "_attn" if hasattr(attention, "_attn") else "forward"  # transformers 5.24 has one method for both
    own = getattr(attention, name)
    setattr(attention, name, own)
    model = Model(hf)
    model.run(model.batch([EXAMPLES[0]]), capture=["blocks.1.attn.hook_pattern"])
    assert getattr(attention, name) is own


def test_weights_that_are_not_in_memory_are_refused() -> None:
    hf = fresh("llama")
    hf.model.layers[1].to("meta")
    with pytest.raises(ModelError, match=r"model\.layers\.1\..* is offloaded"):
        Model(hf)


def test_quantized_weights_are_refused_in_one_sentence() -> None:
    hf = fresh("llama")
    hf.model.layers[0].mlp.down_proj.weight = nn.Parameter(
        hf.model.layers[0].mlp.down_proj.weight.to(torch.int8), requires_grad=False
    )
    with pytest.raises(ModelError, match=r"quantized weights \(model\.layers\.0\.mlp\.down_proj\.weight is int8\)"):
        Model(hf)


def test_an_adapter_that_is_not_merged_is_refused() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(fresh("llama"), peft.LoraConfig(target_modules=["q_proj"])).get_base_model()
    with pytest.raises(ModelError, match="adapter that is not merged"):
        Model(adapted)


def test_a_projection_of_another_kind_is_refused_by_its_name() -> None:
    hf = fresh("llama")
    hf.model.layers[0].mlp.down_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(ModelError, match="Bilinear"):
        Model(hf)


def test_norms_without_weights_are_norms() -> None:
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        enable_bias=False,
        layer_norm_elementwise_affine=False,
    )
    model = Model(AutoModelForCausalLM.from_config(config).eval())
    assert torch.equal(model.final_norm_weight, torch.ones(D_MODEL))


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_low_precision_model_are_computed_in_float32_from_its_last_residual(
    family: str, dtype: torch.dtype
) -> None:
    hf = fresh(family).to(dtype)
    model = Model(hf)
    batch = model.batch([EXAMPLES[0]])
    last = f"blocks.{LAYERS - 1}.hook_resid_post"
    run = model.run(batch, capture=[last])
    assert run.logits.dtype == torch.float32
    judge = copy.deepcopy(hf).float()
    norm, head = get(judge, PARTS[family].norm), judge.get_output_embeddings()
    expected = head(norm(run[last][0, -1].float()))
    if family == "gemma2":
        expected = 6.0 * torch.tanh(expected / 6.0)
    torch.testing.assert_close(run.logits[0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(run.logits[0], run.logits[0].to(dtype).float()), "they have digits that the type has not"
    torch.testing.assert_close(model.continued(batch, [()])[0, 0], run.logits[0])
    every = every_logit(model, batch.tokens, batch.mask)
    torch.testing.assert_close(every[0, -1], run.logits[0])


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
