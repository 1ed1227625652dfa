"""The formats of a board, by name."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UnknownNameError
from .board import Board
from .data import as_json, csv
from .html import html
from .latex import latex
from .markdown import markdown

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


def render(board: Board, form: str = "md", docs: str | None = "docs") -> str:
    """The board in one of :data:`FORMATS`.

    Args:
        docs: where links of a Markdown board find the pages of ``docs/``; None for a board without links.

    Raises:
        UnknownNameError: no such format.
    """
    check_format(form)
    return markdown(board, docs) if form == "md" else FORMATS[form](board)
