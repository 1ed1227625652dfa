"""The hooked model against plain Hugging Face calls, literal hooks, finite differences and itself in another layout."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from attriboard.components import LEVELS
from attriboard.errors import ExampleError, ModelError
from attriboard.method import methods
from attriboard.model import Model, hook_name
from attriboard.task import Example
from tests.bench.models import (
    CONFIGS,
    D_MODEL,
    EXAMPLES,
    FAMILIES,
    LAYERS,
    PARTS,
    VOCAB,
    WITHOUT_FOILS,
    Plain,
    close,
    example,
    fresh,
    get,
    hooked,
    in_double,
    in_out,
    metric,
    plain_run,
    slope,
    tiny,
    tokenizer,
    words,
)

LINEAR_SITES = ("resid_pre", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")
ROUNDING = 1e-5
"""Relative to the largest value: float32 sums in another order differ by about 1e-6."""


def names(*sites: str) -> list[str]:
    return [hook_name(site, layer) for site in sites for layer in range(LAYERS)]


def real_rows(x: Tensor, model: Model, length: int, b: int) -> Tensor:
    """One example's own positions of ``[B, T, ...]``."""
    return x[b, -length:] if model.padding_side == "left" else x[b, :length]


# --- self-proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_proves_itself_and_knows_its_shape(family: str) -> None:
    hf = tiny(family)
    model = Model(hf)
    parts = PARTS[family]
    out = in_out(get(get(hf, parts.layers)[0], parts.out))
    assert (model.n_layers, model.n_heads, model.d_model, model.d_mlp) == (LAYERS, 4, D_MODEL, 40)
    assert model.d_head * 4 == out.shape[0]
    assert model.d_vocab == VOCAB
    assert model.cost.total == 0


@pytest.mark.parametrize("family", ["gptj", "gemma2", "qwen3", "neox_sequential"])
def test_a_double_precision_model_proves_itself_too(family: str) -> None:
    Model(in_double(tiny(family)))


BROKEN = {
    # a table entry that names another module of the right shape, and the part that the message must name
    "final norm": ("llama", {"final_norm": "model.layers.0.input_layernorm"}, "final norm"),
    "final norm's offset": ("gemma", {"unit_offset": False}, "final norm"),
    "final norm's centring": ("gpt2", {"rms": True}, "final norm"),
    "FFN projection": ("gpt2", {"mlp_down": "attn.c_proj"}, "neuron outputs of layer 0|residual stream of layer 0"),
    "attention projection": ("opt", {"attn_out": "self_attn.q_proj"}, "residual stream of layer 0"),
    "norm after attention": (
        "gemma2",
        {"attn_post_norm": "pre_feedforward_layernorm"},
        "(head outputs|residual stream|mid residual) of layer 0",
    ),
    "norm after the FFN": ("gemma3", {"mlp_post_norm": None}, "residual stream of layer 0"),
}


