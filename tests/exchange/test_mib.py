"""MIB's files: what is written is read as MIB reads it, by a reader written here from the format alone."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from attriboard.components import LEVELS, get_level
from attriboard.errors import ScoresError
from attriboard.exchange import mib
from attriboard.exchange.precomputed import shape_of
from attriboard.graph import Graph
from attriboard.loading import load_model, outline
from attriboard.model import Model
from attriboard.scores import Scores
from tests.bench.cli import call
from tests.bench.models import CONFIGS, MIXTURES, PARALLEL, hooked

GPT2 = Graph(n_layers=12, n_heads=12, parallel_attn_mlp=False, d_model=768)
TINY = Graph(n_layers=3, n_heads=4, parallel_attn_mlp=False, d_model=32)


def random_scores(level: str, graph: Graph = TINY, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    heads = [[f"a{i}.h{h}" for h in range(graph.n_heads)] for i in range(graph.n_layers)]
    rows = heads if level == "heads" else [[*row, f"m{i}"] for i, row in enumerate(heads)]
    values = torch.randn(len(rows), len(rows[0]), generator=generator)
    return Scores(values, level, [name for row in rows for name in row])


def read_as_mib(file: Path) -> dict[str, float]:
    """Node scores by name, NaN where there are none, with indices counted as the format counts them."""
    content = json.loads(file.read_text()) if file.suffix == ".json" else torch.load(file, weights_only=True)
    n_layers, n_heads = content["cfg"]["n_layers"], content["cfg"]["n_heads"]
    assert set(content["cfg"]) == {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}
    place = {"input": 0}
    for layer in range(n_layers):
        place |= {f"a{layer}.h{head}": 1 + layer * (n_heads + 1) + head for head in range(n_heads)}
        place[f"m{layer}"] = 1 + layer * (n_heads + 1) + n_heads
    if file.suffix == ".json":
        assert set(content) >= {"nodes", "edges"}
        for edge in content["edges"].values():
            assert "score" in edge and "in_graph" in edge
        for name, node in content["nodes"].items():
            assert name == "logits" or name in place
            assert isinstance(node["in_graph"], bool) and "neurons" not in node
        return {name: content["nodes"].get(name, {}).get("score", math.nan) for name in place}
    return {name: float(content["nodes_scores"][i]) for name, i in place.items()}


# --- the graph ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "edges"),
    [(12, 12, 32_491), (24, 14, 179_749), (26, 8, 74_218), (32, 32, 1_592_881)],
    ids=["GPT-2 small", "Qwen2.5-0.5B", "Gemma-2-2B", "Llama-3.1-8B"],
)
def test_the_published_models_have_their_number_of_edges(n_layers: int, n_heads: int, edges: int) -> None:
    assert Graph(n_layers, n_heads, False, 64).n_edges == edges


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_are_the_pairs_in_which_the_source_comes_first(parallel: bool) -> None:
    graph = Graph(3, 2, parallel, 8)

    def comes_before(source: str, target: str) -> bool:
        if target == "logits" or source == "input":
            return True
        layer, own = int(source[1]), int(target[1])
        return layer < own or (layer == own and source[0] == "a" and target[0] == "m" and not parallel)

    assert graph.n_edges == sum(comes_before(u, v) for u in graph.src_nodes for v in graph.dst_nodes)


def test_sources_and_targets_stand_where_the_format_counts_them() -> None:
    heads, layers = GPT2.n_heads, GPT2.n_layers
    sources, targets = GPT2.src_nodes, GPT2.dst_nodes
    assert len(sources) == 1 + layers * (heads + 1) and len(targets) == layers * (3 * heads + 1) + 1
    assert sources[0] == "input" and targets[-1] == "logits"
    for layer in range(layers):
        assert sources[1 + layer * (heads + 1) + heads] == f"m{layer}"
        assert targets[layer * (3 * heads + 1) + 3 * heads] == f"m{layer}"
        for head in range(heads):
            assert sources[1 + layer * (heads + 1) + head] == f"a{layer}.h{head}"
            for i, slot in enumerate("qkv"):
                assert targets[layer * (3 * heads + 1) + i * heads + head] == f"a{layer}.h{head}<{slot}>"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_models_graph_is_known_from_its_configuration_and_names_its_nodes(family: str) -> None:
    model = hooked(family)
    graph = model.graph
    assert (graph.n_layers, graph.n_heads, graph.d_model) == (3, 4, 32)
    assert graph.parallel_attn_mlp == (family in PARALLEL)
    assert graph.src_nodes[1:] == LEVELS["nodes"].names(model)
    with torch.device("meta"):
        empty = type(model.hf)(model.hf.config)
    bare = Model(empty, prove=False)
    assert bare.graph == graph
    levels = ("heads", "nodes") if family in MIXTURES else ("heads", "neurons", "nodes")
    assert all(LEVELS[level].shape(bare) == LEVELS[level].shape(model) for level in levels)


def test_an_outline_needs_no_weights(toy: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((toy["model"] / "config.json").read_text())
    assert outline(str(tmp_path)).graph == load_model(str(toy["model"])).graph


# --- written and read back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize("level", ["heads", "nodes"])
@pytest.mark.parametrize("family", ["llama", "neox_parallel"])
def test_what_is_written_is_what_mib_reads_and_what_we_read(
    family: str, level: str, suffix: str, tmp_path: Path
) -> None:
    model = hooked(family)
    assert family != "llama" or model.n_kv_heads < model.n_heads  # grouped queries: nodes are still query heads
    scores, graph, file = random_scores(level), model.graph, tmp_path / f"scores{suffix}"
    unscored = mib.save(scores, graph, file)
    assert unscored == (["input"] if level == "nodes" else ["input", "m0", "m1", "m2"])
    read = read_as_mib(file)
    assert {name for name, score in read.items() if math.isnan(score)} == set(unscored)
    assert [read[name] for name in scores.names] == scores.values.flatten().tolist()
    back_graph, back = mib.load(file)
    assert back_graph == graph and back.level == level and back.names == get_level(level).names(model)
    assert torch.equal(back.values, scores.values)


def test_json_leaves_out_what_it_does_not_know(tmp_path: Path) -> None:
    mib.save(random_scores("heads"), TINY, tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    content = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert content["edges"] == {} and content["nodes"]["m1"] == content["nodes"]["input"] == {"in_graph": False}
    assert "logits" not in content["nodes"] and "neurons" not in text


def test_tensors_have_their_shapes_and_types(tmp_path: Path) -> None:
    mib.save(random_scores("nodes"), TINY, tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True)
    edges = (1 + 3 * 5, 3 * 13 + 1)
    for key, shape, dtype in (
        ("edges_scores", edges, torch.float32),
        ("edges_in_graph", edges, torch.bool),
        ("nodes_in_graph", (16,), torch.bool),
        ("nodes_scores", (16,), torch.float32),
    ):
        assert tuple(content[key].shape) == shape and content[key].dtype == dtype
    assert not content["edges_scores"].any() and not content["edges_in_graph"].any()
    assert "neurons_scores" not in content and "neurons_in_graph" not in content


@pytest.mark.parametrize("level", ["neurons", "attn_neurons", "patches", "tokens"])
def test_levels_that_are_no_nodes_are_refused_with_the_reason(level: str, tmp_path: Path) -> None:
    scores = Scores(torch.zeros(1), level, ["x"])
    with pytest.raises(
        ScoresError, match=rf"scores of {level} cannot be written for MIB: .*; score heads, nodes or edges\."
    ):
        mib.save(scores, TINY, tmp_path / "s.json")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match=r"a2\.h0, a2\.h1, a2\.h2, a2\.h3, m2 cannot be written"):
        mib.save(random_scores("nodes"), Graph(2, 4, False, 32), tmp_path / "s.json")


# --- files made by others -----------------------------------------------------------------------------------------


def foreign(**changes: Any) -> dict[str, Any]:
    """A file as the library of MIB could have made it: edges too, the logits, a score of the input."""
    content: dict[str, Any] = {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8, "more": "tolerated"},
        "nodes": {
            "m0": {"in_graph": True, "score": -1},
            "logits": {"in_graph": True},
            "a0.h1": {"in_graph": False, "score": 0.5},
            "a0.h0": {"in_graph": True, "score": 2.25},
            "input": {"in_graph": True, "score": 9.0},
        },
        "edges": {"input->a0.h0<q>": {"score": 3.0, "in_graph": True}},
    }
    for key, value in changes.items():
        content[key] = {**content[key], **value}
    return content


def test_a_foreign_file_is_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps(foreign()))
    graph, scores = mib.load(file, "nodes")
    assert graph == Graph(1, 2, False, 8) and scores.level == "nodes"
    assert dict(zip(scores.names, scores.values.flatten().tolist())) == {"a0.h0": 2.25, "a0.h1": 0.5, "m0": -1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "is not a file of MIB's circuits: it lacks cfg, nodes, edges."),
        ({"cfg": {}, "nodes": {}}, "it lacks edges."),
        (foreign(cfg={"n_heads": "2"}), "has '2' as cfg.n_heads"),
        (foreign(cfg={"n_layers": 10**9}), "has 1000000000 as cfg.n_layers"),
        (foreign(cfg={"parallel_attn_mlp": 0}), "has 0 as cfg.parallel_attn_mlp"),
        (foreign(nodes={"a0.h2": {"score": 1.0}}), "does not have: a0.h2."),
        (foreign(nodes={"a0.h0": {"score": "high"}}), "has 'high' as the score of a0.h0"),
        (foreign(nodes={"a0.h0": {"score": 10**400}}), "scores that are not finite numbers: a0.h0."),
        (foreign(nodes={"a0.h0": {"score": 1e300}}), "scores that are not finite numbers: a0.h0."),
        (foreign(nodes={"a0.h0": {"in_graph": True}}), "has no score for a0.h0; MIB keeps such nodes"),
        (foreign(nodes={"a0.h0": {"score": math.nan}}), "has no score for a0.h0; MIB keeps such nodes"),
        ({**foreign(), "nodes": {"m0": {"neurons_scores": [0.0] * 8}}, "edges": {}}, "scores output dimensions"),
        ({**foreign(), "nodes": {}, "edges": {}}, "holds no score of a head or an FFN layer, and none of an edge"),
        ({**foreign(), "nodes": [1]}, "its nodes are not objects by name"),
        ({**foreign(), "edges": [1]}, "its edges are not objects by name"),
        (foreign(edges={"input->a0.h2<q>": {"score": 1.0, "in_graph": True}}), "does not have: input->a0.h2<q>."),
        (foreign(edges={"m0->a0.h0<q>": {"score": 1.0, "in_graph": True}}), "does not have: m0->a0.h0<q>."),
        (foreign(cfg={"n_layers": 1024, "n_heads": 1024}), "is of a model with 1,649,807,984,129 edges"),
        (foreign(edges={"input->m0": {"in_graph": True}}), "has no score for input->m0; MIB reads every edge's"),
        (foreign(edges={"input->m0": {"score": 1.0}}), "has no in_graph for input->m0; MIB reads every edge's"),
        (foreign(edges={"input->m0": {"score": 1.0, "in_graph": 1}}), "has 1 as in_graph of input->m0, expected true"),
        (foreign(edges={"input->m0": {"score": "high", "in_graph": True}}), "has 'high' as the score of input->m0"),
        (json.dumps(foreign()).replace('"m0"', '"a0.h1"'), "names 'a0.h1' twice"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_json_file_that_cannot_be_used_is_one_sentence(content: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ScoresError) as caught:
        mib.load(file, "nodes")
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def tensors(tmp_path: Path, **changes: Any) -> Path:
    mib.save(random_scores("nodes"), TINY, tmp_path / "s.pt")
    content = torch.load(tmp_path / "s.pt", weights_only=True) | changes
    torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "s.pt")
    return tmp_path / "s.pt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges_scores": None}, "it lacks edges_scores."),
        ({"src_nodes": None, "cfg": None}, "it lacks cfg, src_nodes."),
        ({"src_nodes": TINY.src_nodes[::-1]}, "has other src_nodes than a model of its cfg"),
        ({"dst_nodes": 3}, "has other dst_nodes than a model of its cfg"),
        ({"nodes_scores": torch.zeros(15)}, "has nodes_scores of shape (15,), expected (16,)."),
        ({"edges_in_graph": torch.zeros(2, 2)}, "has edges_in_graph of shape (2, 2), expected (16, 40)."),
        ({"nodes_scores": [0.0]}, "has nodes_scores of shape None, expected (16,)."),
        ({"nodes_scores": None}, "holds no score of a head or an FFN layer, and none of an edge but 0."),
        ({"edges_scores": torch.ones(15, 40)}, "has edges_scores of shape (15, 40), expected (16, 40)."),
        ({"edges_scores": torch.full((16, 40), math.nan)}, "not finite numbers: input->a0.h0<q>, input->a0.h1<q>"),
        ({"nodes_scores": None, "neurons_scores": torch.ones(16, 32)}, "scores output dimensions of nodes"),
        ({"nodes_scores": torch.full((16,), math.inf)}, "scores that are not finite numbers: a0.h0, a0.h1"),
        ({"nodes_scores": torch.ones(16).to_sparse()}, "has nodes_scores as a tensor without plain values"),
        ({"nodes_scores": torch.ones(16, device="meta")}, "has nodes_scores as a tensor without plain values"),
        ({"nodes_scores": torch.ones(16, dtype=torch.complex64)}, "has nodes_scores of type torch.complex64"),
        ({"nodes_scores": torch.ones(16, dtype=torch.bool)}, "has nodes_scores of type torch.bool"),
        ({"more": Runs()}, "no file is opened that needs code for it"),
    ],
)
def test_a_file_of_tensors_that_cannot_be_used_is_one_sentence(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tensors(tmp_path, **changes)
    with pytest.raises(ScoresError) as caught:
        mib.load(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", pickle.dumps(Runs())])
def test_what_is_no_file_of_tensors_is_not_opened(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.pt").write_bytes(content)
    with pytest.raises(ScoresError, match=r"s\.pt cannot be read as tensors and plain values alone"):
        mib.load(tmp_path / "s.pt")
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(pickle.dumps(Runs()))
    assert (tmp_path / "unpickled").exists()  # what opening it would have done


# --- edges ---------------------------------------------------------------------------------------------------------


def edge_scores(graph: Graph, seed: int = 0) -> Scores:
    """Scores of every size and sign, among them 0, and no two alike beside it."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-30, 30, (graph.n_edges,), generator=generator)
    values = torch.randn(graph.n_edges, generator=generator) * sizes
    values[::7] = 0.0
    return Scores(values, "edges", list(graph.edge_names))


