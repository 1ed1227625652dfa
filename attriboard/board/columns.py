"""Which metrics a board's tables show and how their rows are ordered, read from what measurements declare.

Nothing here names a metric: :class:`attriboard.measurements.base.Metric` says whether it is shown, ranks or sorts, and
its measurement whether it stands in a table's first part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ..measurements.base import Metric
from ..measurements.registry import MEASUREMENTS, METRICS
from ..measurements.speed import Speed
from ..records.record import Record


def is_cost(name: str) -> bool:
    """Whether a metric is what a method costs, which says nothing of how good it is."""
    return METRICS[name].measurement == Speed.name


def costs() -> tuple[str, ...]:
    """The columns that stand behind a table's first part."""
    return tuple(name for name, metric in METRICS.items() if metric.shown and is_cost(name))


def main_columns(level: str) -> tuple[str, ...]:
    """The metrics that the first part of a level's tables may show, without costs."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if metric.shown
        and level in (metric.shown_at or (level,))
        and not is_cost(name)
        and MEASUREMENTS[metric.measurement].main
        and _at(metric, level)
    )


def further_columns() -> list[tuple[str, ...]]:
    """The metrics that further parts may show, those of one part together."""
    blocks: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, metric in METRICS.items():
        if metric.shown and not MEASUREMENTS[metric.measurement].main:
            blocks[metric.measurement, metric.block].append(name)
    return [tuple(names) for names in blocks.values()]


def ranking_columns(level: str) -> tuple[str, ...]:
    """The metrics by which a level's methods are ranked overall, as far as they were measured."""
    return tuple(name for name, metric in METRICS.items() if metric.ranks and _at(metric, level))


def _at(metric: Metric, level: str) -> bool:
    return level in MEASUREMENTS[metric.measurement].levels


def standings(records: Sequence[Record]) -> list[tuple[int, float]]:
    """For each record, what it is sorted by; the smallest is the best.

    That is the mean of the sorting metrics of the first measurement that all of the records have; where there is none,
    each has those of its own first one, and records with an earlier measurement come first.
    """
    heights = [_heights(record) for record in records]
    shared = [place for place in (heights[0] if heights else ()) if all(place in own for own in heights)]
    rows = []
    for own in heights:
        place = min(shared or own, default=len(MEASUREMENTS))
        height = own.get(place, float("nan"))
        rows.append((place, -height if np.isfinite(height) else float("inf")))
    return rows


def best_first(records: Sequence[Record]) -> tuple[Record, ...]:
    """Records in the order of a table's rows."""
    order = {record.filename: standing for record, standing in zip(records, standings(records))}
    return tuple(sorted(records, key=lambda record: (*order[record.filename], record.cell.method_label)))


def _heights(record: Record) -> dict[int, float]:
    """By place of a measurement, the mean of its sorting metrics, signed so that more is better."""
    heights = {}
    for place, measurement in enumerate(MEASUREMENTS):
        sorting = [m for m in METRICS.values() if m.measurement == measurement and m.sorts]
        if sorting and all(m.name in record.aggregates for m in sorting):
            signs = [1 if m.better == "higher" else -1 for m in sorting]
            values = [sign * record.aggregates[m.name].value for sign, m in zip(signs, sorting)]
            heights[place] = float(np.mean(values))
    return heights
