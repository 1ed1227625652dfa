"""Attention rollout: attention followed through the layers down to the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.interventions import watched
from attriboard.method import Method
from attriboard.model import Batch, Model, hook_name


@dataclass
class AttentionRollout(Method):
    """The last row of ``A_L ... A_1``, where ``A_l`` is half the layer's mean attention over heads and half identity.

    The identity stands for the residual connection; every ``A_l`` has rows that sum to 1, and so has the product. It
    uses no gradient and no answer.
    """

    name = "attention_rollout"
    paper = "Abnar & Zuidema 2020, arXiv 2005.00928, eq. 1"
    description = "mean attention with the residual connection, multiplied through the layers"
    levels = ("patches", "tokens")
    needs = frozenset({"forward"})
    properties = ("sums_to_one", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        patterns: dict[str, Tensor] = {}
        names = [hook_name("pattern", layer) for layer in range(model.n_layers)]
        model.run(batch, edits={name: watched(patterns, name, lambda x: x.float().mean(1)) for name in names})
        row = torch.nn.functional.one_hot(batch.last, batch.tokens.shape[1]).float()
        for name in reversed(names):
            row = 0.5 * row + 0.5 * torch.einsum("bq,bqk->bk", row, patterns[name])
        return row
