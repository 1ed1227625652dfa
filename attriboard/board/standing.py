"""How the published methods of a table stand against its controls, by the metric that makes the headline.

A table whose methods no test tells from random scores ranks noise, and a published method that is no better than a rule
without attribution has shown nothing there. Both follow from the tests of the headline's column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..measurements.registry import METRICS
from ..records.record import Record
from ..roles import ControlKind
from ..stats.intervals import ALPHA
from ..stats.tests import holm
from .significance import ColumnTest, equal

Informative = Literal["yes", "no", "no power", "unknown"]
"""Whether a table tells any published method from random scores: yes; no, though it could; no, because a paired test
on so few examples cannot be significant; or unknown, where it has no such control, method or test."""


@dataclass(frozen=True)
class Standing:
    """Published methods against one control of their table.

    Attributes:
        metric: by which they are held against it.
        control: the label of the control.
        better: labels of the methods that are significantly better: paired tests, Holm-corrected over these pairs.
        not_better: labels of the others.
        has_power: whether any of the tests could be significant.
    """

    metric: str
    control: str
    better: tuple[str, ...]
    not_better: tuple[str, ...]
    has_power: bool


def standing(
    records: Sequence[Record], tests: Mapping[str, ColumnTest], kind: ControlKind, metric: str | None = None
) -> Standing | None:
    """The published methods among a table's records against its best control of a kind.

    Args:
        records: in the order of the table.
        tests: by metric, those of its columns.
        metric: by which; the headline, the first that is declared to be one, where none is named.

    Returns:
        None without a test of the metric, a control of this kind in it, or a published method in it.
    """
    if metric is None:
        metric = next((name for name, declared in METRICS.items() if declared.headline and name in tests), None)
    if metric is None or metric not in tests:
        return None
    test = tests[metric]
    sign = 1 if METRICS[metric].better == "higher" else -1
    tested = {name for pair in test.pairs for name in (pair.first, pair.second)}
    among = [r for r in records if r.filename in tested]
    controls = [r for r in among if r.control_kind == kind and np.isfinite(r.aggregates[metric].value)]
    methods = {r.filename: r.cell.method_label for r in among if not r.control}
    if not controls or not methods:
        return None
    values = {r.filename: r.aggregates[metric].value for r in among}
    best = max(controls, key=lambda r: sign * values[r.filename])
    better: dict[str, bool] = {}
    pairs = [p for p in test.pairs if best.filename in (p.first, p.second) and {p.first, p.second} & set(methods)]
    for pair, p in zip(pairs, holm([pair.p for pair in pairs])):
        first = pair.first != best.filename
        gain = sign * (pair.difference if first else -pair.difference)
        name = pair.first if first else pair.second
        better[name] = p <= ALPHA and gain > 0 and not equal(values[name], values[best.filename])
    return Standing(
        metric=metric,
        control=best.cell.method_label,
        better=tuple(label for name, label in methods.items() if better[name]),
        not_better=tuple(label for name, label in methods.items() if not better[name]),
        has_power=test.smallest * len(pairs) <= ALPHA,
    )


def informative(against_random: Standing | None) -> Informative:
    """What a standing against the control at random says of the whole table."""
    if against_random is None:
        return "unknown"
    if against_random.better:
        return "yes"
    return "no" if against_random.has_power else "no power"
