"""Every method against its definition written out: explicit loops, plain runs, captum, finite differences.

Long because every method's literal twin stands in it, one section a method.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients as Captum
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from attriboard.components import LEVELS, Level, get_level
from attriboard.errors import AttriboardError, ConfigurationError, MethodError, SkipCell, UnknownNameError
from attriboard.interventions import REPLACEMENTS
from attriboard.method import Method, ReplacingMethod, checked, methods
from attriboard.model import Batch, EncodedExample, Model
from attriboard.scores import Scores
from attriboard.task import Example
from tests.bench.memory import LivingTensors
from tests.bench.models import (
    EXAMPLES,
    FOUR,
    LAYERS,
    SITES,
    WITHOUT_FOILS,
    Literal,
    Plain,
    close,
    component_edits,
    example,
    fresh,
    get,
    hooked,
    in_double,
    in_out,
    level_sites,
    literal_means,
    literal_outputs,
    literal_replacements,
    literal_single_effects,
    metric,
    plain_run,
    slope,
    tiny,
    tokenizer,
)
from tests.bench.rounding import same_order


def scores_of(
    model: Model, name: str, level: str, examples: Sequence[EncodedExample] = EXAMPLES, **options: Any
) -> Tensor:
    return methods.make(name, options).attribute(model, examples, LEVELS[level]).values


def last_sites(*names: str) -> list[tuple[str, int]]:
    return [(name, layer) for name in names for layer in range(LAYERS)]


def average(values: Iterator[Tensor] | Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


# --- log-probability increase -----------------------------------------------------------------------------------------


def literal_increase(family: str, level: str, e: EncodedExample, published: bool = False) -> Tensor:
    """A2, A4 and A5: every component's output alone added to its layer's input (neurons: to the mid residual)."""
    plain = plain_run(family)
    _, seen = plain.run(e.tokens, read=[*last_sites("resid_pre", "attn_out", "z", "post"), ("resid_post", LAYERS - 1)])
    u = Literal(plain, seen["resid_post", LAYERS - 1][-1], published)
    rows = []
    for layer in range(LAYERS):
        base = seen["resid_pre", layer][-1]
        if level == "neurons":
            base = base + seen["attn_out", layer][-1]
        activation = seen["post" if level == "neurons" else "z", layer][-1]
        outputs = literal_outputs(plain, level, activation, layer)
        rows.append(torch.stack([u.increase(out, base, e.answer) for out in outputs]))
    return torch.stack(rows).float()


@pytest.mark.parametrize("level", ["heads", "neurons", "attn_neurons"])
@pytest.mark.parametrize("family", [*FOUR, "gptj", "qwen3"])
def test_log_prob_increase_is_that_of_each_output_alone(family: str, level: str) -> None:
    model = hooked(family, batch_size=3)
    truth = average(literal_increase(family, level, e) for e in EXAMPLES).view(LEVELS[level].shape(model))
    everything = scores_of(model, "log_prob_increase", level, exact_top_k=10**6)
    assert torch.allclose(everything, truth, atol=1e-5)
    result = methods.make("log_prob_increase", {"exact_top_k": 10}).attribute(model, EXAMPLES, LEVELS[level])
    best = result.ranking()[:10].tolist()
    logits = model.run(model.batch(EXAMPLES)).logits
    assert same_order(best, truth, logits, terms=2), "the ten that are best, but for ties within rounding"
    assert torch.allclose(result.values.flatten()[best], truth.flatten()[best], atol=1e-5)
    assert float((result.values - truth).min()) > -1e-5, "what is not exact is an over-estimate"
    if level != "heads":
        exact = result.metadata["exact_names"]
        assert len(exact) == result.metadata["exact"] < len(result.names)
        assert {result.names[i] for i in best} <= set(exact)


@pytest.mark.parametrize("level", ["heads", "neurons"])
def test_the_published_log_prob_increase_leaves_the_final_norms_bias_out(level: str) -> None:
    truth = average(literal_increase("gpt2", level, e, published=True) for e in EXAMPLES)
    found = scores_of(hooked("gpt2"), "log_prob_increase", level, exact_top_k=10**6, published=True)
    assert torch.allclose(found, truth, atol=1e-5)
    with_bias = scores_of(hooked("gpt2"), "log_prob_increase", level, exact_top_k=10**6)
    assert not torch.allclose(found, with_bias, atol=1e-3)


# --- direct logit attribution -----------------------------------------------------------------------------------------


def logit_shares(u: Literal, outputs: Tensor, e: EncodedExample) -> Tensor:
    """Each output's own share of the answer-minus-foil logit: it is linear once the norm's scale is fixed."""
    assert e.foil is not None
    logits = torch.stack([u.logits(out) - u.bias for out in outputs])
    return (logits[:, e.answer] - logits[:, e.foil]).float()


@pytest.mark.parametrize("family", [*FOUR, "gptj", "opt", "gemma3", "llama_biases_tied"])
def test_direct_logit_attribution_of_all_nodes_embedding_and_biases_sums_to_the_logit_difference(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    for e in EXAMPLES:
        nodes = scores_of(model, "direct_logit_attribution", "nodes", [e])
        logits, seen = plain.run(e.tokens, read=[*last_sites("attn_out", "z", "resid_pre", "resid_post")])
        u = Literal(plain, seen["resid_post", LAYERS - 1][-1])
        cap = getattr(plain.hf.config, "final_logit_softcapping", None)
        logits = cap * torch.atanh(logits / cap) if cap else logits
        no_head = [
            seen["attn_out", layer][-1] - literal_outputs(plain, "heads", seen["z", layer][-1], layer).sum(0)
            for layer in range(LAYERS)
        ]
        rest = logit_shares(u, torch.stack([seen["resid_pre", 0][-1], *no_head]), e).sum()
        constants = u.bias[e.answer] - u.bias[e.foil or 0]
        assert float(nodes.sum() + rest + constants) == pytest.approx(float(metric(logits, e)), abs=2e-4)


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", [*FOUR, "gptj", "opt"])
def test_direct_logit_attribution_is_each_outputs_product_with_the_answer_direction(family: str, level: str) -> None:
    model, plain = hooked(family), plain_run(family)
    for e in EXAMPLES[:2]:
        _, seen = plain.run(e.tokens, read=last_sites("z", "post", "mlp_out", "resid_post"))
        u = Literal(plain, seen["resid_post", LAYERS - 1][-1])
        rows = []
        for layer in range(LAYERS):
            if level == "neurons":
                outputs = literal_outputs(plain, "neurons", seen["post", layer][-1], layer)
            else:
                outputs = literal_outputs(plain, "heads", seen["z", layer][-1], layer)
            if level == "nodes":
                outputs = torch.cat([outputs, seen["mlp_out", layer][-1:]])
            rows.append(logit_shares(u, outputs, e))
        assert close(scores_of(model, "direct_logit_attribution", level, [e]), torch.stack(rows), 1e-4)


@pytest.mark.parametrize("family", FOUR)
def test_without_a_foil_the_direction_is_the_gradient_of_log_prob(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = WITHOUT_FOILS[1]
    assert e.foil is None
    _, seen = plain.run(e.tokens, read=last_sites("z", "resid_post"))
    last = seen["resid_post", LAYERS - 1][-1]
    z = last.double().requires_grad_()
    (direction,) = torch.autograd.grad(Literal(plain, last).log_prob(z, e.answer), z)
    outputs = torch.stack([literal_outputs(plain, "heads", seen["z", i][-1], i) for i in range(LAYERS)])
    found = scores_of(model, "direct_logit_attribution", "heads", WITHOUT_FOILS[1:2])
    assert close(found, (outputs.double() @ direction).float(), 1e-4)


# --- gradients --------------------------------------------------------------------------------------------------------


def chosen_components(model: Model, level: str) -> list[int]:
    """A few components of every layer, the last of each row among them (the FFN among the nodes)."""
    width = LEVELS[level].size(model) // LAYERS
    return [layer * width + i for layer in range(LAYERS) for i in (0, width // 2, width - 1)]


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", FOUR)
def test_attribution_patching_is_minus_the_slope_towards_the_replacement(
    family: str, level: str, replacement: str
) -> None:
    double = in_double(tiny(family))
    model, plain = Model(double, batch_size=1, prove=False), Plain(family, double)
    examples = EXAMPLES[1:3]
    means = literal_means(plain, examples, level)
    components = chosen_components(model, level)
    expected = torch.zeros(len(components))
    for e in examples:
        _, clean = plain.run(e.tokens, read=level_sites(plain, level))
        towards = literal_replacements(plain, e, level, replacement, means)
        for n, i in enumerate(components):
            mask = torch.zeros(LEVELS[level].size(model), dtype=torch.bool)
            mask[i] = True
            mask = mask.view(LEVELS[level].shape(model))

            def moved(t: float, mask: Tensor = mask, e: EncodedExample = e, a: Any = clean, b: Any = towards) -> Tensor:
                part = {site: a[site] + t * (b[site] - a[site]) for site in a}
                return metric(plain.run(e.tokens, component_edits(level, mask, part))[0], e)

            expected[n] -= slope(moved) / len(examples)
    found = scores_of(model, "attribution_patching", level, examples, replacement=replacement).flatten()[components]
    # the literal run's attention weights are float32: 1e-7 divided by the step of 1e-3
    assert torch.allclose(found, expected, rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("level", ["heads", "neurons"])
@pytest.mark.parametrize("family", FOUR)
def test_gradient_x_activation_is_autograd_written_out(family: str, level: str) -> None:
    model, plain = hooked(family), plain_run(family)
    expected = []
    for e in WITHOUT_FOILS:
        sites = level_sites(plain, level)
        logits, seen = run_with_gradients(plain, e, sites)
        gradients = torch.autograd.grad(metric(logits, e), [seen[s] for s in sites])
        products = [(seen[s] * g).sum(0) for s, g in zip(sites, gradients)]
        expected.append(torch.stack([p.sum(-1) if level == "heads" else p for p in products]).detach())
    assert close(scores_of(model, "gradient_x_activation", level, WITHOUT_FOILS), average(expected), 1e-4)
    zeroing = scores_of(model, "attribution_patching", level, WITHOUT_FOILS, replacement="zero")
    assert close(zeroing, average(expected), 1e-4)


def run_with_gradients(
    plain: Plain, e: EncodedExample, sites: list[Any], embeddings: Tensor | None = None
) -> tuple[Tensor, dict[Any, Tensor]]:
    """A plain run from embeddings that need a gradient, so that everything after them is part of the graph."""
    if embeddings is None:
        embeddings = plain.run(e.tokens, read=[("embed", 0)])[1]["embed", 0]
    with torch.enable_grad():
        return plain.run(e.tokens, read=sites, inputs_embeds=embeddings[None].clone().requires_grad_())


class Scaling(nn.Module):
    """A final norm whose scale never changes: it makes the unembedding linear."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(weight, False), nn.Parameter(bias, False), 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
