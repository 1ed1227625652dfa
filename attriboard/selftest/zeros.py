"""Scores that are zero where nothing can act: components that write nothing, or are never active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..components import COMPONENTS, LEVELS
from ..model import EncodedExample, Model
from .bench import Case, PropertyError, processor_of, tiny_model, usual_scores
from .properties import register
from .reference import Reference, Site, in_out
from .tiny import hooked


@register()
def zero_for_idle(case: Case) -> None:
    """Components that write nothing score zero, and so do positions that no other position reads.

    One head (two neurons) of the first layer and all of the second have zero output weights; FFN layers a zero bias
    too. At levels of inputs no head writes anything, so nothing but the last position reaches the answer. Zero means
    1e-5 of the untouched model's largest score, float32.
    """
    reference = Reference(tiny_model(case.family, False), processor_of(case.model()))
    examples = case.examples()
    if case.inputs:
        for layer in range(reference.n_layers):
            in_out(reference.part("out", layer)).zero_()
        last = [len(e.tokens) - 1 for e in examples]
        idle = [at != end for e, end in zip(examples, last) for at in reference.positions(case.level, e)]
        _zero(case, hooked(reference.hf), torch.tensor(idle), "no other position reads")
        return
    sites = LEVELS[case.level].sites
    role, site = ("down", "post") if "post" in sites else ("out", "z")
    silent = [2, 5] if role == "down" else list(range(reference.d_head, 2 * reference.d_head))
    width = len(in_out(reference.part(role, 0)))
    in_out(reference.part(role, 0))[silent] = 0
    in_out(reference.part(role, 1)).zero_()
    columns = {(site, 0): _marked(width, silent), (site, 1): torch.ones(width, dtype=torch.bool)}
    if "mlp_out" in sites:
        down = reference.part("down", 1)
        down.weight.zero_()
        if down.bias is not None:
            down.bias.zero_()
        columns["mlp_out", 1] = torch.ones(in_out(down).shape[1], dtype=torch.bool)
    _zero(case, hooked(reference.hf), _made_of(reference, case.level, examples[0], columns), "writes nothing")


@register(*COMPONENTS)
def zero_for_dead(case: Case) -> None:
    """Components whose activation is zero on every input score zero.

    Neurons of the first two layers without input weights; heads of the first layer whose value weights are zero. Zero
    means 1e-5 of the untouched model's largest score, float32.
    """
    reference = Reference(tiny_model(case.family, False), processor_of(case.model()))
    columns: dict[Site, Tensor] = {}
    if "post" in LEVELS[case.level].sites:
        for layer, dead in ((0, [1, 4]), (1, [0])):
            _cut(reference.part("reads", layer), dead)
            columns["post", layer] = _marked(reference.d_mlp, dead)
    else:
        values = reference.part("value", 0)
        fused = reference.config.model_type == "gpt2"  # queries, keys and values in one projection
        start = 2 * reference.n_heads * reference.d_head if fused else 0
        _cut(values, list(range(start, start + reference.d_head)))
        heads = 1 if fused else reference.n_heads // reference.config.num_key_value_heads
        columns["z", 0] = _marked(reference.n_heads * reference.d_head, range(heads * reference.d_head))
    _zero(case, hooked(reference.hf), _made_of(reference, case.level, case.examples()[0], columns), "is never active")


def _marked(width: int, columns: Sequence[int]) -> Tensor:
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(columns)] = True
    return mask


def _made_of(reference: Reference, level: str, example: EncodedExample, columns: Mapping[Site, Tensor]) -> Tensor:
    """``[n]`` bool: the components that are made of marked columns alone; ``columns`` are ``[width]`` bool by site."""
    parts = reference.list_parts(level, example)
    return torch.tensor([part.site in columns and bool(columns[part.site][part.columns].all()) for part in parts])


def _cut(projection: Any, outputs: list[int]) -> None:
    in_out(projection)[:, outputs] = 0
    if projection.bias is not None:
        projection.bias[outputs] = 0


def _zero(case: Case, model: Model, mask: Tensor, why: str) -> None:
    examples = case.examples()
    largest = float(usual_scores(case).abs().max())
    scores = case.scores(model, examples).abs() * mask
    worst = int(scores.argmax())
    if not float(scores[worst]) <= 1e-5 * largest:
        raise PropertyError(
            f"{case} gives {case.names(model, examples)[worst]}, which {why}, the score {float(scores[worst]):.6g}, "
            f"expected 0 (allowed {1e-5 * largest:.2g})."
        )