def edges_as_mib(file: Path) -> dict[str, tuple[float, bool]]:
    """Score and membership by name, read as the format counts sources and destinations."""
    content = json.loads(file.read_text()) if file.suffix == ".json" else torch.load(file, weights_only=True)
    if file.suffix == ".json":
        assert all(set(edge) == {"score", "in_graph"} for edge in content["edges"].values())
        return {name: (edge["score"], edge["in_graph"]) for name, edge in content["edges"].items()}
    return {
        f"{source}->{target}": (float(content["edges_scores"][i, j]), bool(content["edges_in_graph"][i, j]))
        for i, source in enumerate(content["src_nodes"])
        for j, target in enumerate(content["dst_nodes"])
    }


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize("family", ["llama", "neox_parallel", "gptj", "gemma2"])
def test_edges_are_written_as_mib_reads_them_and_read_back_bit_for_bit(
    family: str, suffix: str, tmp_path: Path
) -> None:
    model, file = hooked(family), tmp_path / f"e{suffix}"
    graph = model.graph
    assert graph.parallel_attn_mlp == (family in PARALLEL)
    scores = edge_scores(graph)
    assert mib.save(scores, graph, file) == []
    read = edges_as_mib(file)
    assert [read[name][0] for name in graph.edge_names] == scores.values.tolist()
    assert not any(here for _, here in read.values())
    assert all(read[name] == (0.0, False) for name in set(read) - set(graph.edge_names))
    back_graph, back = mib.load(file)
    assert back_graph == graph and back.level == "edges" and back.names == get_level("edges").names(model)
    assert back.values.dtype == torch.float32 and torch.equal(back.values, scores.values)


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_a_circuit_is_written_along_with_its_nodes_and_read_back(suffix: str, tmp_path: Path) -> None:
    file, names = tmp_path / f"c{suffix}", ("input->a0.h2<k>", "a0.h2->m1", "m1->logits")
    kept = torch.tensor([name in names for name in TINY.edge_names])
    mib.save(edge_scores(TINY), TINY, file, kept)
    assert {name for name, (_, here) in edges_as_mib(file).items() if here} == set(names)
    content = json.loads(file.read_text()) if suffix == ".json" else torch.load(file, weights_only=True)
    if suffix == ".json":
        inside = {name for name, node in content["nodes"].items() if node["in_graph"]}
        assert set(content["nodes"]) == set(TINY.src_nodes)
    else:
        inside = {name for name, here in zip(content["src_nodes"], content["nodes_in_graph"].tolist()) if here}
    assert inside == {"input", "a0.h2", "m1"}
    graph, back = mib.load_circuit(file)
    assert graph == TINY and torch.equal(back, kept)
    assert torch.equal(mib.load(file)[1].values, edge_scores(TINY).values)


