"""``attriboard run --dry-run``: what a run would cost, on a device of a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .output import about, out

if TYPE_CHECKING:
    from ..records.record import Planned
    from ..records.store import Folder
    from ..run.devices import Device
    from ..run.estimate import Forecast

CELL_SECONDS = 0.5
"""What a cell takes however little it works, in stored records of the CPU."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        cells, done: how many there are, and how many of them are in the folder already.
        unknown: of those that are to be run, how many have a cost that is not known.
        flops, seconds: of those whose cost is known; ``memory``: the most that any of them holds, in bytes.
    """

    cells: int = 0
    done: int = 0
    unknown: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0

    def add(self, forecast: Forecast, device: Device) -> None:
        """Counts a cell that is to be run."""
        if forecast.estimate is None:
            self.unknown += 1
            return
        work = forecast.estimate.work(forecast.stages)
        self.flops += work.flops
        self.seconds += CELL_SECONDS + device.seconds(work.weight, forecast.estimate.layers_run(work))
        self.memory = max(self.memory, forecast.estimate.memory)

    def texts(self) -> tuple[str, str, str, str, str]:
        """Cells, done, TFLOP, GiB, time."""
        left = self.cells - self.done
        counts = (str(self.cells), str(self.done))
        if left and self.unknown == left:
            return (*counts, "unknown", "unknown", "unknown")
        least = "> " if self.unknown else ""
        if not left:
            return (*counts, "0", "", "nothing to do")
        return (*counts, least + _tera(self.flops), f"{self.memory / 2**30:.1f}", least + about(self.seconds))


def dry_run(plan: Sequence[Planned], suite: str, folder: Folder, force: bool, on: str) -> None:
    """Prints by model and level what a run would cost; runs nothing, loads no weights, writes nothing.

    Raises:
        UnknownNameError: no such device. ConfigurationError: the folder holds another suite's records.
    """
    from ..run.devices import NAMES, get_device
    from ..run.estimate import forecasts
    from ..run.stored import Stored

    if on not in NAMES:
        get_device(on, "float32")  # says so before anything takes time
    owner = folder.about().get("suite")
    if owner is not None:
        folder.check_owner(owner, suite)
    there = folder.path.is_dir()
    stored = Stored.of(folder, again=force, look=True) if there else Stored(folder)
    devices = {dtype: get_device(on, dtype) for dtype in {planned.settings.dtype for planned in plan}}
    rows: dict[tuple[str, str], Row] = {}
    whole = Row()
    for planned in plan:
        row = rows.setdefault((planned.cell.model, planned.cell.level), Row())
        for each in (row, whole):
            each.cells += 1
            each.done += stored.has(planned)
    reasons: dict[str, None] = {}
    for forecast in forecasts(stored.ahead(plan)):
        cell, settings = forecast.ahead.planned
        for each in (rows[cell.model, cell.level], whole):
            each.add(forecast, devices[settings.dtype])
        if forecast.estimate is None:
            reasons[forecast.why_not] = None
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("level", no_wrap=True)
    for column in ("cells", "done", "TFLOP", "peak GiB", f"time on {on}"):
        table.add_column(column, justify="right", no_wrap=True)
    for (model, level), row in rows.items():
        table.add_row(escape(model), level, *row.texts())
    table.add_row("total", "", *whole.texts())
    (out if out.is_terminal else Console(width=_WIDE)).print(table)
    for reason in reasons:
        out.print(f"unknown: {escape(reason)}", highlight=False)
    short = [device for device in devices.values() if whole.memory > device.memory]
    if short:
        out.print(
            f"{on} has {short[0].memory / 2**30:.0f} GiB, less than the {whole.memory / 2**30:.1f} GiB that a cell may "
            f"hold at its peak: lower batch_size.",
            highlight=False,
        )
    out.print("Estimates, of shapes alone: memory at most, time without loading models.", highlight=False)


_WIDE = 200
"""Columns of a table that is written to a file or pipe."""


def _tera(flops: float) -> str:
    value = flops / 1e12
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
