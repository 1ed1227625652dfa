"""Cells that run in another process: what crosses to it and back is JSON and bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..evaluation.base import evaluations
from ..method import methods
from ..models.architectures import architectures
from ..records.record import Cell, Planned, Record
from ..records.settings import Settings
from ..task import tasks
from .identity import record_identity
from .provenance import provenance
from .worker import Earlier, Worker

REGISTRIES = (tasks, methods, evaluations, architectures)

Packed = dict[str, Any]
"""A cell with its settings and what is stored of it, as JSON and bytes."""
Answer = tuple[str, bytes | None]
"""A record as JSON, and the file of its scores."""


def included_files() -> list[str]:
    """The files of the user's own that this process knows, for :func:`include` in another one."""
    return sorted({str(path) for registry in REGISTRIES for path in registry.included})


def include(files: Iterable[str]) -> None:
    """Registers what another process has registered.

    Raises:
        ConfigurationError: a file cannot be imported here.
    """
    for file in files:
        for registry in REGISTRIES:
            if Path(file) not in registry.included:
                registry.include(Path(file))


def packed(planned: Planned, earlier: Earlier) -> Packed:
    """A cell as it crosses to another process."""
    records = [None if record is None else _text(record) for record in (earlier.record, earlier.source)]
    return {
        "cell": planned.cell.model_dump(mode="json"),
        "settings": planned.settings.model_dump(mode="json"),
        "earlier": (*records, earlier.content, earlier.again),
    }


def run_packed(worker: Worker, suite: str, work: Packed) -> Answer:
    """Runs a cell that came from another process."""
    *texts, content, again = work["earlier"]
    record, source = (None if text is None else Record.model_validate_json(text) for text in texts)
    planned = Planned(Cell.model_validate(work["cell"]), Settings.model_validate(work["settings"]))
    made, scores = worker.execute(suite, planned, Earlier(record, source, content, again))
    return _text(made), scores


def failed(suite: str, planned: Planned, earlier: Record | None, reason: str) -> Record:
    """The record of a cell whose process gave none."""
    cell, settings = planned
    if earlier is not None and earlier.measurements:  # what is there already stays
        return earlier.model_copy(update={"status": "failed", "reason": reason})
    return Record(
        suite=suite,
        identity=record_identity(cell, settings),
        cell=cell,
        settings=settings,
        status="failed",
        reason=reason,
        provenance=provenance(torch.device("cpu")),
    )


def _text(record: Record) -> str:
    return json.dumps(record.model_dump(mode="json"))  # as records are stored: numbers that are none stay what they are
