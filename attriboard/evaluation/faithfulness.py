"""How faithfulness is measured; what the curves say stands in :mod:`attriboard.measurements.faithfulness`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import TaskError
from ..levels import Replacement
from ..measurements.base import Measure
from ..measurements.faithfulness import Faithfulness, mib_sizes, sizes
from ..scores import ORDERS, ordered, top_mask
from .base import Evaluation, Job
from .controls import shuffled_within
from .crossfit import Trial, judged, seed_of

if TYPE_CHECKING:
    from ..components import Level
    from .context import Context


class FaithfulnessEvaluation(Evaluation):
    """All curves, on every example kept."""

    name = "faithfulness"
    measurement = Faithfulness
    version = 2

    def measure(self, job: Job) -> Faithfulness:
        return evaluate(job.context, job.trials, job.level, cast(Replacement, job.replacement))


def evaluate(context: Context, trials: Sequence[Trial], level: Level, replacement: Replacement) -> Faithfulness:
    """All curves, with the scores of every trial on its examples.

    Raises:
        TaskError: replacing every component leaves the metric where it was, so there is nothing to explain.
    """
    n = level.size(context.model)
    layer_of = level.layer_of(context.model)
    ks, mib = sizes(n), mib_sizes(n)
    foils = all(e.foil is not None for e in context.both)

    def judge(trial: Trial) -> dict[str, Tensor]:
        return _curves(context, trial, level, replacement, layer_of, ks, mib, foils)

    rows = judged(context, trials, judge)
    if not all(bool(values.isfinite().all()) for values in rows.values.values()):
        raise TaskError(
            f"the metric of task {context.task.name!r} is not finite when {level.name} are replaced ({replacement}) in "
            f"{context.model.dtype}; choose another dtype."
        )
    place = {example: row for row, example in enumerate(rows.examples)}
    at = [place[example] for example in range(max(place) + 1)]
    full, empty = (rows.values[name][at].tolist() for name in ("full", "empty"))
    if abs(float(np.mean(full)) - float(np.mean(empty))) < 1e-6:
        raise TaskError(
            f"replacing all {n} {level.name} ({replacement}) does not change the metric of task {context.task.name!r}, "
            f"so no set of them can be faithful or not."
        )
    curves = {name: rows.values[name].tolist() for name in rows.values if name not in ("full", "empty")}
    return Faithfulness(
        sizes=ks,
        mib_sizes=mib,
        examples=rows.examples,
        full=full,
        empty=empty,
        base_items=rows.items,
        base_frames=rows.frames,
        train_groups=rows.train,
        **curves,
    )


def _curves(
    context: Context,
    trial: Trial,
    level: Level,
    replacement: Replacement,
    layer_of: Tensor,
    ks: Sequence[int],
    mib: Sequence[int],
    foils: bool,
) -> dict[str, Tensor]:
    """The curves of one trial, by name ``[sizes, members]``, and ``full`` and ``empty`` ``[members]``."""
    n = level.size(context.model)
    signed = list(trial.orders())
    absolute = list(trial.orders(absolute=True))
    shuffles = max(len(trial.values), trial.draws(ORDERS))
    shuffled = []
    for i in range(shuffles):
        seed = seed_of(trial.seed, "shuffle", i)
        again = shuffled_within(trial.values[i % len(trial.values)], layer_of, seed)
        shuffled.append(ordered(again, absolute=True, seed=seed))

    def kept(orders: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        return [~top_mask(order, k) for order in orders for k in counts]

    wanted = {
        "full": [torch.zeros(n, dtype=torch.bool)],
        "empty": [torch.ones(n, dtype=torch.bool)],
        "absolute": kept(absolute, ks),
        "signed": kept(signed, ks),
        "removed": [top_mask(order, k) for order in signed for k in ks],
        "shuffled": kept(shuffled, ks),
        "mib_signed": kept(signed, mib),
        "mib_absolute": kept(absolute, mib),
    }
    masks = torch.stack([mask for of_curve in wanted.values() for mask in of_curve])
    rows = context.measure(level, replacement, masks, trial.members)
    parts = dict(zip(wanted, rows.split([len(of_curve) for of_curve in wanted.values()])))
    points = {"full": 1, "empty": 1, "mib_signed": len(mib), "mib_absolute": len(mib)}
    curves = {
        name: part[:, :, Measure.METRIC].unflatten(0, (-1, points.get(name, len(ks)))).mean(0)
        for name, part in parts.items()
    }
    own = parts["absolute"]
    right = (own[:, :, Measure.METRIC] > 0).float() if foils else own[:, :, Measure.CORRECT]
    curves["answered"] = right.unflatten(0, (-1, len(ks))).mean(0)
    return {name: values[0] if name in ("full", "empty") else values for name, values in curves.items()}
