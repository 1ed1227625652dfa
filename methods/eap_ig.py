"""EAP-IG at node level: attribution patching with gradients averaged along the path of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.interventions import pinned
from attriboard.method import ReplacingMethod, positive
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class EapIg(ReplacingMethod):
    """EAP-IG-inputs (Hanna et al. 2024) for nodes: ``(clean - replaced) . mean_k gradient_k``, summed over positions.

    ``gradient_k`` is taken with the token embeddings at ``corrupted + k / steps * (clean - corrupted)``, ``k = 1 ..
    steps`` (so the clean prompt is included and the corrupted one is not), at every component's *output*, FFN layers
    too. Position embeddings are not interpolated. With zero or mean replacement the corrupted embeddings are zero.

    Options:
        steps: gradients along the path.
        replacement: where the replaced activation comes from.
    """

    name = "eap_ig"
    paper = "Hanna et al. 2024, arXiv 2403.17806 (EAP-IG-inputs)"
    description = "activation difference times the gradient averaged along the path from corrupted to clean embeddings"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil")
    properties = ("path_finite_differences", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "steps")

    def passes(self, shape: Shape, level: Level) -> float:
        embeddings = shape.forward(shared=True) if self.paired else 0.0
        steps = self.steps * shape.gradients(shared=self.paired)
        # one pass with its gradient is in the usual count; here the clean one is run without
        return super().passes(shape, level) - 2 * shape.forward(shared=self.paired) + embeddings + steps

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        batch = self.shared(model, batch)
        names = level.hooks(model)
        clean = model.run(batch, ["hook_embed", *names])
        values = self.values(model, batch, names)
        embed = clean["hook_embed"]
        corrupted = torch.zeros_like(embed)
        if self.paired and batch.counterfactual is not None:
            corrupted = model.run(batch.counterfactual, ["hook_embed"])["hook_embed"]
        total: dict[str, Tensor] = {}
        for k in range(1, self.steps + 1):
            point = corrupted + k / self.steps * (embed - corrupted)
            run = model.run(batch, names, {"hook_embed": pinned(point)}, gradients=True)
            for name, gradient in run.gradients(model.metric(run.logits, batch), names).items():
                total[name] = total[name] + gradient if name in total else gradient
        return level.reduce(model, {name: (clean[name] - values[name]) * total[name] / self.steps for name in names})
