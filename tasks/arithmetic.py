"""Sums that end in one digit, after solved sums of the same kind."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, TypeVar

from attriboard.errors import ConfigurationError
from attriboard.task import SPLITS, Example, Span, Task, split_of, split_of_frame

Thing = TypeVar("Thing")

SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "÷"}
ONE_DIGIT, TWO_DIGITS = range(1, 10), range(11, 100)

HEADINGS = ("", "Calculate:\n", "Solved:\n")
VARIABLES = ("a", "b", "c", "k", "m", "n", "p", "q", "t", "x", "y", "z")
SEPARATORS = ("\n", ", ", "; ", "\n\n")
PARAPHRASED_LEADS = ("w = ", "Result = ")
"""What stands before each line of a paraphrase, in the place of ``x = ``."""


@dataclass(frozen=True)
class Fact:
    """``left sign right = result``, where the last digit of the result is asked for and the others are given."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def item(self) -> str:
        """Equal for 3 * 7 and 7 * 3, which are one fact."""
        operands = (self.left, self.right)
        left, right = sorted(operands) if self.sign in "+*" else operands
        return f"{left}{self.sign}{right}"

    @property
    def given(self) -> str:
        return str(self.result)[:-1]

    @property
    def answer(self) -> str:
        return str(self.result)[-1]

    @property
    def shown(self) -> frozenset[str]:
        """The digits that a question about it shows."""
        return frozenset(f"{self.left}{self.right}{self.given}")

    @property
    def digits(self) -> tuple[int, int, int]:
        """Of how many digits the operands and the result are."""
        return len(str(self.left)), len(str(self.right)), len(str(self.result))


@dataclass(frozen=True)
class Frame:
    """What stands around the sums: a heading, what each line begins with, and what stands between lines."""

    heading: str
    lead: str
    separator: str

    def __str__(self) -> str:
        return f"{self.heading}{self.lead}_{self.separator}{self.lead}_"


FRAMES = tuple(
    Frame(heading, f"{name} = ", separator) for heading, name, separator in product(HEADINGS, VARIABLES, SEPARATORS)
)


def facts(subset: str, harder: bool = False, given: bool = True) -> list[Fact]:
    """Every fact of an operation, none with 0, 1 as a factor or divisor, or equal operands in a difference or quotient.

    Args:
        subset: the operation.
        harder: also differences whose first operand has two digits, products of such an operand that need a carry, and
            quotients of two digits.
        given: also results of two digits, the first of which the question gives.
    """
    small, tables = list(product(ONE_DIGIT, ONE_DIGIT)), list(product(range(2, 10), range(2, 10)))
    large = list(product(TWO_DIGITS, range(2, 10)))
    if subset == "addition":
        every = [(a, b, a + b) for a, b in [*(p for p in small if sum(p) < 10), *large]]
    elif subset == "subtraction":
        every = [(a, b, a - b) for a, b in small + large * harder if a > b]
    elif subset == "multiplication":
        every = [(a, b, a * b) for a, b in tables + [(a, b) for a, b in large if harder or a % 10 * b < 10]]
    else:
        every = [(a * b, b, a) for a, b in tables + large * harder if a != b and a * b < 100]
    return [Fact(a, SIGNS[subset], b, c) for a, b, c in every if c < (100 if given else 10)]


def exchangeable(query: Fact, other: Fact) -> bool:
    """Whether ``other`` can stand in the query's place: alike and of its split, neither showing the other's answer."""
    return (
        (query.digits, query.given) == (other.digits, other.given)
        and query.answer not in other.shown | {other.answer}
        and other.answer not in query.shown
        and split_of(query.item) == split_of(other.item)
    )


def write(shown: Sequence[Fact], query: Fact, frame: Frame, gap: str) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """The prompt and its marks; ``gap`` stands on either side of the signs."""
    text = frame.heading
    results: list[Span] = []
    for fact in shown:
        text += f"{frame.lead}{fact.left}{gap}{fact.sign}{gap}{fact.right}{gap}={gap}"
        results.append((len(text), len(text) + len(str(fact.result))))
        text += f"{fact.result}{frame.separator}"
    text += frame.lead
    left_end = len(text) + len(str(query.left))
    operator = left_end + len(gap)
    right_start = operator + 1 + len(gap)
    marks: dict[str, tuple[Span, ...]] = {
        "operands": ((len(text), left_end), (right_start, right_start + len(str(query.right)))),
        "operator": ((operator, operator + 1),),
        "label": tuple(results),
    }
    return f"{text}{query.left}{gap}{query.sign}{gap}{query.right}{gap}={gap}{query.given}", marks


def another(query: Fact, other: Fact, shown: Sequence[Fact], table: Sequence[Fact], rng: random.Random) -> Fact | None:
    """A question of as many digits whose result is neither's; with the same given digits where there is one."""
    taken = {query.answer, other.answer}
    free = [
        fact
        for fact in table
        if fact.digits == query.digits and fact.answer not in taken and not taken & fact.shown and fact not in shown
    ]
    alike = [fact for fact in free if fact.given == query.given] or free
    return rng.choice(alike) if alike else None


