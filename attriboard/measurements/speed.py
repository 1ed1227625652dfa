"""Speed: time, work and memory of a method, warm and repeated."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from ..levels import LEVELS
from . import base
from .base import Measurement, Metric, Scalar, Statistic

VARYING = ("seconds_per_example", "peak_memory_mib")
"""The metrics that differ between two runs of the same."""


class Speed(Measurement):
    """What a method costs, on the examples it scores: the train split, or the test split at levels of inputs.

    Attributes:
        examples: how many examples each repeat scores, the first of the split.
        seconds: of each warm repeat (CUDA events on a GPU).
        forward_equivalents: passes per example; a backward pass counts as two.
        peak_memory_mib: most memory held above the start while scoring the whole split.
    """

    class Options(base.Options):
        """How it is measured.

        Attributes:
            examples: how many a repeat scores, the first of the split.
            repeats: most warm repeats.
            max_seconds: no further repeat is begun after these; a method that takes more than ten times as long for
                its split is not repeated at all.
        """

        examples: int = Field(4, ge=1)
        repeats: int = Field(3, ge=1)
        max_seconds: float = Field(30.0, gt=0)

    name = "speed"
    levels = tuple(LEVELS)
    needs_method = True
    main = True
    position = 1000
    over_kept = False
    metrics = (
        Metric(
            "seconds_per_example",
            title="s / example",
            unit="seconds",
            better="lower",
            text="Time the method takes per example: median of warm repeats on the first speed.examples examples that "
            "it scores (of the train split; of the test split at levels of inputs), with their smallest and largest; "
            "for a method too slow to repeat, its one run over the split. Work that a method does once for all "
            "examples counts in full.",
        ),
        Metric(
            "forward_equivalents",
            title="forwards",
            unit="forward passes per example",
            better="lower",
            digits=1,
            text="Passes through the model per example, counted on the same examples as the time; a backward pass "
            "counts as two, a partial pass as the fraction of layers and positions it ran. Products with the "
            "unembedding that a method makes by itself are not counted.",
        ),
        Metric(
            "peak_memory_mib",
            title="peak MiB",
            unit="MiB",
            better="lower",
            digits=0,
            text="Most memory the method held above what was there before it started, while scoring its split: "
            "allocated GPU memory on a GPU, growth of the process' resident memory on a CPU.",
        ),
    )

    examples: int
    seconds: list[float]
    forward_equivalents: float
    peak_memory_mib: float

    @property
    def n(self) -> int:
        """One: a cost is measured of all examples together."""
        return 1

    def statistics(self) -> dict[str, Statistic]:
        return {}

    def scalars(self) -> dict[str, Scalar]:
        """Costs; the time with the smallest and largest of its repeats, where there are several."""
        per_example = [s / self.examples for s in self.seconds]
        several = len(per_example) > 1
        return {
            "seconds_per_example": (
                float(np.median(per_example)),
                min(per_example) if several else None,
                max(per_example) if several else None,
            ),
            "forward_equivalents": (self.forward_equivalents, None, None),
            "peak_memory_mib": (self.peak_memory_mib, None, None),
        }
