"""What methods say that they see, against what their scores really depend on."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS
from attriboard.interventions import REPLACEMENTS
from attriboard.method import ReplacingMethod, methods
from attriboard.model import EncodedExample
from attriboard.roles import SIGHTS
from tests.bench.models import EXAMPLES, example, hooked, words

TEXT = {
    name: next(level for level in cls.levels if level != "patches")
    for name in methods.names()
    for cls in [methods.get(name)]
    if set(cls.levels) - {"patches"} and cls.modality == "any"
}
"""By method, a level of it that needs no picture; without those that score nothing but pictures."""


def asked(
    answers: tuple[int, ...] = (12, 12, 7, 7),
    foils: tuple[int | None, ...] = (30, 64, 20, 13),
    subsets: tuple[str, ...] = ("a", "a", "b", "b"),
    labels: tuple[tuple[int, ...], ...] = ((1, 3), (0, 2), (5,), (1, 2, 4)),
    other: int = 0,
) -> list[EncodedExample]:
    """Four examples; ``other`` moves the tokens in which counterfactuals differ from their prompts."""
    made = []
    for e, answer, foil, subset, marked in zip(EXAMPLES, answers, foils, subsets, labels):
        assert e.counterfactual is not None
        swapped = [b if a == b else (b + other) % 90 + 1 for a, b in zip(e.tokens, e.counterfactual)]
        one = example(e.tokens, swapped, answer, foil, marked)
        made.append(dataclasses.replace(one, example=dataclasses.replace(one.example, subset=subset)))
        assert one.example.prompt == words(e.tokens)
    return made


OTHER: dict[str, list[dict[str, Any]]] = {
    "answer": [{"answers": (40, 41, 40, 41)}],
    "foil": [{"foils": foils} for foils in ((31, 65, 21, 14), (2, 3, 4, 5), (90, 91, 92, 93), (50, 51, 52, 53))],
    "counterfactual": [{"other": 7}],
    "labels": [{"subsets": ("a", "b", "a", "b")}, {"labels": ((2,), (1,), (3, 4), (0,))}],
}
"""By what is seen, what is changed of it."""


@functools.cache
def usual(name: str, options: tuple[tuple[str, Any], ...]) -> Tensor:
    return scores(name, asked(), dict(options))


def scores(name: str, examples: list[EncodedExample], options: dict[str, Any]) -> Tensor:
    level, method = LEVELS[TEXT[name]], methods.make(name, options)
    if level.inputs:
        return torch.cat(method.each(hooked("llama"), examples, level))
    return method.attribute(hooked("llama"), examples, level).values


def every() -> list[tuple[str, dict[str, Any]]]:
    replacing = {name: issubclass(methods.get(name), ReplacingMethod) for name in TEXT}
    return [
        *((name, {}) for name in TEXT),
        *((name, {"replacement": how}) for name in TEXT if replacing[name] for how in REPLACEMENTS),
    ]


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize(("name", "options"), every(), ids=str)
def test_scores_depend_on_what_a_method_says_it_sees_and_on_nothing_else(
    name: str, options: dict[str, Any], sight: str
) -> None:
    before = usual(name, tuple(options.items()))
    after = [scores(name, asked(**change), options) for change in OTHER[sight]]
    depends = any(not torch.equal(before, own) for own in after)
    assert depends == (sight in methods.make(name, options).sees)


def test_what_examples_do_not_have_is_not_seen() -> None:
    method = methods.make("attribution_patching")
    assert method.seen(asked()) == ["answer", "foil", "counterfactual"]
    assert method.seen(asked(foils=(None,) * 4)) == ["answer", "counterfactual"]
    alone = [dataclasses.replace(e, counterfactual=None) for e in asked()]
    assert method.seen(alone) == ["answer", "foil"]
    assert methods.make("lape").seen(alone) == ["labels"]


def test_one_control_is_at_random_and_one_is_matched() -> None:
    kinds = {name: methods.get(name).control_kind for name in methods.names() if methods.get(name).control}
    assert kinds["random"] == "random" and kinds["random_same_layer"] == "matched"
    assert {kind for name, kind in kinds.items() if not name.startswith("random")} == {"trivial"}
