"""k-sparse probing: the few neurons from whose activations a logistic regression reads the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attriboard.components import Level
from attriboard.errors import ConfigurationError, SkipCell
from attriboard.log_prob import last_token
from attriboard.method import Method, positive
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores

Array = NDArray[np.float64]


@dataclass
class SparseProbe(Method):
    """The size of a neuron's coefficient in a k-sparse logistic probe for the answer, on standardized activations.

    The activations (``hook_post`` at the last token) of all examples are the features, the answers the classes. Each
    answer that at least two examples have gets a probe, that answer against all others, with classes weighted alike:

    1. The ``candidates`` neurons with the largest difference between the two classes' mean activations are kept
       (the paper's maximum mean difference).
    2. Adaptive thresholding: an L2 logistic regression is fitted, the half with the largest coefficients is kept,
       and so on until ``k`` are left, on which it is fitted once more.

    A neuron's score is the size of its coefficient in the last fit, averaged over the probes (0 where it is not among
    a probe's ``k``). Neurons in no probe stand below all others, in the order of their mean difference (averaged over
    the probes), scaled so that the largest is half the smallest coefficient; only those whose activation is the same
    in both classes score 0. What is read from an activation need not be used by the model.

    Options:
        k: neurons in a probe.
        candidates: neurons that the first fit has.
        C: inverse of the regularization's strength, as scikit-learn has it.
    """

    name = "sparse_probe"
    paper = "Gurnee et al. 2023, arXiv 2305.01610"
    description = "coefficient in a k-sparse logistic probe that reads the answer from the activations"
    levels = ("neurons",)
    needs = frozenset({"forward", "answers"})
    reads = ("answer",)
    properties = ("zero_for_dead", "uses_answer", "ignores_foil")

    k: int = 64
    candidates: int = 1024
    C: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "k", "candidates")
        if self.k > self.candidates:
            raise ConfigurationError(
                f"k of {self.name} is {self.k}, more than candidates, {self.candidates}; lower it or raise those."
            )
        if isinstance(self.C, bool) or not isinstance(self.C, int | float) or not 0 < self.C < float("inf"):
            raise ConfigurationError(f"C of {self.name} is {self.C!r}, expected a number above 0.")

    def check_examples(self, examples: Sequence[EncodedExample]) -> None:
        super().check_examples(examples)
        seen = Counter(e.answer for e in examples)
        usable = len(_classes(examples))
        if usable < 2:
            raise SkipCell(
                f"{self.name} needs at least 2 answers that 2 or more examples have, but {usable} of the {len(seen)} "
                f"answers of these {len(examples)} examples are such; choose a task with few answers, or more examples."
            )

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """As in the class; all examples together.

        Raises:
            MethodError: another level than neurons.
            SkipCell: fewer than two answers have two examples.
        """
        self.check_level(level)
        self.check_examples(examples)
        # one example at a time: a last bit that depends on padding and neighbors could decide which neuron is kept
        activations = [
            last_token(model, batch, ("post",))[0]["post"] for batch in model.batches(examples, batch_size=1)
        ]
        x = torch.cat(activations).double().flatten(1).cpu().numpy()
        answers = np.array([e.answer for e in examples])
        coefficients, differences = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        classes = _classes(examples)
        for answer in classes:
            is_answer = answers == answer
            difference = np.abs(x[is_answer].mean(0) - x[~is_answer].mean(0))
            kept, coefficient = self._probe(x, is_answer, difference)
            coefficients[kept] += np.abs(coefficient) / len(classes)
            differences += difference / len(classes)
        probed = coefficients > 0
        rest = np.where(probed, 0.0, differences)
        if probed.any() and rest.max() > 0:
            rest *= 0.5 * coefficients[probed].min() / rest.max()
        values = torch.from_numpy(coefficients + rest).view(level.shape(model))
        return self.scores(values, model, level, probes=len(classes), probed=int(probed.sum()))

    def _probe(self, x: Array, is_answer: NDArray[np.bool_], difference: Array) -> tuple[NDArray[np.intp], Array]:
        """The neurons ``[k]`` of one probe and their coefficients ``[k]``, from activations ``[examples, neurons]``."""
        kept = _largest(difference, self.candidates)
        while True:
            coefficient = self._fit(x[:, kept], is_answer)
            if len(kept) <= self.k:
                return kept, coefficient
            kept = kept[_largest(np.abs(coefficient), max(self.k, len(kept) // 2))]

    def _fit(self, x: Array, is_answer: NDArray[np.bool_]) -> Array:
        """The coefficients of a logistic regression on standardized features; 0 for a feature that is constant."""
        # takes a second to import, and only this method needs it
        from sklearn.linear_model import LogisticRegression

        scale = x.std(0)
        standardized = np.divide(x - x.mean(0), scale, out=np.zeros_like(x), where=scale > 0)
        fitted: Any = LogisticRegression(C=self.C, class_weight="balanced", max_iter=1000, tol=1e-6)
        return fitted.fit(standardized, is_answer).coef_[0]


def _classes(examples: Sequence[EncodedExample]) -> list[int]:
    """The answers (token ids) that at least two examples have."""
    return sorted(answer for answer, n in Counter(e.answer for e in examples).items() if n > 1)


def _largest(values: Array, n: int) -> NDArray[np.intp]:
    """The indices of the ``n`` largest values, in the order of the indices; of equal ones the first."""
    return np.sort(np.argsort(-values, kind="stable")[:n])
