"""Multi-modal neurons: activation times what the neuron's output vector says about the answer (Pan et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.log_prob import last_token
from attriboard.method import Method
from attriboard.model import Batch, Model

SITES = {"gate": "act", "down_in": "post"}
"""By the name of the activation, where it is read."""


@dataclass
class MultimodalNeurons(Method):
    """``S[l, j] = A[l, j] * Pi[l, j, t]`` at the last token, with ``Pi = W_out W_U^T`` and ``t`` the answer.

    ``Pi[l, j, t]`` is the logit of the answer that the neuron's output vector alone would write. As published, no norm
    stands between: neither the final norm's weight and scale nor, in Gemma 2 and 3, the norm after the FFN. Ranked
    signed. One column of ``Pi`` is made for each distinct answer, so the cost is that of the forward pass. It scores
    the answer of any prompt, with a picture or without.

    Options:
        activation: "gate", the output of the activation function, as published (in a gated FFN it is not yet
            multiplied by the up-projection); or "down_in", the coefficient that multiplies the output vector, which
            makes the score the neuron's own unnormalized contribution to the answer's logit. Without a gate, the same.
    """

    name = "multimodal_neurons"
    paper = "Pan et al. 2024, arXiv 2311.07470"
    description = "activation times the answer's logit in the neuron's output vector, without norms"
    levels = ("neurons",)
    needs = frozenset({"forward", "weights"})
    reads = ("answer",)
    properties = ("scales_with_output", "zero_for_idle", "zero_for_dead", "uses_answer", "ignores_foil")

    activation: str = "gate"

    def __post_init__(self) -> None:
        if self.activation not in SITES:
            raise ConfigurationError(
                f"activation of {self.name} is {self.activation!r}, expected {' or '.join(map(repr, SITES))}."
            )

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        site = SITES[self.activation]
        activations, _ = last_token(model, batch, (site,))
        answers, place = batch.answer.unique(return_inverse=True)
        directions = model.W_U[answers].float()  # [distinct answers, d_model]
        projections = [directions @ model.W_out(layer).float().T for layer in range(model.n_layers)]
        return activations[site].float() * torch.stack(projections, dim=1)[place]
