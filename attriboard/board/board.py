"""Records to a board: Markdown, CSV, LaTeX, HTML, JSON and figures, from stored records and nothing else.

The same records give the same bytes: nothing is drawn at random here, and no time or path is printed.
"""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from ..errors import ConfigurationError, UnknownNameError
from ..evaluation.bias import LARGEST_RISE
from ..levels import INPUTS, USUAL_REPLACEMENT
from ..measurements.metrics import EDITS, METRICS, Metric
from ..records.record import Aggregate, Folder, Record, Settings, digest, newest
from ..stats.intervals import ALPHA
from ..stats.ranks import RankTest, over_seeds, rank_test
from .agreement import Overlap, between_methods, between_seeds, between_tasks, seedless
from .heatmaps import SheetRow, contact_sheet
from .significance import Comparison, compare

SPEED = ("seconds_per_example", "forward_equivalents", "peak_memory_mib")
COLUMNS = ("sufficiency_log_area", "necessity_log_area", "cpr", "cmd", "ablation_drop_p", *SPEED)
INPUT_COLUMNS = (
    "insertion_auc",
    "deletion_auc",
    "insertion_auc_ring1",
    "deletion_auc_ring1",
    "comprehensiveness_aopc",
    "sufficiency_aopc",
    "pointing_game",
    "precision_at_mark",
    "iou_best",
    "mass_evidence",
    "mass_other",
    *SPEED,
)
"""The columns at levels of inputs, as far as they were measured."""
BLOCKS = (
    tuple(name for name, metric in METRICS.items() if metric.family == "concepts"),
    tuple(name for name, metric in METRICS.items() if metric.family == "pruning"),
    *(tuple(name for name in METRICS if name.startswith(f"edit_{kind}_")) for kind in EDITS),
    tuple(name for name, metric in METRICS.items() if metric.family == "preference"),
    tuple(name for name, metric in METRICS.items() if metric.family == "reliability"),
    tuple(name for name, metric in METRICS.items() if metric.family == "sanity"),
    tuple(name for name, metric in METRICS.items() if metric.family == "ground_truth"),
)
"""The columns of further tables below the first, each where a record has any of them."""
RANKED = ("sufficiency_log_area", "necessity_log_area", "ablation_drop_p")
"""The metrics behind the overall table's mean rank."""
CHANCE = {
    "evidence_share": "Evidence (the chance level of pointing, precision and the mass in it)",
    "other_share": "Distractors (of the mass in them)",
}
INPUT_RANKED = ("insertion_auc", "deletion_auc", "mass_evidence")


def columns(level: str) -> tuple[str, ...]:
    """The metrics that a level's tables may show."""
    return INPUT_COLUMNS if level in INPUTS else COLUMNS


def ranked(level: str) -> tuple[str, ...]:
    """The metrics by which a level's methods are ranked overall, as far as they were measured."""
    return INPUT_RANKED if level in INPUTS else RANKED


