"""Cells to records: what is done is skipped, what fails is recorded, and nothing finished is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigurationError
from ..files import reason
from ..records.processes import Maker
from ..records.record import Cell, Planned, Record
from ..records.store import Folder
from .claims import Claims
from .parts import Pair, pairs_of
from .stored import Ahead, Stored
from .work import Executor, Results, Work
from .worker import Worker
from .workers import Workers

PAUSE = 0.5
"""How long to wait, in seconds, before asking again whether another process is done."""


@dataclass
class Outcome:
    """What became of a run: records made now, cells done before, cells that another process ran meanwhile."""

    made: list[Record] = field(default_factory=list)
    done_before: int = 0
    elsewhere: int = 0

    @property
    def failed(self) -> list[Record]:
        return [r for r in self.made if r.status == "failed"]


def run_cells(
    suite: str,
    plan: Sequence[Planned],
    folder: Folder,
    force: bool = False,
    executor: str = "local",
    planned: Callable[[Sequence[Ahead]], None] = lambda ahead: None,
    started: Callable[[Cell], None] = lambda cell: None,
    finished: Callable[[Record], None] = lambda record: None,
    waiting: Callable[[Maker], None] = lambda maker: None,
    workers: int = 1,
) -> Outcome:
    """Runs what is not done and stores each record as soon as it exists, its scores before it.

    Other processes may run the same suite in the same folder: they share the work (:mod:`.claims`), and each returns
    when everything is done.

    Args:
        force: run everything again, scoring included.
        executor: "local" (this computer) or "ray" (cells become Ray tasks).
        planned: called once with the cells to run, in order; started, finished: called around each.
        waiting: called once with who else runs cells, where nothing else is left to do.
        workers: how many processes of this computer run cells; 1 for this process alone.

    Raises:
        ConfigurationError: the folder belongs to another suite, a record cannot be written, or there cannot be so
            many workers.
    """
    folder.claim(suite)
    stored = Stored.of(folder, again=force)
    todo = [asked for asked in plan if not stored.has(asked)]
    try:
        stored.note_current(suite, plan)
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder.path}: {error.strerror}; choose another --out.") from error
    planned(stored.ahead(todo))
    outcome = Outcome(done_before=len(plan) - len(todo))
    runs = _executor(executor, suite, stored, started, workers)
    with closing(_shared(pairs_of(todo), runs, stored, outcome, waiting)) as stream:
        for record, scores in stream:
            target = folder.path / record.filename
            try:
                if record.scores is not None and scores is not None:
                    target = folder.path / record.scores.file
                    folder.write_scores(record.scores.file, scores)
                target = folder.write(record)
                stored.note(record)
            except OSError as error:
                raise _not_written(target, error, outcome) from error
            outcome.made.append(record)
            finished(record)
    return outcome


def _not_written(target: Path, error: OSError, outcome: Outcome) -> ConfigurationError:
    return ConfigurationError(
        f"cannot write {target}: {reason(error)}; {len(outcome.made)} records made before it are safe. Make room and "
        f"run the same command again: it goes on from there."
    )


def _shared(
    pairs: Mapping[str, Pair], executor: Executor, stored: Stored, outcome: Outcome, waiting: Callable[[Maker], None]
) -> Results:
    """Runs what no other process has claimed, until everything is done by anyone."""
    claims = Claims(stored.folder.path)
    claims.clear()
    work = Work(dict(pairs), stored, claims)
    said = False
    try:
        while work.pairs:
            count = len(work.pairs)
            yield from executor.run(work)
            if len(work.pairs) == count:
                holder = claims.holder(next(iter(work.pairs)))
                if holder is not None and not said:
                    said = True
                    waiting(holder)
                time.sleep(PAUSE)
    finally:
        outcome.elsewhere = work.elsewhere
        executor.close()
        claims.close()


def _executor(name: str, suite: str, stored: Stored, started: Callable[[Cell], None], workers: int) -> Executor:
    if name == "ray":
        return _Ray(suite, stored, started)
    return Workers(suite, stored, started, workers) if workers > 1 else _Local(suite, stored, started)


@dataclass
class _Local(Executor):
    """Cells in this process, one after the other."""

    suite: str
    stored: Stored
    started: Callable[[Cell], None]
    worker: Worker = field(default_factory=Worker)

    def run(self, work: Work) -> Results:
        for name in list(work.pairs):
            pair = work.take(name)
            if pair is None:
                continue
            for planned in pair:
                self.started(planned.cell)
                yield self.worker.execute(self.suite, planned, self.stored.earlier(planned))
            work.give_back(name)


@dataclass
class _Ray(Executor):
    """Cells as Ray tasks, all at once."""

    suite: str
    stored: Stored
    started: Callable[[Cell], None]

    def run(self, work: Work) -> Results:
        from .ray import on_ray

        taken = {name: pair for name in list(work.pairs) if (pair := work.take(name)) is not None}
        if any(taken.values()):
            yield from on_ray(self.suite, [pair for pair in taken.values() if pair], self.stored, self.started)
        for name in taken:
            work.give_back(name)
