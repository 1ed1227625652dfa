"""What records hold as PNG files: curves, pruning, bias, agreement of scores, and maps of pictures.

Imported when figures are asked for: no other module of the board needs matplotlib.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from ..levels import INPUTS
from ..measurements.bias import LARGEST_RISE, Bias
from ..measurements.faithfulness import Faithfulness
from ..measurements.localization import Localization
from ..measurements.pruning import Pruning
from ..stats.intervals import Array
from .agreement import Overlap, between_methods
from .board import Board, Table
from .heatmaps import SheetRow, contact_sheet
from .wording import short

CURVES = ("top k by absolute score kept", "top k by signed score replaced")
INPUT_CURVES = ("insertion: top k kept", "deletion: top k replaced")


def draw(board: Board, out: Path) -> list[Path]:
    """What the records hold as PNG files; returns their paths.

    Of every table curves, pruning, bias, agreement of scores between methods and maps of pictures; of every level the
    agreement of scores between tasks.

    Raises:
        OSError: a file cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = []
    stems = ["".join(ch if ch.isalnum() or ch in "._" else "-" for ch in table.title) for table in board.tables]
    for i, (table, stem) in enumerate(zip(board.tables, stems)):
        if before := stems[:i].count(stem):  # tables that differ in settings that the title does not name
            stem = f"{stem}-{before + 1}"
        for kind, figure in (
            ("", curves(table)),
            (".pruning", pruning(table)),
            (".bias", bias(table)),
            (".agreement", agreement(table)),
        ):
            if figure is not None:
                figure.suptitle(table.title)
                files.append(out / f"{stem}{kind}.png")
                figure.savefig(files[-1], dpi=120)
        columns, rows = _sheet(table)
        if rows:
            files.append(out / f"{stem}.maps.png")
            shown = f", the first {len(rows)}" if len(rows) < len(table.records[0].items) else ""
            contact_sheet(columns, rows, table.title + shown, files[-1])
    overlaps = board.overlaps()
    for level in dict.fromkeys(o.level for o in overlaps):
        files.append(out / f"{level}.tasks.png")
        _tasks([o for o in overlaps if o.level == level]).savefig(files[-1], dpi=120)
    return files


def curves(table: Table) -> Figure | None:
    """Faithfulness over k, or over the share of positions; None where no record has it."""
    inputs = table.level in INPUTS
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for i, record in enumerate(table.records):
        faithfulness, localization = record.measured(Faithfulness), record.measured(Localization)
        if localization is not None:
            lines = [localization.curve(kind) for kind in ("insertion", "deletion")]
        elif faithfulness is not None:
            index = np.arange(faithfulness.n)
            sizes: Array = np.array(faithfulness.sizes)
            both = (faithfulness.absolute, faithfulness.removed)
            lines = [(sizes, faithfulness.curve(values, index)) for values in both]
        else:
            continue
        style: dict[str, Any] = {"linestyle": ":" if record.control else "-", "color": _color(i)}
        for axis, (x, y) in zip(axes, lines):
            axis.plot(x, y, linewidth=1.2, marker=".", markersize=4, label=record.cell.method_label, **style)
    if not axes[0].lines:
        return None
    for axis, name in zip(axes, INPUT_CURVES if inputs else CURVES):
        axis.set(ylabel="f" if inputs else "faithfulness f", title=name)
        axis.set(xlabel="share of positions") if inputs else axis.set(xscale="log", xlabel="components k")
        axis.axhline(0, color="0.8", linewidth=0.8)
        axis.axhline(1, color="0.8", linewidth=0.8)
    _legend_beside(axes[1])
    return figure


def pruning(table: Table) -> Figure | None:
    """Accuracy against the share removed, a color for each method; None where no record has it."""
    measured = [(r, p) for r in table.records if (p := r.measured(Pruning)) is not None]
    if not measured:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for i, (record, own) in enumerate(measured):
        every = np.arange(own.n)
        for absolute, style in ((False, "-"), (True, "--")):
            label = None if absolute else record.cell.method_label
            axis.plot([0, *own.sparsities], own.accuracy(every, absolute), style, color=_color(i), label=label)
    if (chance := table.records[0].chance) is not None:
        axis.axhline(chance, color="0.5", linestyle=":", linewidth=0.8, label="chance")
    axis.set(xlabel=f"share of {table.level} removed", ylabel="accuracy")
    axis.set_title("solid: lowest scores first; dashed: lowest |score| first", fontsize=9)
    _legend_beside(axis)
    return figure


