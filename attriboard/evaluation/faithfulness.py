"""How faithfulness is measured; what the curves say stands in :mod:`attriboard.measurements.faithfulness`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import TaskError
from ..measurements.base import Measure, Options
from ..measurements.faithfulness import Faithfulness
from ..scores import ORDERS, ordered, top_mask
from ..stats.sets import curve_sizes, mib_sizes
from .controls import shuffled_within
from .crossfit import Trial, judged, seed_of
from .sets import ByName, Question, SetEvaluation, in_digits


class FaithfulnessEvaluation(SetEvaluation):
    """All curves, on every example kept."""

    name = "faithfulness"
    measurement = Faithfulness
    version = 3

    def sets(self, question: Question, options: Options) -> list[ByName]:
        n, layer_of = question.n, question.layer_of
        return [_sets(trial, n, layer_of) for trial in question.trials]

    def made(self, question: Question, measured: Sequence[ByName]) -> Faithfulness:
        """All curves, with the scores of every trial on its examples.

        Raises:
            TaskError: replacing every component leaves the metric where it was, so there is nothing to explain.
        """
        context, n = question.context, question.n
        what = f"{question.level.name} ({question.replacement})"
        foils = all(e.foil is not None for e in context.both)
        rows = judged(context, question.trials, [_curves(of_trial, n, foils) for of_trial in measured])
        if not all(bool(values.isfinite().all()) for values in rows.values.values()):
            raise TaskError(
                f"the metric of task {context.task.name!r} is not finite when {what} are replaced in "
                f"{context.model.dtype}; choose another dtype."
            )
        place = {example: row for row, example in enumerate(rows.examples)}
        at = [place[example] for example in range(max(place) + 1)]
        full, empty = (in_digits(rows.values[name][at]) for name in ("full", "empty"))
        if abs(float(np.mean(full)) - float(np.mean(empty))) < 1e-6:
            raise TaskError(
                f"replacing all {n} {what} does not change the metric of task {context.task.name!r}, so no set of them "
                f"can be faithful or not."
            )
        curves = {name: in_digits(rows.values[name]) for name in rows.values if name not in ("full", "empty")}
        return Faithfulness(
            sizes=curve_sizes(n),
            mib_sizes=mib_sizes(n),
            examples=rows.examples,
            full=full,
            empty=empty,
            base_items=rows.items,
            base_frames=rows.frames,
            train_groups=rows.train,
            **curves,
        )


def _sets(trial: Trial, n: int, layer_of: Tensor) -> ByName:
    """What one trial replaces, by the curve that it is a point of: by order, then by size."""
    ks = curve_sizes(n)
    signed = list(trial.orders())
    absolute = list(trial.orders(absolute=True))
    shuffles = max(len(trial.values), trial.draws(ORDERS))
    shuffled = []
    for i in range(shuffles):
        seed = seed_of(trial.seed, "shuffle", i)
        again = shuffled_within(trial.values[i % len(trial.values)], layer_of, seed)
        shuffled.append(trial.in_sets(ordered(again, absolute=True, seed=seed)))

    def kept(orders: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        return torch.stack([~top_mask(order, k) for order in orders for k in counts])

    return {
        "full": torch.zeros(1, n, dtype=torch.bool),
        "empty": torch.ones(1, n, dtype=torch.bool),
        "absolute": kept(absolute, ks),
        "signed": kept(signed, ks),
        "removed": torch.stack([top_mask(order, k) for order in signed for k in ks]),
        "shuffled": kept(shuffled, ks),
    }


def _curves(measured: ByName, n: int, foils: bool) -> dict[str, Tensor]:
    """The curves of one trial, by name ``[sizes, members]``, and ``full`` and ``empty`` ``[members]``."""
    ks, points = len(curve_sizes(n)), {"full": 1, "empty": 1}
    curves = {
        name: part[:, :, Measure.METRIC].unflatten(0, (-1, points.get(name, ks))).mean(0)
        for name, part in measured.items()
    }
    own = measured["absolute"]
    right = (own[:, :, Measure.METRIC] > 0).float() if foils else own[:, :, Measure.CORRECT]
    curves["answered"] = right.unflatten(0, (-1, ks)).mean(0)
    return {name: values[0] if name in ("full", "empty") else values for name, values in curves.items()}