def test_a_file_of_scores_alone_holds_no_circuit(tmp_path: Path) -> None:
    mib.save(edge_scores(TINY), TINY, tmp_path / "e.json")
    with pytest.raises(ScoresError, match="keeps no edge: in_graph is true of none"):
        mib.load_circuit(tmp_path / "e.json")


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_of_nodes_and_edges_what_is_asked_for_is_read_and_edges_without_asking(suffix: str, tmp_path: Path) -> None:
    nodes, edges, file = random_scores("nodes"), edge_scores(TINY), tmp_path / f"both{suffix}"
    if suffix == ".json":
        mib.save(nodes, TINY, tmp_path / "n.json")
        mib.save(edges, TINY, tmp_path / "e.json")
        both = json.loads((tmp_path / "n.json").read_text())
        both["edges"] = json.loads((tmp_path / "e.json").read_text())["edges"]
        file.write_text(json.dumps(both))
    else:
        mib.save(edges, TINY, file)
        torch.save(torch.load(file) | {"nodes_scores": torch.cat([torch.tensor([1.0]), nodes.values.flatten()])}, file)
    for asked, expected in (("", edges), ("edges", edges), ("nodes", nodes), ("heads", nodes)):
        read = mib.load(file, asked)[1]
        assert read.level == expected.level and torch.equal(read.values, expected.values)


