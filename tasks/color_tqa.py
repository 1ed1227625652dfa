"""Which color does the text give to this object?"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from attriboard.errors import ConfigurationError
from attriboard.task import SPLITS, Example, Span, Task, split_of, split_of_frame

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "gray")
"""Every color begins with a consonant, so that "a" is right before all of them."""

FOILS = ("other_object", "absent_color")

OBJECTS = (
    "dog cat horse rabbit bird goat cow mouse duck frog pig sheep fox bear wolf lion snake turtle fish hen donkey",
    "cup plate bowl bottle spoon lamp candle clock book pen chair table bed pillow blanket vase basket box towel mug",
    "shirt coat hat scarf dress skirt belt bag tie jacket cap sweater robe vest glove boot shoe sock suit apron",
    "car truck bus van boat train bike house door bench gate fence wall bridge tent flag tower barn roof ship plane",
)
"""Objects that can stand together, a line for each kind."""

OPENINGS = (
    "In the picture",
    "In the story",
    "In my drawing",
    "In the photo",
    "On the poster",
    "In the film",
    "In her novel",
    "In the game",
    "In his dream",
    "On the screen",
    "On the first page",
    "In this painting",
    "Look around:",
)

SENTENCES = {
    "two_objects": (
        "the {o} is {c} and the {o} is {c}.",
        "the {o} is {c}, but the {o} is {c}.",
        "the {o} is {c}, and the {o} next to it is {c}.",
        "there is a {c} {o} and a {c} {o}.",
        "I see a {c} {o} and a {c} {o}.",
        "we see a {c} {o} beside a {c} {o}.",
        "the {o} is {c}; the {o} is {c}.",
        "you can find a {c} {o} and also a {c} {o}.",
        "the {o} is painted {c} and the {o} is painted {c}.",
        "only the {o} is {c}, and only the {o} is {c}.",
        "the color of the {o} is {c} and the color of the {o} is {c}.",
    ),
    "three_objects": (
        "the {o} is {c}, the {o} is {c} and the {o} is {c}.",
        "the {o} is {c}, the {o} is {c}, but the {o} is {c}.",
        "the {o} is {c}, the {o} next to it is {c}, and the {o} is {c}.",
        "there is a {c} {o}, a {c} {o} and a {c} {o}.",
        "I see a {c} {o}, a {c} {o} and a {c} {o}.",
        "we see a {c} {o} between a {c} {o} and a {c} {o}.",
        "the {o} is {c}; the {o} is {c}; the {o} is {c}.",
        "you can find a {c} {o}, a {c} {o} and also a {c} {o}.",
        "the {o} is painted {c}, the {o} is painted {c} and the {o} is painted {c}.",
        "the {o} is {c}, and the {o} is {c}, and the {o} is {c}.",
        "the color of the {o} is {c}, the color of the {o} is {c} and the color of the {o} is {c}.",
    ),
}
"""``{o}`` is the next object, ``{c}`` the next color."""

QUESTIONS = (
    "Yes, the {asked}'s color is",
    "Yes, that is right, the {asked}'s color is",
    "Yes, of course, the {asked}'s color is",
    "Yes, I am sure, the {asked}'s color is",
    "Yes, indeed, the {asked}'s color is",
    "Yes, exactly, the {asked}'s color is",
    "Right, the {asked}'s color is",
    "Yes, you are right, the {asked}'s color is",
    "Yes, as I said, the {asked}'s color is",
    "Yes, no doubt, the {asked}'s color is",
    "Yes, certainly, the {asked}'s color is",
    "Yes, everyone says that the {asked}'s color is",
    "Yes, clearly, the {asked}'s color is",
    "Yes, it is true, the {asked}'s color is",
    "Yes, I think the {asked}'s color is",
)
"""``{asked}`` is the object of the question. They agree with what was said."""


@dataclass(frozen=True)
class Frame:
    """The wording around objects and colors: ``In the photo the {o} is {c} and ... Yes, the {asked}'s color is``."""

    opening: str
    sentence: str
    question: str

    @property
    def text(self) -> str:
        return f"{self.opening} {self.sentence} {self.question}"


def half(words: Iterable[str], split: str, belongs: Callable[[str], str] = split_of_frame) -> tuple[str, ...]:
    """Those of the words that belong to a split, in their order."""
    return tuple(word for word in words if belongs(word) == split)


