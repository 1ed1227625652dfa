"""Fills the excerpts of the README and of the pages in ``docs/`` from stored records; `make board` runs it.

Tables are cut out of rendered boards, so that a number on a page is the number on the board. An excerpt stands between
the marks ``<!-- NAME -->`` and ``<!-- /NAME -->``, which :func:`excerpts` lists page by page.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attriboard import METRICS, Board, Folder, render
from attriboard.board.columns import ranking_columns
from attriboard.records.aggregate import up_to_date
from attriboard.studies.audit_report import findings, read_audits

ROOT = Path(__file__).resolve().parent.parent
QUICK, STANDARD, DOWNSTREAM = (ROOT / "results" / name for name in ("quick", "standard", "downstream"))
SPEED = ROOT / "results" / "speed.json"
PUBLISHED = STANDARD if (STANDARD / "suite.json").exists() else QUICK
"""The records behind the README's table and the excerpts of ``docs/board.md``."""

RANKING = {level: tuple(METRICS[name].title for name in ranking_columns(level)) for level in ("heads", "patches")}
"""The columns by which a level is ranked."""
ARITHMETIC = "arithmetic(subsets=addition,multiplication)"
SMALL = (f"{ARITHMETIC}, heads", tuple(dict.fromkeys((*RANKING["heads"], "forwards"))))
"""The README's table: the beginning of its title, and the columns that are shown, behind what methods see."""
BEST = 2
"""How many methods that are no controls it shows."""
OVERALL = {"heads": "Attention heads", "neurons": "FFN neurons", "patches": "Image patches"}
WHOLE = ((f"{ARITHMETIC}, heads", RANKING["heads"]), ("color_vqa, patches", RANKING["patches"]))
"""What ``docs/board.md`` shows in full: the beginning of a table's title, and columns of which it has one."""
USES = (
    ("Pruning", f"{ARITHMETIC}, neurons", ("accuracy area",)),
    ("Bias", "gender_bias, neurons", ("bias removed",)),
    ("Editing", f"{ARITHMETIC}, neurons", ("suppress: locality", "boost: locality", "rewrite: locality")),
)
"""The same for ``docs/downstream.md``; each kind of edit is a table of its own below the same title."""
CONTROL = "random_same_layer"
"""The control that the best method is compared with."""


# --- cutting tables out of a board --------------------------------------------------------------------------------


class Section(NamedTuple):
    """A part of a board: its whole title, the line about its examples, and the rows of its tables."""

    title: str
    about: str
    tables: list[list[str]]

    def having(self, columns: Sequence[str]) -> list[list[str]]:
        """The tables that have one of these columns."""
        return [rows for rows in self.tables if set(columns) & set(cells(rows[0]))]


def board_text(folder: Path) -> str:
    """The board of a folder of records, in Markdown, with what the audits beside it found."""
    return render(Board.read(folder, findings(read_audits(folder.parent / "audit"))), "md")


def cells(row: str) -> list[str]:
    """The cells of a table's row; a ``|`` inside a cell is escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def sections(board: str, title: str) -> list[Section]:
    """The sections of a board whose titles begin so, in the board's order."""
    matching = []
    for part in re.split(r"^### ", board, flags=re.MULTILINE)[1:]:
        if part.startswith(title):
            text = re.split(r"^##", part, maxsplit=1, flags=re.MULTILINE)[0]
            head, *paragraphs = text.strip().split("\n\n")
            tables = [paragraph.splitlines() for paragraph in paragraphs if paragraph.startswith("|")]
            about = "\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith("|"))
            matching.append(Section(head, about, tables))
    return matching


def fullest(board: str, title: str, columns: Sequence[str]) -> Section:
    """Of the sections with this title, the one whose tables with these columns have most rows, and only those tables.

    Raises:
        LookupError: the board has none.
    """
    having = [section._replace(tables=section.having(columns)) for section in sections(board, title)]
    having = [section for section in having if section.tables]
    if not having:
        raise LookupError(f"the board has no table {title!r} with a column {' or '.join(map(repr, columns))}.")
    return max(having, key=lambda section: len(section.tables[0]))


def in_full(section: Section, name: str = "") -> list[str]:
    """The lines of a whole section."""
    lines = [f"**{name}{section.title}.** {section.about}", ""]
    for rows in section.tables:
        lines += [*rows, ""]
    return lines


