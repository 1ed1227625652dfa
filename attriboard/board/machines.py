"""On what records were timed: times and memory compare only between records of one device, run in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..measurements.registry import METRICS
from ..measurements.speed import VARYING, Speed
from ..records.record import Record


class Machine(NamedTuple):
    """What a time depends on beside the work.

    Attributes:
        device: name of the GPU, or of the processor.
        threads: of torch.
        workers: how many processes scored cells at the same time on it; 1 for a run by itself.
    """

    device: str
    threads: int
    workers: int

    def __str__(self) -> str:
        beside = f", {self.workers} workers at once" if self.workers > 1 else ""
        return f"{self.device}, {self.threads} thread{'' if self.threads == 1 else 's'}{beside}"


def machine_of(record: Record) -> Machine | None:
    """What a record was timed on, or made on where it was not timed; None where that is not known."""
    made = record.provenance
    if made is None:
        return None
    timed = record.stages.get(Speed.name)
    device = timed.device if timed is not None and timed.device else made.device
    return Machine(device, made.threads, made.workers)


def timed_on(records: Iterable[Record]) -> tuple[Machine, ...]:
    """The machines behind the times and memory of records, sorted; those that are not known are left out."""
    timed = [r for r in records if any(name in r.aggregates for name in VARYING)]
    return tuple(sorted({machine for r in timed if (machine := machine_of(r)) is not None}))


def bound_to_machines() -> str:
    """The titles of the metrics that compare within one machine only."""
    return " and ".join(METRICS[name].title for name in VARYING)
