"""How reliability is measured; what follows from it stands in :mod:`attriboard.measurements.reliability`.

Methods that score single examples are asked of many halvings without another pass. Methods that score all examples
together score the two halves of one halving.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import SkipCell
from ..measurements.reliability import Reliability
from ..method import checked
from ..scores import top_chances
from ..stats.intervals import clusters_of
from ..stats.ranks import rank_correlation
from .base import Evaluation, Job

if TYPE_CHECKING:
    from ..components import Level
    from ..method import Method
    from ..model import EncodedExample
    from ..scores import Scores
    from .context import Context

TOP = 20
"""How many components are at the top of a ranking, if that is at most half of the level."""
MIN_ITEMS = 4
"""Halves of fewer base items than two each say nothing."""


class ReliabilityEvaluation(Evaluation):
    """Halves of the train examples against each other."""

    name = "reliability"
    measurement = Reliability
    version = 2

    def measure(self, job: Job) -> Reliability:
        options: Reliability.Options = job.options
        assert job.method is not None, "the measurement needs a method"
        return evaluate(job.context, job.method, job.component_scores, job.level, options.halvings)


def evaluate(context: Context, method: Method, scores: Scores, level: Level, draws: int) -> Reliability:
    """Compares halves of the train examples, the same ones for every method.

    Args:
        scores: the method's, of the train examples.
        draws: most halvings.

    Raises:
        SkipCell: fewer than :data:`MIN_ITEMS` base items, halves that the method cannot score, or a half whose scores
            are all equal.
    """
    model, examples = context.model, context.train
    items = [e.example.item for e in examples]
    groups = clusters_of(items, len(items))
    if len(groups) < MIN_ITEMS:
        raise SkipCell(
            f"reliability compares halves of the train examples, which needs {MIN_ITEMS} base items, but there are "
            f"{len(groups)}; raise max_train."
        )
    pairs = halvings(groups, draws, context.seed)
    each = None if scores.each is None else torch.stack(scores.each).flatten(1)
    if each is None:
        pairs = [_that_fits(method, examples, pairs)]

    def scored(half: Sequence[int]) -> Tensor:
        if each is not None:
            return each[list(half)].double().mean(0)
        own = method.attribute(model, [examples[i] for i in half], level)
        return checked(own, method, model, level).values.flatten()

    top = min(TOP, max(1, level.size(model) // 2))
    correlations, shares = [], []
    for pair in pairs:
        a, b = (scored(half) for half in pair)
        correlations.append(rank_correlation(a.numpy(), b.numpy()))
        if not math.isfinite(correlations[-1]):
            raise SkipCell(f"all scores of {method.name} are equal on half of the examples, so they have no ranks.")
        shares.append(float(top_chances(a, top) @ top_chances(b, top)) / top)
    return Reliability(
        base_items=items,
        halves=[first for first, _ in pairs],
        top=top,
        rank_correlation=correlations,
        in_common=shares,
    )


def halvings(groups: Sequence[NDArray[np.intp]], draws: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """At most ``draws`` different ways to divide groups of examples into two halves, all of them if they are so few.

    Of an odd number of groups, the second half has one more.
    """
    n = len(groups)
    k = n // 2
    even = n % 2 == 0
    if math.comb(n, k) // (1 + even) <= draws:
        # with an even number each halving would come twice, its halves exchanged: the first group is always in the one
        chosen = [c for c in itertools.combinations(range(n), k) if not even or 0 in c]
    else:
        rng = np.random.default_rng(seed)
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < draws:
            order = rng.permutation(n).tolist()
            half = order[:k] if not even or 0 in order[:k] else order[k:]
            drawn[tuple(sorted(half))] = None
        chosen = list(drawn)

    def members(which: Iterable[int]) -> list[int]:
        return sorted(int(i) for g in which for i in groups[g])

    return [(members(c), members(set(range(n)) - set(c))) for c in chosen]


def _that_fits(
    method: Method, examples: Sequence[EncodedExample], pairs: Sequence[tuple[list[int], list[int]]]
) -> tuple[list[int], list[int]]:
    """The first of the halvings whose halves both have what the method needs.

    Raises:
        SkipCell: there is none; says what the last one lacks.
    """
    why = ""
    for pair in pairs:
        try:
            for half in pair:
                method.check_examples([examples[i] for i in half])
        except SkipCell as error:
            why = str(error)
            continue
        return pair
    raise SkipCell(f"{method.name} scores all examples together, and no half of them is enough for it: {why}")
