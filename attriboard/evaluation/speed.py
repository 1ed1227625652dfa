"""How time, work and memory of a method are measured; what is stored stands in :mod:`attriboard.measurements.speed`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ..measurements.speed import Speed
from ..model import Cost
from .base import Evaluation
from .timing import timed

if TYPE_CHECKING:
    from ..model import EncodedExample, Model

Scoring = Callable[[Sequence["EncodedExample"]], object]
"""Runs a method on examples: its ``attribute`` at a level of components, its ``each`` at a level of inputs."""


class SpeedEvaluation(Evaluation):
    """Measured while the method scores, and so without :meth:`measure`; see :func:`measure` and :func:`once`."""

    name = "speed"
    measurement = Speed


def once(examples: int, seconds: float, forwards: float, peak_memory_mib: float) -> Speed:
    """The measurement of a method too slow to repeat: its one run over the split."""
    return Speed(examples=examples, seconds=[seconds], forward_equivalents=forwards, peak_memory_mib=peak_memory_mib)


def measure(
    score: Scoring,
    model: Model,
    examples: Sequence[EncodedExample],
    repeats: int,
    max_seconds: float,
    peak_memory_mib: float,
) -> Speed:
    """Times a method on ``examples``.

    The caller has run the method on the whole split before, under :class:`PeakMemory`, so that it is warm here.
    Repeats stop after ``max_seconds``, but at least one is made.
    """
    model.cost = Cost()
    seconds = [timed(lambda: score(examples), model.device)]
    work = model.cost.total / len(examples)
    while len(seconds) < repeats and sum(seconds) < max_seconds:
        seconds.append(timed(lambda: score(examples), model.device))
    return Speed(examples=len(examples), seconds=seconds, forward_equivalents=work, peak_memory_mib=peak_memory_mib)


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
