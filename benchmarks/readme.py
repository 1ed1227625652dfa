"""Fills the README's excerpts from ``leaderboard.md`` and ``results/speed.json``; `make board` runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OVERALL = {"heads": "Attention heads", "neurons": "FFN neurons", "patches": "Image patches"}
TABLES = ("arithmetic, heads", "color_vqa, patches")


def section(board: str, title: str) -> tuple[str, list[str], str]:
    """A table's whole title, its rows, and the line about its examples."""
    part = re.split(rf"^### (?={re.escape(title)})", board, maxsplit=1, flags=re.MULTILINE)[1]
    part = re.split(r"^##", part, maxsplit=1, flags=re.MULTILINE)[0]
    lines = part.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = [lines[head]]
    for line in lines[head + 1 :]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return lines[0], rows, "\n".join(lines[1:head]).strip()


def excerpt(board: str) -> str:
    """The overall ranks of three levels, and two whole tables."""
    out = ["Mean relative rank over the tasks (0 = best of its table, 1 = last).", ""]
    for level, name in OVERALL.items():
        out += [f"{name}:", "", *section(board, f"{level}\n")[1], ""]
    count = len(re.findall(r"^### .*, n = \d+$", board, flags=re.MULTILINE))
    out += [f"Two of the {count} tables in full:", ""]
    for table in TABLES:
        title, rows, about = section(board, table)
        out += [f"**{title}.** {about}", "", *rows, ""]
    return "\n".join(out)


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
    speed = json.loads((ROOT / "results" / "speed.json").read_text())
    text = replaced(text, "(`make speed`, records in `results/`):", "## Licence", speed_rows(speed))
    readme.write_text(text)
    print(f"filled {readme}")


if __name__ == "__main__":
    main()
