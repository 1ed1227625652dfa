"""Add two small numbers. For models with a planted mechanism."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from attriboard.task import Example, Task, split_of
from attriboard.zoo.planted import OPERANDS


def item(a: int, b: int) -> str:
    return f"{a} + {b}"


@dataclass
class PlantedArithmetic(Task):
    """``3 + 4 =`` asks for ``7``.

    The counterfactual is another question of the same split, with another first and another second operand and another
    sum. Every pair that a split has comes before any comes again with another counterfactual.
    """

    name: ClassVar[str] = "planted_arithmetic"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Add two numbers from 1 to 7; for planted models."
    paper: ClassVar[str] = "the mechanism: Yu & Ananiadou 2024, arXiv:2409.14144"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {n}" for n in range(2 * OPERANDS[0], 2 * OPERANDS[-1] + 1))
    all_subsets: ClassVar[tuple[str, ...]] = ("addition",)
    marks: ClassVar[tuple[str, ...]] = ("first", "second", "sign")
    evidence: ClassVar[tuple[str, ...]] = ("first", "second")
    distractors: ClassVar[tuple[str, ...]] = ("sign",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        pairs = [(a, b) for a in OPERANDS for b in OPERANDS]
        while True:
            for a, b in rng.sample(pairs, len(pairs)):
                split = split_of(item(a, b))
                others = [
                    (c, d) for c, d in pairs if c != a and d != b and c + d != a + b and split_of(item(c, d)) == split
                ]
                c, d = rng.choice(others)
                yield Example(
                    prompt=f"{a} + {b} =",
                    answer=f" {a + b}",
                    foil=f" {c + d}",
                    counterfactual=f"{c} + {d} =",
                    marks={"first": ((0, 1),), "second": ((4, 5),), "sign": ((2, 3), (6, 7))},
                    item=item(a, b),
                    subset=subset,
                    twin=f"{item(a, b)}, not {item(c, d)}",
                )
