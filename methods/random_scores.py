"""Control: random scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import LEVELS, InputLevel, Level
from attriboard.method import Method, whole_number
from attriboard.model import Batch, EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class RandomScores(Method):
    """Standard normal scores from the seed: the floor of every table.

    At patches and tokens each example has scores of its own, drawn from the seed and the example alone.
    """

    name = "random"
    paper = "control"
    description = "standard normal scores"
    levels = tuple(LEVELS)
    needs = frozenset()
    control = True
    random = True
    control_kind = "random"
    properties = ("standard_normal", "ignores_weights", "ignores_answer")

    seed: int = 0

    def __post_init__(self) -> None:
        whole_number(self, "seed")

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        return self.scores(self._components(model, level), model, level)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if not isinstance(level, InputLevel):
            return self._components(model, level).expand(len(batch), *level.shape(model))
        drawn = []
        for encoded in batch.examples:
            digest = hashlib.sha256(f"{self.seed}:{level.name}:{encoded.example.key}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            drawn.append(torch.randn(len(level.positions(model, encoded)), generator=generator))
        return level.place(model, batch, drawn)

    def _components(self, model: Model, level: Level) -> Tensor:
        return torch.randn(level.shape(model), generator=torch.Generator().manual_seed(self.seed))
