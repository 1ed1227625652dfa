"""Sanity: do the scores change when what they should depend on is taken away?

*Model randomization* (Adebayo et al. 2018, arXiv 1810.03292, the cascading test): the projections of attention and FFN
are replaced by noise of the same mean and spread (:func:`attriboard.edits.randomized`), from the last layer down, in
stages; norms, embeddings, the unembedding and the eyes of a vision-language model stay. At each stage the same examples
are scored again. What is compared by Spearman's rank correlation are the components in the randomized layers, or all
positions of each example at levels of inputs. A method whose scores survive does not see what the model has learned.
The noise keeps the spread of each tensor, so what ranks layers by the size of their weights survives in part.

*Label randomization*: the model stays, and the answer and foil of each example are replaced by two others, drawn from
the answers and foils of the task's examples; prompt and counterfactual stay. A method that never looks at the answer
has 1; that is no mistake of its own, but what it says is about the prompt and not about the answer.

Both compare with the scores that are judged everywhere else. An absolute comparison is of |score|: scores that keep
their sizes and exchange their signs look unlike each other otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..edits import randomized
from ..errors import MethodError, SkipCell
from ..measurements.base import Family, Scalar, Statistic
from ..method import checked, checked_inputs
from ..scores import Scores
from ..stats.intervals import Array, nanmean
from ..task import SPLITS
from .faithfulness import nearest
from .reliability import rank_correlation

if TYPE_CHECKING:
    from ..components import Level
    from ..method import Method
    from ..model import EncodedExample
    from .context import Context

T = TypeVar("T")

STAGES = (0.25, 0.5, 1.0)
"""The shares of layers that are randomized, from the last one down."""


PARTIAL = {0.25: "model_randomisation_25", 0.5: "model_randomisation_50"}
"""The stages before the last that have a metric of their own; a record holds all."""


class Agreement(BaseModel):
    """Rank correlations of two sets of scores; None where all scores of one are equal.

    Attributes:
        signed, absolute: of the scores and of their sizes; one entry, or at levels of inputs one for each example.
    """

    model_config = ConfigDict(extra="forbid")

    signed: list[float | None]
    absolute: list[float | None]


class Sanity(Family):
    """How much the scores look like those of a model, or of answers, drawn at random.

    Attributes:
        per_example: whether each test example has scores of its own (levels of inputs).
        stages: ``[S]``, the shares of layers randomized.
        layers: ``[S]``, how many these are.
        model: ``[S]``, the agreement at each stage; empty if it was not measured.
        label: the agreement under other answers and foils; None if it was not measured.
        not_measured: by metric name, why it was not measured.
    """

    per_example: bool
    stages: list[float]
    layers: list[int]
    model: list[Agreement]
    label: Agreement | None
    not_measured: dict[str, str]

    @property
    def n(self) -> int:
        """At levels of components the scores are of all examples together: one."""
        found = self.label or self.model[0]
        return len(found.signed)

    def gaps(self) -> dict[str, str]:
        return self.not_measured

    def correlations(self) -> dict[str, Array]:
        """By metric name, the rank correlations ``[n]``, NaN where undefined; without what is undefined throughout."""
        found: dict[str, Sequence[float | None]] = {}
        if self.model:
            found["model_randomisation"] = self.model[-1].absolute
            found["model_randomisation_signed"] = self.model[-1].signed
            found |= {
                PARTIAL[stage]: agreement.absolute
                for stage, agreement in zip(self.stages[:-1], self.model)
                if stage in PARTIAL
            }
        if self.label is not None:
            found["label_randomisation"] = self.label.signed
            found["label_randomisation_absolute"] = self.label.absolute
        arrays = {name: np.array(values, dtype=np.float64) for name, values in found.items()}
        return {name: values for name, values in arrays.items() if np.isfinite(values).any()}

    def statistics(self) -> dict[str, Statistic]:
        """The means over examples, at levels of inputs."""
        return {name: nanmean(x) for name, x in self.correlations().items()} if self.per_example else {}

    def scalars(self) -> dict[str, Scalar]:
        """The correlations themselves, at levels of components."""
        found = self.correlations()
        return {} if self.per_example else {name: (float(x[0]), None, None) for name, x in found.items()}


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

    def at_stages() -> list[Agreement]:
        found = []
        for count in counts:
            layers = range(model.n_layers - count, model.n_layers)
            with randomized(model, layers, context.seed):
                after = again(examples)
            found.append(agreement(before, after, None if level.inputs else level.layer_of(model) >= layers.start))
        return found

    def under_other_labels() -> Agreement:
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
    found = Sanity(
        per_example=level.inputs,
        stages=stages,
        layers=counts,
        model=by_stage or [],
        label=label,
        not_measured=not_measured,
    )
    for name in ("model_randomisation", "label_randomisation"):
        if name not in not_measured and name not in found.correlations():
            not_measured[name] = f"all scores of {method.name} are equal, so they have no ranks."
    return found.model_copy(update={"not_measured": not_measured})


def agreement(before: Sequence[Tensor], after: Sequence[Tensor], compared: Tensor | None = None) -> Agreement:
    """The rank correlations of scores, pair by pair; ``compared`` ``[n]`` bool chooses among the scores of each."""

    def correlations(transform: Callable[[Tensor], Tensor]) -> list[float | None]:
        found = []
        for pair in zip(before, after):
            a, b = (transform(x.flatten() if compared is None else x.flatten()[compared]) for x in pair)
            r = rank_correlation(a, b)
            found.append(r if math.isfinite(r) else None)
        return found

    return Agreement(signed=correlations(lambda x: x), absolute=correlations(torch.abs))


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
    found = []
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
        found.append(dataclasses.replace(encoded, example=example, answer=answer, foil=foil))
    return found
