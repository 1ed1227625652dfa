"""Attribution patching: the first-order estimate of activation patching."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attriboard.components import Level
from attriboard.method import ReplacingMethod
from attriboard.model import Batch, Model


@dataclass
class AttributionPatching(ReplacingMethod):
    """``(clean - replaced activation) . d metric / d activation``, summed over positions; gradient on the clean prompt.

    The node-level EAP score with both factors taken at the component's output. Equal to activation patching when the
    metric is linear in the component.

    Options:
        replacement: where the replaced activation comes from.
    """

    name = "attribution_patching"
    paper = "Nanda 2023; Syed et al. 2023, arXiv 2310.10348"
    description = "first-order estimate of activation patching: activation difference times gradient"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "gradients", "counterfactual"})
    reads = ("answer", "foil")
    properties = ("finite_differences", "exact_on_linear_model", "zero_for_idle", "zero_for_dead", "uses_answer")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        batch = self.shared(model, batch)
        names = level.hooks(model)
        values = self.values(model, batch, names)
        run = model.run(batch, names, gradients=True)
        gradients = run.gradients(model.metric(run.logits, batch), names)
        return level.reduce(model, {name: (run[name].detach() - values[name]) * gradients[name] for name in names})
