"""Ablation drop: what is lost when the top components are replaced, beyond what random ones of the same layers cost.

For each size k, the top k components are replaced, and beside them several sets of k components drawn from the same
layers. The drop is what the top set costs minus what the random sets cost on average, so the clean value cancels; it is
averaged over sizes and examples.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ..stats.intervals import Array
from ..stats.sets import curve_sizes
from . import base
from .base import Measurement, Metric, Statistic


def sizes(n: int) -> list[int]:
    """Those sizes of the curves of faithfulness that are at most a tenth of the level's ``n`` components, or one.

    Where nearly everything is replaced the answer is lost whatever is chosen, which says nothing of the choice.
    """
    return [k for k in curve_sizes(n) if k <= max(1, n // 10)]


class Ablation(Measurement):
    """What lies behind the drops.

    A row is an example judged once; see :mod:`attriboard.evaluation.crossfit`. Values are p(answer), log p(answer), and
    whether the answer is the top token.

    Attributes:
        sizes: the numbers k of replaced components.
        clean: ``[3][rows]``: the three values, untouched.
        top: ``[3][sizes][rows]``: with the top k replaced, the mean over orders of tied components.
        random: ``[3][sizes][rows]``: with k components drawn from the same layers, the mean over draws.
    """

    class Options(base.Options):
        """How it is measured.

        Attributes:
            draws: at least so many random sets of each size in all; where rows are judged in several trials, every
                trial draws its share anew.
        """

        draws: int = Field(50, ge=1)

    name = "ablation"
    default = True
    replaces = True
    main = True
    position = 20
    cross_fitted = True
    over_kept = False
    metrics = (
        Metric(
            "ablation_drop_p",
            title="drop in p",
            unit="probability",
            better="higher",
            version=3,
            text="Drop in p(answer) when the top k components by signed score are replaced, minus the drop for as many "
            "components drawn at random from the same layers, averaged over k = 0.1, 0.2, 0.5, 1, 2, 5 and 10 % of the "
            "level's components (rounded down, at least 1, each k once). Where examples are cross-fitted, every group "
            "meets other random sets, and the interval includes the error of the draws.",
        ),
        Metric(
            "ablation_drop_raw",
            title="raw drop in p",
            unit="probability",
            better="higher",
            version=2,
            text="Drop in p(answer) when the top k components are replaced, nothing subtracted, averaged over the same "
            "k.",
        ),
        Metric(
            "ablation_drop_logprob",
            title="drop in log p",
            unit="nats",
            better="higher",
            digits=2,
            shown=False,
            version=3,
            text="As the drop in p, for log p(answer).",
        ),
        Metric(
            "ablation_drop_accuracy",
            title="drop in accuracy",
            unit="share",
            better="higher",
            shown=False,
            version=3,
            text="As the drop in p, for the share of examples answered correctly.",
        ),
    )

    shapes: ClassVar = {"sizes": "sizes", "clean": "3 rows", "top": "3 sizes rows", "random": "3 sizes rows"}

    sizes: list[int]
    clean: list[list[float]]
    top: list[list[list[float]]]
    random: list[list[list[float]]]

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.clean[0])

    def check_values(self) -> None:
        if not self.sizes or not self.n:
            raise ValueError("sizes or rows are empty")

    def statistics(self) -> dict[str, Statistic]:
        clean, top, random = (np.asarray(values) for values in (self.clean, self.top, self.random))
        beyond = (random - top).mean(1)  # [3, rows]: the clean value cancels
        raw = clean[0] - top[0].mean(0)

        def mean(values: Array) -> Statistic:
            return lambda index: values[index].mean(-1)

        return {
            "ablation_drop_p": mean(beyond[0]),
            "ablation_drop_raw": mean(raw),
            "ablation_drop_logprob": mean(beyond[1]),
            "ablation_drop_accuracy": mean(beyond[2]),
        }
