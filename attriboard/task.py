"""What a task is: examples made from a seed, and the registry of tasks.

A task speaks in strings and pictures only. Whether a string fits a model's tokenizer (one-token answers,
counterfactuals of equal length) is decided by the model, which hands :meth:`Task.examples` a test called ``fits``.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL.Image import Image

from .errors import ConfigurationError, TaskError, check_name
from .files import kind_and_reason
from .levels import names_where
from .registry import Registry

SPLITS = ("train", "test")
Span = tuple[int, int]


PATIENCE = 10
"""A stream of candidates has ended when for each example that it gave so many candidates in a row were nothing new."""
IMAGE = "<image>"
"""Stands in a prompt where the image stands."""


@dataclass(frozen=True)
class Example:
    """One question to a model.

    Attributes:
        prompt: the text the model continues; with an image, :data:`IMAGE` stands in it exactly once.
        answer: the right continuation, exactly as typed (a leading space matters); one token.
        foil: the wrong continuation it is compared with; one token.
        counterfactual: a prompt of equal token length whose right continuation is the foil.
        marks: named character spans ``(start, end)`` of the prompt, for example ``{"object": ((4, 7),)}``.
        item: the base item; examples that share it never stand in different splits.
        subset: the part of the task it belongs to.
        image: the picture the prompt is about.
        counterfactual_image: the picture of the counterfactual; ``image`` if only the text differs. An example has a
            counterfactual if either is given.
        regions: named masks ``[height, width]`` of bool over the image's pixels.
        twin: equal in two tasks for the same question asked in two ways.
        concept: the word the example is about, where its task compares concepts.
        choice: True where the model only has to find the answer likelier than the foil; else the answer has to be its
            top token.
        paraphrases: prompts that ask the same in other words, with the same answer and foil.
        frame: the wording that stands around the item, where several items can stand in it; examples that share it
            never stand in different splits either.
        demonstrations: the base items of the solved examples that the prompt shows; they are of the example's split.
        other_question: the prompt with another question about the same context, to which neither the answer nor the
            foil is right, or the foil is; what the metric keeps there needs no understanding of the question.
    """

    prompt: str
    answer: str
    foil: str | None = None
    counterfactual: str | None = None
    marks: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    item: str = ""
    subset: str = ""
    image: Image | None = None
    counterfactual_image: Image | None = None
    regions: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)
    twin: str = ""
    concept: str = ""
    choice: bool = False
    paraphrases: tuple[str, ...] = ()
    frame: str = ""
    demonstrations: tuple[str, ...] = ()
    other_question: str | None = None

    def __post_init__(self) -> None:
        if self.choice and self.foil is None:
            raise TaskError(f"the example {self.prompt!r} asks for a choice and has no foil to choose from.")

    @property
    def has_counterfactual(self) -> bool:
        return self.counterfactual is not None or self.counterfactual_image is not None

    @property
    def key(self) -> str:
        """The prompt, and what identifies the image: equal for examples that ask the same."""
        return self.prompt if self.image is None else f"{self.prompt}#{image_hash(self.image)}"


def image_hash(image: Image) -> str:
    """SHA-256 of a picture's size and pixels."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


def split_of(item: str) -> str:
    """The split a base item belongs to: half of all items each, fixed by the item alone."""
    return SPLITS[hashlib.sha256(item.encode()).digest()[0] % 2]


def split_of_frame(frame: str) -> str:
    """The split a frame belongs to: half of all frames each, fixed by the frame alone."""
    return split_of(f"frame {frame}")


