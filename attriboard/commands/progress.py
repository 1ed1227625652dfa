"""Progress of a run: a bar with the time left on a terminal, elsewhere one line per finished cell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .output import err

if TYPE_CHECKING:
    from ..records.record import Cell, Record


@contextmanager
def progress_of_cells() -> Iterator[tuple[Any, Any, Any]]:
    """What a run calls with the number of cells ahead, with each cell that starts, and with each finished record."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, speed_estimate_period=600) as bar:
        task = bar.add_task("starting", total=None)
        total = count = 0

        def planned(n: int) -> None:
            nonlocal total
            total = n
            bar.update(task, total=n)

        def started(cell: Cell) -> None:
            bar.update(task, description=escape(f"{cell.task_label} / {cell.level} / {cell.method_label}"))

        def finished(record: Record) -> None:
            nonlocal count
            count += 1
            bar.advance(task)
            if not err.is_terminal:
                seconds = sum(record.seconds.values())
                err.print(
                    f"[{count}/{total}] {record.status} {record.cell} ({seconds:.1f} s)", highlight=False, markup=False
                )

        yield planned, started, finished
