"""Who is given something, when two people are named and one of them gives?"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from attriboard.task import SPLITS, Example, Span, Task, split_of, split_of_frame

NAMES = (
    "Aaron",
    "Adam",
    "Alex",
    "Alexander",
    "Alice",
    "Amanda",
    "Amy",
    "Andrea",
    "Andrew",
    "Angela",
    "Anna",
    "Anthony",
    "Ben",
    "Benjamin",
    "Bob",
    "Brian",
    "Carl",
    "Charlie",
    "Chris",
    "Christopher",
    "Dan",
    "Daniel",
    "David",
    "Elizabeth",
    "Emily",
    "Emma",
    "Eric",
    "Frank",
    "George",
    "Grace",
    "Gregory",
    "Henry",
    "Jack",
    "Jacob",
    "James",
    "Jane",
    "Jason",
    "Jennifer",
    "Jeremy",
    "Jessica",
    "John",
    "Jonathan",
    "Joseph",
    "Joshua",
    "Julia",
    "Justin",
    "Kate",
    "Katherine",
    "Kenneth",
    "Kevin",
    "Laura",
    "Lily",
    "Lisa",
    "Lucy",
    "Mark",
    "Mary",
    "Matthew",
    "Max",
    "Melissa",
    "Michael",
    "Michelle",
    "Nathan",
    "Nick",
    "Nicole",
    "Patrick",
    "Paul",
    "Peter",
    "Rachel",
    "Rebecca",
    "Richard",
    "Robert",
    "Ryan",
    "Sam",
    "Samantha",
    "Samuel",
    "Sarah",
    "Scott",
    "Sean",
    "Simon",
    "Stephanie",
    "Steven",
    "Susan",
    "Thomas",
    "Tim",
    "Tom",
    "Tyler",
    "William",
)
"""Each one token after a space for SmolLM2; a model that cuts one of them is not asked about that person."""
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
OPENINGS = (
    "After {first} and {second} arrived at the {place},",
    "On Sunday {first} and {second} met at the {place}, and",
    "While {first} and {second} waited at the {place},",
    "Because of the rain {first} and {second} stayed near the {place}, where",
    "Once {first} and {second} quarreled at the {place}. The next day",
    "By the {place} stood {first} and {second}. With a smile",
    "For years {first} and {second} worked at the {place}. Today",
    "As {first} and {second} came home from the {place},",
    "When {first} and {second} had cleaned the {place},",
    "Friends told us that {first} and {second} went to the {place} and that",
    "There was a party at the {place} for {first} and {second}, and",
    "During the break at the {place}, {first} and {second} played, and",
    "Since {first} and {second} both liked the {place}, they went there, and",
    "Inside the {place}, {first} and {second} were laughing while",
    "Soon {first} and {second} sat down near the {place}, and",
    "At noon {first} and {second} had lunch by the {place}. Then",
    "Nobody but {first} and {second} came to the {place}. Without a word",
    "The teacher sent {first} and {second} to the {place}, where",
    "Last winter {first} and {second} rented a room above the {place}. In spring",
    "Both {first} and {second} were late for the tour of the {place}, so",
    "Every summer {first} and {second} visit the {place}. This time",
    "Just as {first} and {second} were about to leave the {place},",
    "In the photo {first} and {second} stand in front of the {place}. After it was taken,",
    "The guide showed {first} and {second} around the {place}, and afterwards",
    "In the old story {first} and {second} live behind the {place}. One morning",
    "Before {first} and {second} drove to the {place},",
    "Though {first} and {second} disliked the {place}, they stayed until",
    "The bus took {first} and {second} to the {place}. As soon as it stopped,",
    "Children waved at {first} and {second} near the {place}, and",
    "In the letter, {first} and {second} describe the {place}. It also says that",
    "With the keys to the {place}, {first} and {second} opened the door, and",
    "Two strangers, {first} and {second}, shared a bench at the {place}. Before long",
    "Every morning {first} and {second} walk past the {place}. Today",
    "Early on Monday {first} and {second} swept the floor of the {place}. Later",
    "Outside the {place}, {first} and {second} compared their plans, and",
    "A crowd watched {first} and {second} dance at the {place}. At the end",
    "Having lost the race to the {place}, {first} and {second} shook hands, and",
    "The neighbors invited {first} and {second} to the {place}. Out of kindness",
    "Unlike most people, {first} and {second} enjoy the {place} in winter. In January",
    "Around midnight {first} and {second} locked the {place}, and",
    "Thanks to a map, {first} and {second} found the {place}. There",
    "According to the paper, {first} and {second} own the {place}. In May",
    "Until the music began, {first} and {second} talked about the {place}. Then",
    "Not far from the {place}, {first} and {second} had an argument. In the end",
    "If you had seen {first} and {second} at the {place}, you would know how",
    "Tired and hungry, {first} and {second} reached the {place}. Right away",
    "On the first day of school {first} and {second} got lost near the {place}. Luckily",
    "At the edge of the {place}, {first} and {second} made a fire, and",
    "Halfway to the {place}, {first} and {second} stopped for a rest, and",
    "While the others slept, {first} and {second} sneaked out to the {place}, where",
    "What a surprise it was for {first} and {second} to meet at the {place}! Straight away",
    "Once a month {first} and {second} volunteer at the {place}. Last week",
    "From the roof of the {place}, {first} and {second} watched the sunset, and",
    "Nervous about the exam, {first} and {second} studied at the {place}. Before it began,",
    "The manager of the {place} thanked {first} and {second}. To mark the day",
    "Somewhere between home and the {place}, {first} and {second} changed cars, and",
    "As a joke, {first} and {second} swapped coats at the {place}. A minute later",
    "The film shows {first} and {second} at the {place}. In the last scene",
    "As children, {first} and {second} played at the {place}. Back then",
    "Without telling anyone, {first} and {second} painted the {place}. In return",
    "Near the entrance of the {place}, {first} and {second} bumped into each other, and",
    "Ten years after {first} and {second} had closed the {place},",
    "All week {first} and {second} repaired the roof of the {place}. On Friday",
    "Whenever {first} and {second} meet at the {place}, they trade things. This morning",
    "The picnic at the {place} was over, and {first} and {second} packed up. Then",
    "Grandma took {first} and {second} to the {place} by train. On the platform",
    "Long before the {place} was built, {first} and {second} were friends. In those days",
    "Right after the concert at the {place}, {first} and {second} went backstage, where",
    "During the tour, {first} and {second} fell behind the group at the {place}, and",
    "People say that {first} and {second} first met at the {place}. That evening",
    "Against all advice, {first} and {second} swam near the {place}. Afterwards",
    "The doctor asked {first} and {second} to wait at the {place}. Meanwhile",
    "As usual, {first} and {second} were the first guests at the {place}. At the door",
    "The dog followed {first} and {second} all the way to the {place}. There",
    "Even though the {place} was closed, {first} and {second} got in. Once inside",
    "The wedding of {first} and {second} took place at the {place}. During the dinner",
    "In a hurry, {first} and {second} ran across the {place}. At the corner",
    "The police found {first} and {second} asleep at the {place}. When they woke up,",
    "A friend drove {first} and {second} to the {place}. On the back seat",
    "The new owners of the {place} hired {first} and {second}. On the first day",
    "Half an hour before {first} and {second} opened the {place},",
    "All alone, {first} and {second} built a wall around the {place}. In the evening",
    "Out of breath, {first} and {second} stood at the top of the {place}. Suddenly",
    "Fog covered the {place} when {first} and {second} got out of the car. Carefully",
    "The twins {first} and {second} grew up next to the {place}. On their birthday",
    "Everyone at the {place} was waiting for {first} and {second}. At last",
    "Later that night {first} and {second} talked on the phone about the {place}. The following day",
    "The team cheered when {first} and {second} came back from the {place}. In the locker room",
    "While it was still warm, {first} and {second} ate outside the {place}, and",
    "Along the road to the {place}, {first} and {second} picked berries. At a bend",
)
"""The wordings in which two people are named, which are the frames.

