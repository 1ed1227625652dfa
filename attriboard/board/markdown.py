"""The board for people, in Markdown: overall ranks, one table per task and level, and what was not run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from ..measurements.registry import METRICS
from .board import Board
from .columns import ranking_columns
from .wording import (
    OVERALL_LINE,
    SEEDS_LINE,
    cells,
    examples_line,
    head,
    how_it_ran,
    legend,
    not_run,
    rank_sentences,
    seed_cells,
    seed_head,
)


def markdown(board: Board) -> str:
    """The whole page."""
    lines = ["# Leaderboard", ""]
    if board.about:
        lines += [f"Suite `{board.about.get('suite')}`. {board.about.get('description', '')}".rstrip(), ""]
    lines += [how_it_ran(board), "", legend(board), "", *_overall(board), "## Tables", ""]
    for table in board.tables:
        lines += [f"### {table.title}", "", examples_line(table), ""]
        for metrics, records in table.parts:
            rows = [[_name(r.cell.method_label, r.control), *cells(table, r, metrics, "**{}**")] for r in records]
            lines += [*_table(head(metrics), rows), ""]
    if summaries := board.over_seeds():
        lines += ["## Over seeds", "", SEEDS_LINE, ""]
    for summary in summaries:
        rows = [
            [_name(label, records[0].control), *seed_cells(records, summary.columns)] for label, records in summary.rows
        ]
        lines += [f"### {summary.title}", "", *_table(seed_head(summary), rows), ""]
    lines += ["## Not run, and why", "", *(f"- {sentence}" for sentence in not_run(board))]
    return "\n".join(lines).rstrip() + "\n"


def _overall(board: Board) -> list[str]:
    overall, tests = board.overall(), board.rank_tests()
    if not overall:
        return []
    lines = ["## Overall", "", OVERALL_LINE, ""]
    for level, group in groupby(overall, lambda row: row.level):
        ranks = list(group)
        metrics = [m for m in ranking_columns(level) if any(not np.isnan(r.by_metric.get(m, np.nan)) for r in ranks)]
        rows = [
            [
                _name(row.method, row.control),
                row.tables,
                *(
                    f"{rank:.2f}" if np.isfinite(rank) else ""
                    for rank in (row.mean_rank, *(row.by_metric.get(m, np.nan) for m in metrics))
                ),
            ]
            for row in ranks
        ]
        titles = ["method", "tables", "mean rank", *(METRICS[m].title for m in metrics)]
        lines += [f"### {level}", "", *_table(titles, rows), "", rank_sentences(tests[level]), ""]
    return lines


def _name(method: str, control: bool) -> str:
    return f"*{method}*" if control else method


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(titles) - 1)]
    escaped = ([text.replace("|", r"\|") for text in line] for line in (titles, align, *rows))
    return [f"| {' | '.join(line)} |" for line in escaped]
