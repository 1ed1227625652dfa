"""Multi-modal neurons by gradients: how a neuron at the picture's positions moves the answer's logit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import Batch, Model

from .gradient_x_activation import products


@dataclass
class MultimodalNeuronsGradient(Method):
    """``activation . d logit(answer) / d activation`` of each neuron, summed over the picture's positions.

    The first-order effect on the answer's logit of zeroing the neuron wherever it sees the picture. The published
    work scores the neurons of a text-only model that is shown projected image features; the foil plays no part.
    """

    name = "multimodal_neurons_gradient"
    paper = "Schwettmann et al. 2023, arXiv 2308.01544"
    description = "activation times gradient of the answer's logit, at the picture's positions alone"
    levels = ("neurons",)
    needs = frozenset({"forward", "gradients"})
    reads = ("answer",)
    modality = "vision"
    properties = ("picture_finite_differences", "zero_for_idle", "zero_for_dead", "uses_answer", "ignores_foil")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        seen = batch.image_mask[..., None]
        derivatives = products(model, batch, level, _answer_logit)
        return level.reduce(model, {name: product * seen for name, product in derivatives.items()})


def _answer_logit(logits: Tensor, batch: Batch) -> Tensor:
    """``[B]``: the logit of each row's answer, from logits ``[B, V]``."""
    return logits.float()[torch.arange(len(batch), device=logits.device), batch.answer]
