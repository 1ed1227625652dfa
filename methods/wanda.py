"""Wanda: size of the output weights times size of the activation, the criterion of the pruning literature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.errors import MethodError
from attriboard.method import Method
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class Wanda(Method):
    """``sum_i |W_ij| * ||X_j||_2``, for a head summed over the inputs ``j`` of its block of the output projection.

    ``W`` is the projection through which the component writes, ``X_j`` its input ``j`` at all real tokens of all
    examples together, so the norm is not an average over examples. The paper scores single weights, ``|W_ij| *
    ||X_j||_2``, and compares those of one output; summed over outputs the same score ranks whole components.
    As published, a norm after the sub-layer (Gemma 2 and 3) is no part of it. It knows nothing of the answer.
    """

    name = "wanda"
    paper = "Sun et al. 2023, arXiv 2306.11695"
    description = "size of the output weights times the norm of the activation over all tokens"
    levels = ("heads", "neurons")
    needs = frozenset({"forward", "weights"})
    control = True
    properties = ("scales_with_output", "zero_for_idle", "zero_for_dead", "ignores_answer")

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """As in the class; all examples together.

        Raises:
            MethodError: another level than heads or neurons, or no examples.
        """
        self.check_level(level)
        if not examples:
            raise MethodError(f"{self.name} was given no examples.")
        names, weight = level.hooks(model), level.output_weights
        squares = [torch.zeros((), dtype=torch.float64, device=model.device) for _ in names]
        for batch in model.batches(examples):
            run = model.run(batch, names)
            squares = [s + run[name][batch.real].double().square().sum(0) for s, name in zip(squares, names)]
        per_input = torch.stack([s.sqrt() * weight(model, i).double().abs().sum(-1) for i, s in enumerate(squares)])
        return self.scores(per_input if level.one_vector else per_input.sum(-1), model, level)
