"""Shapley values of text tokens, by sampling permutations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import InputLevel, Level
from attriboard.interventions import Replacement, input_replacement, replacing
from attriboard.method import ReplacingMethod, positive, whole_number
from attriboard.model import Batch, EncodedExample, Model
from attriboard.shape import Shape


@dataclass
class Shap(ReplacingMethod):
    """Shapley values of the game whose players are the text tokens and whose worth is the metric.

    A token that is out has its embedding replaced; image patches are always in. The mean gain over random orders in
    which tokens come in, an unbiased estimate whose values always sum to the metric of the prompt minus that of the
    replaced one (captum's ShapleyValueSampling). Orders are drawn from the seed and the example alone. One row of a
    forward pass per token and order.

    Options:
        samples: orders drawn.
        replacement: what stands in place of a token's embedding; see
            :func:`attriboard.interventions.input_replacement`.
        seed: of the orders.
    """

    name = "shap"
    paper = "Lundberg & Lee 2017, arXiv 1705.07874; Strumbelj & Kononenko 2010 (sampling)"
    description = "Shapley values of text tokens, sampled"
    levels = ("tokens",)
    needs = frozenset({"forward"})
    reads = ("answer", "foil")
    properties = ("completeness", "exact_on_linear_model", "zero_for_idle", "uses_answer")

    replacement: Replacement = "mean"
    samples: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "samples")
        whole_number(self, "seed")

    def passes(self, shape: Shape, level: Level) -> float:
        return (1 + self.samples * shape.inputs) * shape.forward() + shape.look

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        assert isinstance(level, InputLevel)
        return level.place(model, batch, [self._example(model, encoded, level) for encoded in batch.examples])

    def _example(self, model: Model, encoded: EncodedExample, level: InputLevel) -> Tensor:
        """``[1, n]``: one example's values, by itself so that no other one has a part in them."""
        from captum.attr import ShapleyValueSampling  # takes seconds to import, and only this method needs it

        batch = model.batch([encoded])
        values = {"hook_embed": input_replacement(model, batch, level, self.replacement)}
        columns = level.columns(model, batch)[0].nonzero()[:, 0]

        def worth(present: Tensor) -> Tensor:
            rows = torch.zeros(len(present), dtype=torch.long)
            out = torch.zeros(len(present), batch.tokens.shape[1], dtype=torch.bool, device=model.device)
            out[:, columns] = present == 0
            run = model.run(batch.rows(rows), edits=replacing(values, {"hook_embed": out[..., None]}, rows))
            return model.metric(run.logits, batch.rows(rows))

        digest = hashlib.sha256(f"{self.seed}:{encoded.example.key}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            return ShapleyValueSampling(worth).attribute(
                torch.ones(1, len(columns), device=model.device),
                n_samples=self.samples,
                perturbations_per_eval=model.batch_size,
            )
