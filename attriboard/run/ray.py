"""Cells as Ray tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ..errors import ConfigurationError
from ..evaluation.base import evaluations
from ..method import methods
from ..models.architectures import architectures
from ..records.record import Cell, Planned, Record
from ..records.settings import Settings
from ..task import tasks
from .identity import record_identity
from .provenance import provenance
from .stored import Pair, Stored
from .worker import Earlier, Worker

REGISTRIES = (tasks, methods, evaluations, architectures)


def on_ray(
    suite: str, pairs: Sequence[Pair], stored: Stored, started: Callable[[Cell], None]
) -> Iterator[tuple[Record, bytes | None]]:
    """Cells that share scores as one Ray task; every worker process keeps its model and examples between tasks.

    Raises:
        ConfigurationError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("--executor ray needs Ray; type: pip install 'attriboard[ray]'") from error
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    gpus = 1 if any(p.settings.device.startswith("cuda") for pair in pairs for p in pair) else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_pair)
    included = sorted({str(path) for registry in REGISTRIES for path in registry.included})
    waiting = {}
    for pair in pairs:
        for planned in pair:
            started(planned.cell)
        work = [_as_json(planned, stored.earlier(planned)) for planned in pair]
        waiting[remote.remote(suite, work, torch.get_num_threads(), included)] = pair
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        pair = waiting.pop(ready)
        try:
            for text, scores in ray.get(ready):
                yield Record.model_validate_json(text), scores
        except (ray.exceptions.RayError, ValidationError) as error:
            reason = f"its Ray worker gave no record: {str(error).strip().splitlines()[-1]}"
            for planned in pair:
                yield _failed(suite, planned, stored.earlier(planned).record, reason), None


def _failed(suite: str, planned: Planned, earlier: Record | None, reason: str) -> Record:
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


def _as_json(planned: Planned, earlier: Earlier) -> dict[str, Any]:
    """What crosses to another process: JSON and bytes."""
    records = [None if record is None else _text(record) for record in (earlier.record, earlier.source)]
    return {
        "cell": planned.cell.model_dump(mode="json"),
        "settings": planned.settings.model_dump(mode="json"),
        "earlier": (*records, earlier.content),
    }


def _text(record: Record) -> str:
    return json.dumps(record.model_dump(mode="json"))  # as records are stored: numbers that are none stay what they are


_WORKERS: list[Worker] = []
"""In a Ray process: its worker, kept from one task to the next."""


def _pair(
    suite: str, work: Sequence[dict[str, Any]], threads: int, included: Sequence[str]
) -> list[tuple[str, bytes | None]]:
    torch.set_num_threads(threads)
    for path in included:
        for registry in REGISTRIES:
            if Path(path) not in registry.included:
                registry.include(Path(path))
    if not _WORKERS:
        _WORKERS.append(Worker())
    outcomes = []
    for part in work:
        *texts, content = part["earlier"]
        records = [None if text is None else Record.model_validate_json(text) for text in texts]
        planned = Planned(Cell.model_validate(part["cell"]), Settings.model_validate(part["settings"]))
        record, scores = _WORKERS[0].execute(suite, planned, Earlier(records[0], records[1], content))
        outcomes.append((_text(record), scores))
    return outcomes
