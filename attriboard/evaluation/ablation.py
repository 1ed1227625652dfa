"""Ablation drop: what is lost when the top components are replaced, beyond what random ones of the same layers cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..measurements.base import Family, Statistic
from ..stats.intervals import Array

if TYPE_CHECKING:
    from ..components import Level
    from ..interventions import Replacement
    from ..scores import Scores
    from .context import Context

SIZES = (1, 2, 5, 10, 20, 50, 100, 300)


def sizes(n: int) -> list[int]:
    """The sizes up to half of the level's ``n`` components; beyond that, random draws are mostly the same set."""
    return [k for k in SIZES if k <= max(1, n // 2)]


class Ablation(Family):
    """Per-example measurements behind the drops.

    Attributes:
        sizes: the numbers k of replaced components.
        clean: ``[N][2]``: log p(answer) and whether it is the top token, untouched.
        top: ``[sizes][N][2]``: the same with the top k replaced.
        random: ``[draws][sizes][N][2]``: the same with k components drawn from the same layers.
    """

    sizes: list[int]
    clean: list[list[float]]
    top: list[list[list[float]]]
    random: list[list[list[list[float]]]]

    @property
    def n(self) -> int:
        return len(self.clean)

    def statistics(self) -> dict[str, Statistic]:
        top, random = np.asarray(self.top), np.asarray(self.random)

        def over_random(transform: Callable[[Array], Array], column: int) -> Statistic:
            # the drop of the top minus the drop of random sets: the clean value cancels
            gap = transform(random[..., column]).mean(0) - transform(top[..., column])
            per_example = gap.mean(0)
            return lambda index: per_example[index].mean(-1)

        return {
            "ablation_drop_p": over_random(np.exp, 0),
            "ablation_drop_logprob": over_random(lambda x: x, 0),
            "ablation_drop_accuracy": over_random(lambda x: x, 1),
        }


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


def evaluate(context: Context, scores: Scores, level: Level, replacement: Replacement, draws: int) -> Ablation:
    """Replaces the top components, and ``draws`` random sets matched to each, on the test split."""
    n = level.size(context.model)
    layer_of, ranking, ks = level.layer_of(context.model), scores.ranking(), sizes(n)
    tops = []
    for k in ks:
        top = torch.zeros(n, dtype=torch.bool)
        top[ranking[:k]] = True
        tops.append(top)
    random = [matched_draw(top, layer_of, draw) for draw in range(draws) for top in tops]
    found = context.measure(level, replacement, torch.stack([torch.zeros(n, dtype=torch.bool), *tops, *random]))
    found = found[:, :, 1:]
    count = len(ks)
    return Ablation(
        sizes=ks,
        clean=found[0].tolist(),
        top=found[1 : 1 + count].tolist(),
        random=found[1 + count :].view(draws, count, *found.shape[1:]).tolist(),
    )
