"""The folder of a run: records as JSON, scores as safetensors beside them.

A record's file name ends in a hash of what determines its result, so a rerun finds what is done; large ones are
compressed (``.json.gz``). Files are written to a temporary name and renamed; files that are not records are named and
left alone.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigurationError, UnknownNameError
from ..files import NotRegularError, is_folder, kind_of, parse_json, reason, regular_bytes, unpacked
from .aggregate import derived_again, is_current
from .processes import Maker, this_process
from .record import Aggregate, Cell, Record, digest
from .settings import Settings

MARKER = "suite.json"
DRAFT = ".draft-"
DRAFT_DAYS = 1.0
"""After how many days a draft of another computer's process is cleared."""
MARKER_BYTES = 2**24
RECORD_BYTES = 2**28
"""The largest record read."""
PACKED_BYTES = 2**16
"""Records of more bytes are compressed when they are written."""
SUFFIXES = (".json", ".json.gz")
"""How the names of records end."""


Reader = Callable[[Record], Record | None]


@dataclass
class Folder:
    """Records on disk.

    Attributes:
        path: the folder.
        foreign: by file name, why a JSON file in it is not a record.
        unknown: those of them that are records with an evaluation that is not known here.
        set_aside: how many records :meth:`current` left out.
    """

    path: Path
    foreign: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    set_aside: int = 0

    def claim(self, suite: str, **about: Any) -> None:
        """Makes the folder a suite's own; ``about`` is kept beside its name, for the board.

        Raises:
            ConfigurationError: it belongs to another suite, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the folder {self.path}: {error.strerror}; choose another --out."
            ) from error
        self.clear_drafts()
        marker = self.path / MARKER
        there = kind_of(marker) != "missing"
        if there and not self.about().get("suite"):
            raise ConfigurationError(f"{marker} cannot be read as JSON with a suite's name; delete it and run again.")
        owners = {self.about().get("suite")} if there else {r.suite for r in self.records()}
        for owner in owners:
            self.check_owner(owner, suite)
        if about or not there:
            try:
                kept = {"current": current} if (current := self.about().get("current")) else {}
                self._write(marker, json.dumps({"suite": suite, **about, **kept}, indent=1) + "\n")
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write into {self.path}: {error.strerror}; choose another --out."
                ) from error

    def check_owner(self, owner: str | None, suite: str) -> None:
        """Raises ConfigurationError where a folder whose records are of suite ``owner`` is to hold another suite's."""
        if owner != suite:
            raise ConfigurationError(
                f"{self.path} holds the records of suite {owner!r}, not {suite!r}; choose another --out."
            )

    def about(self) -> dict[str, Any]:
        """What :meth:`claim` kept; empty where there is nothing readable."""
        try:
            about = parse_json(regular_bytes(self.path / MARKER, MARKER_BYTES))
        except (ValueError, OSError):
            return {}
        return about if isinstance(about, dict) else {}

    def read_scores(self, record: Record) -> bytes | None:
        """The file of a record's scores; None where it is not there, or not what the record says."""
        if record.scores is None:
            return None
        try:
            content = regular_bytes(self.path / record.scores.file)
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == record.scores.sha256 else None

    def refresh(self) -> tuple[list[Record], int]:
        """Derives the aggregates of every record again; those that come out as they are stored are left alone.

        Returns:
            the records that changed, as they are now stored, and how many there are in all.

        Raises:
            ConfigurationError: no such folder, or a record cannot be written.
        """
        records = self.read()
        changed = []
        for record in records:
            new = derived_again(record)
            if _as_text(new.aggregates) == _as_text(record.aggregates) and is_current(record):
                continue
            try:
                self.write(new)
            except OSError as error:
                raise ConfigurationError(f"cannot write {self.path / record.filename}: {error.strerror}.") from error
            changed.append(new)
        return changed, len(records)

    def write_scores(self, file: str, content: bytes) -> None:
        """Stores a score file under its name, whole or not at all; one that is there already is left alone.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        target = self.path / file
        with contextlib.suppress(OSError):
            if regular_bytes(target) == content:
                return
        target.parent.mkdir(parents=True, exist_ok=True)
        self._write(target, content)

    def write(self, record: Record) -> Path:
        """Stores a record under its name, whole or not at all.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        text = json.dumps(record.model_dump(mode="json"), indent=None, separators=(",", ":")) + "\n"
        plain, packed = (self.path / f"{record.filename}{end}" for end in ("", ".gz"))
        target, other = (packed, plain) if len(text) > PACKED_BYTES else (plain, packed)
        # without the time of writing, equal records give equal bytes
        self._write(target, gzip.compress(text.encode(), mtime=0) if target == packed else text)
        other.unlink(missing_ok=True)
        return target

    def file_of(self, name: str) -> Path:
        """Where the record of a name (:func:`.record.filename`) stands, compressed or not; as it is, if nowhere."""
        packed = self.path / f"{name}.gz"
        return packed if not (self.path / name).exists() and packed.exists() else self.path / name

    def _write(self, target: Path, content: str | bytes) -> None:
        maker = this_process()
        prefix = f"{DRAFT}{maker.host}-{maker.pid}-"  # so that it can be cleared once its process is dead
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)
            os.replace(draft, target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def clear_drafts(self) -> None:
        """Removes the drafts of processes that died while they wrote.

        Of processes on other computers it cannot be seen whether they run: their drafts go after :data:`DRAFT_DAYS`.
        """
        for folder in (self.path, self.path / "scores", self.path / "scores" / "large"):
            for draft in folder.glob(f"{DRAFT}*.tmp"):
                named = re.fullmatch(rf"{re.escape(DRAFT)}([\w.]+)-(\d{{1,9}})-.*", draft.name)
                alive = Maker(named[1], int(named[2]), 0).alive() if named else None
                with contextlib.suppress(OSError):
                    if alive is None:
                        alive = time.time() - draft.stat().st_mtime < DRAFT_DAYS * 86400
                    if not alive:
                        draft.unlink()

    def read(self) -> list[Record]:
        """Every record in the folder, by file name; see :meth:`records`."""
        return list(self.records())

    def current(self, reader: Reader | None = None) -> list[Record]:
        """The records, without those that a later run found to be of other code, weights or scores than its own.

        As a rule the last made of several records of one cell is the one that counts; where a method is put back to
        what it was, it is the one made before, which :meth:`remember` has noted.

        Args:
            reader: what is kept of each record that is read from a file; None to leave it out.
        """
        noted = self.about().get("current")
        noted = noted if isinstance(noted, dict) else {}
        current = []
        self.set_aside = 0
        for r in self.records():
            if noted and noted.get(cell_key(r.suite, r.cell, r.settings), r.identity) != r.identity:
                self.set_aside += 1
            elif (kept := r if reader is None else reader(r)) is not None:
                current.append(kept)
        return current

    def filled(self, reader: Reader | None = None) -> list[Record]:
        """The :meth:`current` records, of which there must be one.

        Raises:
            ConfigurationError: no such folder, or not one record in it that can be read; says what is there instead.
        """
        records = self.current(reader)
        if not records and self.unknown:
            file, why = next(iter(self.unknown.items()))
            raise ConfigurationError(f"{self.path / file} cannot be read: {why}")
        if not records:
            others = [f" ({self.path / file} is not a record: {why})" for file, why in sorted(self.foreign.items())]
            raise ConfigurationError(
                f"{self.path} holds no records{''.join(others[:1])}; run a suite with --out {self.path} first."
            )
        return records

    def remember(self, current: Mapping[str, str]) -> None:
        """Notes, by :func:`cell_key`, which record counts where it is not the last made.

        Raises:
            OSError: the note cannot be written.
        """
        about = self.about()
        if about.get("current", {}) != current:
            rest = {key: value for key, value in about.items() if key != "current"}
            content = {**rest, "current": dict(current)} if current else rest
            self._write(self.path / MARKER, json.dumps(content, indent=1) + "\n")

    def records(self) -> Iterator[Record]:
        """Every record in the folder, one after the other by file name; what is none is noted in ``foreign``.

        Raises:
            ConfigurationError: there is no such folder.
        """
        if not is_folder(self.path):
            raise ConfigurationError(
                f"there is no results folder {self.path}; run a suite with --out {self.path} first."
            )
        owner = self.about().get("suite")
        return (record for file in self.files() if (record := self.record_in(file, owner)) is not None)

    def record_in(self, file: Path, owner: str | None = None) -> Record | None:
        """The record in a file; None, and noted in ``foreign``, where it is none, or not of the suite ``owner``."""
        try:
            record = read_record(file)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            self.foreign[file.name] = f"{where}: {first['msg']}".splitlines()[0]
            if first["type"] == "unknown_evaluation":
                self.unknown[file.name] = str(first["msg"])
            return None
        except NotRegularError:
            self.foreign[file.name] = "no regular file (a folder, pipe, socket or device)"
            return None
        except (ValueError, OSError, RecursionError, UnknownNameError) as error:
            self.foreign[file.name] = "nested too deeply" if isinstance(error, RecursionError) else reason(error)
            if isinstance(error, UnknownNameError):
                self.unknown[file.name] = str(error)
            return None
        if owner is None or record.suite == owner:
            return record
        self.foreign[file.name] = f"a record of suite {record.suite!r}"
        return None

    def files(self) -> list[Path]:
        """The files that should be records, by name.

        Raises:
            ConfigurationError: the folder cannot be read.
        """
        try:
            with os.scandir(self.path) as inside:
                names = sorted(entry.name for entry in inside if entry.name.endswith(SUFFIXES))
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {reason(error)}.") from error
        return [self.path / name for name in names if name != MARKER]


def read_record(file: Path) -> Record:
    """The record in a file, compressed or not.

    Raises:
        OSError, ValueError, RecursionError, UnknownNameError: it is none, or cannot be read.
    """
    content = regular_bytes(file, RECORD_BYTES)
    return Record.model_validate_json(unpacked(content, RECORD_BYTES) if file.suffix == ".gz" else content)


def _as_text(aggregates: Mapping[str, Aggregate]) -> str:
    """For comparison: NaN equals itself here."""
    return json.dumps({name: aggregate.model_dump() for name, aggregate in sorted(aggregates.items())})


def cell_key(suite: str, cell: Cell, settings: Settings) -> str:
    """Equal for records of one cell and its examples, by whatever code, weights or file of scores they were made."""
    return digest(
        [
            suite,
            cell.model_dump(exclude={"precomputed"}),
            cell.precomputed is not None,  # of two files under one name, one is shown
            [settings.drawing(), *settings.numerics()],
        ]
    )


def newest(records: Iterable[Record]) -> tuple[list[Record], int]:
    """One record per cell and its examples, the last made, and how many older ones were passed over."""
    best: dict[str, Record] = {}
    passed_over = 0
    for record in records:
        key = cell_key(record.suite, record.cell, record.settings)
        created = record.provenance.created if record.provenance else ""
        other = best.get(key)
        if other is not None:
            passed_over += 1
            if created <= (other.provenance.created if other.provenance else ""):
                continue
        best[key] = record
    return sorted(best.values(), key=lambda r: r.filename), passed_over
