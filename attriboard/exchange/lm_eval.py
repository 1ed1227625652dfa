"""Tasks of the board as lm-eval tasks: a folder with which anyone can ask any model the same questions.

``lm-eval run --include_path FOLDER --tasks attriboard_arithmetic ...`` then gives the accuracy that a task has here.
The folder can be moved: its YAML files find their JSON lines beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..capability_tasks import attriboard_documents
from ..errors import ConfigurationError, TaskError, check_range
from ..task import SPLITS, Example, Task, tasks

LOADER = Path(attriboard_documents.__file__)

# accuracy: whether the answer is what the model would write next, as here
TOP_TOKEN = """\
output_type: loglikelihood
doc_to_text: prompt
doc_to_target: answer
"""
# the foil first: a tie counts as wrong
CHOICE = """\
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: "{{[foil, answer]}}"
doc_to_target: 1
"""
YAML = """\
task: attriboard_{name}
custom_dataset: !function {loader}.load
dataset_kwargs:
  file: attriboard_{name}.jsonl
test_split: test
{question}target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
{metadata}
"""


@dataclass
class Exported:
    """By task: how many examples were written, and why one that was not asked for by name was not."""

    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def export(folder: Path, names: Sequence[str] = (), limit: int = 64, seed: int = 0, split: str = "test") -> Exported:
    """Writes ``attriboard_TASK.yaml`` and ``attriboard_TASK.jsonl`` for every task, and the file that reads them.

    Args:
        folder: made if it does not exist.
        names: tasks; all that lm-eval can ask by default, the others are skipped.
        limit: examples of every task.

    Raises:
        ConfigurationError: ``folder`` cannot be written to, ``limit`` is below 1, or ``split`` is unknown.
        UnknownNameError: no task is called so.
        TaskError: a task asked for by name cannot be exported, or has fewer examples.
    """
    check_range("--limit", limit)
    if split not in SPLITS:
        raise ConfigurationError(f"--split is {split!r}, expected 'train' or 'test'.")
    chosen = [tasks.make(name) for name in dict.fromkeys(names or tasks.names())]
    exported = Exported()
    files: dict[str, str] = {}
    for task in chosen:
        try:
            examples = _examples(task, limit, seed, split)
        except TaskError as error:
            if names:
                raise
            exported.skipped[task.name] = str(error)
            continue
        files[f"attriboard_{task.name}.yaml"] = _yaml(task, examples, {"split": split, "seed": seed})
        files[f"attriboard_{task.name}.jsonl"] = "".join(_line(task, example) for example in examples)
        exported.written[task.name] = len(examples)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(LOADER, folder / LOADER.name)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write to the folder {folder}: {error.strerror or error}.") from error
    return exported


def _examples(task: Task, limit: int, seed: int, split: str) -> list[Example]:
    if task.modality != "text":
        raise TaskError(f"task {task.name!r} asks about pictures; only text tasks can be exported.")
    if task.writes:
        raise TaskError(f"task {task.name!r} is about what a model writes itself; it has no fixed prompts to export.")
    examples = task.examples(split, limit, seed)
    if len({_is_choice(example) for example in examples}) > 1:
        raise TaskError(f"task {task.name!r} mixes choices with top-token answers; export one of its kinds.")
    return examples


def _is_choice(example: Example) -> bool:
    """Whether the example asks which of answer and foil is likelier, not for the top token."""
    return example.choice


def _yaml(task: Task, examples: Sequence[Example], drawn: Mapping[str, Any]) -> str:
    """The task's configuration; a description at its top level would be put before every prompt."""
    metadata = {"version": task.version, "about": task.description, "paper": task.paper, **drawn}
    return YAML.format(
        name=task.name,
        loader=LOADER.stem,
        question=CHOICE if _is_choice(examples[0]) else TOP_TOKEN,
        metadata="\n".join(f"  {key}: {json.dumps(value)}" for key, value in metadata.items()),
    )


def _line(task: Task, example: Example) -> str:
    document = {
        "prompt": example.prompt,
        "answer": example.answer,
        "foil": example.foil,
        "subset": example.subset,
        "item": example.item,
        "labels": list(task.labels),
    }
    return json.dumps(document, ensure_ascii=False) + "\n"
