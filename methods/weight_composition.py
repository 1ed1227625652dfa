"""Control: how far what a source can write lies in what a destination reads, by their weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import SkipCell
from attriboard.method import Method
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from attriboard.shape import Shape

_ROWS = 2**14
"""Rows of an embedding that are multiplied at a time."""


@dataclass
class WeightComposition(Method):
    """``|W_out W_in|_F / (|W_out|_F |W_in|_F)``: the virtual weights between a source and a destination; no prompt.

    Between 0, where the destination reads nothing of what the source can write, and 1. ``W_out`` ``[n, d_model]`` is a
    head's ``W_O``, an FFN's output projection or the token embedding, with the weights of a norm after the sub-layer;
    ``W_in`` ``[d_model, m]`` a head's ``W_Q``, ``W_K`` or ``W_V``, an FFN's input projections (the gate's too) or the
    unembedding, with the weights of the norm before it and, of a LayerNorm, its centring. What a norm divides by
    depends on the prompt and plays no part, nor do biases and position embeddings.

    Where the matrices are large, ``|W_out W_in|_F ** 2`` is taken from ``W_out^T W_out`` and ``W_in W_in^T``
    ``[d_model, d_model]``. One of these for each FFN and for the embedding, and all ``W_O``, are held in float32.
    """

    name = "weight_composition"
    paper = "Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (virtual weights, composition)"
    description = "how far what a source can write lies in what a destination reads, by weights alone"
    levels = ("edges",)
    needs = frozenset({"weights"})
    control = True
    properties = ("ignores_answer",)

    def passes(self, shape: Shape, level: Level) -> float:
        """With what an FFN reads by, and how many keys there are, guessed from the number of a layer's weights."""
        width, d_model, d_mlp = shape.n_heads * shape.d_head, shape.d_model, shape.d_mlp
        columns = (shape.sizes.weights[0] - shape.sizes.weights[1]) // d_model - width - d_mlp
        inner = d_mlp if columns - d_mlp <= 3 * width else 2 * d_mlp
        products = _products(shape.n_layers, width, d_model, columns - inner, inner + d_mlp, shape.d_vocab)
        return sum(shape.product(*one) for one in products) / shape.examples

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        if not model.has_neurons:
            raise SkipCell(
                f"FFNs of {model.name} are mixtures of experts, which have no one matrix for all positions; choose a "
                f"method that runs the model, such as eap."
            )
        source = _Sources()
        source.add_matrix(_gram(model.W_E))
        scores = []
        for layer in range(model.n_layers):
            columns = _head_columns(model, layer)
            by_head = source.into_columns(columns)  # [n_heads + 2 n_kv_heads, S]
            for part in by_head.split([model.n_heads, model.n_kv_heads, model.n_kv_heads]):
                scores.append(part.repeat_interleave(model.n_heads // len(part), dim=0).flatten())
            ffn = _read_gram(model, model.W_in(layer).T, model.ln2_weight(layer))
            if model.graph.parallel_attn_mlp:
                scores.append(source.into_matrix(ffn))
            source.add_heads(model.W_O(layer).float() * model.attn_post_norm_weight(layer))
            if not model.graph.parallel_attn_mlp:
                scores.append(source.into_matrix(ffn))
            source.add_matrix(_gram(model.W_out(layer) * model.mlp_post_norm_weight(layer)))
        scores.append(source.into_matrix(_read_gram(model, model.W_U, model.final_norm_weight)))
        width, inner = model.n_heads * model.d_head, model.W_in(0).shape[1] + model.d_mlp
        read = (model.n_heads + 2 * model.n_kv_heads) * model.d_head
        for one in _products(model.n_layers, width, model.d_model, read, inner, model.d_vocab):
            model.cost.product(*one)
        return self.scores(torch.cat(scores), model, level)


class _Sources:
    """What sources write, one after the other: heads as they are, larger matrices as ``W_out^T W_out``."""

    def __init__(self) -> None:
        self._all: list[Tensor] = []

    def add_heads(self, weights: Tensor) -> None:
        """A layer's ``[H, d_head, d_model]``."""
        self._all.append(weights)

    def add_matrix(self, gram: Tensor) -> None:
        """``[d_model, d_model]``."""
        self._all.append(gram)

    def into_columns(self, columns: Tensor) -> Tensor:
        """``[n, S]``: compositions with readers of few columns ``[d_model, n, m]``."""
        flat, own = columns.flatten(1), columns.square().sum((0, 2))
        found = []
        for written in self._all:
            if written.dim() == 2:
                squares = ((written @ flat) * flat).view(columns.shape).sum((0, 2))[:, None]
                found.append(_ratio(squares, own[:, None] * written.trace()))
            else:
                made = (written.flatten(0, 1) @ flat).view(*written.shape[:2], *columns.shape[1:])
                squares, norms = made.square().sum((1, 3)).T, written.square().sum((1, 2))
                found.append(_ratio(squares, own[:, None] * norms))
        return torch.cat(found, dim=1)

    def into_matrix(self, gram: Tensor) -> Tensor:
        """``[S]``: compositions with a reader ``W_in W_in^T`` ``[d_model, d_model]``."""
        found = []
        for written in self._all:
            if written.dim() == 2:
                found.append(_ratio((written * gram).sum()[None], written.trace() * gram.trace()))
            else:
                squares, norms = ((written @ gram) * written).sum((1, 2)), written.square().sum((1, 2))
                found.append(_ratio(squares, norms * gram.trace()))
        return torch.cat(found)


def _ratio(squares: Tensor, norms: Tensor) -> Tensor:
    """The root of squared norms of products over products of squared norms; 0 where one is 0."""
    return (squares.clamp(min=0) / torch.where(norms == 0, 1.0, norms)).sqrt()


def _gram(rows: Tensor) -> Tensor:
    """``[d, d]``: ``rows^T rows``, of ``[n, d]``."""
    parts = (part.float() for part in rows.split(_ROWS))
    total = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in parts:
        total.addmm_(part.T, part)
    return total


def _read_gram(model: Model, rows: Tensor, norm: Tensor) -> Tensor:
    """``[d_model, d_model]``: ``W_in W_in^T`` of ``rows`` ``[n, d_model]``, behind a norm with these weights."""
    gram = _gram(rows) * norm[:, None] * norm
    if model.architecture.rms:
        return gram
    gram = gram - gram.mean(0)
    return gram - gram.mean(1, keepdim=True)


def _head_columns(model: Model, layer: int) -> Tensor:
    """``[d_model, n_heads + 2 n_kv_heads, d_head]``: queries, keys and values, behind the norm before attention."""
    weights = torch.cat(model.qkv_weights(layer), dim=1).float() * model.ln1_weight(layer)[:, None, None]
    return weights if model.architecture.rms else weights - weights.mean(0)


def _products(
    n_layers: int, width: int, d_model: int, read: int, inner: int, d_vocab: int
) -> list[tuple[int, int, int]]:
    """The matrix products of all edges, as rows, inner dimension and columns.

    Args:
        n_layers, d_model, d_vocab: of the model.
        width: of all heads' outputs in a layer.
        read: columns of all queries, keys and values in a layer.
        inner: columns and rows of an FFN's projections, together.
    """
    pairs = n_layers * (n_layers - 1) // 2
    return [
        (d_model, (2 * d_vocab + n_layers * inner), d_model),
        ((pairs + n_layers) * d_model + pairs * width, d_model, read),
        ((pairs + 2 * n_layers) * width, d_model, d_model),
    ]
