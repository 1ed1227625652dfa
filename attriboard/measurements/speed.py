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

    Work is counted and memory is measured in the one run that scores the whole split; neither depends on how long it
    takes.

    Attributes:
        examples: how many examples each repeat scores: the first of the split, or all of it; of repeats that score
            groups of different sizes, how many each scores.
        seconds: of each warm repeat (CUDA events on a GPU), or of the one run over the split.
        scored: how many examples the whole split has, over which work is counted.
        flops: floating-point operations of that run, per example.
        forward_equivalents: the same in forward passes.
        peak_memory_mib: most memory held above the start during that run.
    """

    class Options(base.Options):
        """How it is measured.

        Attributes:
            examples: how many a repeat scores, the first of the split; all of a split that has fewer.
            repeats: most warm repeats.
            max_seconds: no further repeat is begun after these; a method that would take longer for one, judged by its
                run over the split, is not repeated, and that run is its time.
        """

        examples: int = Field(32, ge=1)
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
            text="Time the method takes per example, at the run's batch size: median of warm runs, with their smallest "
            "and largest. Where measurements are cross-fitted these are the runs that score the groups of the test "
            "half; elsewhere repeats on the first speed.examples examples (of the train split; of the test split at "
            "levels of inputs; all of a smaller split); of a method too slow to repeat, its one run over the split. "
            "Work that a method does once for all examples counts in full.",
            version=2,
        ),
        Metric(
            "forward_equivalents",
            title="forwards",
            unit="forward passes per example",
            better="lower",
            digits=1,
            text="The floating-point operations of scoring the whole split, over those of one forward pass of every "
            "example's prompt: all layers at all its positions, the unembedding at the last one and, with a picture, "
            "the vision tower. A backward pass counts as two forward passes, a partial pass as its share, and a "
            "method's own products with the unembedding, such as one for every component, as what they take. A picture "
            "goes through the tower once, however many passes read it.",
            version=2,
        ),
        Metric(
            "flops_per_example",
            title="GFLOPs",
            unit="GFLOP per example",
            better="lower",
            digits=2,
            text="Floating-point operations of scoring the whole split, in billions per example; a multiply-add is "
            "two. Worked out from the shapes of the weights and the real positions that each example would run by "
            "itself, and so equal for every batch size, padding and machine. Counted are products with weights, those "
            "of attention (the masked half too) and the vision tower's; a backward pass counts twice its forward pass "
            "(the usual convention; without gradients of weights, as here, about half of that is done). "
            "Not counted are elementwise operations, norms and biases, products of single positions with output "
            "weights, and what a method computes outside the model, such as a regression.",
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

    examples: int | list[int]
    seconds: list[float]
    scored: int
    flops: float
    forward_equivalents: float
    peak_memory_mib: float

    def check_values(self) -> None:
        if not self.seconds or not self._examples or self.repeat < 1:
            raise ValueError("examples or seconds are empty")
        if len(self._examples) != len(self.seconds):
            raise ValueError(
                f"examples says of {len(self._examples)} repeats how large they are, of {len(self.seconds)}"
            )

    @property
    def _examples(self) -> list[int]:
        """By repeat, how many examples it scores."""
        return self.examples if isinstance(self.examples, list) else [self.examples] * len(self.seconds)

    @property
    def per_example(self) -> list[float]:
        """By repeat, the seconds per example."""
        return [seconds / n for seconds, n in zip(self.seconds, self._examples)]

    @property
    def repeat(self) -> int:
        """How many examples the smallest repeat scores."""
        return min(self._examples)

    @property
    def n(self) -> int:
        """One: a cost is measured of all examples together."""
        return 1

    def statistics(self) -> dict[str, Statistic]:
        return {}

    def scalars(self) -> dict[str, Scalar]:
        """Costs; the time with the smallest and largest of its repeats, where there are several."""
        per_example = self.per_example
        several = len(per_example) > 1
        return {
            "seconds_per_example": (
                float(np.median(per_example)),
                min(per_example) if several else None,
                max(per_example) if several else None,
            ),
            "forward_equivalents": (self.forward_equivalents, None, None),
            "flops_per_example": (self.flops / 1e9, None, None),
            "peak_memory_mib": (self.peak_memory_mib, None, None),
        }
