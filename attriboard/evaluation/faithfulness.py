"""How faithfulness is measured; what the curves say stands in :mod:`attriboard.measurements.faithfulness`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ..errors import TaskError
from ..levels import Replacement
from ..measurements.base import Measure
from ..measurements.faithfulness import Faithfulness, mib_sizes, sizes
from ..scores import top_mask
from .base import Evaluation, Job

if TYPE_CHECKING:
    from ..components import Level
    from ..scores import Scores
    from .context import Context


class FaithfulnessEvaluation(Evaluation):
    """Both curves and MIB's, on the test split."""

    name = "faithfulness"
    measurement = Faithfulness

    def measure(self, job: Job) -> Faithfulness:
        return evaluate(job.context, job.component_scores, job.level, cast(Replacement, job.replacement))


def evaluate(context: Context, scores: Scores, level: Level, replacement: Replacement) -> Faithfulness:
    """Both curves and MIB's, on the test split.

    Raises:
        TaskError: replacing every component leaves the metric where it was, so there is nothing to explain.
    """
    n = level.size(context.model)
    signed, absolute = scores.ranking(), scores.ranking(absolute=True)
    ks, mib = sizes(n), mib_sizes(n)
    kept_signed = [top_mask(signed, k) for k in ks]
    wanted = [
        torch.zeros(n, dtype=torch.bool),
        torch.ones(n, dtype=torch.bool),
        *(~top for top in kept_signed),
        *kept_signed,
        *(~top_mask(signed, k) for k in mib),
        *(~top_mask(absolute, k) for k in mib),
    ]
    metric = context.measure(level, replacement, torch.stack(wanted))[:, :, Measure.METRIC]
    rows = metric.tolist()
    full, empty = rows[0], rows[1]
    if not bool(metric.isfinite().all()):
        raise TaskError(
            f"the metric of task {context.task.name!r} is not finite when {level.name} are replaced ({replacement}) in "
            f"{context.model.dtype}; choose another dtype."
        )
    if abs(float(np.mean(full)) - float(np.mean(empty))) < 1e-6:
        raise TaskError(
            f"replacing all {n} {level.name} ({replacement}) does not change the metric of task {context.task.name!r}, "
            f"so no set of them can be faithful or not."
        )
    at = 2
    curves = []
    for length in (len(ks), len(ks), len(mib), len(mib)):
        curves.append(rows[at : at + length])
        at += length
    return Faithfulness(
        sizes=ks,
        full=full,
        empty=empty,
        sufficiency=curves[0],
        necessity=curves[1],
        mib_sizes=mib,
        mib_signed=curves[2],
        mib_absolute=curves[3],
    )
