"""Ablation drop: what is lost when the top components are replaced, beyond what random ones of the same layers cost.

For each size k, the top k components are replaced, and beside them several sets of k components drawn from the same
layers. The drop is what the top set costs minus what the random sets cost on average, so the clean value cancels; it is
averaged over sizes and examples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field

from ..stats.intervals import Array
from . import base
from .base import Measurement, Metric, Statistic

SIZES = (1, 2, 5, 10, 20, 50, 100, 300)


def sizes(n: int) -> list[int]:
    """The sizes up to half of the level's ``n`` components; beyond that, random draws are mostly the same set."""
    return [k for k in SIZES if k <= max(1, n // 2)]


class Ablation(Measurement):
    """Per-example measurements behind the drops.

    Attributes:
        sizes: the numbers k of replaced components.
        clean: ``[N][2]``: log p(answer) and whether it is the top token, untouched.
        top: ``[sizes][N][2]``: the same with the top k replaced.
        random: ``[draws][sizes][N][2]``: the same with k components drawn from the same layers.
    """

    class Options(base.Options):
        """How it is measured.

        Attributes:
            draws: random sets for each size.
        """

        draws: int = Field(5, ge=1)

    name = "ablation"
    default = True
    replaces = True
    main = True
    position = 20
    metrics = (
        Metric(
            "ablation_drop_p",
            title="drop in p",
            unit="probability",
            better="higher",
            ranks=True,
            text="Drop in p(answer) when the top k components are replaced, minus the drop for as many components "
            "drawn at random from the same layers (several draws), averaged over k = 1, 2, 5, 10, 20, 50, 100, 300 as "
            "far as k is at most half of the level. The interval is over examples and does not include the error of "
            "the draws.",
        ),
        Metric(
            "ablation_drop_logprob",
            title="drop in log p",
            unit="nats",
            better="higher",
            digits=2,
            shown=False,
            text="As the drop in p, for log p(answer).",
        ),
        Metric(
            "ablation_drop_accuracy",
            title="drop in accuracy",
            unit="share",
            better="higher",
            shown=False,
            text="As the drop in p, for the share of examples answered correctly.",
        ),
    )

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