@dataclass(frozen=True)
class Table:
    """Records of one task, level, model, replacement and seed with equal settings, weights and data; best first."""

    task: str
    level: str
    model: str
    replacement: str
    seed: int
    records: tuple[Record, ...]

    @property
    def title(self) -> str:
        extra = "" if self.replacement == USUAL_REPLACEMENT else f", {self.replacement} replacement"
        seed = f", seed {self.seed}" if self.seed else ""
        settings = self.records[0].settings
        how = "".join(
            f", {value}" for value, usual in ((settings.dtype, "float32"), (settings.device, "cpu")) if value != usual
        )
        what = "".join(f", {part}" for part in self._measured())
        return f"{self.task}, {self.level}, {self.model}{extra}{seed}{how}{what}, n = {len(self.records[0].items)}"

    def _measured(self) -> list[str]:
        """The families, and how they act, as far as that is not the usual."""
        s = self.records[0].settings
        if self.level in INPUTS or s.families == Settings().families:
            return []
        said: list[str] = [*s.families]
        if "pruning" in s.families:
            said += ["global allocation"] if s.pruning_allocation == "global" else []
            said += [f"{s.recovery_steps} steps of recovery"] if s.recovery_steps else []
        if s.suppress_factor and {"editing", "preference"} & set(s.families):
            said.append(f"suppressed to {s.suppress_factor:g}")
        return said

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics it shows: those that all of its records have, but for the cost of entered scores."""
        return tuple(
            m
            for m in columns(self.level)
            if all(m in r.aggregates or (m in SPEED and r.cell.entered) for r in self.records)
            and any(m in r.aggregates for r in self.records)
        )

    @property
    def parts(self) -> list[tuple[tuple[str, ...], tuple[Record, ...]]]:
        """The metrics shown side by side, and the records that have them."""
        found = [(self.columns, self.records)]
        for block in BLOCKS:
            examined = tuple(r for r in self.records if any(m in r.aggregates for m in block))
            shown = tuple(m for m in block if any(m in r.aggregates for r in examined))
            found += [(shown, examined)] if shown else []
        if len(found) > 1 and set(self.columns) <= set(
            SPEED
        ):  # nothing else to show: times stand behind the first block
            found[:2] = [(found[1][0] + self.columns, found[1][1])]
        return found

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """By metric shown, the tests of all pairs of records that have it; without those that cannot be tested."""
        return {m: found for shown, records in self.parts for m, found in compare(records, shown).items()}

    def marks(self, record: Record) -> set[str]:
        """The metrics in which a record is the best, or not significantly worse than it."""
        return {m for m, comparison in self.comparisons.items() if record.filename in comparison.marked}

    def ranks(self, metric: str) -> dict[str, float]:
        """By method, its relative rank: 0 for the best of the table, 1 for the last; ties share their mean.

        Nothing where the table has one record, or does not show the metric.
        """
        shown = metric in self.columns and all(metric in r.aggregates for r in self.records)
        if len(self.records) < 2 or not shown:
            return {}
        values = np.array([r.aggregates[metric].value for r in self.records])
        ordered = -values if METRICS[metric].better == "higher" else values
        rank = pd.Series(ordered).rank(method="average").to_numpy()
        relative = (rank - 1) / (len(values) - 1)
        return {r.cell.method_label: float(x) for r, x in zip(self.records, relative)}


@dataclass(frozen=True)
class LevelTest:
    """Do the methods that stand in all of a level's tables differ in rank?

    Attributes:
        tables: how many tables there are.
        blocks: how many tasks and models; tables that share both are averaged, since they are no new evidence.
        methods: labels, in the order of ``found.mean_ranks``.
        found: None where there are fewer than two blocks or three methods.
    """

    tables: int
    blocks: int
    methods: tuple[str, ...]
    found: RankTest | None


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
        extra = "" if first.replacement == USUAL_REPLACEMENT else f", {first.replacement} replacement"
        return f"{first.task}, {first.level}, {seedless(first.model)}{extra}, seeds {', '.join(self.seeds)}"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every metric that any of the tables shows."""
        return tuple(dict.fromkeys(m for t in self.tables for shown, _ in t.parts for m in shown))

    @property
    def rows(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Methods with their record under each seed, the best mean standing first."""
        found: dict[str, list[Record]] = defaultdict(list)
        for table in self.tables:
            for record in table.records:
                found[record.cell.method_label].append(record)
        ordered = sorted(found, key=lambda m: (float(np.mean([_standing(r)[0] for r in found[m]])), m))
        return [(method, tuple(found[method])) for method in ordered]


@dataclass(frozen=True)
class Board:
    """Everything the formats print."""

    about: dict[str, Any]
    tables: tuple[Table, ...]
    left_out: tuple[Record, ...]
    foreign: dict[str, str]
    superseded: int

    @classmethod
    def read(cls, path: Path) -> Board:
        """The board of a results folder.

        Raises:
            ConfigurationError: no such folder, or not one record in it.
        """
        folder = Folder(path)
        records, superseded = newest(folder.read())
        if not records:
            raise ConfigurationError(f"{path} holds no records; run a suite with --out {path} first.")
        groups: dict[tuple[str, str, str, str, int, str], list[Record]] = defaultdict(list)
        for record in records:
            if record.status == "ok":
                c = record.cell
                weights = record.model.weights_sha256 if record.model else ""
                alike = digest([record.settings.model_dump(exclude={"batch_size"}), weights, record.data_sha256])
                groups[c.task_label, c.level, c.model, c.replacement, c.seed, alike].append(record)
        tables = tuple(Table(*key[:-1], tuple(sorted(group, key=_standing))) for key, group in sorted(groups.items()))
        left_out = tuple(r for r in records if r.status != "ok")
        return cls(folder.about(), tables, left_out, dict(sorted(folder.foreign.items())), superseded)

    def overall(self) -> pd.DataFrame:
        """Per level and method: in how many tables it stands and its mean relative rank over them."""
        found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        totals: dict[str, int] = defaultdict(int)
        controls: set[str] = set()
        for table in self.tables:
            if len(table.records) < 2 or not set(ranked(table.level)) & set(table.columns):
                continue
            totals[table.level] += 1
            controls.update(r.cell.method_label for r in table.records if r.control)
            for metric in ranked(table.level):
                for method, rank in table.ranks(metric).items():
                    found[table.level, method][metric].append(rank)
        rows = []
        for (level, method), ranks in found.items():
            means = {metric: float(np.mean(values)) for metric, values in ranks.items()}
            rows.append(
                {
                    "level": level,
                    "method": method,
                    "control": method in controls,
                    "tables": f"{len(ranks[ranked(level)[0]])} of {totals[level]}",
                    "mean_rank": float(np.mean(list(means.values()))),
                    **means,
                }
            )
        frame = pd.DataFrame(rows)
        return frame if frame.empty else frame.sort_values(["level", "mean_rank", "method"], ignore_index=True)

    def rank_tests(self) -> dict[str, LevelTest]:
        """By level, the rank test of the methods that stand in all of the tables behind its overall ranks.

        In each table the methods are ranked by every metric that ranks the level, and by the mean of these ranks.
        """
        found = {}
        for level in dict.fromkeys(t.level for t in self.tables):
            ranked_by = [
                (t, [m for m in ranked(level) if t.ranks(m) and np.isfinite(list(t.ranks(m).values())).all()])
                for t in self.tables
                if t.level == level
            ]
            tables = [(t, metrics) for t, metrics in ranked_by if metrics]
            if not tables:
                continue
            everywhere = set.intersection(*({r.cell.method_label for r in t.records} for t, _ in tables))
            methods = tuple(sorted(everywhere))
            blocks: dict[tuple[str, str], list[Any]] = defaultdict(list)
            for table, metrics in tables:
                ranks = [pd.Series({m: table.ranks(metric)[m] for m in methods}).rank() for metric in metrics]
                blocks[table.task, table.model].append(np.mean(ranks, axis=0))
            means = np.array([np.mean(rows, axis=0) for rows in blocks.values()]).round(9)  # ties stay ties
            test = rank_test(means) if len(blocks) >= 2 and len(methods) >= 3 else None
            found[level] = LevelTest(len(tables), len(blocks), methods, test)
        return found

    def over_seeds(self) -> list[SeedTable]:
        """Summaries of the tables that differ in the seed alone.

        Models that are built from a seed, and differ in it alone, are one model under several seeds.
        """
        built: dict[str, set[str]] = defaultdict(set)
        for table in self.tables:
            built[seedless(table.model)].add(table.model)
        groups: dict[str, list[Table]] = defaultdict(list)
        for table in self.tables:
            first = table.records[0]
            model = seedless(table.model)
            weights = first.model.weights_sha256 if first.model and len(built[model]) == 1 else ""
            settings = first.settings.model_dump(exclude={"batch_size"})
            groups[digest([table.task, table.level, model, table.replacement, settings, weights])].append(table)
        found = []
        for tables in groups.values():
            of_seed = {(table.model, table.seed): table for table in tables}  # the same seed on other data is no seed
            found += [SeedTable(tuple(of_seed.values()))] if len(of_seed) > 1 else []
        return found

    def overlaps(self) -> list[Overlap]:
        """How alike the scores of every method are on every two tasks."""
        return between_tasks([r for t in self.tables for r in t.records])

    def frame(self) -> pd.DataFrame:
        """One row per record that ran, every aggregate with its interval; empty where a record lacks one."""
        held = {name for table in self.tables for r in table.records for name in r.aggregates}
        rows = []
        for table in self.tables:
            for r in table.records:
                row: dict[str, Any] = {
                    "task": table.task,
                    "level": table.level,
                    "model": table.model,
                    "replacement": table.replacement,
                    "seed": table.seed,
                    "method": r.cell.method_label,
                    "control": r.control,
                    "n": len(r.items),
                    "kept_share": r.kept["test"].share,
                }
                for name in (m for m in METRICS if m in held):
                    a = r.aggregates.get(name)
                    value, low, high = (None, None, None) if a is None else (a.value, a.low, a.high)
                    row |= {name: value, f"{name}_low": low, f"{name}_high": high}
                rows.append(row | {"record": r.filename})
        return pd.DataFrame(rows)


STANDING = (
    ("insertion_auc", "deletion_auc"),
    ("sufficiency_log_area", "necessity_log_area"),
    ("pruning_accuracy_area",),
    ("edit_suppress_score",),
    ("bias_removed",),
    ("reliability",),
    ("truth_auroc",),
)
"""What the rows of a table are sorted by: the mean of the first of these that a record has."""


def _standing(record: Record) -> tuple[float, str]:
    for names in STANDING:
        if all(name in record.aggregates for name in names):
            signs = [1 if METRICS[name].better == "higher" else -1 for name in names]
            values = [sign * record.aggregates[name].value for sign, name in zip(signs, names)]
            return (-float(np.mean(values)), record.cell.method_label)
    return (0.0, record.cell.method_label)


# --- formats ------------------------------------------------------------------------------------------------------


def markdown(board: Board) -> str:
    """The board for people: overall ranks, one table per task and level, and what was not run."""
    lines = ["# Leaderboard", ""]
    if board.about:
        lines += [f"Suite `{board.about.get('suite')}`. {board.about.get('description', '')}".rstrip(), ""]
    lines += [_how_it_ran(board), "", _legend(board), ""]
    overall, tests = board.overall(), board.rank_tests()
    if not overall.empty:
        lines += ["## Overall", ""]
        lines += [
            "Mean relative rank over a level's tables (0 = best of its table, 1 = last), by metric, and the mean over "
            "the metrics. A method that stands in fewer tables met fewer opponents.",
            "",
        ]
        for level, part in overall.groupby("level", sort=False):
            shown = [m for m in ranked(str(level)) if m in part and part[m].notna().any()]
            head = ["method", "tables", "mean rank", *(METRICS[m].title for m in shown)]
            body = [
                [
                    _name(row["method"], row["control"]),
                    row["tables"],
                    *(f"{row[m]:.2f}" if np.isfinite(row[m]) else "" for m in ("mean_rank", *shown)),
                ]
                for row in part.to_dict(orient="records")
            ]
            lines += [f"### {level}", "", *_markdown_table(head, body), "", _rank_words(tests[str(level)]), ""]
    lines += ["## Tables", ""]
    for table in board.tables:
        lines += [f"### {table.title}", "", _examples_line(table), ""]
        for held, records in table.parts:
            head = ["method", *(METRICS[m].title for m in held)]
            body = [[_name(r.cell.method_label, r.control), *_cells(table, r, held, "**{}**")] for r in records]
            lines += [*_markdown_table(head, body), ""]
    if summaries := board.over_seeds():
        lines += ["## Over seeds", "", SEEDS_LINE, ""]
    for summary in summaries:
        rows = [
            [_name(label, records[0].control), *_seed_cells(records, summary.columns)]
            for label, records in summary.rows
        ]
        lines += [f"### {summary.title}", "", *_markdown_table(_seed_head(summary), rows), ""]
    lines += _not_run(board)
    return "\n".join(lines).rstrip() + "\n"


def csv(board: Board) -> str:
    """One row per record, values unrounded."""
    return board.frame().to_csv(index=False, lineterminator="\n")


def latex(board: Board) -> str:
    """One booktabs table per task and level; needs \\usepackage{booktabs}."""
    parts = []
    for table in board.tables:
        caption = _tex(f"{table.title}. {_examples_line(table)}")
        body = "\\medskip\n".join(
            _tex_body(_frame(table, shown, records, r"\textbf{{{}}}", _tex)) for shown, records in table.parts
        )
        parts.append(_tex_table(table.title, caption, body))
    for summary in board.over_seeds():
        body = _tex_body(_seed_frame(summary, _tex))
        parts.append(_tex_table(summary.title, _tex(f"{summary.title}. {SEEDS_LINE}"), body))
    return "\n".join(parts)


def _tex_body(frame: pd.DataFrame) -> str:
    """A tabular of cells that are LaTeX already."""
    return frame.to_latex(index=False, escape=False, column_format="l" + "r" * (len(frame.columns) - 1))


def _tex_table(title: str, caption: str, body: str) -> str:
    label = "".join(ch if ch.isalnum() else "-" for ch in title)
    return f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:{label}}}\n{body}\\end{{table}}\n"


def html(board: Board) -> str:
    """A page without scripts."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>attriboard</title>',
        "<style>body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
        "td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child"
        "{text-align:left}</style></head><body><h1>Leaderboard</h1>",
    ]
    for table in board.tables:
        parts.append(f"<h2>{escape(table.title)}</h2><p>{escape(_examples_line(table))}</p>")
        parts += [
            _frame(table, shown, records, "<b>{}</b>", escape).to_html(index=False, border=0, escape=False)
            for shown, records in table.parts
        ]
    for summary in board.over_seeds():
        parts.append(f"<h2>{escape(summary.title)}</h2><p>{escape(SEEDS_LINE)}</p>")
        parts.append(_seed_frame(summary, escape).to_html(index=False, border=0, escape=False))
    return "\n".join([*parts, "</body></html>"]) + "\n"


