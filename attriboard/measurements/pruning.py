"""Pruning: how much of the task survives when the lowest-scored components are removed?

Accuracy over all drawn test examples, answered before or not, since pruning may break right answers and mend wrong
ones, is a curve over the share of components removed: ``a(s)``, with ``a(0)`` of the whole model. Its area is taken by
trapezoid from 0 to the largest share and divided by that share; the *kept sparsity* is the largest share ``s`` such
that ``a(t) >= 0.95 a(0)`` for every measured ``t <= s``.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import ConfigurationError
from ..levels import names_where
from ..stats.intervals import Array, bootstrap_interval
from . import base
from .base import Measure, Measurement, Metric, Scalar, Shaped, Statistic, Strict
from .capability import Capability, kept
from .recovery import Recovery

Allocation = Literal["layerwise", "global"]
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
KEPT = 0.95
"""The share of the untouched accuracy that counts as kept."""

_CAPABILITY = (
    "mean over the capability tasks of accuracy after over before, or perplexity before over after, each at most 1."
)


def _curve_metrics(suffix: str, title: str, order: str) -> tuple[Metric, ...]:
    return (
        Metric(
            f"pruning_accuracy_area{suffix}",
            title=f"accuracy area{title}",
            unit="share",
            better="higher",
            sorts=not suffix,
            text=f"Area under the accuracy, over all test examples drawn, against the share of components removed "
            f"({order}), by trapezoid from 0 to the largest share, divided by the axis' length.",
        ),
        Metric(
            f"pruning_accuracy_half{suffix}",
            title=f"accuracy at 50 %{title}",
            unit="share",
            better="higher",
            text=f"Accuracy over all test examples drawn at the share of removed components nearest to one half "
            f"({order}).",
        ),
        Metric(
            f"pruning_kept_sparsity{suffix}",
            title=f"keeps 95 % to{title}",
            unit="share removed",
            better="higher",
            digits=2,
            tested=False,
            text=f"Largest share of components that can be removed ({order}) while accuracy stays at or above 95 % of "
            f"the whole model's, there and at every smaller share measured; 0 if none.",
        ),
    )


class Slice(Strict, Shaped):
    """The smaller model at one sparsity.

    Attributes:
        difference: largest difference between its logits and the masked model's, as a share of the largest logit.
        parameters_before, parameters_after: how many the whole model has.
        timed_examples: examples in the batch that was timed.
        seconds_before, seconds_after: of one forward pass of that batch, by repeat, the two models in turn.
        capability: what it can still do; None if that was not measured.
    """

    shapes: ClassVar = {"seconds_before": "repeats", "seconds_after": "repeats"}

    difference: float
    parameters_before: int
    parameters_after: int
    timed_examples: int
    seconds_before: list[float]
    seconds_after: list[float]
    capability: Capability | None = None

    def check_values(self) -> None:
        if not self.seconds_before or min(self.seconds_after) <= 0 or self.parameters_before < 1:
            raise ValueError("seconds or parameters are empty or zero")


class Pruning(Measurement):
    """Per-example measurements behind the curve, and what was measured of the sliced model.

    Attributes:
        allocation: "layerwise" or "global".
        sparsities: shares of the components removed, ascending.
        examples_sha256: of the drawn test examples, in order.
        clean: ``[N][3]``: the :class:`~attriboard.measurements.base.Measure` of every drawn test example, untouched.
        masked: ``[sparsities][N][3]``: the same with the components removed by masks.
        masked_absolute: the same where what a method scores nearest to zero goes first.
        capability: what the untouched model can do; None if that was not measured.
        slice_sparsity: share of the components that the sliced model lacks.
        sliced: the sliced model; None where there is none.
        not_sliced: why there is none.
        recovery: what a little training of the sliced model brought back; None where none was asked for.
    """

    name = "pruning"
    levels = names_where(inputs=False, prunable=True)
    uses_capability = True
    position = 50
    over_kept = False
    metrics = (
        *_curve_metrics("", "", "the lowest signed scores first"),
        *_curve_metrics("_absolute", " (|score|)", "the scores nearest to zero first"),
        Metric(
            "parameters_removed",
            title="parameters removed",
            unit="share",
            better="higher",
            optional=True,
            text="Share of all parameters that the sliced model does without, at the share of components that is "
            "sliced away for real, the lowest signed scores first.",
        ),
        Metric(
            "speed_up",
            title="speed-up",
            unit="times",
            better="higher",
            digits=2,
            optional=True,
            text="Seconds of a forward pass over test examples before slicing divided by those after it: ratio of the "
            "medians of alternating warm repeats, with the smallest and largest ratio of a pair.",
        ),
        Metric(
            "capability_kept",
            title="capability kept",
            unit="share",
            better="higher",
            optional=True,
            text=f"What the sliced model keeps of general ability: {_CAPABILITY}",
        ),
        Metric(
            "pruning_accuracy_recovered",
            title="accuracy, recovered",
            unit="share",
            better="higher",
            optional=True,
            text="Accuracy of the sliced model over all test examples drawn, after a small fixed budget of LoRA "
            "training on the train split.",
        ),
        Metric(
            "capability_recovered",
            title="capability, recovered",
            unit="share",
            better="higher",
            optional=True,
            text=f"What the sliced model has of general ability after that training: {_CAPABILITY}",
        ),
        Metric(
            "coefficient_ratio",
            title="coefficients after / before",
            unit="times",
            better="neither",
            digits=2,
            optional=True,
            text="Mean size of the coefficients at the last token of the train examples, of the 50 highest-scored "
            "neurons that were kept: after that training over before it, with the interval over neurons (Yu & "
            "Ananiadou 2024, arXiv 2409.14144, find that training enlarges those of important neurons).",
        ),
        Metric(
            "coefficient_ratio_control",
            title="the same, same layers",
            unit="times",
            better="neither",
            digits=2,
            optional=True,
            text="As the ratio of coefficients, of as many kept neurons drawn from the same layers.",
        ),
    )

    class Options(base.Options):
        """How pruning is measured.

        Attributes:
            sparsities: the shares of components removed, for the curve.
            slice: the share that is sliced away for real.
            allocation: "layerwise" removes the same share of every layer, "global" the lowest scores of all.
            recovery_steps: of LoRA training after slicing; 0 for none.
        """

        sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(SPARSITIES, min_length=1)
        slice: float = Field(0.5, gt=0, lt=1)
        allocation: Allocation = "layerwise"
        recovery_steps: int = Field(0, ge=0)

    shapes: ClassVar = {
        "sparsities": "sparsities",
        "clean": "examples 3",
        "masked": "sparsities examples 3",
        "masked_absolute": "sparsities examples 3",
    }

    allocation: Allocation
    sparsities: list[float]
    examples_sha256: str
    clean: list[list[float]]
    masked: list[list[list[float]]]
    masked_absolute: list[list[list[float]]]
    capability: Capability | None = None
    slice_sparsity: float
    sliced: Slice | None = None
    not_sliced: str | None = None
    recovery: Recovery | None = None

    @property
    def n(self) -> int:
        return len(self.clean)

    def check_values(self) -> None:
        if not self.sparsities or not self.clean:
            raise ValueError("sparsities or clean are empty")
        if self.recovery is not None and len(self.recovery.after) != self.n:
            raise ValueError(f"recovery.after has {len(self.recovery.after)} entries where there are {self.n} examples")

    def accuracy(self, index: NDArray[np.intp], absolute: bool = False) -> Array:
        """``[1 + sparsities, ...]``: untouched and at every sparsity, for example indices ``[..., N]``."""
        curve = self.masked_absolute if absolute else self.masked
        correct = np.asarray([self.clean, *curve])[..., Measure.CORRECT]
        return correct[:, index].mean(-1)

    def statistics(self) -> dict[str, Statistic]:
        statistics: dict[str, Statistic] = {**self._curve(False), **self._curve(True)}
        if self.recovery is not None:
            statistics["pruning_accuracy_recovered"] = self.recovery.accuracy
        return statistics

    def _curve(self, absolute: bool) -> dict[str, Statistic]:
        sparsity = np.array([0.0, *self.sparsities])
        middle = int(np.abs(sparsity[1:] - 0.5).argmin()) + 1

        def area(index: NDArray[np.intp]) -> Array:
            return np.trapezoid(self.accuracy(index, absolute), sparsity, axis=0) / sparsity[-1]

        def kept_sparsity(index: NDArray[np.intp]) -> Array:
            accuracy = self.accuracy(index, absolute)
            # an accuracy of zero has nothing to be kept; the margin is for shares that are equal but for rounding
            keeps = (accuracy[1:] >= KEPT * accuracy[0] - 1e-9) & (accuracy[0] > 0)
            return sparsity[np.logical_and.accumulate(keeps, axis=0).sum(0)]

        suffix = "_absolute" if absolute else ""
        return {
            f"pruning_accuracy_area{suffix}": area,
            f"pruning_kept_sparsity{suffix}": kept_sparsity,
            f"pruning_accuracy_half{suffix}": lambda index: self.accuracy(index, absolute)[middle],
        }

    def gaps(self) -> dict[str, str]:
        gaps = {} if self.not_sliced is None else {"slice": self.not_sliced}
        return gaps | ({} if self.capability is None else self.capability.gaps())

    def scalars(self) -> dict[str, Scalar]:
        """What the slice saves and costs: parameters, speed (smallest and largest repeat), capability, coefficients."""
        if self.sliced is None:
            return {}
        slow, fast = np.array(self.sliced.seconds_before), np.array(self.sliced.seconds_after)
        ratios = slow / fast
        scalars: dict[str, Scalar] = {
            "parameters_removed": (1 - self.sliced.parameters_after / self.sliced.parameters_before, None, None),
            "speed_up": (float(np.median(slow) / np.median(fast)), float(ratios.min()), float(ratios.max())),
        }
        recovered = None if self.recovery is None else self.recovery.capability
        for name, after in (("capability_kept", self.sliced.capability), ("capability_recovered", recovered)):
            share = math.nan if self.capability is None or after is None else kept(self.capability, after)
            if not math.isnan(share):  # as it is where no task could be measured
                scalars[name] = (share, None, None)
        for name, group in (("coefficient_ratio", "top"), ("coefficient_ratio_control", "same_layers")):
            if self.recovery is not None and group in self.recovery.coefficients:
                scalars[name] = self.recovery.coefficients[group].ratio()
        return scalars


def paired_difference(a: Pruning, b: Pruning, sparsity: float, absolute: bool = False) -> Scalar:
    """Accuracy of ``a`` minus that of ``b`` on the same examples at one sparsity, with its bootstrap interval.

    Examples that share a base item are drawn together.

    Args:
        absolute: where what scores nearest to zero was removed first.

    Raises:
        ConfigurationError: the two were measured on different examples, or not at this sparsity.
    """
    if a.examples_sha256 != b.examples_sha256:
        raise ConfigurationError(
            f"two pruning records of different test examples ({len(a.clean)} and {len(b.clean)}) cannot be compared "
            f"example by example; compare records of one task, model and seed."
        )
    for one in (a, b):
        if sparsity not in one.sparsities:
            raise ConfigurationError(
                f"pruning was not measured at sparsity {sparsity:g}, only at "
                f"{', '.join(f'{s:g}' for s in one.sparsities)}."
            )
    curves = [one.masked_absolute if absolute else one.masked for one in (a, b)]
    correct = [np.asarray(c[one.sparsities.index(sparsity)])[:, Measure.CORRECT] for c, one in zip(curves, (a, b))]
    difference = correct[0] - correct[1]
    interval = bootstrap_interval(a.n, lambda index: difference[index].mean(-1), items=a.clusters(()))
    low, high = interval or (None, None)
    return float(difference.mean()), low, high