def test_where_the_model_is_linear_every_estimate_equals_activation_patching(level: str) -> None:
    """The last layer of a parallel model with a linear final norm: heads and FFN reach the logits directly."""
    hf = fresh("neox_parallel")
    norm = hf.gpt_neox.final_layer_norm
    hf.gpt_neox.final_layer_norm = Scaling(norm.weight.data, norm.bias.data)
    model = Model(hf, tokenizer(), prove=False)
    exact = scores_of(model, "activation_patching", level)
    for name in ("attribution_patching", "eap_ig", "integrated_gradients"):
        if level in methods.get(name).levels:
            found = scores_of(model, name, level)
            assert torch.allclose(found[-1], exact[-1], atol=2e-5)
            assert not torch.allclose(found[0], exact[0], atol=1e-3), "the first layer is not linear"


def literal_eap_ig(
    plain: Plain, e: EncodedExample, level: str, steps: int, replacement: str, means: dict[Any, Tensor]
) -> Tensor:
    """F2 at nodes: (clean - replaced) times the gradient averaged over k = 1 .. steps, at each component's output."""
    sites = level_sites(plain, level)
    _, clean = plain.run(e.tokens, read=[("embed", 0), *sites])
    replaced = literal_replacements(plain, e, level, replacement, means)
    corrupted = torch.zeros_like(clean["embed", 0])
    if replacement == "counterfactual":
        corrupted = plain.run(e.counterfactual or (), read=[("embed", 0)])[1]["embed", 0]
    total = {site: torch.zeros_like(clean[site]) for site in sites}
    for k in range(1, steps + 1):
        point = corrupted + k / steps * (clean["embed", 0] - corrupted)
        logits, seen = run_with_gradients(plain, e, sites, point)
        for site, gradient in zip(sites, torch.autograd.grad(metric(logits, e), [seen[s] for s in sites])):
            total[site] += gradient
    products = {site: ((clean[site] - replaced[site]) * total[site] / steps).sum(0) for site in sites}
    rows = []
    for layer in range(LAYERS):
        if level == "neurons":
            rows.append(products["post", layer])
            continue
        row = products["z", layer].sum(-1)
        rows.append(torch.cat([row, products["mlp_out", layer].sum()[None]]) if level == "nodes" else row)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("steps", "replacement"), [(5, "counterfactual"), (1, "counterfactual"), (2, "zero"), (2, "mean")]
)
@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", FOUR)
def test_eap_ig_is_its_definition_written_out(family: str, level: str, steps: int, replacement: str) -> None:
    model, plain = hooked(family), plain_run(family)
    examples = EXAMPLES[1:3]
    means = literal_means(plain, examples, level)
    expected = average(literal_eap_ig(plain, e, level, steps, replacement, means) for e in examples)
    found = scores_of(model, "eap_ig", level, examples, steps=steps, replacement=replacement)
    assert close(found, expected, 1e-4)
    if steps == 1 and replacement == "counterfactual":
        assert close(scores_of(model, "attribution_patching", level, examples), expected, 1e-4)


