"""Relevancy: attention weighted by its gradient, followed through the layers down to the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError, SkipCell
from attriboard.method import Method
from attriboard.model import Batch, EncodedExample, Model, hook_name
from attriboard.shape import Shape

THROUGH = ("language_model", "vision_tower")


@dataclass
class Relevancy(Method):
    """``R <- R + A R`` from ``R = I`` through the layers, where ``A = mean_h max(0, gradient * attention)``.

    The gradient is that of the metric. ``language_model``: the last token's row of ``R - I``, divided by its sum. The
    published map adds the identity again, which gives the last token 1; it stays out here, so that tokens can be
    compared. Only the first generated token is explained, and its logits as the model gives them.

    ``vision_tower`` (patches only) is the published variant that goes on into the vision tower: it starts from the
    block of ``R`` that relates the picture's positions to each other, with a row and column of the identity in front
    for the tower's class token, goes through the tower's layers in the same way, and takes the class token's row of
    ``R - I``, divided by its sum. Layers of the tower that the language model does not see have no part.

    Options:
        through: "language_model" or "vision_tower".
    """

    name = "relevancy"
    paper = "Chefer et al. 2021, arXiv 2103.15679; Stan et al. 2024 (LVLM-Interpret), arXiv 2404.03118"
    description = "positive attention times gradient, followed through the layers"
    levels = ("patches", "tokens")
    needs = frozenset({"forward", "gradients"})
    reads = ("answer", "foil")
    properties = ("sums_to_one", "zero_for_idle", "uses_answer")

    through: str = "language_model"

    def __post_init__(self) -> None:
        if self.through not in THROUGH:
            raise ConfigurationError(
                f"through of {self.name} is {self.through!r}, expected one of {', '.join(THROUGH)}."
            )

    def passes(self, shape: Shape, level: Level) -> float:
        tower = 3 * shape.look if self.through == "vision_tower" else 0.0
        return super().passes(shape, level) + tower

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if self.through == "vision_tower" and not level.image:
            raise SkipCell(f"{self.name} through the vision tower scores patches, not {level.name}.")
        names = [hook_name("pattern", layer) for layer in range(model.n_layers)]
        run = model.run(batch, [*names, "hook_embed"], gradients=True)
        gradients = run.gradients(model.metric(run.logits, batch), [*names, "hook_embed"])
        weighted = [_positive(run[name], gradients[name]) for name in names]
        if self.through == "language_model":
            start = torch.nn.functional.one_hot(batch.last, batch.tokens.shape[1]).float()
            row = start
            for attention in reversed(weighted):  # the last row of the product needs no other row
                row = row + torch.einsum("bq,bqk->bk", row, attention)
            return _normalized(row - start)
        relevancy = torch.eye(batch.tokens.shape[1], device=model.device).expand(len(batch), -1, -1)
        for attention in weighted:
            relevancy = relevancy + attention @ relevancy
        scores = torch.zeros(batch.tokens.shape, device=model.device)
        for b, (encoded, placed) in enumerate(zip(batch.examples, batch.image_mask)):
            block = relevancy[b][placed][:, placed]
            scores[b, placed] = self._tower(model, encoded, block, gradients["hook_embed"][b, placed])
        return scores

    def _tower(self, model: Model, encoded: EncodedExample, block: Tensor, gradient: Tensor) -> Tensor:
        """``[n_patches]``: from the picture's block of the language model's ``R`` down to the picture.

        Args:
            block: ``[n_patches, n_patches]``.
            gradient: ``[n_patches, d_model]``, of the metric at the image features; the tower takes it further.
        """
        if model.vision is None or encoded.example.image is None:
            raise SkipCell(f"{self.name} through the vision tower needs examples with an image.")
        inputs = model.vision.inputs(encoded.example.prompt, encoded.example.image)
        with torch.enable_grad(), model.vision.patterns() as patterns:
            features = model.features(inputs)
        n = len(block) + 1
        if any(pattern.shape[-2:] != (n, n) for pattern in patterns):
            raise SkipCell(
                f"{self.name} through the vision tower needs a tower with a class token and one token per patch, which "
                f"{model.name} does not have."
            )
        slopes = torch.autograd.grad(features, patterns, gradient.to(features.dtype), allow_unused=True)
        model.cost.back(model.vision.flops)
        identity = torch.eye(n, device=block.device)
        relevancy = identity.clone()
        relevancy[1:, 1:] = block
        for pattern, slope in zip(patterns, slopes):
            if slope is not None:
                relevancy = relevancy + _positive(pattern, slope)[0] @ relevancy
        return _normalized((relevancy - identity)[0])[1:]


def _positive(attention: Tensor, gradient: Tensor) -> Tensor:
    """``[B, T, T]``: attention ``[B, H, T, T]`` times its gradient, where positive, averaged over heads."""
    return (attention.detach().float() * gradient.float()).clamp(min=0).mean(1)


def _normalized(row: Tensor) -> Tensor:
    """``[..., n]``: divided by the sum over the last axis, where that is not zero."""
    total = row.sum(-1, keepdim=True)
    return row / torch.where(total == 0, 1.0, total)
