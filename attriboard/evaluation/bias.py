"""How bias is measured; what follows from it stands in :mod:`attriboard.measurements.bias`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..edits import edited, scale
from ..errors import ConfigurationError, SkipCell
from ..measurements.bias import SIZES, Bias
from ..model import EncodedExample
from ..stats.sets import up_to_half
from .base import Evaluation, Job
from .capability import document_log_likelihoods, own_prose
from .drawing import draw

if TYPE_CHECKING:
    from ..components import Level
    from ..model import Model
    from ..scores import Scores
    from ..task import Task
    from .context import Context


class BiasEvaluation(Evaluation):
    """Bias and perplexity with the top neurons suppressed."""

    name = "bias"
    measurement = Bias
    version = 2

    def refuses(self, task: Task, level: str, model: str) -> str | None:
        if task.preference is None:
            return (
                f"{self.name} cannot be measured on task {task.name!r}, which measures none between two continuations; "
                f"take it out of the evaluations of its group."
            )
        return None

    def measure(self, job: Job) -> Bias:
        options: Bias.Options = job.options
        return evaluate(
            job.context,
            job.component_scores,
            job.level,
            own_prose(job.capability.limit),
            document_log_likelihoods,
            options.sizes,
            options.factor,
        )


def preferences(model: Model, examples: Sequence[EncodedExample], between: tuple[str, str]) -> list[float]:
    """log p(first) - log p(second) in nats of each example, whose answer and foil are the two in either order.

    Raises:
        ConfigurationError: an example asks for something else.
    """
    differences: list[float] = []
    for encoded in examples:
        if {encoded.example.answer, encoded.example.foil} != set(between):
            raise ConfigurationError(
                f"the example {encoded.example.prompt!r} asks for {encoded.example.answer!r} against "
                f"{encoded.example.foil!r}, and a preference between {between[0]!r} and {between[1]!r} was asked for."
            )
    for batch in model.batches(examples):
        metric = model.metric(model.run(batch).logits, batch).tolist()
        differences += [x if e.example.answer == between[0] else -x for x, e in zip(metric, batch.examples)]
    return differences


def evaluate(
    context: Context,
    scores: Scores,
    level: Level,
    documents: Sequence[tuple[str, int]],
    log_likelihoods: Callable[[Model, Sequence[str]], Sequence[float]],
    sizes: Sequence[int] = SIZES,
    factor: float = 0.0,
    n_control: int = 24,
) -> Bias:
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
    ks = up_to_half(sizes, level.size(model), level.name, model.name)
    ranking = scores.ranking(seed=0)  # the model itself is changed: one random order of equal scores
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
    test, train, control_removed, likelihoods = ([measurements[at] for measurements in after] for at in range(4))
    return Bias(
        factor=factor,
        items=[e.example.key for e in groups[0]],
        base_items=[e.example.item for e in groups[0]],
        sizes=ks,
        test=before[0],
        test_removed=test,
        train=before[1],
        train_removed=train,
        train_items=[e.example.item for e in groups[1]],
        control=before[2],
        control_removed=control_removed,
        control_items=[e.example.item for e in groups[2]],
        words=[words for _, words in documents],
        documents=before[3],
        documents_removed=likelihoods,
    )