def as_json(board: Board) -> str:
    """Tables, overall ranks, tests, agreement of scores and what was not run, values unrounded."""
    content = {
        "about": board.about,
        "metrics": {name: _metric_fields(metric) for name, metric in METRICS.items()},
        "overall": [
            {key: value for key, value in row.items() if pd.notna(value)}  # a level's own metrics only
            for row in board.overall().to_dict(orient="records")
        ],
        "rank_tests": {level: _rank_fields(test) for level, test in board.rank_tests().items()},
        "comparisons": [fields for table in board.tables for fields in _comparison_fields(table)],
        "over_seeds": [_seed_fields(summary) for summary in board.over_seeds()],
        "agreement": [fields for table in board.tables for fields in _agreement_fields(table)],
        "between_tasks": [overlap._asdict() for overlap in board.overlaps()],
        "rows": json.loads(board.frame().to_json(orient="records", double_precision=15)),
        "not_run": [{"cell": str(r.cell), "status": r.status, "reason": r.reason} for r in board.left_out],
        "not_records": board.foreign,
    }
    return json.dumps(content, indent=1) + "\n"


FORMATS: dict[str, Callable[[Board], str]] = {
    "md": markdown,
    "csv": csv,
    "latex": latex,
    "html": html,
    "json": as_json,
}


