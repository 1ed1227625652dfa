"""Scores for one prompt or one task, outside any suite: what ``attriboard attribute`` does.

A method that replaces activations takes them from the counterfactual where there is one and zeroes them otherwise. What
is explained is logit(answer) - logit(foil), or log p(answer) without a foil.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .components import get_level
from .context import answered, draw
from .errors import MethodError, SkipCell, TaskError
from .loading import load_model
from .method import Method, ReplacingMethod, checked, methods
from .model import EncodedExample, Model
from .scores import Scores
from .task import Example, tasks


@dataclass(frozen=True)
class Request:
    """Which scores are asked for.

    Attributes:
        model, method, level: their names.
        dtype, device: as of :func:`attriboard.loading.load_model`.
        seed: of a task's examples and of methods that draw.
    """

    model: str
    method: str
    level: str
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    def make_method(self, replacement: str) -> Method:
        """The method, replacing activations in this way if it replaces any.

        Raises:
            UnknownNameError: no such method or level. MethodError: the method does not score the level.
        """
        options: dict[str, Any] = {}
        cls = methods.get(self.method)
        if issubclass(cls, ReplacingMethod):
            options["replacement"] = replacement
        if "seed" in cls.__dataclass_fields__:
            options["seed"] = self.seed
        method = methods.make(self.method, options)
        method.check_level(get_level(self.level))
        return method

    def load_model(self) -> Model:
        return load_model(self.model, self.device, self.dtype)


def attribute_prompt(request: Request, example: Example) -> tuple[Scores, dict[str, str]]:
    """Scores for one prompt, and what to say of it (``answer``, ``summary``).

    Raises:
        UnknownNameError: a model, method or level that does not exist.
        MethodError: the method does not score the level, or cannot do without something the prompt lacks.
        ExampleError: the answer or foil is not one token, or the counterfactual has another length.
    """
    method = request.make_method("zero" if example.counterfactual is None else "counterfactual")
    model = request.load_model()
    encoded = model.encode(example)
    scores = _scores(model, method, [encoded], request.level)
    logits = model.run(model.batch([encoded])).logits[0].float()
    probability = float(logits.softmax(-1)[encoded.answer])
    best = model.tokenizer.decode([int(logits.argmax())])
    summary = (
        f"{model.name}: p({example.answer!r}) = {probability:.4f}, the model's own answer is {best!r}; highest "
        f"{request.level}:"
    )
    return scores, {"answer": example.answer, "summary": summary}


def attribute_task(request: Request, task_name: str, limit: int) -> tuple[Scores, dict[str, str]]:
    """Scores averaged over a task's train examples that the model answers correctly.

    Raises:
        As :func:`attribute_prompt`; TaskError: the model answers none of the examples correctly.
    """
    task = tasks.make(task_name)
    method = request.make_method("counterfactual")
    model = request.load_model()
    drawn = draw(model, task, "train", limit, request.seed)
    right = [e for e, ok in zip(drawn, answered(model, drawn)) if ok]
    if not right:
        raise TaskError(
            f"{model.name} answers none of {len(drawn)} examples of task {task_name!r} correctly; raise --limit or "
            f"choose another model."
        )
    scores = _scores(model, method, right, request.level)
    summary = (
        f"{model.name}: {len(right)} of {len(drawn)} examples of {task_name} answered correctly; highest "
        f"{request.level}:"
    )
    return scores, {"answer": f"task:{task_name}", "summary": summary}


def _scores(model: Model, method: Method, examples: list[EncodedExample], level_name: str) -> Scores:
    level = get_level(level_name)
    try:
        method.check_examples(examples)
    except SkipCell as error:
        raise MethodError(str(error)) from error
    return checked(method.attribute(model, examples, level), method, model, level)
