"""Direct logit attribution: each component's own contribution to the answer's logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.log_prob import FrozenUnembedding, last_token
from attriboard.method import Method
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class DirectLogitAttribution(Method):
    """The component's output at the last token along the answer-minus-foil direction, final norm frozen.

    ``output . W_U^T (e_answer - e_foil)`` behind the frozen norm: the exact share of the logit difference that reaches
    the unembedding without passing through a later component. Without a foil the direction is the gradient of
    log p(answer) at the last residual. Head and FFN shares sum to the logit difference up to the embedding's share
    and biases.
    """

    name = "direct_logit_attribution"
    paper = "Elhage et al. 2021; Wang et al. 2023, arXiv 2211.00593, sec. 3.1"
    description = "the component's own share of the answer-minus-foil logit, final norm frozen"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "weights"})
    reads = ("answer", "foil")
    properties = ("shares_add_up", "zero_for_idle", "zero_for_dead", "uses_answer")

    def passes(self, shape: Shape, level: Level) -> float:
        return super().passes(shape, level) + shape.unembedded(1 if shape.foils else 3)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        activations, resid = last_token(model, batch, level.sites)
        direction = answer_direction(FrozenUnembedding(model, resid), batch, resid)
        per_layer = []
        for layer in range(model.n_layers):
            shares = []
            if "z" in activations:
                shares.append(
                    torch.einsum("bhd,bd->bh", model.head_outputs(layer, activations["z"][:, layer]).float(), direction)
                )
            if "mlp_out" in activations:
                shares.append((activations["mlp_out"][:, layer].float() * direction).sum(-1, keepdim=True))
            if "post" in activations:
                post = activations["post"][:, layer]
                gain = model.mlp_gain(layer, post)
                along = (direction if gain is None else direction * gain) @ model.W_out(layer).float().T
                shares.append(post.float() * along)
            per_layer.append(torch.cat(shares, dim=1))
        return torch.stack(per_layer, dim=1)


def answer_direction(unembedding: FrozenUnembedding, batch: Batch, resid: Tensor) -> Tensor:
    """``[B, d_model]``: the residual direction whose product with an output is its share of what is explained."""
    weights = torch.zeros(len(batch), unembedding.W_U.shape[0], device=resid.device)
    weights.scatter_(1, batch.answer[:, None], 1.0)
    weights.scatter_add_(1, batch.foil.clamp(min=0)[:, None], -torch.ones_like(weights[:, :1]))
    along = unembedding.pull_back(weights)
    if bool((batch.foil >= 0).all()):
        return along
    return torch.where(batch.foil[:, None] >= 0, along, unembedding.tangent(resid.float(), batch.answer))
