"""Activation patching: exchange one component's activation between the prompt and its counterfactual."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.interventions import Intervention, single_effects
from attriboard.method import ReplacingMethod
from attriboard.model import Batch, Model
from attriboard.shape import Shape


@dataclass
class ActivationPatching(ReplacingMethod):
    """The exact effect of patching one component, at all positions.

    ``noising``: metric on the clean prompt minus the metric when the component's activation is taken from the
    counterfactual. ``denoising``: metric on the counterfactual prompt with the component's clean activation put back,
    minus the metric on the counterfactual prompt. Neurons are possible and slow: one row of a forward pass each.

    Options:
        direction: "noising" or "denoising" (counterfactual replacement only).
        replacement: where noising takes activations from.
    """

    name = "activation_patching"
    paper = "Vig et al. 2020; Meng et al. 2022; Zhang & Nanda 2024, arXiv 2309.16042"
    description = "metric lost when the component alone takes its counterfactual activation; exact"
    levels = ("heads", "nodes", "neurons")
    needs = frozenset({"forward", "counterfactual"})
    reads = ("answer", "foil")
    properties = ("exact_effect", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    direction: str = "noising"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in ("noising", "denoising"):
            raise ConfigurationError(
                f"direction of {self.name} is {self.direction!r}, expected 'noising' or 'denoising'."
            )

    def passes(self, shape: Shape, level: Level) -> float:
        return self.passes_for_means(shape) + shape.ablations(level, self.paired)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if self.direction == "denoising":
            if batch.counterfactual is None or not self.paired:
                raise ConfigurationError(
                    "denoising puts clean activations into the counterfactual prompt; it needs one."
                )
            swapped = replace(batch.counterfactual, counterfactual=replace(batch, counterfactual=None))
            return -self._effects(model, swapped, level)
        return self._effects(model, batch, level)

    def _effects(self, model: Model, batch: Batch, level: Level) -> Tensor:
        intervention = Intervention(model, batch, level, self.replacement, self._means)
        return single_effects(intervention).view(len(batch), *level.shape(model))
