"""Fills the README's excerpts from the boards and ``results/speed.json``; `make board` runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from attriboard.evaluation import bias as preference
from attriboard.evaluation import pruning
from attriboard.records.record import Record
from attriboard.records.store import Folder

ROOT = Path(__file__).resolve().parent.parent
OVERALL = {"heads": "Attention heads", "neurons": "FFN neurons", "patches": "Image patches"}
TABLES = (("arithmetic, heads", "S"), ("color_vqa, patches", "insertion"))
"""What is shown in full: the beginning of a table's title, and a column that it has."""
ACTING = (
    ("Pruning", "arithmetic, neurons", ("accuracy area",)),
    ("Bias", "gender_bias, neurons", ("bias removed",)),
    ("Editing", "arithmetic, neurons", ("suppress: locality", "boost: locality", "rewrite: locality")),
)
"""The same of the suite ``acting``; a kind of edit is a table of its own below the same title."""
ACTING_MARKS = ("<!-- acting -->", "<!-- /acting -->")


class Section(NamedTuple):
    """A part of the board: its whole title, the line about its examples, and the rows of its tables."""

    title: str
    about: str
    tables: list[list[str]]

    def having(self, columns: Sequence[str]) -> list[list[str]]:
        """The tables that have one of these columns."""
        return [rows for rows in self.tables if set(columns) & {cell.strip() for cell in rows[0].split("|")}]


def sections(board: str, title: str) -> list[Section]:
    """The sections of a board whose titles begin so, in the board's order."""
    found = []
    for part in re.split(r"^### ", board, flags=re.MULTILINE)[1:]:
        if part.startswith(title):
            text = re.split(r"^##", part, maxsplit=1, flags=re.MULTILINE)[0]
            head, *paragraphs = text.strip().split("\n\n")
            tables = [paragraph.splitlines() for paragraph in paragraphs if paragraph.startswith("|")]
            about = "\n".join(paragraph for paragraph in paragraphs if not paragraph.startswith("|"))
            found.append(Section(head, about, tables))
    return found


def fullest(board: str, title: str, columns: Sequence[str]) -> Section:
    """Of the sections with this title, the one whose tables with these columns have most rows, and only those tables.

    Raises:
        LookupError: the board has none.
    """
    having = [found._replace(tables=found.having(columns)) for found in sections(board, title)]
    having = [found for found in having if found.tables]
    if not having:
        raise LookupError(f"the board has no table {title!r} with a column {' or '.join(map(repr, columns))}.")
    return max(having, key=lambda found: len(found.tables[0]))


def shown(section: Section, name: str = "") -> list[str]:
    """The lines of a section in the README."""
    lines = [f"**{name}{section.title}.** {section.about}", ""]
    for rows in section.tables:
        lines += [*rows, ""]
    return lines


def excerpt(board: str) -> str:
    """The overall ranks of three levels, and two whole tables."""
    out = ["Mean relative rank over the tasks (0 = best of its table, 1 = last).", ""]
    for level, name in OVERALL.items():
        out += [f"{name}:", "", *sections(board, f"{level}\n")[0].tables[0], ""]
    count = len(re.findall(r"^### .*, n = \d+$", board, flags=re.MULTILINE))
    out += [f"Two of the {count} tables in full:", ""]
    for title, column in TABLES:
        out += shown(fullest(board, title, (column,)))
    return "\n".join(out)


def acting_excerpt(board: str) -> str:
    """A table of pruning and one of bias, and the tables of editing."""
    return "\n".join(
        line for name, title, columns in ACTING for line in shown(fullest(board, title, columns), f"{name}: ")
    )


RANDOM = "random_same_layer"


def paired(records: Sequence[Record]) -> str:
    """What the best method gains over the random control on the same examples, of pruning and of bias.

    The best one is chosen on these very examples, which favors it.
    """
    lines = []
    curves = [
        r for r in records if r.measurements["pruning"] is not None and r.cell.level == "neurons" and not r.settings.recovery_steps
    ]
    for absolute, order in ((False, "lowest scores first"), (True, "scores nearest to zero first")):
        suffix = "_absolute" if absolute else ""
        best, control = _best_and_control(curves, f"pruning_accuracy_half{suffix}")
        assert best.pruning is not None and control.pruning is not None  # as chosen above
        gain = pruning.paired_difference(best.pruning, control.pruning, 0.5, absolute)
        kept, left = (r.aggregates[f"pruning_accuracy_half{suffix}"].value for r in (best, control))
        lines.append(
            f"- Half of each layer's neurons removed, {order}: the best method, `{best.cell.method_label}`, keeps an "
            f"accuracy of {kept:.3f}, same-layer random {left:.3f}; difference {_interval(gain)}."
        )
    for factor, how in ((0.0, "removed"), (0.5, "weakened to one half")):
        biased = [r for r in records if r.measurements["bias"] is not None and r.settings.suppress_factor == factor]
        best, control = _best_and_control(biased, "bias_removed")
        assert best.preference is not None and control.preference is not None
        value, ends = preference.paired_difference(best.preference, control.preference)
        difference = _interval((value, *(ends or (None, None))))
        gone, by_chance = (r.aggregates["bias_removed"].value for r in (best, control))
        lines.append(
            f"- Bias removed at a perplexity rise of at most 2 %, neurons {how}: the best method, "
            f"`{best.cell.method_label}`, removes {gone:.3f} of it, same-layer random {by_chance:.3f}; difference "
            f"{difference}."
        )
    return "\n".join(
        ["Paired on the same test examples, with 95 % bootstrap intervals; best among these very examples:", "", *lines]
    )


def _best_and_control(records: Sequence[Record], metric: str) -> tuple[Record, Record]:
    (control,) = (r for r in records if r.cell.method == RANDOM)
    own = sorted((r for r in records if not r.control), key=lambda r: r.cell.method_label)
    return max(own, key=lambda r: r.aggregates[metric].value), control


def _interval(found: tuple[float, float | None, float | None]) -> str:
    value, low, high = found
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def speed_rows(stored: dict) -> str:
    """The pairs of ``benchmarks/speed.py``."""
    rows = ["| pair | fast side | slow side | slow / fast |", "| --- | ---: | ---: | ---: |"]
    for pair in stored["pairs"]:
        fast, slow = pair["median"]["fast"], pair["median"]["slow"]
        rows.append(f"| {pair['name']} | {fast:.3g} s | {slow:.3g} s | {pair['ratio_slow_to_fast']:.3g} |")
    return "\n".join(rows) + "\n"


def replaced(text: str, before: str, after: str, middle: str) -> str:
    """The text with ``middle`` between the two markers."""
    start = text.index(before) + len(before)
    return f"{text[:start]}\n\n{middle}\n{text[text.index(after, start) :]}"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    text = replaced(
        text, "## The board, as it came out", "Every method's map", excerpt((ROOT / "leaderboard.md").read_text())
    )
    acting = ROOT / "results" / "acting" / "leaderboard.md"
    if acting.exists():
        records = [r for r in Folder(acting.parent).read() if r.status == "ok"]
        text = replaced(text, *ACTING_MARKS, f"{paired(records)}\n\n{acting_excerpt(acting.read_text())}")
    speed = json.loads((ROOT / "results" / "speed.json").read_text())
    text = replaced(text, "(`make speed`, records in `results/`):", "## Licence", speed_rows(speed))
    readme.write_text(text)
    print(f"filled {readme}")


if __name__ == "__main__":
    main()
