"""Sums with a one-digit result, after solved sums of the same kind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from attriboard.errors import ConfigurationError
from attriboard.task import Example, Span, Task, split_of

Fact = tuple[int, int, int]
PARAPHRASED_LEADS = ("y = ", "The result: ")
"""What stands before each line of a paraphrase, in the place of ``x = ``."""

SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}


def facts(subset: str, largest: int) -> list[Fact]:
    """Every ``(left, right, result)`` with operands from 1 to ``largest`` and a whole result from 0 to 9."""
    operands = range(1, largest + 1)
    if subset == "addition":
        every = [(a, b, a + b) for a in operands for b in operands]
    elif subset == "subtraction":
        every = [(a, b, a - b) for a in operands for b in operands]
    elif subset == "multiplication":
        every = [(a, b, a * b) for a in operands for b in operands]
    else:
        every = [(a, b, a // b) for a in operands for b in operands if a % b == 0]
    return [fact for fact in every if 0 <= fact[2] <= 9]


def item(fact: Fact, sign: str) -> str:
    return f"{fact[0]}{sign}{fact[1]}"


def exchangeable(query: Fact, other: Fact, sign: str) -> bool:
    """Whether ``other`` can stand in the query's place: as many digits, another result, the same split."""
    return (
        query[2] != other[2]
        and len(str(query[0])) == len(str(other[0]))
        and len(str(query[1])) == len(str(other[1]))
        and split_of(item(query, sign)) == split_of(item(other, sign))
    )


def write(
    demonstrations: list[Fact], query: Fact, sign: str, gap: str, lead: str = "x = "
) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """The prompt and its marks; ``gap`` stands on either side of the signs, ``lead`` before every line."""
    text = ""
    results: list[Span] = []
    for left, right, result in demonstrations:
        text += f"{lead}{left}{gap}{sign}{gap}{right}{gap}={gap}"
        results.append((len(text), len(text) + 1))
        text += f"{result}\n"
    text += lead
    left_end = len(text) + len(str(query[0]))
    operator = left_end + len(gap)
    right_start = operator + 1 + len(gap)
    marks: dict[str, tuple[Span, ...]] = {
        "operands": ((len(text), left_end), (right_start, right_start + len(str(query[1])))),
        "operator": ((operator, operator + 1),),
        "label": tuple(results),
    }
    return f"{text}{query[0]}{gap}{sign}{gap}{query[1]}{gap}={gap}", marks


@dataclass
class Arithmetic(Task):
    """``x = 9 - 4 = 5⏎x = 17 - 9 = 8⏎x = 8 - 2 = `` asks for ``6``; the counterfactual asks for another difference.

    The counterfactual keeps the demonstrations and exchanges both operands of the query, digit for digit. No
    demonstration shows the answer, the foil, or the query itself, so copying a demonstration is never right.
    Tokenizers that cut numbers into digits make a two-digit result two tokens: hence results of one digit.
    Paraphrases ask for the same result after other solved lines, with another beginning of all lines.
    ``x = `` before each line, and few demonstrations, are what lets a model of 135 M parameters follow.

    Attributes:
        shots: how many demonstrations, all of the query's operation.
        largest: the largest operand. Above 9, subtraction and division get operands of two digits (13 - 8, 16 / 8;
            81 brings in every such division), which a very small model often gets wrong.
        spaces: False writes ``x = 9-4=5``. Small models add worse so, but the prompt does not end in a space, which
            tokenizers that join a space to the digit after it (GPT-2's) cut otherwise than the answered text.
    """

    name: ClassVar[str] = "arithmetic"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Add, subtract, multiply or divide two small numbers, after solved examples."
    paper: ClassVar[str] = "arXiv:2409.14144"
    labels: ClassVar[tuple[str, ...]] = tuple("0123456789")
    all_subsets: ClassVar[tuple[str, ...]] = tuple(SIGNS)
    marks: ClassVar[tuple[str, ...]] = ("operands", "operator", "label")
    evidence: ClassVar[tuple[str, ...]] = ("operands", "operator")
    distractors: ClassVar[tuple[str, ...]] = ("label",)

    shots: int = 2
    largest: int = 20
    spaces: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.shots <= 8:
            raise ConfigurationError(f"shots is {self.shots}, expected 1 to 8.")
        if not 9 <= self.largest <= 81:
            raise ConfigurationError(f"largest is {self.largest}, expected 9 to 81.")

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        sign, table, gap = SIGNS[subset], facts(subset, self.largest), " " if self.spaces else ""
        while True:
            query = rng.choice(table)
            others = [fact for fact in table if exchangeable(query, fact, sign)]
            if not others:
                continue
            other = rng.choice(others)
            shown = [fact for fact in table if fact[2] not in (query[2], other[2])]
            if len(shown) < self.shots:
                continue
            demonstrations = rng.sample(shown, self.shots)
            prompt, marks = write(demonstrations, query, sign, gap)
            again = random.Random(f"paraphrases of {prompt}")  # its own, so that rng draws what it drew without them
            unused = [fact for fact in shown if fact not in demonstrations]
            if len(unused) < self.shots:
                unused = shown
            yield Example(
                prompt=prompt,
                answer=str(query[2]),
                foil=str(other[2]),
                counterfactual=write(demonstrations, other, sign, gap)[0],
                marks=marks,
                item=item(query, sign),
                subset=subset,
                paraphrases=tuple(
                    write(again.sample(unused, self.shots), query, sign, gap, lead)[0] for lead in PARAPHRASED_LEADS
                ),
            )
