"""What a folder of records holds already, by what determines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..records.record import Planned, Record, Stage
from ..records.store import Folder
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
    """Records of a folder by their identity, and by that of their scores."""

    folder: Folder
    by_identity: dict[str, Entry] = field(default_factory=dict)
    by_scores: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Folder) -> Stored:
        """Every record of the folder."""
        stored = cls(folder)
        for record in folder.records():
            stored.by_identity[record.identity] = Entry(record.filename, record.status, record.stages)
            if record.scores is not None and (folder.path / record.scores.file).is_file():
                stored.by_scores[record.scores.identity] = record.filename
        return stored

    def has(self, planned: Planned) -> bool:
        """Whether everything that is asked of a cell is there."""
        entry = self.by_identity.get(record_identity(*planned))
        if entry is None or entry.status == "failed":
            return False
        stages = entry.stages
        return all(
            name in stages and stages[name].identity == wanted for name, wanted in wanted_stages(planned).items()
        )

    def earlier(self, planned: Planned) -> Earlier:
        """What is there of a cell, read from disk."""
        entry = self.by_identity.get(record_identity(*planned))
        record = None if entry is None else self._read(entry.file)
        source_file = self.by_scores.get(scoring_identity(*planned))
        source = None if source_file is None else self._read(source_file)
        return Earlier(record, source, None if source is None else self.folder.read_scores(source))

    def _read(self, file: str) -> Record:
        return Record.model_validate_json((self.folder.path / file).read_bytes())
