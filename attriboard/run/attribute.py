"""Scores for one prompt or one task, outside any suite: what ``attriboard attribute`` does.

A method that replaces activations takes them from the counterfactual where there is one and zeroes them otherwise. What
is explained is logit(answer) - logit(foil), or log p(answer) without a foil. Scores of patches and tokens belong to one
prompt; only those of patches, whose grid is the same for all, are averaged over the examples of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..components import InputLevel, get_level
from ..errors import ConfigurationError, MethodError, SkipCell, TaskError
from ..evaluation.drawing import answered, draw
from ..levels import USUAL_REPLACEMENT, names_where
from ..loading import load_model
from ..method import Method, ReplacingMethod, checked, checked_inputs, make_method, methods
from ..model import EncodedExample, Model
from ..scores import Scores
from ..task import Example, tasks


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
        replaces = issubclass(methods.get(self.method), ReplacingMethod)
        method = make_method(self.method, {"replacement": replacement} if replaces else {}, self.seed)
        method.check_level(get_level(self.level))
        return method

    def load_model(self) -> Model:
        return load_model(self.model, self.device, self.dtype)


def attribute_prompt(
    request: Request, example: Example, overlay_file: Path | None = None
) -> tuple[Scores, dict[str, str]]:
    """Scores for one prompt, and what to say of it (``answer``, ``summary``).

    Args:
        request: the model, method and level.
        example: the prompt, with its image if it has one.
        overlay_file: draws scores of patches on the image as the model sees it into this PNG file.

    Raises:
        UnknownNameError: a model, method or level that does not exist.
        MethodError: the method does not score the level, or cannot do without something the prompt lacks.
        ExampleError: the answer or foil is not one token, the counterfactual has another length, or the prompt and
            its image do not belong together.
        ConfigurationError: there is nothing to draw on, or the drawing cannot be written.
    """
    if overlay_file is not None:
        check_overlay(request.level, example.image is not None, overlay_file)
    method = request.make_method("counterfactual" if example.has_counterfactual else "zero")
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
    if overlay_file is not None and model.vision is not None and example.image is not None:
        from ..board.heatmaps import overlay  # matplotlib is needed here alone

        title = f"{request.method}: {example.answer!r}, p = {probability:.3f}".replace("$", r"\$")
        try:
            overlay_file.parent.mkdir(parents=True, exist_ok=True)
            overlay(model.vision.see(example.image), scores.values.float().numpy(), title, overlay_file)
        except OSError as error:
            raise ConfigurationError(f"cannot draw {overlay_file}: {error.strerror or error}.") from error
    return scores, {"answer": example.answer, "summary": summary}


def check_overlay(level: str, has_image: bool, file: Path) -> None:
    """Refuses a drawing that cannot be made.

    Raises:
        ConfigurationError: the level is not patches, there is no image, or the file is no PNG.
    """
    drawn = names_where(image=True)
    if level not in drawn:
        able = " or ".join(drawn)
        raise ConfigurationError(f"--overlay draws scores of {able}; give --level {able} instead of {level}.")
    if not has_image:
        raise ConfigurationError("--overlay draws on one image; give --prompt with --image.")
    if file.suffix.lower() != ".png":
        raise ConfigurationError(f"--overlay {file} does not end in .png.")


def attribute_task(request: Request, task_name: str, limit: int) -> tuple[Scores, dict[str, str]]:
    """Scores averaged over a task's train examples that the model answers correctly.

    Raises:
        As :func:`attribute_prompt`; ConfigurationError: the level is tokens, which differ from prompt to prompt;
        TaskError: the model answers none of the examples correctly.
    """
    task = tasks.make(task_name)
    if request.level in names_where(inputs=True, image=False):
        raise ConfigurationError(
            f"{request.level} differ from prompt to prompt, so their scores cannot be averaged over a task; give one "
            f"--prompt."
        )
    method = request.make_method(USUAL_REPLACEMENT)
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


def _scores(model: Model, method: Method, examples: Sequence[EncodedExample], level_name: str) -> Scores:
    level = get_level(level_name)
    try:
        method.check_examples(examples)
        if not isinstance(level, InputLevel):
            return checked(method.attribute(model, examples, level), method, model, level)
        by_example = checked_inputs(method.each(model, examples, level), method)
    except SkipCell as error:
        raise MethodError(str(error)) from error
    details: dict[str, Any] = {"averaged_over_examples": len(examples)}
    if not level.image:
        details = {"tokens": level.pieces(model, examples[0])}
    mean = torch.stack(by_example).double().mean(0).float()
    return Scores(mean, level.name, level.example_names(model, examples[0]), details)
