"""What a folder of records holds already, by what determines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ConfigurationError
from ..records.record import Planned, Record, Stage
from ..records.store import Folder, cell_key
from .identity import record_identity, scoring_identity, wanted_stages
from .worker import Earlier

Pair = list[Planned]
"""Cells that share their scores; they are run one after the other in one place."""


class Entry(NamedTuple):
    """What must be known of a record to say whether it is done; the rest stays on disk."""

    file: str
    status: str
    stages: Mapping[str, Stage]


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

    @classmethod
    def of(cls, folder: Folder, again: bool = False) -> Stored:
        """Every record of the folder.

        Raises:
            ConfigurationError: a record holds an evaluation that is not known here, and would be written over.
        """
        stored = cls(folder, again)
        for record in folder.records():
            stored.by_identity[record.identity] = Entry(record.filename, record.status, record.stages)
            made = (record.provenance.created if record.provenance else "", record.identity)
            key = cell_key(record.suite, record.cell, record.settings)
            stored.last[key] = max(made, stored.last.get(key, made))
            if record.scores is not None and (folder.path / record.scores.file).is_file():
                stored.by_scores[record.scores.identity] = record.filename
        for file, why in folder.unknown.items():
            raise ConfigurationError(f"{folder.path / file} cannot be added to: {why} Or choose another --out.")
        return stored

    def has(self, planned: Planned) -> bool:
        """Whether everything that is asked of a cell is there."""
        entry = self.by_identity.get(record_identity(*planned))
        if self.again or entry is None or entry.status == "failed":
            return False
        stages = entry.stages
        return all(
            name in stages and stages[name].identity == wanted for name, wanted in wanted_stages(planned).items()
        )

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
            return Record.model_validate_json((self.folder.path / file).read_bytes())
        except (OSError, ValueError):  # gone or damaged since the run began: done again
            return None
