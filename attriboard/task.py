"""What a task is: examples made from a seed, and the registry of tasks.

A task speaks in strings only. Whether a string fits a model's tokenizer (one-token answers, counterfactuals
of equal length) is decided by the model, which hands :meth:`Task.examples` a test called ``fits``.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from .errors import ConfigurationError, TaskError, UnknownNameError
from .registry import Registry

SPLITS = ("train", "test")
Span = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One question to a model.

    Attributes:
        prompt: the text the model continues.
        answer: the right continuation, exactly as typed (a leading space matters); one token.
        foil: the wrong continuation it is compared with; one token.
        counterfactual: a prompt of equal token length whose right continuation is the foil.
        marks: named character spans ``(start, end)`` of the prompt, for example ``{"object": ((4, 7),)}``.
        item: the base item; examples that share it never stand in different splits.
        subset: the part of the task it belongs to.
    """

    prompt: str
    answer: str
    foil: str | None = None
    counterfactual: str | None = None
    marks: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    item: str = ""
    subset: str = ""


def split_of(item: str) -> str:
    """The split a base item belongs to: half of all items each, fixed by the item alone."""
    return SPLITS[hashlib.sha256(item.encode()).digest()[0] % 2]


@dataclass
class Task(ABC):
    """Base class of all tasks; a subclass is a dataclass whose fields are the task's options.

    Class attributes:
        name: as typed on the command line.
        version: raised whenever the examples change; it is part of every record's identity.
        description: one sentence.
        paper: where the task comes from.
        labels: all possible answers (``1 / len(labels)`` is chance).
        all_subsets: the parts the task has; examples are drawn from them in turn.
        marks: the names of the marks its examples carry.
        levels: the levels that can be scored on it.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    description: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    labels: ClassVar[tuple[str, ...]] = ()
    all_subsets: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[tuple[str, ...]] = ("heads", "neurons", "attn_neurons", "nodes")

    subsets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.subsets = tuple(self.subsets) or self.all_subsets
        for subset in self.subsets:
            if subset not in self.all_subsets:
                raise UnknownNameError(f"subset of task {self.name!r}:", subset, self.all_subsets)

    @abstractmethod
    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        """An endless (or long) stream of examples of one subset; everything random comes from ``rng``."""

    def examples(
        self,
        split: str,
        n: int,
        seed: int,
        fits: Callable[[Example], str | None] = lambda example: None,
    ) -> list[Example]:
        """The first ``n`` distinct examples of a split that ``fits`` accepts, the subsets in turn.

        Args:
            split: "train" or "test"; base items are divided between them by :func:`split_of`.
            n: how many.
            seed: the same seed gives the same examples, and the first ones do not depend on ``n``.
            fits: returns None, or the reason why a model cannot use the example.

        Raises:
            TaskError: too few candidates fit; the message quotes the last reason.
        """
        if split not in SPLITS:
            raise ConfigurationError(f"split is {split!r}, expected 'train' or 'test'.")
        streams = {s: self._stream(s, split, seed, fits) for s in self.subsets}
        chosen: list[Example] = []
        while len(chosen) < n:
            chosen.append(next(streams[self.subsets[len(chosen) % len(self.subsets)]]))
        return chosen

    def _stream(self, subset: str, split: str, seed: int, fits: Callable[[Example], str | None]) -> Iterator[Example]:
        rng = random.Random(f"{self.name}:{self.version}:{split}:{subset}:{seed}")
        seen: set[str] = set()
        found = rejected = 0
        reason = "its candidates ran out"
        for tried, example in enumerate(self.candidates(subset, rng)):
            if tried > 400 * (found + 5):
                break
            if split_of(example.item or example.prompt) != split or example.prompt in seen:
                continue
            self._check_labels(example)
            why_not = fits(example)
            if why_not is not None:
                reason, rejected = why_not, rejected + 1
                continue
            seen.add(example.prompt)
            found += 1
            yield example
        raise TaskError(
            f"task {self.name!r} gave only {found} {split} examples of subset {subset!r} that this model can use "
            f"({rejected} rejected; the last reason: {reason}); ask for fewer or choose other subsets."
        )

    def _check_labels(self, example: Example) -> None:
        for role, text in (("answer", example.answer), ("foil", example.foil)):
            if self.labels and text is not None and text not in self.labels:
                raise TaskError(f"task {self.name!r} made the {role} {text!r}, which is not among its labels.")


tasks: Registry[Task] = Registry("task", Task, "attriboard.tasks")  # type: ignore[type-abstract]
