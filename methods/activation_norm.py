"""Control: how much a component writes, whatever it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.log_prob import last_token
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class ActivationNorm(Method):
    """The Euclidean norm of what the component adds to the residual stream at the last token."""

    name = "activation_norm"
    paper = "control"
    description = "norm of the component's output at the last token"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "weights"})
    control = True
    properties = ("zero_for_idle", "zero_for_dead", "scales_with_output", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        activations, _ = last_token(model, batch, level.sites)
        per_layer = []
        for layer in range(model.n_layers):
            norms = []
            if "z" in activations:
                norms.append(model.head_outputs(layer, activations["z"][:, layer]).float().norm(dim=-1))
            if "mlp_out" in activations:
                norms.append(activations["mlp_out"][:, layer].float().norm(dim=-1, keepdim=True))
            if "post" in activations:
                post = activations["post"][:, layer]
                gain = model.mlp_gain(layer, post)
                squares = model.W_out(layer).float().square()
                scale = squares.sum(-1) if gain is None else gain.square() @ squares.T
                norms.append(post.float().abs() * scale.sqrt())
            per_layer.append(torch.cat(norms, dim=1))
        return torch.stack(per_layer, dim=1)
