"""Which rows of a board's column differ significantly: paired tests of records on the same examples, Holm-corrected.

Works on stored records alone. What is tested, and how, is said in ``docs/statistics.md``.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..measurements.base import Statistic
from ..measurements.registry import METRICS
from ..records.record import Record
from ..stats.clusters import FRAME, TRAIN, Clusters
from ..stats.intervals import ALPHA, Array, defined_examples, each_example, pseudo_values
from ..stats.tests import holm, paired_tests, smallest_p


class Pair(NamedTuple):
    """Two records of one column.

    Attributes:
        first, second: their file names, in the order of the table.
        difference: the first's value minus the second's.
        p: of the paired test.
        adjusted: by Holm, over all pairs of the column.
    """

    first: str
    second: str
    difference: float
    p: float
    adjusted: float


@dataclass(frozen=True)
class ColumnTest:
    """The tests of all pairs of one column.

    Attributes:
        metric: the column.
        examples, items: for how many rows the metric is defined, and how many base items those have. Where measurements
            are cross-fitted, a row is one example in one repetition.
        frames, train_groups: how many frames and train groups those have; 0 where rows do not depend on each other so.
        smallest: the smallest p-value that a pair can have here, before the correction.
        methods: how many records were compared.
        pairs: every two of them.
        best: file names of the best record and of all that are :func:`equal` or not significantly worse; empty where no
            pair could differ significantly, where all are equal, or where the best one could not be compared.
    """

    metric: str
    examples: int
    items: int
    methods: int
    pairs: tuple[Pair, ...]
    best: frozenset[str]
    frames: int = 0
    train_groups: int = 0
    smallest: float = 1.0

    @property
    def has_power(self) -> bool:
        """Whether any result at all could be significant after the correction."""
        return self.smallest * len(self.pairs) <= ALPHA


def equal(a: float, b: float) -> bool:
    """Whether two values differ by no more than rounding can make: in the seventh figure, or by less than 1e-9.

    Rounding may differ in the same direction on every example, which a paired test finds.
    """
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def without_rounding(values: Array) -> Array:
    """The finite values ``[N]``, each that is :func:`equal` to the next smaller one replaced by that one's."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    for at in range(1, len(ascending)):
        if equal(ascending[at - 1], ascending[at]):
            ascending[at] = ascending[at - 1]
    plain = np.empty_like(values)
    plain[order] = ascending
    return plain


def compare_columns(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, ColumnTest]:
    """By metric, the tests of all pairs of records.

    Every record must have been measured on the same examples as the first that has the metric; others stay out.
    Examples for which the metric is defined in none of them are left out. A metric is absent where it is no statistic
    over examples, cannot be tested by one, has no better end, or fewer than two records can be compared.
    """
    tests = {}
    known = _Dependences()
    for metric in metrics:
        if METRICS[metric].better == "neither" or not METRICS[metric].tested:
            continue
        having = [r for r in records if metric in r.aggregates and metric in r.statistics]
        alike = [r for r in having if _same_examples(having[0], r, metric)]
        test = _column_test(records, metric, alike, known)
        if test is not None:
            tests[metric] = test
    return tests


def _same_examples(a: Record, b: Record, metric: str) -> bool:
    """Whether two records measured a metric on the same examples, in the same order."""
    (one, _), (other, _) = a.statistics[metric], b.statistics[metric]
    same_data = (a.cell.task, a.data_sha256, a.items, a.frames, a.subsets) == (
        b.cell.task,
        b.data_sha256,
        b.items,
        b.frames,
        b.subsets,
    )
    return same_data and (one.n, one.base_items, one.base_frames) == (other.n, other.base_items, other.base_frames)


