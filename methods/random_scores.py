"""Control: random scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class RandomScores(Method):
    """Standard normal scores from the seed: the floor of every table."""

    name = "random"
    paper = "control"
    description = "standard normal scores"
    levels = ("heads", "neurons", "attn_neurons", "nodes")
    needs = frozenset()
    control = True

    seed: int = 0

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        generator = torch.Generator().manual_seed(self.seed)
        return self.scores(torch.randn(level.shape(model), generator=generator), model, level)
