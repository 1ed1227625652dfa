"""Cells in several processes of this computer, which share its processors and its GPU.

What cells share (a model, the examples of a task, the baselines of a level) is kept in a process from one cell to the
next. So a process gets the cells of one task of one model after each other, and helps with those of another process
only when there is nothing else left. Processes are spawned, since CUDA cannot be used in a forked one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from ..errors import AttriboardError, ConfigurationError, check_range
from ..files import reason
from ..records.record import Cell, Record
from .parts import Pair, groups_of
from .remote import failed, include, included_files, packed, run_packed
from .stored import Stored
from .work import Executor, Results, Work
from .worker import Worker

PER_PROCESSOR = 4
"""How many processes there can be for each processor: more would only take memory and time from each other."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read, when they are loaded, to know how many threads they may start."""
SPAWN = get_context("spawn")


def check_workers(n: int) -> None:
    """Refuses a number of processes that this computer cannot run side by side.

    Raises:
        ConfigurationError: names it and its bounds.
    """
    check_range("--workers", n, 1, PER_PROCESSOR * (os.cpu_count() or 1))


@dataclass
class _Seat:
    """The place of one process, which is filled again when the process is lost.

    Attributes:
        ready: whether the process has said that it can run cells.
        name, left: the cells that share scores it has been given; the first of those left is being run.
        group, model: what it holds in memory, or will.
        helps: whether another process had this group before.
    """

    process: SpawnProcess | None = None
    pipe: Connection | None = None
    ready: bool = False
    name: str = ""
    left: Pair = field(default_factory=list)
    group: str = ""
    model: str = ""
    helps: bool = False

    def end(self, patience: float = 0) -> int:
        """Ends the process, which may end by itself for some seconds; returns its exit code, of a signal negative."""
        assert self.process is not None and self.pipe is not None
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.pipe.close()
        self.process, self.pipe, self.ready = None, None, False
        return code


class Workers(Executor):
    """Cells in ``n`` processes, each with its share of the threads.

    Raises:
        ConfigurationError: fewer than one process, or far more than there are processors.
    """

    def __init__(self, suite: str, stored: Stored, started: Callable[[Cell], None], n: int) -> None:
        check_workers(n)
        self.suite, self.stored, self.started = suite, stored, started
        self.seats = [_Seat() for _ in range(n)]
        self.threads = max(1, torch.get_num_threads() // n)

    def run(self, work: Work) -> Results:
        groups = groups_of(work.pairs)
        while True:
            for seat in self.seats:
                while not seat.left and (name := self._chosen(seat, groups, work)) is not None:
                    pair = work.take(name)
                    if pair:
                        seat.name, seat.left = name, pair
                        self._begin(seat)
                    elif pair is not None:
                        work.give_back(name)
            busy = [(seat, seat.pipe) for seat in self.seats if seat.left and seat.pipe is not None]
            if not busy:
                return
            spoken = connection.wait([pipe for _, pipe in busy])
            for seat, pipe in busy:
                if pipe in spoken:
                    yield from self._answer(seat, pipe, work)

    def close(self) -> None:
        """Ends all processes at once, whatever they are doing."""
        for seat in self.seats:
            if seat.process is not None:
                seat.process.kill()
        for seat in self.seats:
            if seat.process is not None:
                seat.end()

    def _chosen(self, seat: _Seat, groups: dict[str, list[str]], work: Work) -> str | None:
        """Takes the cells that suit a process best from what is to be handed out; None where there are none."""
        open_groups = [group for group, names in groups.items() if names]
        if not open_groups:
            return None
        if seat.group not in open_groups:
            others = [other for other in self.seats if other is not seat]
            held, models = {other.group for other in others}, {other.model for other in others if other.left}
            model = {group: work.pairs[groups[group][0]][0].cell.model for group in open_groups}
            nobodys = [group for group in open_groups if group not in held]
            if nobodys:
                seat.group = min(nobodys, key=lambda group: (model[group] != seat.model, model[group] in models))
            else:
                seat.group = max(open_groups, key=lambda group: len(groups[group]))
            seat.model, seat.helps = model[seat.group], not nobodys
        return groups[seat.group].pop(-1 if seat.helps else 0)

    def _begin(self, seat: _Seat) -> None:
        """Has a process run the first cell that it has left, as soon as it is there."""
        if seat.process is None:
            theirs, own = SPAWN.Pipe()
            arguments = (theirs, self.suite, len(self.seats), self.threads, included_files())
            seat.process, seat.pipe = SPAWN.Process(target=_serve, args=arguments), own
            try:
                with _environment(dict.fromkeys(THREADS, str(self.threads))), _without_interrupts():
                    seat.process.start()
            except OSError as error:
                seat.process = None
                raise ConfigurationError(
                    f"no more worker processes can be started ({reason(error)}); ask for fewer --workers."
                ) from error
            theirs.close()
        if seat.ready and seat.pipe is not None:
            planned = seat.left[0]
            self.started(planned.cell)
            with contextlib.suppress(OSError):  # it is gone: its pipe says so to whoever asks next
                seat.pipe.send(packed(planned, self.stored.earlier(planned)))

    def _answer(self, seat: _Seat, pipe: Connection, work: Work) -> Results:
        """What a process says: that it is ready, a record, or nothing more."""
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            yield self._lost(seat), None
        else:
            if not seat.ready:
                if message is not None:
                    raise ConfigurationError(message)
                seat.ready = True
                self._begin(seat)
                return
            text, scores = message
            yield Record.model_validate_json(text), scores
        seat.left = seat.left[1:]
        if seat.left:
            self._begin(seat)
        else:
            work.give_back(seat.name)

    def _lost(self, seat: _Seat) -> Record:
        """The record of the cell that a process which is gone was running.

        Raises:
            ConfigurationError: the process has ended by itself before it could run anything.
        """
        was_ready, code = seat.ready, seat.end(5)
        if not was_ready and code >= 0:
            raise ConfigurationError(
                f"a worker process ended with exit code {code} before it could run anything. In a program of your own, "
                f'put what calls run_cells under if __name__ == "__main__".'
            )
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; the memory may not be enough for so many workers" if code == -9 else ""
        planned = seat.left[0]
        why = f"its worker process {how}{hint}."
        return failed(self.suite, planned, self.stored.earlier(planned).record, why)


# --- in a worker process ------------------------------------------------------------------------------------------


def _serve(pipe: Connection, suite: str, workers: int, threads: int, included: Sequence[str]) -> None:
    """Runs the cells that come, one after the other, as long as the parent process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
    torch.set_num_threads(threads)
    try:
        include(included)
    except AttriboardError as error:
        pipe.send(str(error))
        return
    worker = Worker(workers)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        pipe.send(None)
        while True:
            pipe.send(run_packed(worker, suite, pipe.recv()))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


# --- starting them ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """While inside, the environment of this process, which those it starts inherit, has these changes."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """While inside, Ctrl-C waits; processes started inside never hear of it, so that they end without a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would take the mask away if it was started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
