"""How strongly, as a number: the expected value over the answers of a scale, and its correlation with the gold values.

A model asked for a number from 0 to 1 or from -4 to 4 (the regression questions of arXiv:2401.08508) is not made to
write one: every answer of the scale is scored, and the prediction is their mean under the model's own probabilities.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..errors import ConfigurationError, ExampleError, TaskError
from ..instructions import Instruction, chat, read_instructions
from ..model import EncodedExample, Model
from ..stats.intervals import bootstrap_interval
from ..task import Example, tasks

OWN = "own"
"""The questions that tasks bring along."""


@dataclass(frozen=True)
class Scale:
    """The answers that stand for a number.

    Attributes:
        low, high: the ends of the scale.
        texts: the answers; none is the beginning of another.
        values: the number that each of them says.
    """

    low: float
    high: float
    texts: tuple[str, ...]
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def nearest(self, value: float) -> str:
        """The answer closest to a number."""
        return min(zip(self.texts, self.values), key=lambda pair: abs(pair[1] - value))[0]


UNIT = Scale(0.0, 1.0, tuple(f"{i / 10:.1f}" for i in range(11)), tuple(i / 10 for i in range(11)))
"""0.0, 0.1, ..., 1.0."""

VALENCE = Scale(-4.0, 4.0, tuple(str(i) for i in range(-4, 5)), tuple(float(i) for i in range(-4, 5)))
"""-4, -3, ..., 4."""


@torch.no_grad()
def expected_values(model: Model, prompts: Sequence[str], scale: Scale) -> list[float]:
    """By prompt the expected value over the scale: sum of p(text) value, with p renormalized over the scale's texts.

    A text's log p is the sum of its tokens' log-probabilities after the prompt. The prompt is run once, and behind it
    every beginning that the texts share.

    Raises:
        ExampleError: a prompt is empty or too long for the model, or its tokenizer writes two answers alike or cannot
            put one directly behind a prompt.
    """
    groups: dict[tuple[int, tuple[tuple[int, ...], ...]], list[int]] = defaultdict(list)
    encoded: list[EncodedExample] = []
    for place, prompt in enumerate(prompts):
        ids = model.tokens(prompt)
        answers = tuple(model.continuation(prompt, text) for text in scale.texts)
        longest = len(ids) + max(map(len, answers))
        if not ids or longest > model.max_length:
            raise ExampleError(
                f"the prompt and its answer are {longest} tokens long, and {model.name} takes 1 to {model.max_length}: "
                f"{prompt[:60]!r}."
            )
        if any(a[: len(b)] == b for i, a in enumerate(answers) for j, b in enumerate(answers) if i != j):
            raise ExampleError(
                f"the tokenizer of {model.name} does not tell the answers of the scale {scale} apart; choose another "
                f"model."
            )
        encoded.append(EncodedExample(Example(prompt, ""), ids, 0, None, None))
        groups[len(ids), answers].append(place)
    values = torch.tensor(scale.values, dtype=torch.float64)
    expected = [0.0] * len(prompts)
    for (_, answers), places in groups.items():  # prompts of one length: nothing is padded
        beginnings = sorted({answer[:n] for answer in answers for n in range(len(answer))}, key=lambda b: (len(b), b))
        for start in range(0, len(places), model.batch_size):
            chosen = places[start : start + model.batch_size]
            logits = model.continued(model.batch([encoded[i] for i in chosen]), beginnings)
            log_p = dict(zip(beginnings, logits.double().log_softmax(-1).cpu().unbind(1)))
            scores = [sum(log_p[answer[:n]][:, answer[n]] for n in range(len(answer))) for answer in answers]
            p = torch.stack(scores, 1).softmax(1)  # type: ignore[arg-type]  # sum of tensors, not of the int 0
            for i, value in zip(chosen, (p @ values).tolist()):
                expected[i] = value
    return expected


def pearson_r(predicted: Sequence[float], gold: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Pearson's r and its bootstrap interval over the items.

    r is None for fewer than two items or where either side has no spread, the interval for fewer than three items too.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, None

    def over(index: NDArray[np.intp]) -> NDArray[np.float64]:
        if index.shape[-1] < 2:  # one item has no correlation
            return np.full(index.shape[:-1], np.nan)
        return scipy.stats.pearsonr(x[index], y[index], axis=-1).statistic

    return float(over(np.arange(len(x)))), bootstrap_interval(len(x), over) if len(x) > 2 else None


# --- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One question for a number.

    Attributes:
        question: the instruction as published.
        tail: the part of it from the text on, which demonstrations repeat.
        gold: the right number.
        scale: the scale it is asked on.
        place: where it stands in its file.
    """

    question: str
    tail: str
    gold: float
    scale: Scale
    place: str


