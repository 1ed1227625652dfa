"""What is known of the records of a folder without reading them: one line for each in a file beside them.

A line holds of a record what a run must know to say whether it is done, with the size and times of the file it was read
from. A file whose size or times are others is read again, so the index can be deleted, cut short or out of date.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from ..files import regular_bytes
from ..measurements.registry import MEASUREMENTS
from ..records.record import SCHEMA, Record, digest
from ..records.store import cell_key

FILE = ".index.jsonl"


class Entry(NamedTuple):
    """What must be known of a record to say whether it is done; the rest stays on disk.

    Attributes:
        file: its name.
        suite, identity, status, created: as in the record.
        cell: see :func:`attriboard.records.store.cell_key`.
        stages: their identities by name.
        scores, scores_file: the identity of its scores and their file; empty where it has none.
    """

    file: str
    suite: str
    identity: str
    status: str
    created: str
    cell: str
    stages: dict[str, str]
    scores: str = ""
    scores_file: str = ""

    @classmethod
    def of(cls, record: Record, file: str) -> Entry:
        return cls(
            file=file,
            suite=intern(record.suite),
            identity=record.identity,
            status=intern(str(record.status)),
            created=record.provenance.created if record.provenance else "",
            cell=cell_key(record.suite, record.cell, record.settings),
            stages={intern(name): intern(stage.identity) for name, stage in record.stages.items()},
            scores=record.scores.identity if record.scores else "",
            scores_file=record.scores.file if record.scores else "",
        )


State = tuple[int, int, int]
"""Of a file: its size, and when its content and its entry in the folder last changed, in nanoseconds."""


def state_of(file: Path) -> State | None:
    """None where there is no such file."""
    try:
        facts = os.stat(file)
    except (OSError, ValueError):
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def load(folder: Path) -> dict[str, tuple[State, Entry]]:
    """By file name, what the index says; nothing where there is none, or it is of another version."""
    known: dict[str, tuple[State, Entry]] = {}
    alike: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}  # most records have the same stages
    try:
        lines = io.BytesIO(regular_bytes(folder / FILE))
    except (OSError, ValueError):
        return {}
    if lines.readline().rstrip(b"\n") != _head():
        return {}
    for line in lines:  # of which one can be cut short
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            size, changed, entered, fields = json.loads(line)
            entry = Entry(*fields)
            stages = alike.setdefault(tuple(entry.stages.items()), entry.stages)
            known[entry.file] = (
                (size, changed, entered),
                entry._replace(suite=intern(entry.suite), status=intern(entry.status), stages=stages),
            )
    return known


def write(folder: Path, entries: Iterable[tuple[State, Entry]]) -> None:
    """Writes the index anew; that it cannot be written is no fault, since it says nothing that is not known."""
    draft = folder / f"{FILE}.{os.getpid()}"
    try:
        with draft.open("wb") as file:
            file.write(_head() + b"\n")
            for state, entry in entries:
                file.write(_line(state, entry))
        os.replace(draft, folder / FILE)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()


def append(folder: Path, state: State, entry: Entry) -> None:
    """Adds a record that was just written, where there is an index."""
    with contextlib.suppress(OSError):
        handle = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, _line(state, entry))
        finally:
            os.close(handle)


def _line(state: State, entry: Entry) -> bytes:
    return json.dumps([*state, list(entry)], separators=(",", ":")).encode() + b"\n"


def _head() -> bytes:
    """What decides whether a record can be read: with another version everything is read again."""
    about: list[Any] = [SCHEMA, importlib.metadata.version("attriboard"), sorted(MEASUREMENTS)]
    return json.dumps(digest(about)).encode()
