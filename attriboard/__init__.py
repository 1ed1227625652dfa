"""attriboard: a benchmark of attribution methods. This page is the table of contents.

Names are imported when they are first used, so that ``import attriboard`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Example": "task",
    "Task": "task",
    "Method": "method",
    "ReplacingMethod": "method",
    "Scores": "scores",
    "Model": "model",
    "Batch": "model",
    "hook_name": "model",
    "load_model": "loading",
    "Level": "components",
    "get_level": "components",
    "Intervention": "interventions",
    "FrozenUnembedding": "log_prob",
    "Request": "run.attribute",
    "attribute_prompt": "run.attribute",
    "attribute_task": "run.attribute",
    "Suite": "run.suite",
    "Record": "records.record",
    "Folder": "records.store",
    "run_cells": "run.runner",
    "Board": "board.board",
    "render": "board.formats",
    "METRICS": "measurements.registry",
    "AttriboardError": "errors",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'attriboard' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attriboard.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
