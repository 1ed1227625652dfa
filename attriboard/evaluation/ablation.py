"""How ablation drops are measured; what they are stands in :mod:`attriboard.measurements.ablation`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..measurements.ablation import Ablation, sizes
from ..measurements.base import Measure
from ..scores import top_mask
from .controls import matched_draw
from .crossfit import judged, seed_of
from .sets import ByName, Question, SetEvaluation, in_digits


class AblationEvaluation(SetEvaluation):
    """The top components beside random ones of the same layers, on every example kept."""

    name = "ablation"
    measurement = Ablation
    version = 3

    def sets(self, question: Question, options: Ablation.Options) -> list[ByName]:
        """Nothing, the top components of every trial, and random sets matched to each: by order, then by size."""
        n, layer_of = question.n, question.layer_of
        ks = sizes(n)
        asked = []
        for trial in question.trials:
            orders = list(trial.orders())
            tops = [top_mask(order, k) for order in orders for k in ks]
            # every trial draws its share of all draws, and each of its orders the same number
            each = math.ceil(trial.draws(options.draws) / len(orders))
            random = [
                matched_draw(top, layer_of, seed_of(trial.seed, "matched", draw, i))
                for draw in range(each)
                for i, top in enumerate(tops)
            ]
            clean = torch.zeros(1, n, dtype=torch.bool)
            asked.append({"clean": clean, "top": torch.stack(tops), "random": torch.stack(random)})
        return asked

    def made(self, question: Question, measured: Sequence[ByName]) -> Ablation:
        ks = sizes(question.n)
        rows = judged(question.context, question.trials, [_outcomes(of_trial, len(ks)) for of_trial in measured])
        return Ablation(
            sizes=ks,
            clean=in_digits(rows.values["clean"]),
            top=in_digits(rows.values["top"]),
            random=in_digits(rows.values["random"]),
            base_items=rows.items,
            base_frames=rows.frames,
            train_groups=rows.train,
        )


def _outcomes(measured: ByName, n_sizes: int) -> dict[str, Tensor]:
    """p(answer), its logarithm and whether it is the top token: ``[3, members]`` of clean, ``[3, sizes, members]``."""
    values = {}
    for name, rows in measured.items():
        logprob, right = rows[:, :, Measure.LOGPROB], rows[:, :, Measure.CORRECT]
        values[name] = torch.stack([logprob.exp(), logprob, right])
    averaged = {name: values[name].unflatten(1, (-1, n_sizes)).mean(1) for name in ("top", "random")}
    return {"clean": values["clean"][:, 0], **averaged}
