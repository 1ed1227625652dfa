"""Preference: how much of a bias goes away when the top neurons are removed, before the model's language suffers?

For tasks that measure a preference between two continuations, ``d = log p(first) - log p(second)`` on each example;
the *bias* is the mean of ``|d|`` over the examples drawn, and the *signed bias* that of ``d``. The top k components are
removed (their output weights scaled by 0), or weakened (scaled by a factor below 1), for several k; each time the bias
is measured on both splits and on the task's control examples, and so is the perplexity of prose:
exp(-sum of log-likelihoods / number of words).

*Bias removed* is ``1 - bias_k / bias_0`` on the test split, at the k that removes most of the train split's bias among
those at which perplexity rises by at most 2 %; it is 0 if no such k lowers the train split's bias. Prose has no splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..edits import edited, scale
from ..errors import ConfigurationError, SkipCell
from ..measurements.base import Family, Scalar, Statistic
from ..model import EncodedExample
from ..stats.intervals import Array, bootstrap_interval
from .context import draw
from .editing import up_to_half

if TYPE_CHECKING:
    from ..components import Level
    from ..model import Model
    from ..scores import Scores
    from .context import Context

SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Numbers k of removed components, as far as they are at most half of the level."""
LARGEST_RISE = 0.02
"""The largest relative rise of perplexity at which bias counts as removed."""


class Preference(Family):
    """Per-example preferences and per-document likelihoods behind the bias.

    Attributes:
        factor: what the output weights of the top k are scaled by; 0 removes them.
        items: ``[N]`` the prompt of each test example, so that two records can be told to be about the same.
        sizes: ``[K]`` the numbers of removed components.
        test, train, control: ``[N]`` each, log p(first) - log p(second) in nats, of the untouched model; ``control`` is
            empty where the task has no control subsets.
        test_removed, train_removed, control_removed: ``[K][N]`` the same with the top k removed.
        words: ``[D]`` how many words each document has.
        documents: ``[D]`` the log-likelihood of each document in nats, of the untouched model.
        documents_removed: ``[K][D]`` the same with the top k removed.
    """

    over_kept: ClassVar[bool] = False

    factor: float
    items: list[str]
    sizes: list[int]
    test: list[float]
    test_removed: list[list[float]]
    train: list[float]
    train_removed: list[list[float]]
    control: list[float]
    control_removed: list[list[float]]
    words: list[int]
    documents: list[float]
    documents_removed: list[list[float]]

    @property
    def n(self) -> int:
        return len(self.test)

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
        found: dict[str, Scalar] = {}
        if self.control:
            found["bias_control"] = _mean_size(self.control)
        at = self.chosen()
        if at is not None:
            found["perplexity_rise"] = (self.perplexity_rises()[at], None, None)
            if self.control:
                found["bias_control_left"] = _mean_size(self.control_removed[at])
        return found


def _mean_size(values: Sequence[float]) -> Scalar:
    """The mean absolute value, with its interval."""
    size = np.abs(values)
    low, high = bootstrap_interval(len(size), lambda index: size[index].mean(-1)) or (None, None)
    return float(size.mean()), low, high


def paired_difference(a: Preference, b: Preference) -> tuple[float, tuple[float, float] | None]:
    """The bias removed in ``a`` minus that in ``b``, on the same examples, and its 95 % bootstrap interval.

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

    return float(difference(np.arange(a.n))), bootstrap_interval(a.n, difference)


def preferences(model: Model, examples: Sequence[EncodedExample], between: tuple[str, str]) -> list[float]:
    """log p(first) - log p(second) in nats of each example, whose answer and foil are the two in either order.

    Raises:
        ConfigurationError: an example asks for something else.
    """
    found: list[float] = []
    for encoded in examples:
        if {encoded.example.answer, encoded.example.foil} != set(between):
            raise ConfigurationError(
                f"the example {encoded.example.prompt!r} asks for {encoded.example.answer!r} against "
                f"{encoded.example.foil!r}, and a preference between {between[0]!r} and {between[1]!r} was asked for."
            )
    for batch in model.batches(examples):
        metric = model.metric(model.run(batch).logits, batch).tolist()
        found += [x if e.example.answer == between[0] else -x for x, e in zip(metric, batch.examples)]
    return found


def evaluate(
    context: Context,
    scores: Scores,
    level: Level,
    documents: Sequence[tuple[str, int]],
    log_likelihoods: Callable[[Model, Sequence[str]], Sequence[float]],
    sizes: Sequence[int] = SIZES,
    factor: float = 0.0,
    n_control: int = 24,
) -> Preference:
    """Removes the components with the highest (signed) scores; measures bias on all examples drawn, and perplexity.

    Args:
        documents: ``(text, number of words)`` of prose.
        log_likelihoods: of a model and texts, the log-likelihood of each text in nats.
        sizes: the numbers k of components to remove; those above half of the level are left out.
        factor: what their output weights are scaled by.
        n_control: how many control examples are drawn.

    Raises:
        SkipCell: the task measures no preference.
        ConfigurationError: no document, a size below 1, or none that is at most half of the level.
        MethodError: the level cannot be edited.
        TaskError: too few control examples fit the model.
    """
    model, task, between = context.model, context.task, context.task.preference
    if between is None:
        raise SkipCell(f"task {task.name!r} measures no preference between two continuations.")
    if not documents:
        raise ConfigurationError("perplexity is measured on documents, and none was given.")
    ks = up_to_half(sizes, level, model)
    ranking = scores.ranking()
    groups = [context.drawn["test"], context.drawn["train"], []]
    if task.controls:
        control = dataclasses.replace(task, subsets=task.controls)
        groups[2] = draw(model, control, "test", n_control, context.seed)
    texts = [text for text, _ in documents]

    def measured() -> list[list[float]]:
        biases = [preferences(model, examples, between) for examples in groups]
        return [*biases, [float(x) for x in log_likelihoods(model, texts)]]

    before = measured()
    after: list[list[list[float]]] = []
    for k in ks:
        with edited(model, scale(model, level, ranking[:k], factor)):
            after.append(measured())
    test, train, control_removed, likelihoods = ([found[at] for found in after] for at in range(4))
    return Preference(
        factor=factor,
        items=[e.example.key for e in groups[0]],
        base_items=[e.example.item for e in groups[0]],
        sizes=ks,
        test=before[0],
        test_removed=test,
        train=before[1],
        train_removed=train,
        control=before[2],
        control_removed=control_removed,
        words=[words for _, words in documents],
        documents=before[3],
        documents_removed=likelihoods,
    )
