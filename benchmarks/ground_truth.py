"""Fills the tables of ``docs/ground_truth.md`` from the records of the suite ``planted``.

`make planted` runs it.
"""

from __future__ import annotations

import runpy
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attriboard.levels import LEVELS
from attriboard.records.aggregate import up_to_date
from attriboard.records.record import Record
from attriboard.records.store import Folder
from attriboard.zoo.planted import MECHANISMS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ground_truth.md"
COLUMNS = tuple((mechanism, mechanism, "truth_auroc") for mechanism in MECHANISMS)
"""Mechanism, column head and metric."""
SUPPRESSORS = ("suppressor", "suppressors of suppressor", "suppressor_auroc")


def tables(records: Sequence[Record]) -> str:
    """A table for each level: AUROC by method and mechanism, the mean over the models that have the mechanism.

    Where models differ, the smallest and the largest stand behind the mean.
    """
    values: dict[str, dict[tuple[str, str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    controls = {r.cell.method_label for r in records if r.control}
    for r in records:
        for metric in ("truth_auroc", "suppressor_auroc"):
            if metric in r.aggregates:
                mechanism = r.cell.task.removeprefix("planted_")
                values[r.cell.level][r.cell.method_label, mechanism, metric].append(r.aggregates[metric].value)
    lines = []
    for level in (level for level in LEVELS if level in values):
        cells = values[level]
        shown = [c for c in (*COLUMNS, SUPPRESSORS) if any((m, metric) == (c[0], c[2]) for _, m, metric in cells)]
        rows = {
            method: [cells.get((method, mechanism, metric), []) for mechanism, _, metric in shown]
            for method in dict.fromkeys(method for method, _, _ in cells)
        }
        order = sorted(rows, key=lambda m: (-float(np.mean([np.mean(cell) for cell in rows[m] if cell])), m))
        lines += [f"**{level}**", "", f"| method | {' | '.join(title for _, title, _ in shown)} |"]
        lines += ["| --- |" + " ---: |" * len(shown)]
        for method in order:
            name = f"*{method}*" if method in controls else method
            lines.append(f"| {name} | {' | '.join(map(_cell, rows[method]))} |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    same = f"{low:.2f}" == f"{high:.2f}"
    return f"{np.mean(values):.2f}" if same else f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "planted"
    records = [up_to_date(r) for r in Folder(folder).read() if r.status == "ok"]
    replaced = runpy.run_path(str(Path(__file__).with_name("readme.py")))["replaced"]
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), "tables", tables(records)))
    print(f"filled {PAGE}")


if __name__ == "__main__":
    main()
