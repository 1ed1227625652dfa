"""What scores depend on, and what they ignore: the answer, the foil, the weights, names, the scale of an output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..components import COMPONENTS, LEVELS
from .bench import Case, PropertyError, processor_of, tiny_model, usual_scores
from .properties import register
from .reference import Reference
from .tiny import hooked

OTHER_ANSWERS = ("w11", "w11", "w12", "w12")
OTHER_FOILS = ("w13", "w14", "w15", "w16")


@register()
def uses_answer(case: Case) -> None:
    """Scores change when answers and foils change, by more than 1e-3 of the largest."""
    before = usual_scores(case)
    after = case.scores(case.model(), case.examples(answers=OTHER_ANSWERS, foils=OTHER_FOILS))
    off, largest = float((after - before).abs().max()), float(before.abs().max())
    if not off > 1e-3 * largest:
        raise PropertyError(
            f"{case} ignores the answer: with other answers and foils no score moves by more than {off:.2g} "
            f"(largest score {largest:.2g})."
        )


@register()
def ignores_answer(case: Case) -> None:
    """Scores are the same, bit for bit, when answers and foils change."""
    _same(case, "other answers and foils", answers=OTHER_ANSWERS, foils=OTHER_FOILS)


@register()
def ignores_foil(case: Case) -> None:
    """Scores are the same, bit for bit, when foils change or are added."""
    _same(case, "other foils", foils=OTHER_FOILS)


def _same(case: Case, what: str, **changes: Any) -> None:
    model, examples = case.model(), case.examples()
    after = case.scores(model, case.examples(**changes))
    case.agree(after, usual_scores(case), 0.0, f"with {what}, which play no part", case.names(model, examples))


@register()
def ignores_weights(case: Case) -> None:
    """Scores are the same, bit for bit, for a model of the same shape with other weights."""
    examples = case.examples()
    model = case.model()
    other = case.scores(case.model(seed=1), case.examples(seed=1))
    what = "with other weights, which play no part"
    case.agree(other, usual_scores(case), 0.0, what, case.names(model, examples))


@register(*COMPONENTS)
def symmetric_in_subsets(case: Case) -> None:
    """Scores stay when the subsets of the task exchange their names (1e-6 of the largest)."""
    model, examples = case.model(), case.examples()
    scores = case.scores(model, case.examples(subsets=("b", "b", "a", "a")))
    what = "with the subsets' names exchanged"
    case.agree(scores, usual_scores(case), 1e-6, what, case.names(model, examples))


@register(*COMPONENTS)
def scales_with_output(case: Case) -> None:
    """Output weights (and biases) of the last layer times 3 make its components' scores 3 times as large.

    Those of attention and of the FFN in turn; to 1e-4 of the largest, float32.
    """
    for after, before in _tripled(case):
        case.agree(after, 3 * before, 1e-4, "three times the score before its output weights were tripled")


@register(*COMPONENTS)
def ignores_output_scale(case: Case) -> None:
    """Output weights (and biases) of the last layer times 3 leave its components' scores as they are.

    Those of attention and of the FFN in turn; to 1e-4 of the largest, float32.
    """
    for after, before in _tripled(case):
        case.agree(after, before, 1e-4, "the score before its output weights were tripled")


def _tripled(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores in the last layer of those whose output weights were tripled, and before."""
    examples = case.examples()
    for site in LEVELS[case.level].sites:
        reference = Reference(tiny_model(case.family, False), processor_of(case.model()))
        last = reference.n_layers - 1
        for weight in reference.part("out" if site == "z" else "down", last).parameters():
            weight.mul_(3)
        own = torch.tensor([part.site == (site, last) for part in reference.list_parts(case.level, examples[0])])
        yield case.scores(hooked(reference.hf), examples)[own], usual_scores(case)[own]