def check_format(form: str) -> None:
    """Raises UnknownNameError for a format that is not among :data:`FORMATS`."""
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)


def render(board: Board, form: str = "md") -> str:
    """The board in one of :data:`FORMATS`.

    Raises:
        UnknownNameError: no such format.
    """
    check_format(form)
    return FORMATS[form](board)


def figures(board: Board, out: Path) -> list[Path]:
    """What the records hold as PNG files; returns their paths.

    Of every table curves, pruning, preference, agreement of scores between methods and maps of pictures; of every level
    the agreement of scores between tasks.

    Raises:
        OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = []
    stems = ["".join(ch if ch.isalnum() or ch in "._" else "-" for ch in table.title) for table in board.tables]
    for i, (table, stem) in enumerate(zip(board.tables, stems)):
        if before := stems[:i].count(stem):  # tables that differ in settings that the title does not name
            stem = f"{stem}-{before + 1}"
        for kind, figure in (
            ("", _curves(table)),
            (".pruning", _pruning(table)),
            (".preference", _preference(table)),
            (".agreement", _agreement(table)),
        ):
            if figure is not None:
                figure.suptitle(table.title)
                made.append(out / f"{stem}{kind}.png")
                figure.savefig(made[-1], dpi=120)
        if rows := _sheet(table):
            made.append(out / f"{stem}.maps.png")
            shown = f", the first {len(rows)}" if len(rows) < len(table.records[0].items) else ""
            contact_sheet([r.cell.method_label for r in table.records], rows, table.title + shown, made[-1])
    overlaps = board.overlaps()
    for level in dict.fromkeys(o.level for o in overlaps):
        made.append(out / f"{level}.tasks.png")
        _tasks([o for o in overlaps if o.level == level]).savefig(made[-1], dpi=120)
    return made


CURVES = ("sufficiency: top k kept", "necessity: top k replaced")
INPUT_CURVES = ("insertion: top k kept", "deletion: top k replaced")


def _curves(table: Table) -> Figure | None:
    """Faithfulness over k, or over the share of positions; None where no record has it."""
    inputs = table.level in INPUTS
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for i, record in enumerate(table.records):
        faith = record.faithfulness
        if record.localization is not None:
            curves = [record.localization.curve(kind) for kind in ("insertion", "deletion")]
        elif faith is not None:
            index = np.arange(len(faith.full))
            sizes = np.array(faith.sizes)
            curves = [(sizes, faith.curve(values, index)) for values in (faith.sufficiency, faith.necessity)]
        else:
            continue
        style: dict[str, Any] = {"linestyle": ":" if record.control else "-", "color": _color(i)}
        for axis, (x, y) in zip(axes, curves):
            axis.plot(x, y, linewidth=1.2, marker=".", markersize=4, label=record.cell.method_label, **style)
    if not axes[0].lines:
        return None
    for axis, name in zip(axes, INPUT_CURVES if inputs else CURVES):
        axis.set(ylabel="f" if inputs else "faithfulness f", title=name)
        axis.set(xlabel="share of positions") if inputs else axis.set(xscale="log", xlabel="components k")
        axis.axhline(0, color="0.8", linewidth=0.8)
        axis.axhline(1, color="0.8", linewidth=0.8)
    _legend_beside(axes[1])
    return figure


def _pruning(table: Table) -> Figure | None:
    """Accuracy against the share removed, a color for each method; None where no record has it."""
    found = [(r, r.pruning) for r in table.records if r.pruning is not None]
    if not found:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for i, (record, held) in enumerate(found):
        every = np.arange(held.n)
        for absolute, style in ((False, "-"), (True, "--")):
            label = None if absolute else record.cell.method_label
            axis.plot([0, *held.sparsities], held.accuracy(every, absolute), style, color=_color(i), label=label)
    if (chance := table.records[0].chance) is not None:
        axis.axhline(chance, color="0.5", linestyle=":", linewidth=0.8, label="chance")
    axis.set(xlabel=f"share of {table.level} removed", ylabel="accuracy")
    axis.set_title("solid: lowest scores first; dashed: lowest |score| first", fontsize=9)
    _legend_beside(axis)
    return figure


def _preference(table: Table) -> Figure | None:
    """Bias left against the rise of perplexity, a line over k for each method; None where no record has it."""
    found = [(r, r.preference) for r in table.records if r.preference is not None]
    if not found:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for i, (record, held) in enumerate(found):
        rises = 100 * np.array([0.0, *held.perplexity_rises()])
        left = 100 * np.abs([held.test, *held.test_removed]).mean(1) / np.abs(held.test).mean()
        axis.plot(rises, left, color=_color(i), marker=".", label=record.cell.method_label)
        if (at := held.chosen()) is not None:
            axis.plot(rises[at + 1], left[at + 1], color=_color(i), marker="o", fillstyle="none", markersize=10)
    axis.axvline(100 * LARGEST_RISE, color="0.5", linestyle=":", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="rise of perplexity, %", ylabel="bias left, %")
    held = found[0][1]  # one table has one set of settings
    how = "removed" if held.factor == 0 else f"scaled by {held.factor:g}"
    axis.set_title(f"k = {', '.join(map(str, held.sizes))} {how}; circle: chosen on train examples", fontsize=9)
    _legend_beside(axis)
    return figure


def _agreement(table: Table) -> Figure | None:
    """The rank correlation of every two methods' scores; None where fewer than two records have a sketch."""
    held, matrix = between_methods(table.records)
    if not held:
        return None
    labels = [r.cell.method_label for r in held]
    side = 2.5 + 0.4 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    _heat(axis, matrix, labels, labels, [[_short(value) for value in row] for row in matrix])
    axis.set_title("rank correlation of scores", fontsize=9)
    return figure


