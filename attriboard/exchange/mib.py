"""MIB's files of scores and circuits: the nodes of a model's graph, or its edges, written and read back.

The two formats are those of the EAP-IG library and of MIB's circuit track (arXiv:2504.13151): a JSON file of nodes and
edges by name, and a ``.pt`` file of tensors in a fixed order. Files written here score nodes (heads and FFN layers) or
edges, never both. A node without a score is kept by MIB in every circuit of nodes: the embedding (``input``) always,
since replacing it replaces the whole prompt, and FFN layers where only heads were scored. An edge that a file does not
name has score 0 there.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ScoresError
from ..files import check_regular, kind_and_reason, read_text, told
from ..graph import INPUT, LOGITS, Graph
from ..levels import LEVELS, names_where
from ..scores import Scores

SUFFIXES = (".json", ".pt")
PAIRS = {
    "ioi": ("interpbench", "gpt2", "qwen2.5", "gemma2", "llama3"),
    "mcqa": ("qwen2.5", "gemma2", "llama3"),
    "arithmetic_addition": ("llama3",),
    "arithmetic_subtraction": ("llama3",),
    "arc_easy": ("gemma2", "llama3"),
    "arc_challenge": ("llama3",),
}
"""By task, the models that MIB's circuit track evaluates on it, under its names."""
MAX_EDGES = 2**24
"""The most edges of a model whose files are read; one of 8B parameters has 1.6 million."""
LEAST = 2
"""Of how many tasks, and of how many models, a submission must be at least."""
SHAPES = {"gpt2": (12, 12), "qwen2.5": (24, 14), "gemma2": (26, 8), "llama3": (32, 32)}
"""Of these models: layers and heads (of interpbench's they are not published)."""


def check_level(level: str) -> None:
    """Refuses levels that are neither nodes nor edges of MIB's graph.

    Raises:
        ScoresError: says why.
    """
    if level in LEVELS and not LEVELS[level].mib:
        *some, last = names_where(mib=True)
        raise ScoresError(
            f"scores of {level} cannot be written for MIB: {LEVELS[level].not_mib}; score {', '.join(some)} or {last}."
        )


def save(scores: Scores, graph: Graph, file: Path, kept: Tensor | None = None) -> list[str]:
    """Writes scores of nodes or edges as MIB's JSON or ``.pt``, by the file's ending; returns nodes that have none.

    Of nodes no circuit is chosen: every ``in_graph`` is false, and every edge's score 0 (in JSON no edge is listed,
    which MIB reads as 0). Output dimensions are left out altogether, since MIB empties circuits of nodes that list
    them. Of edges every one is listed with both its entries; a node is in the graph where an edge that is kept begins
    or ends at it. What is no edge has score 0 and is not in the graph.

    Args:
        scores: of heads or nodes, named as the graph's nodes, or of edges, named as its edges.
        kept: ``[E]`` bool in the graph's order of edges, the circuit; with scores of edges alone. None for no circuit.

    Returns:
        the sources without a score; empty where edges are scored.

    Raises:
        ScoresError: another level, a name that is no node or edge, an edge without a score, a score that is no finite
            number, or a circuit that does not fit.
        OSError: the file cannot be written.
    """
    check_level(scores.level)
    by_name = dict(zip(scores.names, scores.values.flatten().float().tolist()))
    edges = LEVELS[scores.level].edges
    known = graph.edge_names if edges else graph.src_nodes
    if unknown := sorted(set(by_name) - set(known)):
        raise ScoresError(f"{listed(unknown)} cannot be written for MIB, whose graph here has {graph}.")
    if bad := [name for name, score in by_name.items() if not math.isfinite(score)]:
        raise ScoresError(f"{listed(bad)} cannot be written for MIB: their scores are not finite numbers.")
    if edges and len(by_name) < graph.n_edges:
        lacking = [name for name in known if name not in by_name]
        raise ScoresError(f"edges cannot be written for MIB without a score of {listed(lacking)}; score every edge.")
    if kept is not None and (not edges or kept.dtype != torch.bool or tuple(kept.shape) != (graph.n_edges,)):
        raise ScoresError(
            f"a circuit of {kept.dtype} and shape {tuple(kept.shape)} cannot be written with scores of {scores.level}; "
            f"with scores of edges give ({graph.n_edges},) booleans."
        )
    values = torch.tensor([by_name[name] for name in known]) if edges else None
    chosen = kept if kept is not None else torch.zeros(graph.n_edges, dtype=torch.bool)
    text = None
    if file.suffix == ".json":
        content = _json_of_nodes(by_name, graph) if values is None else _json_of_edges(values, graph, chosen)
        text = json.dumps(content) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        file.write_text(text, encoding="utf-8")
    else:
        torch.save(_tensors(by_name, graph) if values is None else _tensors_of_edges(values, graph, chosen), file)
    return [] if edges else [name for name in graph.src_nodes if name not in by_name]


