"""The data sets of MIB's circuit track, from the hub or from copies of them."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from attriboard.errors import ConfigurationError, TaskError
from attriboard.instructions import no_retries, open_dataset
from attriboard.task import SPLITS, Example, Task, split_of

HUB = "mib-bench"
CONFIGS = {"copycolors_mcqa": "4_answer_choices"}
"""By data set, which of its configurations is used; the others have one."""
SIGNS = {"arithmetic_addition": "+", "arithmetic_subtraction": "-"}


@dataclass
class Mib(Task):
    """MIB's sets, each a subset; a row's counterfactual is the one that MIB exchanges activations with.

    Rows keep MIB's division: its ``train`` part is the train split, its ``test`` part (``validation`` where there is
    none) the test split; a set in one part is divided by row. A row is a base item. Where MIB names a row's template
    (indirect objects) it is the frame, and stands in both splits where MIB's division has it in both. As everywhere
    here, answer and foil must be one token and a counterfactual as long as its prompt; other rows are left out. (MIB
    takes the first token of longer answers.)

    Attributes:
        source: "hub", or a folder that holds a folder for each set, saved by ``datasets`` or of its files. There is no
            default, so that nothing is fetched that nobody asked for.
    """

    name: ClassVar[str] = "mib"
    version: ClassVar[int] = 2
    description: ClassVar[str] = "MIB's data sets: indirect objects, multiple choice, sums and differences."
    paper: ClassVar[str] = "arXiv:2504.13151"
    all_subsets: ClassVar[tuple[str, ...]] = (
        "ioi",
        "copycolors_mcqa",
        "arc_easy",
        "arc_challenge",
        "arithmetic_addition",
        "arithmetic_subtraction",
    )

    source: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, str):
            raise ConfigurationError(f"source of task mib is {self.source!r}, expected 'hub' or a folder.")

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        rows = read_rows(subset, self.source)
        for split, row, place in rng.sample(rows, len(rows)):
            example = READERS[subset](Row(row, place), subset)
            if example is not None:
                prompt, answer, foil, counterfactual = example
                item = f"{split}:{subset}:{place.partition(' in ')[0]}"  # wherever the copy stands
                frame = row.get("template")
                yield Example(
                    prompt,
                    answer,
                    foil,
                    counterfactual,
                    item=item,
                    frame=frame if isinstance(frame, str) else "",
                    subset=subset,
                )

    def split(self, candidate: Example) -> str:
        named = candidate.item.partition(":")[0]
        return named if named in SPLITS else split_of(candidate.item)


@dataclass(frozen=True)
class Row:
    """One row, and where it stands."""

    fields: Mapping[str, Any]
    place: str

    def get(self, path: str) -> Any:
        """A field by its path, for example ``metadata.subject``.

        Raises:
            TaskError: the row lacks it.
        """
        value: Any = self.fields
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
            if value is None:
                raise TaskError(f"{self.place} lacks the field {path!r} of MIB's data sets.")
        return value

    def text(self, path: str) -> str:
        """A field that has to be a text.

        Raises:
            TaskError: the row lacks it, or it is something else.
        """
        value = self.get(path)
        if not isinstance(value, str) or not value:
            raise TaskError(f"{self.place} has {value!r} as {path}, expected a text.")
        return value

    def chosen(self, at: str = "") -> str:
        """The letter of the right choice, of the row or of what stands ``at`` it.

        Raises:
            TaskError: the row lacks the choices, or its answer is none of them.
        """
        labels, key = self.get(f"{at}choices.label"), self.get(f"{at}answerKey")
        if not isinstance(labels, (list, tuple)):
            raise TaskError(f"{self.place} has {labels!r} as {at}choices.label, expected a list.")
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(labels):
            raise TaskError(f"{self.place} has {key!r} as {at}answerKey, expected the index of a choice.")
        return str(labels[key])


Parts = tuple[str, str, str, str]
"""Prompt, answer, foil and counterfactual."""


def _indirect_object(row: Row, subset: str) -> Parts:
    answer, foil = (f" {row.get(f'metadata.{role}')}" for role in ("indirect_object", "subject"))
    return row.text("prompt"), answer, foil, row.text("s2_io_flip_counterfactual.prompt")


def _choice(row: Row, subset: str) -> Parts:
    """A letter follows the prompt behind a space, unless the prompt ends in one."""
    prompt = row.text("prompt")
    space = "" if prompt[-1:].isspace() else " "
    answer, foil = row.chosen(), row.chosen("symbol_counterfactual.")
    return prompt, space + answer, space + foil, row.text("symbol_counterfactual.prompt")


def _arithmetic(row: Row, subset: str) -> Parts | None:
    """None for a row of the other operation, or without a counterfactual."""
    if row.get("operator") != SIGNS[subset] or row.fields.get("random_counterfactual") is None:
        return None
    labels = (str(row.get("label")), str(row.get("random_counterfactual.label")))
    return row.text("prompt"), *labels, row.text("random_counterfactual.prompt")


READERS: dict[str, Callable[[Row, str], Parts | None]] = {
    "ioi": _indirect_object,
    "copycolors_mcqa": _choice,
    "arc_easy": _choice,
    "arc_challenge": _choice,
    "arithmetic_addition": _arithmetic,
    "arithmetic_subtraction": _arithmetic,
}


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    import datasets  # takes a second and 80 MiB, which nothing else here needs

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@functools.cache
def read_rows(subset: str, source: str) -> list[tuple[str, Mapping[str, Any], str]]:
    """Every row of a set that is used, with its split ("" where the set is in one part) and its place.

    Raises:
        TaskError: neither the hub nor such a folder can be read.
    """
    folder = Path(source).expanduser() / subset
    if not source:
        raise TaskError(f"task 'mib' needs source='hub', or source=PATH of a folder with copies of {HUB}/{subset}.")
    on_hub = source == "hub"
    if not on_hub and not folder.is_dir():
        raise TaskError(f"there is no folder {folder}; task 'mib' looks for a copy of {HUB}/{subset} there.")
    name = f"{HUB}/{subset}" if on_hub else str(folder)
    try:
        with no_retries(on_hub), _no_bars():
            dataset = open_dataset(name, CONFIGS.get(subset) if on_hub else None)
    except Exception as error:  # the hub, its client and the file readers each raise their own kinds
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise TaskError(
            f"the data set {name} cannot be read ({reason}); download {HUB}/{subset} and give the folder in which it "
            f"stands as {subset!r} as source=PATH."
        ) from error
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    test = "test" if "test" in parts else "validation"
    used = {"train": "train", test: "test"} if {"train", test} <= set(parts) else dict.fromkeys(parts, "")
    return [
        (split, row, f"row {number} of {part or 'all'} in {name}")
        for part, split in used.items()
        for number, row in enumerate(parts[part], 1)
    ]
