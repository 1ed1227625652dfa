"""Records made by hand, so that what a board must say of them is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attriboard.measurements.ablation import Ablation
from attriboard.measurements.base import Kept, Measurement
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.measurements.speed import Speed
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Cell, ModelFacts, Provenance, Record, Stage, StoredScores, digest
from attriboard.records.settings import Settings
from attriboard.stats.intervals import VERSION

METRIC = "ablation_drop_p"
"""The metric whose per-example values are chosen; its value is their mean."""
COSTS = ("seconds_per_example", "forward_equivalents", "flops_per_example", "peak_memory_mib")


def ablation(drops: Sequence[float]) -> Ablation:
    """An ablation whose drop in p on each test example is as given, above -0.4 and below 0.5."""

    def values(p: Sequence[float]) -> list[list[float]]:
        return [list(map(float, p)), np.log(p).tolist(), [1.0] * len(drops)]

    clean, random = ([p] * len(drops) for p in (0.9, 0.5))
    return Ablation(
        sizes=[1],
        clean=values(clean),
        top=[[each] for each in values([0.5 - d for d in drops])],
        random=[[each] for each in values(random)],
    )


def faithfulness(values: Sequence[float]) -> Faithfulness:
    """A faithfulness whose f is the mean of ``values`` ``[N]`` at every size, but for necessity, which is 1."""
    n, flat = len(values), [list(map(float, values))]
    return Faithfulness(
        sizes=[1, 2],
        examples=list(range(n)),
        full=[1.0] * n,
        empty=[0.0] * n,
        absolute=flat * 2,
        signed=flat * 2,
        answered=[[1.0] * n] * 2,
        removed=[[0.0] * n] * 2,
        shuffled=[[0.0] * n] * 2,
        mib_sizes=[1] * 10,
        mib_signed=flat * 10,
        mib_absolute=flat * 10,
    )


def speed(**changes: Any) -> Speed:
    """Two repeats of one example."""
    work = {"scored": 1, "flops": 2e9, "forward_equivalents": 1.0}
    usual = {"examples": 1, "seconds": [0.1, 0.2], "peak_memory_mib": 1.0, **work}
    return Speed(**{**usual, **changes})


def stored(
    sketch: Sequence[float] = (), top: Sequence[tuple[str, float]] = (), ties: float = 0.0, noise: float = 0.0
) -> StoredScores:
    """What a record says of its scores; there is no file."""
    return StoredScores(
        identity="i",
        file="scores/none.safetensors",
        sha256="s",
        values_sha256="v",
        sketch=list(sketch),
        top=list(top),
        ties=ties,
        noise=noise,
    )


def by_name(*measurements: Measurement) -> dict[str, Measurement]:
    """Measurements as a record holds them."""
    return {measurement.name: measurement for measurement in measurements}


def named(given: Sequence[Measurement], items: Sequence[str], frames: Sequence[str] = ()) -> list[Measurement]:
    """The measurements; those that are cross-fitted with the items and frames of their rows, each example in one."""
    names = {"base_items": list(items), "base_frames": list(frames)}
    own = [m.cross_fitted and not m.base_items and m.n == len(items) for m in given]
    return [m.model_copy(update=names) if fills else m for m, fills in zip(given, own)]


def stages(measurements: Mapping[str, Measurement]) -> dict[str, Stage]:
    """The stages of a record that holds these measurements."""
    return {name: Stage(identity=name) for name in ("scores", *measurements)}


def record(method: str, drops: Sequence[float], **changes: Any) -> Record:
    """A record whose drop in p on each test example is as given.

    Args:
        method: its name.
        drops: above -0.4 and below 0.5.
        changes: ``items``, ``frames``, ``seed``, ``task``, ``model``, ``level``, ``control``, ``control_kind``,
            ``sees``, ``sketch``, ``top``, ``ties``, ``noise``, ``n_eff``, ``data``, ``replacement``, ``variant``,
            ``weights``, ``recipe``, ``settings``, ``status``, ``reason``, ``precomputed``, and ``measurements`` in the
            place of ablation and speed; what is left out is the same for all records.
    """
    n = len(drops)
    items = changes.get("items", [f"item {i}" for i in range(n)])
    frames = changes.get("frames", [])
    given = changes.get("measurements", (ablation(drops), speed()))
    measurements = by_name(*named(given, items, frames))
    cell = Cell(
        task=changes.get("task", "made_up"),
        method=method,
        model=changes.get("model", "no_model"),
        level=changes.get("level", "heads"),
        replacement=changes.get("replacement", "counterfactual"),
        variant=changes.get("variant", ""),
        seed=changes.get("seed", 0),
        precomputed=changes.get("precomputed"),
    )
    kept = Kept(seen=n, correct=n, passing=n, kept=n, by_subset={"": (n, n, n)}, n_eff=changes.get("n_eff"))
    return Record(
        suite="made_up",
        identity=digest([cell.model_dump(), list(drops), sorted(measurements)]),
        cell=cell,
        # one half of the examples is judged
        settings=(changes.get("settings") or Settings(evaluations=tuple(measurements))).model_copy(update={"folds": 0}),
        status=changes.get("status", "ok"),
        reason=changes.get("reason", ""),
        model=ModelFacts(
            source="",
            weights_sha256=changes.get("weights", "w"),
            n_layers=1,
            n_heads=4,
            n_components=4,
            recipe=changes.get("recipe", ""),
        ),
        data_sha256=changes.get("data", "d"),
        kept={"train": kept, "test": kept},
        items=items,
        frames=frames,
        n_eff=changes.get("n_eff"),
        subsets=[""] * n,
        control=changes.get("control", "control_kind" in changes),
        control_kind=changes.get("control_kind", ""),
        sees=changes.get("sees"),
        scores=stored(*(changes.get(k, v) for k, v in (("sketch", ()), ("top", ()), ("ties", 0.0), ("noise", 0.0)))),
        measurements=measurements,
        stages=stages(measurements),
        aggregates=aggregates(measurements.values(), items, frames),
        statistics_version=VERSION,
    )


def made(one: Record, created: str, device: str = "a processor", threads: int = 1) -> Record:
    """The record as if it had been made then and there, and timed there."""
    versions = {"attriboard": "0", "attriboard_commit": None, "python": "3", "torch": "2", "transformers": "5"}
    provenance = Provenance(**versions, platform="p", device=device, threads=threads, created=created)
    timed = {"speed": Stage(identity="speed", device=device)} if "speed" in one.stages else {}
    identity = digest([one.identity, created, device, threads])
    return one.model_copy(update={"provenance": provenance, "stages": {**one.stages, **timed}, "identity": identity})
