"""Records to tables: what stands beside what, ranks over tables, and seeds; from stored records and nothing else.

The same records give the same board: nothing is drawn at random here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import scipy.stats

from ..levels import USUAL_REPLACEMENT
from ..measurements.registry import METRICS
from ..records.aggregate import up_to_date
from ..records.record import Record, digest
from ..records.store import Folder, newest
from ..stats.ranks import RankTest, rank_test
from .agreement import Overlap, between_tasks
from .columns import best_first, costs, further_columns, main_columns, ranking_columns, standings
from .significance import ColumnTest, compare_columns

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Options = dict[str, dict[str, Any]]


class Part(NamedTuple):
    """Columns of a table that stand side by side, and the records that have any of them, best first."""

    metrics: tuple[str, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Table:
    """Records of one task, level, model, replacement, variant and seed with equal examples and weights; best first.

    Records that hold the same measurement hold it with the same options; not all need hold the same ones.
    """

    task: str
    level: str
    model: str
    replacement: str
    variant: str
    seed: int
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        settings = self.records[0].settings
        how = "".join(
            f", {value}" for value, usual in ((settings.dtype, "float32"), (settings.device, "cpu")) if value != usual
        )
        return f"{self.task}, {self.level}, {self.model}{self.conditions}{seed}{how}, n = {len(self.records[0].items)}"

    @property
    def conditions(self) -> str:
        """Replacement and variant, as far as they are not the usual."""
        replacement = "" if self.replacement == USUAL_REPLACEMENT else f", {self.replacement} replacement"
        return replacement + (f", {self.variant}" if self.variant else "")

    @property
    def recipe(self) -> str:
        """What models that are built from a seed, and differ in it alone, have in common; else the model."""
        facts = self.records[0].model
        return (facts.recipe if facts else "") or self.model

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The first part, with the costs behind it; then one for each further group of metrics, where any has them."""
        parts = [part for part in map(self._part, (main_columns(self.level), *further_columns())) if part.metrics]
        first = parts[0] if parts else Part((), best_first(self.records))
        behind = tuple(name for name in costs() if any(name in r.aggregates for r in first.records))
        return (Part(first.metrics + behind, first.records), *parts[1:])

    def _part(self, metrics: Sequence[str]) -> Part:
        having = best_first([r for r in self.records if any(m in r.aggregates for m in metrics)])
        return Part(tuple(m for m in metrics if any(m in r.aggregates for r in having)), having)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that it shows, in order."""
        return tuple(dict.fromkeys(m for part in self.parts for m in part.metrics))

    @property
    def options(self) -> Options:
        """By measurement, the options with which it was made."""
        return {name: options for r in self.records for name, options in options_of(r).items()}

    @cached_property
    def comparisons(self) -> dict[str, ColumnTest]:
        """By metric shown, the tests of all pairs of records that have it; without those that cannot be tested."""
        return {
            metric: test for part in self.parts for metric, test in compare_columns(part.records, part.metrics).items()
        }

    def bold(self, record: Record) -> set[str]:
        """The metrics in which a record is the best, or not significantly worse than it."""
        return {metric for metric, test in self.comparisons.items() if record.filename in test.best}

    def ranks(self, metric: str) -> dict[str, float]:
        """By method, its relative rank: 0 for the best of the table, 1 for the last; ties share their mean.

        Nothing where the table does not show the metric, or fewer than two records have it.
        """
        having = [r for part in self.parts if metric in part.metrics for r in part.records if metric in r.aggregates]
        if len(having) < 2:
            return {}
        values = np.array([r.aggregates[metric].value for r in having])
        ordered = -values if METRICS[metric].better == "higher" else values
        ranks = np.full(len(values), np.nan)
        known = ~np.isnan(values)
        ranks[known] = scipy.stats.rankdata(ordered[known])
        relative = (ranks - 1) / (len(values) - 1)
        return {r.cell.method_label: float(x) for r, x in zip(having, relative)}


@dataclass(frozen=True)
class LevelTest:
    """Do the methods that stand in all of a level's tables differ in rank?

    Attributes:
        tables: how many tables there are.
        blocks: how many tasks and models; tables that share both are averaged, since they are no new evidence.
        methods: labels, in the order of ``result.mean_ranks``.
        result: None where there are fewer than two blocks or three methods.
    """

    tables: int
    blocks: int
    methods: tuple[str, ...]
    result: RankTest | None


@dataclass(frozen=True)
class OverallRank:
    """A method's place at a level, over all tables.

    Attributes:
        control: whether it is one in any table.
        tables: in how many of how many tables it was ranked by the level's first ranking metric.
        mean_rank: the mean over the metrics.
        by_metric: its mean relative rank by each metric that ranks the level, as far as it was measured.
    """

    level: str
    method: str
    control: bool
    tables: str
    mean_rank: float
    by_metric: dict[str, float]


@dataclass(frozen=True)
class SeedTable:
    """What tables that differ in the seed alone say together.

    Attributes:
        tables: one for each seed (of the examples, or of a model that was built from a seed).
    """

    tables: tuple[Table, ...]

    @property
    def seeds(self) -> list[str]:
        """What the tables differ in, for people."""
        models = {t.model for t in self.tables}
        return [t.model if len(models) > 1 else str(t.seed) for t in self.tables]

    @property
    def title(self) -> str:
        first = self.tables[0]
        return f"{first.task}, {first.level}, {first.recipe}{first.conditions}, seeds {', '.join(self.seeds)}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every metric that any of the tables shows."""
        return tuple(dict.fromkeys(m for t in self.tables for m in t.metrics))

    @property
    def rows(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Methods with their record under each seed, the best mean standing first."""
        records = [record for table in self.tables for record in table.records]
        own: dict[str, list[Record]] = defaultdict(list)
        standing: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for record, place in zip(records, standings(records)):
            own[record.cell.method_label].append(record)
            standing[record.cell.method_label].append(place)
        ordered = sorted(own, key=lambda m: (*np.mean(standing[m], axis=0).tolist(), m))
        return [(method, tuple(own[method])) for method in ordered]


@dataclass(frozen=True)
class Board:
    """Everything the formats print.

    Attributes:
        about: what the suite says of itself.
        tables: of every record that holds measurements.
        not_run: the records of cells that failed or were skipped.
        foreign: by file name, why a file in the folder is no record.
        superseded: how many older records of the same cells were passed over.
    """

    about: dict[str, Any]
    tables: tuple[Table, ...]
    not_run: tuple[Record, ...]
    foreign: dict[str, str]
    superseded: int

    @classmethod
    def read(cls, path: Path) -> Board:
        """The board of a results folder; aggregates of older definitions are derived again.

        Raises:
            ConfigurationError: no such folder, or not one record in it.
        """
        folder = Folder(path)
        records, superseded = newest(folder.filled())
        superseded += folder.set_aside
        return cls(
            about=folder.about(),
            tables=_tables([up_to_date(record) for record in records if record.measurements]),
            not_run=tuple(record for record in records if record.status != "ok"),
            foreign=dict(sorted(folder.foreign.items())),
            superseded=superseded,
        )

    def overall(self) -> list[OverallRank]:
        """Per level and method: in how many tables it stands and its mean relative rank over them; best first."""
        ranks: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        totals: dict[str, int] = defaultdict(int)
        controls: set[str] = set()
        for table in self.tables:
            by_metric = {metric: table.ranks(metric) for metric in ranking_columns(table.level)}
            if not any(by_metric.values()):
                continue
            totals[table.level] += 1
            controls.update(r.cell.method_label for r in table.records if r.control)
            for metric, by_method in by_metric.items():
                for method, rank in by_method.items():
                    ranks[table.level, method][metric].append(rank)
        rows = []
        for (level, method), own in ranks.items():
            means = {metric: float(np.mean(values)) for metric, values in own.items()}
            tables = f"{len(own[ranking_columns(level)[0]])} of {totals[level]}"
            rows.append(
                OverallRank(level, method, method in controls, tables, float(np.mean(list(means.values()))), means)
            )
        return sorted(rows, key=lambda r: (r.level, np.isnan(r.mean_rank), r.mean_rank, r.method))

    def rank_tests(self) -> dict[str, LevelTest]:
        """By level, the rank test of the methods that stand in all of the tables behind its overall ranks.

        In each table the methods are ranked by every metric that ranks the level, and by the mean of these ranks.
        """
        tests = {}
        for level in dict.fromkeys(t.level for t in self.tables):
            ranked = []
            for table in self.tables:
                by_metric = [table.ranks(m) for m in ranking_columns(level)] if table.level == level else []
                finite = [ranks for ranks in by_metric if ranks and np.isfinite(list(ranks.values())).all()]
                ranked += [(table, finite)] if finite else []
            if not ranked:
                continue
            methods = tuple(sorted(set.intersection(*(set(ranks) for _, by_metric in ranked for ranks in by_metric))))
            blocks: dict[tuple[str, str], list[Any]] = defaultdict(list)
            for table, by_metric in ranked:
                among = [scipy.stats.rankdata([ranks[m] for m in methods]) for ranks in by_metric]
                blocks[table.task, table.model].append(np.mean(among, axis=0))
            means = np.array([np.mean(rows, axis=0) for rows in blocks.values()]).round(9)  # ties stay ties
            test = rank_test(means) if len(blocks) >= 2 and len(methods) >= 3 else None
            tests[level] = LevelTest(len(ranked), len(blocks), methods, test)
        return tests

    def over_seeds(self) -> list[SeedTable]:
        """Summaries of the tables that differ in the seed alone.

        Models that are built from a seed, and differ in it alone, are one model under several seeds.
        """
        built: dict[str, set[str]] = defaultdict(set)
        for table in self.tables:
            built[table.recipe].add(table.model)
        groups: dict[str, list[Table]] = defaultdict(list)
        for table in self.tables:
            first = table.records[0]
            weights = first.model.weights_sha256 if first.model and len(built[table.recipe]) == 1 else ""
            kind = [table.task, table.level, table.recipe, table.replacement, table.variant, _drawn(first), weights]
            groups[digest(kind)].append(table)
        summaries = []
        for group in groups.values():
            for tables in _of_one_mind(group, lambda table: table.options):
                of_seed = {(table.model, table.seed): table for table in tables}  # the same seed on other data is none
                summaries += [SeedTable(tuple(of_seed.values()))] if len(of_seed) > 1 else []
        return summaries

    def overlaps(self) -> list[Overlap]:
        """How alike the scores of every method are on every two tasks."""
        return between_tasks([r for t in self.tables for r in t.records])

    def rows(self) -> list[dict[str, Any]]:
        """One row per record that ran, every aggregate with its interval; None where a record lacks one."""
        present = {name for table in self.tables for r in table.records for name in r.aggregates}
        rows = []
        for table in self.tables:
            for r in table.records:
                row: dict[str, Any] = {
                    "task": table.task,
                    "level": table.level,
                    "model": table.model,
                    "replacement": table.replacement,
                    "variant": table.variant,
                    "seed": table.seed,
                    "method": r.cell.method_label,
                    "control": r.control,
                    "n": len(r.items),
                    "kept_share": r.kept["test"].share,
                }
                for name in (m for m in METRICS if m in present):
                    a = r.aggregates.get(name)
                    value, low, high = (None, None, None) if a is None else (a.value, a.low, a.high)
                    row |= {name: value, f"{name}_low": low, f"{name}_high": high}
                rows.append(row | {"record": r.filename})
        return rows

    def frame(self) -> pd.DataFrame:
        """The rows as a data frame, for notebooks."""
        import pandas as pd

        return pd.DataFrame(self.rows())


def options_of(record: Record) -> Options:
    """By measurement that a record holds, the options with which it was made."""
    return {name: record.settings.asked(name) for name in record.measurements}


def _drawn(record: Record) -> list[Any]:
    """The settings that all records of a table share, whatever was measured."""
    return [record.settings.drawing(), record.settings.dtype, record.settings.device]


def _tables(records: Iterable[Record]) -> tuple[Table, ...]:
    groups: dict[tuple[str, str, str, str, str, int, str], list[Record]] = defaultdict(list)
    for record in records:
        c = record.cell
        weights = record.model.weights_sha256 if record.model else ""
        alike = digest([_drawn(record), weights, record.data_sha256])
        groups[c.task_label, c.level, c.model, c.replacement, c.variant, c.seed, alike].append(record)
    tables = []
    for key, group in sorted(groups.items(), key=lambda item: (*item[0][:-1], -len(item[1][0].items), item[0][-1])):
        most_first = sorted(group, key=lambda r: (-len(r.measurements), r.filename))
        tables += [Table(*key[:-1], best_first(part)) for part in _of_one_mind(most_first, options_of)]
    return tuple(tables)


def _of_one_mind(things: Sequence[T], options: Callable[[T], Options]) -> list[list[T]]:
    """Things in groups within which no measurement has two sets of options; each joins the first that it fits."""
    groups: list[tuple[Options, list[T]]] = []
    for thing in things:
        own = options(thing)
        for shared, group in groups:
            if all(shared.get(name, asked) == asked for name, asked in own.items()):
                shared |= own
                group.append(thing)
                break
        else:
            groups.append((dict(own), [thing]))
    return [group for _, group in groups]
