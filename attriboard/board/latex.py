"""The board in LaTeX: one booktabs table per task and level; needs ``\\usepackage{booktabs}``."""

from __future__ import annotations

from collections.abc import Sequence

from .board import Board
from .wording import cells, first_line, head, lines_above, seed_cells, seed_head, seeds_line

SPECIAL = (
    ("\\", r"\textbackslash{}"),
    ("&", r"\&"),
    ("%", r"\%"),
    ("_", r"\_"),
    ("|", r"\textbar{}"),
    ("#", r"\#"),
    ("−", "$-$"),
    ("±", r"$\pm$"),
)


def latex(board: Board) -> str:
    """Every table, and every summary over seeds."""
    floats = [f"% {first_line(board)}\n"] if board.smoke else []
    for table in board.tables:
        bodies = []
        for metrics, records in table.parts:
            rows = [[_tex(r.cell.method_label), *cells(table, r, metrics, r"\textbf{{{}}}", _tex)] for r in records]
            bodies.append(_tabular(head(table, metrics), rows))
        caption = _tex(" ".join([f"{table.title}.", *lines_above(table)]))
        floats.append(_float(table.title, caption, "\\medskip\n".join(bodies)))
    for summary in board.over_seeds():
        rows = [[_tex(c) for c in (label, *seed_cells(records, summary.columns))] for label, records in summary.rows]
        caption = _tex(f"{summary.title}. {seeds_line(summary)}")
        floats.append(_float(summary.title, caption, _tabular(seed_head(summary), rows)))
    return "\n".join(floats)


def _tabular(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A tabular of cells that are LaTeX already."""
    lines = [" & ".join(line) + r" \\" for line in ([_tex(title) for title in titles], *rows)]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            "\\end{tabular}\n",
        ]
    )


def _float(title: str, caption: str, body: str) -> str:
    label = "".join(ch if ch.isalnum() else "-" for ch in title)
    return f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\label{{tab:{label}}}\n{body}\\end{{table}}\n"


def _tex(text: str) -> str:
    for raw, escaped in SPECIAL:
        text = text.replace(raw, escaped)
    return text
