"""Cells to records: what is done is skipped, what fails is recorded, and nothing finished is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import ConfigurationError
from ..records.record import Cell, Planned, Record
from ..records.store import Folder
from .identity import scoring_identity
from .stored import Pair, Stored
from .worker import Worker


@dataclass
class Outcome:
    """What became of a run: records made now, cells done before, and the cells that failed."""

    made: list[Record] = field(default_factory=list)
    done_before: int = 0

    @property
    def failed(self) -> list[Record]:
        return [r for r in self.made if r.status == "failed"]


def run_cells(
    suite: str,
    plan: Sequence[Planned],
    folder: Folder,
    force: bool = False,
    executor: str = "local",
    planned: Callable[[int], None] = lambda n: None,
    started: Callable[[Cell], None] = lambda cell: None,
    finished: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Runs what is not done and stores each record as soon as it exists, its scores before it.

    Args:
        force: run everything again, scoring included.
        executor: "local" (this process) or "ray" (cells become Ray tasks).
        planned: called once with the number of cells to run; started, finished: called around each.

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
    planned(len(todo))
    outcome = Outcome(done_before=len(plan) - len(todo))
    if executor == "ray":
        from .ray import on_ray

        stream = on_ray(suite, _pairs(todo), stored, started)
    else:
        stream = _local(suite, _pairs(todo), stored, started)
    for record, scores in stream:
        target = folder.path / record.filename
        try:
            if record.scores is not None and scores is not None:
                target = folder.path / record.scores.file
                folder.write_scores(record.scores.file, scores)
            target = folder.write(record)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {target}: {error.strerror}; {len(outcome.made)} records made "
                f"before it are safe. Make room and run the same command again: it goes on from there."
            ) from error
        outcome.made.append(record)
        finished(record)
    return outcome


def _pairs(plan: Sequence[Planned]) -> list[Pair]:
    """The cells that share their scores together, in the order of the first of each."""
    pairs: dict[str, Pair] = {}
    for planned in plan:
        pairs.setdefault(scoring_identity(*planned), []).append(planned)
    return list(pairs.values())


def _local(
    suite: str, pairs: Sequence[Pair], stored: Stored, started: Callable[[Cell], None]
) -> Iterator[tuple[Record, bytes | None]]:
    worker = Worker()
    for pair in pairs:
        for planned in pair:
            started(planned.cell)
            yield worker.execute(suite, planned, stored.earlier(planned))
