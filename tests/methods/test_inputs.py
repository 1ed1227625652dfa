"""Methods that score patches and tokens, against their definitions written out on plain runs of unpadded examples.

Long because every method's literal twin stands in it, one section a method.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import Occlusion as CaptumOcclusion
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration, SiglipVisionConfig

from attriboard.components import INPUTS, LEVELS, InputLevel
from attriboard.errors import AttriboardError, ConfigurationError, ExampleError, MethodError, SkipCell, UnknownNameError
from attriboard.interventions import REPLACEMENTS, input_replacement
from attriboard.log_prob import FrozenUnembedding, last_token, top_heads
from attriboard.method import ReplacingMethod, checked_inputs, methods
from attriboard.model import EncodedExample, Model
from tests.bench.models import (
    EXAMPLES,
    FOUR,
    GRID,
    IMAGE_ID,
    PATCH,
    WITHOUT_FOILS,
    Literal,
    Plain,
    close,
    example,
    fresh,
    fresh_llava,
    get,
    hooked,
    in_double,
    literal_outputs,
    metric,
    pixels,
    plain_run,
    slope,
    tiny,
    tiny_llava,
    tiny_processor,
    tokenizer,
    vision_examples,
)
from tests.bench.rounding import same_order, within_rounding

CASES = [*((family, "tokens") for family in FOUR), ("llava", "tokens"), ("llava", "patches")]
"""Model and level."""


# --- plain runs of inputs with and without a picture ------------------------------------------------------------------


def without_foils(examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """Every other example explained by log p(answer)."""
    return [replace(e, foil=None) if i % 2 else e for i, e in enumerate(examples)]


def examples_for(family: str) -> Sequence[EncodedExample]:
    return without_foils(vision_examples()) if family == "llava" else WITHOUT_FOILS


def model_for(family: str, batch_size: int = 16, padding_side: str = "left") -> Model:
    return tiny_llava(batch_size, padding_side) if family == "llava" else hooked(family, batch_size, padding_side)


@functools.cache
def plain_llava() -> Plain:
    return Plain("llava", fresh_llava())


def plain_for(family: str) -> Plain:
    return plain_llava() if family == "llava" else plain_run(family)


def positions(e: EncodedExample, level: str) -> list[int]:
    return [i for i, token in enumerate(e.tokens) if (token == IMAGE_ID) == (level == "patches")]


def embeddings(plain: Plain, e: EncodedExample, counterfactual: bool = False) -> Tensor:
    """``[T, d_model]``: token embeddings, with a picture's features at its placeholders."""
    tokens = (e.counterfactual or ()) if counterfactual else e.tokens
    found = get(plain.hf, plain.parts.embed)(torch.tensor(tokens)).clone()
    image = e.example.image
    if counterfactual and e.example.counterfactual_image is not None:
        image = e.example.counterfactual_image
    if image is not None:
        (features,) = plain.hf.get_image_features(pixels(image)).pooler_output
        found[[i for i, token in enumerate(tokens) if token == IMAGE_ID]] = features
    return found


def baseline(plain: Plain, e: EncodedExample, level: str, replacement: str) -> Tensor:
    """``[T, d_model]``: the embeddings with every position of the level replaced."""
    found, at = embeddings(plain, e), positions(e, level)
    values = {
        "zero": torch.zeros_like(found[at]),
        "mean": found[at].mean(0).expand(len(at), -1),
        "counterfactual": embeddings(plain, e, counterfactual=True)[at],
    }
    found[at] = values[replacement]
    return found


def outcome(plain: Plain, e: EncodedExample, points: Tensor) -> Tensor:
    """``[N]``: the metric with each of ``points`` ``[N, T, d_model]`` as embeddings, a plain run each."""
    return torch.stack([metric(plain.run(e.tokens, inputs_embeds=point[None])[0], e) for point in points])


def worths(plain: Plain, e: EncodedExample, level: str, replacement: str) -> Callable[[Sequence[int]], float]:
    """From the indices (into the level's positions) that keep their embedding to the metric, the others replaced."""
    own, other, at = embeddings(plain, e), baseline(plain, e, level, replacement), positions(e, level)

    @functools.cache
    def worth(kept: frozenset[int]) -> float:
        point = own.clone()
        for i, position in enumerate(at):
            if i not in kept:
                point[position] = other[position]
        return float(outcome(plain, e, point[None]))

    return lambda kept: worth(frozenset(kept))


