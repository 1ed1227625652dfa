"""How localization is measured; what it is stands in :mod:`attriboard.measurements.localization`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError, SkipCell, TaskError
from ..interventions import replace_positions, replacement_kind
from ..levels import InputReplacement
from ..measurements.base import Measure
from ..measurements.localization import PICTURES, Localization, LocalizedExample, RemovalCurves, covered, sizes
from ..scores import tied_orders, top_mask
from .base import Evaluation, Job

if TYPE_CHECKING:
    from ..components import InputLevel
    from ..model import EncodedExample, Model
    from ..task import Task
    from .context import Context


class LocalizationEvaluation(Evaluation):
    """Both curves of every test example, and where the marks and regions lie that its scores are compared with."""

    name = "localization"
    measurement = Localization
    version = 2

    def measure(self, job: Job) -> Localization:
        level, replacement = cast("InputLevel", job.level), cast(InputReplacement, job.replacement)
        return evaluate(job.context, job.position_scores, level, replacement, job.options.rings)


def dilated(masks: Tensor, ring: int) -> Tensor:
    """``[S, rows, columns]`` bool: each set with all patches at most ``ring`` rows and columns away."""
    if ring == 0:
        return masks
    return torch.nn.functional.max_pool2d(masks.float(), 2 * ring + 1, stride=1, padding=ring) > 0


def evaluate(
    context: Context,
    position_scores: Sequence[Tensor],
    level: InputLevel,
    replacement: InputReplacement,
    rings: Sequence[int],
) -> Localization:
    """Judges the scores of every test example; equal scores in :data:`~attriboard.scores.ORDERS` random orders.

    Args:
        context: the task on the model.
        position_scores: one tensor of ``level.example_shape`` for each test example.
        level: patches or tokens.
        replacement: what removed positions are replaced by.
        rings: patches around each that go with it; measured beside the curves without one, and for patches alone.

    Raises:
        SkipCell: an example lacks the evidence that its task declares, or the region a replacement is made of; or the
            counterfactuals differ somewhere else.
        TaskError: replacing every position leaves the metric where it was, or makes it infinite.
        MethodError: scores of another shape.
        ConfigurationError, ExampleError: an example lacks a counterfactual that the replacement needs.
    """
    model, task = context.model, context.task
    known, grid = level.labels(task), level.grid(model)
    evidence, distractors = ([name for name in names if name in known] for names in (task.evidence, task.distractors))
    used = [0] if grid is None else sorted({0, *rings})
    for i, (encoded, scores) in enumerate(zip(context.test, position_scores)):
        if tuple(scores.shape) != (expected := level.example_shape(model, encoded)):
            raise MethodError(f"the scores of example {i} have shape {tuple(scores.shape)}, expected {expected}.")
    if why_not := replacement_kind(replacement).why_not(model, context.test, level, task.name):
        raise SkipCell(why_not)
    coverages = [level.coverage(model, encoded) for encoded in context.test]
    for i, (scores, coverage) in enumerate(zip(position_scores, coverages)):
        if evidence and not covered(coverage, evidence, scores.numel()).any():
            raise SkipCell(
                f"test example {i} of task {task.name!r} has no {level.name} marked {' or '.join(evidence)} to be "
                f"found."
            )
    examples = [
        _judge(model, encoded, scores, level, replacement, used, coverage, i < PICTURES)
        for i, (encoded, scores, coverage) in enumerate(zip(context.test, position_scores, coverages))
    ]
    _check_measured(examples, task, level, replacement, str(model.dtype))
    return Localization(grid=grid, evidence=evidence, distractors=distractors, rings=used, examples=examples)


def _check_measured(
    examples: Sequence[LocalizedExample], task: Task, level: InputLevel, replacement: InputReplacement, dtype: str
) -> None:
    curves = [row for e in examples for r in e.removal for row in (*r.insertion, *r.deletion)]
    if not np.isfinite([*curves, *(row for e in examples for row in (e.full, e.empty))]).all():
        raise TaskError(
            f"the metric of task {task.name!r} is not finite when {level.name} are replaced ({replacement}) in "
            f"{dtype}; choose another dtype."
        )
    full, empty = (np.mean([getattr(e, name)[Measure.METRIC] for e in examples]) for name in ("full", "empty"))
    if abs(full - empty) < 1e-6:
        raise TaskError(
            f"replacing all {level.name} ({replacement}) does not change the metric of task {task.name!r}, so none of "
            f"them can be what it depends on."
        )


def _judge(
    model: Model,
    encoded: EncodedExample,
    scores: Tensor,
    level: InputLevel,
    replacement: InputReplacement,
    rings: Sequence[int],
    coverage: dict[str, list[float]],
    with_picture: bool,
) -> LocalizedExample:
    flat = scores.flatten()
    n, ks = len(flat), sizes(len(flat))
    orders = tied_orders(flat)
    tops = torch.stack([top_mask(order, k) for order in orders for k in ks])
    sets = [dilated(tops.view(-1, *scores.shape), ring).view(-1, n) for ring in rings]
    ends = torch.tensor([[False], [True]]).expand(2, n)
    wanted = torch.cat([ends, *(masks for grown in sets for masks in (~grown, grown))])
    rows = replace_positions(model, encoded, level, replacement, wanted)[:, [Measure.METRIC, Measure.LOGPROB]]
    curves = [_over_orders(part, len(orders)).tolist() for part in rows[2:].split(len(tops))]
    return LocalizedExample(
        answer=encoded.example.answer,
        scores=flat.tolist(),
        pieces=level.pieces(model, encoded),
        coverage=coverage,
        picture=_jpeg(model, encoded) if with_picture else "",
        full=rows[0].tolist(),
        empty=rows[1].tolist(),
        sizes=ks,
        orders=len(orders),
        removal=[
            RemovalCurves(
                positions=grown.sum(1).view(len(orders), -1).double().mean(0).tolist(),
                insertion=insertion,
                deletion=deletion,
            )
            for grown, insertion, deletion in zip(sets, curves[::2], curves[1::2])
        ],
    )


def _over_orders(rows: Tensor, orders: int) -> Tensor:
    """``[sizes, 2]``, from ``[orders * sizes, 2]``: the mean metric, and the logarithm of the mean p(answer)."""
    values = rows.view(orders, -1, 2)
    if orders == 1:
        return values[0]
    log_mean = values[..., 1].double().logsumexp(0) - math.log(orders)
    return torch.stack([values[..., 0].double().mean(0), log_mean], dim=-1)


def _jpeg(model: Model, encoded: EncodedExample) -> str:
    """What the model saw, as JPEG of quality 90 in base64; empty for text."""
    if model.vision is None or encoded.example.image is None:
        return ""
    file = io.BytesIO()
    model.vision.see(encoded.example.image).save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode()
