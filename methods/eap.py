"""Edge attribution patching: the first-order estimate of what each edge does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.edges import Changes, counterfactual_of, few_rows, own_gradients, products, written
from attriboard.method import Method
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class Eap(Method):
    """``(clean - counterfactual output of the source) . d metric / d what the destination reads``, on the clean prompt.

    Summed over positions; the gradient is that at the destination's own reading of the residual stream, before its
    norm. The effect of carrying the counterfactual's output over this one edge, to first order.
    """

    name = "eap"
    paper = "Syed et al. 2023, arXiv 2310.10348 (EAP)"
    description = "first-order estimate of what an edge does: its source's difference times its destination's gradient"
    levels = ("edges",)
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil", "counterfactual")
    properties = (
        "finite_differences",
        "column_sums_to_nodes",
        "row_sums_to_input",
        "exact_on_linear_model",
        "uses_answer",
    )

    def passes(self, shape: Shape, level: Level) -> float:
        return shape.usual(self.needs, counterfactual=True) + shape.edge_products()

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        counterfactual_of(model, batch)
        scores = []
        for _, part in few_rows(model, model.share_prefix(batch)):
            assert part.counterfactual is not None
            clean, gradients = own_gradients(model, part)
            changes = Changes(model, part, clean, written(model, part.counterfactual))
            scores.append(products(model, part, changes.at(clean), gradients))
        return torch.cat(scores)
