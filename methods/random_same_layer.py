"""Control: another method's scores, shuffled within each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.method import Method, methods, whole_number
from attriboard.model import EncodedExample, Model
from attriboard.roles import Sight
from attriboard.scores import Scores
from attriboard.shape import Shape


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
    random = True
    control_kind = "matched"
    properties = ("permutes_reference", "uses_answer")

    reference: str = "attribution_patching"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.reference, str):
            raise ConfigurationError(f"reference of {self.name} is {self.reference!r}, expected a method's name.")
        methods.get(self.reference)
        whole_number(self, "seed")

    @property
    def sees(self) -> tuple[Sight, ...]:
        return methods.make(self.reference).sees

    def passes(self, shape: Shape, level: Level) -> float:
        return methods.make(self.reference).passes(shape, level)

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        values = methods.make(self.reference).attribute(model, examples, level).values
        generator = torch.Generator().manual_seed(self.seed)
        shuffled = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in values])
        return self.scores(shuffled, model, level, reference=self.reference)
