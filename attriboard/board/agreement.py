"""Do scores agree: between methods, between seeds and between tasks; from the sketches that records keep."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..records.record import Record
from ..stats.intervals import Array
from ..stats.ranks import rank_correlation

TOP = 20
"""How many of the highest components of two tasks are compared."""


def between_methods(records: Sequence[Record]) -> tuple[list[Record], Array]:
    """The records of one table that have a sketch, and the rank correlation of every two ``[R, R]``.

    NaN where scores have no spread; empty where fewer than two records have a sketch.
    """
    with_sketch = [r for r in records if _sketch(r)]
    if len(with_sketch) < 2:
        return [], np.zeros((0, 0))
    return with_sketch, np.array([[rank_correlation(_sketch(a), _sketch(b)) for b in with_sketch] for a in with_sketch])


def between_seeds(records: Sequence[Record]) -> float | None:
    """The mean rank correlation of one method's scores under every two seeds, on the same weights; None without any."""
    correlations = [
        rank_correlation(_sketch(a), _sketch(b))
        for a, b in itertools.combinations([r for r in records if _sketch(r)], 2)
        if _weights(a) == _weights(b)
    ]
    known = [r for r in correlations if np.isfinite(r)]
    return float(np.mean(known)) if known else None


class Overlap(NamedTuple):
    """How alike a method's scores are on two tasks, on one model, level and seed.

    Attributes:
        correlation: of the ranks of the sketches; None where one has no spread.
        shared: of the :data:`TOP` highest components (or of all, where there are fewer), the share in common.
    """

    level: str
    model: str
    seed: int
    method: str
    control: bool
    first: str
    second: str
    correlation: float | None
    shared: float


def between_tasks(records: Sequence[Record]) -> list[Overlap]:
    """Every two tasks on which a method scored the same components of the same weights, sorted.

    Of several records of one task (other settings, another replacement in the evaluation) the one whose scores rest on
    most train examples stands for it.
    """
    groups: dict[tuple[str, str, str, int, str], dict[str, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: (-r.kept["train"].kept if "train" in r.kept else 0, r.filename)):
        if _sketch(record) and _top(record):
            c = record.cell
            groups[c.level, c.model, _weights(record), c.seed, c.method_label].setdefault(c.task_label, record)
    overlaps = []
    for (level, model, _, seed, method), tasks in sorted(groups.items()):
        for a, b in itertools.combinations(sorted(tasks), 2):
            one, other = tasks[a], tasks[b]
            correlation = rank_correlation(_sketch(one), _sketch(other))
            names = [{name for name, _ in _top(r)[:TOP]} for r in (one, other)]
            shared = len(names[0] & names[1]) / len(names[0])
            known = correlation if np.isfinite(correlation) else None
            overlaps.append(Overlap(level, model, seed, method, one.control, a, b, known, shared))
    return overlaps


def _sketch(record: Record) -> list[float]:
    return record.scores.sketch if record.scores else []


def _top(record: Record) -> list[tuple[str, float]]:
    return record.scores.top if record.scores else []


def _weights(record: Record) -> str:
    return record.model.weights_sha256 if record.model else ""