The names stand behind a space everywhere, so that a name is cut into the same tokens wherever it stands. Openings and
acts are those of a longer list on which SmolLM2-135M continues with a name at all, rather than with "the" or "her".
"""
ACTS = (
    "{giver} awarded the {object} to",
    "{giver} gave the {object} to",
    "{giver} gave a {object} to",
    "{giver} gave an old {object} to",
    "{giver} gave a new {object} to",
    "{giver} gave the broken {object} to",
    "{giver} gladly gave the {object} to",
    "{giver} gave a beautiful {object} to",
    "{giver} gave the very last {object} to",
    "{giver} finally gave the {object} to",
    "{giver} gave the stolen {object} to",
    "{giver} gave the only {object} to",
    "{giver} gave some money and a {object} to",
    "{giver} gave a note and a {object} to",
    "{giver} gave the heavy {object} to",
    "{giver} secretly gave a {object} to",
    "{giver} gave a toy {object} to",
    "{giver} gave the red {object} to",
    "{giver} gave an expensive {object} to",
    "{giver} gave a cheap {object} to",
    "{giver} gave a strange {object} to",
    "{giver} also gave a {object} to",
    "{giver} handed the {object} to",
    "{giver} handed a small {object} to",
    "{giver} slowly handed the {object} to",
    "{giver} handed the green {object} to",
    "{giver} handed the wrong {object} to",
    "{giver} handed the shiny {object} to",
    "{giver} at once handed the {object} to",
    "{giver} lent a {object} to",
    "{giver} lent the {object} to",
    "{giver} lent the yellow {object} to",
    "{giver} offered a {object} to",
    "{giver} offered a used {object} to",
    "{giver} politely offered the {object} to",
    "{giver} passed the {object} to",
    "{giver} quickly passed the {object} to",
    "{giver} passed a second {object} to",
    "{giver} passed a little {object} to",
    "{giver} showed the famous {object} to",
)
"""What one of the two then does with the object, right behind the opening; every other one is of the train split."""
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


@functools.cache
def _of_split(split: str) -> tuple[list[str], list[str], list[tuple[str, str]], list[str]]:
    """The openings, acts, pairs of names and single names of a split; no two splits share any of them."""
    openings = [opening for opening in OPENINGS if split_of_frame(opening) == split]
    acts = list(ACTS[SPLITS.index(split) :: len(SPLITS)])
    people = [name for name in NAMES if split_of(name) == split]
    pairs = [pair for pair in combinations(people, 2) if split_of(item_of(*pair)) == split]
    return openings, acts, pairs, people


def item_of(one: str, other: str) -> str:
    """The base item of two people, whichever of them gives."""
    return " and ".join(sorted((one, other)))


@dataclass
class Ioi(Task):
    """``On Sunday Kate and Paul met at the park, and Kate gave the ring to`` asks for `` Paul``: not for the giver.

    The counterfactual puts the other name in the place of the second mention of the giver ("..., and Paul gave the
    ring to"), so that the answer and the foil change places and everything else stays. The other question lets a third
    person give, so that neither of the two is ruled out by having given. Both orders of the names are drawn equally
    often, so that neither the first nor the last name is the better guess.

    A pair of names is the base item, and the opening, up to the act of giving, is the frame. Train and test share no
    pair, no name, no opening and no act; only places and objects, which decide nothing, stand in both. Paraphrases say
    the same of the same people in other openings and acts of the same split.
    """

    name: ClassVar[str] = "ioi"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Name the one of two people to whom the other one gives something."
    paper: ClassVar[str] = "arXiv:2211.00593"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {name}" for name in NAMES)
    all_subsets: ClassVar[tuple[str, ...]] = ("receiver_first", "giver_first")
    marks: ClassVar[tuple[str, ...]] = ("io", "s1", "s2")
    evidence: ClassVar[tuple[str, ...]] = ("io", "s2")
    distractors: ClassVar[tuple[str, ...]] = ("s1",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            openings, acts, pairs, people = _of_split(rng.choice(SPLITS))
            opening, *others = rng.sample(openings, 1 + PARAPHRASES)
            act, *other_acts = rng.sample(acts, 1 + PARAPHRASES)
            receiver, giver = rng.sample(rng.choice(pairs), 2)
            first, second = (receiver, giver) if subset == "receiver_first" else (giver, receiver)
            third = rng.choice([name for name in people if name not in (receiver, giver)])
            words = {
                "first": first,
                "second": second,
                "giver": giver,
                "place": rng.choice(PLACES),
                "object": rng.choice(OBJECTS),
            }
            frame = f"{opening} {act}"
            prompt, spans = write(frame, words)
            io, s1 = ("first", "second") if subset == "receiver_first" else ("second", "first")
            yield Example(
                prompt=prompt,
                answer=f" {receiver}",
                foil=f" {giver}",
                counterfactual=write(frame, {**words, "giver": receiver})[0],
                marks={"io": (spans[io],), "s1": (spans[s1],), "s2": (spans["giver"],)},
                item=item_of(receiver, giver),
                frame=opening,
                subset=subset,
                paraphrases=tuple(write(f"{a} {b}", words)[0] for a, b in zip(others, other_acts)),
                other_question=write(frame, {**words, "giver": third})[0],
            )
