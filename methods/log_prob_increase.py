"""Log-probability increase of heads, neurons and attention neurons (Yu and Ananiadou 2024, A2, A4 and A5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.log_prob import FrozenUnembedding, exact_top, last_token, level_candidates
from attriboard.method import Method, positive, true_or_false
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from attriboard.shape import Shape


@dataclass
class LogProbIncrease(Method):
    """How much adding the component's output alone raises log p(answer), with the final norm frozen.

    Heads: ``I_t(o; x)``, the head's output at the last token added to the layer's input. Neurons: ``I_t(c w; r)``, the
    neuron's coefficient times its output vector added to the mid residual. Attention neurons: ``I_t(z_i w_i; x)``,
    summed over the positions the head reads before the increase is taken (the paper keeps them apart).

    All heads are exact. Of neurons and attention neurons, the ``exact_top_k`` best of the average over the examples
    are provably the best and exact; the rest carry their tangent bound, an over-estimate. ``Scores.metadata["exact"]``
    counts the exact entries and ``metadata["exact_names"]`` lists them.

    Options:
        exact_top_k: how many of the best are made provably exact.
        published: leave out the final norm's bias, as the published notebooks do (models with LayerNorm only).
    """

    name = "log_prob_increase"
    paper = "Yu & Ananiadou 2024, arXiv 2312.12141"
    description = "log p(answer) gained by adding the component's output alone, final norm frozen"
    levels = ("heads", "neurons", "attn_neurons")
    needs = frozenset({"forward", "weights"})
    reads = ("answer",)
    default_for = ("compare-forms",)
    properties = ("telescoping", "zero_for_idle", "zero_for_dead", "uses_answer", "ignores_foil")

    exact_top_k: int = 100
    published: bool = False

    def __post_init__(self) -> None:
        positive(self, "exact_top_k")
        true_or_false(self, "published")

    def passes(self, shape: Shape, level: Level) -> float:
        once, size = super().passes(shape, level), shape.size(level)
        if not level.one_vector:
            return once + shape.unembedded(shape.n_layers + size)
        # a few more than asked for have to be evaluated, to prove that none of the others is higher
        evaluated = min(1.25 * self.exact_top_k, size)
        return once + shape.tangents(level) + shape.exactly(evaluated, shape.examples)

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        (site,), base = level.sites, level.base
        parts = [(*last_token(model, batch, (site, base)), batch.answer) for batch in model.batches(examples)]
        activation = torch.cat([activations[site] for activations, _, _ in parts])
        resid = torch.cat([activations[base] for activations, _, _ in parts]).float()
        target = torch.cat([answer for _, _, answer in parts])
        unembedding = FrozenUnembedding(model, torch.cat([last for _, last, _ in parts]), self.published)
        layers = range(model.n_layers)
        if not level.one_vector:
            total = torch.zeros(level.shape(model), dtype=torch.float64, device=model.device)
            for b in range(len(target)):
                outputs = [model.head_outputs(layer, activation[b : b + 1, layer]) for layer in layers]
                delta = torch.stack(outputs, dim=1).float()
                total += unembedding.row(b).increase(resid[b : b + 1, :, None], delta, target[b : b + 1])[0].double()
            return self.scores(total / len(target), model, level, exact=level.size(model))
        candidates = level_candidates(model, level, resid, activation)
        values, exact = exact_top(candidates, unembedding, target, self.exact_top_k)
        names = level.names(model)
        listed = [names[i] for i in exact.nonzero()[:, 0].tolist()]
        return self.scores(values.view(level.shape(model)), model, level, exact=len(listed), exact_names=listed)
