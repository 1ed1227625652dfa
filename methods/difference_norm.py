"""Control: how differently a component writes on the prompt and on its counterfactual, whatever it writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.method import Method
from attriboard.model import Batch, Model, hook_name


@dataclass
class DifferenceNorm(Method):
    """The Euclidean norm, over all positions, of what the counterfactual changes in the component's output.

    The difference is that of the two vectors which the component adds to the residual stream at a position; squared
    lengths are summed over positions, and the root is taken. Neither the answer nor a gradient plays a part.
    """

    name = "difference_norm"
    paper = "control"
    description = "norm of the difference between the component's outputs on prompt and counterfactual"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "weights", "counterfactual"})
    control = True
    reads = ("counterfactual",)
    properties = ("zero_for_idle", "zero_for_dead", "scales_with_output", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if batch.counterfactual is None:
            raise ConfigurationError(f"{self.name} needs a counterfactual for every example.")
        shared = model.share_prefix(batch)  # outputs of what both prompts share do not differ
        assert shared.counterfactual is not None
        names = level.hooks(model)
        clean, other = model.run(shared, names), model.run(shared.counterfactual, names)
        real = shared.real[:, :, None]
        per_layer = []
        for layer in range(model.n_layers):
            squares = []
            for site in level.sites:
                pair = [run[hook_name(site, layer)] for run in (clean, other)]
                squares.append((_squares(model, layer, site, *pair) * real).sum(1))
            per_layer.append(torch.cat(squares, dim=1).sqrt())
        return torch.stack(per_layer, dim=1)


def _squares(model: Model, layer: int, site: str, clean: Tensor, other: Tensor) -> Tensor:
    """``[B, T, n]``: the squared length of the difference of the outputs of a layer's ``n`` components."""
    if site == "mlp_out":
        return (clean.float() - other.float()).square().sum(-1, keepdim=True)
    if site == "z":
        # one position after the other: [B, H, d_model] at a time instead of [B, T, H, d_model]
        columns = zip(clean.unbind(1), other.unbind(1))
        return torch.stack([_head_squares(model, layer, a, b) for a, b in columns], dim=1)
    g, h = (model.mlp_gain(layer, post) for post in (clean, other))
    squares = model.W_out(layer).float().square()
    difference = clean.float() - other.float()
    if g is None or h is None:
        return difference.square() * squares.sum(-1)
    # a g - b h = (a - b) (g + h) / 2 + (a + b) (g - h) / 2, squared: nothing is [B, T, n, d_model], and nothing small
    # is a difference of what is large
    total, middle, half = clean.float() + other.float(), (g + h) / 2, (g - h) / 2
    length = difference.square() * (middle.square() @ squares.T) + total.square() * (half.square() @ squares.T)
    return (length + 2 * difference * total * ((middle * half) @ squares.T)).clamp(min=0)


def _head_squares(model: Model, layer: int, clean: Tensor, other: Tensor) -> Tensor:
    """``[B, H]``, from heads' outputs ``[B, H, d_head]`` at one position."""
    outputs = [model.head_outputs(layer, z).float() for z in (clean, other)]
    return (outputs[0] - outputs[1]).square().sum(-1)
