"""What work a model does, in floating-point operations worked out from the shapes of its weights.

Counted are matrix products: those with every weight matrix of a block at every position that is run (in a mixture of
experts, of the experts that work there, and of all of them where the model multiplies by all), those of attention
(queries with keys, the pattern with values), the unembedding at the positions at which it is evaluated, and the vision
tower where a picture is looked at. A multiply-add is two operations. Not counted are elementwise operations, norms,
softmax, biases and look-ups.

Work is that of every example run by itself: real positions count, padding does not; what rows of a batch are run
through only because of their neighbors does not count either. So it depends on neither the batch size, the padding nor
the other examples. In attention, every position that is run meets every real position up to the last one of its row:
the causal half that is masked is multiplied all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .batch import Batch, EncodedExample

BACKWARD = 2
"""Forward passes that a backward pass counts as: the usual convention, a product for each factor's gradient.

Where parameters need no gradients, as here, products with weights take one and those of attention two.
"""


@dataclass
class Cost:
    """Work done, in floating-point operations.

    Attributes:
        forward: of forward passes and of single products.
        backward: of backward passes, each :data:`BACKWARD` times its forward pass.
    """

    forward: int = 0
    backward: int = 0
    _looked: WeakKeyDictionary[EncodedExample, list[Tensor]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    @property
    def flops(self) -> int:
        """All work done."""
        return self.forward + self.backward

    def product(self, rows: int, inner: int, columns: int) -> None:
        """Counts a matrix product that is no part of a pass: ``[rows, inner] @ [inner, columns]``."""
        self.forward += 2 * rows * inner * columns

    def back(self, flops: int) -> None:
        """Counts a backward pass through what took ``flops`` operations forward."""
        self.backward += BACKWARD * flops

    def look(self, batch: Batch, tower: int) -> None:
        """Counts the vision tower, ``tower`` operations, for each picture that an example has not shown before.

        Image features are computed once for a picture and read in every later pass, so they count once for each
        example and each of its pictures, the counterfactual's too where it is another one.
        """
        for example, features in zip(batch.examples, batch.looked):
            seen = self._looked.setdefault(example, [])
            if not any(features is other or torch.equal(features, other) for other in seen):
                seen.append(features)
                self.forward += tower


@dataclass(frozen=True)
class Sizes:
    """What a pass multiplies.

    Attributes:
        weights: by layer, the entries of all weight matrices from that layer to the last; 0 behind the last.
        attention: query heads times their width, the same in every layer.
        unembedding: the entries of the unembedding.
    """

    weights: tuple[int, ...]
    attention: int
    unembedding: int

    def flops(self, positions: int, before: int = 0, layer: int = 0, logits: int = 1) -> int:
        """Operations of one row of a forward pass.

        Args:
            positions: how many are run.
            before: how many stand before them whose keys and values are known.
            layer: the first layer that is run; the number of layers for a row that need not be run at all.
            logits: at how many positions the unembedding is evaluated.
        """
        layers = len(self.weights) - 1 - layer
        if layers == 0:
            return 0
        attended = 2 * layers * self.attention * positions * (before + positions)
        return 2 * (positions * self.weights[layer] + attended + logits * self.unembedding)

    def rows(self, batch: Batch, layers: Sequence[int] | int = 0, logits: int = 1) -> int:
        """Operations of a forward pass of a batch whose rows begin at ``layers``, one for all or one for each."""
        starts = [layers] * len(batch) if isinstance(layers, int) else layers
        return sum(self.flops(n, before, at, logits) for (n, before), at in zip(batch.spans, starts, strict=True))


def sizes_of(
    blocks: Sequence[nn.Module], attention: int, unembedding: Tensor, experts: Sequence[int] | None = None
) -> Sizes:
    """The sizes of a model.

    Args:
        blocks: first to last.
        attention: query heads times their width.
        unembedding: ``[V, d_model]``.
        experts: by layer, the entries of the matrices of as many experts as work at one position; none if None.
    """
    behind = [0]
    for block, routed in zip(reversed(blocks), reversed(experts or [0] * len(blocks)), strict=True):
        behind.append(behind[-1] + routed + sum(weight.numel() for _, weight in _matrices(block.modules())))
    return Sizes(tuple(reversed(behind)), attention, unembedding.numel())


def _matrices(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, Tensor]]:
    """The modules that multiply by a weight of at least two axes, with that weight.

    Embeddings look theirs up, and norms (some have a weight per head and dimension) multiply entry by entry.
    """
    weights = [
        (module, getattr(module, "weight", None))
        for module in modules
        if not isinstance(module, nn.Embedding) and not type(module).__name__.endswith("Norm")
    ]
    return [(module, weight) for module, weight in weights if isinstance(weight, Tensor) and weight.dim() > 1]