def _cfg(graph: Graph) -> dict[str, Any]:
    return {field.name: getattr(graph, field.name) for field in fields(graph)}


def _json_of_nodes(by_name: Mapping[str, float], graph: Graph) -> dict[str, Any]:
    nodes = {n: {"in_graph": False, **({"score": by_name[n]} if n in by_name else {})} for n in graph.src_nodes}
    return {"cfg": _cfg(graph), "nodes": nodes, "edges": {}}


def _json_of_edges(values: Tensor, graph: Graph, kept: Tensor) -> dict[str, Any]:
    inside = nodes_of(graph, kept)
    return {
        "cfg": _cfg(graph),
        "nodes": {name: {"in_graph": name in inside} for name in graph.src_nodes},
        "edges": {
            name: {"score": score, "in_graph": here}
            for name, score, here in zip(graph.edge_names, values.tolist(), kept.tolist())
        },
    }


def nodes_of(graph: Graph, kept: Tensor) -> set[str]:
    """The sources at which edges of a circuit ``[E]`` begin, or end as queries, keys, values or FFN inputs."""
    sources = {graph.src_nodes[i] for i in torch.tensor(graph.edge_sources)[kept].unique().tolist()}
    read = {graph.dst_nodes[i] for i in torch.tensor(graph.edge_destinations)[kept].unique().tolist()}
    return sources | {name.split("<")[0] for name in read} - {LOGITS}


def _tensors(by_name: Mapping[str, float], graph: Graph) -> dict[str, Any]:
    scores = torch.tensor([by_name.get(name, math.nan) for name in graph.src_nodes])
    nothing = torch.zeros(graph.n_edges)
    return {**_tensors_of_edges(nothing, graph, nothing.bool()), "nodes_scores": scores}


def _tensors_of_edges(values: Tensor, graph: Graph, kept: Tensor) -> dict[str, Any]:
    inside = nodes_of(graph, kept)
    return {
        "cfg": _cfg(graph),
        "src_nodes": graph.src_nodes,
        "dst_nodes": graph.dst_nodes,
        "edges_scores": _spread(values, graph),
        "edges_in_graph": _spread(kept, graph),
        "nodes_in_graph": torch.tensor([name in inside for name in graph.src_nodes]),
    }


def _spread(values: Tensor, graph: Graph) -> Tensor:
    """``[n_src, n_dst]``: what edges ``[E]`` have, 0 between nodes that no edge joins."""
    table = torch.zeros(len(graph.src_nodes), len(graph.dst_nodes), dtype=values.dtype)
    table[graph.edge_sources, graph.edge_destinations] = values
    return table


@dataclass(frozen=True)
class _Content:
    """What a file says.

    Attributes:
        graph: of its cfg.
        nodes: scores by name; without those that have none.
        edges: ``[E]`` scores in the graph's order; None where the file says nothing of edges.
        kept: ``[E]`` bool, the circuit; empty where the file says nothing of edges.
        dimensions: whether it scores output dimensions of nodes.
    """

    graph: Graph
    nodes: Mapping[str, float]
    edges: Tensor | None
    kept: Tensor
    dimensions: bool


def load(file: Path, level: str = "") -> tuple[Graph, Scores]:
    """Reads scores from MIB's JSON or ``.pt``.

    A file scores edges if one of them has a score other than 0, and nodes if one has any: it is of ``heads`` if no FFN
    layer has a score, else of ``nodes``. A score of ``input`` is passed over: the embedding is no component here. Edges
    that a JSON file does not name have score 0.

    Args:
        level: which scores are read of a file that has both: those of edges unless another level is named.

    Raises:
        ScoresError: the file cannot be read, is not of MIB's form, holds no scores, not one of every head, or scores
            that are no finite numbers.
    """
    content = _read(file)
    nodes = {name: score for name, score in content.nodes.items() if name != INPUT}
    edges = content.edges is not None and bool(content.edges.any())
    if edges and not (nodes and level in LEVELS and not LEVELS[level].edges):
        assert content.edges is not None
        scores = Scores(content.edges, "edges", list(content.graph.edge_names))
    elif nodes:
        scores = _of_nodes(file, content.graph, nodes)
    elif content.dimensions:
        raise ScoresError(
            f"{file} scores output dimensions of nodes, which are no components here; score nodes or edges."
        )
    else:
        raise ScoresError(f"{file} holds no score of a head or an FFN layer, and none of an edge but 0.")
    if bad := [name for name, fine in zip(scores.names, scores.values.flatten().isfinite().tolist()) if not fine]:
        raise ScoresError(f"{file} has scores that are not finite numbers: {listed(bad)}.")
    return content.graph, scores


