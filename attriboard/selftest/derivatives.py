"""Scores that are derivatives, judged by finite differences in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..components import LEVELS
from ..interventions import replacement_kind
from ..model import EncodedExample
from .bench import SEEING, Case
from .properties import register
from .readings import edges_one_at_a_time
from .reference import EMBED, Part, Reference, metric, slope


@register("heads", "neurons", "attn_neurons", "nodes", "edges", "patches", "tokens")
def finite_differences(case: Case) -> None:
    """A score is minus the metric's derivative as its component alone moves from its activation to its replacement.

    ``-d/dt m(a + t (r - a))`` at ``t = 0``; the replacement ``r`` is the method's (all three kinds), or zero if it has
    none. Of an edge, what its source writes moves, as its destination alone reads it. Central five-point differences in
    float64, to 1e-5 of the largest.
    """
    for kind, options in case.replacements():
        _along(case, kind, options)


@register("heads", "neurons", "attn_neurons", "nodes", "edges")
def path_finite_differences(case: Case) -> None:
    """As ``finite_differences``, averaged over the path of the embeddings from the corrupted to the clean prompt.

    Step ``k = 1 .. steps`` (two of them) puts every embedding at ``e' + k / steps (e - e')``; ``e'`` is the
    counterfactual's, or zero where the replacement is not the counterfactual. The direction ``r - a`` is that of the
    clean prompt. FFN layers among the nodes are judged at their output, like every other component.
    """
    for kind, options in case.replacements():
        _along(case, kind, options, steps=2)


def _along(case: Case, kind: str, options: dict[str, Any], steps: int = 0) -> None:
    """Compares with slopes on the clean prompt, or with their mean over so many steps from the corrupted one."""
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        clean = reference.embeddings(e)
        corrupted = (
            reference.embeddings(e, counterfactual=True) if replacement_kind(kind).paired else torch.zeros_like(clean)
        )
        points = [corrupted + k / steps * (clean - corrupted) for k in range(1, steps + 1)] or [clean]
        if LEVELS[case.level].edges:
            slopes = [_slope_of_each_edge(reference, e, point) for point in points]
        else:
            parts, directions = reference.list_parts(case.level, e), reference.directions(e, case.level, kind, examples)
            slopes = [_slope_of_each(reference, e, parts, directions, point) for point in points]
        expected.append(-torch.stack(slopes).mean(0))
    what = f"minus the slope towards the {kind} replacement" + (f", averaged over {steps} steps" if steps else "")
    scores = case.scores(model, examples, **options, **({"steps": steps} if steps else {}))
    case.agree(scores, case.gathered(expected), 1e-5, what, case.names(model, examples))


def _slope_of_each(
    reference: Reference, e: EncodedExample, parts: Sequence[Part], directions: dict[Any, Tensor], point: Tensor
) -> Tensor:
    return slope(lambda t: reference.one_at_a_time(e, parts, directions, lambda x: metric(x, e), t, point))


def _slope_of_each_edge(reference: Reference, e: EncodedExample, point: Tensor) -> Tensor:
    return slope(lambda t: edges_one_at_a_time(reference, e, lambda x: metric(x, e), t, point))


@register("patches", "tokens")
def gradient_norm(case: Case) -> None:
    """A score is the Euclidean length of the metric's gradient at the position's embedding.

    One central difference for every coordinate, in float64, to 1e-5 of the largest.
    """
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        clean = reference.embeddings(e)
        width = clean.shape[-1]
        parts = [
            replace(part, columns=slice(i, i + 1)) for part in reference.list_parts(case.level, e) for i in range(width)
        ]
        slopes = _slope_of_each(reference, e, parts, {EMBED: torch.ones_like(clean)}, clean)
        expected.append(slopes.view(-1, width).norm(dim=1))
    scores = case.scores(model, examples)
    what = "the length of the gradient by finite differences"
    case.agree(scores, case.gathered(expected), 1e-5, what, case.names(model, examples))


@register("heads", "neurons", families=SEEING)
def picture_finite_differences(case: Case) -> None:
    """A score is minus the derivative of the answer's logit as the component moves to zero where the picture stands.

    At the picture's positions alone; central differences in float64, to 1e-5 of the largest.
    """
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        directions = reference.directions(e, case.level, "zero", examples)
        words = reference.positions("tokens", e)
        for direction in directions.values():
            direction[words] = 0
        parts = reference.list_parts(case.level, e)

        def moved(t: float, e: EncodedExample = e, parts: Any = parts, directions: Any = directions) -> Tensor:
            return reference.one_at_a_time(e, parts, directions, lambda logits: logits[e.answer], t)

        expected.append(-slope(moved))
    scores = case.scores(model, examples)
    what = "minus the slope of the answer's logit towards zero at the picture"
    case.agree(scores, case.gathered(expected), 1e-5, what, case.names(model, examples))
