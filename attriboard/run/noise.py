"""The noise floor of scores: how far rounding alone moves them, and which of them are therefore equal to zero.

A score that is a difference of large numbers is known to the rounding of these. Where nothing else is left of it, its
value, and its place among others of the kind, is one processor's roundings. The floor is measured: a few examples are
scored again in arithmetic whose every result is moved by about one rounding (:mod:`attriboard.models.rounding`). It is
:data:`TIMES` the standard deviation of what that changes: for each component its own, at levels of inputs, where every
example has other positions, one number for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..components import Level
from ..errors import SkipCell
from ..method import Method
from ..model import Cost, EncodedExample, Model
from ..models.rounding import stochastic
from ..scores import Scores

EXAMPLES = 2
"""How many examples are scored again."""
REPEATS = 3
"""How often each is."""
TIMES = 4.0
"""Scores within so many standard deviations of zero are equal to it.

Estimated from :data:`EXAMPLES` times :data:`REPEATS` differences, a score that is rounding alone exceeds its floor in
0.7 % of cases (Student's t, 6 degrees of freedom).
"""


@dataclass(frozen=True)
class Noise:
    """How far rounding moves a method's scores.

    Attributes:
        sd: float64, in units of the scores. Of components, shaped as the level: the standard deviation of one example's
            score (of a method that scores all together: of its scores). Of inputs a single number: the largest of the
            positions whose score is within its own floor, 0 if there are none.
        averages: whether the noise of a mean over n examples is ``sd / sqrt(n)``.
        repeats: how often examples were scored again; 0 where nothing was, since scores rest on no pass of the model
            or are random.
    """

    sd: Tensor
    averages: bool = True
    repeats: int = REPEATS

    def floor(self, n: int = 1) -> Tensor:
        """Of scores averaged over ``n`` examples, shaped as :attr:`sd`."""
        return TIMES * self.sd / (math.sqrt(n) if self.averages else 1.0)


@dataclass(frozen=True)
class Settled:
    """Scores without noise.

    Attributes:
        scores: as given, but exactly 0 up to the floor.
        share: the share of all scores that was set to 0 and was not 0 before.
    """

    scores: Scores | list[Tensor]
    share: float


def noise(method: Method, model: Model, examples: Sequence[EncodedExample], level: Level) -> Noise:
    """How far rounding moves a method's scores, from the first :data:`EXAMPLES` of the examples.

    That takes ``1 + REPEATS`` scorings of these, the repeated ones about twice as long as the others; none of it is
    counted as the method's cost. Zero for methods that run no pass of the model, for random ones, and for those that
    cannot score so few examples.
    """
    none = Noise(torch.zeros(() if level.inputs else level.shape(model), dtype=torch.float64), repeats=0)
    few = examples[:EXAMPLES]
    if method.random or not method.needs - {"weights"}:
        return none
    try:
        with _uncounted(model):
            method.check_examples(few)
            first = _each(method, model, few, level)
            moved = []
            for seed in range(REPEATS):
                with stochastic(seed):
                    moved.append(_each(method, model, few, level))
    except SkipCell:
        return none
    sd = [
        torch.stack([(again[i].double() - one.double()).square() for again in moved]).mean(0).nan_to_num().sqrt()
        for i, one in enumerate(first)
    ]
    if level.inputs:
        within = [own[one.abs() <= TIMES * own] for own, one in zip(sd, first)]
        return Noise(max((own.max() for own in within if len(own)), default=torch.zeros((), dtype=torch.float64)))
    together = type(method).score_batch is Method.score_batch
    return Noise(torch.stack(sd).square().mean(0).sqrt(), averages=not together)


def settle(scores: Scores | Sequence[Tensor], noise: Noise, n: int = 1) -> Settled:
    """Sets what is not above the floor to exactly 0, so that it ties.

    Args:
        scores: of components, averaged over ``n`` examples; or of inputs, one tensor for each example.
    """
    floor = noise.floor(n)
    before = [scores.values] if isinstance(scores, Scores) else list(scores)
    after = [torch.where(values.abs() <= floor, torch.zeros_like(values), values) for values in before]
    zeroed = sum(int(((a == 0) & (b != 0)).sum()) for a, b in zip(after, before))
    share = zeroed / max(1, sum(values.numel() for values in before))
    result = replace(scores, values=after[0]) if isinstance(scores, Scores) else after
    return Settled(result, share)


def _each(method: Method, model: Model, examples: Sequence[EncodedExample], level: Level) -> list[Tensor]:
    """The scores of each example, or where a method scores all together the only ones there are."""
    if level.inputs:
        return method.each(model, examples, level)
    together = method.attribute(model, examples, level)
    return [together.values] if together.each is None else together.each


@contextmanager
def _uncounted(model: Model) -> Iterator[None]:
    cost, model.cost = model.cost, Cost()
    try:
        yield
    finally:
        model.cost = cost
