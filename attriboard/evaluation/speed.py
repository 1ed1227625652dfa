"""How time, work and memory of a method are measured; what is stored stands in :mod:`attriboard.measurements.speed`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from ..measurements.speed import Speed
from ..model import Cost
from .base import Evaluation
from .timing import timed

if TYPE_CHECKING:
    from ..model import EncodedExample, Model

T = TypeVar("T")


class SpeedEvaluation(Evaluation):
    """Measured while the method scores, and so without :meth:`measure`; see :func:`whole` and :func:`measure`."""

    name = "speed"
    measurement = Speed
    version = 2


@dataclass(frozen=True)
class Whole:
    """One run of a method over all examples of its split.

    Attributes:
        examples: how many they are.
        seconds: that it took, warming up included.
        flops: floating-point operations per example.
        forward_equivalents: the same in forward passes.
        peak_memory_mib: most memory held above the start.
    """

    examples: int
    seconds: float
    flops: float
    forward_equivalents: float
    peak_memory_mib: float


class Lap(NamedTuple):
    """A run of a method over some examples, and the seconds that it took."""

    examples: int
    seconds: float


def whole(
    score: Callable[[Sequence[EncodedExample]], T], model: Model, examples: Sequence[EncodedExample]
) -> tuple[T, Whole]:
    """Runs a method over its whole split, counts the work and measures the memory.

    Args:
        score: runs it on examples: its ``attribute`` at a level of components, its ``each`` at a level of inputs.
        model: whose ``cost`` is counted from zero.
        examples: the split.

    Returns:
        what ``score`` returned, and what it took. Work is the same on every machine and at every batch size.
    """
    model.cost = Cost()
    start = time.perf_counter()
    with PeakMemory(model.device) as memory:
        scores = score(examples)
    seconds = time.perf_counter() - start
    n = len(examples)
    return scores, Whole(n, seconds, model.cost.flops / n, model.forward_equivalents(examples), memory.mib)


def measure(
    score: Callable[[Sequence[EncodedExample]], object],
    model: Model,
    examples: Sequence[EncodedExample],
    once: Whole,
    timing: Speed.Options,
    warm: Sequence[Lap] = (),
) -> Speed:
    """What a method costs that has just run over its whole split, and so is warm.

    Args:
        score: as in :func:`whole`.
        model: where it runs.
        examples: those of a repeat; none for a method that cannot score so few, which is not repeated.
        once: that run, from which work and memory are taken whatever the clock says.
        timing: how often is repeated. At least one repeat is made unless one is expected to take more than
            ``max_seconds``; then the run over the split is the time.
        warm: later runs that were needed anyway; where there are any, they are the repeats and no others are made.
    """
    if warm:
        return _speed([lap.examples for lap in warm], [lap.seconds for lap in warm], once)
    expected = once.seconds * len(examples) / once.examples
    if not examples or expected > timing.max_seconds:
        return _speed(once.examples, [once.seconds], once)
    seconds = [timed(lambda: score(examples), model.device)]
    while len(seconds) < timing.repeats and sum(seconds) < timing.max_seconds:
        seconds.append(timed(lambda: score(examples), model.device))
    return _speed(len(examples), seconds, once)


def _speed(examples: int | list[int], seconds: list[float], once: Whole) -> Speed:
    return Speed(
        examples=examples,
        seconds=seconds,
        scored=once.examples,
        flops=once.flops,
        forward_equivalents=once.forward_equivalents,
        peak_memory_mib=once.peak_memory_mib,
    )


class PeakMemory:
    """Context: ``mib`` is the peak memory above what was held on entry.

    On a GPU allocated memory; on Linux the process' resident memory, after freed memory was handed back to the system
    and the system's peak counter was reset; elsewhere the growth of the process' all-time peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.mib = device, 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = float(torch.cuda.memory_allocated(self.device))
        else:
            _hand_back_freed_memory()
            _reset_peak()
            self._start = _resident_peak()
        return self

    def __exit__(self, *exception: object) -> None:
        now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident_peak()
        self.mib = max(0.0, (float(now) - self._start) / 2**20)


def _hand_back_freed_memory() -> None:
    gc.collect()
    # with another C library, freed memory that it keeps for reuse hides part of the growth
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> None:
    # where this is not Linux, or not allowed, the peak is that of the whole process
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _resident_peak() -> float:
    try:
        with open("/proc/self/status") as file:
            line = next(text for text in file if text.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
