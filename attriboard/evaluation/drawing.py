"""Examples of a task in a model's tokens, and which of them the model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
            f"task {task.name!r} asks about images, and {model.name} reads text only; choose a vision-language model."
        )
    return [model.encode(e) for e in task.examples(split, n, seed, model.why_not, model.write)]


def answered(model: Model, examples: Sequence[EncodedExample]) -> list[bool]:
    """Whether the model answers each example (see :meth:`Model.correct`)."""
    right: list[bool] = []
    for batch in model.batches(examples):
        right += model.correct(model.run(batch).logits, batch).tolist()
    return right


def reversed_pair(encoded: EncodedExample) -> EncodedExample | None:
    """The counterfactual as an example whose answer is the foil; None without a foil or a counterfactual."""
    if encoded.foil is None or encoded.counterfactual is None:
        return None
    image = encoded.image if encoded.counterfactual_image is None else encoded.counterfactual_image
    return replace(
        encoded,
        tokens=encoded.counterfactual,
        answer=encoded.foil,
        foil=encoded.answer,
        counterfactual=encoded.tokens,
        image=image,
        counterfactual_image=encoded.image,
    )
