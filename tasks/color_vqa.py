"""Which color has this object in the picture?"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attriboard.errors import ConfigurationError
from attriboard.levels import LEVELS
from attriboard.task import Example, Task, split_of
from attriboard.zoo.language import question
from attriboard.zoo.scenes import COLORS, HELD_OUT, KINDS, Scene, Thing, random_pairs, random_scene

FOILS = ("other_object", "absent_color")
REPEATS = 2000  # questions drawn again in a row after which the words are taken to be exhausted


@dataclass(frozen=True)
class Question:
    """The color of one thing in a scene is asked for, and compared with a foil, the thing's color after recoloring.

    Attributes:
        scene: what is seen or told.
        asked: which of its things is asked for.
        foil: another color; that of thing ``other`` where it is exchanged, else one that no thing has.
        other: which thing, or which kind that the scene does not have, the other question asks for.
        exchanged: whether the asked thing and ``other`` get each other's color in the counterfactual.
    """

    scene: Scene
    asked: int
    foil: str
    other: int | str
    exchanged: bool

    @property
    def thing(self) -> Thing:
        return self.scene.things[self.asked]

    @property
    def counterfactual(self) -> Scene:
        """The scene in which the foil is the right answer."""
        scene = self.scene.recolored(self.asked, self.foil)
        if self.exchanged and isinstance(self.other, int):
            return scene.recolored(self.other, self.thing.color)
        return scene

    @property
    def other_kind(self) -> str:
        """The kind that the other question asks for."""
        return self.scene.things[self.other].kind if isinstance(self.other, int) else self.other

    @property
    def item(self) -> str:
        """What is asked for in words: no such pair is asked for in both splits."""
        return f"{self.thing.color} {self.thing.kind}"

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Every (color, kind) that the scene or the counterfactual has."""
        return {(t.color, t.kind) for scene in (self.scene, self.counterfactual) for t in scene.things}

    @property
    def twin(self) -> str:
        """Digest of the scene and of what is asked: the same for a picture and for its words."""
        text = json.dumps([self.scene.to_dict(), self.asked, self.foil, self.other], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def words(self) -> tuple[str, ...]:
        """All that a text can say of it."""
        return (*(f"{t.color} {t.kind}" for t in self.scene.left_to_right), self.item, self.foil)


def questions(subset: str, foil: str, rng: random.Random) -> Iterator[Question]:
    """Questions that differ in words, whatever their pixels, until nearly all that there are have been drawn.

    The asked thing is drawn uniformly; among held-out questions it is the one thing that is held out. The
    counterfactual has no held-out pair, so that it is as familiar to the model as what it was trained on. All pairs
    of color and kind in the scene and in the counterfactual are of one split, so nothing that stands in a question of
    one split stands in the other.
    """
    counts = {"one_object": (1, 1), "two_objects": (2, 2), "three_objects": (3, 3), "held_out": (1, 3)}
    fewest, most = counts[subset]
    if foil == "other_object":
        fewest = max(fewest, 2)
    seen: set[tuple[str, ...]] = set()
    repeats = 0
    while repeats < REPEATS:
        scene = random_scene(rng, rng.randint(fewest, most), held_out=subset == "held_out")
        asked = 0 if subset == "held_out" else rng.randrange(len(scene.things))
        drawn = compare(scene, asked, foil, rng)
        while not usable(drawn):
            for i, (color, kind) in enumerate(random_pairs(rng, len(scene.things), subset == "held_out")):
                scene = scene.replaced(i, kind, color)
            drawn = compare(scene, asked, foil, rng)
        if drawn.words in seen:
            repeats += 1
            continue
        seen.add(drawn.words)
        repeats = 0
        yield drawn


def compare(scene: Scene, asked: int, foil: str, rng: random.Random) -> Question:
    """The question for one thing of a scene, with a foil and another thing or kind drawn for it."""
    kinds, colors = {thing.kind for thing in scene.things}, {thing.color for thing in scene.things}
    others = [i for i in range(len(scene.things)) if i != asked]
    if foil == "other_object":
        other = rng.choice(others)
        return Question(scene, asked, scene.things[other].color, other, exchanged=True)
    absent = rng.choice([color for color in COLORS if color not in colors])
    another = rng.choice(others) if others else rng.choice([kind for kind in KINDS if kind not in kinds])
    return Question(scene, asked, absent, another, exchanged=False)


def usable(drawn: Question) -> bool:
    """Whether the counterfactual has no held-out pair and all pairs of color and kind are of one split."""
    if any((thing.color, thing.kind) in HELD_OUT for thing in drawn.counterfactual.things):
        return False
    return len({split_of(f"{color} {kind}") for color, kind in drawn.pairs}) == 1


def regions(scene: Scene, asked: int) -> dict[str, np.ndarray]:
    """The pixels of the asked thing, of the other things if there are any, and of neither."""
    masks = scene.masks()
    regions_shown = {"object": masks[asked], "background": np.logical_not(masks.any(axis=0))}
    if len(masks) > 1:
        regions_shown["other"] = np.logical_or.reduce(np.delete(masks, asked, axis=0))
    return regions_shown


def mentions(word: str, text: str) -> tuple[tuple[int, int], ...]:
    """Where a word stands in a text."""
    return tuple(match.span() for match in re.finditer(rf"\b{word}\b", text))


@dataclass
class ColorVqa(Task):
    """``<image>`` ... ``What is the color of the star?`` ... ``The color of the star is`` asks for `` blue``.

    The pictures are drawn, so the pixels of every object are known. In the counterfactual picture the asked object and
    another one have each other's color, and no other pixel changes: both pictures have the same colors and the same
    kinds, so both can be answered only by seeing which color belongs to which object. Place and size are drawn alike
    for all objects, whichever is asked for, so they tell nothing about it. No pair of color and kind that stands in a
    question or counterfactual of one split stands in the other.

    The other question asks the same picture for the object whose color is the foil (with the foil ``absent_color``
    for any other one, or for a kind that is not there where the picture has one object). The words are those that the
    model learned and the same in all questions, so there are no frames.

    Held-out questions are about a pair of color and kind that the project's own model never met in training, though it
    met the color and the kind: whoever answers them has looked, not remembered.

    The task ``color_tqa_scenes`` asks the same in words; equal questions have equal :attr:`Example.twin`.

    Attributes:
        foil: the color the asked object gets in the counterfactual. ``other_object``: that of another object in the
            picture, which gets the asked one's color (the subset ``one_object`` does not have it). ``absent_color``:
            one that no object of the picture has; no other object changes. Then knowing which colors are there is
            enough to tell the answer from the foil.
    """

    name: ClassVar[str] = "color_vqa"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Look at a picture of two or three colored objects and name the color of one."
    paper: ClassVar[str] = "arXiv:2411.10950"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = ("one_object", "two_objects", "three_objects", "held_out")
    marks: ClassVar[tuple[str, ...]] = ("object",)
    regions: ClassVar[tuple[str, ...]] = ("object", "other", "background")
    evidence: ClassVar[tuple[str, ...]] = ("object",)
    distractors: ClassVar[tuple[str, ...]] = ("other",)
    levels: ClassVar[tuple[str, ...]] = tuple(LEVELS)
    modality: ClassVar[str] = "vision"
    stream: ClassVar[str] = "color_scenes:2"

    foil: str = "other_object"

    def __post_init__(self) -> None:
        if self.foil not in FOILS:
            raise ConfigurationError(f"foil is {self.foil!r}, expected 'other_object' or 'absent_color'.")
        if self.foil == "other_object":
            if "one_object" in self.subsets:
                raise ConfigurationError(
                    "foil is 'other_object', which the subset 'one_object' does not have: leave out that subset, or "
                    "set foil='absent_color'."
                )
            self.subsets = tuple(self.subsets) or tuple(s for s in self.all_subsets if s != "one_object")
        super().__post_init__()

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        for drawn in questions(subset, self.foil, rng):
            yield self.ask(drawn, subset)

    def ask(self, drawn: Question, subset: str) -> Example:
        """The example a question becomes."""
        prompt = question(drawn.thing.kind)
        return Example(
            prompt=prompt,
            answer=f" {drawn.thing.color}",
            foil=f" {drawn.foil}",
            marks={"object": mentions(drawn.thing.kind, prompt)},
            item=drawn.item,
            subset=subset,
            image=drawn.scene.draw(),
            counterfactual_image=drawn.counterfactual.draw(),
            regions=regions(drawn.scene, drawn.asked),
            twin=drawn.twin,
            other_question=question(drawn.other_kind),
        )
