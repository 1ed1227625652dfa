"""Score files with something wrong in them: safetensors, and MIB's JSON and ``.pt``."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from attriboard.exchange import precomputed
from attriboard.exchange.mib import Graph

from .common import ODD, Case, changed, mangled, places, scratch

GRAPH = Graph(2, 2, False, 8)
MODEL = "planted-copy"


def cases(seed: int) -> Iterator[Case]:
    """A good file of each kind is changed in its content or damaged."""
    rng = random.Random(seed)
    while True:
        kind = rng.choice((".safetensors", ".json", ".pt"))
        name, content = {".safetensors": _safetensors, ".json": _json, ".pt": _pt}[kind](rng)
        if rng.random() < 0.3:
            how, content = mangled(content, rng)
            name = f"{name}, {how}"
        odd = rng.random() < 0.02
        yield f"{kind} {name}{', a pipe' if odd else ''}", functools.partial(_case, kind, content, odd)


def _case(suffix: str, content: bytes, odd: bool) -> None:
    with scratch() as folder:
        file = folder / f"scores{suffix}"
        if odd:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        for found in precomputed.read_all([folder] if len(content) % 2 and not odd else [file]):
            found.fitting(precomputed.shape_of(MODEL))


def _safetensors(rng: random.Random) -> tuple[str, bytes]:
    shape = precomputed.shape_of(MODEL)
    names = [f"a{layer}.h{head}" for layer in range(shape.n_layers) for head in range(shape.n_heads)]
    values = torch.randn(shape.n_layers, shape.n_heads)
    metadata: dict[str, str] = {"names": json.dumps(names), "level": "heads", "model": MODEL, "seed": "0"}
    how = rng.choice(("as it is", "metadata", "names", "dtype", "shape", "values", "nested"))
    if how == "metadata":
        metadata[rng.choice(list(metadata))] = rng.choice(("", "x", "-1", "9" * 5000, "[", "null", "\x00", "a" * 500))
    elif how == "names":
        list_of: Any = rng.choice((names[:-1], [*names, "a9.h9"], names[:1] * len(names), ODD[-8:], [1], "x", {}))
        metadata["names"] = json.dumps(list_of)
    elif how == "dtype":
        values = values.to(rng.choice((torch.int64, torch.bool, torch.complex64, torch.float64, torch.float8_e4m3fn)))
    elif how == "shape":
        values = values.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (1, 1, -1))))
    elif how == "values":
        values[0, 0] = rng.choice((float("nan"), float("inf"), 3e38))
    elif how == "nested":
        metadata["names"] = "[" * rng.choice((100, 5000, 100_000))
    return how, save({"scores": values.contiguous()}, metadata)


def _good_json() -> dict[str, Any]:
    cfg = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    nodes = {name: {"in_graph": False, "score": 0.5} for name in GRAPH.src_nodes}
    return {"cfg": cfg, "nodes": nodes, "edges": {}}


def _json(rng: random.Random) -> tuple[str, bytes]:
    content = _good_json()
    if rng.random() < 0.1:
        return "nested", b"[" * rng.choice((500, 50_000))
    how = changed(content, rng.choice(list(places(content))), rng)
    return how, json.dumps(content).encode("utf-8", "replace")


def _pt(rng: random.Random) -> tuple[str, bytes]:
    n_src, n_dst = len(GRAPH.src_nodes), len(GRAPH.dst_nodes)
    content: dict[str, Any] = {
        **_good_json(),
        "src_nodes": GRAPH.src_nodes,
        "dst_nodes": GRAPH.dst_nodes,
        "edges_scores": torch.zeros(n_src, n_dst),
        "edges_in_graph": torch.zeros(n_src, n_dst, dtype=torch.bool),
        "nodes_in_graph": torch.zeros(n_src, dtype=torch.bool),
        "nodes_scores": torch.randn(n_src),
    }
    key = rng.choice(list(content))
    kinds: dict[str, Any] = {
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        "sparse": lambda: torch.zeros(n_src).to_sparse(),
        "complex": lambda: torch.zeros(n_src, dtype=torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(n_src), 1.0, 0, torch.qint8),
        "meta": lambda: torch.zeros(n_src, device="meta"),
        "odd": lambda: copy.copy(rng.choice(ODD)),
        "empty": lambda: torch.zeros(0),
        "float8": lambda: torch.zeros(n_src).to(torch.float8_e4m3fn),
    }
    how = rng.choice((*kinds, "as it is", "missing"))
    if how == "missing":
        del content[key]
    elif how in kinds:
        content[key] = kinds[how]()
    with scratch() as folder:
        file = Path(folder) / "x.pt"
        torch.save(content, file)
        return f"{key} {how}", file.read_bytes()
