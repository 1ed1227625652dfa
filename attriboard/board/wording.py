"""What a board says in words and numbers, whatever the format: no time and no path is printed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ..levels import INPUTS
from ..measurements.base import Metric
from ..measurements.bias import Bias
from ..measurements.pruning import Pruning
from ..measurements.registry import METRICS
from ..measurements.reliability import Reliability
from ..records.record import Aggregate, Record
from ..stats.intervals import ALPHA
from ..stats.ranks import over_seeds
from .agreement import between_seeds
from .board import Board, LevelTest, SeedTable, Table
from .significance import ColumnTest

SEEDS_LINE = (
    "Mean ± standard deviation over seeds; the last column is the mean rank correlation of a method's scores under two "
    "seeds, on the same weights."
)
OVERALL_LINE = (
    "Mean relative rank over a level's tables (0 = best of its table, 1 = last), by metric, and the mean over the "
    "metrics. A method that stands in fewer tables met fewer opponents."
)
Escape = Callable[[str], str]


# --- numbers --------------------------------------------------------------------------------------------------------


def number(metric: Metric, value: float) -> str:
    """A value as the board prints it; small times keep two figures."""
    if not np.isfinite(value):
        return "n/a"
    if metric.unit == "seconds":
        return f"{value:.2g}" if value < 10 else f"{value:.0f}"
    text = f"{value:.{metric.digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def short(value: float) -> str:
    """A correlation."""
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "n/a"


def with_interval(metric: Metric, a: Aggregate, bold: str = "{}", escape: Escape = str) -> str:
    """The value, in ``bold`` where that is given, and its interval."""
    text = bold.format(escape(number(metric, a.value)))
    if a.low is None or a.high is None:
        return text
    return f"{text} {escape(f'[{number(metric, a.low)}, {number(metric, a.high)}]')}"


def head(metrics: Sequence[str]) -> list[str]:
    """The heads of a part's columns."""
    return ["method", *(METRICS[m].title for m in metrics)]


def cells(table: Table, record: Record, metrics: Sequence[str], bold: str, escape: Escape = str) -> list[str]:
    """A record's row without its name; ``bold`` goes around the best and what is not significantly worse.

    Empty where the record lacks a metric.
    """
    best = table.bold(record)
    return [
        with_interval(METRICS[m], record.aggregates[m], bold if m in best else "{}", escape)
        if m in record.aggregates
        else ""
        for m in metrics
    ]


def seed_head(summary: SeedTable) -> list[str]:
    return ["method", "seeds", *(METRICS[m].title for m in summary.columns), "rank correlation"]


def seed_cells(records: Sequence[Record], metrics: Sequence[str]) -> list[str]:
    """One method's row, without its name; empty where no seed has the metric, a plain value where only one has."""
    row = [str(len(records))]
    for metric in (METRICS[m] for m in metrics):
        values = [r.aggregates[metric.name].value for r in records if metric.name in r.aggregates]
        mean, deviation = over_seeds(values) if values else (np.nan, np.nan)
        spread = f" ± {number(metric, deviation)}" if np.isfinite(deviation) else ""
        row.append(f"{number(metric, mean)}{spread}" if values else "")
    correlation = between_seeds(records)
    return [*row, "" if correlation is None else short(correlation)]


# --- sentences ------------------------------------------------------------------------------------------------------


def rank_sentences(test: LevelTest) -> str:
    """The rank test of a level in words."""
    if test.result is None:
        return (
            f"No test of the ranks: it needs three methods that stand in every table, and two tasks or models; there "
            f"{'is' if len(test.methods) == 1 else 'are'} {len(test.methods)} and {test.blocks}."
        )
    over = f"{test.tables} tables"
    if test.blocks < test.tables:
        over += f" of {test.blocks} tasks and models (tables that share both are averaged)"
    ordered = sorted(zip(test.result.mean_ranks, test.methods))
    ranks = ", ".join(f"{method} {rank:.2f}" for rank, method in ordered)
    chi = "undefined" if np.isnan(test.result.statistic) else f"{test.result.statistic:.2f}"
    return (
        f"Mean rank over {over} of the {len(test.methods)} methods that stand in all of them (1 = best, "
        f"{len(test.methods)} = last): {ranks}. Friedman's test: chi-squared {chi}, p = {test.result.p:.2g}. Mean "
        f"ranks closer than {test.result.critical_difference:.2f} (Nemenyi's critical difference at {ALPHA:g}) are not "
        "told apart."
    )


def _underpowered(table: Table) -> str:
    """What the examples are too few for, in words; empty where a difference in every column could be significant."""
    alike: dict[tuple[int, int, int], list[ColumnTest]] = defaultdict(list)
    for test in table.comparisons.values():
        if test.examples > 1 and not test.has_power:  # one value has no spread to tell anything from
            alike[test.examples, test.items, test.methods].append(test)
    sentences = ""
    for (n, items, methods), columns in alike.items():
        of = "" if items == n else f" ({items} base items)"
        where = ", ".join(METRICS[c.metric].title for c in columns)
        first = columns[0]
        times = f"times {len(first.pairs)} pairs," if len(first.pairs) > 1 else "which"
        sentences += (
            f" n = {n}{of} cannot tell {methods} methods apart ({where}): the smallest p-value of a paired test on so "
            f"few, {first.smallest:.2g}, {times} is above {ALPHA:g}."
        )
    return sentences


