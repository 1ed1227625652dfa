"""Control: another method's scores, shuffled within each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.method import Method, methods
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores


@dataclass
class RandomSameLayer(Method):
    """The scores of ``reference``, permuted among the components of each layer.

    It knows which layers matter and nothing about which components in them: what a method earns above this row, it
    earns by telling components of one layer apart.

    Options:
        reference: the method whose scores are permuted.
        seed: of the permutations.
    """

    name = "random_same_layer"
    paper = "control"
    description = "attribution patching's scores, shuffled within each layer"
    levels = ("heads", "neurons", "nodes")
    needs = frozenset({"forward", "gradients", "counterfactual"})
    uses = ("attribution_patching",)
    control = True

    reference: str = "attribution_patching"
    seed: int = 0

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        values = methods.make(self.reference).attribute(model, examples, level).values
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in values])
        return self.scores(shuffled, model, level, reference=self.reference)