def attention(plain: Plain, points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """By layer the attention weights ``[H, T, T]`` and the values ``[H, T, d_head]``, expanded to query heads."""
    patterns = plain.hf(inputs_embeds=points[None], output_attentions=True, use_cache=False).attentions
    cache = DynamicCache()  # without a config it keeps every position, also of sliding windows
    plain.hf(inputs_embeds=points[None], past_key_values=cache, use_cache=True)
    values = [layer.values[0].repeat_interleave(plain.n_heads // layer.values.shape[1], 0) for layer in cache.layers]
    return [p[0] for p in patterns], values


def found_for(
    family: str, level: str, name: str, examples: Sequence[EncodedExample] | None = None, **options: Any
) -> list[Tensor]:
    """The method's scores, each example's flattened in the order of the level's positions."""
    method = methods.make(name, options)
    examples = examples_for(family) if examples is None else examples
    found = checked_inputs(method.each(model_for(family, 3), examples, INPUTS[level]), method)
    shapes = [(GRID, GRID) if level == "patches" else (len(positions(e, level)),) for e in examples]
    assert [tuple(f.shape) for f in found] == shapes
    return [f.flatten() for f in found]


def agree(found: Sequence[Tensor], expected: Sequence[Tensor], rel: float = 1e-4) -> None:
    assert len(found) == len(expected) > 0
    for one, truth in zip(found, expected):
        assert float(truth.abs().max()) > 0
        assert close(one, truth.detach().float(), rel)


# --- log-probability increase -----------------------------------------------------------------------------------------


def literal_patch_increase(
    plain: Plain, e: EncodedExample, level: str, heads: int | str, skip: int, published: bool = False
) -> Tensor:
    """A2 of every head, then A3 of every position through the best of them, one vector at a time."""
    points, layers = embeddings(plain, e), range(plain.n_layers)
    read = [(site, layer) for site in ("resid_pre", "resid_post", "z") for layer in layers]
    _, seen = plain.run(e.tokens, read=read, inputs_embeds=points[None])
    u = Literal(plain, seen["resid_post", plain.n_layers - 1][-1], published)
    patterns, values = attention(plain, points)
    ranked = []
    for layer in range(skip, plain.n_layers):
        whole, base = seen["z", layer][-1], seen["resid_pre", layer][-1]
        for h, output in enumerate(literal_outputs(plain, "heads", whole, layer)):
            ranked.append((float(u.increase(output, base, e.answer)), layer, h))
    ranked.sort(reverse=True)
    scores = torch.zeros(len(e.tokens), dtype=torch.float64)
    for _, layer, h in ranked if heads == "all" else ranked[: int(heads)]:
        whole, base = seen["z", layer][-1], seen["resid_pre", layer][-1]
        per_dimension = literal_outputs(plain, "attn_neurons", whole, layer).view(*whole.shape, -1)[h]
        for p in range(len(e.tokens)):
            share = patterns[layer][h, -1, p] * values[layer][h, p] / whole[h]
            scores[p] += u.increase((share[:, None] * per_dimension).sum(0), base, e.answer)
    return scores[positions(e, level)]


@pytest.mark.parametrize(("heads", "skip"), [(1, 1), (3, 0), ("all", 1), ("all", 2), (100, 2)])
@pytest.mark.parametrize(("family", "level"), CASES)
def test_patch_log_prob_increase_is_what_the_best_heads_gain_from_each_position(
    family: str, level: str, heads: int | str, skip: int
) -> None:
    plain = plain_for(family)
    everything = 100 if heads == 100 else heads  # more than there are
    expected = [literal_patch_increase(plain, e, level, everything, skip) for e in examples_for(family)]
    found = found_for(family, level, "patch_log_prob_increase", heads=heads, skip_layers=skip)
    for one, truth in zip(found, expected):
        assert torch.allclose(one, truth.float(), atol=2e-5)
        assert float(truth.abs().max()) > 1e-3


def test_the_published_patch_increase_leaves_the_final_norms_bias_out() -> None:
    expected = [literal_patch_increase(plain_run("gpt2"), e, "tokens", 2, 1, published=True) for e in EXAMPLES]
    found = found_for("gpt2", "tokens", "patch_log_prob_increase", EXAMPLES, heads=2, published=True)
    assert all(torch.allclose(one, truth.float(), atol=2e-5) for one, truth in zip(found, expected))


def test_patch_log_prob_increase_takes_one_forward_pass_an_image() -> None:
    model = tiny_llava()
    methods.make("patch_log_prob_increase").each(model, vision_examples(), INPUTS["patches"])
    assert model.vision is not None and model.cost.backward == 0
    rows = model.cost.forward - sum(map(model.full_pass, vision_examples()))
    # of a few heads for the best one, and of the best one's positions; 9 patches
    assert 0 < rows <= sum(2 * model.W_U.numel() * (model.n_layers * (model.n_heads + 3) + 9) for _ in range(4))


@pytest.mark.parametrize("k", [1, 4, 11])
@pytest.mark.parametrize("family", FOUR)
def test_top_heads_are_those_that_a_ranking_of_all_heads_puts_first(family: str, k: int) -> None:
    model = hooked(family)
    for e in EXAMPLES:
        batch = model.batch([e])
        found, last = last_token(model, batch, ("resid_pre", "z"))
        unembedding = FrozenUnembedding(model, last)
        for skip in (0, 1, 2) if k <= 4 else (0,):
            top = top_heads(model, unembedding, found["resid_pre"], found["z"], batch.answer, k, skip)[0]
            every = methods.make("log_prob_increase").attribute(model, [e], LEVELS["heads"]).values.flatten()
            every[: skip * model.n_heads] = -torch.inf
            assert len(top) == k and same_order(top.tolist(), every, unembedding.logits(last), terms=2)


def test_heads_that_write_nothing_gain_nothing_from_any_position() -> None:
    """One head of the second layer alone writes: it is all that is found, and nothing once its layer is skipped."""
    hf, head = fresh("llama"), 2
    for i, layer in enumerate(hf.model.layers):
        projection = layer.self_attn.o_proj.weight
        kept = projection.view(len(projection), 4, -1)[:, head].clone()
        projection.zero_()
        if i == 1:
            projection.view(len(projection), 4, -1)[:, head] = kept
    model, plain = Model(hf, tokenizer(), prove=False), Plain("llama", hf)
    method = functools.partial(methods.make, "patch_log_prob_increase")
    everything = method({"heads": "all", "skip_layers": 0}).each(model, EXAMPLES, INPUTS["tokens"])
    skipped = method({"heads": "all", "skip_layers": 2}).each(model, EXAMPLES, INPUTS["tokens"])
    for e, one, none in zip(EXAMPLES, everything, skipped):
        points = embeddings(plain, e)
        _, seen = plain.run(e.tokens, read=[("resid_pre", 1), ("resid_post", 2)], inputs_embeds=points[None])
        u, base = Literal(plain, seen["resid_post", 2][-1]), seen["resid_pre", 1][-1]
        patterns, values = attention(plain, points)
        block = hf.model.layers[1].self_attn.o_proj.weight.view(len(base), 4, -1)[:, head]
        truth = [u.increase(block @ (a * v), base, e.answer) for a, v in zip(patterns[1][head, -1], values[1][head])]
        assert torch.allclose(one, torch.stack(truth).float(), atol=2e-5)
        assert float(one.abs().max()) > 1e-3
        assert torch.allclose(none, torch.zeros(len(e.tokens)), atol=1e-5)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "level"), CASES)
def test_mean_attention_is_the_last_rows_mean_over_layers_and_heads(family: str, level: str) -> None:
    plain, expected = plain_for(family), []
    for e in examples_for(family):
        patterns, _ = attention(plain, embeddings(plain, e))
        total = torch.zeros(len(e.tokens))
        for pattern in patterns:
            for head in pattern:
                total += head[-1]
        expected.append((total / (len(patterns) * plain.n_heads))[positions(e, level)])
    agree(found_for(family, level, "mean_attention"), expected)


@pytest.mark.parametrize(("family", "level"), CASES)
def test_attention_rollout_multiplies_half_attention_half_identity_upwards(family: str, level: str) -> None:
    plain, expected = plain_for(family), []
    for e in examples_for(family):
        patterns, _ = attention(plain, embeddings(plain, e))
        rollout = torch.eye(len(e.tokens))
        for pattern in patterns:
            mixed = pattern.mean(0) + torch.eye(len(e.tokens))
            rollout = (mixed / mixed.sum(-1, keepdim=True)) @ rollout
        assert float(rollout[-1].sum()) == pytest.approx(1, abs=1e-5)
        expected.append(rollout[-1][positions(e, level)])
    agree(found_for(family, level, "attention_rollout"), expected)


def relevancy_step(pattern: Tensor, gradient: Tensor) -> Tensor:
    """``[T, T]``: the mean over heads of what is positive of gradient times attention, head by head."""
    heads = [torch.clamp(g * a, min=0) for g, a in zip(gradient.detach(), pattern.detach())]
    return torch.stack(heads).mean(0)


def row_normalised(relevancy: Tensor) -> Tensor:
    """Step 5 of the published definition, without adding the identity again."""
    rest = relevancy - torch.eye(len(relevancy))
    total = rest.sum(-1, keepdim=True)
    total[total == 0] = 1
    return rest / total


@pytest.mark.parametrize(("family", "level"), CASES)
def test_relevancy_through_the_language_model_is_its_definition(family: str, level: str) -> None:
    plain, expected = plain_for(family), []
    for e in examples_for(family):
        with torch.enable_grad():
            points = embeddings(plain, e)[None].requires_grad_()
            output = plain.hf(inputs_embeds=points, output_attentions=True, use_cache=False)
            gradients = torch.autograd.grad(metric(output.logits[0, -1], e), output.attentions)
        relevancy = torch.eye(len(e.tokens))
        for pattern, gradient in zip(output.attentions, gradients):
            relevancy = relevancy + relevancy_step(pattern[0], gradient[0]) @ relevancy
        expected.append(row_normalised(relevancy)[-1][positions(e, level)])
    agree(found_for(family, level, "relevancy"), expected)


def test_relevancy_through_the_vision_tower_is_its_definition() -> None:
    plain, expected = plain_llava(), []
    parts = plain.hf.model
    for e in examples_for("llava"):
        at = positions(e, "patches")
        with torch.enable_grad():
            tower = parts.vision_tower(
                pixels(e.example.image).requires_grad_(), output_attentions=True, output_hidden_states=True
            )
            features = parts.multi_modal_projector(tower.hidden_states[-2][:, 1:])
            points = get(plain.hf, plain.parts.embed)(torch.tensor([e.tokens])).clone()
            points[0, at] = features[0]
            output = plain.hf(inputs_embeds=points, output_attentions=True, use_cache=False)
            patterns = [*output.attentions, *tower.attentions]
            gradients = torch.autograd.grad(metric(output.logits[0, -1], e), patterns, allow_unused=True)
        language, seen = gradients[: len(output.attentions)], gradients[len(output.attentions) :]
        relevancy = torch.eye(len(e.tokens))
        for pattern, gradient in zip(output.attentions, language):
            relevancy = relevancy + relevancy_step(pattern[0], gradient[0]) @ relevancy
        onwards = torch.zeros(len(at) + 1, len(at) + 1)
        onwards[0, 0] = 1
        onwards[1:, 1:] = relevancy[at][:, at]
        assert [gradient is None for gradient in seen] == [False, False, True], "the last layer is not looked at"
        for pattern, gradient in zip(tower.attentions[:2], seen[:2]):
            onwards = onwards + relevancy_step(pattern[0], gradient[0]) @ onwards
        expected.append(row_normalised(onwards)[0, 1:])
    agree(found_for("llava", "patches", "relevancy", through="vision_tower"), expected)


def test_the_towers_patterns_are_the_ones_it_uses_and_its_attention_is_restored() -> None:
    model, image = tiny_llava(), vision_examples()[0].example.image
    assert model.vision is not None
    inputs = model.vision.inputs("<image>", image)
    configs = [layer.config for layer in model.vision.layers]
    before = [config._attn_implementation for config in configs]
    with torch.no_grad():
        plain = model.vision.features(inputs)
        with model.vision.patterns() as found:
            assert torch.allclose(model.vision.features(inputs), plain, atol=1e-5)
    expected = plain_llava().hf.model.vision_tower(pixels(image), output_attentions=True).attentions
    assert len(found) == len(expected) == 3
    assert all(close(a, b, 1e-5) for a, b in zip(found, expected))
    assert not any(pattern.requires_grad for pattern in found)
    assert [config._attn_implementation for config in configs] == before
    assert not any(hasattr(layer, "_attriboard_pattern") for layer in model.vision.layers)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["norm", "input"])