class _Dependences:
    """How the rows of a table's records depend on each other: what is equal is one object, worked out once."""

    def __init__(self) -> None:
        self._one: dict[Clusters, Clusters] = {}
        self._merged: dict[tuple[int, int], Clusters] = {}
        self._named: dict[tuple[object, ...], Clusters] = {}
        self._of_measurement: dict[int, Clusters] = {}

    def of_record(self, record: Record, metric: str) -> Clusters:
        """:meth:`Record.clusters`; that of records whose rows are named alike is one object."""
        measurement = record.statistics[metric][0]
        if id(measurement) not in self._of_measurement:
            lists = (measurement.base_items, measurement.base_frames, measurement.train_groups)
            names = (type(measurement), measurement.n, *map(tuple, (*lists, record.items, record.frames)))
            if names not in self._named:
                self._named[names] = self.of(record.clusters(metric))
            self._of_measurement[id(measurement)] = self._named[names]
        return self._of_measurement[id(measurement)]

    def of(self, clusters: Clusters) -> Clusters:
        return self._one.setdefault(clusters, clusters)

    def merged(self, a: Clusters, b: Clusters) -> Clusters:
        """:meth:`Clusters.merged_train` of two that :meth:`of` gave."""
        if (id(a), id(b)) not in self._merged:
            self._merged[id(a), id(b)] = self.of(a.merged_train(b))
        return self._merged[id(a), id(b)]


def _column_test(
    records: Sequence[Record], metric: str, candidates: Sequence[Record], known: _Dependences
) -> ColumnTest | None:
    """Of records on the same examples; None for fewer than two."""
    if len(candidates) < 2:
        return None
    statistics = [record.statistics[metric][1] for record in candidates]
    measurement = candidates[0].statistics[metric][0]
    each = [each_example(measurement.n, statistic) for statistic in statistics]
    undefined = [np.isnan(values) for values in each]
    chosen = max((defined_examples(measurement.n, *of) for of in zip(statistics, each)), key=len)
    rows: list[Array] = []
    tested: list[Record] = []
    for record, statistic, missing in zip(candidates, statistics, undefined):
        with np.errstate(all="ignore"):
            values = pseudo_values(len(chosen), _over(chosen, statistic))
        if len(values) and np.isfinite(values).all() and (missing == undefined[0]).all():
            rows.append(values)
            tested.append(record)
    if len(tested) < 2:
        return None
    whole = len(chosen) == measurement.n
    clusters = [known.of_record(record, metric) for record in tested]
    subsets = {id(of): of if whole else known.of(of.subset(chosen)) for of in clusters}
    dependence = [subsets[id(of)] for of in clusters]
    couples = list(itertools.combinations(range(len(tested)), 2))
    both = [known.merged(dependence[a], dependence[b]) for a, b in couples]
    p = np.empty(len(couples))
    shares = np.stack(rows)
    alike: dict[int, list[int]] = defaultdict(list)
    for at, of in enumerate(both):
        alike[id(of)].append(at)
    for places in alike.values():  # all pairs whose rows depend on each other alike in one go
        first, second = np.array([couples[at] for at in places]).T
        p[places] = paired_tests(shares[first] - shares[second], both[places[0]])
    names = [record.filename for record in tested]
    values_shown = [record.aggregates[metric].value for record in tested]
    pairs = tuple(
        Pair(names[a], names[b], values_shown[a] - values_shown[b], float(raw), adjusted)
        for (a, b), raw, adjusted in zip(couples, p, holm(p.tolist()))
    )
    of = dependence[0]
    frames, groups = (of.counts.get(way, 0) for way in (FRAME, TRAIN))
    test = ColumnTest(
        metric,
        len(chosen),
        of.number,
        len(tested),
        pairs,
        frozenset(),
        frames,
        groups,
        min(map(smallest_p, {id(of): of for of in both}.values())),
    )
    differ = not all(equal(value, values_shown[0]) for value in values_shown)
    return replace(test, best=_best(records, metric, pairs)) if test.has_power and differ else test


def _over(index: NDArray[np.intp], statistic: Statistic) -> Statistic:
    return lambda among: statistic(index[among])


def _best(records: Sequence[Record], metric: str, pairs: Sequence[Pair]) -> frozenset[str]:
    """The best of all records that show the metric, and those that are equal to it or not significantly worse."""
    sign = 1 if METRICS[metric].better == "higher" else -1
    shown = {r.filename: r.aggregates[metric].value for r in records if metric in r.aggregates}
    best = max((name for name, value in shown.items() if np.isfinite(value)), key=lambda name: sign * shown[name])
    own = [pair for pair in pairs if best in (pair.first, pair.second)]
    alike = [pair for pair in own if pair.adjusted > ALPHA or equal(shown[pair.first], shown[pair.second])]
    close = {name for pair in alike for name in (pair.first, pair.second)}
    return frozenset(close | {best}) if own else frozenset()
