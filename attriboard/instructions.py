"""Questions in the published instruction format: JSON lines, or what ``datasets`` can load.

One line (or row) holds one question: ``instruction``, ``input`` (mostly empty) and ``output``; the training files of
the same authors hold ``conversations`` of a human and an assistant instead. The prompt around it is the one that their
models are asked with (arXiv:2401.08508, arXiv:2403.06765, arXiv:2409.16452).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TaskError
from .files import json_lines, kind_and_reason, kind_of

PARTS = ("test", "validation", "train")
"""Which part of a data set is read, the first that it has."""
PROBE_SECONDS = 5.0
"""How long the hub has to answer."""


@dataclass(frozen=True)
class Instruction:
    """One question and its right answer.

    Attributes:
        text: the instruction, with its input on a line of its own where there is one.
        output: the answer as published.
        place: where it stands, for messages: ``line 3 of test.jsonl``.
    """

    text: str
    output: str
    place: str


def chat(instruction: str) -> str:
    """The prompt around an instruction; the answer follows on the next line."""
    return f"Human: \n{instruction}\n\nAssistant:\n"


def read_instructions(source: str) -> list[Instruction]:
    """All questions of a JSON-lines file, a folder that ``datasets`` can load, or a data set on the hub.

    Raises:
        TaskError: the source cannot be read or has no question, or a line is no JSON object or lacks a field.
    """
    path = expanded(source)
    kind = kind_of(path, error=TaskError)
    if path.suffix in (".json", ".jsonl") and kind == "missing":
        raise TaskError(f"there is no file {source}; give the path of a JSON-lines file.")
    if kind == "other":
        raise TaskError(f"{source} is no regular file (a pipe, socket or device), and is not read.")
    rows = _lines(path) if kind == "file" else _loaded(source)
    instructions = [_instruction(row, place) for row, place in rows]
    if not instructions:
        raise TaskError(f"{source} has no question; each line is a JSON object with instruction, input and output.")
    return instructions


def _lines(file: Path) -> Iterator[tuple[Any, str]]:
    for number, row in json_lines(file, TaskError):
        yield row, f"line {number} of {file.name}"


def expanded(source: str) -> Path:
    """A path with ``~`` and ``~user`` filled in where there is such a user; else as it stands."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def open_dataset(source: str, config: str | None = None) -> Any:
    """What ``datasets`` makes of a folder that it saved, a folder of plain files, or a data set on the hub.

    Raises:
        Exception: of any kind; the hub, its client and the file readers each raise their own.
    """
    import datasets

    folder = expanded(source)
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder) if folder.is_dir() else source, config)


@contextmanager
def no_retries(hub: bool) -> Iterator[None]:
    """Where the hub cannot be reached, its clients work from their caches instead of retrying for half a minute."""
    if not hub or hub_answers():
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub can be reached within :data:`PROBE_SECONDS`."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # no name service, no route, a proxy that refuses, offline mode
        return False
    return True


def _loaded(source: str) -> Iterator[tuple[Any, str]]:
    try:
        dataset = open_dataset(source)
    except Exception as error:  # the hub, its client and the file readers each raise their own kinds
        reason = kind_and_reason(error)
        raise TaskError(
            f"{source!r} is no file, and datasets cannot load it ({reason}); give the path of a JSON-lines file, a "
            f"folder, or the name of a data set on the hub that can be reached."
        ) from error
    part = dataset
    if isinstance(dataset, dict):
        part = dataset[next(name for name in (*PARTS, *dataset) if name in dataset)]
    for number, row in enumerate(part, 1):
        yield row, f"row {number} of {source}"


def _instruction(row: Any, place: str) -> Instruction:
    if not isinstance(row, Mapping):
        raise TaskError(f"{place} is {type(row).__name__}, expected an object with instruction, input and output.")
    if "conversations" in row:
        turns = row["conversations"]
        turns_by_speaker: dict[str, Any] = {}
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, Mapping):
                turns_by_speaker.setdefault(str(turn.get("from")), turn.get("value"))
        return Instruction(_text(turns_by_speaker, "human", place), _text(turns_by_speaker, "assistant", place), place)
    more = "" if row.get("input") in (None, "") else f"\n{_text(row, 'input', place)}"
    return Instruction(_text(row, "instruction", place) + more, _text(row, "output", place), place)


def _text(row: Mapping[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if value is None:
        raise TaskError(
            f"{place} lacks the field {field!r}; a question has instruction, input and output, or conversations "
            f"of human and assistant."
        )
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{place} has {value!r} as {field!r}, expected a text.")
    return value
