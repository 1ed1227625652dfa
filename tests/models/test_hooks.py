"""Passes with hooks against literal hooks on plain Hugging Face models, finite differences and themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attriboard.model import Model, hook_name
from tests.bench.models import (
    EVERY,
    EXAMPLES,
    LAYERS,
    MIXTURES,
    PARALLEL,
    PARTS,
    Plain,
    close,
    hooked,
    in_double,
    metric,
    plain_run,
    slope,
    tiny,
)
from tests.bench.sites import ROUNDING, linear_sites, names


def real_rows(x: Tensor, model: Model, length: int, b: int) -> Tensor:
    """One example's own positions of ``[B, T, ...]``."""
    return x[b, -length:] if model.padding_side == "left" else x[b, :length]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", EVERY)
def test_every_site_reads_what_a_plain_unpadded_eager_run_has_there(family: str, padding_side: str) -> None:
    model, plain = hooked(family, padding_side=padding_side), plain_run(family)
    run = model.run(model.batch(EXAMPLES), ["hook_embed", *names(*linear_sites(family))])
    for b, e in enumerate(EXAMPLES):
        sites = [(s, i) for s in linear_sites(family) if not s.startswith("resid") for i in range(LAYERS)]
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


@pytest.mark.parametrize("family", [f for f in EVERY if PARTS[f].second_norm])
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
@pytest.mark.parametrize("family", EVERY)
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
            total = mine.sum(-1)
            assert float(total.max()) < 1 + ROUNDING
            assert float(total.min()) > (0 if family == "gpt_oss" else 1 - ROUNDING)  # sinks take the rest
            assert close(run[hook_name("v", layer)][b, :, own], value, ROUNDING)
            z = torch.einsum("hqk,hkd->qhd", pattern, value)
            assert close(real_rows(run[hook_name("z", layer)], model, n, b), z, ROUNDING)


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
@pytest.mark.parametrize("family", EVERY)
def test_writing_a_site_equals_a_plain_hook_there(family: str, site: str) -> None:
    if site == "post" and family in MIXTURES:
        pytest.skip("a mixture of experts has no such site")
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


@pytest.mark.parametrize("family", [f for f in EVERY if f not in PARALLEL])
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
            plain.part("mlp_end", layer).register_forward_hook(
                lambda m, a, out, s=second_half: s.append(out[0] if isinstance(out, tuple) else out)
            ),
        ]
        plain.run(e.tokens)
        for handle in handles:
            handle.remove()
        expected, _ = plain.run(
            e.tokens, {("resid_post", layer): lambda x, t=target, s=second_half: t + plain.scale * s[0].view_as(t)}
        )
        name = hook_name("resid_mid", layer)
        assert close(model.run(model.batch([e]), edits={name: scramble}).logits[0], expected, ROUNDING)


@pytest.mark.parametrize("family", PARALLEL)
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


@pytest.mark.parametrize("family", EVERY)
def test_a_pattern_replaced_by_itself_changes_nothing(family: str) -> None:
    model = hooked(family)
    batch = model.batch(EXAMPLES)
    own = model.run(batch, names("pattern"))
    again = model.run(batch, edits={n: (lambda x, n=n: own[n]) for n in names("pattern")})
    assert close(again.logits, own.logits, ROUNDING)


@pytest.mark.parametrize("family", EVERY)
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


def test_a_row_can_be_edited_without_touching_its_neighbors() -> None:
    model = hooked("llama")
    batch = model.batch(EXAMPLES)
    clean = model.run(batch).logits
    only = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(-1, 1, 1, 1)
    edited = model.run(batch, edits={hook_name("z", 1): lambda x: x * (1 - only)}).logits
    assert torch.equal(edited[[0, 2, 3]], clean[[0, 2, 3]])
    assert not close(edited[1], clean[1], 1e-3)


@pytest.mark.parametrize("family", ["phi3", "glm4", "cohere", "exaone4", "phi", "falcon", "bloom"])
def test_the_activation_functions_output_is_read_also_from_fused_projections(family: str) -> None:
    model, plain, e = hooked(family), plain_run(family), EXAMPLES[0]
    run = model.run(model.batch([e]), names("act", "post"))
    for layer, block in enumerate(plain.blocks):
        entered: list[Tensor] = []
        handle = block.mlp.register_forward_pre_hook(lambda m, args, i=entered: i.append(args[0]))
        plain.run(e.tokens)
        handle.remove()
        act, post = run[hook_name("act", layer)], run[hook_name("post", layer)]
        if family in ("phi", "falcon", "bloom"):
            assert torch.equal(act, post)
        elif family in ("phi3", "glm4"):
            gate, up = block.mlp.gate_up_proj(entered[0]).chunk(2, dim=-1)
            assert close(act, torch.nn.functional.silu(gate), ROUNDING) and close(post, act * up, ROUNDING)
        else:
            gate, up = block.mlp.gate_proj(entered[0]), block.mlp.up_proj(entered[0])
            assert close(act, torch.nn.functional.silu(gate), ROUNDING) and close(post, act * up, ROUNDING)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
def test_gradients_equal_central_finite_differences_in_double_precision(family: str) -> None:
    double = in_double(tiny(family))
    model, plain = Model(double, prove=False), Plain(family, double)
    e = EXAMPLES[0]
    torch.manual_seed(0)
    sites = tuple(site for site in linear_sites(family) if site not in ("resid_mid", "resid_post"))
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


# --- restarts and cost ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prove", [True, False])
@pytest.mark.parametrize("family", EVERY)
def test_a_restart_at_any_layer_is_bit_identical(family: str, prove: bool) -> None:
    model = Model(tiny(family), prove=prove)
    for batch in (model.batch(EXAMPLES), model.batch(EXAMPLES[:1])):
        site = "mlp_out" if family in MIXTURES else "post"
        full = model.run(batch, names("resid_pre", site))
        for layer in range(LAYERS):
            later = [hook_name(site, i) for i in range(layer, LAYERS)]
            again = model.run(batch, later, start=(layer, full[hook_name("resid_pre", layer)]))
            assert torch.equal(again.logits, full.logits)
            assert all(torch.equal(again[n], full[n]) for n in later)


def test_cost_counts_rows_layers_and_positions_run_and_a_backward_pass_twice() -> None:
    model = hooked("llama")
    batch = model.batch(EXAMPLES)
    whole = sum(map(model.full_pass, EXAMPLES))
    run = model.run(batch, names("resid_pre"))
    assert (model.cost.forward, model.cost.backward) == (whole, 0)
    model.run(batch, start=(2, run[hook_name("resid_pre", 2)]))
    unembedded = 4 * 2 * model.W_U.numel()  # by a pass of the last of 3 layers too
    restarted = (whole - unembedded) // 3 + unembedded
    assert model.cost.forward == whole + restarted
    run = model.run(batch, names("z"), gradients=True)
    run.gradients(model.metric(run.logits, batch), names("z"))
    assert (model.cost.forward, model.cost.backward) == (2 * whole + restarted, 2 * whole)
    assert model.cost.flops == 4 * whole + restarted
    assert model.forward_equivalents(EXAMPLES) == 4 + restarted / whole
