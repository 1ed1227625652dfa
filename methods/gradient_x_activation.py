"""Gradient times activation: the first-order effect of scaling a component down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from attriboard.components import Level
from attriboard.method import Method
from attriboard.model import Batch, Model


@dataclass
class GradientXActivation(Method):
    """``activation . d metric / d activation`` on the clean prompt, summed over positions."""

    name = "gradient_x_activation"
    paper = "Shrikumar et al. 2016, arXiv 1605.01713; Michel et al. 2019, arXiv 1905.10650 (heads, absolute)"
    description = "activation times gradient: first-order effect of zeroing the component"
    levels = ("heads", "neurons")
    needs = frozenset({"forward", "gradients"})
    reads = ("answer", "foil")
    properties = ("finite_differences", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        return level.reduce(model, products(model, batch, level, model.metric))


def products(
    model: Model, batch: Batch, level: Level, explained: Callable[[Tensor, Batch], Tensor]
) -> dict[str, Tensor]:
    """Activation times gradient at every position, by activation name ``[B, T, ...]``.

    Args:
        level: whose activations.
        explained: what is differentiated, from logits ``[B, V]`` and the batch to ``[B]``.
    """
    names = level.hooks(model)
    run = model.run(batch, names, gradients=True)
    gradients = run.gradients(explained(run.logits, batch), names)
    return {name: run[name].detach() * gradients[name] for name in names}
