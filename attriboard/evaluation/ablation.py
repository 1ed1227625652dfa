"""How ablation drops are measured; what they are stands in :mod:`attriboard.measurements.ablation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ..levels import Replacement
from ..measurements.ablation import Ablation, sizes
from ..measurements.base import Measure
from ..scores import top_mask
from .base import Evaluation, Job
from .controls import matched_draw

if TYPE_CHECKING:
    from ..components import Level
    from ..scores import Scores
    from .context import Context


class AblationEvaluation(Evaluation):
    """The top components beside random ones of the same layers, on the test split."""

    name = "ablation"
    measurement = Ablation

    def measure(self, job: Job) -> Ablation:
        replacement = cast(Replacement, job.replacement)
        return evaluate(job.context, job.component_scores, job.level, replacement, job.options.draws)


def evaluate(context: Context, scores: Scores, level: Level, replacement: Replacement, draws: int) -> Ablation:
    """Replaces the top components, and ``draws`` random sets matched to each, on the test split."""
    n = level.size(context.model)
    layer_of, ranking, ks = level.layer_of(context.model), scores.ranking(), sizes(n)
    tops = [top_mask(ranking, k) for k in ks]
    random = [matched_draw(top, layer_of, draw) for draw in range(draws) for top in tops]
    wanted = torch.stack([torch.zeros(n, dtype=torch.bool), *tops, *random])
    rows = context.measure(level, replacement, wanted)[:, :, [Measure.LOGPROB, Measure.CORRECT]]
    count = len(ks)
    return Ablation(
        sizes=ks,
        clean=rows[0].tolist(),
        top=rows[1 : 1 + count].tolist(),
        random=rows[1 + count :].view(draws, count, *rows.shape[1:]).tolist(),
    )
