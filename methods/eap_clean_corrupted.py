"""Clean-corrupted: edge attribution patching with the gradients of both prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.edges import Changes, counterfactual_of, few_rows, own_gradients, products
from attriboard.method import Method
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class EapCleanCorrupted(Method):
    """As ``eap``, with the mean of the gradients on the clean prompt and on its counterfactual.

    That is the trapezoid rule with two points for the path that EAP-IG integrates over.
    """

    name = "eap_clean_corrupted"
    paper = "Hanna et al. 2024, arXiv 2403.17806 (clean-corrupted)"
    description = "as eap, with the mean of the gradients on the prompt and on its counterfactual"
    levels = ("edges",)
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil", "counterfactual")
    properties = ("exact_on_linear_model", "uses_answer")

    def passes(self, shape: Shape, level: Level) -> float:
        both = 2 * (shape.gradients(shared=True) + shape.look + shape.edge_products())
        return shape.prefix() + both

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        counterfactual_of(model, batch)
        scores = []
        for _, part in few_rows(model, model.share_prefix(batch)):
            assert part.counterfactual is not None
            clean, at_clean = own_gradients(model, part)
            other, at_other = own_gradients(model, part.counterfactual)
            changes = Changes(model, part, clean, other)
            both = [products(model, part, changes.at(run), at) for run, at in ((clean, at_clean), (other, at_other))]
            scores.append(torch.stack(both).mean(0))
        return torch.cat(scores)
