"""Records to tables: what stands beside what, ranks over tables, and seeds; from stored records and nothing else.

The same records give the same board: what is resampled here has a fixed seed.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import scipy.stats

from ..errors import AttriboardError
from ..files import kind_and_reason
from ..levels import USUAL_REPLACEMENT
from ..measurements.registry import METRICS
from ..measurements.speed import VARYING, Speed
from ..records.aggregate import up_to_date
from ..records.record import Record, Stage, digest
from ..records.store import Folder, Reader, newest
from ..stats.intervals import RESAMPLES
from ..stats.ranks import RankTest, Resampled, rank_test, win_shares, wins_of
from .agreement import Overlap, between_tasks
from .columns import best_first, costs, further_columns, main_columns, ranking_columns, standings
from .machines import Machine, machine_of, timed_on
from .merging import Options, Source, about_all, named, one_per_cell, options_of
from .significance import ColumnTest, compare_columns, without_rounding
from .standing import Informative, Standing, informative, standing

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Findings = Mapping[tuple[str, int, str], Sequence[str]]
"""By task, its version and a model's weights (SHA-256), what an audit of the task found beyond its limits."""


class Part(NamedTuple):
    """Columns of a table that stand side by side, and the records that have any of them, best first."""

    metrics: tuple[str, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Table:
    """Records of one task, level, model, replacement, variant and seed with equal examples and weights; best first.

    Records that hold the same measurement hold it with the same options; not all need hold the same ones.
    They may be of several devices and suites; a method stands in it once.

    Attributes:
        findings: sentences of an audit of the task on the model.
        apart: what tells it from other tables of the same title: its suites, or the devices of its records.
        elsewhere: on which devices the records of tables were made that are of the same cells but of other examples,
            since the model answers others there.
        one_of_several: whether the board has times of several machines, so that a table says on which its own were
            taken.
    """

    task: str
    level: str
    model: str
    replacement: str
    variant: str
    seed: int
    records: tuple[Record, ...]
    findings: tuple[str, ...] = ()
    apart: str = ""
    elsewhere: tuple[str, ...] = ()
    one_of_several: bool = False

    @property
    def title(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        devices = {r.settings.device for r in self.records}
        device = devices.pop() if len(devices) == 1 else "cpu"  # where there are several, rows say which
        how = "".join(
            f", {value}"
            for value, usual in ((self.records[0].settings.dtype, "float32"), (device, "cpu"), (self.apart, ""))
            if value != usual
        )
        judged, effective = self.records[0].judged
        n = f"n = {judged}" + ("" if effective is None else f" (n_eff {effective:.0f})")
        return f"{self.task}, {self.level}, {self.model}{self.conditions}{seed}{how}, {n}"

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
        """The metrics in which a record is the best, or not significantly worse than it.

        Without those of :attr:`beyond_perfect`: there the best is not known by its value.
        """
        best = {metric for metric, test in self.comparisons.items() if record.filename in test.best}
        return best - set(self.beyond_perfect)

    @cached_property
    def beyond_perfect(self) -> tuple[str, ...]:
        """The metrics shown whose best value goes beyond what the untouched model has."""
        beyond = []
        for name in self.metrics:
            metric = METRICS[name]
            if metric.perfect is not None and metric.better != "neither":
                sign = 1 if metric.better == "higher" else -1
                values = [sign * r.aggregates[name].value for r in self.records if name in r.aggregates]
                # what rounding adds to a perfect value is not beyond it
                beyond += [name] if any(value > sign * metric.perfect + 1e-6 for value in values) else []
        return tuple(beyond)

    @cached_property
    def against_random(self) -> Standing | None:
        """The published methods against scores drawn at random, by the headline's metric; None where not known."""
        return standing(self.records, self.comparisons, "random")

    @cached_property
    def against_trivial(self) -> Standing | None:
        """The published methods against the best control that is a fixed rule; None where not known."""
        return standing(self.records, self.comparisons, "trivial")

    @property
    def informative(self) -> Informative:
        """Whether it tells any published method from random scores. Where it does not, it enters no ranks."""
        return informative(self.against_random)

    @property
    def says_what_is_seen(self) -> bool:
        """Whether it is known of any of its methods what they see of an example."""
        return any(r.sees is not None for r in self.records)

    @cached_property
    def machines(self) -> tuple[Machine, ...]:
        """On what its records were timed; times and memory compare only within one of them."""
        return timed_on(self.records)

    @property
    def names_machines(self) -> bool:
        """Whether its rows must say on which machine they were timed."""
        return len(self.machines) > 1

    def ranks(self, metric: str) -> dict[str, float]:
        """By method, its relative rank: 0 for the best of the table, 1 for the last; equal values share their mean.

        Nothing where the table does not show the metric, or fewer than two records have it.
        """
        having = [r for part in self.parts if metric in part.metrics for r in part.records if metric in r.aggregates]
        if len(having) < 2:
            return {}
        values = np.array([r.aggregates[metric].value for r in having])
        ordered = -values if METRICS[metric].better == "higher" else values
        ranks = np.full(len(values), np.nan)
        known = ~np.isnan(values)
        ranks[known] = scipy.stats.rankdata(without_rounding(ordered[known]))
        relative = (ranks - 1) / (len(values) - 1)
        return {r.cell.method_label: float(x) for r, x in zip(having, relative)}


Ranking = list[tuple[Table, dict[str, dict[str, float]]]]
"""Tables with the relative ranks of their methods, by metric and method."""


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
    """A method's place at a level, over all tables that enter the ranks.

    Attributes:
        control: whether it is one in any table.
        tables, of: in how many of how many tables it has any of the metrics that rank the level.
        wins: its modelled share of wins against the other methods that are ranked; see
            :func:`attriboard.stats.ranks.win_shares`. None for a method that stands in fewer than half of the tables,
            which is not ranked among the others.
        low, high: the ends of its 95 % interval; None where nothing could be resampled.
        by_metric: the same share by each metric that ranks the level, as far as it was measured.
        behind: by how much its share is below the highest at least (the lower end of the 95 % interval of the
            difference): above 0 it is told from the best. None where nothing could be resampled.
    """

    level: str
    method: str
    control: bool
    tables: int
    of: int
    wins: float | None
    low: float | None
    high: float | None
    by_metric: dict[str, float]
    behind: float | None = None


@dataclass(frozen=True)
class LevelRanks:
    """The overall ranks of one level.

    Attributes:
        ranks: of every method: the ranked ones, best first; then the thinly covered ones by name.
        tables, blocks: how many tables enter, and how many tasks and models they are of.
        left_out: titles of the tables that are uninformative and do not enter.
        resampled: what was drawn for the intervals; see :class:`attriboard.stats.ranks.WinShares`.
    """

    level: str
    ranks: tuple[OverallRank, ...]
    tables: int
    blocks: int
    left_out: tuple[str, ...]
    resampled: Resampled


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
        """Every metric that any of the tables shows; times and memory only where all are of one machine."""
        left_out = VARYING if self.mixes_machines else ()
        return tuple(dict.fromkeys(m for t in self.tables for m in t.metrics if m not in left_out))

    @property
    def mixes_machines(self) -> bool:
        """Whether the tables were timed on several machines, over which no mean time says anything."""
        return len({machine for t in self.tables for machine in t.machines}) > 1

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
        sources: the folders that it is made of.
        tables: of every record that holds measurements.
        not_run: the records of cells that failed or were skipped.
        superseded: how many older records of the same cells, in the same folders, were passed over.
    """

    sources: tuple[Source, ...]
    tables: tuple[Table, ...]
    not_run: tuple[Record, ...]
    superseded: int

    @classmethod
    def read(cls, path: Path | Sequence[Path], findings: Findings | None = None, lean: bool = False) -> Board:
        """The board of one or more results folders; aggregates of older definitions are derived again.

        Of several folders, and of several devices in one, one record of a cell counts; see
        :func:`attriboard.board.merging.one_per_cell`.

        Args:
            findings: of audits, said above the tables of the same task, version and model.
            lean: keep of every record what tables say, and not the measurements behind it, which figures are drawn of;
                they wait in a temporary file until its methods are compared. Memory then grows by kilobytes a record.

        Raises:
            ConfigurationError: no such folder, or not one record in it; no folder, or one given twice.
        """
        paths = [path] if isinstance(path, Path) else list(path)
        names = named(paths)
        folders = [Folder(each) for each in paths]
        reader = _Lean() if lean else None
        with _uncollected() if lean else contextlib.nullcontext():
            read = [newest(folder.filled(reader.of(folder) if reader else None)) for folder in folders]
            chosen = one_per_cell([records for records, _ in read])
            current = [
                whole
                for folder, records in zip(folders, chosen)
                for r in records
                if r.measurements and (whole := r if reader else _current(folder, r)) is not None
            ]
            tables = _tables(current, findings or {})
            if reader is not None:
                for table in tables:
                    reader.compare(table)
        sources = tuple(
            Source(
                path=folder.path,
                name=name,
                about=folder.about(),
                foreign=dict(sorted(folder.foreign.items())),
                records=len(own),
                passed_over=len(records) - len(own),
            )
            for name, folder, (records, _), own in zip(names, folders, read, chosen)
        )
        return cls(
            sources=sources,
            tables=tables,
            not_run=tuple(record for records in chosen for record in records if record.status != "ok"),
            superseded=sum(older for _, older in read) + sum(folder.set_aside for folder in folders),
        )

    @property
    def about(self) -> dict[str, Any]:
        """What the suite says of itself; of several suites, what each does."""
        return about_all(source.about for source in self.sources)

    @property
    def foreign(self) -> dict[str, str]:
        """By file name, why a file is no record; with the folder before it where there are several."""
        several = len(self.sources) > 1
        return {
            f"{source.name}/{file}" if several else file: why
            for source in self.sources
            for file, why in source.foreign.items()
        }

    @property
    def smoke(self) -> tuple[str, ...]:
        """The suites on it that are smoke tests, from which no verdict follows."""
        suites = {str(source.about.get("suite")): source.about.get("smoke") is True for source in self.sources}
        return tuple(name for name, smoke in suites.items() if smoke)

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites of its folders, as far as they are known."""
        return tuple(dict.fromkeys(str(s.about["suite"]) for s in self.sources if s.about.get("suite")))

    def overall(self) -> list[OverallRank]:
        """The overall ranks of every level, one after the other."""
        return [rank for level in self.levels for rank in level.ranks]

    @cached_property
    def levels(self) -> tuple[LevelRanks, ...]:
        """The overall ranks of each level with tables that rank at least two methods, sorted by level."""
        names = sorted({t.level for t in self.tables})
        return tuple(ranks for name in names if (ranks := self._ranks_of(name)) is not None)

    def _ranking(self, level: str) -> Ranking:
        """The tables behind a level's ranks, each with the methods' relative ranks by metric; no uninformative ones."""
        ranking = []
        for table in self.tables:
            if table.level == level and table.informative != "no":
                by_metric = {metric: own for metric in ranking_columns(level) if (own := table.ranks(metric))}
                ranking += [(table, by_metric)] if by_metric else []
        return ranking

    def _ranks_of(self, level: str) -> LevelRanks | None:
        ranking = self._ranking(level)
        standing_in: dict[str, int] = {}
        for _, by_metric in ranking:
            for method in sorted({m for own in by_metric.values() for m in own}):
                known = any(np.isfinite(own.get(method, np.nan)) for own in by_metric.values())
                standing_in[method] = standing_in.get(method, 0) + known
        if not standing_in:
            return None
        ranked = [method for method, count in standing_in.items() if 2 * count >= len(ranking)]
        metrics = [m for m in ranking_columns(level) if any(m in by_metric for _, by_metric in ranking)]
        overall, resampled = _shares(ranking, ranked, metrics)
        alone = {metric: _shares(ranking, ranked, [metric], 0)[0] for metric in metrics}
        controls = {r.cell.method_label for table, _ in ranking for r in table.records if r.control}
        ranks = [
            OverallRank(
                level=level,
                method=method,
                control=method in controls,
                tables=count,
                of=len(ranking),
                by_metric={metric: own[method].wins or 0.0 for metric, own in alone.items() if method in own},
                **overall.get(method, _Share(None, None, None, None))._asdict(),
            )
            for method, count in standing_in.items()
        ]
        ranks.sort(key=lambda r: (r.wins is None, -(r.wins or 0.0), r.method))
        blocks = {(table.task, table.model) for table, _ in ranking}
        left_out = tuple(t.title for t in self.tables if t.level == level and t.informative == "no")
        return LevelRanks(level, tuple(ranks), len(ranking), len(blocks), left_out, resampled)

    def rank_tests(self) -> dict[str, LevelTest]:
        """By level, the rank test of the methods that stand in all of the tables behind its overall ranks.

        In each table the methods are ranked by every metric that ranks the level, and by the mean of these ranks.
        """
        tests = {}
        for level in dict.fromkeys(t.level for t in self.tables):
            ranked = []
            for table, by_name in self._ranking(level):
                finite = [ranks for ranks in by_name.values() if np.isfinite(list(ranks.values())).all()]
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
            weights = _weights(first) if len(built[table.recipe]) == 1 else ""
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
        """One row per record that ran, every aggregate with its interval; None where a record lacks one.

        ``device``, ``threads``, ``workers`` and ``batch_size`` say how it was timed: times and memory of two rows
        compare where these are equal.
        """
        present = {name for table in self.tables for r in table.records for name in r.aggregates}
        rows = []
        for table in self.tables:
            for r in table.records:
                machine = machine_of(r)
                row: dict[str, Any] = {
                    "task": table.task,
                    "level": table.level,
                    "model": table.model,
                    "replacement": table.replacement,
                    "variant": table.variant,
                    "seed": table.seed,
                    "method": r.cell.method_label,
                    "control": r.control,
                    "control_kind": r.control_kind,
                    "sees": None if r.sees is None else ", ".join(r.sees) or "nothing",
                    "n": r.judged[0],
                    "n_eff": r.judged[1],
                    "kept_share": r.passing_share,
                    "ties": r.scores.ties if r.scores else None,
                    "noise": r.scores.noise if r.scores else None,
                    "informative": table.informative,
                    "suite": r.suite,
                    "smoke_test": r.suite in self.smoke,
                    "device": machine and machine.device,
                    "threads": machine and machine.threads,
                    "workers": machine and machine.workers,
                    "batch_size": getattr(r.provenance, "batch_size", 0) or None,
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


def _current(folder: Folder, record: Record) -> Record | None:
    """The record with aggregates of today; None, and noted as no record, where they do not follow from it."""
    try:
        return up_to_date(record)
    except AttriboardError:  # of a measurement that does not keep to what it declares, whatever the record
        raise
    except Exception as error:  # numbers that no statistic was made for
        folder.foreign[record.filename] = f"its aggregates cannot be derived: {kind_and_reason(error)}"
        return None


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """While very many objects are made that stay, Python looks for cycles among them in vain; what is made, stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@dataclass
class _Lean:
    """Reads records without what is behind their aggregates, which waits in a temporary file for its table's turn."""

    places: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    shared: dict[object, Any] = field(default_factory=dict)
    waiting: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def of(self, folder: Folder) -> Reader:
        """Reads the records of a folder."""
        return lambda record: self._kept(folder, record)

    def _kept(self, folder: Folder, record: Record) -> Record | None:
        """The record without measured values; what many records have in common is one object."""
        whole = _current(folder, record) if record.measurements else record
        if whole is None:
            return None
        measured = pickle.dumps(whole.measurements, pickle.HIGHEST_PROTOCOL)
        self.places[_made(whole)] = (self.waiting.tell(), self.waiting.write(measured))
        names = {name: getattr(whole, name) for name in ("items", "frames", "subsets")}
        scores = whole.scores
        if scores is not None:
            scores = scores.model_copy(update={"sketch": array("d", scores.sketch)})
        return whole.model_copy(
            update={
                **{name: self._one((name, *value), value) for name, value in names.items()},
                "settings": self._one(whole.settings.model_dump_json(), whole.settings),
                "provenance": self._one(repr(whole.provenance), whole.provenance),
                "measurements": {name: m.emptied() for name, m in whole.measurements.items()},
                "scores": scores,
                "stages": self._timed(whole.stages.get(Speed.name)),
            }
        )

    def _timed(self, stage: Stage | None) -> dict[str, Stage]:
        """Of a record's stages, on what it was timed."""
        device = "" if stage is None else stage.device
        return self._one(("timed", device), {Speed.name: Stage(identity="", device=device)} if device else {})

    def _one(self, key: object, value: T) -> T:
        return self.shared.setdefault(key, value)

    def compare(self, table: Table) -> None:
        """Compares a table's records by their measurements, which are forgotten again."""
        whole = {}
        for record in table.records:
            start, size = self.places[_made(record)]
            self.waiting.seek(start)
            measured = pickle.loads(self.waiting.read(size))  # what this process wrote
            whole[record.filename] = record.model_copy(update={"measurements": measured})
        found: dict[str, ColumnTest] = {}
        for part in table.parts:
            found |= compare_columns([whole[r.filename] for r in part.records], part.metrics)
        vars(table)["comparisons"] = found  # in the place of the property, which would need the measurements


def _made(record: Record) -> tuple[str, str]:
    """What tells records apart, be they of one folder or of several."""
    return record.filename, record.provenance.created if record.provenance else ""


class _Share(NamedTuple):
    """A modelled share of wins, the ends of its interval and how far it is behind, each as far as it is known."""

    wins: float | None
    low: float | None
    high: float | None
    behind: float | None


def _shares(
    ranking: Ranking, methods: Sequence[str], metrics: Sequence[str], resamples: int = RESAMPLES
) -> tuple[dict[str, _Share], Resampled]:
    """The shares of wins of methods by the mean over these metrics, and what was resampled for the intervals.

    On a table a method wins against another the share of the metrics by which it is better, of those that both have.
    Methods that have none of the metrics are left out; nothing where fewer than two are left.
    """
    values = np.array(
        [[[by.get(metric, {}).get(m, np.nan) for m in methods] for metric in metrics] for _, by in ranking]
    ).reshape(len(ranking), len(metrics), len(methods))
    having = [at for at in range(len(methods)) if np.isfinite(values[:, :, at]).any()]
    if len(having) < 2:
        return {}, "nothing"
    won = np.array([[wins_of(own[having]) for own in table] for table in values])
    met = np.isfinite(won).sum(1)
    outcomes = np.where(met > 0, np.nansum(won, axis=1) / np.maximum(met, 1), np.nan)
    found = win_shares(outcomes, [(table.task, table.model) for table, _ in ranking], resamples=resamples)
    numbers = zip(*(column.tolist() for column in (found.wins, found.low, found.high, found.behind)))
    shares = {methods[at]: _Share(*(x if np.isfinite(x) else None for x in own)) for at, own in zip(having, numbers)}
    return shares, found.resampled


def _drawn(record: Record) -> list[Any]:
    """The settings that all records of a table share, whatever was measured."""
    return [record.settings.drawing(), record.settings.dtype]


def _weights(record: Record) -> str:
    """What the model's weights are known by; empty where no model is."""
    return record.model.weights_sha256 if record.model else ""


def _tables(records: Iterable[Record], findings: Findings) -> tuple[Table, ...]:
    groups: dict[tuple[str, str, str, str, str, int, str], list[Record]] = defaultdict(list)
    for record in records:
        c = record.cell
        alike = digest([_drawn(record), _weights(record), record.data_sha256])
        groups[c.task_label, c.level, c.model, c.replacement, c.variant, c.seed, alike].append(record)
    tables = []
    for key, group in sorted(groups.items(), key=lambda item: (*item[0][:-1], -len(item[1][0].items), item[0][-1])):
        most_first = sorted(group, key=lambda r: (-len(r.measurements), r.filename))
        first = group[0]
        found = tuple(findings.get((first.cell.task, first.task_version, _weights(first)), ()))
        tables += [Table(*key[:-1], best_first(part), found) for part in _of_one_mind(most_first, _stands_by)]
    return _told_apart(tables)


def _stands_by(record: Record) -> Options:
    """What records of one table agree in: the options of each measurement that they share, and what they judge.

    The same cell of another suite stands in another table, and so do records of a device on which the model answers
    other examples.
    """
    return {**options_of(record), f"row {record.cell.method_label}": {"made": _made(record)}, **_judged(record)}


def _judged(record: Record) -> Options:
    """What examples a record's measurements judge, as far as it says so."""
    test = {"items": record.items, "frames": record.frames, "subsets": record.subsets}
    counts = {
        name: half.model_dump(exclude={"n_eff"}) for name, half in record.kept.items()
    }  # n_eff differs by rounding
    halves = counts if record.cross_fitted else {}
    return {"test examples": test, **({"both halves": halves} if halves else {})}


def _told_apart(tables: Sequence[Table]) -> tuple[Table, ...]:
    """The tables, with what tells those of one title apart, and whose devices kept other examples of the same cells."""
    titles: dict[str, list[Table]] = defaultdict(list)
    cells: dict[tuple[object, ...], list[Table]] = defaultdict(list)
    for table in tables:
        titles[table.title].append(table)
        cells[_cells_of(table)].append(table)
    several = len({machine for table in tables for machine in table.machines}) > 1
    told = []
    for table in tables:
        alike = titles[table.title]
        kinds = [_suites, _devices] if len(alike) > 1 else []
        apart = next((kind(table) for kind in kinds if len({kind(other) for other in alike}) > 1), "")
        own = _devices(table)
        others = {_devices(other) for other in cells[_cells_of(table)] if _on_other_examples(table, other)} - {own}
        told.append(replace(table, apart=apart, elsewhere=tuple(sorted(others)), one_of_several=several))
    return tuple(told)


def _cells_of(table: Table) -> tuple[object, ...]:
    """Equal for tables whose cells differ in the examples that the model answers at most."""
    first = table.records[0]
    named = (table.task, table.level, table.model, table.replacement, table.variant, table.seed)
    return (*named, digest([_drawn(first), first.data_sha256]))


def _on_other_examples(table: Table, other: Table) -> bool:
    """Whether two tables judge other examples, as far as both say which."""
    if table is other:
        return False
    own, theirs = ({k: v for r in each.records for k, v in _judged(r).items()} for each in (table, other))
    return any(theirs.get(name, judged) != judged for name, judged in own.items())


def _suites(table: Table) -> str:
    return " and ".join(f"suite {name}" for name in sorted({r.suite for r in table.records}))


def _devices(table: Table) -> str:
    """The devices on which a table's records were made."""
    return " and ".join(sorted({machine.device for r in table.records if (machine := machine_of(r)) is not None}))


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
