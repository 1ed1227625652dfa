"""Cells as Ray tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import ValidationError

from ..errors import ConfigurationError
from ..records.record import Cell, Record
from .parts import Pair
from .remote import Answer, Packed, failed, include, included_files, packed, run_packed
from .stored import Stored
from .worker import Worker


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
    included = included_files()
    beside = 1 if gpus else _at_once(ray, len(pairs))
    waiting = {}
    for pair in pairs:
        for planned in pair:
            started(planned.cell)
        work = [packed(planned, stored.earlier(planned)) for planned in pair]
        waiting[remote.remote(suite, work, torch.get_num_threads(), included, beside)] = pair
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        pair = waiting.pop(ready)
        try:
            for text, scores in ray.get(ready):
                yield Record.model_validate_json(text), scores
        except (ray.exceptions.RayError, ValidationError) as error:
            reason = f"its Ray worker gave no record: {str(error).strip().splitlines()[-1]}"
            for planned in pair:
                yield failed(suite, planned, stored.earlier(planned).record, reason), None


def _at_once(ray: Any, tasks: int) -> int:
    """How many tasks of one processor each may run on one machine at the same time."""
    processors = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min(tasks, max(processors, default=1)))


_WORKERS: list[Worker] = []
"""In a Ray process: its worker, kept from one task to the next."""


def _pair(suite: str, work: Sequence[Packed], threads: int, included: Sequence[str], beside: int) -> list[Answer]:
    torch.set_num_threads(threads)
    include(included)
    if not _WORKERS:
        _WORKERS.append(Worker())
    _WORKERS[0].workers = beside
    return [run_packed(_WORKERS[0], suite, part) for part in work]
