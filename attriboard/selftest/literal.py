"""Scores that equal the effect of replacing one component, judged by a pass of its own for each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..components import LEVELS
from ..model import EncodedExample, Model
from .bench import FOILS, Case
from .properties import register
from .readings import edges_one_at_a_time
from .reference import Reference, metric
from .tiny import hooked, in_double, linear_gpt2


@register("heads", "neurons", "attn_neurons", "nodes", "edges", "patches", "tokens")
def exact_effect(case: Case) -> None:
    """A score is the metric lost in a pass of its own in which that component alone is replaced, at all positions.

    For each kind of replacement; in float64, to 1e-5 of the largest. An edge is replaced by what its source writes on
    the counterfactual, as its destination alone reads it.
    """
    _effects(case, case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:])


@register("heads", "neurons", "attn_neurons", "nodes", "edges", "tokens", families=("gpt2",))
def exact_on_linear_model(case: Case) -> None:
    """Where the model is linear, the estimate is the exact effect of replacing the component (1e-5, float64).

    A GPT-2 with uniform attention (query and key weights zero), the identity for an activation function and norms that
    divide by nothing: its logits are an affine function of every activation. Logits are subtracted, since log p is not.
    """
    hf = in_double(linear_gpt2())
    model = hooked(hf)
    _effects(case, model, Reference(hf), case.examples(double=True, foils=FOILS)[:2])


def _effects(case: Case, model: Model, reference: Reference, examples: Sequence[EncodedExample]) -> None:
    for kind, options in case.replacements():
        expected = []
        for e in examples:
            clean = metric(reference.run(reference.embeddings(e))[0][0], e)
            expected.append(clean - _one_at_a_time(case, reference, e, kind, examples))
        scores = case.scores(model, examples, **options)
        what = f"the metric lost with the {kind} replacement"
        case.agree(scores, case.gathered(expected), 1e-5, what, case.names(model, examples))


def _one_at_a_time(
    case: Case, reference: Reference, e: EncodedExample, kind: str, examples: Sequence[EncodedExample]
) -> Tensor:
    """``[n]``: the metric with each component alone replaced."""
    if LEVELS[case.level].edges:
        return edges_one_at_a_time(reference, e, lambda x: metric(x, e))
    parts, directions = reference.list_parts(case.level, e), reference.directions(e, case.level, kind, examples)
    return reference.one_at_a_time(e, parts, directions, lambda x: metric(x, e))
