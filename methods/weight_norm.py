"""Control: the size of a component's output weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class WeightNorm(Method):
    """The Frobenius norm of the component's block of its output projection; it never sees a prompt."""

    name = "weight_norm"
    paper = "control"
    description = "norm of the component's output weights"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"weights"})
    control = True
    properties = ("scales_with_output", "zero_for_idle", "ignores_answer")

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        per_layer = []
        for layer in range(model.n_layers):
            heads = model.W_O(layer).float().flatten(1).norm(dim=1)
            out = model.W_out(layer).float()
            norms = {"z": heads, "post": out.norm(dim=1), "mlp_out": out.norm()[None]}
            per_layer.append(torch.cat([norms[site] for site in level.sites]))
        return self.scores(torch.stack(per_layer), model, level)
