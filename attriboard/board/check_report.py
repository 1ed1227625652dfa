"""What ``attriboard check`` found, and how it says so: changes of metrics, times, and the whole report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import numpy as np
from pydantic import Field, computed_field

from ..measurements.base import Strict
from ..measurements.registry import METRICS
from ..records.record import Cell
from ..stats.intervals import ALPHA

SLOWER = 1.5
"""The least ratio of medians that counts as slower. Repeats made within a second differ less than runs do, so their
spread alone would call too many cells slower."""
REPEATS = 3
"""The fewest repeats of which a spread is taken."""
SHORTEST = 0.01
"""Seconds; a repeat below it is never called slow, since a clock and a scheduler make up much of it."""

Verdict = Literal["worse", "better", "not different", "unchanged", "cannot detect"]


class MetricChange(Strict):
    """One metric of one cell, before and now.

    Attributes:
        cell: the cell now; ``seed_before`` is the other side's seed.
        metric: its name in :data:`METRICS`.
        old, new: its values, over the shared examples where the test is paired.
        difference: what was tested: ``new - old``; where other examples are compared that share base items alone, of
            the means over base items, each of which counts alike.
        low, high: its 95 % interval; None for fewer than two clusters in any way.
        paired: whether the same examples were compared with each other.
        same: whether no example differs.
        n_old, n_new: examples.
        p: of the test.
        smallest_p: the smallest that so many clusters could give.
        adjusted: p after Holm; None for a test that could not reject, whatever the differences.
    """

    cell: Cell
    seed_before: int
    metric: str
    old: float
    new: float
    difference: float
    low: float | None
    high: float | None
    paired: bool
    same: bool
    n_old: int
    n_new: int
    p: float
    smallest_p: float
    adjusted: float | None = None

    @property
    def worse(self) -> bool:
        """Whether the new side is the worse one, significant or not."""
        return self.difference < 0 if METRICS[self.metric].better == "higher" else self.difference > 0

    @property
    def exact(self) -> bool:
        """Whether there is one value by definition on either side, which the same data make comparable as it is."""
        return self.paired and self.n_old == self.n_new == 1 and METRICS[self.metric].exact

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """ "unchanged" where no example differs; "cannot detect" where no difference could have been significant."""
        if self.exact:
            differs = not self.same and not math.isclose(self.new, self.old, rel_tol=1e-6, abs_tol=1e-9)
        else:
            differs = self.adjusted is not None and self.adjusted <= ALPHA
        if differs:
            return "worse" if self.worse else "better"
        if self.same:
            return "unchanged"
        return "not different" if self.exact or self.adjusted is not None else "cannot detect"

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        d = metric.digits
        interval = "" if self.low is None else f" [{self.low:+.{d}f}, {self.high:+.{d}f}]"
        seed = "" if self.cell.seed == self.seed_before else f" (seed {self.seed_before} before)"
        n = f"n = {self.n_new}" if self.n_new == self.n_old else f"n = {self.n_old} -> {self.n_new}"
        values = f"{self.cell}{seed}: {metric.title} ({self.metric}) {self.old:.{d}f} -> {self.new:.{d}f}, difference"
        if self.exact:
            return f"{values} {self.difference:+.{d}f} (one value, no test)"
        how = "paired" if self.paired else "unpaired"
        p = 1.0 if self.adjusted is None else self.adjusted
        return f"{values} {self.difference:+.{d}f}{interval}, p = {p:.2g} after Holm ({how}, {n})"


class Times(Strict):
    """Seconds per example of one cell, before and now: those of every warm repeat.

    Slower means all of: the fastest repeat now is slower than the slowest before, the ratio of the medians is at least
    :data:`SLOWER`, there are at least :data:`REPEATS` repeats on both sides, and the median repeat now takes at least
    :data:`SHORTEST`.

    Attributes:
        examples: how many examples a repeat scored.
        not_compared: why the times cannot be held against each other; empty where they are.
    """

    cell: Cell
    old: list[float]
    new: list[float]
    examples: int
    not_compared: str = ""

    @property
    def ratio(self) -> float:
        """Of the medians, new over old."""
        return float(np.median(self.new) / np.median(self.old))

    @property
    def slower(self) -> bool:
        return (
            not self.not_compared
            and min(self.new) > max(self.old)
            and self.ratio >= SLOWER
            and float(np.median(self.new)) * self.examples >= SHORTEST
        )

    def __str__(self) -> str:
        old, new = (f"{np.median(side):.2g} [{min(side):.2g}, {max(side):.2g}]" for side in (self.old, self.new))
        return f"{self.cell}: {old} -> {new} seconds per example, {self.ratio:.2f} times as long"


class Report(Strict):
    """What a check found.

    Attributes:
        changes: every metric of every matched cell that was compared.
        missing: sentences on cells, and metrics of cells, that were measured before and are not now.
        times: of every matched cell; empty where speed was not asked for.
        cells: how many matched cells were compared.
        added: how many cells there are now that were not there before.
        left_out: sentences on files that are no records.
    """

    changes: list[MetricChange]
    missing: list[str] = Field(default_factory=list)
    times: list[Times] = Field(default_factory=list)
    cells: int
    added: int = 0
    left_out: list[str] = Field(default_factory=list)

    def judged(self, verdict: Verdict) -> list[MetricChange]:
        """The changes with this verdict."""
        return [c for c in self.changes if c.verdict == verdict]

    @property
    def slower(self) -> list[Times]:
        return [t for t in self.times if t.slower]

    @property
    def failed(self) -> bool:
        return bool(self.judged("worse") or self.missing or self.slower)

    def failures(self) -> list[str]:
        """One line for everything that makes the check fail."""
        return [
            *(f"worse: {c}" for c in self.judged("worse")),
            *(f"missing: {m}" for m in self.missing),
            *(f"slower: {t}" for t in self.slower),
        ]

    def lines(self) -> list[str]:
        """The whole report: what fails, what improved, what could not be detected, and what was compared."""
        return [
            *self.failures(),
            *(f"better: {c}" for c in self.judged("better")),
            *self._underpowered(),
            *(f"left out: {sentence}" for sentence in self.left_out),
            self.summary(),
        ]

    def _underpowered(self) -> list[str]:
        """A line on the tests that could not have found anything, where there are any."""
        undetectable = self.judged("cannot detect")
        if not undetectable:
            return []
        tested = len(self.changes) - len(self.judged("unchanged"))
        n, smallest = _span(c.n_new for c in undetectable), _span(c.smallest_p for c in undetectable)
        return [
            f"cannot detect: {len(undetectable)} of {tested} tests could not have found any difference, however large: "
            f"of n = {n} examples so few differ that the smallest p possible is {smallest}, too large among {tested} "
            "tests; measure more examples, or compare fewer metrics or cells."
        ]

    def summary(self) -> str:
        """One line of what was compared."""
        c = self.changes
        paired = sum(x.paired for x in c)
        n = _span(x.n_new for x in c) if c else "0"
        clauses = [
            f"compared {self.cells} cells, {len(c)} tests ({paired} paired, {len(c) - paired} unpaired), n = {n}: "
            + ", ".join(f"{len(self.judged(v))} {v}" for v in ("worse", "better", "not different", "unchanged"))
            + f", {len(self.judged('cannot detect'))} not detectable"
        ]
        if self.missing:
            clauses.append(f"{len(self.missing)} missing")
        if self.added:
            clauses.append(f"{self.added} new cells without a counterpart")
        if self.times:
            why = Counter(t.not_compared for t in self.times if t.not_compared)
            compared = len(self.times) - why.total()
            reasons = "".join(f", {count} not compared ({reason})" for reason, count in sorted(why.items()))
            clauses.append(f"times of {compared} cells: {len(self.slower)} slower{reasons}")
        return "; ".join(clauses) + "."


def _span(values: Iterable[float]) -> str:
    """The smallest and the largest."""
    every = list(values)
    low, high = f"{min(every):.2g}", f"{max(every):.2g}"
    return low if min(every) == max(every) else f"{low} to {high}"