@pytest.mark.parametrize(("family", "level"), CASES)
def test_gradient_saliency_is_autograd_written_out(family: str, level: str, kind: str) -> None:
    plain, expected = plain_for(family), []
    for e in examples_for(family):
        with torch.enable_grad():
            points = embeddings(plain, e).requires_grad_()
            (gradient,) = torch.autograd.grad(outcome(plain, e, points[None]).sum(), points)
        rows = zip(gradient[positions(e, level)], points.detach()[positions(e, level)])
        expected.append(torch.stack([g.square().sum().sqrt() if kind == "norm" else g @ x for g, x in rows]))
    agree(found_for(family, level, "gradient_saliency", kind=kind), expected)


@pytest.mark.parametrize("family", FOUR)
def test_gradient_saliency_is_the_slope_of_the_metric(family: str) -> None:
    double = in_double(tiny(family))
    model, plain, e = Model(double, batch_size=1, prove=False), Plain(family, double), EXAMPLES[1]
    points = embeddings(plain, e)

    def along(position: int, direction: Tensor) -> Tensor:
        def moved(t: float) -> Tensor:
            point = points.clone()
            point[position] += t * direction
            return outcome(plain, e, point[None])[0]

        return slope(moved)

    (by_input,) = methods.make("gradient_saliency", {"kind": "input"}).each(model, [e], INPUTS["tokens"])
    (by_norm,) = methods.make("gradient_saliency").each(model, [e], INPUTS["tokens"])
    for position in range(len(e.tokens)):
        expected = float(along(position, points[position]))
        assert float(by_input[position]) == pytest.approx(expected, rel=1e-3, abs=3e-4)
    axes = torch.eye(points.shape[1], dtype=points.dtype)
    whole = torch.stack([along(2, axis) for axis in axes])
    assert float(by_norm[2]) == pytest.approx(float(whole.norm()), rel=1e-3)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize(("family", "level"), CASES)
