"""Recovery: what a little training of a sliced model brought back, and what it did to the neurons that mattered.

No measurement of its own, but part of pruning's.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..stats.intervals import Array, bootstrap_interval
from .base import Measure, Scalar, Shaped, Strict
from .capability import Capability


class Coefficients(Strict, Shaped):
    """Some neurons before and after training; every list has one entry per neuron, a mean over train examples.

    Attributes:
        names: of the neurons, as in the model that was sliced.
        before, after: absolute coefficient at the last token.
        increase_before, increase_after: log-probability increase of the answer by the neuron's output there.
    """

    shapes: ClassVar = dict.fromkeys(("names", "before", "after", "increase_before", "increase_after"), "neurons")

    names: list[str]
    before: list[float]
    after: list[float]
    increase_before: list[float]
    increase_after: list[float]

    def ratio(self) -> Scalar:
        """Mean size after training over mean size before it, with its interval over neurons."""
        before, after = np.array(self.before), np.array(self.after)

        def ratio(index: NDArray[np.intp]) -> Array:
            return after[index].mean(-1) / before[index].mean(-1)

        low, high = bootstrap_interval(len(before), ratio) or (None, None)
        return float(ratio(np.arange(len(before)))), low, high


class Recovery(Strict, Shaped):
    """What training did to a sliced model.

    Attributes:
        trained_parameters: how many LoRA had.
        losses: by step, the mean cross-entropy of the answer token, in nats, before the step.
        before, after: ``[N][3]``: the :class:`~attriboard.measurements.base.Measure` of every drawn test example.
        coefficients: of the "top" neurons and of as many of the "same_layers"; none where heads were pruned.
        capability: what the trained model can do; None if that was not measured.
    """

    shapes: ClassVar = {"before": "examples 3", "after": "examples 3"}

    trained_parameters: int
    losses: list[float]
    before: list[list[float]]
    after: list[list[float]]
    coefficients: dict[str, Coefficients]
    capability: Capability | None = None

    def accuracy(self, index: NDArray[np.intp]) -> Array:
        """``[...]``: accuracy after training, for example indices ``[..., N]``."""
        return np.asarray(self.after)[:, Measure.CORRECT][index].mean(-1)
