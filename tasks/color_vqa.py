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
from attriboard.task import Example, Task
from attriboard.zoo.language import question
from attriboard.zoo.scenes import COLORS, HELD_OUT, Scene, Thing, random_scene

FOILS = ("recolored", "other_object")
REPEATS = 2000  # questions drawn again in a row after which the words are taken to be exhausted


@dataclass(frozen=True)
class Question:
    """The color of one thing in a scene is asked for, and compared with a foil, the thing's color after recoloring."""

    scene: Scene
    asked: int
    foil: str

    @property
    def thing(self) -> Thing:
        return self.scene.things[self.asked]

    @property
    def recolored(self) -> Scene:
        return self.scene.recolored(self.asked, self.foil)

    @property
    def item(self) -> str:
        """What is asked for in words: no such pair is asked for in both splits."""
        return f"{self.thing.color} {self.thing.kind}"

    @property
    def twin(self) -> str:
        """Digest of the scene and of what is asked: the same for a picture and for its words."""
        text = json.dumps([self.scene.to_dict(), self.asked, self.foil], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def words(self) -> tuple[str, ...]:
        """All that a text can say of it."""
        return (*(f"{t.color} {t.kind}" for t in self.scene.left_to_right), self.item, self.foil)


def questions(subset: str, foil: str, rng: random.Random) -> Iterator[Question]:
    """Questions that differ in words, whatever their pixels, until nearly all that there are have been drawn.

    The asked thing is drawn uniformly; among held-out questions it is the one thing that is held out. Recoloring
    never makes a held-out pair, so that a counterfactual is as familiar to the model as what it was trained on.
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
        kind, colors = scene.things[asked].kind, {thing.color for thing in scene.things}
        if foil == "recolored":
            offered = [color for color in COLORS if color not in colors]
        else:
            offered = [thing.color for i, thing in enumerate(scene.things) if i != asked]
        offered = [color for color in offered if (color, kind) not in HELD_OUT]
        if not offered:
            continue
        drawn = Question(scene, asked, rng.choice(offered))
        if drawn.words in seen:
            repeats += 1
            continue
        seen.add(drawn.words)
        repeats = 0
        yield drawn


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

    The pictures are drawn, so the pixels of every object are known. In the counterfactual picture the asked object is
    recolored and no other pixel changes. Place and size are drawn alike for all objects, whichever is asked for, so
    they tell nothing about it. No (color, kind) pair asked for in one split is asked for in the other.

    Held-out questions are about a pair of color and kind that the project's own model never met in training, though it
    met the color and the kind: whoever answers them has looked, not remembered.

    The task ``color_tqa_scenes`` asks the same in words; equal questions have equal :attr:`Example.twin`.

    Attributes:
        foil: the color the asked object gets in the counterfactual. ``recolored``: one that no object of the picture
            has; ``other_object``: that of another object in the picture, so that knowing which colors there are is of
            no help (there are then at least two objects).
    """

    name: ClassVar[str] = "color_vqa"
    version: ClassVar[int] = 1
    description: ClassVar[str] = "Look at a picture of one to three colored objects and name the color of one."
    paper: ClassVar[str] = "arXiv:2411.10950"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = ("one_object", "two_objects", "three_objects", "held_out")
    marks: ClassVar[tuple[str, ...]] = ("object",)
    regions: ClassVar[tuple[str, ...]] = ("object", "other", "background")
    evidence: ClassVar[tuple[str, ...]] = ("object",)
    distractors: ClassVar[tuple[str, ...]] = ("other",)
    levels: ClassVar[tuple[str, ...]] = tuple(LEVELS)
    modality: ClassVar[str] = "vision"
    stream: ClassVar[str] = "color_scenes:1"

    foil: str = "recolored"

    def __post_init__(self) -> None:
        if self.foil not in FOILS:
            raise ConfigurationError(f"foil is {self.foil!r}, expected 'recolored' or 'other_object'.")
        if self.foil == "other_object":
            if "one_object" in self.subsets:
                raise ConfigurationError(
                    "foil is 'other_object', which the subset 'one_object' does not have: leave out that subset, or "
                    "set foil='recolored'."
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
            counterfactual_image=drawn.recolored.draw(),
            regions=regions(drawn.scene, drawn.asked),
            twin=drawn.twin,
        )