def examples_line(table: Table) -> str:
    """What the table's numbers were measured on."""
    record = table.records[0]
    kept = record.kept["test"]
    subsets = "; ".join(
        f"{name} {passing} and {right} of {seen}" for name, (passing, right, seen) in sorted(kept.by_subset.items())
    )
    chance = "" if record.chance is None else f" Chance among the labels: {100 * record.chance:.0f} %."
    described = [_described(metric, table.records) for metric in METRICS.values() if metric.line]
    by_itself = table.level in INPUTS
    scored = "each by its own scores" if by_itself else f"{record.kept['train'].kept} train examples scored"
    everyone = f" (pruning and bias: all {kept.seen})" if _uses_all_drawn(table) else ""
    return (
        f"Of {kept.seen} test examples {kept.correct} are answered, and the counterfactuals of {kept.passing} of these "
        f"by their foil ({subsets}); "
        f"n = {kept.kept} of them judged here{everyone}, {scored}.{chance}{''.join(described)}{_underpowered(table)}"
    )


def _described(metric: Metric, records: Sequence[Record]) -> str:
    """What a metric says of the examples, which is the same for every method."""
    values = [r.aggregates[metric.name].value for r in records if metric.name in r.aggregates]
    whole = metric.unit.removeprefix("share of ")
    return f" {metric.line}: {100 * values[0]:.1f} % of the {whole}." if values else ""


def _uses_all_drawn(table: Table) -> bool:
    """Whether some of it was measured on examples that the model answers wrongly as well."""
    return any(r.measured(Pruning) or r.measured(Bias) for r in table.records)


def how_it_ran(board: Board) -> str:
    """Records, models and hardware in one paragraph."""
    records = [r for t in board.tables for r in t.records]
    models = sorted({(r.cell.model, r.model.weights_sha256[:12]) for r in records if r.model})
    sources = sorted({r.provenance.device for r in records if r.provenance})
    dtypes = sorted({f"{r.settings.dtype} on {r.settings.device}" for r in records})
    versions = sorted(
        {f"attriboard {r.provenance.attriboard}, torch {r.provenance.torch}" for r in records if r.provenance}
    )
    named = ", ".join(f"{name} (weights {sha})" for name, sha in models)
    counts = f"{sum(r.status == 'ok' for r in records)} records, " + ", ".join(
        f"{sum(r.status == status for r in board.not_run)} {status}" for status in ("failed", "skipped")
    )
    return f"{counts}. Models: {named}. {'; '.join(dtypes)} ({'; '.join(sources)}). {'; '.join(versions)}."


ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def legend(board: Board) -> str:
    """What the columns, brackets and typefaces mean."""
    shown = [METRICS[m] for m in dict.fromkeys(m for table in board.tables for m in table.metrics)]
    columns = "; ".join(f"**{m.title}**{ARROWS[m.better]} ({m.unit})" for m in shown)
    outside = any(r.cell.precomputed for table in board.tables for r in table.records)
    precomputed = " (precomputed): scores from a file; no method was run, so its cost is empty." if outside else ""
    halved = any(m.measurement == Reliability.name for m in shown)
    halves = "; for halves: the middle 95 % of the halvings" if halved else ""
    draws = "one draw for each seed" if len({t.seed for t in board.tables}) > 1 else "one draw"
    return (
        f"{columns}{'. ' if columns else ''}Brackets: 95 % bootstrap interval over the test examples; those that share "
        "a base item are resampled together (for seconds: smallest and largest repeat, where there were "
        f"several{halves}). **Bold** in a table: the best value of the column, and all that are not significantly "
        "worse on the same examples (paired permutation tests, Holm-corrected over all pairs of the column, p > "
        f"{ALPHA:g}); where examples are too few to tell any two apart, nothing is bold, and the line above the table "
        "says so. *Italic*: controls; the random "
        f"ones are {draws}.{precomputed} Definitions: [docs/metrics.md](docs/metrics.md); tests: "
        "[docs/statistics.md](docs/statistics.md)."
    )


def not_run(board: Board) -> list[str]:
    """One sentence for everything that is not on the board, and why."""
    return [
        *board.about.get("not_run", []),
        *(f"{r.status}: {r.cell}: {r.reason}" for r in board.not_run),
        *(
            f"{what} not measured: {r.cell}: {reason}"
            for table in board.tables
            for r in table.records
            for what, reason in r.not_measured.items()
        ),
        *(f"not a record, left alone: `{name}` ({why})" for name, why in board.foreign.items()),
        *([f"{board.superseded} older records of the same cells were passed over."] if board.superseded else []),
    ] or ["nothing was left out."]