def test_integrated_gradients_of_inputs_equal_captums(family: str, level: str, replacement: str) -> None:
    plain, expected, examples = plain_for(family), [], examples_for(family)
    if level == "patches" and replacement == "counterfactual":
        examples = [e for e in examples if e.example.counterfactual_image is not None]
    elif family == "llava" and replacement == "counterfactual":
        examples = [e for e in examples if e.example.counterfactual is not None]
    sizes = []
    for e in examples:
        start, end = baseline(plain, e, level, replacement), embeddings(plain, e)
        with torch.enable_grad():
            captum = CaptumIntegratedGradients(lambda points, e=e: outcome(plain, e, points))
            parts = captum.attribute(end[None], start[None], n_steps=4, method="riemann_middle")
        assert float(parts[0].abs().sum(-1)[positions(e, "tokens" if level == "patches" else "patches")].sum()) == 0
        expected.append(parts[0].sum(-1)[positions(e, level)])
        step = end - start
        gradient = torch.where(step == 0, 0.0, parts[0] / step)
        sizes.append((step.norm(dim=-1) * gradient.norm(dim=-1)).detach())  # of the products before they cancel
    options: dict[str, Any] = {"steps": 4, "replacement": replacement}
    found = found_for(family, level, "integrated_gradients", examples, **options)
    assert len(found) == len(expected) > 0
    for one, truth, size in zip(found, expected, sizes):
        assert float(truth.abs().max()) > 0
        assert within_rounding(one, truth, size, rel=1e-4)


