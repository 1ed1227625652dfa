"""What a folder of records holds already, by what determines it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ConfigurationError, UnknownNameError
from ..records.record import Planned, Record, filename
from ..records.store import Folder, cell_key, read_record
from . import index
from .identity import record_identity, scoring_identity, wanted_stages
from .index import Entry, State
from .worker import Earlier


class Ahead(NamedTuple):
    """A cell that is to be run, and the stages of it that are not there yet: "scores" and names of evaluations."""

    planned: Planned
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """Records of a folder by their identity, and by that of their scores.

    Attributes:
        again: whether everything is to be done again; what is there is then kept only where what is new fails.
    """

    folder: Folder
    again: bool = False
    by_identity: dict[str, Entry] = field(default_factory=dict)
    by_scores: dict[str, str] = field(default_factory=dict)
    last: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By cell, when its last record was made, and which one that is."""
    states: dict[str, State] = field(default_factory=dict)
    """By file name, what a record's file was like when it was read or written by this process."""

    @classmethod
    def of(cls, folder: Folder, again: bool = False, look: bool = False) -> Stored:
        """Every record of the folder; those that are in its index as they stand are not read.

        Args:
            again: as in the class.
            look: write nothing, not even the index.

        Raises:
            ConfigurationError: a record holds an evaluation that is not known here, and would be written over.
        """
        stored = cls(folder, again)
        known = index.load(folder.path)
        owner = folder.about().get("suite")
        fresh, kept = False, 0
        for file in folder.files():
            state = index.state_of(file)
            if state is None:
                continue
            state_before, entry = known.get(file.name, (None, None))
            if entry is None or state_before != state or owner not in (None, entry.suite):
                fresh = True
                record = folder.record_in(file, owner)
                if record is None:
                    continue
                entry = Entry.of(record, file.name)
            stored._note(entry, state)
            kept += 1
        for name, why in folder.unknown.items():
            raise ConfigurationError(f"{folder.path / name} cannot be added to: {why} Or choose another --out.")
        if not look and (fresh or len(known) != kept):
            index.write(folder.path, ((stored.states[e.file], e) for e in stored.by_identity.values()))
        return stored

    def _note(self, entry: Entry, state: State) -> None:
        self.by_identity[entry.identity] = entry
        self.states[entry.file] = state
        made = (entry.created, entry.identity)
        self.last[entry.cell] = max(made, self.last.get(entry.cell, made))
        if entry.scores and index.state_of(self.folder.path / entry.scores_file) is not None:
            self.by_scores[entry.scores] = entry.file

    def note(self, record: Record) -> None:
        """Takes in a record that this process has just written."""
        file = self.folder.file_of(record.filename)
        state = index.state_of(file)
        if state is not None:
            entry = Entry.of(record, file.name)
            self._note(entry, state)
            index.append(self.folder.path, state, entry)

    def done_since(self, planned: Planned) -> bool:
        """Whether another process has made a cell's record since this one looked, be it good or failed."""
        file = self.folder.file_of(filename(planned.cell, record_identity(*planned)))
        name, state = file.name, index.state_of(file)
        if state is None or state == self.states.get(name):
            return False
        record = self._read(name)
        if record is None:
            return False
        self._note(Entry.of(record, name), state)
        return record.status == "failed" or self._whole(planned)

    def has(self, planned: Planned) -> bool:
        """Whether everything that is asked of a cell is there."""
        return not self.again and self._whole(planned)

    def _whole(self, planned: Planned) -> bool:
        entry = self.by_identity.get(record_identity(*planned))
        if entry is None or entry.status == "failed":
            return False
        return all(entry.stages.get(name) == wanted for name, wanted in wanted_stages(planned).items())

    def ahead(self, plan: Iterable[Planned]) -> list[Ahead]:
        """Of planned cells, those that are to be run, with what is missing; shared scores are made by the first."""
        made: set[str] = set() if self.again else set(self.by_scores)
        cells = []
        for planned in plan:
            if self.has(planned):
                continue
            entry = None if self.again else self.by_identity.get(record_identity(*planned))
            there = entry.stages if entry is not None else {}
            stages = [name for name, wanted in wanted_stages(planned).items() if there.get(name) != wanted]
            scores = scoring_identity(*planned)
            if scores not in made:
                stages.insert(0, "scores")
                made.add(scores)
            else:  # what a method costs is measured when it scores
                stages = [name for name in stages if name != "speed"]
            cells.append(Ahead(planned, tuple(stages)))
        return cells

    def note_current(self, suite: str, plan: Sequence[Planned]) -> None:
        """Notes in the folder which records are those of the code as it stands, where others were made later.

        Raises:
            OSError: the note cannot be written.
        """
        noted = dict(self.folder.about().get("current", {}))
        for planned in plan:
            key, identity = cell_key(suite, *planned), record_identity(*planned)
            noted.pop(key, None)
            if key in self.last and self.last[key][1] != identity and self.has(planned):
                noted[key] = identity
        self.folder.remember(noted)

    def earlier(self, planned: Planned) -> Earlier:
        """What is there of a cell, read from disk."""
        entry = self.by_identity.get(record_identity(*planned))
        record = None if entry is None else self._read(entry.file)
        if self.again:
            return Earlier(record, again=True)
        source_file = self.by_scores.get(scoring_identity(*planned))
        source = None if source_file is None else self._read(source_file)
        return Earlier(record, source, None if source is None else self.folder.read_scores(source))

    def _read(self, file: str) -> Record | None:
        try:
            return read_record(self.folder.path / file)
        except (
            OSError,
            ValueError,
            RecursionError,
            UnknownNameError,
        ):  # gone or damaged meanwhile: done again
            return None