def read_items(source: str = OWN) -> list[Item]:
    """The scale questions of a source: a file or data set (see :func:`attriboard.instructions.read_instructions`).

    :data:`OWN` are those that registered tasks bring along (:attr:`Task.scale_questions`). The scale is read from what
    stands before the text: an instruction that names -4 and 4, or 0 and 1.

    Raises:
        TaskError: the source cannot be read, or an item names neither scale or has an output that is no number on it;
            or no task brings any.
    """
    if source == OWN:
        brought = [str(task.scale_questions) for task in tasks if task.scale_questions is not None]
        if not brought:
            raise TaskError("no task brings questions for a number; give a file of them as --data.")
        return [item for file in brought for item in read_items(file)]
    return [_item(instruction) for instruction in read_instructions(source)]


def _item(instruction: Instruction) -> Item:
    head = re.split(r"\b(?:Tweet|Text):", instruction.text, maxsplit=1)[0]
    numbers = set(re.findall(r"(?<![\d.])-?\d+(?![.]?\d)", head))
    scale = VALENCE if {"-4", "4"} <= numbers else UNIT if {"0", "1"} <= numbers else None
    if scale is None:
        raise TaskError(
            f"{instruction.place} names no scale that is known in its field 'instruction'; it is '0 to 1' or '-4 to 4'."
        )
    if not re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", instruction.output):
        raise TaskError(
            f"{instruction.place} has {instruction.output[:40]!r} as field 'output', expected a number from {scale}."
        )
    gold = float(instruction.output)
    if not scale.low <= gold <= scale.high:
        raise TaskError(f"{instruction.place} has {gold:g} as field 'output', which is not on its scale {scale}.")
    return Item(instruction.text, instruction.text[len(head) :] or instruction.text, gold, scale, instruction.place)


def prompts_of(items: Sequence[Item], shots: int = 0, seed: int = 0) -> list[str]:
    """What the model is asked: the published prompt, or with ``shots`` the texts of other items with their scores.

    Raises:
        ConfigurationError: a scale has too few items for so many demonstrations.
    """
    if shots == 0:
        return [chat(item.question) for item in items]
    rng = random.Random(seed)
    prompts = []
    for item in items:
        others = [other for other in items if other.scale == item.scale and other is not item]
        if len(others) < shots:
            raise ConfigurationError(f"--shots is {shots}, but only {len(others)} other items have {item.scale}.")
        shown = rng.sample(others, shots)
        lines = [f"{other.tail.rstrip()} {other.scale.nearest(other.gold)}" for other in shown]
        prompts.append("\n".join([*lines, f"{item.tail.rstrip()} "]))
    return prompts


# --- the report -------------------------------------------------------------------------------------------------------


class Measured(BaseModel):
    """One item: where it stands, what is right and what the model expects."""

    model_config = ConfigDict(extra="forbid")

    place: str
    scale: str
    gold: float
    expected: float


class OnScale(BaseModel):
    """The items of one scale together; r and its interval are None where they are not defined."""

    model_config = ConfigDict(extra="forbid")

    scale: str
    n: int
    pearson_r: float | None
    interval: tuple[float, float] | None


class ScaleAnswers(BaseModel):
    """What the scale questions of one source say about one model."""

    model_config = ConfigDict(extra="forbid")

    model: str
    weights_sha256: str
    data: str
    shots: int
    seed: int
    provenance: dict[str, object]
    scales: list[OnScale]
    items: list[Measured]


def measure(
    model: Model,
    source: str,
    items: Sequence[Item],
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    about: dict[str, object] | None = None,
) -> ScaleAnswers:
    """Asks a model the questions of :func:`read_items`: all, or ``limit`` of each scale.

    Args:
        source: where the items come from, kept in the report.
        about: the machine and versions, kept in the report.

    Raises:
        ConfigurationError: see :func:`prompts_of`. ExampleError: a prompt is too
            long for the model.
    """
    answers = ScaleAnswers(
        model=model.name,
        weights_sha256=model.weights_sha256,
        data=source,
        shots=shots,
        seed=seed,
        provenance=about or {},
        scales=[],
        items=[],
    )
    for scale in (UNIT, VALENCE):
        chosen = [item for item in items if item.scale == scale]
        asked = list(zip(chosen, prompts_of(chosen, shots, seed)))[:limit]
        if not asked:
            continue
        expected = expected_values(model, [prompt for _, prompt in asked], scale)
        gold = [item.gold for item, _ in asked]
        r, interval = pearson_r(expected, gold)
        answers.scales.append(OnScale(scale=str(scale), n=len(asked), pearson_r=r, interval=interval))
        answers.items += [
            Measured(place=item.place, scale=str(scale), gold=item.gold, expected=value)
            for (item, _), value in zip(asked, expected)
        ]
    return answers
