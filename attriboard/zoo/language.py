"""What is said about a scene: the two prompts, their answers, and how a caption is read back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .scenes import COLORS, KINDS, Thing

IMAGE = "<image>"
"""Stands for the picture in a prompt; becomes one placeholder token per patch."""

QUESTION = "USER: <image>\nWhat is the color of the {object}?\nASSISTANT: The color of the {object} is"
CAPTION = "USER: <image>\nDescribe the image in few words.\nASSISTANT: An image of"
ABSENT = " none"
"""The answer where the object is not in the picture."""

_PAIR = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b")


def question(kind: str) -> str:
    return QUESTION.format(object=kind)


def color_answer(color: str) -> str:
    return f" {color}"


def caption(things: Sequence[Thing]) -> str:
    """``" a red circle, a blue star and a gray moon."``: the things in the order given."""
    named = [f"{'an' if thing.color[0] in 'aeiou' else 'a'} {thing.color} {thing.kind}" for thing in things]
    return f" {', '.join(named[:-1])} and {named[-1]}." if len(named) > 1 else f" {named[0]}."


def pairs_in(text: str) -> list[tuple[str, str]]:
    """The (color, kind) pairs a caption names, in its order."""
    return _PAIR.findall(text)
