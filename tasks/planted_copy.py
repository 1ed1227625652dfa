"""Which color stood behind this noun? For models with a planted mechanism."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from attriboard.task import Example, Span, Task
from attriboard.zoo.planted import COLORS, NOUNS

SHOWN = 3


def write(nouns: Sequence[str], values: Sequence[str], asked: str) -> tuple[str, list[Span], list[Span], Span]:
    """The prompt, and the spans of its nouns, its values and the question."""
    text, at_nouns, at_values = "", [], []
    for noun, value in zip(nouns, values):
        text += "the "
        at_nouns.append((len(text), len(text) + len(noun)))
        text += f"{noun} "
        at_values.append((len(text), len(text) + len(value)))
        text += f"{value} . "
    text += "the "
    return text + asked, at_nouns, at_values, (len(text), len(text) + len(asked))


@dataclass
class PlantedCopy(Task):
    """``the ball red . the cup blue . the box green . the ball`` asks for ``red``.

    In the counterfactual the asked noun and another exchange their places among the demonstrations, so that the other
    value follows; the same words stand there. A base item is the asked noun with its value: every one that a split has
    comes before any comes again.
    """

    name: ClassVar[str] = "planted_copy"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Say the color that stood behind a noun; for planted models."
    paper: ClassVar[str] = "the mechanism: Olsson et al. 2022, arXiv:2209.11895"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = ("copy",)
    marks: ClassVar[tuple[str, ...]] = ("value", "noun", "query", "other_value", "other_noun", "label")
    evidence: ClassVar[tuple[str, ...]] = ("value", "noun", "query")
    distractors: ClassVar[tuple[str, ...]] = ("other_value",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        items = [(noun, value) for noun in NOUNS for value in COLORS]
        while True:
            for asked, value in rng.sample(items, len(items)):
                at, other = rng.sample(range(SHOWN), 2)
                nouns = rng.sample([noun for noun in NOUNS if noun != asked], SHOWN - 1)
                values = rng.sample([color for color in COLORS if color != value], SHOWN - 1)
                nouns.insert(at, asked)
                values.insert(at, value)
                prompt, at_nouns, at_values, query = write(nouns, values, asked)
                exchanged = list(nouns)
                exchanged[at], exchanged[other] = nouns[other], nouns[at]
                yield Example(
                    prompt=prompt,
                    answer=f" {value}",
                    foil=f" {values[other]}",
                    counterfactual=write(exchanged, values, asked)[0],
                    marks={
                        "value": (at_values[at],),
                        "noun": (at_nouns[at],),
                        "query": (query,),
                        "other_value": tuple(span for i, span in enumerate(at_values) if i != at),
                        "other_noun": tuple(span for i, span in enumerate(at_nouns) if i != at),
                        "label": tuple(at_values),
                    },
                    item=f"{asked} {value}",
                    subset=subset,
                )
