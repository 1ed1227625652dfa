"""How pruning is measured; what the curve says stands in :mod:`attriboard.measurements.pruning`.

The signed scores decide: what a method scores lowest goes first, so what works against the answer goes before what does
nothing. Because that alone can ruin a model, the curve is measured once more with what a method scores nearest to zero
removed first ("absolute"). Under the "layerwise" allocation every layer loses the same share, so that the sliced model
is an ordinary model of smaller width and ``random`` is the same-layer control of every method; under "global" the whole
model is ranked at once.

Components are removed twice. *As masks*, at a series of sparsities, by setting their activations to zero at every
position (biases of the output projections stay): accuracy on all drawn test examples. *Really*, at one sparsity, by
:mod:`attriboard.slicing`: the smaller model must give the logits of the masked one, and is timed against the original.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from ..errors import ConfigurationError, ModelError, TaskError
from ..interventions import measure_all, replacing
from ..measurements.pruning import SPARSITIES, Allocation, Pruning, Slice
from ..scores import ordered
from ..slicing import around, check_prunable, parameters, slice_model
from ..task import image_hash
from .base import Evaluation, Job
from .controls import matched_draw
from .recovery import recover
from .timing import timed

if TYPE_CHECKING:
    from ..components import Level
    from ..measurements.capability import Capability
    from ..model import Batch, Edit, EncodedExample, Model
    from ..scores import Scores
    from .context import Context

WATCHED = 50
"""How many of the best neurons kept are watched during recovery."""


class PruningEvaluation(Evaluation):
    """The curve by masks and the sliced model, on all drawn test examples."""

    name = "pruning"
    measurement = Pruning
    version = 2

    def measure(self, job: Job) -> Pruning:
        options: Pruning.Options = job.options
        return evaluate(
            job.context,
            job.component_scores,
            job.level,
            options.allocation,
            options.sparsities,
            options.slice,
            speed_repeats=job.speed_repeats,
            capability=job.capability.measure,
            capability_before=job.capability.before(),
            recovery_steps=options.recovery_steps,
            seed=job.seed,
        )


def removed(values: Tensor, sparsity: float, allocation: Allocation = "layerwise") -> Tensor:
    """``[n]`` bool: the lowest-scored share of the components, in row-major order.

    Which of equal scores go is drawn at random, once and always alike: every set is a model of its own, and the larger
    of two sets holds the smaller one.

    Args:
        values: ``[layers, ...]`` scores.
        sparsity: the share, between 0 and 1; the number removed, of each layer or of the whole model, is the whole
            number nearest to it.

    Raises:
        ConfigurationError: a sparsity outside (0, 1), or another allocation.
    """
    _check(sparsity, allocation)
    rows = values.flatten(1) if allocation == "layerwise" else values.flatten()[None]
    order = torch.stack([ordered(-row, seed=layer) for layer, row in enumerate(rows)])
    lowest = order[:, : int(sparsity * rows.shape[1] + 0.5)]
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
    pruning = Pruning(
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
        pruning.not_sliced = str(error)
        return pruning
    sliced = around(model, hf)
    difference = check_slice(model, sliced, level, mask, examples)
    batch = model.batch(examples[:speed_examples])
    before, after = timed_in_turn(model, sliced, batch, speed_repeats)
    pruning.sliced = Slice(
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
        pruning.recovery = recover(sliced, train, examples, recovery_steps, seed, neurons, capability)
    return pruning


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
    # heads of a small model can be all that it has: without them every logit is zero
    difference = worst / largest if largest else math.inf if worst else 0.0
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
    order = ordered(scores.values.flatten()[kept], seed=0)
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
