"""The board for people, in Markdown: overall ranks, one table per task and level, and what was not run."""

from __future__ import annotations

from collections.abc import Sequence

from . import verdict_wording
from .board import Board
from .columns import ranking_columns
from .verdict import verdicts
from .wording import (
    OVERALL_LINE,
    SEEDS_LINE,
    about_suites,
    cells,
    first_line,
    head,
    how_it_ran,
    legend,
    level_sentences,
    lines_above,
    mixed,
    not_run,
    rank_cells,
    rank_head,
    rank_sentences,
    seed_cells,
    seed_head,
)


def markdown(board: Board, docs: str | None = "docs") -> str:
    """The whole page, with links to the pages in ``docs``, or without any."""
    lines = [f"# {first_line(board)}", ""]
    for paragraph in about_suites(board):
        lines += [paragraph, ""]
    lines += [*_verdict(board), how_it_ran(board), "", legend(board, docs), "", *_overall(board), "## Tables", ""]
    for table in board.tables:
        lines += [f"### {table.title}", ""]
        for line in lines_above(table):
            lines += [line, ""]
        for metrics, records in table.parts:
            rows = [[_name(r.cell.method_label, r.control), *cells(table, r, metrics, "**{}**")] for r in records]
            lines += [*_table(head(table, metrics), rows), ""]
    if summaries := board.over_seeds():
        lines += ["## Over seeds", "", SEEDS_LINE, ""]
    for summary in summaries:
        rows = [
            [_name(label, records[0].control), *seed_cells(records, summary.columns)] for label, records in summary.rows
        ]
        note = [mixed(summary), ""] if summary.mixes_machines else []
        lines += [f"### {summary.title}", "", *note, *_table(seed_head(summary), rows), ""]
    lines += ["## Not run, and why", "", *(f"- {sentence}" for sentence in not_run(board))]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(board: Board) -> list[str]:
    """What the tables say together, before all else; nothing where no column of them is tested."""
    found = verdicts(board)
    ranks = {level.level: level for level in board.levels}
    lines = [f"## {verdict_wording.heading(board)}", ""]
    lines += [verdict_wording.LINE, ""] if any(verdict.tables for verdict in found) else []
    for verdict in found:
        lines += [f"**{verdict.level}**: {verdict_wording.intro(verdict, ranks.get(verdict.level))}", ""]
        if verdict.tables:
            rows = [[_name(place.method, place.control), *row] for place, row in verdict_wording.rows(verdict)]
            lines += [*_table(verdict_wording.head(verdict), rows), ""]
        lines += [text, ""] if (text := verdict_wording.ending(verdict)) else []
    told = verdict_wording.told_line(board)
    lines += [told, ""] if told else []
    return [*lines, "## How it was made", ""] if found or told else []


def _overall(board: Board) -> list[str]:
    tests = board.rank_tests()
    if not board.levels:
        return []
    lines = ["## Overall", "", OVERALL_LINE, ""]
    for level in board.levels:
        ranked = [rank for rank in level.ranks if rank.wins is not None]
        metrics = [m for m in ranking_columns(level.level) if any(m in rank.by_metric for rank in ranked)]
        rows = [[_name(rank.method, rank.control), *rank_cells(rank, metrics)] for rank in ranked]
        lines += [f"### {level.level}", "", *(_table(rank_head(metrics), rows) if rows else []), ""]
        lines += [" ".join(level_sentences(level)), "", rank_sentences(tests[level.level]), ""]
    return lines


def _name(method: str, control: bool) -> str:
    return f"*{method}*" if control else method


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(titles) - 1)]
    escaped = ([text.replace("|", r"\|") for text in line] for line in (titles, align, *rows))
    return [f"| {' | '.join(line)} |" for line in escaped]
