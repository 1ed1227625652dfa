"""Head ablation: the metric lost when one head is knocked out (Yu and Ananiadou 2024b, B1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attriboard.components import Level
from attriboard.interventions import Intervention, Replacement, single_effects
from attriboard.method import ReplacingMethod
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class HeadAblation(ReplacingMethod):
    """Metric on the clean prompt minus the metric with the component replaced at all positions; exact.

    Zeroing a head's output before the output projection equals zeroing its columns of the projection, as published;
    the published ranking by p(answer) is, for one prompt without a foil, the ranking by this score. All heads are run
    as rows of batches that restart at the head's layer.

    Options:
        replacement: "zero" (the published choice), "mean" or "counterfactual".
    """

    name = "head_ablation"
    paper = "Yu & Ananiadou 2024, arXiv 2409.14144"
    description = "metric lost when the component alone is zeroed (or replaced) at all positions; exact"
    levels = ("heads", "nodes")
    needs = frozenset({"forward"})
    reads = ("answer", "foil")
    properties = ("exact_effect", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    replacement: Replacement = "zero"

    def passes(self, shape: Shape, level: Level) -> float:
        return self.passes_for_means(shape) + shape.ablations(level, self.paired)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        return single_effects(Intervention(model, batch, level, self.replacement, self._means)).view(
            len(batch), *level.shape(model)
        )
