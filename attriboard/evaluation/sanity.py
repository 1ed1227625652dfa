"""How sanity is measured; what the correlations say stands in :mod:`attriboard.measurements.sanity`.

Under *model randomization* the projections of attention and FFN are replaced by noise of the same mean and spread
(:func:`attriboard.edits.randomized`); norms, embeddings, the unembedding and the vision tower of a vision-language
model stay. The noise keeps the spread of each tensor, so what ranks layers by the size of their weights survives in
part.

Under *label randomization* other answers and foils are drawn from those of the task's examples; prompt and
counterfactual stay.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..edits import randomized
from ..errors import MethodError, SkipCell
from ..measurements.sanity import STAGES, RankAgreement, Sanity
from ..method import checked, checked_inputs
from ..scores import Scores
from ..stats.ranks import rank_correlation
from ..stats.sets import nearest
from ..task import SPLITS
from .base import Evaluation, Job

if TYPE_CHECKING:
    from ..components import Level
    from ..method import Method
    from ..model import EncodedExample
    from .context import Context

T = TypeVar("T")


class SanityEvaluation(Evaluation):
    """Model and label randomization."""

    name = "sanity"
    measurement = Sanity
    version = 2

    def measure(self, job: Job) -> Sanity:
        options: Sanity.Options = job.options
        assert job.method is not None, "the measurement needs a method"
        return evaluate(job.context, job.method, job.scores, job.level, options.stages)


def evaluate(
    context: Context,
    method: Method,
    scores: Scores | Sequence[Tensor],
    level: Level,
    stages: Sequence[float] = STAGES,
) -> Sanity:
    """Scores the same examples again, once for each stage and once with other labels; the model is left as it was.

    Args:
        scores: the method's, of the train examples, or at levels of inputs of each test example.
        stages: shares of layers, above 0 and at most 1.

    Raises:
        SkipCell: neither of the two could be measured.
    """
    model = context.model
    examples = context.test if level.inputs else context.train
    before = [scores.values] if isinstance(scores, Scores) else list(scores)
    stages = sorted(set(stages))
    counts = [nearest(stage, model.n_layers) for stage in stages]

    def again(chosen: Sequence[EncodedExample]) -> list[Tensor]:
        if level.inputs:
            return checked_inputs(method.each(model, chosen, level), method)
        return [checked(method.attribute(model, chosen, level), method, model, level).values]

    def at_stages() -> list[RankAgreement]:
        agreements = []
        for count in counts:
            layers = range(model.n_layers - count, model.n_layers)
            with randomized(model, layers, context.seed):
                after = again(examples)
            compared = None if level.inputs else level.layer_of(model) >= layers.start
            agreements.append(agreement(before, after, compared))
        return agreements

    def under_other_labels() -> RankAgreement:
        other = relabeled(context, examples)
        method.check_examples(other)
        return agreement(before, again(other))

    not_measured: dict[str, str] = {}

    def unless_it_fails(name: str, measure: Callable[[], T]) -> T | None:
        # noise may be more than a method can score; that is no fault of the model, nor of the rest of the cell
        try:
            return measure()
        except (SkipCell, MethodError) as error:
            not_measured[name] = str(error)
            return None

    by_stage = unless_it_fails("model_randomisation", at_stages)
    label = unless_it_fails("label_randomisation", under_other_labels)
    if by_stage is None and label is None:
        raise SkipCell(" ".join(not_measured.values()))
    sanity = Sanity(
        per_example=level.inputs,
        stages=stages,
        layers=counts,
        model=by_stage or [],
        label=label,
        not_measured=not_measured,
    )
    for name in ("model_randomisation", "label_randomisation"):
        if name not in not_measured and name not in sanity.correlations():
            not_measured[name] = f"all scores of {method.name} are equal, so they have no ranks."
    return sanity.model_copy(update={"not_measured": not_measured})


def agreement(before: Sequence[Tensor], after: Sequence[Tensor], compared: Tensor | None = None) -> RankAgreement:
    """The rank correlations of scores, pair by pair; ``compared`` ``[n]`` bool chooses among the scores of each."""

    def correlations(transform: Callable[[Tensor], Tensor]) -> list[float | None]:
        values: list[float | None] = []
        for pair in zip(before, after):
            a, b = (transform(x.flatten() if compared is None else x.flatten()[compared]) for x in pair)
            r = rank_correlation(a.numpy(), b.numpy())
            values.append(r if math.isfinite(r) else None)
        return values

    return RankAgreement(signed=correlations(lambda x: x), absolute=correlations(torch.abs))


def relabeled(context: Context, examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """The examples with another answer, and where they have a foil another foil, drawn from those of the context.

    What an example gets depends on the seed and the example alone.

    Raises:
        SkipCell: there are too few answers and foils to choose from.
    """
    texts: dict[int, str] = {}
    for encoded in (e for split in SPLITS for e in context.drawn[split]):
        texts[encoded.answer] = encoded.example.answer
        if encoded.foil is not None and encoded.example.foil is not None:
            texts[encoded.foil] = encoded.example.foil
    relabeled_examples = []
    for encoded in examples:
        own = {encoded.answer, encoded.foil}
        others = sorted(token for token in texts if token not in own)
        needed = 1 if encoded.foil is None else 2
        if len(others) < needed:
            raise SkipCell(
                f"other labels cannot be drawn: the examples of task {context.task.name!r} have {len(texts)} answers "
                f"and foils in all."
            )
        rng = random.Random(f"{context.seed}:{encoded.example.key}:{encoded.answer}:{encoded.foil}")
        answer, *rest = rng.sample(others, needed)
        foil = rest[0] if rest else None
        example = dataclasses.replace(encoded.example, answer=texts[answer], foil=None if foil is None else texts[foil])
        relabeled_examples.append(dataclasses.replace(encoded, example=example, answer=answer, foil=foil))
    return relabeled_examples