def test_edges_that_mibs_json_does_not_name_have_score_0(tmp_path: Path) -> None:
    content = foreign()
    content["nodes"] = {}
    (tmp_path / "s.json").write_text(json.dumps(content))
    graph, scores = mib.load(tmp_path / "s.json")
    assert len(scores.names) == graph.n_edges == 13
    assert {name: score for name, score in zip(scores.names, scores.values.tolist()) if score} == {"input->a0.h0<q>": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (Scores(s.values[1:], "edges", s.names[1:]), None), "without a score of input->a0.h0<q>; score"),
        (lambda s: (Scores(s.values, "edges", ["input->a9.h0<q>", *s.names[1:]]), None), "input->a9.h0<q> cannot be"),
        (lambda s: (Scores(s.values / 0, "edges", s.names), None), "their scores are not finite numbers"),
        (lambda s: (s, torch.zeros(3, dtype=torch.bool)), "a circuit of torch.bool and shape (3,) cannot be written"),
        (lambda s: (random_scores("nodes"), torch.ones(5).bool()), "cannot be written with scores of nodes"),
    ],
)
def test_scores_of_edges_that_do_not_fit_are_not_written(change: Any, message: str, tmp_path: Path) -> None:
    scores, kept = change(edge_scores(TINY))
    with pytest.raises(ScoresError) as caught:
        mib.save(scores, TINY, tmp_path / "e.json", kept)
    assert message in str(caught.value) and not list(tmp_path.iterdir())