@pytest.mark.parametrize("entry", BROKEN)
def test_a_wrong_table_entry_fails_the_self_proof_by_name(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, change, part = BROKEN[entry]
    right = hooked(family).architecture
    monkeypatch.setattr("attriboard.models.model.architecture_of", lambda config: replace(right, **change))
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
    monkeypatch.setattr("attriboard.models.model.architecture_of", lambda config: replace(right, **change))
    with pytest.raises(ModelError, match=r"value|norm before attention"):
        Model(tiny(family))


def test_a_path_that_does_not_exist_names_the_family_and_the_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hooked("llama").architecture
    monkeypatch.setattr("attriboard.models.model.architecture_of", lambda config: replace(right, mlp_down="mlp.c_proj"))
    with pytest.raises(ModelError, match=r"Llama.*c_proj"):
        Model(tiny("llama"))


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


def test_families_outside_the_table_are_refused_with_those_inside() -> None:
    hf = fresh("gpt2")
    hf.config.model_type = "bloom"
    with pytest.raises(ModelError, match=r"'bloom'.*llama.*gpt2"):
        Model(hf)


def test_an_opt_model_that_normalises_its_residual_stream_in_place_is_refused() -> None:
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    with pytest.raises(ModelError, match="in place"):
        Model(AutoModelForCausalLM.from_config(config))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_reads_what_a_plain_unpadded_eager_run_has_there(family: str, padding_side: str) -> None:
    model, plain = hooked(family, padding_side=padding_side), plain_run(family)
    run = model.run(model.batch(EXAMPLES), ["hook_embed", *names(*LINEAR_SITES)])
    for b, e in enumerate(EXAMPLES):
        sites = [(s, layer) for s in ("z", "attn_out", "post", "mlp_out") for layer in range(LAYERS)]
        ids = torch.tensor([list(e.tokens)])
        hidden = plain.hf(ids, output_hidden_states=True, use_cache=False).hidden_states
        logits, seen = plain.run(e.tokens, read=[("embed", 0), ("resid_post", LAYERS - 1), *sites])

        def mine(name: str, b: int = b, n: int = len(e.tokens)) -> Tensor:
            return real_rows(run[name], model, n, b)

        assert close(run.logits[b], logits, ROUNDING)
        assert close(mine("hook_embed"), seen["embed", 0], ROUNDING)
        for layer in range(LAYERS):
            after = hidden[layer + 1][0] if layer < LAYERS - 1 else seen["resid_post", layer]
            assert close(mine(hook_name("resid_pre", layer)), hidden[layer][0], ROUNDING)
            assert close(mine(hook_name("resid_post", layer)), after, ROUNDING)
            assert close(mine(hook_name("resid_mid", layer)), hidden[layer][0] + seen["attn_out", layer], ROUNDING)
            assert close(mine(hook_name("mlp_out", layer)), after - mine(hook_name("resid_mid", layer)), 1e-4)
        for name, layer in sites:
            assert close(mine(hook_name(name, layer)), seen[name, layer], ROUNDING)


@pytest.mark.parametrize("family", [f for f in FAMILIES if PARTS[f].second_norm])
def test_resid_mid_is_what_enters_the_norm_before_the_ffn(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    run = model.run(model.batch([e]), names("resid_mid"))
    for layer in range(LAYERS):
        inputs: list[Tensor] = []
        handle = plain.part("second_norm", layer).register_forward_pre_hook(lambda m, args, i=inputs: i.append(args[0]))
        plain.run(e.tokens)
        handle.remove()
        assert close(run[hook_name("resid_mid", layer)][0], inputs[0].view(len(e.tokens), -1), ROUNDING)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_and_values_are_those_of_eager_attention_and_of_the_cache(family: str, padding_side: str) -> None:
    model, plain = hooked(family, padding_side=padding_side), plain_run(family)
    batch = model.batch(EXAMPLES)
    run = model.run(batch, names("pattern", "v", "z"))
    assert close(run.logits, model.run(batch).logits, ROUNDING)
    for b, e in enumerate(EXAMPLES):
        n, width = len(e.tokens), batch.tokens.shape[1]
        own = slice(width - n, width) if padding_side == "left" else slice(0, n)
        for layer, (pattern, value) in enumerate(zip(plain.patterns(e.tokens), plain.values(e.tokens))):
            mine = run[hook_name("pattern", layer)][b, :, own]
            assert close(mine[:, :, own], pattern, ROUNDING)
            assert float(mine.sum(-1).sub(1).abs().max()) < ROUNDING
            assert close(run[hook_name("v", layer)][b, :, own], value, ROUNDING)
            z = torch.einsum("hqk,hkd->qhd", pattern, value)
            assert close(real_rows(run[hook_name("z", layer)], model, n, b), z, ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_value_weights_times_the_normalised_input_give_the_values_up_to_a_constant_bias(family: str) -> None:
    """``v = norm(x) W_V + b``: over two prompts, whatever ``b`` is, it must be the same at every position."""
    model = hooked(family)
    run = model.run(model.batch([EXAMPLES[2]]), names("resid_pre", "v"))
    for layer in range(LAYERS):
        norm = get(model.blocks[layer], PARTS[family].ln1)
        x = norm(run[hook_name("resid_pre", layer)])[0]
        made = torch.einsum("td,hde->hte", x, model.W_V(layer))
        bias = run[hook_name("v", layer)][0] - made
        assert close(bias, bias.mean(1, keepdim=True).expand_as(bias), 1e-4) or float(bias.abs().max()) < 1e-5
        assert float(made.abs().max()) > 0.1
        weight = model.ln1_weight(layer)
        zero = torch.zeros(1, 1, D_MODEL)
        step = torch.randn(1, 1, D_MODEL)
        scale = (
            (step.square().mean() + 1e-6).sqrt() if model.architecture.rms else (step.var(correction=0) + 1e-5).sqrt()
        )
        centred = step if model.architecture.rms else step - step.mean()
        assert close(norm(step) - norm(zero), centred / scale * weight, 1e-3)


def test_an_unknown_activation_or_layer_is_a_key_error_that_names_it() -> None:
    model = hooked("gpt2")
    batch = model.batch(EXAMPLES[:1])
    with pytest.raises(KeyError, match="hook_zz"):
        model.run(batch, ["blocks.0.attn.hook_zz"])
    with pytest.raises(KeyError, match="layers 0 to 2"):
        model.run(batch, [hook_name("z", 3)])


def test_hooks_are_gone_after_a_run() -> None:
    model = hooked("gptj")
    batch = model.batch(EXAMPLES[:2])
    before = model.run(batch).logits
    middle = model.run(batch, names("resid_pre"))[hook_name("resid_pre", 1)]
    edits = dict.fromkeys(names("z", "pattern", "post", "resid_mid"), torch.zeros_like)
    assert not torch.equal(model.run(batch, edits=edits, start=(1, middle)).logits, before)
    assert torch.equal(model.run(batch).logits, before)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.run(batch, edits={hook_name("post", 1): _raise}, start=(1, middle))
    assert torch.equal(model.run(batch).logits, before)


def _raise(x: Tensor) -> Tensor:
    raise RuntimeError("on purpose")


# --- writing ----------------------------------------------------------------------------------------------------------


def scramble(x: Tensor) -> Tensor:
    """Any function of an activation of one example ``[T, ...]`` or of its batch ``[1, T, ...]``."""
    shift = torch.linspace(-0.5, 0.5, x.shape[-1], dtype=x.dtype)
    return 0.7 * x + shift


@pytest.mark.parametrize("site", ["hook_embed", "resid_pre", "z", "attn_out", "post", "mlp_out", "resid_post"])
@pytest.mark.parametrize("family", FAMILIES)
def test_writing_a_site_equals_a_plain_hook_there(family: str, site: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    for layer in range(LAYERS) if site != "hook_embed" else [0]:
        name = site if site == "hook_embed" else hook_name(site, layer)
        run = model.run(model.batch([e]), [name], {name: scramble})
        key = ("embed" if site == "hook_embed" else site, layer)
        logits, seen = plain.run(e.tokens, {key: scramble})
        assert close(run.logits[0], logits, ROUNDING)
        assert close(run[name][0], seen[key], ROUNDING), "a capture holds the activation after its edit"
        assert float((run.logits - model.run(model.batch([e])).logits).abs().max()) > 1e-3


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gptj", "neox_parallel")])
def test_writing_the_mid_residual_equals_replacing_what_enters_the_second_half_of_the_block(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    for layer in range(LAYERS):
        _, seen = plain.run(e.tokens, read=[("resid_pre", layer), ("attn_out", layer)])
        target = scramble(seen["resid_pre", layer] + seen["attn_out", layer])
        second_half: list[Tensor] = []
        norm = plain.part("second_norm", layer)
        handles = [
            norm.register_forward_pre_hook(lambda m, args, t=target: (t.view_as(args[0]),)),
            plain.part("mlp_end", layer).register_forward_hook(lambda m, a, out, s=second_half: s.append(out)),
        ]
        plain.run(e.tokens)
        for handle in handles:
            handle.remove()
        expected, _ = plain.run(
            e.tokens, {("resid_post", layer): lambda x, t=target, s=second_half: t + s[0].view_as(t)}
        )
        name = hook_name("resid_mid", layer)
        assert close(model.run(model.batch([e]), edits={name: scramble}).logits[0], expected, ROUNDING)


@pytest.mark.parametrize("family", ["gptj", "neox_parallel"])
def test_in_parallel_blocks_writing_the_mid_residual_shifts_only_the_sum(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    for layer in range(LAYERS):
        _, seen = plain.run(e.tokens, read=[("resid_pre", layer), ("attn_out", layer)])
        middle = seen["resid_pre", layer] + seen["attn_out", layer]
        shift = scramble(middle) - middle
        expected, _ = plain.run(e.tokens, {("resid_post", layer): lambda x, s=shift: x + s})
        logits = model.run(model.batch([e]), edits={hook_name("resid_mid", layer): scramble}).logits[0]
        assert close(logits, expected, ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pattern_replaced_by_itself_changes_nothing(family: str) -> None:
    model = hooked(family)
    batch = model.batch(EXAMPLES)
    own = model.run(batch, names("pattern"))
    again = model.run(batch, edits={n: (lambda x, n=n: own[n]) for n in names("pattern")})
    assert close(again.logits, own.logits, ROUNDING)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_uniform_pattern_makes_heads_average_the_values_read_so_far(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    n = len(e.tokens)
    uniform = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
    for layer in range(LAYERS):
        average = torch.einsum("qk,hkd->qhd", uniform, plain.values(e.tokens)[layer])
        expected, _ = plain.run(e.tokens, {("z", layer): lambda x, a=average: a})
        edits = {hook_name("pattern", layer): uniform.expand_as}
        assert close(model.run(model.batch([e]), edits=edits).logits[0], expected, ROUNDING)


def test_a_row_can_be_edited_without_touching_its_neighbours() -> None:
    model = hooked("llama")
    batch = model.batch(EXAMPLES)
    clean = model.run(batch).logits
    only = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(-1, 1, 1, 1)
    edited = model.run(batch, edits={hook_name("z", 1): lambda x: x * (1 - only)}).logits
    assert torch.equal(edited[[0, 2, 3]], clean[[0, 2, 3]])
    assert not close(edited[1], clean[1], 1e-3)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_central_finite_differences_in_double_precision(family: str) -> None:
    double = in_double(tiny(family))
    model, plain = Model(double, prove=False), Plain(family, double)
    e = EXAMPLES[0]
    sites = ("z", "post", "attn_out", "mlp_out", "resid_pre")
    run = model.run(model.batch([e]), names(*sites), gradients=True)
    gradients = run.gradients(run.logits[:, e.answer] - run.logits[:, e.foil], names(*sites))
    for key in [(site, layer) for site in sites for layer in range(LAYERS)]:
        g = gradients[hook_name(*key)][0]
        direction = torch.randn(g.shape, dtype=torch.float64)

        def moved(t: float, key: tuple[str, int] = key, d: Tensor = direction) -> Tensor:
            return metric(plain.run(e.tokens, {key: lambda x: x + t * d})[0], e)

        # of a random direction, g . direction is about |g|; the literal run's attention weights are float32, whose
        # rounding of 1e-7 is divided by the step of 1e-3
        assert abs(float(slope(moved) - (g * direction).sum())) < 3e-4 * float(g.norm() + 1e-9), key


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox_sequential"])
def test_the_gradient_at_the_mid_residual_is_that_at_the_attention_output(family: str) -> None:
    """Attention's output reaches the rest of the model only through the sum, which has derivative one."""
    model = hooked(family)
    batch = model.batch(EXAMPLES)
    run = model.run(batch, names("attn_out", "resid_mid"), gradients=True)
    gradients = run.gradients(model.metric(run.logits, batch), names("attn_out", "resid_mid"))
    for layer in range(LAYERS):
        assert close(gradients[hook_name("resid_mid", layer)], gradients[hook_name("attn_out", layer)], 1e-5)


def test_gradients_of_a_restarted_run_equal_those_of_the_full_run() -> None:
    for family in ("llama", "gpt2", "gptj", "gemma2"):
        model = hooked(family)
        batch = model.batch(EXAMPLES)
        full = model.run(batch, names("z", "post", "resid_pre"), gradients=True)
        for layer in range(LAYERS):
            later = [hook_name(s, i) for s in ("z", "post") for i in range(layer, LAYERS)]
            resid = full[hook_name("resid_pre", layer)].detach()
            part = model.run(batch, later, start=(layer, resid), gradients=True)
            expected = full.gradients(model.metric(full.logits, batch), later, keep_graph=True)
            found = part.gradients(model.metric(part.logits, batch), later)
            assert all(close(found[n], expected[n], ROUNDING) for n in later)


def test_a_captured_activation_that_the_value_does_not_use_has_gradient_zero() -> None:
    model = hooked("gpt2")
    run = model.run(model.batch(EXAMPLES[:1]), names("post"), gradients=True)
    gradients = run.gradients(run[hook_name("post", 0)].sum((1, 2)), names("post"))
    assert float(gradients[hook_name("post", 2)].abs().max()) == 0
    assert float(gradients[hook_name("post", 0)].min()) == 1


# --- restarts and shared prefixes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_restart_at_any_layer_is_bit_identical(family: str, prove: bool) -> None:
    model = Model(tiny(family), prove=prove)
    for batch in (model.batch(EXAMPLES), model.batch(EXAMPLES[:1])):
        full = model.run(batch, names("resid_pre", "post"))
        for layer in range(LAYERS):
            later = [hook_name("post", i) for i in range(layer, LAYERS)]
            again = model.run(batch, later, start=(layer, full[hook_name("resid_pre", layer)]))
            assert torch.equal(again.logits, full.logits)
            assert all(torch.equal(again[n], full[n]) for n in later)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
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
            all_names = names(*LINEAR_SITES)
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


# --- rows do not depend on one another --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_do_not_depend_on_padding_batch_or_neighbours(family: str) -> None:
    plain = plain_run(family)
    expected = torch.stack([plain.run(e.tokens)[0] for e in EXAMPLES])
    for padding_side in ("left", "right"):
        model = hooked(family, padding_side=padding_side)
        for size in (1, 2, 3, 16):
            logits = torch.cat([model.run(batch).logits for batch in model.batches(EXAMPLES, size)])
            assert close(logits, expected, ROUNDING)
        turned = model.run(model.batch(EXAMPLES[::-1])).logits.flip(0)
        assert close(turned, expected, ROUNDING)


def test_the_metric_is_a_logit_difference_or_without_a_foil_a_log_probability() -> None:
    model, plain = hooked("llama"), plain_run("llama")
    batch = model.batch(WITHOUT_FOILS)
    found = model.metric(model.run(batch).logits, batch)
    assert close(found, torch.stack([metric(plain.run(e.tokens)[0], e) for e in WITHOUT_FOILS]), ROUNDING)
    assert WITHOUT_FOILS[1].foil is None


def test_batch_rows_may_repeat() -> None:
    model = hooked("gemma3")
    batch = model.share_prefix(model.batch(EXAMPLES))
    logits = model.run(batch).logits
    index = torch.tensor([2, 0, 0, 3])
    picked = batch.rows(index)
    assert close(model.run(picked).logits, logits[index], ROUNDING)
    assert picked.answer.tolist() == [EXAMPLES[i].answer for i in index.tolist()]
    assert picked.counterfactual is not None


# --- grouped queries --------------------------------------------------------------------------------------------------


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


# --- cost -------------------------------------------------------------------------------------------------------------


def test_cost_counts_rows_layers_and_positions_run_and_a_backward_pass_twice() -> None:
    model = hooked("llama")
    batch = model.batch(EXAMPLES)
    run = model.run(batch, names("resid_pre"))
    assert (model.cost.forward, model.cost.backward) == (4, 0)
    model.run(batch, start=(2, run[hook_name("resid_pre", 2)]))
    assert model.cost.forward == pytest.approx(4 + 4 / 3)
    run = model.run(batch, names("z"), gradients=True)
    run.gradients(model.metric(run.logits, batch), names("z"))
    assert model.cost.forward == pytest.approx(8 + 4 / 3)
    assert model.cost.backward == pytest.approx(8)
    assert model.cost.total == pytest.approx(16 + 4 / 3)


def test_a_prefix_and_what_follows_it_cost_one_forward_pass_together() -> None:
    model = hooked("llama")
    batch = model.batch(EXAMPLES)
    shared = model.share_prefix(batch)
    fraction = shared.tokens.shape[1] / batch.tokens.shape[1]
    assert model.cost.forward == pytest.approx(4 * (1 - fraction))
    model.run(shared)
    assert model.cost.forward == pytest.approx(4)


# --- tokens -----------------------------------------------------------------------------------------------------------


def characters() -> Any:
    """A tokenizer that splits everything into characters, a space being one of them."""
    vocab = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    fast = Tokenizer(BPE(vocab, []))
    fast.pre_tokenizer = ByteLevel(add_prefix_space=False)
    from tokenizers.decoders import ByteLevel as Decoder

    fast.decoder = Decoder()
    return PreTrainedTokenizerFast(tokenizer_object=fast)


@pytest.mark.parametrize("bos", [False, True])
def test_encode_gives_the_tokens_the_tokenizer_gives(bos: bool) -> None:
    model = Model(tiny("gpt2"), tokenizer(bos))
    for e in EXAMPLES:
        found = model.encode(e.example)
        start = (1,) if bos else ()
        assert found.counterfactual is not None
        assert e.counterfactual is not None
        assert found.tokens == (*start, *e.tokens)
        assert found.counterfactual == (*start, *e.counterfactual)
        assert (found.answer, found.foil) == (e.answer, e.foil)
        assert model.why_not(e.example) is None


def test_an_answer_of_several_tokens_is_refused_with_its_pieces() -> None:
    model = Model(tiny("gpt2"), characters(), name="tiny")
    with pytest.raises(ExampleError, match=r"the answer ' cat' is 4 tokens for tiny \(  \| c \| a \| t\)"):
        model.encode(Example("the", " cat"))
    with pytest.raises(ExampleError, match="the foil 'ok' is 2 tokens"):
        model.encode(Example("the", "a", foil="ok"))
    assert model.encode(Example("the", "a", foil="b")).foil == sorted(ByteLevel.alphabet()).index("b")
    assert "4 tokens" in (model.why_not(Example("the", " cat")) or "")


def test_a_counterfactual_of_another_length_is_refused_with_both_lengths() -> None:
    model = hooked("gpt2")
    with pytest.raises(ExampleError, match="counterfactual is 2 tokens long and the prompt 3"):
        model.encode(Example(words([4, 5, 6]), " w7", counterfactual=words([4, 5])))


def test_a_prompt_longer_than_the_model_takes_is_refused_with_both_lengths() -> None:
    model = hooked("gpt2")
    longest = model.encode(Example(words([4] * 64), " w7"))
    assert torch.isfinite(model.run(model.batch([longest])).logits).all()
    with pytest.raises(ExampleError, match=r"65 tokens long.* at most 64"):
        model.encode(Example(words([4] * 65), " w7"))


@pytest.mark.parametrize("bos", [False, True])
def test_an_empty_prompt_is_refused(bos: bool) -> None:
    with pytest.raises(ExampleError, match="empty"):
        Model(tiny("gpt2"), tokenizer(bos)).encode(Example("", " w7"))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_marked_positions_point_at_the_marked_tokens_in_a_padded_batch(padding_side: str, bos: bool) -> None:
    model = Model(tiny("gpt2"), tokenizer(bos), padding_side=padding_side)
    encoded = [model.encode(e.example) for e in EXAMPLES]
    batch = model.batch(encoded)
    for b, (e, marked) in enumerate(zip(encoded, ([1, 3], [0, 2], [5], [1, 2, 4]))):
        positions = model.mark_positions(e, "label")
        assert positions == [p + bos for p in marked]
        columns = torch.tensor(positions) + model.first_position(batch)[b]
        assert batch.tokens[b, columns].tolist() == [EXAMPLES[b].tokens[p] for p in marked]
        assert model.mark_positions(e, "something else") == []


def test_a_mark_covers_every_token_it_touches_but_not_one_it_touches_only_with_a_space() -> None:
    model = Model(tiny("gpt2"), characters())
    text = "ab cd e"
    encoded = model.encode(Example(text, "x", marks={"m": ((1, 5),), "space": ((2, 3),), "two": ((0, 1), (6, 7))}))
    assert model.mark_positions(encoded, "m") == [1, 3, 4]
    assert model.mark_positions(encoded, "space") == []
    assert model.mark_positions(encoded, "two") == [0, 6]


# --- identity of the weights ------------------------------------------------------------------------------------------


def test_the_weights_hash_changes_with_any_weight_and_only_then() -> None:
    first = Model(fresh("llama")).weights_sha256
    assert Model(fresh("llama")).weights_sha256 == first
    changed = fresh("llama")
    changed.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    assert Model(changed).weights_sha256 != first
    assert Model(fresh("llama").double()).weights_sha256 != first
    assert len(first) == 64
