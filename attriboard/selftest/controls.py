"""What controls are: floors that know nothing of the answer or the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..components import COMPONENTS, LEVELS
from ..method import methods
from .bench import Case, PropertyError, usual_scores
from .properties import register


@register()
def standard_normal(case: Case) -> None:
    """Scores of many seeds, put together, are a sample of the standard normal distribution.

    Kolmogorov-Smirnov over 200 seeds, p above 0.001; the seeds are fixed, so that the outcome is too.
    """
    from scipy.stats import kstest  # takes half a second to import, and only this property needs it

    model, examples = case.model(), case.examples()
    drawn = torch.cat([case.scores(model, examples, seed=seed) for seed in range(200)])
    p = float(kstest(drawn.numpy(), "norm").pvalue)
    if not p > 1e-3:
        raise PropertyError(
            f"{case}: {len(drawn)} scores of 200 seeds have mean {float(drawn.mean()):.3g} and standard deviation "
            f"{float(drawn.std()):.3g}; that they are standard normal has p = {p:.2g}, expected above 0.001."
        )


@register(*COMPONENTS)
def orders_layers(case: Case) -> None:
    """A layer's components all have one score, and it always rises, or always falls, from layer to layer."""
    layers = LEVELS[case.level].shape(case.model())[0]
    scores = usual_scores(case).view(layers, -1)
    steps = scores[:, 0].diff()
    if not torch.equal(scores, scores[:, :1].expand_as(scores)) or not bool((steps > 0).all() or (steps < 0).all()):
        ends = ", ".join(f"{float(low):.3g} to {float(high):.3g}" for low, high in zip(*scores.aminmax(dim=1)))
        raise PropertyError(f"{case} gives the layers scores of {ends}, expected one each that rises or falls.")


@register(*COMPONENTS)
def permutes_reference(case: Case) -> None:
    """Within each layer the scores are those of the method called ``reference``, in an order that the seed decides.

    Bit for bit.
    """
    model, examples = case.model(), case.examples()
    reference: Any = case.make()
    layers = LEVELS[case.level].shape(model)[0]
    truth = replace(case, method=methods.get(reference.reference)).scores(model, examples).view(layers, -1)
    orders = [case.scores(model, examples, seed=seed).view(layers, -1) for seed in range(4)]
    for one in orders:
        what = f"the scores of {reference.reference} in each layer, sorted"
        case.agree(one.sort(1).values.flatten(), truth.sort(1).values.flatten(), 0.0, what)
    if all(torch.equal(one, truth) for one in orders) or all(torch.equal(one, orders[0]) for one in orders):
        raise PropertyError(f"{case} gives four seeds the same order, or that of {reference.reference}.")


@register("patches")
def mirror_symmetric(case: Case) -> None:
    """A patch and its mirror images on the other side of the grid's centre have the same score (1e-6)."""
    model, examples = case.model(), case.examples()
    assert model.vision is not None
    maps = usual_scores(case).view(len(examples), *model.vision.grid)
    for axis, name in ((1, "upside down"), (2, "left to right")):
        case.agree(maps.flip(axis).flatten(), maps.flatten(), 1e-6, f"the grid turned {name}")
