"""Progress of a run: a bar with the time left on a terminal, elsewhere one line per finished cell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from .output import about, err

if TYPE_CHECKING:
    from ..records.record import Cell, Record
    from ..run.stored import Ahead


SELDOM = 50
"""How many times longer than adding it up takes, what is left stands."""


class Clock:
    """What is left of a run, told by its work: feeds :class:`attriboard.run.time_left.TimeLeft` with what is finished.

    Args:
        ahead: the cells to run.
        workers: how many run at a time; None where nobody knows: it is then seen from what is finished in what time.
        now: the clock, in seconds.
    """

    def __init__(self, ahead: Sequence[Ahead], workers: int | None = 1, now: Any = time.monotonic) -> None:
        from ..run.estimate import forecasts, pieces
        from ..run.identity import record_identity
        from ..run.time_left import TimeLeft

        self._ahead, self._workers, self._now = ahead, workers, now
        self._places = {record_identity(*cell.planned): place for place, cell in enumerate(ahead)}
        self._left = TimeLeft(pieces(forecasts(ahead, network=False)))
        self._begun: dict[str, float] = {}
        self._start = self._last = now()
        self._took = self._adding = 0.0
        self._open = len(ahead)
        self._said: float | None = None
        self.share = 0.0

    def started(self, cell: Cell) -> None:
        """A cell begins."""
        self._begun[repr(cell)] = self._now()

    def finished(self, record: Record) -> None:
        """A cell is done: what each of its stages took, and what is left of the time that it took in all."""
        from ..run.estimate import REST

        now = self._now()
        alone = len(self._begun) == 1
        begun = self._begun.pop(repr(record.cell), None)
        place = self._places.get(record.identity)
        if place is None:
            return
        stages = self._ahead[place].stages
        seconds = {name: record.stages[name].seconds for name in stages if name in record.stages}
        for name in stages:
            if name in seconds:
                self._left.finished((place, name), seconds[name])
            else:  # it failed or was skipped before
                self._left.gone((place, name))
        took = sum(seconds.values())
        if begun is not None and alone:
            self._left.finished((place, REST), now - begun - took)
        else:
            self._left.gone((place, REST))
        self._took += took
        self._open -= 1
        # of very many cells, what is left takes long to add up
        if not self._open or now - self._last >= SELDOM * self._adding:
            self._said, self._last = self._left.left(self._at_work(now)), now
            self.share = self._left.share
            self._adding = self._now() - now

    def left(self) -> float | None:
        """Seconds until everything is done, as far as is known now; None before anything is."""
        return None if self._said is None else max(0.0, self._said - (self._now() - self._last))

    def _at_work(self, now: float) -> int:
        if self._workers is not None:
            return self._workers
        return max(1, round(self._took / max(1e-9, now - self._start)))


@contextmanager
def progress_of_cells(workers: int | None = 1) -> Iterator[tuple[Any, Any, Any]]:
    """What a run calls with the cells ahead, with each cell that starts, and with each finished record.

    Args:
        workers: how many cells run at a time; None where nobody knows.
    """
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    clock: Clock | None = None

    class Left(ProgressColumn):
        """The time left."""

        max_refresh = 1.0

        def render(self, task: Any) -> Text:
            left = None if clock is None else clock.left()
            return Text("" if left is None else f"about {about(left)} left")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[cells]} cells"),
        TimeElapsedColumn(),
        Left(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=None, cells="no")
        total = count = 0

        def planned(ahead: Sequence[Ahead]) -> None:
            nonlocal total, clock
            total = len(ahead)
            clock = Clock(ahead, workers)
            bar.update(task, total=1.0, cells=f"0/{total}")

        def started(cell: Cell) -> None:
            if clock is not None:
                clock.started(cell)
            bar.update(task, description=escape(f"{cell.task_label} / {cell.level} / {cell.method_label}"))

        def finished(record: Record) -> None:
            nonlocal count
            count += 1
            left = None
            if clock is not None:
                clock.finished(record)
                left = clock.left()
                bar.update(task, completed=clock.share, cells=f"{count}/{total}")
            if not err.is_terminal:
                seconds = sum(record.seconds.values())
                more = f", about {about(left)} left" if left is not None and count < total else ""
                line = f"[{count}/{total}] {record.status} {record.cell} ({seconds:.1f} s){more}"
                err.print(line, highlight=False, markup=False)

        yield planned, started, finished
