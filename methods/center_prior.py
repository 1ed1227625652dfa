"""Control: the middle of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import InputLevel, Level
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class CenterPrior(Method):
    """Minus a patch's distance from the centre of the grid, whose sides are 1: photographers centre what they show."""

    name = "center_prior"
    paper = "control"
    description = "higher nearer the centre of the picture"
    levels = ("patches",)
    needs = frozenset()
    modality = "vision"
    control = True
    properties = ("mirror_symmetric", "ignores_weights", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        assert isinstance(level, InputLevel)
        scores = []
        for encoded in batch.examples:
            axes = [(torch.arange(n) + 0.5) / n - 0.5 for n in level.example_shape(model, encoded)]
            rows, columns = torch.meshgrid(*axes, indexing="ij")
            scores.append(-(rows.square() + columns.square()).sqrt())
        return level.place(model, batch, scores)
