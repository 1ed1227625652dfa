"""The graph of a model: how many edges, and which, against pairs of names written down one by one."""

from __future__ import annotations

import pytest

from attriboard.graph import Graph


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "edges"),
    [(12, 12, 32_491), (24, 14, 179_749), (26, 8, 74_218), (32, 32, 1_592_881)],
    ids=["GPT-2 small", "Qwen2.5-0.5B", "Gemma 2 2B", "Llama 3.1 8B"],
)
def test_as_many_edges_as_mib_has(n_layers: int, n_heads: int, edges: int) -> None:
    assert Graph(n_layers, n_heads, False, 64).n_edges == edges


def pairs(n_layers: int, n_heads: int, parallel: bool) -> list[tuple[str, str]]:
    """By destination, then by source: who writes before whom reads."""
    found = []
    written = ["input"]
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        found += [(u, f"{head}<{part}>") for part in "qkv" for head in heads for u in written]
        found += [(u, f"m{layer}") for u in (written if parallel else written + heads)]
        written += [*heads, f"m{layer}"]
    return found + [(u, "logits") for u in written]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (3, 2), (4, 5)])
def test_edges_are_all_pairs_of_which_the_one_writes_before_the_other_reads(
    n_layers: int, n_heads: int, parallel: bool
) -> None:
    graph, expected = Graph(n_layers, n_heads, parallel, 8), pairs(n_layers, n_heads, parallel)
    assert list(graph.edge_names) == [f"{u}->{v}" for u, v in expected]
    assert graph.n_edges == len(expected)
    assert [(graph.src_nodes[u], graph.dst_nodes[v]) for u, v in zip(graph.edge_sources, graph.edge_destinations)] == (
        expected
    )
    layers = [n_layers - 1 if v == "logits" else int(v[1 : v.index(".")] if "." in v else v[1:]) for _, v in expected]
    assert graph.edge_layers == layers
    assert [block.first for block in graph.blocks()] == [
        sum(b.n_destinations * b.n_sources for b in list(graph.blocks())[:i]) for i in range(2 * n_layers + 1)
    ]