GROUPS = {split: tuple(half(line.split(), split, split_of) for line in OBJECTS) for split in SPLITS}
FRAMES = {
    subset: {
        split: tuple(
            frame
            for frame in (Frame(*parts) for parts in product(*(half(w, split) for w in (OPENINGS, forms, QUESTIONS))))
            if split_of_frame(frame.text) == split
        )
        for split in SPLITS
    }
    for subset, forms in SENTENCES.items()
}
"""By subset and split: openings, sentences and questions are divided as well, so the splits share none of them."""


def write(frame: str, objects: list[str], colors: list[str], asked: int) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """The prompt and its marks; the object at place ``asked`` is asked for."""
    words = {"{o}": iter(objects), "{c}": iter(colors), "{asked}": iter([objects[asked]])}
    spans: dict[str, list[Span]] = {slot: [] for slot in words}
    text = ""
    for piece in re.split(r"(\{\w+\})", frame):
        if piece in words:
            word = next(words[piece])
            spans[piece].append((len(text), len(text) + len(word)))
            text += word
        else:
            text += piece
    color = spans["{c}"][asked]
    marks = {
        "color": (color,),
        "other_color": tuple(span for span in spans["{c}"] if span != color),
        "object": (spans["{o}"][asked], spans["{asked}"][0]),
    }
    return text, marks


@dataclass
class ColorTqa(Task):
    """``I see a red cup and a blue plate. Yes, the plate's color is`` asks for `` blue``.

    In the counterfactual the asked object and another one have exchanged their colors, and everything else stays: both
    texts have the same colors and the same objects, so both can be answered only by knowing which color belongs to
    which object. The text names the asked object first, last or between with equal chance, so neither order nor
    nearness gives the answer away; of the questions that SmolLM2-135M answers in both texts, few are about the middle
    one of three. The other question asks the same text for the object whose color is the foil (for any other one with
    the foil ``absent_color``).

    Objects and wordings are split, not texts: no object, opening, sentence or question of a training text stands in a
    test text. Paraphrases say and ask the same in other wordings of the same split.

    The questions agree with what was said ("Yes, of course"). Asked plainly ("The color of the plate is"), a small
    model goes on with "determined by" or "a", not with a color.

    Attributes:
        foil: the color the asked object gets in the counterfactual. ``other_object``: that of another object of the
            text, which gets the asked one's color. ``absent_color``: one that no object of the text has; no other
            object changes. Then knowing which colors the text has is enough to tell the answer from the foil.
    """

    name: ClassVar[str] = "color_tqa"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Read a text with two or three colored objects and name the color of one."
    paper: ClassVar[str] = "arXiv:2411.10950"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = tuple(SENTENCES)
    marks: ClassVar[tuple[str, ...]] = ("color", "other_color", "object")
    evidence: ClassVar[tuple[str, ...]] = ("color",)
    distractors: ClassVar[tuple[str, ...]] = ("other_color",)

    foil: str = "other_object"

    def __post_init__(self) -> None:
        if self.foil not in FOILS:
            raise ConfigurationError(f"foil is {self.foil!r}, expected 'other_object' or 'absent_color'.")
        super().__post_init__()

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            split = rng.choice(SPLITS)
            asked = rng.choice([thing for group in GROUPS[split] for thing in group])
            frame = rng.choice(FRAMES[subset][split])
            count = frame.sentence.count("{o}")
            near = next(group for group in GROUPS[split] if asked in group)
            objects = rng.sample([thing for thing in near if thing != asked], count - 1)
            place = rng.randrange(count)
            objects.insert(place, asked)
            other = rng.choice([i for i in range(count) if i != place])
            *colors, absent = rng.sample(COLORS, count + 1)
            changed = list(colors)
            if self.foil == "other_object":
                changed[place], changed[other] = colors[other], colors[place]
            else:
                changed[place] = absent
            otherwise = [
                f for f in FRAMES[subset][split] if f.sentence != frame.sentence and f.question != frame.question
            ]
            prompt, marks = write(frame.text, objects, colors, place)
            yield Example(
                prompt=prompt,
                answer=f" {colors[place]}",
                foil=f" {changed[place]}",
                counterfactual=write(frame.text, objects, changed, place)[0],
                marks=marks,
                item=asked,
                frame=frame.text,
                subset=subset,
                paraphrases=tuple(write(f.text, objects, colors, place)[0] for f in rng.sample(otherwise, 2)),
                other_question=write(frame.text, objects, colors, other)[0],
            )
