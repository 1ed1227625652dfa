"""Random sets beside which a method's are judged."""

from __future__ import annotations

import torch
from torch import Tensor


def matched_draw(top: Tensor, layer_of: Tensor, draw: int) -> Tensor:
    """``[n]`` bool: as many components per layer as ``top`` ``[n]`` has, from a random order of each layer.

    The order depends only on the draw and the size, so that every method meets the same ones.
    """
    generator = torch.Generator().manual_seed(1_000_003 * draw + int(top.sum()))
    order = torch.argsort(torch.rand(len(top), generator=generator))
    chosen = torch.zeros_like(top)
    for layer in layer_of[top].unique().tolist():
        members = order[layer_of[order] == layer]
        chosen[members[: int((top & (layer_of == layer)).sum())]] = True
    return chosen
