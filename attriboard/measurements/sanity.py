"""Sanity: do the scores change when what they should depend on is taken away?

*Model randomization* (Adebayo et al. 2018, arXiv 1810.03292, the cascading test): the weights are replaced by noise
from the last layer down, in stages, and the same examples are scored again. What is compared by Spearman's rank
correlation are the components in the randomized layers, or all positions of each example at levels of inputs. A method
whose scores survive does not see what the model has learned.

*Label randomization*: the model stays, and the answer and foil of each example are replaced by two others. A method
that never looks at the answer has 1; that is no mistake of its own, but what it says is about the prompt and not about
the answer.

Both compare with the scores that are judged everywhere else. An absolute comparison is of |score|: scores that keep
their sizes and exchange their signs look unlike each other otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from ..levels import LEVELS
from ..stats.intervals import Array, nanmean
from . import base
from .base import Measurement, Metric, Scalar, Shaped, Statistic, Strict

STAGES = (0.25, 0.5, 1.0)
"""The shares of layers that are randomized, from the last one down."""
PARTIAL = {0.25: "model_randomisation_25", 0.5: "model_randomisation_50"}
"""The stages before the last that have a metric of their own; a record holds all."""


def _metric(name: str, title: str, text: str) -> Metric:
    return Metric(name, title=title, unit="rank correlation", better="lower", optional=True, text=text)


class RankAgreement(Strict, Shaped):
    """Rank correlations of two sets of scores; None where all scores of one are equal.

    Attributes:
        signed, absolute: of the scores and of their sizes; one entry, or at levels of inputs one for each example.
    """

    shapes: ClassVar = {"signed": "examples", "absolute": "examples"}

    signed: list[float | None]
    absolute: list[float | None]


class Sanity(Measurement):
    """How much the scores look like those of a model, or of answers, drawn at random.

    Attributes:
        per_example: whether each test example has scores of its own (levels of inputs).
        stages: ``[S]``, the shares of layers randomized.
        layers: ``[S]``, how many these are.
        model: ``[S]``, the agreement at each stage; empty if it was not measured.
        label: the agreement under other answers and foils; None if it was not measured.
        not_measured: by metric name, why it was not measured.
    """

    name = "sanity"
    levels = tuple(LEVELS)
    needs_method = True
    position = 90
    metrics = (
        _metric(
            "model_randomisation",
            "after randomizing the model",
            "Spearman's rank correlation of |score| in the model and in one whose layers are randomized (all of them, "
            "unless the option stages says otherwise): the projections of attention and FFN are redrawn from a normal "
            "distribution with each tensor's own mean and standard deviation, and norms, embeddings and the "
            "unembedding stay. Taken over the components in those layers, or over an example's positions, averaged "
            "over test examples. Near 0: the method sees what the model learned; 1: it does not.",
        ),
        _metric(
            "model_randomisation_signed",
            "the same, signed scores",
            "As after randomizing the model, of the scores themselves.",
        ),
        _metric(
            "model_randomisation_50",
            "upper half",
            "As after randomizing the model, with only the upper half of the layers randomized.",
        ),
        _metric(
            "model_randomisation_25",
            "upper quarter",
            "As after randomizing the model, with only the upper quarter of the layers randomized.",
        ),
        _metric(
            "label_randomisation",
            "after changing the labels",
            "Spearman's rank correlation of the scores for the answer (against the foil) and for another answer "
            "(against another foil), both drawn for each example from the answers and foils of the task's examples; "
            "prompt and counterfactual stay. Over all components, or over an example's positions, averaged over test "
            "examples. 1: the method does not look at the answer.",
        ),
        _metric(
            "label_randomisation_absolute",
            "the same, |score|",
            "As after changing the labels, of |score|.",
        ),
    )

    class Options(base.Options):
        """How sanity is measured.

        Attributes:
            stages: the shares of layers that are randomized, from the last one down.
        """

        stages: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(STAGES, min_length=1)

    shapes: ClassVar = {"stages": "stages", "layers": "stages", "model": "stages?"}

    per_example: bool
    stages: list[float]
    layers: list[int]
    model: list[RankAgreement]
    label: RankAgreement | None
    not_measured: dict[str, str]

    @property
    def n(self) -> int:
        """At levels of components the scores are of all examples together: one."""
        measured = self.label or self.model[0]
        return len(measured.signed)

    def check_values(self) -> None:
        measured = [*self.model, *([self.label] if self.label else [])]
        if not measured or not all(len(agreement.signed) == self.n > 0 for agreement in measured):
            raise ValueError("model and label are empty, or not of the same examples")

    def gaps(self) -> dict[str, str]:
        return self.not_measured

    def correlations(self) -> dict[str, Array]:
        """By metric name, the rank correlations ``[n]``, NaN where undefined; without what is undefined throughout."""
        correlations: dict[str, Sequence[float | None]] = {}
        if self.model:
            correlations["model_randomisation"] = self.model[-1].absolute
            correlations["model_randomisation_signed"] = self.model[-1].signed
            correlations |= {
                PARTIAL[stage]: agreement.absolute
                for stage, agreement in zip(self.stages[:-1], self.model)
                if stage in PARTIAL
            }
        if self.label is not None:
            correlations["label_randomisation"] = self.label.signed
            correlations["label_randomisation_absolute"] = self.label.absolute
        arrays = {name: np.array(values, dtype=np.float64) for name, values in correlations.items()}
        return {name: values for name, values in arrays.items() if np.isfinite(values).any()}

    def statistics(self) -> dict[str, Statistic]:
        """The means over examples, at levels of inputs."""
        return {name: nanmean(x) for name, x in self.correlations().items()} if self.per_example else {}

    def scalars(self) -> dict[str, Scalar]:
        """The correlations themselves, at levels of components."""
        if self.per_example:
            return {}
        return {name: (float(x[0]), None, None) for name, x in self.correlations().items()}
