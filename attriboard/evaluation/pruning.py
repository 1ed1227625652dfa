"""Pruning: how much of the task survives when the lowest-scored components are removed?

The signed scores decide: what a method scores lowest goes first, so what works against the answer goes before what does
nothing. Because that alone can ruin a model, the curve is measured once more with what a method scores nearest to zero
removed first ("absolute"). Under the "layerwise" allocation every layer loses
the same share, so that the sliced model is a plain model of smaller width and ``random`` is the same-layer control of
every method; under "global" the whole model is ranked at once.

Components are removed twice. *As masks*, at a series of sparsities, by setting their activations to zero at every
position (biases of the output projections stay): accuracy on all drawn test examples, answered before or not, since
pruning may break right answers and mend wrong ones. *Really*, at one sparsity, by :mod:`attriboard.slicing`: the
smaller model must give the logits of the masked one, and is timed against the original.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..errors import ConfigurationError, ModelError, TaskError
from ..interventions import MEASURES, measure_all, replacing
from ..measurements.base import Family, Scalar, Statistic
from ..slicing import around, check_prunable, parameters, slice_model
from ..stats.intervals import Array, bootstrap_interval
from ..task import image_hash
from .ablation import matched_draw
from .capability import Capability, kept
from .recovery import Coefficients, Recovery, recover
from .speed import timed

if TYPE_CHECKING:
    from ..components import Level
    from ..model import Batch, Edit, EncodedExample, Model
    from ..scores import Scores
    from .context import Context

Allocation = Literal["layerwise", "global"]
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
KEPT = 0.95
"""The share of the untouched accuracy that counts as kept."""
WATCHED = 50
"""How many of the best neurons kept are watched during recovery."""
_CORRECT = MEASURES.index("correct")


class Slice(BaseModel):
    """The smaller model at one sparsity.

    Attributes:
        difference: largest difference between its logits and the masked model's, as a share of the largest logit.
        parameters_before, parameters_after: how many the whole model has.
        timed_examples: examples in the batch that was timed.
        seconds_before, seconds_after: of one forward pass of that batch, by repeat, the two models in turn.
        capability: what it can still do; None if that was not measured.
    """

    model_config = ConfigDict(extra="forbid")

    difference: float
    parameters_before: int
    parameters_after: int
    timed_examples: int
    seconds_before: list[float]
    seconds_after: list[float]
    capability: Capability | None = None


class Pruning(Family):
    """Per-example measurements behind the curve, and what was measured of the sliced model.

    Attributes:
        allocation: "layerwise" or "global".
        sparsities: shares of the components removed, ascending.
        examples_sha256: of the drawn test examples, in order.
        clean: ``[N][3]``: the :data:`~attriboard.interventions.MEASURES` of every drawn test example, untouched.
        masked: ``[sparsities][N][3]``: the same with the components removed by masks.
        masked_absolute: the same where what a method scores nearest to zero goes first.
        capability: what the untouched model can do; None if that was not measured.
        slice_sparsity: share of the components that the sliced model lacks.
        sliced: the sliced model; None where there is none.
        not_sliced: why there is none.
        recovery: what a little training of the sliced model brought back; None where none was asked for.
    """

    over_kept: ClassVar[bool] = False

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

    def accuracy(self, index: NDArray[np.intp], absolute: bool = False) -> Array:
        """``[1 + sparsities, ...]``: untouched and at every sparsity, for example indices ``[..., N]``."""
        correct = np.asarray([self.clean, *(self.masked_absolute if absolute else self.masked)])[..., _CORRECT]
        return correct[:, index].mean(-1)

    def statistics(self) -> dict[str, Statistic]:
        found: dict[str, Statistic] = {**self._curve(False), **self._curve(True)}
        if self.recovery is not None:
            found["pruning_accuracy_recovered"] = self.recovery.accuracy
        return found

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
        found = {} if self.not_sliced is None else {"slice": self.not_sliced}
        return found | ({} if self.capability is None else self.capability.gaps())

    def scalars(self) -> dict[str, Scalar]:
        """What the slice saves and costs: parameters, speed (smallest and largest repeat), capability, coefficients."""
        if self.sliced is None:
            return {}
        slow, fast = np.array(self.sliced.seconds_before), np.array(self.sliced.seconds_after)
        ratios = slow / fast
        found: dict[str, Scalar] = {
            "parameters_removed": (1 - self.sliced.parameters_after / self.sliced.parameters_before, None, None),
            "speed_up": (float(np.median(slow) / np.median(fast)), float(ratios.min()), float(ratios.max())),
        }
        recovered = None if self.recovery is None else self.recovery.capability
        for name, after in (("capability_kept", self.sliced.capability), ("capability_recovered", recovered)):
            share = math.nan if self.capability is None or after is None else kept(self.capability, after)
            if not math.isnan(share):  # as it is where no task could be measured
                found[name] = (share, None, None)
        for name, group in (("coefficient_ratio", "top"), ("coefficient_ratio_control", "same_layers")):
            if self.recovery is not None and group in self.recovery.coefficients:
                found[name] = _ratio(self.recovery.coefficients[group])
        return found


def _ratio(coefficients: Coefficients) -> Scalar:
    """Mean size after training over mean size before it, with its interval over neurons."""
    before, after = np.array(coefficients.before), np.array(coefficients.after)

    def ratio(index: NDArray[np.intp]) -> Array:
        return after[index].mean(-1) / before[index].mean(-1)

    low, high = bootstrap_interval(len(before), ratio) or (None, None)
    return float(ratio(np.arange(len(before)))), low, high


def removed(values: Tensor, sparsity: float, allocation: Allocation = "layerwise") -> Tensor:
    """``[n]`` bool: the lowest-scored share of the components, in row-major order; of equal scores the first.

    Args:
        values: ``[layers, ...]`` scores.
        sparsity: the share, between 0 and 1; the number removed, of each layer or of the whole model, is the whole
            number nearest to it.

    Raises:
        ConfigurationError: a sparsity outside (0, 1), or another allocation.
    """
    _check(sparsity, allocation)
    rows = values.flatten(1) if allocation == "layerwise" else values.flatten()[None]
    lowest = torch.argsort(rows, dim=1, stable=True)[:, : int(sparsity * rows.shape[1] + 0.5)]
    return torch.zeros(rows.shape, dtype=torch.bool, device=rows.device).scatter_(1, lowest, True).flatten().cpu()


def _check(sparsity: float, allocation: str) -> None:
    if not 0 < sparsity < 1:
        raise ConfigurationError(
            f"pruning sparsity {sparsity:g} is not a share of the components to remove; choose one between 0 and 1."
        )
    if allocation not in get_args(Allocation):
        known = " or ".join(get_args(Allocation))
        raise ConfigurationError(f"pruning allocation {allocation!r} is unknown; choose {known}.")


def evaluate(
    context: Context,
    scores: Scores,
    level: Level,
    allocation: Allocation = "layerwise",
    sparsities: Sequence[float] = SPARSITIES,
    slice_sparsity: float = 0.5,
    speed_examples: int = 8,
    speed_repeats: int = 5,
    capability: Callable[[Model], Capability] | None = None,
    capability_before: Capability | None = None,
    recovery_steps: int = 0,
    seed: int = 0,
) -> Pruning:
    """The curve by masks and the sliced model, on all drawn test examples.

    Args:
        speed_examples, speed_repeats: how many examples the timed batch has, and how often both models are timed.
        capability: measures what the sliced model can still do (see :func:`attriboard.evaluation.capability.measure`).
        capability_before: the same of the untouched model.
        recovery_steps: of training the sliced model on the drawn train examples; 0 for none.
        seed: of that training.

    Raises:
        SkipCell: a level that cannot be pruned.
        ConfigurationError: sparsities outside (0, 1) or not ascending, an allocation that does not exist.
        TaskError: a pruned model's measures are not finite.
        ModelError: the sliced model does not compute what the masked one does.
    """
    check_prunable(level)
    if not sparsities or list(sparsities) != sorted(set(sparsities)):
        raise ConfigurationError(f"pruning sparsities {list(sparsities)} are not a list of ascending numbers.")
    for sparsity in (*sparsities, slice_sparsity):
        _check(sparsity, allocation)
    model, examples = context.model, context.drawn["test"]
    masks = [
        removed(values, sparsity, allocation)
        for values in (scores.values, scores.values.abs())
        for sparsity in sparsities
    ]
    distinct, place = torch.stack(masks).unique(dim=0, return_inverse=True)  # methods without signs have one curve
    clean = measure_all(model, examples, {})
    under = torch.stack([measure_all(model, examples, removing(model, level, mask)) for mask in distinct])[place]
    masked, masked_absolute = under[: len(sparsities)], under[len(sparsities) :]
    if not bool(torch.isfinite(clean).all() and torch.isfinite(under).all()):
        raise TaskError(
            f"the metric of task {context.task.name!r} is not finite when {level.name} are pruned in {model.dtype}; "
            f"choose another dtype."
        )
    found = Pruning(
        base_items=[e.example.item for e in context.drawn["test"]],
        allocation=allocation,
        sparsities=list(sparsities),
        examples_sha256=_digest(examples),
        clean=clean.tolist(),
        masked=masked.tolist(),
        masked_absolute=masked_absolute.tolist(),
        capability=capability_before,
        slice_sparsity=slice_sparsity,
    )
    mask = removed(scores.values, slice_sparsity, allocation)
    try:
        hf = slice_model(model, ~mask, level)
    except ModelError as error:
        found.not_sliced = str(error)
        return found
    sliced = around(model, hf)
    difference = check_slice(model, sliced, level, mask, examples)
    batch = model.batch(examples[:speed_examples])
    before, after = timed_in_turn(model, sliced, batch, speed_repeats)
    found.sliced = Slice(
        difference=difference,
        parameters_before=parameters(model.hf),
        parameters_after=parameters(hf),
        timed_examples=len(batch),
        seconds_before=before,
        seconds_after=after,
        capability=None if capability is None else capability(sliced),
    )
    if recovery_steps:
        neurons = _watched(model, scores, level, ~mask) if level.hidden_units else {}
        train = context.drawn["train"]
        found.recovery = recover(sliced, train, examples, recovery_steps, seed, neurons, capability)
    return found


def removing(model: Model, level: Level, mask: Tensor) -> dict[str, Edit]:
    """Edits that remove the components of ``mask`` ``[n]`` from every row at every position."""
    slices = level.slices(model, mask[None])
    return replacing(dict.fromkeys(slices, torch.zeros(())), slices)


def check_slice(model: Model, sliced: Model, level: Level, mask: Tensor, examples: Sequence[EncodedExample]) -> float:
    """The largest difference between the logits of masked and sliced model, as a share of the largest logit.

    Raises:
        ModelError: it is more than rounding explains.
    """
    worst = largest = 0.0
    edits = removing(model, level, mask)
    for batch in model.batches(examples):
        expected = model.run(batch, edits=edits).logits.float()
        worst = max(worst, float((sliced.run(batch).logits.float() - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    difference = worst / largest
    if not difference <= model.tolerance:
        raise ModelError(
            f"{model.name} without {int(mask.sum())} of its {level.name} gives other logits when they are sliced off "
            f"than when they are masked: off by {difference:.2g} of the largest logit."
        )
    return difference


def timed_in_turn(model: Model, sliced: Model, batch: Batch, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a forward pass of each model on one batch, by repeat, after one pass of each to warm up."""
    before, after = [], []
    for _ in range(repeats + 1):
        before.append(timed(lambda: model.run(batch), model.device))
        after.append(timed(lambda: sliced.run(batch), model.device))
    return before[1:], after[1:]