@pytest.mark.parametrize("replacement", ["mean", "counterfactual"])
@pytest.mark.parametrize(("family", "level"), CASES)
def test_integrated_gradients_of_inputs_sum_to_the_metric_lost_with_the_level(
    family: str, level: str, replacement: str
) -> None:
    plain, e = plain_for(family), examples_for(family)[2 if family == "llava" else 0]
    (found,) = found_for(family, level, "integrated_gradients", [e], steps=200, replacement=replacement)
    ends = torch.stack([embeddings(plain, e), baseline(plain, e, level, replacement)])
    whole, without = outcome(plain, e, ends).tolist()
    assert abs(whole - without) > 0.01
    assert float(found.sum()) == pytest.approx(whole - without, abs=5e-3)


# --- occlusion and Shapley values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize(("family", "level"), CASES)
def test_occlusion_is_a_plain_run_per_position(family: str, level: str, replacement: str) -> None:
    plain = plain_for(family)
    found = found_for(family, level, "occlusion", replacement=replacement)
    for e, one in zip(examples_for(family), found):
        worth, n = worths(plain, e, level, replacement), len(positions(e, level))
        lost = [worth(range(n)) - worth([i for i in range(n) if i != out]) for out in range(n)]
        assert torch.allclose(one, torch.tensor(lost), atol=3e-5)
        own = baseline(plain, e, level, replacement) != embeddings(plain, e)
        assert float(one.abs().max()) > 1e-3 or not bool(own.any())


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(("family", "level"), [("llama", "tokens"), ("llava", "patches")])
def test_occlusion_of_windows_equals_captums(family: str, level: str, window: int) -> None:
    plain, expected = plain_for(family), []
    for e in examples_for(family):
        at, own, other = positions(e, level), embeddings(plain, e), baseline(plain, e, level, "mean")
        shape = (GRID, GRID) if level == "patches" else (len(at),)

        def present(
            masks: Tensor, e: EncodedExample = e, at: list[int] = at, own: Tensor = own, other: Tensor = other
        ) -> Tensor:
            points = own.repeat(len(masks), 1, 1)
            for point, mask in zip(points, masks.flatten(1)):
                for i, position in enumerate(at):
                    if mask[i] == 0:
                        point[position] = other[position]
            return outcome(plain, e, points)

        captum = CaptumOcclusion(present)
        expected.append(captum.attribute(torch.ones(1, *shape), (window,) * len(shape)).flatten())
        if window == 1:
            assert close(FeatureAblation(present).attribute(torch.ones(1, *shape)).flatten(), expected[-1])
    found = found_for(family, level, "occlusion", replacement="mean", window=window)
    for one, truth in zip(found, expected):
        assert torch.allclose(one, truth.float(), atol=3e-5)


