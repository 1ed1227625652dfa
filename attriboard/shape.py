"""The shape of a model and of a task's examples, from which the work of a method follows before anything runs.

What a method takes is said in forward passes (:meth:`attriboard.method.Method.passes`): over :attr:`Shape.full`, the
floating-point operations of one forward pass of an example's prompt, counted as :mod:`attriboard.models.cost` counts
those that are done. An average example stands for all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from .graph import Graph
from .models.cost import BACKWARD, Sizes

if TYPE_CHECKING:
    from .components import Level
    from .model import Model


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and of the examples that it is asked about.

    Attributes:
        n_layers, n_heads, d_head, d_model, d_mlp, d_vocab: of the model; ``d_mlp`` is 0 where FFNs are mixtures of
            experts.
        gained: whether a norm follows the sub-layers, so that what a component writes differs between examples.
        graph: the nodes and edges of the model.
        sizes: what a pass multiplies.
        positions: of a prompt, those of its picture included.
        shared: positions at its beginning that its counterfactual has too, and whose keys are computed once.
        inputs: how many positions are scored, at a level of inputs.
        examples: how many are scored in one call.
        marks: by mark of the task, how many positions it covers.
        foils: whether every example has a foil.
        tower: operations of the vision tower for a picture; 0 without one.
    """

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    d_vocab: int
    gained: bool
    graph: Graph
    sizes: Sizes
    positions: int
    shared: int = 0
    inputs: int = 0
    examples: int = 1
    marks: Mapping[str, float] = field(default_factory=dict)
    foils: bool = True
    tower: int = 0

    @classmethod
    def of(cls, model: Model, positions: int, **example: object) -> Shape:
        """That of a model, loaded or in outline, and of examples of ``positions``; the rest as in the class."""
        return cls(
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            d_head=model.d_head,
            d_model=model.d_model,
            d_mlp=model.d_mlp if model.has_neurons else 0,
            d_vocab=model.d_vocab,
            gained=model.architecture.mlp_post_norm is not None,
            graph=model.graph,
            sizes=model.sizes,
            positions=positions,
            **example,  # type: ignore[arg-type]
        )

    @property
    def full(self) -> int:
        """Floating-point operations of one forward pass of a prompt: all layers, the logits at its end, its picture."""
        return self.sizes.flops(self.positions) + self.tower

    @property
    def look(self) -> float:
        """A picture's way through the vision tower; 0 without a picture."""
        return self.tower / self.full

    def forward(self, layer: int = 0, shared: bool = False) -> float:
        """A forward pass of one row from a layer on, without the vision tower.

        Args:
            layer: the first that is run.
            shared: only what follows the prefix that prompt and counterfactual share.
        """
        before = self.shared if shared else 0
        return self.sizes.flops(self.positions - before, before, layer) / self.full

    def prefix(self) -> float:
        """The pass in which the keys and values of the shared prefix are made."""
        return self.sizes.flops(self.shared, logits=0) / self.full if self.shared else 0.0

    def gradients(self, layer: int = 0, shared: bool = False) -> float:
        """A forward pass as :meth:`forward` and the backward pass through it."""
        return (1 + BACKWARD) * self.forward(layer, shared)

    def usual(self, needs: Collection[str], counterfactual: bool = False) -> float:
        """What a method takes that runs each prompt once.

        Args:
            needs: as :attr:`attriboard.method.Method.needs`; neither "forward" nor "gradients" is no pass at all.
            counterfactual: whether the counterfactual is run too, both behind the prefix that they share.
        """
        if not {"forward", "gradients"} & set(needs):
            return 0.0
        own = self.gradients if "gradients" in needs else self.forward
        if not counterfactual:
            return own() + self.look
        return self.prefix() + self.forward(shared=True) + own(shared=True) + 2 * self.look

    def ablations(self, level: Level, paired: bool) -> float:
        """Replacing every component of a level by itself: each row runs from its component's layer to the last.

        Args:
            level: of components.
            paired: whether activations come from the counterfactual, behind the prefix that both prompts share.
        """
        rows = sum(self.forward(layer, paired) for layer in range(self.n_layers)) * self.size(level) / self.n_layers
        before = self.prefix() + self.forward(shared=True) + self.look if paired else 0.0
        return before + self.forward(shared=paired) + self.look + rows

    def edge_products(self) -> float:
        """What each source writes times what each destination reads, behind the prefix that both prompts share."""
        return 2 * self.graph.n_edges * (self.positions - self.shared) * self.d_model / self.full

    def edge_sums(self, layer: int) -> float:
        """What destinations from a layer on read beyond the residual stream, of one row in which edges are replaced."""
        edges = self.graph.n_edges - self.graph.into_heads(layer).first
        return 2 * edges * (self.positions - self.shared) * self.d_model / self.full

    def unembedded(self, rows: float) -> float:
        """Rows through the unembedding, or back through it."""
        return self.product(rows, self.d_model, self.d_vocab)

    def product(self, rows: float, inner: float, columns: float) -> float:
        """A matrix product ``[rows, inner] @ [inner, columns]``."""
        return 2 * rows * inner * columns / self.full

    def size(self, level: Level) -> int:
        """How many components a level has, or how many positions of an example are scored."""
        if level.inputs:
            return self.inputs
        return level.size(cast("Model", self))  # which asks for nothing but the sizes above

    def tangents(self, level: Level) -> float:
        """The tangent bounds of all components that write one vector: there and back for each layer, and a product."""
        per_layer = self.size(level) / self.n_layers
        return self.unembedded(2 * self.n_layers) + self.n_layers * self.product(1, self.d_model, per_layer)

    def exactly(self, candidates: float, examples: int) -> float:
        """The exact log-probability increase of candidates that examples share, by example.

        The vectors are unembedded once for all examples, or for each where a norm follows the sub-layer; and for each
        example the residuals that they are added to.
        """
        vectors = candidates if self.gained else candidates / examples
        return self.unembedded(vectors + min(candidates, self.n_layers))