def _tasks(overlaps: Sequence[Overlap]) -> Figure:
    """Methods by pairs of tasks: rank correlation of scores (color, first number) and share of the top in common.

    Means over models and seeds.
    """
    methods = list(dict.fromkeys(o.method for o in sorted(overlaps, key=lambda o: (o.control, o.method))))
    pairs = list(dict.fromkeys((o.first, o.second) for o in sorted(overlaps, key=lambda o: (o.first, o.second))))
    matrix = np.full((len(methods), len(pairs)), np.nan)
    texts = [[""] * len(pairs) for _ in methods]
    for i, method in enumerate(methods):
        for j, pair in enumerate(pairs):
            own = [o for o in overlaps if o.method == method and (o.first, o.second) == pair]
            known = [o.correlation for o in own if o.correlation is not None]
            if known:
                matrix[i, j] = np.mean(known)
            if own:
                texts[i][j] = f"{_short(matrix[i, j])}\n{100 * np.mean([o.shared for o in own]):.0f} %"
    figure = Figure(figsize=(4 + 0.9 * len(pairs), 3 + 0.45 * len(methods)), layout="constrained")
    axis = figure.subplots()
    _heat(axis, matrix, [f"{a} - {b}" for a, b in pairs], methods, texts)
    figure.suptitle(f"{overlaps[0].level}: one method on two tasks")
    axis.set_title("rank correlation of scores; share of the top 20 in common", fontsize=9)
    return figure


