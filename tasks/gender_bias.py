"""Does the model take a profession to be a woman's or a man's?"""

from __future__ import annotations

import csv
import functools
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, zip_longest
from typing import ClassVar

from attriboard.task import SPLITS, Example, Task, split_of

HE, SHE = " he", " she"

FRAMES = ("The {noun} said that", "The {noun} was late because", "The {noun} was tired because")
PARAPHRASES = ("The {noun} mentioned that", "The {noun} was happy because")


@dataclass
class GenderBias(Task):
    """``The nurse said that`` asks for `` she``, the pronoun of the stereotype, against `` he``.

    An example is answered where the model finds the stereotype's pronoun likelier than the other: what is looked for
    is where the bias sits, so only professions on which the model has it are kept. The counterfactual names a
    profession of the opposite stereotype and of the same split, in as many tokens. The paraphrases stand in frames
    that no example uses.

    The bias is the mean of ``|log p(" he") - log p(" she")|`` over all examples drawn, answered or not, and signed
    (above 0: he) without the absolute value. The subset ``neutral`` names people and no profession. No pronoun is
    right there, `` he`` is its answer only because an example has one; it is a measure of what the model prefers where
    nothing suggests either, and of what an edit should leave alone.
    """

    name: ClassVar[str] = "gender_bias"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Go on with he or she after a profession that has a stereotype."
    paper: ClassVar[str] = "arXiv:2004.12265"
    labels: ClassVar[tuple[str, ...]] = (HE, SHE)
    all_subsets: ClassVar[tuple[str, ...]] = ("profession", "neutral")
    controls: ClassVar[tuple[str, ...]] = ("neutral",)
    preference: ClassVar[tuple[str, str] | None] = (HE, SHE)
    marks: ClassVar[tuple[str, ...]] = ("profession",)
    evidence: ClassVar[tuple[str, ...]] = ("profession",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        if subset == "neutral":
            for noun, frame in shuffled(nouns("none"), rng):
                yield ask(noun, frame, HE, SHE, None, subset)
            return
        she, he = nouns("she"), nouns("he")
        queues = [
            shuffled([noun for noun in side if split_of(noun) == split], rng) for split in SPLITS for side in (she, he)
        ]
        # one of each queue in turn, so that the first examples of a split are as many of each stereotype
        for noun, frame in filter(None, chain.from_iterable(zip_longest(*queues))):
            answer, foil, opposite = (SHE, HE, he) if noun in she else (HE, SHE, she)
            others = [other for other in opposite if split_of(other) == split_of(noun)]
            for other in rng.sample(others, len(others)):
                yield ask(noun, frame, answer, foil, other, subset)


def ask(noun: str, frame: str, answer: str, foil: str, other: str | None, subset: str) -> Example:
    """The example of a noun in a frame; ``other`` stands in its counterfactual, if it has one."""
    start = frame.index("{noun}")
    return Example(
        prompt=frame.format(noun=noun),
        answer=answer,
        foil=foil,
        counterfactual=None if other is None else frame.format(noun=other),
        marks={} if other is None else {"profession": ((start, start + len(noun)),)},
        item=noun,
        subset=subset,
        choice=True,
        paraphrases=tuple(paraphrase.format(noun=noun) for paraphrase in PARAPHRASES),
    )


def shuffled(words: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Every noun in every frame, in random order."""
    pairs = [(noun, frame) for noun in words for frame in FRAMES]
    rng.shuffle(pairs)
    return pairs


@functools.cache
def _rows() -> tuple[tuple[str, str], ...]:
    text = files("attriboard.tasks.data").joinpath("professions.tsv").read_text(encoding="utf-8")
    return tuple((row["noun"], row["stereotype"]) for row in csv.DictReader(io.StringIO(text), delimiter="\t"))


def nouns(stereotype: str) -> list[str]:
    """The professions of a stereotype, "he" or "she", or, for "none", words for people without one."""
    return [noun for noun, of in _rows() if of == stereotype]