def test_eap_ig_interpolates_embeddings_in_a_model_that_scales_them() -> None:
    expected = average(literal_eap_ig(plain_run("gemma"), e, "nodes", 3, "counterfactual", {}) for e in EXAMPLES)
    assert close(scores_of(hooked("gemma"), "eap_ig", "nodes", steps=3), expected, 1e-4)


@pytest.mark.parametrize("replacement", ["counterfactual", "zero", "mean"])
@pytest.mark.parametrize("level", ["heads", "neurons"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_integrated_gradients_equal_captums(family: str, level: str, replacement: str) -> None:
    model, plain = hooked(family, batch_size=5), plain_run(family)
    examples = EXAMPLES[:2]
    means = literal_means(plain, examples, level)
    expected = torch.zeros(LEVELS[level].shape(model))
    for e in examples:
        baseline = literal_replacements(plain, e, level, replacement, means)
        _, clean = plain.run(e.tokens, read=list(baseline))
        for site, layer in baseline:

            def outcome(points: Tensor, key: Any = (site, layer), e: EncodedExample = e) -> Tensor:
                return torch.stack([metric(plain.run(e.tokens, {key: lambda x, p=p: p})[0], e) for p in points])

            start, end = baseline[site, layer][None], clean[site, layer][None]
            parts = Captum(outcome).attribute(end, start, n_steps=4, method="riemann_middle")[0].sum(0)
            expected[layer] += (parts.sum(-1) if level == "heads" else parts).float() / len(examples)
    found = scores_of(model, "integrated_gradients", level, examples, steps=4, replacement=replacement)
    assert close(found, expected, 1e-4)


@pytest.mark.parametrize("replacement", ["counterfactual", "zero"])
@pytest.mark.parametrize("level", ["heads", "neurons"])
@pytest.mark.parametrize("family", FOUR)
def test_integrated_gradients_of_a_layer_sum_to_the_metric_lost_with_the_layer(
    family: str, level: str, replacement: str
) -> None:
    if family == "gemma2" and replacement == "zero":
        pytest.skip("its norm after the sub-layer makes the model discontinuous at a zero baseline")
    model, plain = hooked(family, batch_size=64), plain_run(family)
    e = EXAMPLES[0]
    found = scores_of(model, "integrated_gradients", level, [e], steps=64, replacement=replacement)
    values = literal_replacements(plain, e, level, replacement)
    for layer in range(LAYERS):
        mask = torch.zeros(LEVELS[level].shape(model), dtype=torch.bool)
        mask[layer] = True
        lost = metric(plain.run(e.tokens)[0], e) - metric(
            plain.run(e.tokens, component_edits(level, mask, values))[0], e
        )
        # the midpoint sum's error falls with the square of the 64 steps
        assert float(found[layer].sum()) == pytest.approx(float(lost), abs=3e-3)


# --- exact effects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "replacement"), [("heads", "zero"), ("nodes", "zero"), ("heads", "mean"), ("nodes", "counterfactual")]
)
@pytest.mark.parametrize("family", FOUR)
def test_head_ablation_is_the_metric_lost_in_a_whole_run_per_component(
    family: str, level: str, replacement: str
) -> None:
    model, plain = hooked(family), plain_run(family)
    means = literal_means(plain, EXAMPLES, level)
    shape = LEVELS[level].shape(model)
    expected = average(literal_single_effects(plain, e, level, shape, replacement, means) for e in EXAMPLES)
    assert torch.allclose(scores_of(model, "head_ablation", level, replacement=replacement), expected, atol=3e-5)


@pytest.mark.parametrize("family", [*FOUR, "opt", "gptj"])
def test_head_ablation_is_what_zeroing_the_heads_weights_costs(family: str) -> None:
    found = scores_of(hooked(family), "head_ablation", "heads", WITHOUT_FOILS)
    plain = plain_run(family)
    for layer, head in itertools.product(range(LAYERS), range(0, 4, 2)):
        edited = Plain(family)
        weight = in_out(get(edited.blocks[layer], edited.parts.out))
        width = len(weight) // 4
        weight[head * width : (head + 1) * width] = 0
        lost = [metric(plain.run(e.tokens)[0], e) - metric(edited.run(e.tokens)[0], e) for e in WITHOUT_FOILS]
        assert float(found[layer, head]) == pytest.approx(float(average(lost)), abs=3e-5)


@pytest.mark.parametrize("level", ["heads", "nodes"])
@pytest.mark.parametrize("family", FOUR)
def test_noising_takes_one_counterfactual_activation_and_denoising_puts_one_clean_activation_back(
    family: str, level: str
) -> None:
    model, plain = hooked(family), plain_run(family)
    shape = LEVELS[level].shape(model)
    noising, denoising = [], []
    for e in EXAMPLES:
        noising.append(literal_single_effects(plain, e, level, shape, "counterfactual"))
        swapped = EncodedExample(e.example, e.counterfactual or (), e.answer, e.foil, e.tokens)
        # the metric on the counterfactual prompt rises by what single replacement there loses, with the sign turned
        denoising.append(-literal_single_effects(plain, swapped, level, shape, "counterfactual"))
    assert torch.allclose(scores_of(model, "activation_patching", level), average(noising), atol=3e-5)
    found = scores_of(model, "activation_patching", level, direction="denoising")
    assert torch.allclose(found, average(denoising), atol=3e-5)
    assert not torch.allclose(average(noising), average(denoising), atol=1e-2)


def test_activation_patching_of_neurons_is_a_whole_run_per_neuron() -> None:
    model, plain = hooked("llama"), plain_run("llama")
    e = EXAMPLES[0]
    expected = literal_single_effects(plain, e, "neurons", LEVELS["neurons"].shape(model), "counterfactual")
    assert torch.allclose(scores_of(model, "activation_patching", "neurons", [e]), expected, atol=3e-5)


# --- comparative neuron analysis --------------------------------------------------------------------------------------


def literal_cna(family: str, examples: Sequence[EncodedExample], heads: list[tuple[int, int]]) -> Tensor:
    """B2: I_0 - I_1 of every neuron, both behind the norm frozen in the original run."""
    plain = plain_run(family)
    mask = torch.zeros(LAYERS, 4, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    sites = last_sites("resid_pre", "attn_out", "post")
    scores = []
    for e in examples:
        zero = component_edits("heads", mask, literal_replacements(plain, e, "heads", "zero"))
        _, original = plain.run(e.tokens, read=[*sites, ("resid_post", LAYERS - 1)])
        _, zeroed = plain.run(e.tokens, zero, read=sites)
        u = Literal(plain, original["resid_post", LAYERS - 1][-1])
        rows = []
        for layer in range(LAYERS):
            increases = []
            for seen in (original, zeroed):
                mid = (seen["resid_pre", layer] + seen["attn_out", layer])[-1]
                outputs = literal_outputs(plain, "neurons", seen["post", layer][-1], layer)
                increases.append(torch.stack([u.increase(out, mid, e.answer) for out in outputs]))
            rows.append(increases[0] - increases[1])
        scores.append(torch.stack(rows))
    return average(scores).float()


@pytest.mark.parametrize("n_heads", [1, 2])
@pytest.mark.parametrize("family", [*FOUR, "gpt2_untied"])
def test_cna_with_every_neuron_a_candidate_is_its_definition_written_out(family: str, n_heads: int) -> None:
    model, plain = hooked(family, batch_size=3), plain_run(family)
    effects = average(literal_single_effects(plain, e, "heads", (LAYERS, 4), "zero") for e in EXAMPLES[:2])
    best = effects.flatten().argsort(descending=True)[:n_heads].tolist()
    heads = [(i // 4, i % 4) for i in best]
    result = methods.make("cna", {"n_heads": n_heads, "head_examples": 2, "candidates": 10**6}).attribute(
        model, EXAMPLES, LEVELS["neurons"]
    )
    assert result.metadata["heads"] == [f"a{layer}.h{head}" for layer, head in heads]
    expected = literal_cna(family, EXAMPLES, heads)
    assert torch.allclose(result.values, expected, atol=1e-5)
    first = min(layer for layer, _ in heads)
    assert float(result.values[:first].abs().sum()) == 0, "neurons the heads cannot reach"
    assert float(result.values[first:].abs().max()) > 1e-4


def test_cna_evaluates_its_candidates_exactly_and_says_how_many() -> None:
    model = hooked("llama")
    truth = scores_of(model, "cna", "neurons", candidates=10**6)
    result = methods.make("cna", {"candidates": 30}).attribute(model, EXAMPLES, LEVELS["neurons"])
    assert result.metadata["exact"] == 30
    assert int((result.values - truth).abs().lt(1e-6).sum()) >= 30


# --- query neurons ----------------------------------------------------------------------------------------------------


def value_neurons(family: str, e: EncodedExample) -> tuple[list[tuple[float, int, int, int, int]], Any]:
    """A5: every (increase, layer, head, dimension, position), best first, and the activations they were found with."""
    plain = plain_run(family)
    sites = last_sites("resid_pre", "attn_out", "mlp_out", "post", "z")
    _, seen = plain.run(e.tokens, read=[*sites, ("resid_post", LAYERS - 1)])
    u = Literal(plain, seen["resid_post", LAYERS - 1][-1])
    found = []
    for layer, (pattern, value) in enumerate(zip(plain.patterns(e.tokens), plain.values(e.tokens))):
        base = seen["resid_pre", layer][-1]
        whole = literal_outputs(plain, "attn_neurons", seen["z", layer][-1], layer)
        for h, p in itertools.product(range(4), range(len(e.tokens))):
            for i in range(value.shape[-1]):
                # z = sum over positions, so position p's part of the output is its part of z
                share = pattern[h, -1, p] * value[h, p, i] / seen["z", layer][-1, h, i]
                out = whole[h * value.shape[-1] + i] * share
                found.append((float(u.increase(out, base, e.answer)), layer, h, i, p))
    return sorted(found, reverse=True), seen


def value_key(plain: Plain, layer: int, head: int, dimension: int, d_head: int) -> Tensor:
    """k_a: the norm's weight times the value projection's weights into one dimension of the head's own group."""
    block, family = plain.blocks[layer], plain.family
    gamma = plain.part("ln1", layer).weight
    if family == "gpt2":
        return gamma * block.attn.c_attn.weight[:, 2 * 32 + head * d_head + dimension]
    if family == "neox_parallel":
        return gamma * block.attention.query_key_value.weight[head * 3 * d_head + 2 * d_head + dimension]
    gamma = 1 + gamma if family.startswith("gemma") else gamma
    kv_head = head // (4 // plain.hf.config.num_key_value_heads)
    return gamma * block.self_attn.v_proj.weight[kv_head * d_head + dimension]


def literal_query_neurons(family: str, e: EncodedExample, top_k: int) -> Tensor:
    """A8, neuron by neuron."""
    plain = plain_run(family)
    ranked, seen = value_neurons(family, e)
    d_head = seen["z", 0].shape[-1]
    scores = torch.zeros(LAYERS, 40, dtype=torch.float64)
    for increase, layer, head, dimension, p in ranked[:top_k]:
        key = value_key(plain, layer, head, dimension, d_head).double()
        whole = float(seen["resid_pre", layer][p].double() @ key)
        for source in range(layer):
            outputs = literal_outputs(plain, "neurons", seen["post", source][p], source).double()
            for j in range(40):
                scores[source, j] += increase * float(outputs[j] @ key) / whole
    return scores.float()


@pytest.mark.parametrize("family", [*FOUR, "gemma"])
def test_query_neurons_are_their_definition_written_out_neuron_by_neuron(family: str) -> None:
    examples = EXAMPLES[:2]
    expected = average(literal_query_neurons(family, e, 30) for e in examples)
    found = scores_of(hooked(family), "query_neurons", "neurons", examples, top_k=30)
    # shares are divided by sums that can be small, which magnifies rounding
    assert close(found, expected, 2e-3)
    assert float(found[LAYERS - 1].abs().max()) == 0, "no layer reads the last one"


@pytest.mark.parametrize("rows", [1, 3])
def test_query_neurons_of_long_prompts_hold_little_but_the_activations_they_read(rows: int) -> None:
    """No attention pattern but what the last token reads, and never every candidate of every layer at once.

    A candidate for each layer, head, position and dimension would take 8 bytes more for each of its four coordinates.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = Model(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=97)), name="eight layers")
    examples = [EncodedExample(Example("", ""), tuple(range(3, 60)) * 4, 1, 2, None) for _ in range(rows)]
    kept = 4 * 8 * 228 * (64 + 64 + 96)  # layer inputs, values and neurons of one prompt
    with LivingTensors(model.hf.parameters()) as bare:
        model.run(model.batch(examples))
    with LivingTensors(model.hf.parameters()) as memory:
        methods.make("query_neurons").attribute(model, examples, LEVELS["neurons"])
    pattern, candidates = 4 * 4 * 228 * 228, 8 * 64 * 228
    assert memory.peak < bare.peak + rows * (kept + 3 * pattern) + 6 * candidates


def test_long_prompts_are_read_by_query_neurons_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = scores_of(hooked("llama"), "query_neurons", "neurons")
    ran: list[int] = []
    run = Model.run
    monkeypatch.setattr(sys.modules[methods.get("query_neurons").__module__], "_BYTES", 1)
    monkeypatch.setattr(Model, "run", lambda self, batch, *rest: (ran.append(len(batch)), run(self, batch, *rest))[1])
    assert close(scores_of(hooked("llama"), "query_neurons", "neurons"), together, 1e-3)
    assert ran == [1] * len(EXAMPLES)


@pytest.mark.parametrize("family", FOUR)
def test_shares_in_a_value_neuron_of_neurons_embedding_attention_and_biases_sum_to_one(family: str) -> None:
    plain = plain_run(family)
    for e in EXAMPLES:
        ranked, seen = value_neurons(family, e)
        increase, layer, head, dimension, p = ranked[0]
        key = value_key(plain, layer, head, dimension, seen["z", 0].shape[-1])
        rest = seen["resid_pre", 0][p].clone()
        for source in range(layer):
            neurons = literal_outputs(plain, "neurons", seen["post", source][p], source).sum(0)
            rest += seen["attn_out", source][p] + (seen["mlp_out", source][p] - neurons)
        share = float(rest @ key) / float(seen["resid_pre", layer][p] @ key)
        found = scores_of(hooked(family), "query_neurons", "neurons", [e], top_k=1)
        assert float(found.sum()) / increase + share == pytest.approx(1, abs=1e-3)


# --- in-context heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FOUR)
def test_in_context_heads_sum_the_increases_of_the_marked_positions(family: str, padding_side: str) -> None:
    """A3: the head's output from one position alone, added to the layer's input at the last token."""
    plain = plain_run(family)
    expected = []
    for e, marked in zip(EXAMPLES, ([1, 3], [0, 2], [5], [1, 2, 4])):
        _, seen = plain.run(e.tokens, read=last_sites("resid_pre", "z", "resid_post"))
        u = Literal(plain, seen["resid_post", LAYERS - 1][-1])
        scores = torch.zeros(LAYERS, 4)
        for layer, (pattern, value) in enumerate(zip(plain.patterns(e.tokens), plain.values(e.tokens))):
            for h, p in itertools.product(range(4), marked):
                whole = seen["z", layer][-1]
                per_dimension = literal_outputs(plain, "attn_neurons", whole, layer).view(*whole.shape, -1)
                part = (pattern[h, -1, p] * value[h, p] / whole[h])[:, None] * per_dimension[h]
                scores[layer, h] += u.increase(part.sum(0), seen["resid_pre", layer][-1], e.answer)
        expected.append(scores)
    found = scores_of(hooked(family, padding_side=padding_side), "in_context_heads", "heads")
    assert torch.allclose(found, average(expected), atol=2e-5)


def test_in_context_heads_of_an_example_whose_mark_touches_no_token_are_zero_or_refused() -> None:
    e = example([5, 17, 33], label=[1])
    blank = EncodedExample(
        type(e.example)(e.example.prompt, e.example.answer, marks={"label": ((2, 3),)}), e.tokens, e.answer, None, None
    )
    try:
        found = scores_of(hooked("llama"), "in_context_heads", "heads", [blank])
    except AttriboardError:
        return
    assert float(found.abs().max()) == 0


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "random_same_layer"])
def test_random_controls_are_fixed_by_their_seed(name: str) -> None:
    model = hooked("llama")
    for level in (level for level in methods.get(name).levels if level in SITES):
        one, again, other = (scores_of(model, name, level, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_random_scores_are_standard_normal_and_distinct() -> None:
    scores = scores_of(hooked("llama"), "random", "attn_neurons")
    assert abs(float(scores.mean())) < 0.4
    assert 0.7 < float(scores.std()) < 1.3
    assert len(scores.unique()) == scores.numel()


@pytest.mark.parametrize("reference", ["attribution_patching", "head_ablation"])
def test_random_same_layer_permutes_the_references_scores_within_each_layer(reference: str) -> None:
    model = hooked("llama")
    for level in methods.get(reference).levels:
        truth = scores_of(model, reference, level)
        shuffled = scores_of(model, "random_same_layer", level, reference=reference)
        assert torch.equal(shuffled.sort(1).values, truth.sort(1).values)
        assert not torch.equal(shuffled, truth)


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", [*FOUR, "gptj", "opt"])
def test_weight_norm_is_the_norm_of_each_components_block_of_weights(family: str, level: str) -> None:
    plain = plain_run(family)
    found = scores_of(hooked(family), "weight_norm", level)
    for layer in range(LAYERS):
        out, down = in_out(plain.part("out", layer)), in_out(plain.part("down", layer))
        width = len(out) // 4
        heads = [out[h * width : (h + 1) * width].square().sum().sqrt() for h in range(4)]
        expected = [row.square().sum().sqrt() for row in down]
        if level != "neurons":
            expected = heads if level == "heads" else [*heads, down.square().sum().sqrt()]
        assert close(found[layer], torch.stack(expected), 1e-5)


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", [*FOUR, "gptj", "opt"])
def test_activation_norm_is_the_norm_of_each_output_at_the_last_token(family: str, level: str) -> None:
    plain = plain_run(family)
    expected = []
    for e in EXAMPLES:
        _, seen = plain.run(e.tokens, read=last_sites("z", "post", "mlp_out"))
        rows = []
        for layer in range(LAYERS):
            site = "post" if level == "neurons" else "z"
            outputs = literal_outputs(plain, "neurons" if level == "neurons" else "heads", seen[site, layer][-1], layer)
            if level == "nodes":
                outputs = torch.cat([outputs, seen["mlp_out", layer][-1:]])
            rows.append(torch.stack([out.square().sum().sqrt() for out in outputs]))
        expected.append(torch.stack(rows))
    assert close(scores_of(hooked(family), "activation_norm", level), average(expected), 1e-4)


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
def test_first_and_last_layers_score_the_place_of_the_layer_alone(level: str) -> None:
    model = hooked("gemma2")
    first, last = (scores_of(model, name, level) for name in ("first_layers", "last_layers"))
    for layer in range(LAYERS):
        assert first[layer].unique().tolist() == [model.n_layers - layer] and last[layer].unique().tolist() == [layer]
    assert bool((first >= 0).all() and (last >= 0).all())  # by absolute score the order is the same


@pytest.mark.parametrize("level", ["heads", "neurons", "nodes"])
@pytest.mark.parametrize("family", [*FOUR, "gptj", "opt"])
def test_difference_norm_is_the_norm_of_what_the_counterfactual_changes_in_each_output(family: str, level: str) -> None:
    plain = plain_run(family)
    expected = []
    for e in EXAMPLES:
        assert e.counterfactual is not None
        both = [
            plain.run(tokens, read=last_sites("z", "post", "mlp_out"))[1] for tokens in (e.tokens, e.counterfactual)
        ]
        rows = []
        for layer in range(LAYERS):
            site = "post" if level == "neurons" else "z"
            squares: Any = 0
            for at in range(len(e.tokens)):
                outputs = []
                for seen in both:
                    own = literal_outputs(
                        plain, "neurons" if level == "neurons" else "heads", seen[site, layer][at], layer
                    )
                    if level == "nodes":
                        own = torch.cat([own, seen["mlp_out", layer][at][None]])
                    outputs.append(own)
                squares = squares + torch.stack([(a - b).square().sum() for a, b in zip(*outputs)])
            rows.append(squares.sqrt())
        expected.append(torch.stack(rows))
    assert close(scores_of(hooked(family), "difference_norm", level), average(expected), 1e-4)


def test_difference_norm_is_zero_where_both_prompts_agree_and_needs_a_counterfactual() -> None:
    (e,) = EXAMPLES[:1]
    model, same = hooked("gemma2"), replace(e, counterfactual=e.tokens)
    assert float(scores_of(model, "difference_norm", "neurons", [same]).abs().max()) == 0
    with pytest.raises(ConfigurationError, match="difference_norm needs a counterfactual for every example"):
        scores_of(model, "difference_norm", "heads", [replace(e, counterfactual=None)])


def test_only_methods_whose_scores_are_drawn_say_so() -> None:
    drawn = {cls.name for cls in methods if cls.random}
    assert drawn == {"random", "random_same_layer"}
    for cls in methods:
        assert not cls.random or (cls.control and "seed" in {option.name for option in fields(cls)})


# --- every method -----------------------------------------------------------------------------------------------------


def cases() -> list[Any]:
    """Every registered method of text models at each of its component levels, and every replacement it offers."""
    found = []
    for cls in methods:
        if cls.modality == "vision":
            continue
        for level in (name for name in cls.levels if name in SITES):
            found.append(pytest.param(cls.name, level, {}, id=f"{cls.name}-{level}"))
            if issubclass(cls, ReplacingMethod) and level == "heads":
                default = cls().replacement
                for r in (r for r in REPLACEMENTS if r != default):
                    found.append(pytest.param(cls.name, level, {"replacement": r}, id=f"{cls.name}-{level}-{r}"))
    return found


def attributed(model: Model, name: str, level: str, options: dict[str, Any]) -> Scores:
    method = methods.make(name, options)
    examples = WITHOUT_FOILS[:3]
    try:
        method.check_examples(examples)
    except SkipCell as reason:
        pytest.skip(str(reason))
    return checked(method.attribute(model, examples, LEVELS[level]), method, model, LEVELS[level])


@functools.cache
def in_bfloat16(family: str) -> Model:
    return Model(fresh(family).bfloat16(), tokenizer())


def test_every_method_is_importable_and_describes_itself() -> None:
    assert methods.names()
    assert not methods.broken
    for cls in methods:
        assert cls.name and cls.paper and cls.description and cls.levels
        assert cls.__doc__


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize(("name", "level", "options"), cases())
def test_scores_do_not_depend_on_batch_size_neighbours_or_padding(
    name: str, level: str, options: dict[str, Any], family: str
) -> None:
    reference = attributed(hooked(family), name, level, options)
    assert tuple(reference.values.shape) == LEVELS[level].shape(hooked(family))
    assert reference.names == LEVELS[level].names(hooked(family))
    assert float(reference.values.std()) > 0
    for batch_size, padding_side in ((1, "left"), (2, "right")):
        model = hooked(family, batch_size=batch_size, padding_side=padding_side)
        found = attributed(model, name, level, options)
        # query neurons divide by sums that can be small, which magnifies rounding
        assert close(found.values, reference.values, 1e-3 if name == "query_neurons" else 1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize(("name", "level", "options"), cases())
def test_every_method_works_in_bfloat16(name: str, level: str, options: dict[str, Any], family: str) -> None:
    assert attributed(in_bfloat16(family), name, level, options).values.dtype == torch.float32


# --- the contract's refusals ------------------------------------------------------------------------------------------


@dataclass
class Returning(Method):
    """Returns what it is told to."""

    name = "returning"
    levels = ("heads",)
    value: Any = None

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Any:
        return self.value


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    model, level = hooked("llama"), LEVELS["heads"]
    with pytest.raises(MethodError, match=r"returning.* returned shape \(4, 3, 5\), expected shape \(4, 3, 4\)"):
        Returning(torch.zeros(4, 3, 5)).attribute(model, EXAMPLES, level)
    with pytest.raises(MethodError, match=r"returned a list, expected shape \(4, 3, 4\) \(examples, layer, head\)"):
        Returning([1.0]).attribute(model, EXAMPLES, level)
    transposed = Scores(torch.zeros(4, 3), "heads", level.names(model))
    with pytest.raises(MethodError, match=r"shape \(4, 3\), expected shape \(3, 4\)"):
        checked(transposed, Returning(), model, level)
    with pytest.raises(MethodError, match=r"returned shape \(3, 4\), expected Scores"):
        checked(torch.zeros(3, 4), Returning(), model, level)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_by_component_name(bad: float) -> None:
    model, level = hooked("llama"), LEVELS["heads"]
    values = torch.zeros(4, 3, 4)
    values[2, 1, 3] = bad
    method = Returning(values)
    scores = method.attribute(model, EXAMPLES, level)
    with pytest.raises(MethodError, match=r"1 scores that are NaN or infinite, the first for a1\.h3"):
        checked(scores, method, model, level)


@pytest.mark.parametrize("name", methods.names())
def test_a_level_a_method_lacks_is_refused_by_name(name: str) -> None:
    method = methods.make(name)
    for level in (LEVELS[name] for name in SITES if name not in method.levels):
        with pytest.raises(MethodError, match=f"{name} scores .* not {level.name}"):
            method.attribute(hooked("llama"), EXAMPLES, level)


def test_a_method_without_score_batch_says_what_to_implement() -> None:
    class Nothing(Method):
        name, levels = "nothing", ("heads",)

    with pytest.raises(NotImplementedError, match="score_batch nor attribute"):
        Nothing().attribute(hooked("llama"), EXAMPLES, LEVELS["heads"])


def test_wrong_options_are_refused_with_what_is_expected() -> None:
    with pytest.raises(ConfigurationError, match=r"'nought'.*counterfactual, mean, zero"):
        methods.make("eap_ig", {"replacement": "nought"})
    with pytest.raises(ConfigurationError, match=r"'sideways'.*'noising' or 'denoising'"):
        methods.make("activation_patching", {"direction": "sideways"})
    with pytest.raises(UnknownNameError, match=r"'step'.*'steps'"):
        methods.make("eap_ig", {"step": 3})
    with pytest.raises(UnknownNameError, match="did you mean 'eap_ig'"):
        methods.make("eap-ig")


@pytest.mark.parametrize("name", ["activation_patching", "attribution_patching", "eap_ig", "integrated_gradients"])
def test_counterfactual_methods_say_so_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigurationError, match="counterfactual"):
        scores_of(hooked("llama"), name, "heads", [example([5, 6, 7])])
    with pytest.raises(ConfigurationError, match="counterfactual"):
        scores_of(hooked("llama"), "activation_patching", "heads", replacement="zero", direction="denoising")


def test_examples_without_a_needed_mark_are_skipped_with_the_marks_name() -> None:
    method = methods.make("in_context_heads")
    method.check_examples(EXAMPLES)
    with pytest.raises(SkipCell, match="'label'"):
        method.check_examples([example([5, 6, 7])])


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_survive_a_round_trip_through_their_file(tmp_path: Path) -> None:
    model = hooked("llama")
    scores = methods.make("cna", {"candidates": 5}).attribute(model, EXAMPLES, LEVELS["neurons"])
    file = tmp_path / "scores.safetensors"
    scores.save(file, method="cna", model="tiny")
    again = Scores.load(file)
    assert torch.equal(again.values, scores.values)
    assert (again.level, again.names, again.metadata) == (scores.level, scores.names, scores.metadata)


def test_a_file_that_holds_no_scores_is_refused_by_path(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weights": torch.zeros(2)}, file)
    with pytest.raises(MethodError, match=r"other.safetensors is not a score file"):
        Scores.load(file)


def test_rankings_put_high_scores_first_and_keep_ties_in_order() -> None:
    scores = Scores(torch.tensor([[1.0, -5.0], [1.0, 2.0]]), "heads", ["a0.h0", "a0.h1", "a1.h0", "a1.h1"])
    assert scores.ranking().tolist() == [3, 0, 2, 1]
    assert scores.ranking(absolute=True).tolist() == [1, 3, 0, 2]
    assert scores.top(2) == [("a1.h1", 2.0), ("a0.h0", 1.0)]


def test_levels_are_found_by_name() -> None:
    assert get_level("neurons") is LEVELS["neurons"]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("log_prob_increase", "exact_top_k"),
        ("query_neurons", "top_k"),
        ("cna", "n_heads"),
        ("cna", "candidates"),
        ("eap_ig", "steps"),
        ("integrated_gradients", "steps"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, "3", True])
def test_a_count_that_is_none_is_refused_by_name(name: str, option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} of {name} is {value!r}, expected a whole number"):
        methods.make(name, {option: value})
