"""Gradient times activation: the first-order effect of scaling a component down."""

from __future__ import annotations

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

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        names = level.hooks(model)
        run = model.run(batch, names, gradients=True)
        gradients = run.gradients(model.metric(run.logits, batch), names)
        return level.reduce(model, {name: run[name].detach() * gradients[name] for name in names})
