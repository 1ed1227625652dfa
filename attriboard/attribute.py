"""Scores for one prompt or one task, outside any suite: what ``attriboard attribute`` does.

A method that replaces activations takes them from the counterfactual where there is one and zeroes them otherwise. What
is explained is logit(answer) - logit(foil), or log p(answer) without a foil.
"""

from __future__ import annotations

from typing import Any

from .components import get_level
from .context import answered
from .errors import MethodError, SkipCell, TaskError
from .loading import load_model
from .method import Method, ReplacingMethod, checked, methods
from .model import EncodedExample, Model
from .scores import Scores
from .task import Example, tasks


def attribute_prompt(
    prompt: str,
    answer: str,
    foil: str | None = None,
    counterfactual: str | None = None,
    *,
    model_name: str,
    method_name: str,
    level_name: str,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Scores, dict[str, str]]:
    """Scores for one prompt, and what to say of it (``answer``, ``summary``).

    Raises:
        UnknownNameError: a model, method or level that does not exist.
        MethodError: the method does not score the level, or cannot do without something the prompt lacks.
        ExampleError: the answer or foil is not one token, or the counterfactual has another length.
    """
    method = _method(method_name, level_name, seed, replacement="zero" if counterfactual is None else "counterfactual")
    model = load_model(model_name, device, dtype)
    example = model.encode(Example(prompt, answer, foil, counterfactual))
    scores = _scores(model, method, [example], level_name)
    logits = model.run(model.batch([example])).logits[0].float()
    probability = float(logits.softmax(-1)[example.answer])
    best = model.tokenizer.decode([int(logits.argmax())])
    summary = (
        f"{model_name}: p({answer!r}) = {probability:.4f}, the model's own answer is {best!r}; highest {level_name}:"
    )
    return scores, {"answer": answer, "summary": summary}


def attribute_task(
    task_name: str,
    limit: int,
    *,
    model_name: str,
    method_name: str,
    level_name: str,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Scores, dict[str, str]]:
    """Scores averaged over a task's train examples that the model answers correctly.

    Raises:
        As :func:`attribute_prompt`; TaskError: the model answers none of the examples correctly.
    """
    task = tasks.make(task_name)
    method = _method(method_name, level_name, seed, replacement="counterfactual")
    model = load_model(model_name, device, dtype)
    drawn = [model.encode(e) for e in task.examples("train", limit, seed, model.why_not)]
    right = [e for e, ok in zip(drawn, answered(model, drawn)) if ok]
    if not right:
        raise TaskError(
            f"{model_name} answers none of {len(drawn)} examples of task {task_name!r} correctly; raise --limit or "
            f"choose another model."
        )
    scores = _scores(model, method, right, level_name)
    summary = (
        f"{model_name}: {len(right)} of {len(drawn)} examples of {task_name} answered correctly; highest {level_name}:"
    )
    return scores, {"answer": f"task:{task_name}", "summary": summary}


def _method(name: str, level_name: str, seed: int, replacement: str) -> Method:
    options: dict[str, Any] = {}
    cls = methods.get(name)
    if issubclass(cls, ReplacingMethod):
        options["replacement"] = replacement
    if "seed" in cls.__dataclass_fields__:
        options["seed"] = seed
    method = methods.make(name, options)
    method.check_level(get_level(level_name))
    return method


def _scores(model: Model, method: Method, examples: list[EncodedExample], level_name: str) -> Scores:
    level = get_level(level_name)
    try:
        method.check_examples(examples)
    except SkipCell as error:
        raise MethodError(str(error)) from error
    return checked(method.attribute(model, examples, level), method, model, level)