def shapley(worth: Callable[[Sequence[int]], float], n: int) -> tuple[Tensor, Tensor]:
    """``[n]`` Shapley values and standard deviations of a player's gain over all orders, from every order."""
    gains = torch.zeros(math.factorial(n), n, dtype=torch.float64)
    for row, order in zip(gains, itertools.permutations(range(n))):
        for i, player in enumerate(order):
            row[player] = worth(order[: i + 1]) - worth(order[:i])
    return gains.mean(0), gains.std(0, correction=0)


@pytest.mark.parametrize(("family", "index"), [("llama", 1), ("gpt2", 1), ("llava", 0)])
@pytest.mark.parametrize("replacement", ["mean", "zero"])
def test_sampled_shapley_values_are_near_those_of_every_order(family: str, index: int, replacement: str) -> None:
    plain, e, samples = plain_for(family), examples_for(family)[index], 150
    n = len(positions(e, "tokens"))
    assert n <= 5
    worth = worths(plain, e, "tokens", replacement)
    truth, spread = shapley(worth, n)
    (found,) = found_for(family, "tokens", "shap", [e], samples=samples, replacement=replacement)
    assert bool(((found - truth).abs() <= 5 * spread / samples**0.5 + 1e-4).all())
    assert float(found.sum()) == pytest.approx(worth(range(n)) - worth([]), abs=1e-3)
    assert float(truth.abs().max()) > 0.05
    (other,) = found_for(family, "tokens", "shap", [e], samples=samples, replacement=replacement, seed=1)
    assert not torch.equal(found, other)


def test_every_effect_of_a_model_without_attention_is_at_the_last_token() -> None:
    """Nothing moves between positions, so only the last one counts, and all exact effects of it agree."""
    hf = fresh("llama")
    for layer in hf.model.layers:
        layer.self_attn.o_proj.weight.zero_()
    model, plain = Model(hf, tokenizer(), prove=False), Plain("llama", hf)
    for e in EXAMPLES:
        n = len(e.tokens)
        worth = worths(plain, e, "tokens", "zero")
        lost = worth(range(n)) - worth(range(n - 1))
        assert abs(lost) > 0.05
        for name, options in {
            "occlusion": {"replacement": "zero"},
            "shap": {"replacement": "zero", "samples": 2},
            "integrated_gradients": {"replacement": "mean"},
            "gradient_saliency": {},
            "relevancy": {},
        }.items():
            (found,) = methods.make(name, options).each(model, [e], INPUTS["tokens"])
            if name != "relevancy":
                assert float(found[-1].abs()) > 1e-3
            assert torch.allclose(found[:-1], torch.zeros(n - 1), atol=1e-5)
            if name in ("occlusion", "shap"):
                assert float(found[-1]) == pytest.approx(lost, abs=3e-5)


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "level"), [("llama", "tokens"), ("llava", "tokens"), ("llava", "patches")])
def test_random_scores_of_inputs_come_from_the_seed_and_the_example_alone(family: str, level: str) -> None:
    examples = examples_for(family)
    found, again = found_for(family, level, "random"), found_for(family, level, "random")
    assert all(torch.equal(a, b) for a, b in zip(found, again))
    backwards = found_for(family, level, "random", examples[::-1])
    assert all(torch.equal(a, b) for a, b in zip(found, backwards[::-1]))
    shortest = min(len(f) for f in found)
    firsts = {tuple(f[:shortest].tolist()) for f in (*found, *found_for(family, level, "random", seed=1))}
    assert len(firsts) == 2 * len(examples), "every example and every seed has its own"
    assert len(torch.cat(found).unique()) == sum(len(f) for f in found)


def test_the_center_prior_falls_with_the_distance_from_the_middle() -> None:
    for e in vision_examples():
        (found,) = found_for("llava", "patches", "center_prior", [e])
        for i, (row, column) in enumerate(itertools.product(range(GRID), repeat=2)):
            distance = math.hypot((row + 0.5) / GRID - 0.5, (column + 0.5) / GRID - 0.5)
            assert float(found[i]) == pytest.approx(-distance, abs=1e-6)