def selected(rows: Sequence[str], columns: Sequence[str], best: int) -> list[str]:
    """A table's first ``best`` methods that are no controls, all of its controls, and only these columns.

    Raises:
        LookupError: the table lacks one of the columns.
    """
    head, align, *body = map(cells, rows)
    missing = [column for column in columns if column not in head]
    if missing:
        raise LookupError(f"the table has no column {' and no '.join(map(repr, missing))}.")
    places = [0, *map(head.index, columns)]
    own = [row for row in body if not row[0].startswith("*")][:best]
    chosen = [row for row in body if row in own or row[0].startswith("*")]
    return [f"| {' | '.join(row[i] for i in places)} |" for row in (head, align, *chosen)]


# --- the excerpts -------------------------------------------------------------------------------------------------


def small(board: str) -> str:
    """The README's table: the best methods and the controls of one table, with a line that says which table it is."""
    title, columns = SMALL
    section = fullest(board, title, columns)
    rows = section.tables[0]
    controls = sum(cells(row)[0].startswith("*") for row in rows[2:])
    line = f"*{section.title}*: best {BEST} of {len(rows) - 2 - controls}, all controls."
    sees = [column for column in ("sees",) if column in cells(rows[0])]
    return "\n".join([line, caveat(board), "", *selected(rows, (*sees, *columns), BEST)]) + "\n"


def caveat(board: str) -> str:
    """How far a board carries: of the quick suite, no verdict; of any other, its own."""
    suite = re.search(r"^Suite `([^`]+)`", board, flags=re.MULTILINE)
    if suite is None or suite[1] == "quick":
        return (
            "The quick suite has few examples and is a smoke test with numbers; the suite `standard` gives a verdict."
        )
    return f"What all tables of the suite `{suite[1]}` say together stands at the top of the board."


def ranks(board: str) -> str:
    """The overall ranks of three levels."""
    lines = []
    for level, name in OVERALL.items():
        lines += [f"{name}:", "", *sections(board, f"{level}\n")[0].tables[0], ""]
    return "\n".join(lines)


def tables(board: str) -> str:
    """Two whole tables."""
    count = len(re.findall(r"^### .*, n = \d+(?: \(n_eff \d+\))?$", board, flags=re.MULTILINE))
    lines = [f"Two of the {count} tables in full:", ""]
    for title, columns in WHOLE:
        lines += in_full(fullest(board, title, columns))
    return "\n".join(lines)


def uses(board: str) -> str:
    """A table of pruning and one of bias, and the tables of editing."""
    return "\n".join(
        line for name, title, columns in USES for line in in_full(fullest(board, title, columns), f"{name}: ")
    )


def speed_rows(stored: dict) -> str:
    """The pairs of ``benchmarks/speed.py``, and what of them was measured on a part alone."""
    rows = ["| pair | fast side | slow side | slow / fast |", "| --- | ---: | ---: | ---: |"]
    parts = []
    for pair in stored["pairs"]:
        fast, slow = pair["median"]["fast"], pair["median"]["slow"]
        ratios = [repeat["slow"] / repeat["fast"] for repeat in pair["repeats"]]
        spread = f"{pair['ratio_slow_to_fast']:.3g} ({min(ratios):.3g} to {max(ratios):.3g})"
        rows.append(f"| {pair['name']} | {fast:.3g} s | {slow:.3g} s | {spread} |")
        if (times := pair["slow_side_scaled_by"]) != 1:
            parts.append(
                f"Of *{pair['name']}*, the slow side was measured on {pair['copies_measured']} of {pair['heads']} "
                f"({slow / times:.3g} s), and multiplied by {times:g}."
            )
    about = (
        "Times are medians over repeats. The last column is the median of the ratios of the repeats, with the smallest "
        "and the largest, and so need not be the ratio of the two medians."
    )
    return "\n".join([*rows, "", " ".join([about, *parts])]) + "\n"


# --- the best method against the random control, in pairs ---------------------------------------------------------


def measured(record: Any, evaluation: str) -> Any:
    """What an evaluation measured in a cell; None where it was not asked for."""
    return record.measurements.get(evaluation)


def options(record: Any, evaluation: str) -> Any:
    """The options of one evaluation in a cell."""
    return record.settings.of(evaluation)


