"""Gradient saliency of the input: how strongly the metric responds to a position's embedding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.method import Method
from attriboard.model import Batch, Model

KINDS = ("norm", "input")


@dataclass
class GradientSaliency(Method):
    """The gradient of the metric at each position's embedding (of a patch: its image feature), on the clean prompt.

    Options:
        kind: "norm": its Euclidean length, which has no sign; "input": its product with the embedding, the first-order
            effect of setting the embedding to zero.
    """

    name = "gradient_saliency"
    paper = "Simonyan et al. 2014, arXiv 1312.6034; Shrikumar et al. 2016, arXiv 1605.01713 (input)"
    description = "length of the gradient at the position's embedding, or its product with the embedding"
    levels = ("patches", "tokens")
    needs = frozenset({"forward", "gradients"})
    reads = ("answer", "foil")
    properties = ("gradient_norm", "zero_for_idle", "uses_answer")

    kind: str = "norm"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"kind of {self.name} is {self.kind!r}, expected one of {', '.join(KINDS)}.")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        run = model.run(batch, ["hook_embed"], gradients=True)
        gradient = run.gradients(model.metric(run.logits, batch), ["hook_embed"])["hook_embed"].float()
        if self.kind == "norm":
            return gradient.norm(dim=-1)
        return (run["hook_embed"].detach().float() * gradient).sum(-1)
