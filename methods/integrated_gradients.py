"""Integrated gradients: of activations (knowledge neurons), one layer at a time, and of the input's embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import InputLevel, Level
from attriboard.interventions import input_replacement, pinned
from attriboard.method import ReplacingMethod, positive
from attriboard.model import Batch, Model, hook_name
from attriboard.shape import Shape


@dataclass
class IntegratedGradients(ReplacingMethod):
    """``(a - a') . integral of d metric / d activation`` along ``a' + alpha (a - a')``, one layer at a time.

    All activations of one layer (at all positions) move together from the baseline ``a'`` to their clean value while
    earlier layers stay clean, so the scores of a layer sum to the metric lost when the whole layer is replaced. The
    integral is a midpoint sum. Published for FFN neurons at one position with a zero baseline; ``replacement="zero"``
    with these levels is that method at all positions. Where a norm follows the sub-layer (Gemma 2 and 3), the model
    jumps as activations leave zero, and the sum with a zero baseline misses the jump: use another baseline there.

    At patches and tokens the embeddings at all positions of the level move together (image features or token
    embeddings; those of the other level stay as they are), and a position's score is the sum over its dimensions, so
    the scores of an example sum to the metric lost when the level is replaced. This is the method as first published.

    Options:
        steps: midpoints along the path.
        replacement: the baseline; of inputs, see :func:`attriboard.interventions.input_replacement`.
    """

    name = "integrated_gradients"
    paper = "Sundararajan et al. 2017; Dai et al. 2022 (knowledge neurons), arXiv 2104.08696, eq. 4"
    description = "gradients integrated while activations or embeddings move from the replacement to their value"
    levels = ("heads", "neurons", "patches", "tokens")
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil")
    properties = ("completeness", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "steps")

    def passes(self, shape: Shape, level: Level) -> float:
        if level.inputs:
            return self.steps * shape.gradients() + shape.look * (2 if self.paired else 1)
        layers = sum(shape.gradients(layer, self.paired) for layer in range(shape.n_layers))
        return ReplacingMethod.passes(self, shape, level) - 2 * shape.forward(shared=self.paired) + self.steps * layers

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if isinstance(level, InputLevel):
            baseline = input_replacement(model, batch, level, self.replacement)
            return self._integrate(model, batch, model.embeddings(batch), baseline, "hook_embed").sum(-1)
        batch = self.shared(model, batch)
        names = level.hooks(model)
        resid = [hook_name("resid_pre", layer) for layer in range(model.n_layers)]
        clean = model.run(batch, [*names, *resid])
        values = self.values(model, batch, names)
        products = {
            name: self._integrate(model, batch, clean[name], values[name], name, (layer, clean[r]))
            for layer, (name, r) in enumerate(zip(names, resid))
        }
        return level.reduce(model, products)

    def _integrate(
        self,
        model: Model,
        batch: Batch,
        value: Tensor,
        baseline: Tensor,
        name: str,
        start: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """``(value - baseline) . mean gradient`` at activation ``name``, shaped like it; passes begin at ``start``."""
        baseline = baseline.expand_as(value)
        alphas = (torch.arange(self.steps, device=value.device) + 0.5) / self.steps
        per_pass = max(1, model.batch_size // (2 * len(batch)))  # a pass with gradients keeps every activation
        total = torch.zeros_like(value, dtype=torch.float32)
        for part in alphas.split(per_pass):
            rows = torch.arange(len(batch), device=value.device).repeat(len(part))
            weight = part.repeat_interleave(len(batch)).to(value.dtype).view(-1, *(1,) * (value.dim() - 1))
            point = baseline[rows] + weight * (value - baseline)[rows]
            run = model.run(
                batch.rows(rows),
                [name],
                {name: pinned(point)},
                start=None if start is None else (start[0], start[1][rows]),
                gradients=True,
            )
            gradient = run.gradients(model.metric(run.logits, batch.rows(rows)), [name])[name]
            total += gradient.float().view(len(part), *value.shape).sum(0)
        return (value - baseline) * total / self.steps
