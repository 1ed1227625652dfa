"""Records of several folders on one board: which counts where they hold the same cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..measurements.speed import Speed
from ..records.record import Record, digest

Options = dict[str, dict[str, Any]]
"""By measurement, its options."""


@dataclass(frozen=True)
class Source:
    """A folder that a board is made of.

    Attributes:
        path: where it is.
        name: how the board calls it: the last part of its path, or the whole where two end alike.
        about: what its suite says of itself.
        foreign: by file name, why a file in it is no record.
        records: how many of its records stand on the board.
        passed_over: how many do not because another one of the same cell counts, be it of this folder or of another.
    """

    path: Path
    name: str
    about: dict[str, Any]
    foreign: dict[str, str]
    records: int
    passed_over: int


def named(paths: Sequence[Path]) -> list[str]:
    """How a board calls its folders.

    Raises:
        ConfigurationError: none is given, or one is given twice.
    """
    if not paths:
        raise ConfigurationError("a board needs a folder of records; give one or more.")
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved):
        if resolved.count(place) > 1:
            raise ConfigurationError(f"{path} is given twice; give every folder once.")
    last = [place.name for place in resolved]
    return [name if last.count(name) == 1 else str(path) for name, path in zip(last, paths)]


def one_per_cell(folders: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Of each folder, the records that count: one per cell, whatever folder and device it is of.

    Within a folder they are those of :func:`attriboard.records.store.newest`.

    It is the last made of those that ran through, and of others where none did. Two records of a cell stay only where
    they tell different things: they are of different suites, and the later one lacks a measurement of the other, or
    made it with other options; what scoring costs does not count as one. What examples are drawn, and the dtype,
    belong to the cell; the device does not.
    """
    if len(folders) == 1 and len({r.settings.device for r in folders[0]}) == 1:
        return [list(folders[0])]  # a folder holds one record per cell and device
    cells: dict[str, list[tuple[int, Record]]] = defaultdict(list)
    for at, records in enumerate(folders):
        for record in records:
            cells[_cell(record)].append((at, record))
    chosen: list[list[Record]] = [[] for _ in folders]
    for group in cells.values():
        counted: list[Record] = []
        for at, record in sorted(group, key=lambda found: _standing(found[1]), reverse=True):
            if not any(_says_all(other, record) for other in counted):
                counted.append(record)
                chosen[at].append(record)
    return [sorted(records, key=lambda r: r.filename) for records in chosen]


def _cell(record: Record) -> str:
    """Equal for records of one cell on the same examples drawn, of whatever suite and device."""
    cell, settings = record.cell, record.settings
    named = [cell.model_dump(exclude={"precomputed"}), cell.precomputed is not None]
    return digest([named, settings.drawing(), settings.dtype])


def _standing(record: Record) -> tuple[bool, str]:
    return record.status == "ok", record.provenance.created if record.provenance else ""


def _says_all(record: Record, other: Record) -> bool:
    """Whether a record says all that another one of its cell does."""
    if record.suite == other.suite:
        return True
    own, asked = options_of(record), options_of(other)
    return all(own.get(name) == options for name, options in asked.items() if name != Speed.name)


def options_of(record: Record) -> Options:
    """By measurement that a record holds, the options with which it was made."""
    return {name: record.settings.asked(name) for name in record.measurements}


def about_all(abouts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the suites of a board say of themselves: as one where there is one, which folders of it say last."""
    suites = {about.get("suite"): about for about in abouts if about}
    if len(suites) == 1:
        return next(iter(suites.values()))
    left_out = [sentence for about in suites.values() for sentence in about.get("not_run", [])]
    return {"suites": list(suites.values()), "not_run": left_out} if suites else {}