def bias(table: Table) -> Figure | None:
    """Bias left against the rise of perplexity, a line over k for each method; None where no record has it."""
    measured = [(r, b) for r in table.records if (b := r.measured(Bias)) is not None]
    if not measured:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for i, (record, own) in enumerate(measured):
        rises = 100 * np.array([0.0, *own.perplexity_rises()])
        left = 100 * np.abs([own.test, *own.test_removed]).mean(1) / np.abs(own.test).mean()
        axis.plot(rises, left, color=_color(i), marker=".", label=record.cell.method_label)
        if (at := own.chosen()) is not None:
            axis.plot(rises[at + 1], left[at + 1], color=_color(i), marker="o", fillstyle="none", markersize=10)
    axis.axvline(100 * LARGEST_RISE, color="0.5", linestyle=":", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="rise of perplexity, %", ylabel="bias left, %")
    first = measured[0][1]  # one table has one set of options
    how = "removed" if first.factor == 0 else f"scaled by {first.factor:g}"
    axis.set_title(f"k = {', '.join(map(str, first.sizes))} {how}; circle: chosen on train examples", fontsize=9)
    _legend_beside(axis)
    return figure


def agreement(table: Table) -> Figure | None:
    """The rank correlation of every two methods' scores; None where fewer than two records have a sketch."""
    records, matrix = between_methods(table.records)
    if not records:
        return None
    labels = [r.cell.method_label for r in records]
    side = 2.5 + 0.4 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    _heat(axis, matrix, labels, labels, [[short(value) for value in row] for row in matrix])
    axis.set_title("rank correlation of scores", fontsize=9)
    return figure


def _tasks(overlaps: Sequence[Overlap]) -> Figure:
    """Methods by pairs of tasks: rank correlation of scores (color, first number) and share of the top in common.

    Means over models and seeds.
    """
    methods = list(dict.fromkeys(o.method for o in sorted(overlaps, key=lambda o: (o.control, o.method))))
    pairs = list(dict.fromkeys((o.first, o.second) for o in sorted(overlaps, key=lambda o: (o.first, o.second))))
    matrix = np.full((len(methods), len(pairs)), np.nan)
    texts = [[""] * len(pairs) for _ in methods]
    for i, method in enumerate(methods):
        for j, pair in enumerate(pairs):
            own = [o for o in overlaps if o.method == method and (o.first, o.second) == pair]
            known = [o.correlation for o in own if o.correlation is not None]
            if known:
                matrix[i, j] = np.mean(known)
            if own:
                texts[i][j] = f"{short(matrix[i, j])}\n{100 * np.mean([o.shared for o in own]):.0f} %"
    figure = Figure(figsize=(4 + 0.9 * len(pairs), 3 + 0.45 * len(methods)), layout="constrained")
    axis = figure.subplots()
    _heat(axis, matrix, [f"{a} - {b}" for a, b in pairs], methods, texts)
    figure.suptitle(f"{overlaps[0].level}: one method on two tasks")
    axis.set_title("rank correlation of scores; share of the top 20 in common", fontsize=9)
    return figure


def _heat(axis: Any, matrix: Any, columns: Sequence[str], rows: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    """Correlations as colors, with a text in each field."""
    axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(rows)), rows, fontsize=7)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            strong = np.isfinite(matrix[i][j]) and abs(matrix[i][j]) > 0.6
            axis.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if strong else "black")


def _color(i: int) -> Any:
    return colormaps["tab20"]((2 * i + i // 10) % 20)  # the ten strong colors first, then their pale ones


def _legend_beside(axis: Any) -> None:
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _sheet(table: Table) -> tuple[list[str], list[SheetRow]]:
    """A table's contact sheet, heads and rows: the pictures that its records hold; no rows but for patches."""
    measured = [
        (r.cell.method_label, own)
        for r in table.records
        if (own := r.measured(Localization)) is not None and own.grid is not None
    ]
    rows = []
    for examples in zip(*(own.examples for _, own in measured)):
        if examples[0].picture:
            picture = Image.open(io.BytesIO(base64.b64decode(examples[0].picture)))
            maps = tuple(own.score_map(example) for (_, own), example in zip(measured, examples))
            label = f"{examples[0].answer.strip()}\np = {examples[0].probability:.3f}"
            rows.append(SheetRow(label, picture, maps))
    return [label for label, _ in measured], rows
