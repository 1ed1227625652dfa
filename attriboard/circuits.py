"""Which edges make a circuit: chosen from the logits back, and without those that lead nowhere.

Names and rules are those of MIB (Mueller et al. 2025, arXiv 2504.13151): the query, key and value inputs of a head
belong to one node.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from .errors import ConfigurationError
from .graph import PARTS, Graph


def pruned(graph: Graph, kept: Tensor) -> Tensor:
    """``[..., E]`` bool: a circuit without the edges on no way from the input to the logits.

    What is left when nodes without an edge in or without one out, and the edges that lose an end with them, are dropped
    until nothing changes. The input needs no edge in; the logits are never dropped.

    Args:
        graph: of the model.
        kept: ``[..., E]`` bool, in the graph's order.

    Raises:
        ConfigurationError: another number of edges.
    """
    _check(graph, kept)
    blocks, places = list(graph.blocks()), _destinations(graph)
    fed = torch.zeros(*kept.shape[:-1], len(graph.src_nodes), dtype=torch.bool, device=kept.device)
    fed[..., 0] = True
    for block, nodes in zip(blocks[:-1], places):  # a node's edges in stand before all its edges out
        edges = _of(kept, block.edges, block.n_sources)
        by_input = (edges & fed[..., None, : block.n_sources]).any(-1)
        fed[..., nodes] = by_input.unflatten(-1, (-1, nodes.stop - nodes.start)).any(-2)
    leading = torch.zeros_like(fed)
    found = torch.zeros_like(kept)
    for block, nodes in zip(reversed(blocks), (None, *reversed(places))):
        edges = _of(kept, block.edges, block.n_sources) & fed[..., None, : block.n_sources]
        if nodes is not None:
            copies = block.n_destinations // (nodes.stop - nodes.start)
            edges = edges & leading[..., nodes].repeat(*[1] * (kept.dim() - 1), copies)[..., None]
        leading[..., : block.n_sources] |= edges.any(-2)
        found[..., block.edges] = edges.flatten(-2)
    return found


def greedy_order(graph: Graph, scores: Tensor) -> Tensor:
    """``[E]`` long: all edges in the order in which they are taken from the logits back.

    Those on offer are at first the edges into the logits. The best of them is taken, again and again; when a source is
    reached for the first time, the edges into it are offered too. So the first ``n`` are the circuit of ``n`` edges,
    for every ``n``. Every source has an edge into the logits, so that every edge is taken in the end. Of equal scores
    the first edge in the graph's order is taken first.

    Args:
        graph: of the model.
        scores: ``[E]``, higher is better; their absolute values to choose by these.

    Raises:
        ConfigurationError: another number of edges, or scores that are not numbers.
    """
    _check(graph, scores)
    if bool(torch.isnan(scores).any()):
        first = graph.edge_names[int(torch.isnan(scores).int().argmax())]
        raise ConfigurationError(f"the score of {first} is NaN; edges are ordered by scores that are numbers.")
    value, source = (-scores).tolist(), graph.edge_sources
    into = _edges_into(graph)
    offered = [(value[edge], edge) for edge in range(graph.into_logits.edges.start, graph.into_logits.edges.stop)]
    heapq.heapify(offered)
    reached = [False] * len(graph.src_nodes)
    order = []
    while offered:
        _, edge = heapq.heappop(offered)
        order.append(edge)
        node = source[edge]
        if not reached[node]:
            reached[node] = True
            for edges in into[node]:
                for new in edges:
                    heapq.heappush(offered, (value[new], new))
    return torch.tensor(order)


def as_taken(graph: Graph, ranking: Tensor) -> Tensor:
    """:func:`greedy_order` of a ranking ``[E]`` of edges, best first."""
    scores = torch.empty(len(ranking), dtype=torch.float64)
    scores[ranking.cpu()] = torch.arange(len(ranking), 0, -1, dtype=torch.float64)
    return greedy_order(graph, scores)


def _check(graph: Graph, edges: Tensor) -> None:
    if edges.shape[-1] != graph.n_edges:
        raise ConfigurationError(f"{edges.shape[-1]} edges were given of a graph with {graph.n_edges} ({graph}).")


def _of(edges: Tensor, at: slice, n_sources: int) -> Tensor:
    """``[..., D, S]``: those of one block."""
    return edges[..., at].unflatten(-1, (-1, n_sources))


def _destinations(graph: Graph) -> list[slice]:
    """By block but the last, which sources its destinations are."""
    found = []
    for layer in range(graph.n_layers):
        first = graph.sources_before(layer)
        found += [slice(first, first + graph.n_heads), slice(first + graph.n_heads, first + graph.n_heads + 1)]
    return found


def _edges_into(graph: Graph) -> list[list[range]]:
    """By source the edges into it; the input has none."""
    into: list[list[range]] = [[] for _ in graph.src_nodes]
    for layer in range(graph.n_layers):
        first, (at, _, n) = graph.sources_before(layer), graph.into_heads(layer)
        for destination in range(len(PARTS) * graph.n_heads):
            start = at + destination * n
            into[first + destination % graph.n_heads].append(range(start, start + n))
        edges = graph.into_ffn(layer).edges
        into[first + graph.n_heads].append(range(edges.start, edges.stop))
    return into
