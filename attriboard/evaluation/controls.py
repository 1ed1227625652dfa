"""Random sets and shuffled scores beside which a method's are judged."""

from __future__ import annotations

import torch
from torch import Tensor


def matched_draw(top: Tensor, layer_of: Tensor, seed: int) -> Tensor:
    """``[n]`` bool: as many components per layer as ``top`` ``[n]`` has, from a random order of each layer."""
    order = torch.randperm(len(top), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros_like(top)
    for layer in layer_of[top].unique().tolist():
        members = order[layer_of[order] == layer]
        chosen[members[: int((top & (layer_of == layer)).sum())]] = True
    return chosen


def shuffled_within(values: Tensor, layer_of: Tensor, seed: int) -> Tensor:
    """``[n]``: the scores ``values`` ``[n]``, exchanged at random among the components of each layer."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    places = order[torch.argsort(layer_of[order], stable=True)]  # each layer's components, in random order
    own = torch.argsort(layer_of, stable=True)
    shuffled = torch.empty_like(values)
    shuffled[places] = values[own]
    return shuffled
