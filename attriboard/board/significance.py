"""Which rows of a board's column can be told apart: paired tests of records on the same examples, Holm-corrected.

Works on stored records alone. What is tested, and how, is said in ``docs/statistics.md``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..measurements.base import Statistic
from ..measurements.metrics import METRICS
from ..records.record import Record
from ..stats.intervals import ALPHA, Array, clusters_of, defined_examples, each_example, pseudo_values
from ..stats.tests import holm, paired_test, smallest_p

STEPWISE = frozenset({"pruning_kept_sparsity", "pruning_kept_sparsity_absolute"})
"""Not tested: they jump from one measured sparsity to the next, so that no example has a share in them."""


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
class Comparison:
    """All pairs of one column.

    Attributes:
        metric: the column.
        examples, items: how many test examples the metric heeds, and how many base items those have.
        methods: how many records were compared.
        pairs: every two of them.
        marked: file names of the best record and of all that are not significantly worse; empty where no pair could
            be told apart, where all are equal, or where the best one could not be compared.
    """

    metric: str
    examples: int
    items: int
    methods: int
    pairs: tuple[Pair, ...]
    marked: frozenset[str]

    @property
    def smallest(self) -> float:
        """The smallest p-value that a pair can have here, before the correction."""
        return smallest_p(self.items)

    @property
    def can_tell(self) -> bool:
        """Whether any result at all could be significant after the correction."""
        return self.smallest * len(self.pairs) <= ALPHA


def _alike(a: Record, b: Record, family: str) -> bool:
    """Whether two records measured a family of metrics on the same examples, in the same order."""
    one, other = a.families.get(family), b.families.get(family)
    return (
        one is not None
        and other is not None
        and (a.cell.task, a.data_sha256, a.items, a.subsets) == (b.cell.task, b.data_sha256, b.items, b.subsets)
        and (one.n, list(one.clusters(a.items))) == (other.n, list(other.clusters(b.items)))
    )


def compare(records: Sequence[Record], metrics: Sequence[str]) -> dict[str, Comparison]:
    """By metric, the tests of all pairs of records.

    Every record must have been measured on the same examples as the first that has the metric; others stay out.
    Examples that the metric passes over in all of them are left out. A metric is absent where it is no statistic over
    examples, has no better end, or fewer than two records can be compared.
    """
    known = {r.filename: {k: v for f in r.families.values() for k, v in f.statistics().items()} for r in records}
    found = {}
    for metric in metrics:
        if METRICS[metric].better == "neither" or metric in STEPWISE:
            continue
        having = [r for r in records if metric in r.aggregates and metric in known[r.filename]]
        alike = [(r, known[r.filename][metric]) for r in having if _alike(having[0], r, METRICS[metric].family)]
        comparison = _compare(records, metric, alike)
        if comparison is not None:
            found[metric] = comparison
    return found


def _compare(
    records: Sequence[Record], metric: str, candidates: Sequence[tuple[Record, Statistic]]
) -> Comparison | None:
    """Of records on the same examples, each with its statistic; None for fewer than two."""
    if len(candidates) < 2:
        return None
    family = METRICS[metric].family
    held = candidates[0][0].families[family]
    silent = [np.isnan(each_example(held.n, statistic)) for _, statistic in candidates]
    chosen = max((defined_examples(held.n, statistic) for _, statistic in candidates), key=len)
    items = held.clusters(candidates[0][0].items)
    items = [items[i] for i in chosen.tolist()] if len(items) == held.n else []
    shares: dict[str, Array] = {}
    tested: list[Record] = []
    for (record, statistic), missing in zip(candidates, silent):
        with np.errstate(all="ignore"):
            values = pseudo_values(len(chosen), _over(chosen, statistic))
        if len(values) and np.isfinite(values).all() and (missing == silent[0]).all():
            shares[record.filename] = values
            tested.append(record)
    if len(tested) < 2:
        return None
    couples = list(itertools.combinations(tested, 2))
    p = [paired_test(shares[a.filename] - shares[b.filename], items) for a, b in couples]
    pairs = tuple(
        Pair(a.filename, b.filename, a.aggregates[metric].value - b.aggregates[metric].value, raw, adjusted)
        for (a, b), raw, adjusted in zip(couples, p, holm(p))
    )
    n = len(chosen)
    found = Comparison(metric, n, len(clusters_of(items, n)), len(tested), pairs, frozenset())
    differ = any(pair.difference for pair in pairs)
    return replace(found, marked=_marked(records, metric, pairs)) if found.can_tell and differ else found


def _over(index: NDArray[np.intp], statistic: Statistic) -> Statistic:
    return lambda among: statistic(index[among])


def _marked(records: Sequence[Record], metric: str, pairs: Sequence[Pair]) -> frozenset[str]:
    """The best of all records that show the metric, and those that its tests do not tell apart from it."""
    sign = 1 if METRICS[metric].better == "higher" else -1
    shown = [r for r in records if metric in r.aggregates and np.isfinite(r.aggregates[metric].value)]
    best = max(shown, key=lambda r: sign * r.aggregates[metric].value).filename
    own = [pair for pair in pairs if best in (pair.first, pair.second)]
    close = {name for pair in own if pair.adjusted > ALPHA for name in (pair.first, pair.second)}
    return frozenset(close | {best}) if own else frozenset()
