"""How ablation drops are measured; what they are stands in :mod:`attriboard.measurements.ablation`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..levels import Replacement
from ..measurements.ablation import Ablation, sizes
from ..measurements.base import Measure
from ..scores import top_mask
from .base import Evaluation, Job
from .controls import matched_draw
from .crossfit import Trial, judged, seed_of

if TYPE_CHECKING:
    from ..components import Level
    from .context import Context


class AblationEvaluation(Evaluation):
    """The top components beside random ones of the same layers, on every example kept."""

    name = "ablation"
    measurement = Ablation
    version = 2

    def measure(self, job: Job) -> Ablation:
        replacement = cast(Replacement, job.replacement)
        return evaluate(job.context, job.trials, job.level, replacement, job.options.draws)


def evaluate(context: Context, trials: Sequence[Trial], level: Level, replacement: Replacement, draws: int) -> Ablation:
    """Replaces the top components of every trial on its examples, and random sets matched to each.

    Args:
        draws: at least so many random sets of every size; the trials divide them among each other.
    """
    n = level.size(context.model)
    layer_of, ks = level.layer_of(context.model), sizes(n)

    def judge(trial: Trial) -> dict[str, Tensor]:
        orders = list(trial.orders())
        tops = [top_mask(order, k) for order in orders for k in ks]
        each = math.ceil(trial.draws(draws) / len(orders))
        random = [
            matched_draw(top, layer_of, seed_of(trial.seed, "matched", draw, i))
            for draw in range(each)
            for i, top in enumerate(tops)
        ]
        masks = torch.stack([torch.zeros(n, dtype=torch.bool), *tops, *random])
        measured = context.measure(level, replacement, masks, trial.members)
        logprob, right = measured[:, :, Measure.LOGPROB], measured[:, :, Measure.CORRECT]
        outcomes = torch.stack([logprob.exp(), logprob, right])  # [3, sets, members]
        clean, top, matched = outcomes.split([1, len(tops), len(random)], dim=1)
        return {
            "clean": clean[:, 0],
            "top": top.unflatten(1, (-1, len(ks))).mean(1),
            "random": matched.unflatten(1, (-1, len(ks))).mean(1),
        }

    rows = judged(context, trials, judge)
    return Ablation(
        sizes=ks,
        clean=rows.values["clean"].tolist(),
        top=rows.values["top"].tolist(),
        random=rows.values["random"].tolist(),
        base_items=rows.items,
        base_frames=rows.frames,
        train_groups=rows.train,
    )
