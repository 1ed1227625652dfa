"""What properties are checked on: a method at a level on a tiny model, with four questions.

Models and the scores of the untouched model are made once and shared; :func:`forget_models` drops them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..components import LEVELS, Level
from ..levels import REPLACEMENTS
from ..method import Method, ReplacingMethod, checked, checked_inputs
from ..model import EncodedExample, Model
from .reference import Reference
from .tiny import hooked, in_double, tiny_examples, tiny_hf

TEXT = ("gpt2", "llama")
"""The tiny models that read text alone."""
SEEING = ("llava",)
"""The tiny models that see pictures."""
FOILS = ("w8", "w9", "w10", "w11")
"""For where what is explained has to be a difference of two logits."""


class PropertyError(Exception):
    """A property does not hold; the message is a sentence with the numbers."""


@functools.cache
def tiny_model(family: str, double: bool, seed: int = 0) -> Any:
    """A Hugging Face model that nobody changes."""
    hf = tiny_hf(family, seed)
    return in_double(hf) if double else hf


@functools.cache
def _reference(family: str, double: bool) -> Reference:
    hf = tiny_model(family, double)
    return Reference(hf, processor_of(hooked(hf)))


def processor_of(model: Model) -> Any:
    """What prepares pictures for a model; None for one that sees none."""
    return None if model.vision is None else model.vision.processor


@functools.cache
def _questions(family: str, double: bool, seed: int, marks: tuple[str, ...], **changes: Any) -> tuple[Any, ...]:
    return tiny_examples(hooked(tiny_model(family, double, seed)), marks, **changes)


@dataclass(frozen=True)
class Case:
    """One method at one level on one tiny model."""

    method: type[Method]
    level: str
    family: str

    def __str__(self) -> str:
        return f"{self.method.name} at level {self.level} on the tiny {self.family}"

    @property
    def inputs(self) -> bool:
        return LEVELS[self.level].inputs

    def model(self, double: bool = False, seed: int = 0, **settings: Any) -> Model:
        return hooked(tiny_model(self.family, double, seed), **settings)

    def reference(self, double: bool = False) -> Reference:
        return _reference(self.family, double)

    def examples(self, double: bool = False, seed: int = 0, **changes: Any) -> tuple[EncodedExample, ...]:
        """Four questions with every mark that the method needs; ``changes`` as of :func:`tiny_examples`."""
        marks = (need.partition(":")[2] for need in self.method.needs if need.startswith("marks:"))
        return _questions(self.family, double, seed, tuple(sorted(marks)), **changes)

    def scores(self, model: Model, examples: Sequence[EncodedExample], **options: Any) -> Tensor:
        """``[n]`` float64: averaged over examples, or at a level of inputs those of one example after the other."""
        return self.scored_by(self.make(**options), model, examples)

    def make(self, **options: Any) -> Method:
        """The method with its default options; of ``samples``, which only buy precision, it takes few."""
        return self.method(**{**({"samples": 4} if "samples" in option_names(self.method) else {}), **options})

    def scored_by(self, method: Method, model: Model, examples: Sequence[EncodedExample]) -> Tensor:
        method.check_examples(examples)
        level: Level = LEVELS[self.level]
        if level.inputs:
            each = checked_inputs(method.each(model, examples, level), method)
            return torch.cat([x.flatten() for x in each]).double()
        return checked(method.attribute(model, examples, level), method, model, level).values.flatten().double()

    def gathered(self, per_example: Sequence[Tensor]) -> Tensor:
        """What is expected of each example, ``[n]``, in the form of :meth:`scores`."""
        return torch.cat(list(per_example)) if self.inputs else torch.stack(list(per_example)).mean(0)

    def names(self, model: Model, examples: Sequence[EncodedExample]) -> list[str]:
        level: Any = LEVELS[self.level]
        if not level.inputs:
            return [str(name) for name in level.names(model)]
        return [f"{name} of example {i}" for i, e in enumerate(examples) for name in level.example_names(model, e)]

    def replacements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What components are replaced by, and the options that say so: zero where the method has no choice.

        Edges are replaced by the counterfactual's alone.
        """
        own = [kind for kind in REPLACEMENTS if kind in LEVELS[self.level].replacements]
        if issubclass(self.method, ReplacingMethod):
            yield from ((kind, {"replacement": kind}) for kind in own)
        else:
            yield own[0] if LEVELS[self.level].edges else "zero", {}

    def agree(self, scores: Tensor, expected: Tensor, tolerance: float, what: str, names: Sequence[str] = ()) -> None:
        """Refuses scores that are off by more than ``tolerance`` of the largest expected value.

        Raises:
            PropertyError: names the score that is furthest off.
        """
        if scores.shape != expected.shape:
            raise PropertyError(f"{self} has {scores.numel()} scores where {expected.numel()} are expected: {what}.")
        off, largest = (scores - expected).abs(), float(expected.abs().max())
        worst = int(off.argmax())
        if not float(off[worst]) <= tolerance * largest:
            name = names[worst] if names else f"score {worst}"
            raise PropertyError(
                f"{self} gives {name} {float(scores[worst]):.6g} instead of {float(expected[worst]):.6g} ({what}): off "
                f"by {float(off[worst]):.2g}, allowed {tolerance * largest:.2g}."
            )


def option_names(method: type[Method]) -> set[str]:
    """The names of a method's options."""
    return {option.name for option in fields(method) if option.init}


@functools.cache
def usual_scores(case: Case) -> Tensor:
    """The scores of the untouched model, 16 examples at most in a batch, padded on the left."""
    return case.scores(case.model(), case.examples())


def forget_models() -> None:
    """Drops the tiny models and what was computed on them, after a method that changes what it is given."""
    for cached in (tiny_model, _reference, _questions, usual_scores):
        cached.cache_clear()