def _of_nodes(file: Path, graph: Graph, by_name: Mapping[str, float]) -> Scores:
    names, level = graph.src_nodes[1:], "nodes"
    if not any(name.startswith("m") for name in by_name):
        names, level = [name for name in names if name.startswith("a")], "heads"
    if missing := [name for name in names if name not in by_name]:
        raise ScoresError(
            f"{file} has no score for {listed(missing)}; MIB keeps such nodes in every circuit, here each needs one."
        )
    return Scores(torch.tensor([by_name[name] for name in names]).view(graph.n_layers, -1), level, names)


def load_circuit(file: Path) -> tuple[Graph, Tensor]:
    """Reads the circuit of MIB's JSON or ``.pt``: ``[E]`` bool in the graph's order, True for edges that are kept.

    Raises:
        ScoresError: as :func:`load`; or the file keeps no edge.
    """
    content = _read(file)
    if not content.kept.any():
        raise ScoresError(f"{file} keeps no edge: in_graph is true of none; it holds scores, and no circuit.")
    return content.graph, content.kept


def _read(file: Path) -> _Content:
    return _from_json(file) if file.suffix == ".json" else _from_tensors(file)


def _from_json(file: Path) -> _Content:
    try:
        content = json.loads(read_text(file, error=ScoresError), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ScoresError(f"{file} cannot be read as JSON ({told(error)}).") from error
    except _RepeatedError as error:
        raise ScoresError(f"{file} names {error} twice; name each component once.") from error
    graph = _graph(file, content, ("cfg", "nodes", "edges"))
    nodes, edges = content["nodes"], content["edges"]
    for what, there in (("nodes", nodes), ("edges", edges)):
        if not isinstance(there, dict) or not all(isinstance(entry, dict) for entry in there.values()):
            raise ScoresError(f"{file} is not MIB's JSON: its {what} are not objects by name.")
    known = {*graph.src_nodes, LOGITS}
    if unknown := [name for name in nodes if name not in known]:
        raise ScoresError(f"{file} scores what a model of its cfg ({graph}) does not have: {listed(unknown)}.")
    scored = {name: node["score"] for name, node in nodes.items() if node.get("score") is not None and name != LOGITS}
    numbers = {name: _number(file, name, score) for name, score in scored.items()}
    values, kept = _edges_from_json(file, graph, edges)
    return _Content(
        graph,
        {name: number for name, number in numbers.items() if not math.isnan(number)},
        values,
        kept,
        any("neurons_scores" in node for node in nodes.values()),
    )


def _edges_from_json(file: Path, graph: Graph, edges: Mapping[str, Any]) -> tuple[Tensor | None, Tensor]:
    if not edges:
        return None, torch.zeros(0, dtype=torch.bool)
    _check_size(file, graph)
    values, kept = torch.zeros(graph.n_edges), torch.zeros(graph.n_edges, dtype=torch.bool)
    place = {name: i for i, name in enumerate(graph.edge_names)}
    if unknown := [name for name in edges if name not in place]:
        raise ScoresError(f"{file} has edges that a model of its cfg ({graph}) does not have: {listed(unknown)}.")
    for key in ("score", "in_graph"):
        if lacking := [name for name, edge in edges.items() if edge.get(key) is None]:
            raise ScoresError(f"{file} has no {key} for {listed(lacking)}; MIB reads every edge's score and in_graph.")
    if unsure := [name for name, edge in edges.items() if not isinstance(edge["in_graph"], bool)]:
        value = edges[unsure[0]]["in_graph"]
        raise ScoresError(f"{file} has {value!r:.60} as in_graph of {unsure[0]}, expected true or false.")
    at = torch.tensor([place[name] for name in edges])
    values[at] = torch.tensor([_number(file, name, edge["score"]) for name, edge in edges.items()])
    kept[at] = torch.tensor([edge["in_graph"] for edge in edges.values()])
    return values, kept


def _check_size(file: Path, graph: Graph) -> None:
    """Refuses more edges than can be named: a file is quickly written that tells of trillions."""
    if graph.n_edges > MAX_EDGES:
        raise ScoresError(
            f"{file} is of a model with {graph.n_edges:,} edges ({graph}); edges are read of at most {MAX_EDGES:,}."
        )


def _number(file: Path, name: str, score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        raise ScoresError(f"{file} has {score!r:.60} as the score of {name}, expected a number.")
    return _float(score)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


class _RepeatedError(Exception):
    """A key that stands twice in one JSON object."""


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise _RepeatedError(repr(key))
        content[key] = value
    return content


def _from_tensors(file: Path) -> _Content:
    check_regular(file, error=ScoresError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are then refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives, foreign pickles and missing files each raise their own kinds
        raise ScoresError(
            f"{file} cannot be read as tensors and plain values alone ({type(error).__name__}); no file is opened that "
            f"needs code for it: save the scores anew."
        ) from error
    try:
        return _from_content(file, content)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # of tensors of unusual kinds
        raise ScoresError(f"{file} holds what is no file of MIB's circuits ({kind_and_reason(error)}).") from error


def _from_content(file: Path, content: Any) -> _Content:
    tensors = ("edges_scores", "edges_in_graph", "nodes_in_graph")
    graph = _graph(file, content, ("cfg", "src_nodes", "dst_nodes", *tensors))
    for key in ("src_nodes", "dst_nodes"):
        if content[key] != getattr(graph, key):
            raise ScoresError(
                f"{file} has other {key} than a model of its cfg ({graph}), or in another order than MIB's."
            )
    n_src, edges = len(graph.src_nodes), (len(graph.src_nodes), len(graph.dst_nodes))
    shapes = {"edges_scores": edges, "edges_in_graph": edges, "nodes_in_graph": (n_src,), "nodes_scores": (n_src,)}
    for key in (*tensors, *(["nodes_scores"] if content.get("nodes_scores") is not None else [])):
        value = content[key]
        if isinstance(value, Tensor) and (value.is_nested or value.is_quantized):
            raise ScoresError(f"{file} has {key} as a nested or quantized tensor; save the scores anew, dense.")
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if shape != shapes[key]:
            raise ScoresError(f"{file} has {key} of shape {shape}, expected {shapes[key]}.")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ScoresError(f"{file} has {key} as a tensor without plain values; save the scores anew, dense.")
        if key.endswith("_scores") and not value.is_floating_point():
            raise ScoresError(f"{file} has {key} of type {value.dtype}, expected floating-point numbers.")
    scores = content.get("nodes_scores")
    by_name = {} if scores is None else dict(zip(graph.src_nodes, scores.float().tolist()))
    _check_size(file, graph)
    at = (graph.edge_sources, graph.edge_destinations)  # what stands between nodes that no edge joins says nothing
    return _Content(
        graph,
        {name: score for name, score in by_name.items() if not math.isnan(score)},
        content["edges_scores"][at].float(),
        content["edges_in_graph"][at].bool(),
        content.get("neurons_scores") is not None,
    )


def _graph(file: Path, content: Any, keys: Sequence[str]) -> Graph:
    if not isinstance(content, dict) or not all(key in content for key in keys):
        lacking = ", ".join(key for key in keys if not isinstance(content, dict) or key not in content)
        raise ScoresError(f"{file} is not a file of MIB's circuits: it lacks {lacking}.")
    cfg = content["cfg"]
    for field in fields(Graph):
        value = cfg.get(field.name) if isinstance(cfg, dict) else None
        right = isinstance(value, bool) if field.name == "parallel_attn_mlp" else _is_size(value, field.name)
        if not right:
            raise ScoresError(f"{file} has {value!r} as cfg.{field.name}; a model cannot be recognized by that.")
    return Graph(**{field.name: cfg[field.name] for field in fields(Graph)})


def _is_size(value: Any, name: str) -> bool:
    """Whether this can be a number of layers or heads, or a width; names are made of it before it meets a model."""
    return type(value) is int and 0 < value <= (10**6 if name == "d_model" else 1024)


def submission_file(folder: Path, task: str, model: str, graph: Graph) -> Path:
    """Where MIB looks for the scores of a task on a model: ``folder/ioi_gpt2/importances.json``.

    Raises:
        ScoresError: a pair that MIB's circuit track does not evaluate, or a graph that is not that model's.
    """
    known = {name.replace("_", "-"): models for name, models in PAIRS.items()}
    name = task.replace("_", "-")
    if model not in known.get(name, ()):
        pairs = "; ".join(f"{task} with {', '.join(models)}" for task, models in PAIRS.items())
        raise ScoresError(f"MIB does not evaluate {task!r} with {model!r}; it evaluates {pairs}.")
    layers, heads = SHAPES.get(model, (graph.n_layers, graph.n_heads))
    if (graph.n_layers, graph.n_heads) != (layers, heads):
        raise ScoresError(f"MIB's {model!r} has {layers} layers and {heads} heads, but the scores are for {graph}.")
    return folder / f"{name}_{model}" / "importances.json"


def listed(names: Sequence[str]) -> str:
    """The first few names and how many there are."""
    more = f" and {len(names) - 5} more ({len(names)} in all)" if len(names) > 5 else ""
    return f"{', '.join(map(str, names[:5]))}{more}"