@dataclass
class Task(ABC):
    """Base class of all tasks; a subclass is a dataclass whose fields are the task's options.

    Class attributes:
        name: as typed on the command line.
        version: raised whenever the examples change; it is part of every record's identity.
        description: one sentence.
        paper: where the task comes from.
        labels: all possible answers.
        all_subsets: the parts the task has; examples are drawn from them in turn. A task without any is one part, whose
            name is empty.
        controls: those of them that are left out unless asked for: nothing is attributed there, and an edit should
            leave them as they are.
        preference: two continuations between which the task measures a preference, log p(first) - log p(second); None
            for tasks with a right answer.
        marks: the names of the marks its examples carry.
        regions: the names of the image regions its examples carry.
        evidence: the marks (at level tokens) and regions (at level patches) that hold what the answer follows from.
        distractors: those that hold what a wrong answer could follow from.
        levels: the levels that can be scored on it; all but those of images by default.
        modality: "text", or "vision" if its examples have images.
        stream: tasks with the same one draw the same candidates from the same seed; each its own by default.
        scale_questions: a JSON-lines file of questions for a number that belong to the task, which ``attriboard
            scale-questions`` asks; None where there are none.
        writes: if above 0, the model first continues a candidate by at most that many tokens, and :meth:`targets`
            makes examples of what it wrote.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    description: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    labels: ClassVar[tuple[str, ...]] = ()
    all_subsets: ClassVar[tuple[str, ...]] = ()
    controls: ClassVar[tuple[str, ...]] = ()
    preference: ClassVar[tuple[str, str] | None] = None
    marks: ClassVar[tuple[str, ...]] = ()
    regions: ClassVar[tuple[str, ...]] = ()
    evidence: ClassVar[tuple[str, ...]] = ()
    distractors: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[tuple[str, ...]] = names_where(image=False)
    modality: ClassVar[str] = "text"
    stream: ClassVar[str] = ""
    scale_questions: ClassVar[Path | None] = None
    writes: ClassVar[int] = 0

    subsets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = self.all_subsets or ("",)
        usual = tuple(subset for subset in known if subset not in self.controls)
        self.subsets = tuple(self.subsets) or usual
        if not self.subsets:
            raise ConfigurationError(f"task {self.name!r} has no subset but its controls; name one in all_subsets.")
        for subset in self.subsets:
            check_name(f"subset of task {self.name!r}:", subset, known)

    def declare(self, **attributes: tuple[str, ...]) -> None:
        """Sets class attributes for this task alone, where an option decides them; before :meth:`__post_init__` of the
        base class, which reads them."""
        vars(self).update(attributes)

    @property
    def chance(self) -> float | None:
        """The share answered correctly by guessing among the labels; None where the answers are not a fixed set."""
        return 1 / len(self.labels) if self.labels else None

    @abstractmethod
    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        """An endless (or long) stream of examples of one subset; everything random comes from ``rng``."""

    def split(self, candidate: Example) -> str | None:
        """The split that a candidate belongs to: that of its item, its frame and all of its demonstrations.

        None, and the candidate is not used, where these belong to different ones. Only data that is divided already
        says otherwise.
        """
        belongs = {split_of(item) for item in (candidate.item or candidate.prompt, *candidate.demonstrations)}
        belongs |= {split_of_frame(candidate.frame)} if candidate.frame else set()
        return belongs.pop() if len(belongs) == 1 else None

    def targets(self, candidate: Example, written: str) -> Iterator[Example]:
        """The examples in what a model wrote after a candidate's prompt; only for tasks that let it write.

        The prompt of each is the candidate's, extended by what stands before the target word; its answer is the word
        that would be right there.
        """
        raise NotImplementedError(f"{type(self).__name__} sets writes and does not define targets.")

    def examples(
        self,
        split: str,
        n: int,
        seed: int,
        fits: Callable[[Example], str | None] = lambda example: None,
        write: Callable[[Example, int], str] | None = None,
    ) -> list[Example]:
        """The first ``n`` distinct examples of a split that ``fits`` accepts, the subsets in turn.

        Args:
            split: "train" or "test"; base items are divided between them by :meth:`split`.
            n: how many.
            seed: the same seed gives the same examples, and the first ones do not depend on ``n``.
            fits: returns None, or the reason why a model cannot use the example.
            write: what a model writes after an example's prompt, in at most so many tokens; needed if the task's
                :attr:`writes` is above 0.

        Raises:
            TaskError: too few candidates fit; the message quotes the last reason.
        """
        if split not in SPLITS:
            raise ConfigurationError(f"split is {split!r}, expected 'train' or 'test'.")
        if self.writes and write is None:
            raise TaskError(f"the examples of task {self.name!r} are made of what a model writes; give write.")
        streams = {s: self._stream(s, split, seed, fits, write) for s in self.subsets}
        chosen: list[Example] = []
        while len(chosen) < n:
            chosen.append(next(streams[self.subsets[len(chosen) % len(self.subsets)]]))
        return chosen

    def _stream(
        self,
        subset: str,
        split: str,
        seed: int,
        fits: Callable[[Example], str | None],
        write: Callable[[Example, int], str] | None,
    ) -> Iterator[Example]:
        rng = random.Random(f"{self.stream or f'{self.name}:{self.version}'}:{split}:{subset}:{seed}")
        seen: set[str] = set()
        usable = rejected = last_new = 0
        unknown = reason = "its candidates ran out"
        for tried, candidate in enumerate(self._candidates(subset, rng)):
            idle = tried - last_new
            if tried > (20 if self.writes else 400) * (usable + 5) or idle > PATIENCE * (usable + 200):
                if reason == unknown:
                    reason = f"none of its last {idle} candidates was a new one of this split"
                break
            if self.split(candidate) != split:
                continue
            examples = [candidate]
            if self.writes and write is not None:
                examples = [e for e in self.targets(candidate, write(candidate, self.writes)) if e.subset == subset]
                reason = reason if examples else "the model wrote no target word"
            for example in examples:
                key = example.twin or example.key
                if key in seen:
                    continue
                self._check_labels(example)
                why_not = fits(example)
                if why_not is not None:
                    reason, rejected = why_not, rejected + 1
                    continue
                seen.add(key)
                usable, last_new = usable + 1, tried
                yield example
        raise TaskError(
            f"task {self.name!r} gave only {usable} {split} examples of subset {subset!r} that this model can use "
            f"({rejected} rejected; the last reason: {reason}); ask for fewer or choose other subsets."
        )

    def _candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        """The candidates; files and data that they are made of and that cannot be read are the task's own error.

        Raises:
            TaskError: says what cannot be read.
        """
        try:
            yield from self.candidates(subset, rng)
        except (OSError, RecursionError, UnicodeError) as error:
            raise TaskError(
                f"task {self.name!r} cannot make its examples of subset {subset!r} ({kind_and_reason(error)})."
            ) from error

    def _check_labels(self, example: Example) -> None:
        for role, text in (("answer", example.answer), ("foil", example.foil)):
            if self.labels and text is not None and text not in self.labels:
                raise TaskError(f"task {self.name!r} made the {role} {text!r}, which is not among its labels.")


tasks: Registry[Task] = Registry("task", Task, "attriboard.tasks")  # type: ignore[type-abstract]
