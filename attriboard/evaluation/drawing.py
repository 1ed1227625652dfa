"""Which examples of a task a model can use, and which of them it answers."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import TaskError
from ..model import EncodedExample, Model
from ..task import Task


def draw(model: Model, task: Task, split: str, n: int, seed: int) -> list[EncodedExample]:
    """Examples of a task that the model can use, in its tokens.

    Raises:
        TaskError: the task has images and the model cannot look at them, or too few examples fit the model.
    """
    if task.modality == "vision" and model.vision is None:
        raise TaskError(
            f"task {task.name!r} asks about images, and {model.name} reads text only; choose a vision-language model "
            f"such as llava-smollm2-135m."
        )
    return [model.encode(e) for e in task.examples(split, n, seed, model.why_not, model.write)]


def answered(model: Model, examples: Sequence[EncodedExample]) -> list[bool]:
    """Whether the model answers each example (see :meth:`Model.correct`)."""
    found: list[bool] = []
    for batch in model.batches(examples):
        found += model.correct(model.run(batch).logits, batch).tolist()
    return found