def _watched(model: Model, scores: Scores, level: Level, keep: Tensor) -> dict[str, dict[str, int]]:
    """The best neurons kept, and as many kept ones of the same layers: by name, their index in the sliced model."""
    kept = torch.nonzero(keep)[:, 0]
    order = torch.argsort(scores.values.flatten()[kept], descending=True, stable=True)
    top = torch.zeros(len(kept), dtype=torch.bool)
    top[order[:WATCHED]] = True
    layer_of = level.layer_of(model)[kept]
    per_layer = keep.view(model.n_layers, -1)
    index = (per_layer.cumsum(1) - 1 + torch.arange(model.n_layers)[:, None] * per_layer.sum(1).max()).flatten()
    return {
        name: {scores.names[i]: int(index[i]) for i in kept[chosen].tolist()}
        for name, chosen in (("top", top), ("same_layers", matched_draw(top, layer_of, 0)))
    }


def _digest(examples: Sequence[EncodedExample]) -> str:
    digest = hashlib.sha256()
    for e in examples:
        look = None if e.example.image is None else image_hash(e.example.image)
        digest.update(repr((e.tokens, e.answer, e.foil, e.example.choice, look)).encode())
    return digest.hexdigest()


def paired_difference(a: Pruning, b: Pruning, sparsity: float, absolute: bool = False) -> Scalar:
    """Accuracy of ``a`` minus that of ``b`` on the same examples at one sparsity, with its bootstrap interval.

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
    correct = [np.asarray(c[one.sparsities.index(sparsity)])[:, _CORRECT] for c, one in zip(curves, (a, b))]
    difference = correct[0] - correct[1]
    low, high = bootstrap_interval(len(difference), lambda index: difference[index].mean(-1)) or (None, None)
    return float(difference.mean()), low, high
