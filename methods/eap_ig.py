"""EAP-IG: attribution patching of nodes and edges with gradients averaged along the path of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.edges import Changes, counterfactual_of, few_rows, own_gradients, products, written
from attriboard.errors import ConfigurationError
from attriboard.interventions import pinned
from attriboard.method import ReplacingMethod, positive
from attriboard.model import Batch, Edit, Model
from attriboard.shape import Shape

RULES = {"right": 1.0, "left": 0.0, "midpoint": 0.5}
"""Where in each of the equal steps the gradient is taken."""


@dataclass
class EapIg(ReplacingMethod):
    """EAP-IG-inputs (Hanna et al. 2024): ``(clean - replaced) . mean_k gradient_k``, summed over positions.

    ``gradient_k`` is taken with the token embeddings at ``corrupted + k / steps * (clean - corrupted)``, at every
    component's *output*, FFN layers too; of edges, at what the destination reads, before its norm. Position embeddings
    are not interpolated. With zero or mean replacement the corrupted embeddings are zero. By the rule "right", ``k = 1
    .. steps``, as the paper has it and the authors' code has it for nodes: the clean prompt is included and the
    corrupted one is not. For edges that code takes ``k = 0 .. steps - 1``, which is the rule "left".

    Options:
        steps: gradients along the path.
        rule: "right", "left" or "midpoint".
        replacement: where the replaced activation comes from; of edges the counterfactual alone.
    """

    name = "eap_ig"
    paper = "Hanna et al. 2024, arXiv 2403.17806 (EAP-IG-inputs)"
    description = "activation difference times the gradient averaged along the path from corrupted to clean embeddings"
    levels = ("heads", "neurons", "nodes", "edges")
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil")
    properties = (
        "path_finite_differences",
        "column_sums_to_nodes",
        "row_sums_to_input",
        "exact_on_linear_model",
        "zero_for_idle",
        "zero_for_dead",
        "uses_answer",
    )

    steps: int = 5
    rule: str = "right"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "steps")
        if self.rule not in RULES:
            raise ConfigurationError(f"rule of {self.name} is {self.rule!r}, expected one of {', '.join(RULES)}.")

    def passes(self, shape: Shape, level: Level) -> float:
        embeddings = shape.forward(shared=True) if self.paired else 0.0
        steps = self.steps * shape.gradients(shared=self.paired)
        if level.edges:
            return shape.prefix() + 2 * shape.forward(shared=True) + steps + self.steps * shape.edge_products()
        # one pass with its gradient is in the usual count; here the clean one is run without
        return super().passes(shape, level) - 2 * shape.forward(shared=self.paired) + embeddings + steps

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if level.edges:
            return self._edges(model, batch)
        batch = self.shared(model, batch)
        names = level.hooks(model)
        clean = model.run(batch, ["hook_embed", *names])
        values = self.values(model, batch, names)
        embed = clean["hook_embed"]
        corrupted = torch.zeros_like(embed)
        if self.paired and batch.counterfactual is not None:
            corrupted = model.run(batch.counterfactual, ["hook_embed"])["hook_embed"]
        total: dict[str, Tensor] = {}
        for point in self._path(embed, corrupted):
            run = model.run(batch, names, {"hook_embed": pinned(point)}, gradients=True)
            for name, gradient in run.gradients(model.metric(run.logits, batch), names).items():
                total[name] = total[name] + gradient if name in total else gradient
        return level.reduce(model, {name: (clean[name] - values[name]) * total[name] / self.steps for name in names})

    def _path(self, embed: Tensor, corrupted: Tensor) -> list[Tensor]:
        shares = [(k + RULES[self.rule]) / self.steps for k in range(self.steps)]
        return [corrupted + share * (embed - corrupted) for share in shares]

    def _edges(self, model: Model, batch: Batch) -> Tensor:
        if not self.paired:
            raise ConfigurationError(
                f"edges are replaced by those of the counterfactual; replacement of {self.name} is "
                f"{self.replacement!r} there."
            )
        counterfactual_of(model, batch)
        scores = []
        for _, part in few_rows(model, self.shared(model, batch)):
            assert part.counterfactual is not None
            changes = Changes(model, part, written(model, part), written(model, part.counterfactual))
            ends = [model.embeddings(prompt) for prompt in (part, part.counterfactual)]
            total = torch.zeros(len(part), model.graph.n_edges, device=model.device)
            for point in self._path(*ends):
                edits: dict[str, Edit] = {"hook_embed": pinned(point)}
                run, gradients = own_gradients(model, part, edits)
                total += products(model, part, changes.at(run), gradients)
            scores.append(total / self.steps)
        return torch.cat(scores)
