"""What determines a result, as a hash: the same hash, the same result, so that nothing is done twice.

Scores are determined by the cell, what is drawn, the weights, the data, the code of the task and of the method, and the
version of the measuring core. A record is determined by its scores and by what is replaced in judging them; each of
its evaluations by its options and its version. Versions are raised by hand; ``identity.lock`` (:mod:`.lock`) holds a
hash of the code behind each, and a test fails where that code changed and its version did not. Descriptions, titles
and statistics are no part of it: aggregates are derived again from what is stored.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..codetext import code_hash
from ..evaluation.base import evaluations
from ..loading import fingerprint, hash_file
from ..method import methods
from ..records.record import Cell, Planned, digest
from ..records.settings import Settings
from ..task import tasks

CORE_VERSION = 2
"""Of the measuring core: models, components, interventions, how examples are drawn and methods are run."""
READER_VERSION = 1
"""Of what reads precomputed scores."""

_EXTENSIONS = ("attriboard.tasks", "attriboard.methods", "attriboard.zoo")


def scoring_identity(cell: Cell, settings: Settings) -> str:
    """SHA-256 of what determines a cell's scores.

    Raises:
        AttriboardError: a name in the cell does not exist.
    """
    task = tasks.get(cell.task)
    return digest(
        {
            "cell": cell.model_dump(exclude={"precomputed", "replacement", "variant"}),
            "drawing": settings.drawing(),
            "run": [settings.dtype, settings.device],
            "weights": fingerprint(cell.model),
            "task": [_source_hash(task), _data_hash(task, cell.task_options)],
            "method": _method_hashes(cell),
            "core": CORE_VERSION,
        }
    )


def context_identity(cell: Cell, settings: Settings) -> str:
    """SHA-256 of what names a model and the examples of a task: cells with the same one share them within a run."""
    return digest([cell.model, cell.task, cell.task_options, cell.seed, settings.drawing()])


def record_identity(cell: Cell, settings: Settings) -> str:
    """SHA-256 of what determines a record, but for its evaluations, which have identities of their own."""
    return digest([scoring_identity(cell, settings), cell.replacement, cell.variant])


def stage_identity(name: str, settings: Settings) -> str:
    """SHA-256 of what determines an evaluation beside the record's own identity: its options and its version."""
    evaluation = evaluations.get(name)
    # the code of this package is watched by identity.lock
    own = [] if evaluation.__module__.startswith("attriboard.") else [_source_hash(evaluation)]
    return digest([name, settings.asked(name), evaluation.version, *own])


def wanted_stages(planned: Planned) -> dict[str, str]:
    """By evaluation that a planned cell asks for, its identity; what a method costs is always asked for."""
    names = dict.fromkeys([*planned.settings.measured(planned.cell.level), "speed"])
    return {name: stage_identity(name, planned.settings) for name in names}


def _method_hashes(cell: Cell) -> list[Any]:
    """Of the method's files and those it uses; of precomputed scores, of their file and the reader's version."""
    if cell.precomputed is not None:
        return [cell.precomputed.sha256, READER_VERSION]
    return [_source_hash(methods.get(name)) for name in (cell.method, *methods.get(cell.method).uses)]


def _source_hash(cls: type) -> str:
    """Of the code of a task or method, and of what it imports from other tasks, methods and the zoo."""
    return code_hash([Path(file) for file in sorted(files_behind(_module_of(cls)))])


def _module_of(cls: type) -> ModuleType:
    return vars(cls).get("defined_in") or sys.modules[cls.__module__]


def files_behind(module: ModuleType, seen: set[str] | None = None) -> set[str]:
    """The files of a module and of the tasks, methods and zoo modules that it imports from."""
    seen = set() if seen is None else seen
    if module.__file__ is None or module.__file__ in seen:
        return seen
    seen.add(module.__file__)
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.startswith(_EXTENSIONS) and name in sys.modules:
            files_behind(sys.modules[name], seen)
    return seen


def _data_hash(cls: type, options: dict[str, Any]) -> str:
    """Of the files in ``data`` beside a task's file, and of files and folders that its options name."""
    file = inspect.getsourcefile(cls)
    places = [Path(file).parent / "data"] if file else []
    places += [path for v in options.values() if isinstance(v, str) and v and (path := Path(v).expanduser()).exists()]
    return digest([(f.name, hash_file(f)) for f in _files_in(places) if f.suffix != ".pyc"])


def _files_in(places: Sequence[Path]) -> list[Path]:
    return [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("*"))) if f.is_file()]