def _heat(axis: Any, matrix: Any, columns: Sequence[str], rows: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    """Correlations as colors, with a text in each field."""
    axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            strong = np.isfinite(matrix[i][j]) and abs(matrix[i][j]) > 0.6
            axis.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if strong else "black")


def _short(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "n/a"


def _color(i: int) -> Any:
    return colormaps["tab20"]((2 * i + i // 10) % 20)  # the ten strong colors first, then their pale ones


def _legend_beside(axis: Any) -> None:
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _sheet(table: Table) -> list[SheetRow]:
    """The rows of a table's contact sheet: the pictures its records hold; none but for patches."""
    found = [r.localization for r in table.records if r.localization is not None and r.localization.grid is not None]
    rows = []
    for judged in zip(*(held.examples for held in found)):
        if judged[0].picture:
            picture = Image.open(io.BytesIO(base64.b64decode(judged[0].picture)))
            maps = tuple(held.score_map(example) for held, example in zip(found, judged))
            label = f"{judged[0].answer.strip()}\np = {judged[0].probability:.3f}"
            rows.append(SheetRow(label, picture, maps))
    return rows


# --- parts --------------------------------------------------------------------------------------------------------


def number(metric: Metric, value: float) -> str:
    """A value as the board prints it; small times keep two figures."""
    if not np.isfinite(value):
        return "n/a"
    if metric.unit == "seconds":
        return f"{value:.2g}" if value < 10 else f"{value:.0f}"
    text = f"{value:.{metric.digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _with_interval(metric: Metric, a: Aggregate, mark: str = "{}", escaped: Callable[[str], str] = str) -> str:
    """The value, in ``mark`` where it belongs to the best, and its interval."""
    text = mark.format(escaped(number(metric, a.value)))
    if a.low is None or a.high is None:
        return text
    return f"{text} {escaped(f'[{number(metric, a.low)}, {number(metric, a.high)}]')}"


def _cells(
    table: Table, record: Record, shown: Sequence[str], mark: str, escaped: Callable[[str], str] = str
) -> list[str]:
    """A record's row; ``mark`` is what goes around the value of the best and of those not told apart from it."""
    marked = table.marks(record)
    return [
        _with_interval(METRICS[m], record.aggregates[m], mark if m in marked else "{}", escaped)
        if m in record.aggregates
        else ""
        for m in shown
    ]


def _frame(
    table: Table, shown: Sequence[str], records: Sequence[Record], mark: str, escaped: Callable[[str], str]
) -> pd.DataFrame:
    """One part of a table, its cells in the language of ``escaped``."""
    return pd.DataFrame(
        [[escaped(r.cell.method_label), *_cells(table, r, shown, mark, escaped)] for r in records],
        columns=[escaped(title) for title in ("method", *(METRICS[m].title for m in shown))],
    )


SEEDS_LINE = (
    "Mean ± standard deviation over seeds; the last column is the mean rank correlation of a method's scores under two "
    "seeds, on the same weights."
)


def _seed_head(summary: SeedTable) -> list[str]:
    return ["method", "seeds", *(METRICS[m].title for m in summary.columns), "rank correlation"]


def _seed_cells(records: Sequence[Record], shown: Sequence[str]) -> list[str]:
    """One method's row, without its name; empty where no seed has the metric, a plain value where only one has."""
    cells = [str(len(records))]
    for metric in (METRICS[m] for m in shown):
        values = [r.aggregates[metric.name].value for r in records if metric.name in r.aggregates]
        mean, deviation = over_seeds(values) if values else (np.nan, np.nan)
        spread = f" ± {number(metric, deviation)}" if np.isfinite(deviation) else ""
        cells.append(f"{number(metric, mean)}{spread}" if values else "")
    correlation = between_seeds(records)
    return [*cells, "" if correlation is None else _short(correlation)]


def _seed_frame(summary: SeedTable, escaped: Callable[[str], str]) -> pd.DataFrame:
    rows = [[label, *_seed_cells(records, summary.columns)] for label, records in summary.rows]
    return pd.DataFrame(
        [[escaped(cell) for cell in row] for row in rows], columns=[escaped(head) for head in _seed_head(summary)]
    )


def _rank_words(test: LevelTest) -> str:
    """The rank test of a level in words."""
    if test.found is None:
        return (
            f"No test of the ranks: it needs three methods that stand in every table, and two tasks or models; there "
            f"{'is' if len(test.methods) == 1 else 'are'} {len(test.methods)} and {test.blocks}."
        )
    over = f"{test.tables} tables"
    if test.blocks < test.tables:
        over += f" of {test.blocks} tasks and models (tables that share both are averaged)"
    ordered = sorted(zip(test.found.mean_ranks, test.methods))
    ranks = ", ".join(f"{method} {rank:.2f}" for rank, method in ordered)
    chi = "undefined" if np.isnan(test.found.statistic) else f"{test.found.statistic:.2f}"
    return (
        f"Mean rank over {over} of the {len(test.methods)} methods that stand in all of them (1 = best, "
        f"{len(test.methods)} = last): {ranks}. Friedman's test: chi-squared {chi}, p = {test.found.p:.2g}. Mean "
        f"ranks closer than {test.found.critical_difference:.2f} (Nemenyi's critical difference at {ALPHA:g}) are not "
        "told apart."
    )


def _blind(table: Table) -> str:
    """What the examples are too few for, in words; empty where every column could tell."""
    found: dict[tuple[int, int, int], list[Comparison]] = defaultdict(list)
    for comparison in table.comparisons.values():
        if comparison.examples > 1 and not comparison.can_tell:  # one value has no spread to tell anything from
            found[comparison.examples, comparison.items, comparison.methods].append(comparison)
    said = ""
    for (n, items, methods), columns in found.items():
        of = "" if items == n else f" ({items} base items)"
        where = ", ".join(METRICS[c.metric].title for c in columns)
        first = columns[0]
        times = f"times {len(first.pairs)} pairs," if len(first.pairs) > 1 else "which"
        said += (
            f" n = {n}{of} cannot tell {methods} methods apart ({where}): the smallest p-value of a paired test on so "
            f"few, {first.smallest:.2g}, {times} is above {ALPHA:g}."
        )
    return said


def _name(method: str, control: bool) -> str:
    return f"*{method}*" if control else method


def _examples_line(table: Table) -> str:
    record = table.records[0]
    kept = record.kept["test"]
    subsets = "; ".join(f"{name} {right} of {seen}" for name, (right, seen) in sorted(kept.by_subset.items()))
    chance = "" if record.chance is None else f" Chance among the labels: {100 * record.chance:.0f} %."
    scored = f"{record.kept['train'].kept} train examples scored"
    if table.level in INPUTS:
        scored = "each by its own scores"
        chance += "".join(
            f" {what}: {100 * record.aggregates[share].value:.1f} % of the positions."
            for share, what in CHANCE.items()
            if share in record.aggregates
        )
    everyone = f" (pruning and bias: all {kept.seen})" if record.pruning or record.preference else ""
    return (
        f"Answered correctly {kept.correct} of {kept.seen} test examples ({100 * kept.share:.0f} %: {subsets}); "
        f"n = {kept.kept} of them judged here{everyone}, {scored}.{chance}{_blind(table)}"
    )


def _how_it_ran(board: Board) -> str:
    records = [r for t in board.tables for r in t.records]
    models = sorted({(r.cell.model, r.model.weights_sha256[:12]) for r in records if r.model})
    sources = sorted({r.provenance.device for r in records if r.provenance})
    dtypes = sorted({f"{r.settings.dtype} on {r.settings.device}" for r in records})
    versions = sorted(
        {f"attriboard {r.provenance.attriboard}, torch {r.provenance.torch}" for r in records if r.provenance}
    )
    named = ", ".join(f"{name} (weights {sha})" for name, sha in models)
    counts = f"{len(records)} records, {sum(r.status == 'failed' for r in board.left_out)} failed, " + (
        f"{sum(r.status == 'skipped' for r in board.left_out)} skipped"
    )
    return f"{counts}. Models: {named}. {'; '.join(dtypes)} ({'; '.join(sources)}). {'; '.join(versions)}."


def _legend(board: Board) -> str:
    held = dict.fromkeys(m for table in board.tables for columns, _ in table.parts for m in columns) or COLUMNS
    shown = "; ".join(
        f"**{METRICS[m].title}** {'↑' if METRICS[m].better == 'higher' else '↓'} ({METRICS[m].unit})" for m in held
    )
    outside = any(r.cell.entered for table in board.tables for r in table.records)
    entered = " (entered): scores from a file; no method was run, so its cost is empty." if outside else ""
    halves = "; for halves: the middle 95 % of the halvings" if "reliability" in held else ""
    draws = "one draw for each seed" if len({t.seed for t in board.tables}) > 1 else "one draw"
    return (
        f"{shown}. Brackets: 95 % bootstrap interval over the test examples; those that share a base item are "
        f"resampled together (for seconds: smallest and largest repeat, where there were several{halves}). **Bold** in "
        "a table: the best value of the column, and all that are not significantly worse on the same examples (paired "
        f"permutation tests, Holm-corrected over all pairs of the column, p > {ALPHA:g}); where examples are too few "
        "to tell any two apart, nothing is bold, and the line above the table says so. *Italic*: controls; the random "
        f"ones are {draws}.{entered} Definitions: [docs/metrics.md](docs/metrics.md); tests: "
        "[docs/statistics.md](docs/statistics.md)."
    )


def _not_run(board: Board) -> list[str]:
    lines = ["## Not run, and why", ""]
    lines += [f"- {text}" for text in board.about.get("not_run", [])]
    lines += [f"- {r.status}: {r.cell}: {r.reason}" for r in board.left_out]
    lines += [
        f"- {family} not measured: {r.cell}: {reason}"
        for table in board.tables
        for r in table.records
        for family, reason in r.not_measured.items()
    ]
    lines += [f"- not a record, left alone: `{name}` ({why})" for name, why in board.foreign.items()]
    if board.superseded:
        lines.append(f"- {board.superseded} older records of the same cells were passed over.")
    return lines if len(lines) > 2 else [*lines, "- nothing was left out."]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(head) - 1)]
    escaped = ([text.replace("|", r"\|") for text in line] for line in (head, align, *rows))
    return [f"| {' | '.join(line)} |" for line in escaped]


def _tex(text: str) -> str:
    for raw, escaped in (
        ("\\", r"\textbackslash{}"),
        ("&", r"\&"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("|", r"\textbar{}"),
        ("#", r"\#"),
        ("−", "$-$"),
        ("±", r"$\pm$"),
    ):
        text = text.replace(raw, escaped)
    return text


def _metric_fields(metric: Metric) -> dict[str, Any]:
    return {k: getattr(metric, k) for k in ("title", "version", "unit", "better", "family", "description")}


def _known(value: float) -> float | None:
    """A number as JSON has it."""
    return float(value) if np.isfinite(value) else None


def _table_fields(table: Table) -> dict[str, Any]:
    return {k: getattr(table, k) for k in ("task", "level", "model", "replacement", "seed", "title")}


def _rank_fields(test: LevelTest) -> dict[str, Any]:
    found = test.found
    return {
        "tables": test.tables,
        "tasks_and_models": test.blocks,
        "methods": list(test.methods),
        "mean_ranks": None if found is None else found.mean_ranks.tolist(),
        "friedman_chi_squared": None if found is None else _known(found.statistic),
        "p": None if found is None else found.p,
        "critical_difference": None if found is None else found.critical_difference,
    }


def _comparison_fields(table: Table) -> list[dict[str, Any]]:
    labels = {r.filename: r.cell.method_label for r in table.records}
    return [
        {
            **_table_fields(table),
            "metric": metric,
            "examples": found.examples,
            "base_items": found.items,
            "can_tell": found.can_tell,
            "marked": [labels[r.filename] for r in table.records if r.filename in found.marked],
            "pairs": [
                {
                    "first": labels[pair.first],
                    "second": labels[pair.second],
                    "difference": _known(pair.difference),
                    "p": pair.p,
                    "p_adjusted": pair.adjusted,
                }
                for pair in found.pairs
            ],
        }
        for metric, found in table.comparisons.items()
    ]


def _seed_fields(summary: SeedTable) -> dict[str, Any]:
    rows = []
    for method, records in summary.rows:
        held: dict[str, list[float]] = {}
        for metric in summary.columns:
            if values := [r.aggregates[metric].value for r in records if metric in r.aggregates]:
                held[metric] = values
        rows.append(
            {
                "method": method,
                "seeds": len(records),
                "rank_correlation": between_seeds(records),
                "metrics": {
                    metric: {"mean": _known(mean), "standard_deviation": _known(deviation), "seeds": len(values)}
                    for metric, values in held.items()
                    for mean, deviation in [over_seeds(values)]
                },
            }
        )
    first = summary.tables[0]
    return {
        "task": first.task,
        "level": first.level,
        "model": seedless(first.model),
        "replacement": first.replacement,
        "seeds": summary.seeds,
        "rows": rows,
    }


def _agreement_fields(table: Table) -> list[dict[str, Any]]:
    """One entry where the table's records have sketches, none otherwise."""
    held, matrix = between_methods(table.records)
    if not held:
        return []
    rows = [[_known(value) for value in row] for row in matrix]
    return [{**_table_fields(table), "methods": [r.cell.method_label for r in held], "rank_correlation": rows}]
