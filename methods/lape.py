"""Language activation probability entropy: neurons that are active in one subset of a task and silent in others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError, SkipCell
from attriboard.method import Method
from attriboard.model import EncodedExample, Model, hook_name
from attriboard.scores import Scores


@dataclass
class Lape(Method):
    """``ln S - LAPE``, and ``2 ln S`` more for neurons that pass the filter; ``S`` is the number of subsets.

    The subsets of the task stand for the paper's languages. ``p[l, j, s]`` is the share of the real tokens of subset
    ``s`` at which the output of the FFN's activation function (``hook_act``) is positive, ``p'`` is ``p`` divided by
    its sum over subsets, and ``LAPE = -sum_s p' ln p'``, in nats. A neuron passes the paper's filter if its largest
    ``p`` is above the ``filter_rate`` quantile of all ``p``. ``ln S - LAPE`` lies in 0 .. ``ln S``, so every neuron
    that passes stands above every one that does not, and within both groups the more specific ones stand higher, as
    by ``-LAPE``; no score is negative, so rankings by absolute score are the same. Where the quantile is 1, no neuron
    passes. A neuron that is never active has no ``p'`` and counts as unspecific (LAPE = ``ln S``); the published code
    gives it 0, which the filter hides.

    It knows the subset of an example and not its answer. The paper cuts the ranking at its top 5 %; here that is left
    to the evaluation.

    Options:
        filter_rate: the quantile, between 0 and 1; 0 for no filter.
    """

    name = "lape"
    paper = "Tang et al. 2024, arXiv 2402.16438"
    description = "how specific to one subset of the task the neuron's activity is, among the often active ones"
    levels = ("neurons",)
    needs = frozenset({"forward", "subsets"})
    reads = ("labels",)
    properties = ("symmetric_in_subsets", "zero_for_dead", "ignores_answer")

    filter_rate: float = 0.95

    def __post_init__(self) -> None:
        rate = self.filter_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ConfigurationError(
                f"filter_rate of {self.name} is {rate!r}, expected a number of at least 0 and below 1."
            )

    def check_examples(self, examples: Sequence[EncodedExample]) -> None:
        super().check_examples(examples)
        present = sorted({e.example.subset for e in examples})
        if len(present) < 2:
            raise SkipCell(
                f"the entropy over a task's subsets needs examples of at least 2 of them, but {len(present)} "
                f"({', '.join(map(repr, present))}) were given; choose a task with several, or more examples."
            )

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """As in the class; all examples together.

        Raises:
            MethodError: another level than neurons.
            SkipCell: the examples are of fewer than two subsets.
        """
        self.check_level(level)
        self.check_examples(examples)
        p = activation_probabilities(model, examples)
        values = specificity(p)
        if self.filter_rate > 0:
            bar = p.flatten().kthvalue(max(1, round(p.numel() * self.filter_rate))).values
            values += 2 * math.log(p.shape[-1]) * (p.amax(-1) > bar)
        return self.scores(values, model, level)


def activation_probabilities(model: Model, examples: Sequence[EncodedExample]) -> Tensor:
    """``[L, d_mlp, S]`` float64: the share of each subset's real tokens at which a neuron's ``hook_act`` is positive.

    Subsets in alphabetical order. Patches of an image are tokens like others.
    """
    subsets = sorted({e.example.subset for e in examples})
    names = [hook_name("act", layer) for layer in range(model.n_layers)]
    active = torch.zeros(len(subsets), model.n_layers, model.d_mlp, dtype=torch.float64)
    tokens = torch.zeros(len(subsets), 1, 1, dtype=torch.float64)
    # one example at a time: the step at zero turns a last bit that depends on padding and neighbors into a whole token
    for batch in model.batches(examples, batch_size=1):
        at = subsets.index(batch.examples[0].example.subset)
        run = model.run(batch, names)
        active[at] += torch.stack([(run[name][batch.real] > 0).sum(0) for name in names]).cpu()
        tokens[at] += batch.real.sum().cpu()
    return (active / tokens).permute(1, 2, 0)


def specificity(p: Tensor) -> Tensor:
    """``[L, d_mlp]`` in nats: ``ln S`` minus the entropy over subsets of activation probabilities ``[L, d_mlp, S]``.

    0 for a neuron that is never active.
    """
    whole = p.sum(-1)
    entropy = torch.special.entr(p / whole[..., None]).sum(-1)
    # rounding can make it negative
    return torch.where(whole > 0, math.log(p.shape[-1]) - entropy, 0.0).clamp(min=0)
