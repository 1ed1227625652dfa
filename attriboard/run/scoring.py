"""Scoring: from a method and examples to scores, what they cost, and the file in which they are kept.

Scoring and evaluating are two steps: a method scores a cell once, whatever is asked of the scores, and a later
evaluation takes the stored ones. Precomputed scores come in by the same door.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..components import InputLevel, Level
from ..errors import ScoresError, SkipCell
from ..evaluation import speed
from ..evaluation.context import Context
from ..evaluation.crossfit import Found, draws_of_group, seed_of
from ..evaluation.division import merged
from ..evaluation.timing import timed
from ..exchange import precomputed
from ..measurements.speed import Speed
from ..method import Method, checked, checked_inputs
from ..model import EncodedExample, Model
from ..records.record import Cell, StoredScores
from ..scores import Scores, ties
from ..task import SPLITS
from .noise import Noise, noise, settle

GIT_BYTES = 2**14
"""Score files larger than this stand in ``scores/large``, which git ignores."""
TOP = 20
"""How many of the highest components a record names."""


@dataclass(frozen=True)
class Scored:
    """Scores (of inputs: one tensor per test example), and what they cost, where a method was run.

    Attributes:
        seconds: by stage, "scores" and "speed".
        content: the file that holds the scores.
        found: of components, the scores of groups of examples, where measurements are cross-fitted.
        noise: the share of the scores that were set to 0, since rounding alone could have made them.
    """

    scores: Scores | list[Tensor]
    speed: Speed | None
    seconds: dict[str, float]
    content: bytes
    found: Found | None = None
    noise: float = 0.0

    @property
    def values(self) -> list[Tensor]:
        return [self.scores.values] if isinstance(self.scores, Scores) else self.scores

    @property
    def every_value(self) -> list[Tensor]:
        """The scores, and those of groups."""
        return [*self.values, *([self.found.values] if self.found else [])]

    def stored(self, identity: str) -> StoredScores:
        """What a record says of them."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        large = "large/" if len(self.content) > GIT_BYTES else ""
        components = self.scores if isinstance(self.scores, Scores) else None
        return StoredScores(
            identity=identity,
            file=f"scores/{large}{sha256}.safetensors",
            sha256=sha256,
            values_sha256=hashlib.sha256(b"".join(v.numpy().tobytes() for v in self.every_value)).hexdigest(),
            metadata=_brief(components.metadata) if components else {},
            top=components.top(TOP) if components else [],
            sketch=components.sketch() if components else [],
            ties=float(np.mean([ties(values.flatten()) for values in self.values])),
            noise=self.noise,
        )


def score(method: Method, context: Context, level: Level, timing: Speed.Options, folds: int = 0) -> Scored:
    """Scores and what they cost: one set from the train split, or of inputs one for each test example.

    With ``folds``, the scores of groups of both halves as well; see :mod:`attriboard.evaluation.crossfit`.
    """
    model, examples = context.model, scored_split(context, level)

    def attributed(chosen: Sequence[EncodedExample]) -> Scores | list[Tensor]:
        if level.inputs:
            return checked_inputs(method.each(model, chosen, level), method)
        return checked(method.attribute(model, chosen, level), method, model, level)

    scores, once = speed.whole(attributed, model, examples)
    start = time.perf_counter()
    floor = noise(method, model, examples, level)
    quiet = settle(scores, floor, n=1 if level.inputs else len(examples))
    found: Found | None = None
    laps: list[speed.Lap] = []
    if folds and isinstance(scores, Scores):
        found, laps = of_groups(method, context, level, scores, folds, floor)
    seconds = {"scores": once.seconds + time.perf_counter() - start}
    start = time.perf_counter()
    few = examples[: timing.examples]
    # a method made for more examples than these is not repeated
    cost = speed.measure(attributed, model, few if _can_score(method, few) else [], once, timing, laps)
    seconds["speed"] = time.perf_counter() - start
    return Scored(quiet.scores, cost, seconds, packed(quiet.scores, level, found), found, quiet.share)


