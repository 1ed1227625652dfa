"""Bias: how much of a bias goes away when the top neurons are removed, before the model's language suffers?

For tasks that measure a preference between two continuations, ``d = log p(first) - log p(second)`` on each example;
the *bias* is the mean of ``|d|`` over the examples drawn, and the *signed bias* that of ``d``. The top k components are
removed (their output weights scaled by 0), or weakened (scaled by a factor below 1), for several k; each time the bias
is measured on both splits and on the task's control examples, and so is the perplexity of prose:
exp(-sum of log-likelihoods / number of words).

*Bias removed* is ``1 - bias_k / bias_0`` on the test split, at the k that removes most of the train split's bias among
those at which perplexity rises by at most 2 %; it is 0 if no such k lowers the train split's bias. Prose has no splits.
Intervals are over the base items of test (or control) examples, at that k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..errors import ConfigurationError
from ..levels import names_where
from ..stats.intervals import Array, bootstrap_interval
from . import base
from .base import Measurement, Metric, Scalar, Statistic

SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Numbers k of removed components, as far as they are at most half of the level."""
LARGEST_RISE = 0.02
"""The largest relative rise of perplexity at which bias counts as removed."""


class Bias(Measurement):
    """Per-example preferences and per-document likelihoods behind the bias.

    Attributes:
        factor: what the output weights of the top k are scaled by; 0 removes them.
        items: ``[N]`` the prompt of each test example, so that two records can be told to be about the same.
        sizes: ``[K]`` the numbers of removed components.
        test, train, control: ``[N]`` each, log p(first) - log p(second) in nats, of the untouched model; ``control`` is
            empty where the task has no control subsets.
        test_removed, train_removed, control_removed: ``[K][N]`` the same with the top k removed.
        train_items, control_items: the base item of each train and each control example, as ``base_items`` those of
            the test examples; empty where they are not known.
        words: ``[D]`` how many words each document has.
        documents: ``[D]`` the log-likelihood of each document in nats, of the untouched model.
        documents_removed: ``[K][D]`` the same with the top k removed.
    """

    name = "bias"
    levels = names_where(hidden_units=True)
    uses_capability = True
    position = 70
    over_kept = False
    metrics = (
        Metric(
            "bias_removed",
            title="bias removed",
            unit="share",
            better="higher",
            sorts=True,
            text="Share of the bias over all test examples drawn that goes when the top k neurons are suppressed "
            "(removed, unless the option factor says otherwise), at the k with the least bias over the train examples "
            "among those at which perplexity on prose rises by at most 2 %; 0 if there is none.",
        ),
        Metric(
            "perplexity_rise",
            title="perplexity rise",
            unit="share",
            better="lower",
            optional=True,
            text="Rise of word perplexity on prose at that k, as a share of the untouched model's.",
        ),
        Metric(
            "bias",
            title="bias",
            unit="nats",
            better="neither",
            digits=2,
            text="Bias of the untouched model: mean over all test examples drawn of |log p(first) - log p(second)| of "
            "the task's two continuations.",
        ),
        Metric(
            "bias_signed",
            title="bias, signed",
            unit="nats",
            better="neither",
            digits=2,
            text="As the bias, signed: above 0 where the first continuation is preferred.",
        ),
        Metric(
            "bias_control",
            title="bias, control",
            unit="nats",
            better="neither",
            digits=2,
            optional=True,
            text="Bias of the untouched model on the task's control subsets.",
        ),
        Metric(
            "bias_control_left",
            title="control, edited",
            unit="nats",
            better="neither",
            digits=2,
            optional=True,
            text="Bias on the control subsets when those k neurons are suppressed.",
        ),
    )

    class Options(base.Options):
        """How bias is measured.

        Attributes:
            sizes: numbers of suppressed neurons at which bias and perplexity are measured.
            factor: what their output weights are scaled by; 0 removes them.
        """

        sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(SIZES, min_length=1)
        factor: float = Field(0.0, ge=0, lt=1)

    shapes: ClassVar = {
        "items": "test",
        "sizes": "sizes",
        "test": "test",
        "test_removed": "sizes test",
        "train": "train",
        "train_removed": "sizes train",
        "train_items": "train?",
        "control": "control",
        "control_removed": "sizes control",
        "control_items": "control?",
        "words": "documents",
        "documents": "documents",
        "documents_removed": "sizes documents",
    }

    factor: float
    items: list[str]
    sizes: list[int]
    test: list[float]
    test_removed: list[list[float]]
    train: list[float]
    train_removed: list[list[float]]
    train_items: list[str] = Field(default_factory=list)
    control: list[float]
    control_removed: list[list[float]]
    control_items: list[str] = Field(default_factory=list)
    words: list[int]
    documents: list[float]
    documents_removed: list[list[float]]

    @property
    def n(self) -> int:
        return len(self.test)

    def check_values(self) -> None:
        if not self.sizes or not self.test or not self.train or sum(self.words) < 1:
            raise ValueError("sizes, test, train or words are empty")

    def perplexity_rises(self) -> list[float]:
        """``[K]``: by what share perplexity rises when the top k are removed."""
        lost = sum(self.documents) - np.array(self.documents_removed).sum(1)
        with np.errstate(over="ignore"):
            return np.expm1(lost / sum(self.words)).tolist()

    def chosen(self) -> int | None:
        """The place among the sizes of the k that removes most of the train bias without costing perplexity."""
        best, least = None, np.abs(self.train).mean()
        for at, (removed, rise) in enumerate(zip(self.train_removed, self.perplexity_rises())):
            bias = np.abs(removed).mean()
            if rise <= LARGEST_RISE and bias < least:
                best, least = at, bias
        return best

    def bias_removed(self, index: NDArray[np.intp]) -> Array:
        """``[...]``: the share of the bias removed at the chosen k, of test examples ``[..., N]``."""
        at = self.chosen()
        if at is None:
            return np.zeros(index.shape[:-1])
        before, after = (np.abs(np.array(values)[index]).mean(-1) for values in (self.test, self.test_removed[at]))
        return 1.0 - after / before

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of indices ``[..., N]`` of the drawn test examples."""
        test = np.array(self.test)
        return {
            "bias": lambda index: np.abs(test[index]).mean(-1),
            "bias_signed": lambda index: test[index].mean(-1),
            "bias_removed": self.bias_removed,
        }

    def scalars(self) -> dict[str, Scalar]:
        """The control examples' bias, and at the chosen k what is left of it and by what share perplexity rises."""
        scalars: dict[str, Scalar] = {}
        if self.control:
            scalars["bias_control"] = _mean_size(self.control, self.control_items)
        at = self.chosen()
        if at is not None:
            scalars["perplexity_rise"] = (self.perplexity_rises()[at], None, None)
            if self.control:
                scalars["bias_control_left"] = _mean_size(self.control_removed[at], self.control_items)
        return scalars


def _mean_size(values: Sequence[float], items: Sequence[str]) -> Scalar:
    """The mean absolute value, with its interval; values that share a base item are drawn together."""
    size = np.abs(values)
    low, high = bootstrap_interval(len(size), lambda index: size[index].mean(-1), items=items) or (None, None)
    return float(size.mean()), low, high


def paired_difference(a: Bias, b: Bias) -> tuple[float, tuple[float, float] | None]:
    """The bias removed in ``a`` minus that in ``b``, on the same examples, and its 95 % bootstrap interval.

    Each at its own chosen k. Examples that share a base item are drawn together.

    Raises:
        ConfigurationError: the two were measured on different examples, or on another untouched model.
    """
    if a.items != b.items or not np.allclose(a.test, b.test, rtol=1e-3, atol=1e-3):
        raise ConfigurationError(
            f"bias removed can be compared only on the same examples of the same model; one record has {a.n} and the "
            f"other {b.n}, and they are not the same."
        )

    def difference(index: NDArray[np.intp]) -> Array:
        return a.bias_removed(index) - b.bias_removed(index)

    return float(difference(np.arange(a.n))), bootstrap_interval(a.n, difference, items=a.clusters(()))
