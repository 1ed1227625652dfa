"""Records made by hand, so that what a board must say of them is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attriboard.measurements.ablation import Ablation
from attriboard.measurements.base import Kept
from attriboard.measurements.speed import Speed
from attriboard.records.record import Cell, ModelFacts, Record, Settings, digest
from attriboard.run.runner import aggregates

METRIC = "ablation_drop_p"
"""The metric whose per-example values are chosen; its value is their mean."""


def record(method: str, drops: Sequence[float], **changes: Any) -> Record:
    """A record whose drop in p on each test example is as given.

    Args:
        method: its name.
        drops: above -0.4 and below 0.5.
        changes: ``items``, ``seed``, ``task``, ``model``, ``level``, ``control``, ``sketch``, ``top``, ``data``,
            ``replacement``, ``weights``; what is left out is the same for all records.
    """
    clean, random = np.log(0.9), np.log(0.5)
    n = len(drops)
    items = changes.get("items", [f"item {i}" for i in range(n)])
    family = Ablation(
        sizes=[1],
        clean=[[clean, 1.0]] * n,
        top=[[[float(np.log(0.5 - d)), 1.0] for d in drops]],
        random=[[[[random, 1.0]] * n]],
    )
    speed = Speed(examples=1, seconds=[0.1, 0.2], forward_equivalents=1.0, peak_memory_mib=1.0)
    cell = Cell(
        task=changes.get("task", "made_up"),
        method=method,
        model=changes.get("model", "no_model"),
        level=changes.get("level", "heads"),
        replacement=changes.get("replacement", "counterfactual"),
        seed=changes.get("seed", 0),
    )
    kept = Kept(seen=n, correct=n, kept=n, by_subset={"": (n, n)})
    return Record(
        suite="made_up",
        identity=digest([cell.model_dump(), list(drops)]),
        cell=cell,
        settings=Settings(families=("ablation",)),
        status="ok",
        model=ModelFacts(source="", weights_sha256=changes.get("weights", "w"), n_layers=1, n_heads=4, n_components=4),
        data_sha256=changes.get("data", "d"),
        kept={"train": kept, "test": kept},
        items=items,
        subsets=[""] * n,
        control=changes.get("control", False),
        top=changes.get("top", []),
        sketch=changes.get("sketch", []),
        ablation=family,
        speed=speed,
        aggregates=aggregates([family], speed, items),
    )
