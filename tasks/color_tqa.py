"""Which color does the text give to this object?"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from attriboard.task import Example, Span, Task, split_of

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "gray")


@dataclass(frozen=True)
class Scene:
    """Objects that can stand together, and frames of text around two and around three of them.

    ``{o}`` is the next object, ``{c}`` the next color, ``{asked}`` the object of the question. Every color begins
    with a consonant, so that "a" is right before all of them.
    """

    objects: tuple[str, ...]
    two: tuple[str, ...]
    three: tuple[str, ...]


SCENES = (
    Scene(
        ("dog", "cat", "horse", "rabbit", "bird", "goat", "cow", "mouse"),
        (
            "Her {o} is {c}, but her {o} is {c}. As I said, her {asked} is",
            "Look around: the {o} is {c} and the {o} is {c}. As I said, the {asked} is",
            "My uncle has a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
        (
            "The {o} is {c}, the {o} is {c}, and the {o} is {c}. As I said, the {asked} is",
            "In the story the {o} is {c}, the {o} is {c}, and the {o} is {c}. As I said, the {asked} is",
            "The farm has a {c} {o}, a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
    ),
    Scene(
        ("cup", "plate", "bowl", "bottle", "spoon", "lamp", "candle", "clock", "book", "pen"),
        (
            "In the kitchen the {o} is {c} and the {o} is {c}. As I said, the {asked} is",
            "In our house the {o} is {c} and the {o} is {c}. As I said, the {asked} is",
            "She owns a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
        (
            "All is here: the {o} is {c}, the {o} is {c}, and the {o} is {c}. As I said, the {asked} is",
            "The {o} is {c}, the {o} is {c}, but the {o} is {c}. As I said, the {asked} is",
            "He has a {c} {o}, a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
    ),
    Scene(
        ("shirt", "coat", "hat", "scarf", "dress", "skirt", "belt", "bag", "tie", "jacket"),
        (
            "My {o} is {c}, and my {o} is {c}. As I said, my {asked} is",
            "We saw that the {o} is {c} while the {o} is {c}. As I said, the {asked} is",
            "Anna wears a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
        (
            "Her {o} is {c}, her {o} is {c} and her {o} is {c}. As I said, her {asked} is",
            "In the closet the {o} is {c}, the {o} is {c}, and the {o} is {c}. As I said, the {asked} is",
            "Tom has a {c} {o}, a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
    ),
    Scene(
        ("car", "truck", "bus", "van", "boat", "train", "bike", "house", "door", "bench"),
        (
            "Look outside: the {o} is {c} and the {o} is {c}. As I said, the {asked} is",
            "The {o} is {c}, but the {o} is {c}. As I said, the {asked} is",
            "I see a {c} {o} and a {c} {o} here. Yes, of course, the {asked}'s color is",
        ),
        (
            "In my drawing the {o} is {c}, the {o} is {c} and the {o} is {c}. As I said, the {asked} is",
            "The {o} is {c}; the {o} is {c}; the {o} is {c}. As I said, the {asked} is",
            "The photo shows a {c} {o}, a {c} {o} and a {c} {o}. Yes, of course, the {asked}'s color is",
        ),
    ),
)


def write(frame: str, objects: list[str], colors: list[str], position: int) -> tuple[str, dict[str, tuple[Span, ...]]]:
    """The prompt and its marks; the object at ``position`` is asked for."""
    words = {"{o}": iter(objects), "{c}": iter(colors), "{asked}": iter([objects[position]])}
    spans: dict[str, list[Span]] = {slot: [] for slot in words}
    text = ""
    for piece in re.split(r"(\{\w+\})", frame):
        if piece in words:
            word = next(words[piece])
            spans[piece].append((len(text), len(text) + len(word)))
            text += word
        else:
            text += piece
    color = spans["{c}"][position]
    marks = {
        "color": (color,),
        "other_color": tuple(span for span in spans["{c}"] if span != color),
        "object": (spans["{o}"][position], spans["{asked}"][0]),
    }
    return text, marks


@dataclass
class ColorTqa(Task):
    """``She owns a red cup and a blue plate. Yes, of course, the plate's color is`` asks for `` blue``.

    In the counterfactual the asked object has a color that no object of the text had; everything else stays. The
    text names the asked object first, last or between, so neither order nor nearness gives the answer away. Objects
    are split, not texts: no object of a training text stands in a test text. Paraphrases say and ask the same in the
    scene's other frames.

    The questions agree with what was said ("As I said", "Yes, of course"). Asked plainly ("The color of the plate
    is"), a small model goes on with "determined by" or "a", not with a color.
    """

    name: ClassVar[str] = "color_tqa"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Read a text with two or three colored objects and name the color of one."
    paper: ClassVar[str] = "arXiv:2411.10950"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = ("two_objects", "three_objects")
    marks: ClassVar[tuple[str, ...]] = ("color", "other_color", "object")
    evidence: ClassVar[tuple[str, ...]] = ("color",)
    distractors: ClassVar[tuple[str, ...]] = ("other_color",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        count = 2 if subset == "two_objects" else 3
        while True:
            scene = rng.choice(SCENES)
            frames = scene.two if count == 2 else scene.three
            frame = rng.choice(frames)
            asked = rng.choice(scene.objects)
            others = [o for o in scene.objects if o != asked and split_of(o) == split_of(asked)]
            objects = rng.sample(others, count - 1)
            position = rng.randrange(count)
            objects.insert(position, asked)
            *colors, foil = rng.sample(COLORS, count + 1)
            prompt, marks = write(frame, objects, colors, position)
            exchanged = [*colors[:position], foil, *colors[position + 1 :]]
            yield Example(
                prompt=prompt,
                answer=f" {colors[position]}",
                foil=f" {foil}",
                counterfactual=write(frame, objects, exchanged, position)[0],
                marks=marks,
                item=asked,
                subset=subset,
                paraphrases=tuple(write(other, objects, colors, position)[0] for other in frames if other != frame),
            )
