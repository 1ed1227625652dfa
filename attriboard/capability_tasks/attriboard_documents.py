"""Reads the JSON lines beside an lm-eval task's YAML, wherever the folder lies; exported beside exported tasks too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def read(file: Path) -> list[dict[str, Any]]:
    """One dictionary per line that is not blank."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def load(file: str, **_: Any) -> dict[str, Dataset]:
    """The documents of a task as its test split: lm-eval's ``custom_dataset``, which also hands over the metadata.

    A path in ``data_files`` would be relative to where lm-eval was started; this one is relative to this file.
    """
    from datasets import Dataset  # 80 MiB, which whoever only reads the lines does not need

    return {"test": Dataset.from_list(read(Path(__file__).parent / file))}
