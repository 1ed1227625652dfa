"""What a neuron's output vector says about the answer through the unembedding: weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.method import Method, true_or_false
from attriboard.model import Batch, EncodedExample, Model
from attriboard.scores import Scores
from attriboard.shape import Shape


@dataclass
class LmHeadDecoding(Method):
    """The z-score of the answer's logit among the vocabulary's, when the output vector alone is unembedded.

    The logits of neuron ``j`` of layer ``l`` are ``W_U x`` with ``x`` the row ``W_out[l, j]``, centered where the
    final norm centers, times the final norm's weight: the logit lens of the vector. Scale and biases are not the
    neuron's: the scale cancels in the z-score, the biases are left out. Where a norm follows the FFN (Gemma 2 and 3),
    its weight is applied first; its scale cancels too. A vector without any effect on the logits scores 0.

    Mean and standard deviation over the vocabulary come from the moments of ``W_U``: with ``u`` its mean row and ``C``
    the covariance of its rows, ``z = (W_U[t] - u) . x / sqrt(x^T C x)``. This is exact, and no logits are made.

    Weights do not tell the sign of the coefficient that multiplies the vector. In a gated FFN it is a product of gate
    and up-projection and takes both signs, so a vector that points away from the answer promotes it whenever the
    coefficient is negative: by default the score is the size of the z-score. Without a gate coefficients are rarely
    below zero, and ``signed`` keeps the sign: neurons that promote the answer first, those that suppress it last.

    Options:
        signed: keep the z-score's sign.
    """

    name = "lm_head_decoding"
    paper = "Geva et al. 2022, arXiv 2203.14680; nostalgebraist 2020 (logit lens)"
    description = "z-score of the answer's logit when the neuron's output vector alone is unembedded"
    levels = ("neurons",)
    needs = frozenset({"weights"})
    reads = ("answer",)
    properties = ("ignores_output_scale", "zero_for_idle", "uses_answer", "ignores_foil")

    signed: bool = False
    _spreads: list[Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        true_or_false(self, "signed")

    def passes(self, shape: Shape, level: Level) -> float:
        moments = shape.product(shape.d_model, shape.d_vocab, shape.d_model)
        spreads = shape.n_layers * shape.product(shape.d_mlp, shape.d_model, shape.d_model)
        return (moments + spreads) / shape.examples

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """As :meth:`.Method.attribute`; what weights alone decide is computed once for all batches."""
        self._spreads = _spreads(model)
        try:
            return super().attribute(model, examples, level)
        finally:
            self._spreads = None  # the next call may be of a model whose weights have changed

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        answers, place = batch.answer.unique(return_inverse=True)
        spreads = _spreads(model) if self._spreads is None else self._spreads
        directions = model.W_U[answers].float() - model.W_U.float().mean(0)
        per_layer = []
        for layer, spread in enumerate(spreads):
            x = _read_by_unembedding(model, layer)
            per_layer.append(torch.where(spread > 0, directions @ x.T / spread, 0.0))
        z = torch.stack(per_layer, dim=1)[place]  # [B, L, d_mlp]
        return z if self.signed else z.abs()


def _spreads(model: Model) -> list[Tensor]:
    """By layer ``[d_mlp]``: the standard deviation over the vocabulary of each output vector's logits."""
    rows = model.W_U.float()
    rows = rows - rows.mean(0)
    covariance = rows.T @ rows / len(rows)
    model.cost.product(model.d_model, model.d_vocab, model.d_model)
    spreads = []
    for layer in range(model.n_layers):
        x = _read_by_unembedding(model, layer)
        spreads.append(((x @ covariance) * x).sum(-1).clamp(min=0).sqrt())
        model.cost.product(model.d_mlp, model.d_model, model.d_model)
    return spreads


def _read_by_unembedding(model: Model, layer: int) -> Tensor:
    """``[d_mlp, d_model]`` float32: what the unembedding multiplies for each output vector, up to a positive factor."""
    x = model.W_out(layer).float()
    # any coefficients do: they set the scale of a norm after the FFN, which cancels, and not its weight
    gain = model.mlp_gain(layer, model.W_out(layer).new_ones(model.d_mlp))
    if gain is not None:
        x = x * gain
    if not model.architecture.rms:
        x = x - x.mean(-1, keepdim=True)
    return x * model.final_norm_weight
