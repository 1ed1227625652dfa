"""MIB's files of scores: heads and FFN layers as nodes of a circuit, written and read back.

The two formats are those of the EAP-IG library and of MIB's circuit track (arXiv:2504.13151): a JSON file of nodes and
edges by name, and a ``.pt`` file of tensors in a fixed order. Files written here score nodes and no edges. A node
without a score is kept by MIB in every circuit: the embedding (``input``) always, since replacing it replaces the whole
prompt, and FFN layers where only heads were scored.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
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
SHAPES = {"gpt2": (12, 12), "qwen2.5": (24, 14), "gemma2": (26, 8), "llama3": (32, 32)}
"""Of these models: layers and heads (of interpbench's they are not published)."""


def check_level(level: str) -> None:
    """Refuses levels that MIB's nodes cannot say.

    Raises:
        ScoresError: says why.
    """
    if level in LEVELS and not LEVELS[level].mib:
        able = " or ".join(names_where(mib=True))
        raise ScoresError(f"scores of {level} cannot be written for MIB: {LEVELS[level].not_mib}; score {able}.")


def save(scores: Scores, graph: Graph, file: Path) -> list[str]:
    """Writes node scores as MIB's JSON or ``.pt``, by the file's ending; returns the nodes that have none.

    No circuit is chosen: every ``in_graph`` is false, and every edge's score 0 (in JSON no edge is listed, which MIB
    reads as 0). Output dimensions are left out altogether, since MIB empties circuits of nodes that list them.

    Args:
        scores: of heads or nodes, named as the graph's nodes.

    Raises:
        ScoresError: another level, or a name that is no node. OSError: the file cannot be written.
    """
    check_level(scores.level)
    by_name = dict(zip(scores.names, scores.values.flatten().tolist()))
    if unknown := [name for name in by_name if name not in set(graph.src_nodes)]:
        raise ScoresError(f"{listed(unknown)} cannot be written for MIB, whose graph here has {graph}.")
    text = json.dumps(_json(by_name, graph)) + "\n" if file.suffix == ".json" else None
    file.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        file.write_text(text, encoding="utf-8")
    else:
        torch.save(_tensors(by_name, graph), file)
    return [name for name in graph.src_nodes if name not in by_name]


def _cfg(graph: Graph) -> dict[str, Any]:
    return {field.name: getattr(graph, field.name) for field in fields(graph)}


def _json(by_name: Mapping[str, float], graph: Graph) -> dict[str, Any]:
    nodes = {n: {"in_graph": False, **({"score": by_name[n]} if n in by_name else {})} for n in graph.src_nodes}
    return {"cfg": _cfg(graph), "nodes": nodes, "edges": {}}


def _tensors(by_name: Mapping[str, float], graph: Graph) -> dict[str, Any]:
    n_src, n_dst = len(graph.src_nodes), len(graph.dst_nodes)
    return {
        "cfg": _cfg(graph),
        "src_nodes": graph.src_nodes,
        "dst_nodes": graph.dst_nodes,
        "edges_scores": torch.zeros(n_src, n_dst),
        "edges_in_graph": torch.zeros(n_src, n_dst, dtype=torch.bool),
        "nodes_in_graph": torch.zeros(n_src, dtype=torch.bool),
        "nodes_scores": torch.tensor([by_name.get(name, math.nan) for name in graph.src_nodes]),
    }


def load(file: Path) -> tuple[Graph, Scores]:
    """Reads node scores from MIB's JSON or ``.pt``: of ``heads`` if no FFN layer has a score, else of ``nodes``.

    A score of ``input`` is passed over: the embedding is no component here.

    Raises:
        ScoresError: the file cannot be read, is not of MIB's form, holds no node scores, or not one of every head.
    """
    graph, by_name = _from_json(file) if file.suffix == ".json" else _from_tensors(file)
    by_name = {name: score for name, score in by_name.items() if not math.isnan(score) and name != INPUT}
    names = graph.src_nodes[1:]
    level = "nodes"
    if not any(name.startswith("m") for name in by_name):
        names, level = [name for name in names if name.startswith("a")], "heads"
    if missing := [name for name in names if name not in by_name]:
        raise ScoresError(
            f"{file} has no score for {listed(missing)}; MIB keeps such nodes in every circuit, here each needs one."
        )
    values = torch.tensor([by_name[name] for name in names]).view(graph.n_layers, -1)
    if bad := [name for name, score in zip(names, values.flatten().tolist()) if math.isinf(score)]:
        raise ScoresError(f"{file} has scores that are not finite numbers: {listed(bad)}.")
    return graph, Scores(values, level, names)


def _from_json(file: Path) -> tuple[Graph, dict[str, float]]:
    try:
        content = json.loads(read_text(file, error=ScoresError), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ScoresError(f"{file} cannot be read as JSON ({told(error)}).") from error
    except _RepeatedError as error:
        raise ScoresError(f"{file} names {error} twice; name each component once.") from error
    graph = _graph(file, content, ("cfg", "nodes", "edges"))
    nodes, edges = content["nodes"], content["edges"]
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise ScoresError(f"{file} is not MIB's JSON: its nodes are not objects by name.")
    if unknown := [name for name in nodes if name not in {*graph.src_nodes, LOGITS}]:
        raise ScoresError(f"{file} scores what a model of its cfg ({graph}) does not have: {listed(unknown)}.")
    by_name = {name: node["score"] for name, node in nodes.items() if node.get("score") is not None and name != LOGITS}
    for name, score in by_name.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise ScoresError(f"{file} has {score!r} as the score of {name}, expected a number.")
    numbers = {name: _float(score) for name, score in by_name.items()}
    _check_any(file, numbers, bool(edges), any("neurons_scores" in node for node in nodes.values()))
    return graph, numbers


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


def _from_tensors(file: Path) -> tuple[Graph, dict[str, float]]:
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


def _from_content(file: Path, content: Any) -> tuple[Graph, dict[str, float]]:
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
    known = {name: score for name, score in by_name.items() if not math.isnan(score)}
    _check_any(file, known, bool(content["edges_scores"].any()), content.get("neurons_scores") is not None)
    return graph, known


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


def _check_any(file: Path, by_name: Mapping[str, float], edges: bool, dimensions: bool) -> None:
    """Refuses files without a single node score, by what they hold instead."""
    if any(name != INPUT and not math.isnan(score) for name, score in by_name.items()):
        return
    if dimensions:
        raise ScoresError(f"{file} scores output dimensions of nodes, which are no components here; score nodes.")
    if edges:
        raise ScoresError(f"{file} scores edges only; edges are not evaluated here: score nodes.")
    raise ScoresError(f"{file} holds no score of a head or an FFN layer.")


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