@dataclass
class Arithmetic(Task):
    """``x = 22 + 5 = 27⏎x = 93 + 2 = 95⏎x = 61 + 7 = 6`` asks for ``8``; the counterfactual asks for another sum.

    The answer is one digit, since tokenizers that cut numbers into digits make a two-digit result two tokens: of such
    a result the first digit is given. There are no identities (times 1, minus itself, 0), and neither the answer nor
    the foil stands anywhere in the prompt or its counterfactual, neither as a number nor as a digit of one. The
    counterfactual keeps the demonstrations and the given digit and exchanges both operands, digit for digit.
    Demonstrations are facts of the example's split; 3 * 7 and 7 * 3 are one fact. The frame is what stands around the
    sums: a heading, a variable, and what is between lines; a variable and an equals sign before each line are what
    lets a model of 135 M parameters follow. Paraphrases ask for the same result after other solved lines, with another
    beginning of all lines. The other question is a third one after the same demonstrations.

    Questions whose answer does not stand in them: 548 sums, 32 differences, 63 products and 50 quotients; of these
    36, 32, 6 and 50 have a result of one digit. With ``harder``: 578 differences, 102 products and 107 quotients.

    Attributes:
        shots: how many demonstrations, all of the query's operation.
        harder: True adds differences of two-digit numbers (73 - 8), products with a carry (26 * 3) and quotients of two
            digits (68 ÷ 4), which a very small model mostly gets wrong.
        given: False leaves out results of two digits, for tokenizers that do not cut numbers into digits. Of
            multiplication few facts remain then.
        spaces: False writes ``x = 9-4=5``. Small models add worse so, but the prompt does not end in a space, which
            tokenizers that join a space to the digit after it (GPT-2's) cut otherwise than the answered text.
    """

    name: ClassVar[str] = "arithmetic"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Add, subtract, multiply or divide two small numbers, after solved examples."
    paper: ClassVar[str] = "arXiv:2409.14144"
    labels: ClassVar[tuple[str, ...]] = tuple("0123456789")
    all_subsets: ClassVar[tuple[str, ...]] = tuple(SIGNS)
    marks: ClassVar[tuple[str, ...]] = ("operands", "operator", "label")
    evidence: ClassVar[tuple[str, ...]] = ("operands", "operator")
    distractors: ClassVar[tuple[str, ...]] = ("label",)

    shots: int = 2
    harder: bool = False
    given: bool = True
    spaces: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.shots <= 4:
            raise ConfigurationError(f"shots is {self.shots}, expected 1 to 4.")

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        table, gap = facts(subset, self.harder, self.given), " " if self.spaces else ""
        tables = {split: [fact for fact in table if split_of(fact.item) == split] for split in SPLITS}
        queries = {split: [fact for fact in tables[split] if fact.answer not in fact.shown] for split in SPLITS}
        items: dict[str, list[str]] = {split: [] for split in SPLITS}
        frames: dict[str, list[Frame]] = {split: [] for split in SPLITS}
        while True:
            split = rng.choice(SPLITS)
            # from shuffled decks, so that every item and every frame comes before any comes again
            items[split] = items[split] or shuffled(sorted({fact.item for fact in queries[split]}), rng)
            frames[split] = frames[split] or shuffled([f for f in FRAMES if split_of_frame(str(f)) == split], rng)
            wanted, frame = items[split].pop(), frames[split][-1]
            query = rng.choice([fact for fact in queries[split] if fact.item == wanted])
            others = [fact for fact in queries[split] if exchangeable(query, fact)]
            if not others:
                continue
            other = rng.choice(others)
            taken = {query.answer, other.answer}
            free = [
                fact
                for fact in tables[split]
                if not taken & (fact.shown | {fact.answer}) and fact.item not in (query.item, other.item)
            ]
            shown = draw(free, self.shots, rng)
            third = another(query, other, shown, queries[split], rng)
            if len(shown) < self.shots or third is None:
                continue
            frames[split].pop()
            prompt, marks = write(shown, query, frame, gap)
            again = random.Random(f"paraphrases of {prompt}")  # its own, so that rng draws what it drew without them
            seen = {fact.item for fact in shown}
            unused = [fact for fact in free if fact.item not in seen]
            if len({fact.item for fact in unused}) < self.shots:
                unused = free
            yield Example(
                prompt=prompt,
                answer=query.answer,
                foil=other.answer,
                counterfactual=write(shown, other, frame, gap)[0],
                marks=marks,
                item=query.item,
                frame=str(frame),
                demonstrations=tuple(fact.item for fact in shown),
                subset=subset,
                paraphrases=tuple(
                    write(draw(unused, self.shots, again), query, Frame("", lead, "\n"), gap)[0]
                    for lead in PARAPHRASED_LEADS
                ),
                other_question=write(shown, third, frame, gap)[0],
            )


def shuffled(things: Sequence[Thing], rng: random.Random) -> list[Thing]:
    """The things in random order."""
    return rng.sample(list(things), len(things))


def draw(pool: Sequence[Fact], n: int, rng: random.Random) -> list[Fact]:
    """``n`` facts of different items, or as many as there are."""
    drawn: dict[str, Fact] = {}
    for fact in shuffled(pool, rng):
        if len(drawn) < n:
            drawn.setdefault(fact.item, fact)
    return list(drawn.values())
