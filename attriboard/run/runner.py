"""Cells to records: what is done is skipped, what fails is recorded, and nothing finished is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigurationError
from ..files import reason
from ..records.processes import Maker
from ..records.record import Cell, Planned, Record
from ..records.store import Folder
from .claims import Claims
from .identity import scoring_identity
from .stored import Ahead, Pair, Stored
from .worker import Worker

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
) -> Outcome:
    """Runs what is not done and stores each record as soon as it exists, its scores before it.

    Other processes may run the same suite in the same folder: they share the work (:mod:`.claims`), and each returns
    when everything is done.

    Args:
        force: run everything again, scoring included.
        executor: "local" (this process) or "ray" (cells become Ray tasks).
        planned: called once with the cells to run, in order; started, finished: called around each.
        waiting: called once with who else runs cells, where nothing else is left to do.

    Raises:
        ConfigurationError: the folder belongs to another suite, or a record cannot be written.
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
    started_by = _Ray(suite, stored, started) if executor == "ray" else _Local(suite, stored, started)
    with closing(_shared(_pairs(todo), started_by, stored, outcome, waiting)) as stream:
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


def _pairs(plan: Sequence[Planned]) -> dict[str, Pair]:
    """The cells that share their scores together, by these scores' identity, in the order of the first of each."""
    pairs: dict[str, Pair] = {}
    for planned in plan:
        pairs.setdefault(scoring_identity(*planned), []).append(planned)
    return pairs


Results = Generator[tuple[Record, bytes | None], None, None]


def _shared(
    pairs: Mapping[str, Pair],
    executor: _Local | _Ray,
    stored: Stored,
    outcome: Outcome,
    waiting: Callable[[Maker], None],
) -> Results:
    """Runs what no other process has claimed, until everything is done by anyone."""
    claims = Claims(stored.folder.path)
    claims.clear()
    open_pairs = dict(pairs)
    said = False
    try:
        while open_pairs:
            count = len(open_pairs)
            for taken in executor.batches(open_pairs):
                free: list[Pair] = []
                for name in taken:
                    try:
                        mine = claims.take(name)
                    except OSError as error:
                        raise _not_written(stored.folder.path, error, outcome) from error
                    if mine:
                        pair = open_pairs.pop(name)
                        left = [planned for planned in pair if not stored.done_since(planned)]
                        outcome.elsewhere += len(pair) - len(left)
                        free += [left] if left else []
                if free:
                    yield from executor.run(free)
                for name in taken:
                    claims.give_back(name)
            if len(open_pairs) == count:
                holder = claims.holder(next(iter(open_pairs)))
                if holder is not None and not said:
                    said = True
                    waiting(holder)
                time.sleep(PAUSE)
    finally:
        claims.close()


@dataclass
class _Local:
    """Cells in this process, one after the other."""

    suite: str
    stored: Stored
    started: Callable[[Cell], None]
    worker: Worker = field(default_factory=Worker)

    def batches(self, names: Iterable[str]) -> list[list[str]]:
        """What is claimed together: cells that share scores."""
        return [[name] for name in names]

    def run(self, pairs: Sequence[Pair]) -> Results:
        for pair in pairs:
            for planned in pair:
                self.started(planned.cell)
                yield self.worker.execute(self.suite, planned, self.stored.earlier(planned))


@dataclass
class _Ray:
    """Cells as Ray tasks, all at once."""

    suite: str
    stored: Stored
    started: Callable[[Cell], None]

    def batches(self, names: Iterable[str]) -> list[list[str]]:
        return [list(names)]

    def run(self, pairs: Sequence[Pair]) -> Results:
        from .ray import on_ray

        yield from on_ray(self.suite, pairs, self.stored, self.started)
