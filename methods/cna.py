"""Comparative Neuron Analysis: the neurons whose log-probability increase an important head carries (B2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level, get_level
from attriboard.interventions import replacing
from attriboard.log_prob import FrozenUnembedding, last_token, level_candidates
from attriboard.method import Method, methods, positive
from attriboard.model import Edit, EncodedExample, Model
from attriboard.scores import Scores
from attriboard.shape import Shape


@dataclass
class ComparativeNeuronAnalysis(Method):
    """``I_0 - I_1``: a neuron's log-probability increase in the model as it is, minus that with heads zeroed.

    Both increases use the original run's frozen final norm and the answer. The heads are those that
    ``head_ablation`` (zeroing) ranks highest on the first ``head_examples`` examples, equal ones in a random order that
    is always the same. Neurons in layers that the heads
    cannot reach score 0. The difference of two concave functions has no tangent bound: the ``candidates`` neurons with
    the largest first-order difference (averaged over examples) are evaluated exactly, the rest carry the first-order
    difference, so the top of the ranking is exact where it was evaluated but not proven complete.
    ``Scores.metadata`` names the heads and counts the exact entries.

    Options:
        n_heads: how many heads are zeroed.
        head_examples: on how many examples they are found.
        candidates: how many neurons are evaluated exactly.
    """

    name = "cna"
    paper = "Yu & Ananiadou 2024, arXiv 2409.14144"
    description = "log-probability increase lost when the most important head is zeroed"
    levels = ("neurons",)
    needs = frozenset({"forward", "weights"})
    reads = ("answer", "foil")
    uses = ("head_ablation",)
    properties = ("zero_for_idle", "zero_for_dead", "uses_answer")

    n_heads: int = 1
    head_examples: int = 4
    candidates: int = 500

    def __post_init__(self) -> None:
        positive(self, "n_heads", "head_examples", "candidates")

    def passes(self, shape: Shape, level: Level) -> float:
        n, top = shape.examples, min(self.candidates, shape.size(level))
        heads = min(self.head_examples, n) / n * shape.ablations(get_level("heads"), paired=False)
        return heads + 2 * (shape.forward() + shape.tangents(level) + shape.exactly(top, n)) + shape.look

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        ranking = methods.make("head_ablation").attribute(model, examples[: self.head_examples], get_level("heads"))
        heads = ranking.ranking(seed=0)[: self.n_heads]
        zeroed = _zero_heads(model, heads)
        base: tuple[list[Tensor], list[Tensor]] = ([], [])
        coefficient: tuple[list[Tensor], list[Tensor]] = ([], [])
        last: list[Tensor] = []
        for batch in model.batches(examples):
            for run, edits in enumerate((None, zeroed)):
                activations, resid = last_token(model, batch, ("post", "resid_mid"), edits)
                base[run].append(activations["resid_mid"].float())
                coefficient[run].append(activations["post"].float())
                if run == 0:
                    last.append(resid)
        target = torch.tensor([e.answer for e in examples], device=model.device)
        unembedding = FrozenUnembedding(model, torch.cat(last))
        both = [level_candidates(model, level, torch.cat(b), torch.cat(c)) for b, c in zip(base, coefficient)]
        bounds = [one.bounds(unembedding, target).double().mean(0) for one in both]
        values = bounds[0] - bounds[1]
        index = torch.argsort(values, descending=True)[: self.candidates]
        exact = [one.increases(unembedding, target, index).double().mean(0) for one in both]
        values[index] = exact[0] - exact[1]
        names = get_level("heads").names(model)
        return self.scores(
            values.view(level.shape(model)), model, level, heads=[names[i] for i in heads.tolist()], exact=len(index)
        )


def _zero_heads(model: Model, heads: Tensor) -> dict[str, Edit]:
    """Edits that zero the given heads (flat indices) at all positions."""
    masks = torch.zeros(1, model.n_layers * model.n_heads, dtype=torch.bool)
    masks[0, heads] = True
    slices = get_level("heads").slices(model, masks)
    zero = torch.zeros((), dtype=model.dtype, device=model.device)
    return replacing(dict.fromkeys(slices, zero), slices)
