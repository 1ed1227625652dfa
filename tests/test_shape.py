"""What methods say they will take, before they run, beside what is counted when they do."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from attriboard.components import LEVELS
from attriboard.method import Method, methods
from attriboard.model import Cost, EncodedExample, Model
from attriboard.selftest.tiny import LAYERS, hooked, tiny_examples, tiny_hf
from attriboard.shape import Shape

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "activation_patching": [{"direction": "denoising"}],
    "cna": [{"head_examples": 1, "candidates": 10}],
    "exact_edges": [{"sample": 20, "top": 10}],
    "integrated_gradients": [{"steps": 2}],
    "log_prob_increase": [{"exact_top_k": 3}],
    "occlusion": [{"window": 2}],
    "patch_log_prob_increase": [{"heads": "all"}, {"heads": 3, "skip_layers": 0}],
    "path_patching": [
        {"through_ffns": False},
        {"receivers": ["m1", "a1.h2<k>"]},
        {"receivers": ["a1.h0<q>", "logits"], "through_ffns": False, "held": False},
    ],
    "query_neurons": [{"top_k": 3}],
    "relevancy": [{"through": "vision_tower"}],
    "shap": [{"samples": 3}],
}
"""Options that change what a method takes, beside the usual ones."""


@functools.cache
def tiny(family: str) -> tuple[Model, tuple[EncodedExample, ...]]:
    model = hooked(tiny_hf(family))
    return model, tiny_examples(model)


def cases() -> Iterator[Any]:
    for cls in methods:
        names = {f.name for f in fields(cls)}
        replaced = [{"replacement": name} for name in ("mean", "zero", "counterfactual") if "replacement" in names]
        for options in [{}, *replaced, *OPTIONS.get(cls.name, [])]:
            for level in cls.levels:
                seeing = cls.modality == "vision" or LEVELS[level].image
                if options.get("replacement", "counterfactual") not in LEVELS[level].replacements:
                    continue
                if options.get("through") == "vision_tower" and not LEVELS[level].image:
                    continue
                for family in ("llava",) if seeing else LAYERS:
                    yield pytest.param(family, cls.name, options, level, id=f"{family}-{cls.name}-{options}-{level}")


def shape_of_all(model: Model, examples: tuple[EncodedExample, ...], level_name: str) -> Shape:
    """The shape of the average example."""
    level, n = LEVELS[level_name], len(examples)

    def mean(values: list[int]) -> int:
        return round(sum(values) / n)

    # the pictures of prompt and counterfactual differ, and stand at the front
    pairs = [((), ()) if e.image is not None else (e.tokens, e.counterfactual or ()) for e in examples]
    return Shape.of(
        model,
        positions=mean([len(e.tokens) for e in examples]),
        shared=mean([next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), 0) for pair in pairs]),
        inputs=mean([len(level.positions(model, e)) for e in examples]) if level.inputs else 0,  # type: ignore[attr-defined]
        examples=n,
        marks={"label": mean([len(model.mark_positions(e, "label")) for e in examples])},
        foils=all(e.foil is not None for e in examples),
        tower=model.vision.flops if model.vision is not None else 0,
    )


def counted(method: Method, model: Model, examples: tuple[EncodedExample, ...], level_name: str) -> float:
    """The forward passes per example that a method really takes."""
    level = LEVELS[level_name]
    method.check_examples(examples)
    model.cost = Cost()
    if level.inputs:
        method.each(model, examples, level)
    else:
        method.attribute(model, examples, level)
    return model.forward_equivalents(examples)


@pytest.mark.parametrize(("family", "name", "options", "level"), cases())
def test_what_a_method_says_it_takes_is_what_it_takes(family: str, name: str, options: dict[str, Any], level: str):
    model, examples = tiny(family)
    method = methods.make(name, options)
    taken = counted(method, model, examples, level)
    said = method.passes(shape_of_all(model, examples, level), LEVELS[level])
    assert (taken == 0) == (said == 0)
    assert taken / 1.5 <= said <= 1.5 * taken, f"said {said:.2f}, took {taken:.2f}"


def test_of_a_method_that_says_nothing_of_its_own_what_it_needs_decides():
    model, examples = tiny("llama")
    shape, heads = shape_of_all(model, examples, "heads"), LEVELS["heads"]

    class Needing(Method):
        """Only ``needs`` differs."""

    def takes(*needs: str) -> float:
        method = Needing()
        method.needs = frozenset(needs)  # type: ignore[misc]
        return method.passes(shape, heads)

    assert takes() == takes("weights") == 0
    assert takes("forward", "weights") == pytest.approx(1)
    assert takes("forward", "gradients") == pytest.approx(3)
    # what both prompts share is run once: the more they share, the nearer to one pass in all
    assert 1 < takes("forward", "counterfactual") < 2
    alone = replace(shape, shared=0)
    assert alone.usual({"forward"}, counterfactual=True) == pytest.approx(2)


def test_a_picture_goes_through_the_tower_once_whatever_reads_it():
    model, examples = tiny("llava")
    shape = shape_of_all(model, examples, "patches")
    assert shape.forward() + shape.look == pytest.approx(1)
    assert methods.make("gradient_saliency").passes(shape, LEVELS["patches"]) == pytest.approx(
        3 * shape.forward() + shape.look
    )
