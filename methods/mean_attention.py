"""Mean attention: how much the last token looks at a position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.interventions import watched
from attriboard.method import Method
from attriboard.model import Batch, Model, hook_name


@dataclass
class MeanAttention(Method):
    """The attention weight from the last token to the position, averaged over all layers and heads.

    The baseline map of Yu and Ananiadou (2024b); it asks neither what is read nor whether it helps the answer.
    """

    name = "mean_attention"
    paper = "Yu & Ananiadou 2024, arXiv 2411.10950"
    description = "attention from the last token, averaged over layers and heads"
    levels = ("patches", "tokens")
    needs = frozenset({"forward"})
    properties = ("sums_to_one", "ignores_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        rows = torch.arange(len(batch), device=model.device)
        patterns: dict[str, Tensor] = {}
        names = [hook_name("pattern", layer) for layer in range(model.n_layers)]

        def at_last(pattern: Tensor) -> Tensor:
            return pattern[rows, :, batch.last].float().mean(1)

        model.run(batch, edits={name: watched(patterns, name, at_last) for name in names})
        return torch.stack([patterns[name] for name in names]).mean(0)
