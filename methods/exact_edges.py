"""The exact effect of edges: what estimates of it are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.edges import counterfactual_of
from attriboard.errors import ConfigurationError
from attriboard.interventions import Intervention, intervene, single_effects
from attriboard.method import Method, methods, whole_number
from attriboard.model import Batch, EncodedExample, Model
from attriboard.scores import Scores, top_mask
from attriboard.shape import Shape

MOST = 50_000
"""The most edges that are all measured; each takes a forward pass from its destination's layer on, for every example.

GPT-2 small has 32,491.
"""
CHOSEN_BY = "eap"


@dataclass
class ExactEdges(Method):
    """The metric on the prompt minus the metric when one edge alone carries its source's counterfactual output.

    Everything else is computed anew from the destination on, at all positions: ``m(x) - m(x; r_v <- r_v + a'_u - a_u)``
    for the edge from ``u`` to ``v``.

    Of a model with more than 50,000 edges, only a sample is measured: ``top`` edges with the largest scores (by size)
    of ``eap`` over all the examples, and ``sample`` more drawn from the rest. **Edges outside it score 0, which says
    nothing of them**; ``Scores.metadata["measured"]`` names those inside. Such scores are for comparing estimates with
    exact effects, edge by edge, and make no circuit.

    Options:
        sample: how many edges are drawn at random; 0: all edges are measured, and ``top`` plays no part.
        top: how many of the largest are measured beside them.
        seed: of the draw.
    """

    name = "exact_edges"
    paper = "the definition that Syed et al. 2023, arXiv 2310.10348, approximate; Goldowsky-Dill et al. 2023"
    description = "metric lost when one edge alone carries its source's counterfactual output; exact"
    levels = ("edges",)
    needs = frozenset({"forward", "counterfactual"})
    uses = (CHOSEN_BY,)
    reads = ("answer", "foil", "counterfactual")
    properties = ("exact_effect", "exact_on_linear_model", "all_edges_is_clean", "no_edges_is_corrupted", "uses_answer")

    sample: int = 0
    top: int = 50
    seed: int = 0
    _chosen: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        whole_number(self, "sample", "top", "seed")
        for name in ("sample", "top"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} of {self.name} is {getattr(self, name)}, expected at least 0.")

    @property
    def averages(self) -> bool:
        """All edges of an example have their effects whatever the others are; a sample is drawn for all together."""
        return not self.sample

    def passes(self, shape: Shape, level: Level) -> float:
        graph, size = shape.graph, shape.size(level)
        share = min(1.0, (self.sample + self.top) / size) if self.sample else 1.0
        before = methods.make(CHOSEN_BY).passes(shape, level) if self.sample else 0.0
        rows = 0.0
        for layer, block in zip(graph.block_layers, graph.blocks()):
            edges = block.n_destinations * block.n_sources
            rows += edges * (shape.forward(layer, shared=True) + shape.edge_sums(layer))
        return before + shape.prefix() + 2 * (shape.forward(shared=True) + shape.look) + share * rows

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        if not self.sample:
            return super().attribute(model, examples, level)
        estimates = methods.make(CHOSEN_BY).attribute(model, examples, level)
        largest = top_mask(estimates.ranking(absolute=True), self.top)
        rest = torch.nonzero(~largest)[:, 0]
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.seed))[: self.sample]
        chosen = torch.cat([torch.nonzero(largest)[:, 0], rest[drawn]]).sort().values
        self._chosen = chosen
        try:
            found = super().attribute(model, examples, level)
        finally:
            self._chosen = None
        names = [found.names[i] for i in chosen.tolist()]
        return Scores(found.values, found.level, found.names, {**found.metadata, "measured": names}, found.each)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        n = level.size(model)
        if self._chosen is None and n > MOST:
            raise ConfigurationError(
                f"{model.name} has {n:,} edges, too many for {self.name} to replace one after the other (at most "
                f"{MOST:,}): set sample, for example to 200, to measure so many of them and the {self.top} largest by "
                f"{CHOSEN_BY}, or take {CHOSEN_BY}, which estimates all."
            )
        counterfactual_of(model, batch)
        return single_effects(self.intervention(model, batch, level), only=self._chosen)

    def intervention(self, model: Model, batch: Batch, level: Level) -> Intervention:
        """The runs in which any set of edges is replaced, of which the method asks for sets of one."""
        return intervene(model, batch, level)
