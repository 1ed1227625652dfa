"""Who is given something, when two people are named and one of them gives?"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from attriboard.task import Example, Span, Task

NAMES = (
    "Adam",
    "Alex",
    "Alice",
    "Amy",
    "Anna",
    "Ben",
    "Bob",
    "Carl",
    "Charlie",
    "Chris",
    "Dan",
    "David",
    "Emily",
    "Emma",
    "Frank",
    "George",
    "Grace",
    "Henry",
    "Jack",
    "James",
    "Jane",
    "John",
    "Julia",
    "Kate",
    "Laura",
    "Lily",
    "Lisa",
    "Lucy",
    "Mark",
    "Mary",
    "Max",
    "Michael",
    "Nick",
    "Paul",
    "Peter",
    "Rachel",
    "Sam",
    "Sarah",
    "Simon",
    "Susan",
    "Tim",
    "Tom",
)
"""Each one token after a space, in the vocabularies of GPT-2, Llama 3 and SmolLM2."""
PLACES = (
    "bakery",
    "beach",
    "bridge",
    "cinema",
    "farm",
    "garden",
    "harbor",
    "kitchen",
    "lake",
    "library",
    "market",
    "museum",
    "park",
    "station",
    "theater",
    "village",
)
OBJECTS = (
    "ball",
    "basket",
    "book",
    "box",
    "cake",
    "camera",
    "coin",
    "drum",
    "flower",
    "guitar",
    "hat",
    "key",
    "lamp",
    "letter",
    "map",
    "pencil",
    "ring",
    "ticket",
)
FRAMES = (
    "After {first} and {second} arrived at the {place}, {giver} handed the {object} to",
    "Soon {first} and {second} sat down near the {place}, and {giver} passed the {object} to",
    "On Sunday {first} and {second} met at the {place}, and {giver} gave the {object} to",
    "While {first} and {second} waited at the {place}, {giver} showed the {object} to",
    "At the {place}, {first} and {second} found a {object}. At once {giver} gave it to",
    "Because of the rain {first} and {second} stayed near the {place}, where {giver} lent the {object} to",
    "Once {first} and {second} quarreled at the {place}. The next day {giver} sent a {object} to",
    "By the {place} stood {first} and {second}. With a smile {giver} gave the {object} to",
    "For years {first} and {second} worked at the {place}. Today {giver} left a {object} to",
    "As {first} and {second} came home from the {place}, {giver} gave a {object} to",
    "This is about {first} and {second} at the {place}, and about the {object} that {giver} gave to",
    "When {first} and {second} had cleaned the {place}, {giver} gave the {object} to",
    "Friends told us that {first} and {second} went to the {place} and that {giver} gave a {object} to",
    "There was a party at the {place} for {first} and {second}, and {giver} gave a {object} to",
    "Between {first} and {second} lay a {object}. At the {place} {giver} gave it to",
    "During the break at the {place}, {first} and {second} played, and {giver} gave the {object} to",
    "After a long day at the {place}, {first} and {second} said goodbye, and {giver} gave a {object} to",
    "Since {first} and {second} both liked the {place}, {giver} lent a {object} to",
    "Inside the {place}, {first} and {second} were laughing while {giver} showed the {object} to",
)
"""What is said of both people, and what one of them then does with the object.

The names stand behind a space everywhere, so that a name is cut into the same tokens wherever it stands.
"""
PARAPHRASES = 2


def write(frame: str, words: dict[str, str]) -> tuple[str, dict[str, Span]]:
    """The frame with its slots filled, and where each word came to stand."""
    text = ""
    spans: dict[str, Span] = {}
    for piece in re.split(r"\{(\w+)\}", frame):
        if piece in words:
            spans[piece] = (len(text), len(text) + len(words[piece]))
            text += words[piece]
        else:
            text += piece
    return text, spans


@dataclass
class Ioi(Task):
    """``On Sunday Kate and Paul met at the park, and Kate gave the ring to`` asks for `` Paul``: not for the giver.

    The counterfactual puts the other name in the place of the second mention of the giver ("..., and Paul gave the
    ring to"), so that the answer and the foil change places and everything else stays. Both orders of the names are
    drawn equally often, so that neither the first nor the last name is the better guess. A pair of names is a base
    item: no pair of the training split is asked about in the test split. Paraphrases say the same of the same people
    in other frames.
    """

    name: ClassVar[str] = "ioi"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Name the one of two people to whom the other one gives something."
    paper: ClassVar[str] = "arXiv:2211.00593"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {name}" for name in NAMES)
    all_subsets: ClassVar[tuple[str, ...]] = ("receiver_first", "giver_first")
    marks: ClassVar[tuple[str, ...]] = ("io", "s1", "s2")
    evidence: ClassVar[tuple[str, ...]] = ("io", "s2")
    distractors: ClassVar[tuple[str, ...]] = ("s1",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            frame = rng.choice(FRAMES)
            receiver, giver = rng.sample(NAMES, 2)
            pair = (receiver, giver) if subset == "receiver_first" else (giver, receiver)
            words = {
                "first": pair[0],
                "second": pair[1],
                "giver": giver,
                "place": rng.choice(PLACES),
                "object": rng.choice(OBJECTS),
            }
            prompt, spans = write(frame, words)
            io, s1 = ("first", "second") if subset == "receiver_first" else ("second", "first")
            others = rng.sample([other for other in FRAMES if other != frame], PARAPHRASES)
            yield Example(
                prompt=prompt,
                answer=f" {receiver}",
                foil=f" {giver}",
                counterfactual=write(frame, {**words, "giver": receiver})[0],
                marks={"io": (spans[io],), "s1": (spans[s1],), "s2": (spans["giver"],)},
                item=" and ".join(sorted(pair)),
                subset=subset,
                paraphrases=tuple(write(other, words)[0] for other in others),
            )
