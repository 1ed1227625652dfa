"""Heads, neurons, attention neurons and nodes of a model that sees: every method, on questions about pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import COMPONENTS
from attriboard.errors import SkipCell
from attriboard.interventions import REPLACEMENTS
from attriboard.method import ReplacingMethod, checked, methods
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from tests.bench.models import (
    LAYERS,
    Literal,
    Plain,
    Site,
    close,
    fresh_llava,
    level_sites,
    literal_means,
    literal_outputs,
    literal_replacements,
    literal_single_effects,
    metric,
    pixels,
    tiny_llava,
    vision_examples,
)


class Seeing(Plain):
    """The plain LLaVA, which is shown pixels: of an example's prompt or of its counterfactual, by the tokens given."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        super().__init__("llava", fresh_llava())
        self.shown: dict[int, Tensor] = {}
        for e in examples:
            picture, other = e.example.image, e.example.counterfactual_image
            self.shown[id(e.tokens)] = pixels(picture)
            self.shown[id(e.counterfactual)] = pixels(picture if other is None else other)

    def run(
        self,
        tokens: Sequence[int],
        edits: dict[Site, Callable[[Tensor], Tensor]] | None = None,
        read: Sequence[Site] = (),
        **kwargs: Any,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        return super().run(tokens, edits, read, pixel_values=self.shown[id(tokens)], **kwargs)


@functools.cache
def seeing() -> Seeing:
    return Seeing(vision_examples())


def cases() -> list[Any]:
    """Every registered method at each of its component levels, and every replacement it offers."""
    found = []
    for cls in methods:
        for level in (name for name in cls.levels if name in COMPONENTS):
            found.append(pytest.param(cls.name, level, {}, id=f"{cls.name}-{level}"))
            if issubclass(cls, ReplacingMethod) and level == "heads":
                default = cls().replacement
                for r in (r for r in REPLACEMENTS if r != default):
                    found.append(pytest.param(cls.name, level, {"replacement": r}, id=f"{cls.name}-{level}-{r}"))
    return found


def attributed(model: Model, name: str, level: str, options: dict[str, Any]) -> Scores:
    method, at = methods.make(name, options), COMPONENTS[level]
    try:
        method.check_examples(vision_examples())
    except SkipCell as reason:
        pytest.skip(str(reason))
    return checked(method.attribute(model, vision_examples(), at), method, model, at)


def test_the_examples_mix_lengths_pictures_and_texts() -> None:
    examples = vision_examples()
    assert len({len(e.tokens) for e in examples}) > 1
    assert {e.example.counterfactual_image is None for e in examples} == {True, False}
    assert {e.tokens == e.counterfactual for e in examples} == {True, False}


@pytest.mark.parametrize(("name", "level", "options"), cases())
def test_scores_of_seeing_models_do_not_depend_on_batch_size_or_padding(
    name: str, level: str, options: dict[str, Any]
) -> None:
    reference = attributed(tiny_llava(batch_size=1), name, level, options)
    assert float(reference.values.std()) > 0
    for batch_size, padding_side in ((3, "left"), (3, "right"), (1, "right")):
        found = attributed(tiny_llava(batch_size, padding_side), name, level, options)
        # query neurons divide by sums that can be small, which magnifies rounding
        assert close(found.values, reference.values, 1e-3 if name == "query_neurons" else 1e-4)


def average(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("level", ["heads", "nodes", "neurons"])
def test_activation_patching_is_one_whole_run_with_pixels_for_each_component(level: str, replacement: str) -> None:
    plain, examples, model = seeing(), vision_examples(), tiny_llava(batch_size=3)
    shape = COMPONENTS[level].shape(model)
    means = literal_means(plain, examples, level) if replacement == "mean" else None
    expected = [literal_single_effects(plain, e, level, shape, replacement, means) for e in examples]
    found = attributed(model, "activation_patching", level, {"replacement": replacement}).values
    assert torch.allclose(found, average(expected), atol=2e-5)


def with_gradients(plain: Seeing, e: EncodedExample, sites: list[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
    """A plain run whose token embeddings need a gradient, so that every activation is part of the graph."""
    with torch.enable_grad():
        return plain.run(e.tokens, {("embed", 0): lambda x: x.clone().requires_grad_()}, sites)


@pytest.mark.parametrize("name", ["gradient_x_activation", "attribution_patching"])
@pytest.mark.parametrize("level", ["heads", "neurons"])
def test_gradients_are_those_of_the_plain_model_with_pixels(level: str, name: str) -> None:
    plain, expected = seeing(), []
    for e in vision_examples():
        sites = level_sites(plain, level)
        logits, seen = with_gradients(plain, e, sites)
        gradients = torch.autograd.grad(metric(logits, e), [seen[site] for site in sites])
        away = {site: torch.zeros_like(seen[site]) for site in sites}
        if name == "attribution_patching":
            away = literal_replacements(plain, e, level, "counterfactual")
        products = [((seen[site] - away[site]) * g).sum(0) for site, g in zip(sites, gradients)]
        expected.append(torch.stack([p.sum(-1) if level == "heads" else p for p in products]).detach())
    assert close(attributed(tiny_llava(batch_size=3), name, level, {}).values, average(expected), 1e-4)


@pytest.mark.parametrize("level", ["heads", "neurons", "attn_neurons"])
def test_log_prob_increase_is_that_of_each_output_alone_under_pixels(level: str) -> None:
    plain, expected = seeing(), []
    model = tiny_llava(batch_size=3)
    for e in vision_examples():
        read = [(site, layer) for layer in range(LAYERS) for site in ("resid_pre", "attn_out", "z", "post")]
        _, seen = plain.run(e.tokens, read=[*read, ("resid_post", LAYERS - 1)])
        u = Literal(plain, seen["resid_post", LAYERS - 1][-1])
        rows = []
        for layer in range(LAYERS):
            base = seen["resid_pre", layer][-1]
            base = base + seen["attn_out", layer][-1] if level == "neurons" else base
            outputs = literal_outputs(plain, level, seen["post" if level == "neurons" else "z", layer][-1], layer)
            rows.append(torch.stack([u.increase(out, base, e.answer) for out in outputs]))
        expected.append(torch.stack(rows).float().view(COMPONENTS[level].shape(model)))
    options = {} if level == "heads" else {"exact_top_k": 10**6}
    assert torch.allclose(attributed(model, "log_prob_increase", level, options).values, average(expected), atol=1e-5)
