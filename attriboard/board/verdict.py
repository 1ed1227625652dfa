"""What a board says of its methods, over all tables of a level: who cannot be told from the best, by how much the rest
are worse, what they cost, and whether they beat a rule that is no attribution.

Everything follows from what the tables show: their values, the paired tests behind what is bold, and the overall ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..measurements.registry import METRICS
from ..records.record import Record
from .board import Board, Table
from .columns import ranking_columns
from .standing import standing

WORK = "forward_equivalents"
"""The metric of what scoring costs on any machine."""

Undecided = Literal["random", "few", "beyond", "alike"]
"""Why a table does not say who is best: no method is told from random scores; examples are too few; a value goes
beyond the untouched model's; or all are equal, or the best one could not be compared."""


@dataclass(frozen=True)
class Place:
    """How a method stands in the tables that decide a level.

    Attributes:
        control: whether it is one in any of them.
        tables: in how many of them it is compared with the others.
        best: in how many of these it is the best or not significantly worse (what is bold there).
        behind, least, most: median, smallest and largest distance to the best value of a table, in the metric's unit.
        better, against: in how many tables it is significantly better than the best trivial control, and in how many
            there was such a control and enough examples to be so; 0 and 0 for controls.
        forwards: what it costs, in forward passes per example: the median over the tables; None where not measured.
        behind_by_wins: whether it is told from the method with the most wins over all tables of the level; None where
            that is not known. See :class:`attriboard.board.board.OverallRank`.
    """

    method: str
    control: bool
    tables: int
    best: int
    behind: float
    least: float
    most: float
    better: int
    against: int
    forwards: float | None
    behind_by_wins: bool | None


@dataclass(frozen=True)
class LevelVerdict:
    """What the tables of a level say together.

    Attributes:
        metric: by which: the level's headline, or the first other metric that ranks it where no table decides that.
        tables, of: how many of how many tables that have the metric say who is best.
        blocks: how many tasks and models the former are of.
        undecided: why the others do not, with how many of each.
        passed_over: metrics that come first and that no table decides.
        places: of the methods that stand in at least half of these tables, best first: by the share of tables in which
            they stand beside the best, then by the median distance.
        thin: the labels of the others.
    """

    level: str
    metric: str
    tables: int
    of: int
    blocks: int
    undecided: dict[Undecided, int]
    passed_over: tuple[str, ...]
    places: tuple[Place, ...]
    thin: tuple[str, ...]

    @property
    def methods(self) -> tuple[Place, ...]:
        """The published ones among the places."""
        return tuple(place for place in self.places if not place.control)

    @property
    def best_control(self) -> Place | None:
        """The control that stands best."""
        return next((place for place in self.places if place.control), None)

    @property
    def never_worse(self) -> tuple[Place, ...]:
        """The published methods that are significantly worse than the best in none of their tables."""
        return tuple(place for place in self.methods if place.best == place.tables)


def verdicts(board: Board) -> list[LevelVerdict]:
    """The verdict of each level that has a table with a headline or another ranking metric, sorted by level."""
    levels = sorted({table.level for table in board.tables})
    return [verdict for level in levels if (verdict := _of_level(board, level)) is not None]


def _of_level(board: Board, level: str) -> LevelVerdict | None:
    tables = [table for table in board.tables if table.level == level]
    ranking = ranking_columns(level)
    named = [*(name for name, metric in METRICS.items() if metric.headline), *ranking]
    candidates = [name for name in dict.fromkeys(named) if any(name in table.metrics for table in tables)]
    if not candidates:
        return None
    decided = {name: [t for t in tables if name in t.metrics and _undecided(t, name) is None] for name in candidates}
    metric = next((name for name in candidates if decided[name]), candidates[0])
    having = [table for table in tables if metric in table.metrics]
    reasons = [why for table in having if (why := _undecided(table, metric)) is not None]
    passed_over = tuple(candidates[: candidates.index(metric)]) if decided[metric] else ()
    wins = {rank.method: rank.behind for ranks in board.levels if ranks.level == level for rank in ranks.ranks}
    places = _places(decided[metric], metric, {m: at_least > 0 for m, at_least in wins.items() if at_least is not None})
    enough = [place for place in places if 2 * place.tables >= len(decided[metric])]
    return LevelVerdict(
        level=level,
        metric=metric,
        tables=len(decided[metric]),
        of=len(having),
        blocks=len({(table.task, table.model) for table in decided[metric]}),
        undecided={why: reasons.count(why) for why in dict.fromkeys(sorted(reasons))},
        passed_over=passed_over,
        places=tuple(enough),
        thin=tuple(sorted(place.method for place in places if place not in enough)),
    )


