"""Domain activation probability entropy: as LAPE, with the task's subsets as domains and every neuron eligible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attriboard.components import Level
from attriboard.method import Method, methods
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class DomainEntropy(Method):
    """``ln S - DAPE``: the entropy over domains of a neuron's activity, subtracted from the largest it can be.

    MMNeuron counts, for each of ``S`` domains, the tokens (those of the picture too) at which the activation
    function's output is positive, divides by the domain's number of tokens, normalizes over domains and takes the
    entropy. That is the formula of ``lape``, whose code this uses, with domains for languages. They differ in the
    filter: ``lape`` puts neurons that are seldom active in every subset last, while here the entropy alone ranks, so
    that a neuron active at a single token of all is as specific as can be. The script published with the paper
    applies LAPE's filter too, and then takes the lowest 1 % (LAPE: 5 %): with the filter, this method is ``lape``.
    The cut is left to the evaluation. Ties, of which there are many at ``ln S``, keep the order of the layers. A
    neuron that is never active scores 0, as one that is equally active everywhere.

    Of the modules in which MMNeuron looks for such neurons, the language model's FFNs are those that are a level here.
    """

    name = "domain_entropy"
    paper = "Huo et al. 2024, arXiv 2406.11193"
    description = "how specific to one subset of the task the neuron's activity is, however seldom it is active"
    levels = ("neurons",)
    needs = frozenset({"forward", "subsets"})
    reads = ("labels",)
    uses = ("lape",)
    properties = ("symmetric_in_subsets", "zero_for_dead", "ignores_answer")

    def check_examples(self, examples: Sequence[EncodedExample]) -> None:
        super().check_examples(examples)
        _unfiltered().check_examples(examples)

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """As in the class; all examples together.

        Raises:
            MethodError: another level than neurons.
            SkipCell: the examples are of fewer than two subsets.
        """
        self.check_level(level)
        return _unfiltered().attribute(model, examples, level)


def _unfiltered() -> Method:
    return methods.make("lape", {"filter_rate": 0})
