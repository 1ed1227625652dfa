"""Which color has this object in the picture, told in words?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from attriboard.task import IMAGE, Example, Task
from attriboard.zoo.language import caption, question
from attriboard.zoo.scenes import Scene

from .color_vqa import ColorVqa, Question, mentions

PARAPHRASES = (
    "USER: I see{told}\nWhat is the color of the {kind}?\nASSISTANT: The color of the {kind} is",
    "USER: The picture shows{told}\nTell me the color of the {kind}.\nASSISTANT: The color of the {kind} is",
)


def tell(kind: str, scene: Scene) -> str:
    """The question for a kind after a scene in words: ``There is a red circle and a gray moon.``, left to right."""
    return question(kind).replace(IMAGE, f"There is{caption(scene.left_to_right)}")


@dataclass
class ColorTqaScenes(ColorVqa):
    """``There is a red circle and a blue star.`` ... ``The color of the star is`` asks for `` blue``.

    The questions of ``color_vqa``, drawn from the same seed in the same order, with words in the place of the picture:
    what differs between the two tasks on one model is how it gets to know the colors. A model can refuse different
    ones (a picture's counterfactual has the same text), so the two are matched by :attr:`Example.twin`.

    In the counterfactual the asked object and another one have exchanged their color words (with the foil
    ``absent_color`` the asked one's word alone is another). The objects are told from left to right, and the asked one
    may be any of them.
    """

    name: ClassVar[str] = "color_tqa_scenes"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "Read what the picture of color_vqa shows and name the color of one object."
    marks: ClassVar[tuple[str, ...]] = ("color", "other_color", "object")
    evidence: ClassVar[tuple[str, ...]] = ("color",)
    distractors: ClassVar[tuple[str, ...]] = ("other_color",)
    regions: ClassVar[tuple[str, ...]] = Task.regions
    levels: ClassVar[tuple[str, ...]] = Task.levels
    modality: ClassVar[str] = Task.modality

    def ask(self, drawn: Question, subset: str) -> Example:
        prompt = tell(drawn.thing.kind, drawn.scene)
        told = [match.span(1) for match in re.finditer(r"\ba (\w+) \w+", prompt)]  # every color begins with a consonant
        color = told[drawn.scene.left_to_right.index(drawn.thing)]
        others = tuple(span for span in told if span != color)
        return Example(
            prompt=prompt,
            answer=f" {drawn.thing.color}",
            foil=f" {drawn.foil}",
            counterfactual=tell(drawn.thing.kind, drawn.counterfactual),
            marks={
                "color": (color,),
                "object": mentions(drawn.thing.kind, prompt),
                **({"other_color": others} if others else {}),
            },
            item=drawn.item,
            subset=subset,
            twin=drawn.twin,
            paraphrases=tuple(
                frame.format(told=caption(drawn.scene.left_to_right), kind=drawn.thing.kind) for frame in PARAPHRASES
            ),
            other_question=tell(drawn.other_kind, drawn.scene),
        )
