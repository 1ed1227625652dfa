"""The board as a page of HTML without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import verdict_wording
from .board import Board
from .verdict import verdicts
from .wording import about_suites, cells, first_line, head, lines_above, seed_cells, seed_head, seeds_line

STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def html(board: Board) -> str:
    """Every table, and every summary over seeds."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>attriboard</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(first_line(board))}</h1>",
        *(f"<p>{escape(paragraph)}</p>" for paragraph in about_suites(board)),
    ]
    parts += _verdict(board)
    for table in board.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", *(f"<p>{escape(line)}</p>" for line in lines_above(table))]
        for metrics, records in table.parts:
            rows = [[escape(r.cell.method_label), *cells(table, r, metrics, "<b>{}</b>", escape)] for r in records]
            parts.append(_table(head(table, metrics), rows))
    for summary in board.over_seeds():
        parts.append(f"<h2>{escape(summary.title)}</h2><p>{escape(seeds_line(summary))}</p>")
        rows = [[escape(c) for c in (label, *seed_cells(records, summary.columns))] for label, records in summary.rows]
        parts.append(_table(seed_head(summary), rows))
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _verdict(board: Board) -> list[str]:
    """What the tables say together; nothing where no column of them is tested."""
    found = verdicts(board)
    ranks = {level.level: level for level in board.levels}
    parts: list[str] = []
    if any(verdict.tables for verdict in found):
        parts.append(_paragraph(verdict_wording.LINE.replace("*", "")))
    for verdict in found:
        said = verdict_wording.intro(verdict, ranks.get(verdict.level))
        parts.append(_paragraph(f"{verdict.level}: {said}"))
        if verdict.tables:
            rows = [[escape(text) for text in (place.method, *row)] for place, row in verdict_wording.rows(verdict)]
            parts.append(_table(verdict_wording.head(verdict), rows))
        parts.append(_paragraph(verdict_wording.ending(verdict)))
    parts.append(_paragraph(verdict_wording.told_line(board)))
    shown = [part for part in parts if part]
    return [f"<h2>{escape(verdict_wording.heading(board))}</h2>", *shown] if shown else []


def _paragraph(text: str) -> str:
    """Nothing for no text."""
    return f"<p>{escape(text)}</p>" if text else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""

    def row(tag: str, texts: Sequence[str]) -> list[str]:
        return ["    <tr>", *(f"      <{tag}>{text}</{tag}>" for text in texts), "    </tr>"]

    body = [line for texts in rows for line in row("td", texts)]
    titles = [escape(title) for title in titles]
    return "\n".join(
        ["<table>", "  <thead>", *row("th", titles), "  </thead>", "  <tbody>", *body, "  </tbody>", "</table>"]
    )
