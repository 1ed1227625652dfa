"""What a board says in words and numbers, whatever the format: no time and no path is printed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ..levels import INPUTS
from ..measurements.base import Metric
from ..measurements.bias import Bias
from ..measurements.pruning import Pruning
from ..measurements.registry import MEASUREMENTS, METRICS
from ..measurements.reliability import Reliability
from ..measurements.speed import VARYING, Speed
from ..records.record import Aggregate, Record
from ..roles import ABBREVIATED
from ..stats.intervals import ALPHA
from ..stats.ranks import over_seeds
from .agreement import between_seeds
from .board import Board, LevelRanks, LevelTest, OverallRank, SeedTable, Table
from .machines import bound_to_machines, machine_of, timed_on
from .significance import ColumnTest

SEEDS_LINE = (
    "Mean ± standard deviation over seeds; the last column is the mean rank correlation of a method's scores under two "
    "seeds, on the same weights."
)
OVERALL_LINE = (
    "*Wins*: a method's chance of beating another one of the list on a table, averaged over all others, by Bradley and "
    "Terry's model of paired comparisons, which compares methods through the tables that they share: 1 = beats every "
    "other, 0.5 = as often better as worse. On a table the better value wins, equal values are half a win, and every "
    "metric counts alike. Columns of metrics: the same by that metric alone. Brackets: 95 % interval."
)
GGUF = re.compile(r"[\w.-]+\.gguf")
"""A file of quantized weights, in what a record says of a model's source."""
SMALL_SHARE = 0.01
"""Shares of tied scores up to this are not worth a sentence."""
COUNTS = ("seen", "correct", "passing", "kept")
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


def head(table: Table, metrics: Sequence[str]) -> list[str]:
    """The heads of a part's columns."""
    sees = ["sees"] if table.says_what_is_seen else []
    device = ["device"] if table.names_machines and set(metrics) & set(VARYING) else []
    return ["method", *sees, *device, *(METRICS[m].title for m in metrics)]


def seen(record: Record) -> str:
    """What a method saw of the examples, abbreviated; empty where that is not known."""
    if record.sees is None:
        return ""
    return ", ".join(ABBREVIATED[sight] for sight in record.sees) or "nothing"


def mark(table: Table, record: Record) -> str:
    """Which of a table's machines a record was timed on: a, b, ...; empty where that is not known."""
    timed = timed_on([record])
    return _letter(table.machines.index(timed[0])) if timed else ""


