"""Pruning and greedy choice of edges, against their definitions written out with names and loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attriboard.circuits import greedy_order, pruned
from attriboard.errors import ConfigurationError
from attriboard.graph import Graph

GRAPHS = [Graph(1, 1, False, 8), Graph(3, 2, False, 8), Graph(3, 2, True, 8), Graph(4, 3, False, 8)]


def named(graph: Graph, *names: str) -> Tensor:
    return torch.tensor([name in names for name in graph.edge_names])


def names_of(graph: Graph, kept: Tensor) -> set[str]:
    return {name for name, chosen in zip(graph.edge_names, kept.tolist()) if chosen}


def ends(name: str) -> tuple[str, str]:
    """The two nodes of an edge; a head's query, key and value are one."""
    source, destination = name.split("->")
    return source, destination.partition("<")[0]


def literally_pruned(names: set[str]) -> set[str]:
    while True:
        nodes = {node for name in names for node in ends(name)}
        without_out = nodes - {ends(name)[0] for name in names} - {"logits"}
        without_in = nodes - {ends(name)[1] for name in names} - {"input", "logits"}
        left = {name for name in names if not {*ends(name)} & (without_out | without_in)}
        if left == names:
            return left
        names = left


def literally_greedy(graph: Graph, scores: list[float], n: int) -> list[int]:
    """The circuit of ``n`` edges, in the order in which they are taken; every edge is looked at each time."""
    taken: list[int] = []
    for _ in range(n):
        reached = {"logits"} | {ends(graph.edge_names[edge])[0] for edge in taken}
        best = None
        for edge, name in enumerate(graph.edge_names):
            offered = edge not in taken and ends(name)[1] in reached
            if offered and (best is None or scores[edge] > scores[best]):
                best = edge
        assert best is not None
        taken.append(best)
    return taken


def test_a_node_without_a_way_in_or_out_is_pruned() -> None:
    graph = Graph(1, 2, False, 8)
    # a0.h0 has no way out, m0 no way in
    kept = named(graph, "input->a0.h0<v>", "m0->logits", "input->logits")
    assert names_of(graph, pruned(graph, kept)) == {"input->logits"}


def test_pruning_goes_on_until_nothing_changes_and_may_leave_nothing() -> None:
    graph = Graph(3, 1, False, 8)
    chain = named(graph, "input->m0", "m0->m1", "m1->m2", "m0->a1.h0<k>", "a1.h0->a2.h0<q>")
    assert not bool(pruned(graph, chain).any()), "nothing reaches the logits"
    through = chain | named(graph, "a2.h0->logits")
    expected = {"input->m0", "m0->a1.h0<k>", "a1.h0->a2.h0<q>", "a2.h0->logits"}
    assert names_of(graph, pruned(graph, through)) == expected, "one of a head's inputs is a way in"


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_pruning_is_the_dropping_of_nodes_and_edges_until_nothing_changes(graph: Graph) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.linspace(0.02, 0.6, 60)[:, None]
    kept = torch.rand(60, graph.n_edges, generator=generator) < shares
    found = pruned(graph, kept)
    for one, left in zip(kept, found):
        assert names_of(graph, left) == literally_pruned(names_of(graph, one))
        assert torch.equal(pruned(graph, one), left), "alone as among others"
    assert bool((found != kept).any()) and bool(found.any())
    assert torch.equal(pruned(graph, found), found)
    assert bool(pruned(graph, torch.ones(graph.n_edges, dtype=torch.bool)).all())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_greedy_circuits_of_every_size_are_those_taken_one_by_one(graph: Graph, ties: bool) -> None:
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(1))
    scores = scores.round() if ties else scores
    order = greedy_order(graph, scores)
    assert order.tolist() == literally_greedy(graph, scores.tolist(), graph.n_edges)


def test_greedy_takes_a_strong_edge_only_when_the_way_to_it_is_open() -> None:
    graph = Graph(2, 1, False, 8)
    scores = torch.zeros(graph.n_edges)
    for place, name in enumerate(["input->m0", "m0->m1", "m1->logits", "input->logits"]):
        scores[graph.edge_names.index(name)] = 4 - place
    best = greedy_order(graph, scores)[:4].tolist()
    assert [graph.edge_names[edge] for edge in best] == ["m1->logits", "m0->m1", "input->m0", "input->logits"]


def test_a_circuit_taken_greedily_loses_nothing_behind_but_what_the_input_does_not_reach() -> None:
    graph = GRAPHS[1]
    order = greedy_order(graph, torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(2)))
    for n in (1, 5, 20, 60):
        kept = torch.zeros(graph.n_edges, dtype=torch.bool)
        kept[order[:n]] = True
        left = names_of(graph, kept)
        reaching = {ends(name)[0] for name in left}
        assert all(ends(name)[1] in {*reaching, "logits"} for name in left), "every edge leads to the logits"


def test_the_circuits_of_a_large_graph() -> None:
    graph = Graph(30, 9, False, 576)
    scores = torch.randn(graph.n_edges, generator=torch.Generator().manual_seed(3))
    order = greedy_order(graph, scores)
    assert torch.equal(order.sort().values, torch.arange(graph.n_edges))
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    kept[order[:1000]] = True
    assert names_of(graph, pruned(graph, kept)) == literally_pruned(names_of(graph, kept))


def test_other_numbers_of_edges_are_refused() -> None:
    graph = GRAPHS[0]
    with pytest.raises(ConfigurationError, match="3 edges were given of a graph with 8"):
        pruned(graph, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ConfigurationError, match="3 edges"):
        greedy_order(graph, torch.ones(3))
    with pytest.raises(ConfigurationError, match=r"score of input->a0\.h0<q> is NaN"):
        greedy_order(graph, torch.full((graph.n_edges,), float("nan")))