def test_color_contrast_is_each_patchs_distance_from_the_median_of_what_the_model_sees() -> None:
    model = tiny_llava()
    assert model.vision is not None
    for e in vision_examples():
        seen = np.asarray(model.vision.see(e.example.image)).astype(float) / 255
        median = np.sort(seen.reshape(-1, 3), axis=0)[(seen.shape[0] * seen.shape[1] - 1) // 2]
        (found,) = found_for("llava", "patches", "color_contrast", [e])
        for i, (row, column) in enumerate(itertools.product(range(GRID), repeat=2)):
            patch = seen[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
            expected = np.linalg.norm(patch.mean((0, 1)) - median)
            assert float(found[i]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("square", range(GRID * GRID))
def test_color_contrast_finds_the_one_patch_that_is_not_background(square: int) -> None:
    row, column = divmod(square, GRID)
    picture = np.full((PATCH * GRID, PATCH * GRID, 3), (90, 120, 100), dtype=np.uint8)
    picture[PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)] = (230, 20, 30)
    blank = vision_examples()[0].example
    e = tiny_llava().encode(replace(blank, image=Image.fromarray(picture), counterfactual_image=None))
    (found,) = found_for("llava", "patches", "color_contrast", [e])
    assert int(found.argmax()) == square
    assert int((found > 1e-4).sum()) == 1


# --- what stands in place of a position -------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize(("family", "level"), [*CASES, ("gemma", "tokens")])
def test_replacement_embeddings_are_each_examples_own(
    family: str, level: str, replacement: str, padding_side: str
) -> None:
    model, plain, examples = model_for(family, padding_side=padding_side), plain_for(family), examples_for(family)
    batch = model.batch(examples)
    assert torch.equal(model.embeddings(batch), model.run(batch, ["hook_embed"])["hook_embed"])
    found = input_replacement(model, batch, INPUTS[level], replacement)
    for row, start, e in zip(found, model.first_position(batch).tolist(), examples):
        assert close(row[start : start + len(e.tokens)], baseline(plain, e, level, replacement))


def test_replacement_embeddings_are_refused_where_there_are_none() -> None:
    model, level = hooked("llama"), INPUTS["tokens"]
    lonely = model.batch([example([5, 6, 7])])
    with pytest.raises(ConfigurationError, match="counterfactual"):
        input_replacement(model, lonely, level, "counterfactual")
    with pytest.raises(UnknownNameError, match="'means'"):
        input_replacement(model, lonely, level, "means")
    llava = tiny_llava()
    e = next(e for e in vision_examples() if e.counterfactual is not None)
    moved = replace(e, counterfactual=e.tokens[1:] + e.tokens[:1])
    with pytest.raises(ExampleError, match="images at different positions"):
        input_replacement(llava, llava.batch([moved]), INPUTS["patches"], "counterfactual")


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("level", ["patches", "tokens"])
def test_placed_values_are_taken_again(level: str, padding_side: str) -> None:
    model, chosen = tiny_llava(padding_side=padding_side), INPUTS[level]
    assert isinstance(chosen, InputLevel)
    batch = model.batch(vision_examples())
    values = [torch.randn(chosen.example_shape(model, e)) for e in vision_examples()]
    placed = chosen.place(model, batch, values)
    assert all(torch.equal(a, b) for a, b in zip(chosen.take(model, batch, placed), values))
    assert float(placed[~chosen.columns(model, batch)].abs().max()) == 0


# --- every method -----------------------------------------------------------------------------------------------------


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "patch_log_prob_increase": [{"heads": "all"}],
    "relevancy": [{"through": "vision_tower"}],
    "gradient_saliency": [{"kind": "input"}],
    "occlusion": [{"window": 2}],
}


def cases() -> list[Any]:
    """Every registered method at each of its input levels, on text and on pictures, with what it can be set to."""
    found = []
    for cls in methods:
        for level in (name for name in cls.levels if name in INPUTS):
            settings = [{}, *OPTIONS.get(cls.name, [])]
            if issubclass(cls, ReplacingMethod):
                settings += [{"replacement": r} for r in REPLACEMENTS if r != cls().replacement]
            for options in settings:
                if options.get("through") == "vision_tower" and level == "tokens":
                    continue
                for family in ("llava",) if level == "patches" else ("llava", *FOUR):
                    named = "-".join([cls.name, level, family, *map(str, options.values())])
                    found.append(pytest.param(cls.name, level, family, options, id=named))
    return found


@pytest.mark.parametrize(("name", "level", "family", "options"), cases())
def test_scores_of_inputs_do_not_depend_on_batch_size_neighbours_or_padding(
    name: str, level: str, family: str, options: dict[str, Any]
) -> None:
    method, examples = methods.make(name, options), list(examples_for(family))
    together = method.each(model_for(family), examples, INPUTS[level])
    alone = [method.each(model_for(family), [e], INPUTS[level])[0] for e in examples]
    other_side = method.each(model_for(family, 3, "right"), examples[::-1], INPUTS[level])[::-1]
    model = model_for(family)
    logits = model.run(model.batch(examples)).logits
    for a, b, c, e, size in zip(together, alone, other_side, examples, logits):
        level_of = INPUTS[level]
        assert isinstance(level_of, InputLevel)
        assert tuple(b.shape) == level_of.example_shape(model, e)
        # the difference of two metrics carries the rounding of four logits, however small it is itself
        assert within_rounding(a, b, size, terms=4, rel=1e-4)
        assert within_rounding(c, b, size, terms=4, rel=1e-4)
    assert float(torch.cat([f.flatten() for f in together]).std()) > 0


@functools.cache
def llava_in_bfloat16() -> Model:
    processor = tiny_processor()
    return Model(fresh_llava().bfloat16(), processor.tokenizer, processor=processor)


@pytest.mark.parametrize(("name", "level", "family", "options"), [c for c in cases() if c.values[2] == "llava"])
def test_every_method_of_inputs_works_in_bfloat16(name: str, level: str, family: str, options: dict[str, Any]) -> None:
    model = llava_in_bfloat16()
    examples = [model.encode(e.example) for e in vision_examples()[:2]]
    method = methods.make(name, options)
    found = checked_inputs(method.each(model, examples, INPUTS[level]), method)
    assert all(f.dtype == torch.float32 for f in found)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patch_log_prob_increase", {"heads": 0}, "heads of patch_log_prob_increase is 0, .* or 'all'"),
        ("patch_log_prob_increase", {"heads": "some"}, "heads of .* is 'some'"),
        ("patch_log_prob_increase", {"heads": True}, "heads of .* is True"),
        ("patch_log_prob_increase", {"skip_layers": -1}, "skip_layers of .* is -1"),
        ("relevancy", {"through": "eyes"}, "'eyes', expected one of language_model, vision_tower"),
        ("gradient_saliency", {"kind": "max"}, "'max', expected one of norm, input"),
        ("occlusion", {"replacement": "grey"}, "'grey', expected one of counterfactual, mean, zero"),
        ("occlusion", {"window": 0}, "window of occlusion is 0"),
        ("shap", {"samples": 0}, "samples of shap is 0"),
    ],
)
def test_wrong_options_are_refused_with_what_is_expected(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        methods.make(name, options)


def test_methods_say_where_they_do_not_apply() -> None:
    llava, text = tiny_llava(), hooked("llama")
    patches, tokens, pictures = INPUTS["patches"], INPUTS["tokens"], vision_examples()
    with pytest.raises(SkipCell, match="through the vision tower scores patches, not tokens"):
        methods.make("relevancy", {"through": "vision_tower"}).each(llava, pictures, tokens)
    with pytest.raises(SkipCell, match="window of 4 does not fit into 3 × 3 positions"):
        methods.make("occlusion", {"window": 4}).each(llava, pictures, patches)
    with pytest.raises(MethodError, match="skips 3 layers, all that"):
        methods.make("patch_log_prob_increase", {"skip_layers": 3}).each(llava, pictures, patches)
    for cls in methods:
        if "patches" in cls.levels:
            with pytest.raises(AttriboardError):
                methods.make(cls.name).each(text, EXAMPLES, patches)
    for name in ("occlusion", "shap", "integrated_gradients"):
        with pytest.raises(ConfigurationError, match="counterfactual"):
            methods.make(name, {"replacement": "counterfactual"}).each(text, [example([5, 6, 7])], tokens)


def test_relevancy_through_a_tower_without_a_class_token_is_skipped_in_one_sentence() -> None:
    config = copy.deepcopy(fresh_llava().config)
    config.vision_config = SiglipVisionConfig(
        image_size=PATCH * GRID,
        patch_size=PATCH,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    config.vision_feature_select_strategy = "full"
    processor = tiny_processor(vision_feature_select_strategy="full", num_additional_image_tokens=0)
    hf = LlavaForConditionalGeneration(config).requires_grad_(False)
    model = Model(hf, processor.tokenizer, name="without a class token", processor=processor)
    examples = [model.encode(vision_examples()[0].example)]
    assert methods.make("relevancy").each(model, examples, INPUTS["patches"])[0].shape == (GRID, GRID)
    with pytest.raises(SkipCell, match="needs a tower with a class token and one token per patch, which without"):
        methods.make("relevancy", {"through": "vision_tower"}).each(model, examples, INPUTS["patches"])