# --- on the command line ------------------------------------------------------------------------------------------


@pytest.fixture
def stored(toy: dict, tmp_path: Path) -> Path:
    random_scores("nodes").save(tmp_path / "mine.safetensors", model=str(toy["model"]), method="mine")
    return tmp_path / "mine.safetensors"


def test_export_writes_both_formats_and_says_what_has_no_score(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".json", ".pt"):
        target = tmp_path / "deep" / f"mine{suffix}"
        code, out, err = call(capsys, "export-mib", stored, "--out", target)
        assert code == 0, err
        assert "15 nodes; without a score, so kept by MIB in every circuit: input" in out
        assert torch.equal(mib.load(target)[1].values, random_scores("nodes").values)


def test_export_reads_no_weights(toy: dict, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((toy["model"] / "config.json").read_text())
    code, _, err = call(capsys, "export-mib", stored, "--model", bare, "--out", tmp_path / "s.json")
    assert code == 0, err


def test_a_submission_stands_where_mib_looks_for_it(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", tmp_path / "sub", "--submission", "ioi", "interpbench"]
    code, _, err = call(capsys, "export-mib", stored, *arguments)
    assert code == 0, err
    assert len(read_as_mib(tmp_path / "sub" / "ioi_interpbench" / "importances.json")) == 16
    llama, gemma = Graph(32, 32, False, 4096), Graph(26, 8, False, 2304)
    for task, model, graph, place in (
        ("ioi", "gpt2", GPT2, "ioi_gpt2"),
        ("mcqa", "qwen2.5", Graph(24, 14, False, 896), "mcqa_qwen2.5"),
        ("arithmetic_addition", "llama3", llama, "arithmetic-addition_llama3"),
        ("arc-easy", "gemma2", gemma, "arc-easy_gemma2"),
    ):
        assert mib.submission_file(tmp_path, task, model, graph) == tmp_path / place / "importances.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "s.txt"], "--out s.txt does not end in .json or .pt."),
        (["--out", "x", "--submission", "arc_challenge", "gpt2"], "MIB does not evaluate 'arc_challenge' with 'gpt2'"),
        (["--out", "x", "--submission", "ioi", "gpt2"], "MIB's 'gpt2' has 12 layers and 12 heads, but the scores are"),
        (["--out", "s.json", "--model", "smollm2"], "unknown model 'smollm2'"),
    ],
)
def test_a_wrong_export_exits_2_with_one_sentence(
    stored: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "export-mib", stored, *arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_levels_without_nodes_and_other_files_are_not_exported(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shape_of(str(toy["model"]))
    level = LEVELS["neurons"]
    scores = Scores(torch.zeros(level.shape(model)), "neurons", level.names(model))
    scores.save(tmp_path / "n.safetensors", model=str(toy["model"]))
    code, _, err = call(capsys, "export-mib", tmp_path / "n.safetensors", "--out", tmp_path / "s.json")
    assert code == 2 and "one of the d_model output dimensions of a node, not an FFN hidden unit" in err
    code, _, err = call(capsys, "export-mib", tmp_path / "s.json", "--out", tmp_path / "t.json")
    assert code == 2 and "does not end in .safetensors" in err


def test_the_first_score_may_be_a_number_of_any_size(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text(json.dumps(foreign(nodes={name: {"score": 10**400} for name in ("a0.h0", "a0.h1", "m0")})))
    with pytest.raises(ScoresError, match="scores that are not finite numbers"):
        mib.load(file, "nodes")
