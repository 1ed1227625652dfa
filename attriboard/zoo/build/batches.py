"""What ``llava-smollm2-135m`` is trained on: pictures, what is on their patches, and texts about them, step by step.

Every picture is drawn for its step from the seed, the stage and the step's number, and no picture is seen twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..language import ABSENT, CAPTION, caption, color_answer, question
from ..llava import GRID, PATCH, PATCHES
from ..llava import with_placeholders as full
from ..scenes import COLORS, KINDS, Scene, random_scene
from .packing import Packed, Said, pack

ORDER = ("first", "second", "third")
"""Words for an object's place from left to right."""

_PER_OBJECT_COVER = 0.12  # share of a patch that an object covers for the patch to be called the object's
_COVER_OF_NONE = 0.02  # share below which a patch is called background; between the two, nothing is asked of it
IGNORED = -100
_THINGS_BY_STEP = (3, 2, 3, 1, 3, 2)
"""How many things the scenes of consecutive steps of stage b have."""


@dataclass(frozen=True)
class Settings:
    """Everything that determines the weights, besides the language model and the kind of machine.

    Attributes:
        steps_a, steps_b, batch_a, batch_b: steps, and pictures in a step, of the two stages.
        rate_a: peak learning rate of stage a.
        rate_vision, rate_projector, rate_lora: peak learning rates of stage b.
        rank, scale: of the low-rank parts.
        heads: weight of stage a's loss within stage b.
        function_words: weight of a caption's tokens that are neither a color nor a kind.
        text_every: a step of stage b in so many also asks the model to be what it was on text of its own.
        text_weight, texts, text_tokens, text_batch: weight of that loss, how many texts there are, their length, and
            how many are read at a time.
    """

    seed: int = 0
    steps_a: int = 2200
    steps_b: int = 210
    batch_a: int = 96
    batch_b: int = 8
    rate_a: float = 1e-3
    rate_vision: float = 2e-4
    rate_projector: float = 3e-4
    rate_lora: float = 1e-3
    rank: int = 8
    scale: float = 2.0
    heads: float = 0.2
    function_words: float = 0.2
    text_every: int = 4
    text_weight: float = 1.0
    texts: int = 96
    text_tokens: int = 40
    text_batch: int = 6

    @property
    def steps(self) -> dict[str, int]:
        return {"a": self.steps_a, "b": self.steps_b}


@dataclass(frozen=True)
class Batch:
    """Pictures of one step. ``B`` pictures.

    Attributes:
        pictures: [B, SIZE, SIZE, 3], uint8.
        labels: [3, B, PATCHES]; color, kind and place of each patch's object; the number after the last is background,
            and -100 asks nothing.
        things: how many things each picture has.
        packed: the texts about them; None in stage a.
    """

    pictures: np.ndarray
    labels: np.ndarray
    things: int
    packed: Packed | None


class Steps(Dataset[Batch]):
    """Step number to its batch; everything by chance in it comes from the seed, the stage and the number."""

    def __init__(self, settings: Settings, stage: str, tokenizer: Any):
        self.settings, self.stage, self.tokenizer = settings, stage, tokenizer

    def __len__(self) -> int:
        return self.settings.steps[self.stage]

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.settings.seed}/{self.stage}/{step}")
        if self.stage == "a":
            scenes = [random_scene(rng, rng.choice((1, 2, 3, 3))) for _ in range(self.settings.batch_a)]
        else:
            things = _THINGS_BY_STEP[step % len(_THINGS_BY_STEP)]
            count = pictures_in_step(self.settings.batch_b, step)
            scenes = [random_scene(rng, things) for _ in range(count)]
        packed = None
        if self.stage == "b":
            packed = pack([texts_about(s, self.tokenizer, rng, self.settings.function_words) for s in scenes])
        return Batch(
            pictures=np.stack([scene.pixels() for scene in scenes]),
            labels=np.stack([patch_labels(scene) for scene in scenes], axis=1),
            things=len(scenes[0].things),
            packed=packed,
        )


def pictures_in_step(batch: int, step: int) -> int:
    """How many pictures a step of stage b has: short rows are cheap, so there are more where there are fewer things."""
    return batch + 2 * (3 - _THINGS_BY_STEP[step % len(_THINGS_BY_STEP)])


def patch_labels(scene: Scene) -> np.ndarray:
    """Color, kind and place from left to right of the object on each patch, [3, PATCHES]; see :class:`Batch`."""
    masks = scene.masks().reshape(-1, GRID, PATCH, GRID, PATCH)
    cover = masks.mean(axis=(2, 4)).reshape(len(scene.things), PATCHES)
    owner, most = cover.argmax(axis=0), cover.max(axis=0)
    places = [scene.left_to_right.index(thing) for thing in scene.things]
    own = np.array(
        [
            [COLORS.index(thing.color) for thing in scene.things],
            [KINDS.index(thing.kind) for thing in scene.things],
            places,
        ]
    )
    labels = own[:, owner]
    nothing = np.array([len(COLORS), len(KINDS), len(ORDER)])[:, None]
    labels = np.where(most < _COVER_OF_NONE, nothing, labels)
    return np.where((most >= _COVER_OF_NONE) & (most < _PER_OBJECT_COVER), IGNORED, labels)


def texts_about(scene: Scene, tokenizer: Any, rng: random.Random, function_words: float) -> list[Said]:
    """A question for each thing and one for something absent, and the caption."""
    absent = rng.choice([kind for kind in KINDS if kind not in {thing.kind for thing in scene.things}])
    asked = [(thing.kind, color_answer(thing.color)) for thing in scene.things] + [(absent, ABSENT)]
    said = [_said(tokenizer, question(kind), answer, "") for kind, answer in asked]
    end = tokenizer.eos_token or ""
    tokens, prompt, _ = _said(tokenizer, CAPTION, caption(scene.left_to_right), end)
    content = _content_words(tokenizer)
    return [*said, (tokens, prompt, [1.0 if token in content else function_words for token in tokens[prompt:]])]


@cache
def _content_words(tokenizer: Any) -> frozenset[int]:
    return frozenset(word_id(tokenizer, word) for word in (*COLORS, *KINDS))


def word_id(tokenizer: Any, word: str) -> int:
    """The token of a word after a space."""
    ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens after a space, expected 1")
    return ids[0]


def _said(tokenizer: Any, prompt: str, answer: str, end: str) -> Said:
    before, after = encode(tokenizer, prompt), encode(tokenizer, prompt + answer + end)
    if after[: len(before)] != before or len(after) == len(before):
        raise ValueError(f"the tokens of {prompt!r} are not the first ones of {prompt + answer!r}")
    return after, len(before), [1.0] * (len(after) - len(before))


@cache
def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of a text, an image's placeholders in place of its mark."""
    return tuple(tokenizer(full(text)).input_ids)


def loader(dataset: Steps, start: int, workers: int) -> Iterator[Batch]:
    """The batches from step ``start`` on, drawn by so many processes."""
    numbers = range(start, len(dataset))
    options: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 4} if workers else {}
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, collate_fn=_as_it_is, **options))


def _as_it_is(batch: Any) -> Any:
    return batch


def to_tensors(packed: Packed, device: str) -> dict[str, Tensor]:
    """By field of :class:`.packing.Packed` a tensor on the device."""
    return {field.name: torch.from_numpy(getattr(packed, field.name)).to(device) for field in fields(packed)}