def _undecided(table: Table, metric: str) -> Undecided | None:
    """Why a table does not say who is best by a metric; None where it does."""
    test = table.comparisons.get(metric)
    if table.informative == "no":
        return "random"
    if test is not None and not test.has_power:
        return "few"
    if metric in table.beyond_perfect:
        return "beyond"
    return None if test is not None and test.best else "alike"


class _Row(NamedTuple):
    """A record in a table that decides."""

    record: Record
    best: bool
    behind: float
    against_rule: bool | None


def _places(tables: Sequence[Table], metric: str, behind_by_wins: dict[str, bool]) -> list[Place]:
    rows: dict[str, list[_Row]] = defaultdict(list)
    for table in tables:
        for row in _rows(table, metric):
            rows[row.record.cell.method_label].append(row)
    places = []
    for method, own in rows.items():
        distances = [row.behind for row in own]
        costs = [row.record.aggregates[WORK].value for row in own if WORK in row.record.aggregates]
        held = [row.against_rule for row in own if row.against_rule is not None]
        place = Place(
            method=method,
            control=any(row.record.control for row in own),
            tables=len(own),
            best=sum(row.best for row in own),
            behind=float(np.median(distances)),
            least=min(distances),
            most=max(distances),
            better=sum(held),
            against=len(held),
            forwards=float(np.median(costs)) if costs else None,
            behind_by_wins=behind_by_wins.get(method),
        )
        places.append(place)
    return sorted(places, key=lambda p: (-p.best / p.tables, p.behind, p.method))


def _rows(table: Table, metric: str) -> Iterable[_Row]:
    """The records of a table that its tests of a metric compare."""
    test = table.comparisons[metric]
    sign = 1 if METRICS[metric].better == "higher" else -1
    tested = {name for pair in test.pairs for name in (pair.first, pair.second)}
    compared = [record for record in table.records if record.filename in tested]
    values = {record.filename: sign * record.aggregates[metric].value for record in compared}
    best = max(value for value in values.values() if np.isfinite(value))
    rule = standing(table.records, table.comparisons, "trivial", metric)
    for record in compared:
        label, value = record.cell.method_label, values[record.filename]
        held = rule is not None and rule.has_power and not record.control
        yield _Row(
            record=record,
            best=record.filename in test.best,
            behind=best - value,
            against_rule=label in rule.better if rule is not None and held else None,
        )


class ToldApart(NamedTuple):
    """In how many of how many columns at least half of the methods are told from the best."""

    columns: int
    of: int


def told_apart(tables: Iterable[Table], headlines: bool = False) -> ToldApart:
    """In how many columns at least half of the published methods are significantly worse than the best.

    Counted are the columns whose differences are tested in pairs and that have two published methods or more, without
    what scoring costs. The best itself is one of the methods, and not told from itself. In a column without enough
    examples for any difference, in which all are equal, or in which a value goes beyond the untouched model's, none is
    told from the best.

    Args:
        headlines: only of the columns of headline metrics, of which a table has one.
    """
    columns = of = 0
    for table in tables:
        published = {record.filename for record in table.records if not record.control}
        for metric, test in table.comparisons.items():
            methods = published & {name for pair in test.pairs for name in (pair.first, pair.second)}
            if len(methods) < 2 or (headlines and not METRICS[metric].headline):
                continue
            of += 1
            told = methods - test.best if test.best and metric not in table.beyond_perfect else set()
            columns += 2 * len(told) >= len(methods)
    return ToldApart(columns, of)