def _letter(at: int) -> str:
    """a to z, then aa, ab, ..."""
    before, last = divmod(at, 26)
    return (_letter(before - 1) if before else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def cells(table: Table, record: Record, metrics: Sequence[str], bold: str, escape: Escape = str) -> list[str]:
    """A record's row without its name; ``bold`` goes around the best and what is not significantly worse.

    Empty where the record lacks a metric.
    """
    best = table.bold(record)
    sees = [escape(seen(record))] if table.says_what_is_seen else []
    device = [mark(table, record)] if table.names_machines and set(metrics) & set(VARYING) else []
    return [*sees, *device] + [
        with_interval(METRICS[m], record.aggregates[m], bold if m in best else "{}", escape)
        if m in record.aggregates
        else ""
        for m in metrics
    ]


def seeds_line(summary: SeedTable) -> str:
    """What a summary over seeds shows, and what it leaves out."""
    return f"{SEEDS_LINE} {mixed(summary)}".rstrip()


def mixed(summary: SeedTable) -> str:
    """That a summary shows no times, since its seeds were run on several machines; empty for one."""
    left_out = f"{bound_to_machines()} are left out: the seeds were run on several devices."
    return left_out if summary.mixes_machines else ""


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


def rank_head(metrics: Sequence[str]) -> list[str]:
    """The heads of the overall ranks by these metrics."""
    return ["method", "tables", "wins", *(METRICS[m].title for m in metrics)]


def rank_cells(rank: OverallRank, metrics: Sequence[str]) -> list[str]:
    """One method's overall rank, without its name; empty where it lacks a metric."""
    interval = "" if rank.low is None or rank.high is None else f" [{rank.low:.2f}, {rank.high:.2f}]"
    wins = "" if rank.wins is None else f"{rank.wins:.2f}{interval}"
    alone = (f"{rank.by_metric[m]:.2f}" if m in rank.by_metric else "" for m in metrics)
    return [f"{rank.tables} of {rank.of}", wins, *alone]


def level_sentences(level: LevelRanks) -> list[str]:
    """What stands apart from a level's overall ranks, and what their intervals resample."""
    pairs = "1 task and model" if level.blocks == 1 else f"{level.blocks} tasks and models"
    tables = "1 table is" if level.tables == 1 else f"{level.tables} tables are"
    sentences = {
        "blocks": f"Intervals resample the {pairs}.",
        "tables": f"Intervals resample the {level.tables} tables, of {pairs} only: they say nothing of others.",
        "nothing": f"No intervals: {tables} too few to resample.",
    }
    said = [sentences[level.resampled]]
    if thin := [f"{r.method} ({r.tables} of {r.of})" for r in level.ranks if r.wins is None]:
        said.append(f"Thinly covered, in fewer than half of the tables, and not ranked: {', '.join(thin)}.")
    if level.left_out:
        said.append(f"Left out, because no method is told apart from random there: {'; '.join(level.left_out)}.")
    return said


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
            alike[test.examples // _times(table, test.metric), test.items, test.methods].append(test)
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


def _times(table: Table, metric: str) -> int:
    """How many rows of a metric each example has."""
    settings = next((r.settings for r in table.records if r.cross_fitted), None)
    crossed = settings is not None and MEASUREMENTS[METRICS[metric].measurement].cross_fitted
    return settings.repetitions if settings and crossed else 1


def examples_line(table: Table) -> str:
    """What the table's numbers were measured on."""
    record = next((r for r in table.records if r.cross_fitted), table.records[0])
    halves = record.kept.values() if record.cross_fitted else [record.kept["test"]]
    seen, correct, passing, kept = (sum(getattr(h, name) for h in halves) for name in COUNTS)
    by_subset = {name: np.sum([h.by_subset[name] for h in halves], axis=0) for name in record.kept["test"].by_subset}
    counts = "; ".join(f"{name} {right} and {passed} of {of}" for name, (passed, right, of) in by_subset.items())
    subsets = f" ({counts})" if len(by_subset) > 1 else ""  # one subset is all of them
    chance = "" if record.chance is None else f" Chance among the labels: {100 * record.chance:.0f} %."
    described = [_described(metric, table.records) for metric in METRICS.values() if metric.line]
    everyone = f" (pruning and bias: all {record.kept['test'].seen} of the test half)" if _uses_all_drawn(table) else ""
    drawn = "" if record.cross_fitted else "test "
    turned = f", and the counterfactuals of {passing} of these by their foil" if record.settings.keep == "both" else ""
    return (
        f"Of {seen} {drawn}examples {correct} are answered{turned}{subsets}. {_judged(table, record, kept)}{everyone}."
        f"{chance}{''.join(described)}{_underpowered(table)}"
    )


def _judged(table: Table, record: Record, kept: int) -> str:
    """By which scores the examples kept are judged."""
    if table.level in INPUTS:
        return f"{kept} of them are judged, each by its own scores"
    train = record.kept["train"].kept
    if not record.cross_fitted:
        return f"{kept} of them are judged by the scores of {train} train examples"
    groups, times = min(record.settings.folds, train), record.settings.repetitions
    often = "once" if times == 1 else f"{times} times, each time"
    rest = "; what is not cross-fitted is measured on the test half alone" if _measures_more(table) else ""
    size = f"{kept / (2 * groups):.0f} examples" if kept >= 3 * groups else "1 example"
    return (
        f"{kept} of them, in two halves of {groups} groups, are judged {often} by the scores of a group of the other "
        f"half (about {size}){rest}{_larger_groups(table)}"
    )


def _larger_groups(table: Table) -> str:
    """Which methods cannot score so few examples, and so have fewer and larger groups."""
    crossed = [r for r in table.records if r.cross_fitted and r.train_groups]
    most = max((r.train_groups for r in crossed), default=0)
    fewer = sorted({f"{r.cell.method_label} on {r.train_groups}" for r in crossed if r.train_groups < most})
    return f". Scores of {', '.join(fewer)} larger groups, since fewer examples do not do for them" if fewer else ""


def _measures_more(table: Table) -> bool:
    """Whether a table shows components' measurements that are not cross-fitted, beside what scoring costs."""
    return any(not m.cross_fitted and m.name != Speed.name for r in table.records for m in r.measurements.values())


def lines_above(table: Table) -> list[str]:
    """All that is said above a table: its examples; what an audit found; how its methods stand; ties; what has no best;
    on what it was timed, where that differs from row to row.

    A sentence stands there only where it has something to say.
    """
    methods = [_against_random(table), _against_trivial(table), _ties(table), _beyond_perfect(table), _all_alike(table)]
    hardware = [_on_machines(table), _elsewhere(table)]
    paragraphs = (" ".join(table.findings), *(" ".join(filter(None, said)) for said in (methods, hardware)))
    return [examples_line(table), *(paragraph for paragraph in paragraphs if paragraph)]


def _on_machines(table: Table) -> str:
    """On what the rows were timed, where the board has times of more than one machine."""
    if not table.names_machines:
        return f"Timed on {table.machines[0]}." if table.one_of_several and table.machines else ""
    named = "; ".join(f"{_letter(at)}: {machine}" for at, machine in enumerate(table.machines))
    return (
        f"Rows were timed on several devices ({named}): {bound_to_machines()} compare only between rows of one device, "
        "all else between all rows, which are judged on the same examples."
    )


def _elsewhere(table: Table) -> str:
    """That records of another device are in a table of their own."""
    if not table.elsewhere:
        return ""
    return (
        f"The model answers other examples on {' and on '.join(table.elsewhere)}, so what was measured there stands in "
        "another table and is not compared in pairs with this one."
    )


def _against_random(table: Table) -> str:
    """Where methods are not told apart from random scores, and whether that says anything."""
    found = table.against_random
    if found is None or table.informative == "yes":
        return ""
    where = f"in {METRICS[found.metric].title} with {table.replacement} replacement"
    if table.informative == "no power":
        rule = table.against_trivial
        alike = "" if rule is None or rule.has_power else f", or from the best trivial control, {rule.control},"
        return f"The examples are too few to tell any method from {found.control}{alike} {where}."
    return (
        f"No method is told apart from random: none is significantly better than {found.control} {where}, so the order "
        "of the rows says nothing and the table enters no ranks."
    )


def _against_trivial(table: Table) -> str:
    """Which published methods are no better than the best rule that is no attribution; empty without any rule."""
    found = table.against_trivial
    if found is None or table.informative == "no":  # what says nothing is not said twice
        return ""
    control = f"the best trivial control, {found.control}, in {METRICS[found.metric].title}"
    if not found.has_power:
        said_before = table.informative == "no power"
        return "" if said_before else f"The examples are too few to tell any method from {control}."
    if not found.not_better:
        return f"Every method is significantly better than {control}."
    return f"Not significantly better than {control}: {', '.join(found.not_better)}."


def _ties(table: Table) -> str:
    """Whose scores are tied often enough to matter."""
    tied = [
        f"{r.cell.method_label} ({_percent(r.scores.ties)}"
        + (f", {_percent(r.scores.noise)} below the noise floor)" if r.scores.noise > SMALL_SHARE else ")")
        for r in table.records
        if r.scores and r.scores.ties > SMALL_SHARE
    ]
    return f"Scores that equal another's, ranked in random orders: {', '.join(tied)}." if tied else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _beyond_perfect(table: Table) -> str:
    """The columns in which nothing is marked because the best value is beyond the untouched model's."""
    titles = [METRICS[name].title for name in table.beyond_perfect if name in table.comparisons]
    return f"Nothing is bold in {', '.join(titles)}: a value goes beyond the untouched model's." if titles else ""


def _all_alike(table: Table) -> str:
    """The columns in which bold tells nobody apart, because every method has it."""
    titles = [
        METRICS[name].title
        for name, test in table.comparisons.items()
        if len(test.best) == sum(name in r.aggregates for r in table.records) and name not in table.beyond_perfect
    ]
    return f"No method is told apart from the best in {', '.join(titles)}: all are bold." if titles else ""


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
    sources = sorted({machine.device for r in records if (machine := machine_of(r)) is not None})
    dtypes = sorted({f"{r.settings.dtype} on {r.settings.device}" for r in records})
    versions = sorted(
        {f"attriboard {r.provenance.attriboard}, torch {r.provenance.torch}" for r in records if r.provenance}
    )
    named = ", ".join(f"{name} (weights {sha})" for name, sha in models)
    counts = f"{sum(r.status == 'ok' for r in records)} records, " + ", ".join(
        f"{sum(r.status == status for r in board.not_run)} {status}" for status in ("failed", "skipped")
    )
    quantized: dict[str, list[str]] = defaultdict(list)
    for name, file in sorted(
        {(r.cell.model, file) for r in records if r.model for file in GGUF.findall(r.model.source)}
    ):
        quantized[file].append(name)
    dequantized = "".join(
        f" The weights of {' and '.join(own)} are dequantized from {f}." for f, own in quantized.items()
    )
    return f"{counts}. Models: {named}.{dequantized} {'; '.join(dtypes)} ({'; '.join(sources)}). {'; '.join(versions)}."


ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def legend(board: Board, docs: str | None = "docs") -> str:
    """What the columns, brackets and typefaces mean; ``docs`` is the link to the pages, None for no links."""
    shown = [METRICS[m] for m in dict.fromkeys(m for table in board.tables for m in table.metrics)]
    columns = "; ".join(f"**{m.title}**{ARROWS[m.better]} ({m.unit})" for m in shown)
    outside = any(r.cell.precomputed for table in board.tables for r in table.records)
    precomputed = " (precomputed): scores from a file; no method was run, so its cost is empty." if outside else ""
    several = any(r.cross_fitted for table in board.tables for r in table.records)
    crossed = " (cross-fitted: also those of one frame, and those judged by the scores of one group)" if several else ""
    halved = any(m.measurement == Reliability.name for m in shown)
    halves = "; for halves: the middle 95 % of the halvings" if halved else ""
    sees = (
        "**sees**: what a method sees of an example beside the prompt (the answer; the foil; cf, the counterfactual "
        "prompt, by which the evaluation judges too; labels, of subsets or demonstrations); methods that see other "
        "things are not on an equal footing. "
        if any(table.says_what_is_seen for table in board.tables)
        else ""
    )
    draws = "one draw for each seed" if len({t.seed for t in board.tables}) > 1 else "one draw"
    draws += "; where examples are cross-fitted another for every group, with f that of all rows" if several else ""
    return (
        f"{columns}{'. ' if columns else ''}{sees}Brackets: 95 % interval over the examples judged, those that "
        f"share a base item taken together{crossed} (for seconds: smallest and largest repeat, where there were "
        f"several{halves}). **Bold** in a table: the best value of the column, and all that are not significantly "
        "worse on the same examples (paired tests, Holm-corrected over all pairs of the column, p > "
        f"{ALPHA:g}); where examples are too few to tell any two apart, nothing is bold, and the line above the table "
        "says so. Nor is anything bold where a value goes beyond the untouched model's: components that work against "
        "the answer were dropped, which is no better attribution. **n_eff**: how many independent examples the n "
        "amount to. *Italic*: controls; the random "
        f"ones are {draws}.{precomputed}{_times_compare(board)} Definitions: {_page('metrics.md', docs)}; tests: "
        f"{_page('statistics.md', docs)}."
    )


def _times_compare(board: Board) -> str:
    """How far times and memory compare: not over machines, and less where several processes shared one."""
    records = [r for table in board.tables for r in table.records if timed_on([r])]
    machines = {machine for r in records for machine in timed_on([r])}
    beside = sum(machine.workers > 1 for r in records for machine in timed_on([r]))
    said = f" {bound_to_machines()} compare within one device only." if len(machines) > 1 else ""
    if beside:
        said += (
            f" {bound_to_machines()} of {beside} of {len(records)} records were measured beside other workers on the "
            "same machine, which makes times longer."
        )
    return said


def first_line(board: Board) -> str:
    """The first line of a board: what it is, and that no verdict follows from it where it is a smoke test."""
    if not board.smoke:
        return "Leaderboard"
    if len(board.smoke) == len(board.suites):
        return "Leaderboard of a smoke test: few examples, no verdict (for that see the suite `standard`)"
    tests = " and ".join(f"`{name}`" for name in board.smoke)
    are = "is a smoke test" if len(board.smoke) == 1 else "are smoke tests"
    return f"Leaderboard; {tests} {are}: few examples, no verdict (for that see the suite `standard`)"


def about_suites(board: Board) -> list[str]:
    """What the suites say of themselves, one paragraph each, and how folders were merged where there are several."""
    abouts = {str(s.about["suite"]): s.about for s in board.sources if s.about.get("suite")}
    said = [f"Suite `{name}`. {about.get('description', '')}".rstrip() for name, about in abouts.items()]
    if len(board.sources) == 1:
        return said
    parts = []
    for source in board.sources:
        over = f" and {source.passed_over} passed over" if source.passed_over else ""
        parts.append(f"`{source.name}` (suite `{source.about.get('suite')}`, {source.records} records{over})")
    merged = f"Merged from {len(board.sources)} folders: {', '.join(parts)}."
    if any(source.passed_over for source in board.sources):
        merged += " Of a cell that several hold, the record made last counts, before any that failed."
    return [*said, merged]


def _page(name: str, docs: str | None) -> str:
    return f"docs/{name} of attriboard" if docs is None else f"[docs/{name}]({docs}/{name})"


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