def of_groups(
    method: Method, context: Context, level: Level, scores: Scores, folds: int, floor: Noise | None = None
) -> tuple[Found, list[speed.Lap]]:
    """The scores of groups of the examples of both halves, 0 where they are no more than noise; and their times.

    Timed are the runs over the groups of the test half; of a control at random, of which every group has several draws,
    none is.

    A method whose scores of several examples are the mean of each one's own is not run again on the train half. One
    that cannot score so few examples gets half as many groups, and so on. Of a control at random every group has its
    own draws, at least :data:`attriboard.evaluation.crossfit.RANDOM_DRAWS` in all.

    Args:
        scores: of the whole train half.
        floor: how far rounding moves them.

    Raises:
        SkipCell: the test half as a whole lacks what the method needs; says what.
    """
    model, halves = context.model, (context.train, context.test)
    laps: list[speed.Lap] = []
    divided = [context.groups(half, folds) for half in SPLITS]
    n = min(map(len, divided))
    while True:
        groups = [merged(of_half, n) for of_half in divided]
        chosen = [[[half[i] for i in group] for group in of_half] for half, of_half in zip(halves, groups)]
        if n == 1 or all(_can_score(method, group) for of_half in chosen for group in of_half):
            break
        n = max(1, n // 2)
    if n == 1:
        method.check_examples(context.test)  # the train half was checked before it was scored

    def own(half: int, group: int) -> Tensor:
        """``[draws, *shape]``."""
        found = replace(scores, values=raw(half, group), each=None)
        if floor is None:
            return found.values
        quiet = settle(found, floor, len(groups[half][group])).scores
        assert isinstance(quiet, Scores)
        return quiet.values

    def raw(half: int, group: int) -> Tensor:
        if method.random:
            seeds = [seed_of("draw", method.seed, half, group, draw) for draw in range(draws_of_group(n))]  # type: ignore[attr-defined]
            runs = [replace(method, seed=seed).attribute(model, chosen[half][group], level) for seed in seeds]  # type: ignore[call-arg]
            return torch.stack([checked(run, method, model, level).values for run in runs])
        if half == 0 and scores.each is not None and method.averages:
            each = torch.stack([scores.each[i] for i in groups[half][group]])
            return each.double().mean(0, keepdim=True).float()
        if half == 0 and n == 1:
            return scores.values[None]
        runs = []
        seconds = timed(lambda: runs.append(method.attribute(model, chosen[half][group], level)), model.device)
        if half == 1:
            laps.append(speed.Lap(len(chosen[half][group]), seconds))
        return checked(runs[0], method, model, level).values[None]

    values = torch.stack([torch.stack([own(half, group) for group in range(n)]) for half in range(2)])
    return Found(values), laps


def from_file(cell: Cell, context: Context, level: Level) -> Scored:
    """Precomputed scores, for which no method is run.

    Raises:
        ScoresError: the file has changed since the run began, or does not fit the model.
    """
    assert cell.precomputed is not None
    start = time.perf_counter()
    file = precomputed.read(Path(cell.precomputed.file), cell.level)
    if file.sha256 != cell.precomputed.sha256:
        raise ScoresError(f"{file.path} has changed since the run began; run the same command again.")
    scores = file.fitting(context.model)
    return Scored(scores, None, {"scores": time.perf_counter() - start}, packed(scores, level))


def scored_split(context: Context, level: Level) -> list[EncodedExample]:
    """Components are scored on the train split; scores of inputs belong to the test examples they are judged on."""
    return context.test if level.inputs else context.train


def _can_score(method: Method, examples: Sequence[EncodedExample]) -> bool:
    """Whether these are examples enough: some methods compare subsets or answers."""
    try:
        method.check_examples(examples)
    except SkipCell:
        return False
    return True


# --- the file ---------------------------------------------------------------------------------------------------------


def packed(scores: Scores | list[Tensor], level: Level, found: Found | None = None) -> bytes:
    """Scores as a safetensors file; equal scores give equal bytes.

    Of components one float32 tensor ``scores``, shaped as the level, and, where the method scores single examples,
    ``each`` ``[examples, *shape]``; those of groups are ``groups`` ``[2, groups, draws, *shape]``. Of inputs one
    tensor for each test example, ``000000``, ``000001``, ... The metadata ``about`` is JSON: the level, and what the
    method says of its scores. Component names follow from the level and the shape, and are not stored.
    """
    about: dict[str, Any] = {"level": level.name}
    if isinstance(scores, Scores):
        tensors = {"scores": scores.values.contiguous()}
        if scores.each is not None:
            tensors["each"] = torch.stack(scores.each)
        if found is not None:
            tensors["groups"] = found.values.contiguous()
        about["metadata"] = scores.metadata
    else:
        tensors = {f"{i:06d}": values.float().contiguous() for i, values in enumerate(scores)}
    return save(tensors, {"about": json.dumps(about, sort_keys=True)})


def unpacked(content: bytes, context: Context, level: Level) -> tuple[Scores | list[Tensor], Found | None]:
    """The scores, and those of groups, that :func:`packed` wrote, of the examples of the same context.

    Raises:
        ScoresError: they are of another level, shape or number of examples.
    """
    if not isinstance(level, InputLevel):
        return unpacked_components(content, context.model, level)
    tensors, about = _opened(content)
    values = [tensors[name] for name in sorted(tensors)]
    expected = [level.example_shape(context.model, encoded) for encoded in context.test]
    if about["level"] != level.name or [tuple(v.shape) for v in values] != expected:
        raise ScoresError(f"stored scores of {about['level']} do not fit the examples.")
    return values, None


def unpacked_components(content: bytes, model: Model, level: Level) -> tuple[Scores, Found | None]:
    """The scores of components, and those of groups, that :func:`packed` wrote; of the model its shape is enough.

    Raises:
        ScoresError: they are of another level or shape.
    """
    tensors, about = _opened(content)
    scores = tensors["scores"]
    if about["level"] != level.name or tuple(scores.shape) != level.shape(model):
        raise ScoresError(f"stored scores of {about['level']} do not fit {model.name}.")
    each = list(tensors["each"]) if "each" in tensors else None
    found = Found(tensors["groups"]) if "groups" in tensors else None
    return Scores(scores, level.name, level.names(model), about["metadata"], each), found


def _opened(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file that :func:`packed` wrote, and what it says about them."""
    size = int.from_bytes(content[:8], "little")
    return load(content), json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["about"])


def _brief(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without its long lists, which belong to the score file."""
    return {k: v for k, v in metadata.items() if not (isinstance(v, list) and len(v) > 20)}
