"""Control: the first layers first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class FirstLayers(Method):
    """How many layers there are from a component's own to the last: earlier layers first, equal scores within a layer.

    Scores are positive, so that the order is the same by signed and by absolute score.
    It looks at nothing. Where activations are exchanged for those of the counterfactual, what is near the input carries
    the whole difference between the two prompts, so this order can do well without knowing anything of the answer.
    """

    name = "first_layers"
    paper = "control"
    description = "how many layers are left: first layers first"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset()
    control = True
    properties = ("orders_layers", "ignores_weights", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        layers = level.layer_of(model).view(level.shape(model)).to(torch.float32)
        return (model.n_layers - layers).expand(len(batch), *level.shape(model))
