"""EAP-IG (activations): edge attribution patching with gradients along the paths of activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.edges import Changes, Written, counterfactual_of, few_rows, own_gradients, products, written
from attriboard.errors import ConfigurationError
from attriboard.interventions import pinned
from attriboard.method import Method, positive
from attriboard.model import Batch, Edit, Model, hook_name
from attriboard.shape import Shape


@dataclass
class EapIgActivations(Method):
    """As ``eap``, with gradients averaged while one group of sources at a time goes from corrupted to clean outputs.

    The groups are the embedding, the heads of each layer and the FFN of each layer; ``k = 1 .. steps`` of ``steps``
    equal steps each. In the authors' code every pass counts for every edge, so that an edge's gradient is the mean over
    all groups' paths; ``credit="own"`` counts for each edge the path of its own source's group alone.

    Options:
        steps: gradients along each path.
        credit: "all" (the published code) or "own".
    """

    name = "eap_ig_activations"
    paper = "Hanna et al. 2024, arXiv 2403.17806 (EAP-IG-activations)"
    description = "as eap, with gradients averaged along the paths of single layers' outputs from corrupted to clean"
    levels = ("edges",)
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil", "counterfactual")
    properties = ("exact_on_linear_model", "uses_answer")

    steps: int = 5
    credit: str = "all"

    def __post_init__(self) -> None:
        positive(self, "steps")
        if self.credit not in ("all", "own"):
            raise ConfigurationError(f"credit of {self.name} is {self.credit!r}, expected 'all' or 'own'.")

    def passes(self, shape: Shape, level: Level) -> float:
        groups = 2 * shape.n_layers + 1
        each = self.steps * (shape.gradients(shared=True) + shape.edge_products())
        return shape.prefix() + 2 * (shape.forward(shared=True) + shape.look) + groups * each

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        counterfactual_of(model, batch)
        return torch.cat([self._scores(model, part) for _, part in few_rows(model, model.share_prefix(batch))])

    def _scores(self, model: Model, batch: Batch) -> Tensor:
        assert batch.counterfactual is not None
        clean, other = written(model, batch), written(model, batch.counterfactual)
        changes = Changes(model, batch, clean, other)
        groups = _groups(model, batch, clean, other)
        source = torch.tensor(model.graph.edge_sources, device=model.device)
        total = torch.zeros(len(batch), model.graph.n_edges, device=model.device)
        for name, (sources, at_clean, at_other) in groups.items():
            of_group = torch.zeros_like(total)
            for k in range(1, self.steps + 1):
                edits: dict[str, Edit] = {name: pinned(at_other + k / self.steps * (at_clean - at_other))}
                run, gradients = own_gradients(model, batch, edits)
                of_group += products(model, batch, changes.at(run), gradients) / self.steps
            if self.credit == "own":
                own = (source >= sources.start) & (source < sources.stop)
                total += of_group * own
            else:
                total += of_group / len(groups)
        return total


def _groups(model: Model, batch: Batch, clean: Written, other: Written) -> dict[str, tuple[range, Tensor, Tensor]]:
    """By activation, which sources it holds, its clean value and that of the counterfactual."""
    assert batch.counterfactual is not None
    embeds = [model.embeddings(prompt) for prompt in (batch, batch.counterfactual)]
    found = {"hook_embed": (range(1), *embeds)}
    for layer in range(model.n_layers):
        first, after = model.graph.sources_before(layer), model.graph.sources_before(layer + 1)
        found[hook_name("z", layer)] = (range(first, after - 1), clean.z[layer], other.z[layer])
        found[hook_name("mlp_out", layer)] = (range(after - 1, after), clean.mlp[layer], other.mlp[layer])
    return found  # type: ignore[return-value]
