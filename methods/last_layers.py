"""Control: the last layers first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class LastLayers(Method):
    """The layer's number: the whole of a later layer before an earlier one, and equal scores within a layer.

    It looks at nothing. What is near the output writes to the logits directly, so this order can do well without
    knowing anything of the answer.
    """

    name = "last_layers"
    paper = "control"
    description = "the number of the layer: last layers first"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset()
    control = True
    properties = ("orders_layers", "ignores_weights", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        layers = level.layer_of(model).view(level.shape(model)).to(torch.float32)
        return layers.expand(len(batch), *level.shape(model))
