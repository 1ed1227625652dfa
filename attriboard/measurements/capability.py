"""What a model can still do: what lm-eval tasks measured of it, document by document, and what of it is kept.

No measurement of its own, but part of those that change a model: pruning and editing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import ConfigurationError
from .base import Options

DEFAULT_TASKS: tuple[str, ...] = (
    "attriboard_next_word",
    "attriboard_facts",
    "attriboard_agreement",
    "attriboard_prose",
)
"""The lm-eval tasks that ship: three of two choices each, and perplexity on prose."""


class CapabilityOptions(Options):
    """By what changed models are judged, besides the task itself.

    Attributes:
        tasks: lm-eval tasks.
        limit: most documents of each; None for all.
    """

    tasks: tuple[str, ...] = DEFAULT_TASKS
    limit: int | None = Field(None, ge=1)


class Capability(BaseModel):
    """Every document's own measurement, by lm-eval task, so that aggregates can be computed again.

    Attributes:
        accuracy: by task, 1 where a document was answered correctly and 0 where not, in document order.
        prose: by task, ``(log-likelihood in nats, words)`` of every document.
        skipped: by the name asked for, why it was not measured.
    """

    # a broken model's log-likelihood is not a number, which JSON has no other way to write
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    accuracy: dict[str, list[float]] = {}
    prose: dict[str, list[tuple[float, int]]] = {}
    skipped: dict[str, str] = {}

    def gaps(self) -> dict[str, str]:
        """By ``lm-eval task <name>`` why it was not measured."""
        return {f"lm-eval task {name}": why for name, why in self.skipped.items()}

    def mean_accuracy(self) -> float:
        """The mean over tasks of a task's accuracy, in 0..1; NaN without any."""
        return _mean([_mean(right) for right in self.accuracy.values()])

    def word_perplexity(self) -> float:
        """exp(−Σ log-likelihood / Σ words) over all documents; NaN without any, infinite where it is too large."""
        return _exp(_nats_per_word([d for documents in self.prose.values() for d in documents]))


def kept(before: Capability, after: Capability) -> float:
    """How much of a capability is left, in 0..1: the mean over the tasks measured in both.

    A task of accuracies keeps accuracy after / accuracy before, a task of prose word perplexity before / after; each
    counts at most 1, so a gain in one task does not hide a loss in another. Perplexity that is infinite or not a
    number keeps nothing. A task of which nothing was right before is left out. NaN if no task is left.

    Raises:
        ConfigurationError: a task was measured on another number of documents before than after.
    """
    shares = []
    for name, right in before.accuracy.items():
        if name in after.accuracy:
            _same_documents(name, right, after.accuracy[name])
            if any(right):
                shares.append(min(1.0, sum(after.accuracy[name]) / sum(right)))
    for name, documents in before.prose.items():
        if name in after.prose:
            _same_documents(name, documents, after.prose[name])
            share = _exp(_nats_per_word(documents) - _nats_per_word(after.prose[name]))
            shares.append(0.0 if math.isnan(share) else min(1.0, share))
    return _mean(shares)


def _same_documents(name: str, before: Sequence[Any], after: Sequence[Any]) -> None:
    if len(before) != len(after):
        raise ConfigurationError(
            f"lm-eval task {name!r} was measured on {len(before)} documents before and {len(after)} after; "
            f"use one limit."
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _nats_per_word(documents: Sequence[tuple[float, int]]) -> float:
    return -sum(nats for nats, _ in documents) / sum(words for _, words in documents) if documents else math.nan


def _exp(x: float) -> float:
    return math.exp(x) if not x > 700 else math.inf  # math.exp raises instead of returning infinity
