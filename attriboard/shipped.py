"""Files that ship with the package and are no code: suites, and the records of reference runs."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from .files import kind_of


def shipped(part: str) -> list[Path]:
    """The folders of a part, ``suites`` or ``reference``: in a checkout ``benchmarks/`` and ``results/``."""
    return [Path(folder) for folder in import_module(f"attriboard.{part}").__path__]


def records_folder(path: Path) -> Path:
    """A folder of records by path, or by the bare name of a reference run that ships, such as ``quick``.

    Raises:
        ConfigurationError: the operating system refuses the path; gives its reason.
    """
    if path.parent != Path() or kind_of(path) != "missing":
        return path
    known = {marker.parent.name: marker.parent for root in shipped("reference") for marker in root.glob("*/suite.json")}
    return known.get(path.name, path)


def pages_from(folder: Path) -> str | None:
    """The way from a folder of a checkout to its ``docs/``; None outside, where links would lead nowhere."""
    checkout = Path(__file__).resolve().parents[1]
    inside = folder.resolve().is_relative_to(checkout)
    if not inside or not (checkout / "docs" / "metrics.md").is_file():
        return None
    return Path(os.path.relpath(checkout / "docs", folder.resolve())).as_posix()
