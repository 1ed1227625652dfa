"""The graph of a model in the sense of circuits: what writes into the residual stream, what reads it, and the edges.

Sources are the embedding (``input``), every attention head and every FFN layer. Destinations are the query, key and
value inputs of every head, every FFN layer, and the logits; heads that share keys and values have inputs of their own.
A source and a destination are joined by an edge if the one writes before the other reads. Names and order are those of
MIB and EAP-IG (Hanna et al. 2024, arXiv 2403.17806; Mueller et al. 2025, arXiv 2504.13151).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

INPUT, LOGITS = "input", "logits"
PARTS = ("q", "k", "v")
"""What of a head reads the residual stream."""


class Block(NamedTuple):
    """Edges that stand together: those of every one of some destinations to the same sources, one after the other.

    Attributes:
        first: the place of the first of them among all edges.
        n_destinations, n_sources: how many of each; the sources are the first ones of all.
    """

    first: int
    n_destinations: int
    n_sources: int

    @property
    def edges(self) -> slice:
        """Their places among all edges."""
        return slice(self.first, self.first + self.n_destinations * self.n_sources)


@dataclass(frozen=True)
class Graph:
    """The nodes and edges of a model.

    Edges are ordered by destination, those of one destination by source.

    Attributes:
        n_layers, n_heads: heads are query heads, also where several share keys and values.
        parallel_attn_mlp: attention and FFN of a layer read the same residual, so that the FFN does not read its heads.
        d_model: the width of the residual stream.
    """

    n_layers: int
    n_heads: int
    parallel_attn_mlp: bool
    d_model: int

    @cached_property
    def src_nodes(self) -> list[str]:
        """What writes into the residual stream: ``n_layers (n_heads + 1) + 1`` names."""
        return [INPUT, *(n for i in range(self.n_layers) for n in (*self._heads(i), f"m{i}"))]

    @cached_property
    def dst_nodes(self) -> list[str]:
        """What reads from it: of each layer the heads' queries, keys and values and the FFN; last the logits."""
        slots = [
            name
            for i in range(self.n_layers)
            for name in (*(f"{head}<{part}>" for part in PARTS for head in self._heads(i)), f"m{i}")
        ]
        return [*slots, LOGITS]

    def sources_before(self, layer: int) -> int:
        """How many sources write before attention of a layer reads: the first so many of all."""
        return 1 + layer * (self.n_heads + 1)

    def into_heads(self, layer: int) -> Block:
        """The edges into a layer's queries, then its keys, then its values."""
        return Block(self._first(layer), len(PARTS) * self.n_heads, self.sources_before(layer))

    def into_ffn(self, layer: int) -> Block:
        """The edges into a layer's FFN, which reads the heads of its own layer unless both work in parallel."""
        own = 0 if self.parallel_attn_mlp else self.n_heads
        return Block(self.into_heads(layer).edges.stop, 1, self.sources_before(layer) + own)

    @property
    def into_logits(self) -> Block:
        """The edges into the logits, from every source."""
        return Block(self._first(self.n_layers), 1, self.sources_before(self.n_layers))

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return self.into_logits.edges.stop

    def blocks(self) -> Iterator[Block]:
        """All edges, in order."""
        for layer in range(self.n_layers):
            yield self.into_heads(layer)
            yield self.into_ffn(layer)
        yield self.into_logits

    @property
    def edge_names(self) -> tuple[str, ...]:
        """The names of all edges, in order: ``input->a0.h1<q>``, ``m3->logits``."""
        return _edge_names(self)

    @property
    def block_layers(self) -> list[int]:
        """By block the layer that reads; the logits are read behind the last one and count as its."""
        return [*(layer for layer in range(self.n_layers) for _ in range(2)), self.n_layers - 1]

    @property
    def edge_layers(self) -> list[int]:
        """By edge the layer of its block."""
        return [
            layer
            for layer, block in zip(self.block_layers, self.blocks())
            for _ in range(block.n_destinations * block.n_sources)
        ]

    @property
    def edge_sources(self) -> list[int]:
        """By edge the place of its source among all sources."""
        return [i for block in self.blocks() for _ in range(block.n_destinations) for i in range(block.n_sources)]

    @property
    def edge_destinations(self) -> list[int]:
        """By edge the place of its destination among all destinations."""
        found, at = [], 0
        for block in self.blocks():
            found += [at + i for i in range(block.n_destinations) for _ in range(block.n_sources)]
            at += block.n_destinations
        return found

    def _first(self, layer: int) -> int:
        """The place of the first edge into a layer."""
        width = len(PARTS) * self.n_heads + 1
        own = 0 if self.parallel_attn_mlp else self.n_heads
        before = layer + (self.n_heads + 1) * layer * (layer - 1) // 2  # the sources of all layers before, added up
        return width * before + own * layer

    def _heads(self, layer: int) -> list[str]:
        return [f"a{layer}.h{head}" for head in range(self.n_heads)]

    def __str__(self) -> str:
        blocks = ", attention and FFN in parallel" if self.parallel_attn_mlp else ""
        return f"{self.n_layers} layers, {self.n_heads} heads and width {self.d_model}{blocks}"


@functools.lru_cache(maxsize=4)
def _edge_names(graph: Graph) -> tuple[str, ...]:
    """A 7B model has 1.6 million edges, whose names take seconds to write."""
    sources, destinations = graph.src_nodes, iter(graph.dst_nodes)
    names: list[str] = []
    for block in graph.blocks():
        for _ in range(block.n_destinations):
            destination = next(destinations)
            names += [f"{source}->{destination}" for source in sources[: block.n_sources]]
    return tuple(names)