def difference(best: Any, control: Any, evaluation: str, *how: Any) -> str:
    """The difference of two cells on the same examples, with its interval."""
    compare = importlib.import_module(f"attriboard.measurements.{evaluation}").paired_difference
    value, *ends = compare(measured(best, evaluation), measured(control, evaluation), *how)
    low, high = ends if len(ends) == 2 else ends[0] or (None, None)
    text = f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    if low is not None and high is not None and low <= 0 <= high:
        text += ", so none is shown"
    return text.replace("-", "−")  # as on the board


def paired(records: Sequence[Any]) -> str:
    """What the best method gains over the random control on the same examples, of pruning and of bias.

    The best one is chosen on these very examples, which favors it.
    """
    lines = []
    curves = [
        r
        for r in records
        if measured(r, "pruning") and r.cell.level == "neurons" and not options(r, "pruning").recovery_steps
    ]
    for absolute, order in ((False, "lowest scores first"), (True, "scores nearest to zero first")):
        metric = f"pruning_accuracy_half{'_absolute' if absolute else ''}"
        best, control = best_and_control(curves, metric)
        kept, left = (r.aggregates[metric].value for r in (best, control))
        guessed = "" if best.chance is None else f", and guessing among the labels gives {best.chance:.2f}"
        lines.append(
            f"- Half of each layer's neurons removed, {order}: the best method that is no control, "
            f"`{best.cell.method_label}`, keeps an accuracy of {kept:.3f}, same-layer random {left:.3f}; difference "
            f"{difference(best, control, 'pruning', 0.5, absolute)}. {best_control(curves, metric)}{guessed}."
        )
    for factor, how in ((0.0, "removed"), (0.5, "weakened to one half")):
        biased = [r for r in records if measured(r, "bias") and options(r, "bias").factor == factor]
        best, control = best_and_control(biased, "bias_removed")
        gone, by_chance = (r.aggregates["bias_removed"].value for r in (best, control))
        lines.append(
            f"- Bias removed at a perplexity rise of at most 2 %, neurons {how}: the best method that is no control, "
            f"`{best.cell.method_label}`, removes {gone:.3f} of it, same-layer random {by_chance:.3f}; difference "
            f"{difference(best, control, 'bias')}. {best_control(biased, 'bias_removed')}."
        )
    return "\n".join(
        [
            "Paired on the same test examples, with 95 % bootstrap intervals. The best method is chosen on these very "
            "examples, which favors it:",
            "",
            *lines,
        ]
    )


def best_and_control(records: Sequence[Any], metric: str) -> tuple[Any, Any]:
    """The method with the highest value that is no control, and the control it is compared with."""
    (control,) = (r for r in records if r.cell.method == CONTROL)
    own = sorted((r for r in records if not r.control), key=lambda r: r.cell.method_label)
    return max(own, key=lambda r: r.aggregates[metric].value), control


def best_control(records: Sequence[Any], metric: str) -> str:
    """The control with the highest value, in words."""
    controls = sorted((r for r in records if r.control), key=lambda r: r.cell.method_label)
    best = max(controls, key=lambda r: r.aggregates[metric].value)
    return f"The best control, `{best.cell.method_label}`, has {best.aggregates[metric].value:.3f}"


# --- filling the pages --------------------------------------------------------------------------------------------


def replaced(text: str, name: str, middle: str) -> str:
    """The text with ``middle`` between the marks of this name."""
    before, after = f"<!-- {name} -->", f"<!-- /{name} -->"
    start = text.index(before) + len(before)
    return f"{text[:start]}\n\n{middle.strip()}\n\n{text[text.index(after, start) :]}"


def excerpts() -> dict[str, dict[str, str]]:
    """By page, what stands between its marks; what has no stored records is left out."""
    board = board_text(PUBLISHED)
    pages = {
        "README.md": {"board": small(board)},
        "docs/board.md": {"ranks": ranks(board), "tables": tables(board)},
        "docs/architecture.md": {"speed": speed_rows(json.loads(SPEED.read_text(encoding="utf-8")))},
    }
    if DOWNSTREAM.exists():
        records = [up_to_date(r) for r in Folder(DOWNSTREAM).read() if r.status == "ok"]
        pages["docs/downstream.md"] = {"paired": paired(records), "uses": uses(board_text(DOWNSTREAM))}
    return pages


def main() -> None:
    for name, parts in excerpts().items():
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        for mark, middle in parts.items():
            text = replaced(text, mark, middle)
        page.write_text(text, encoding="utf-8")
        print(f"filled {page}")


if __name__ == "__main__":
    main()
