"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError

Include = Annotated[
    list[Path] | None,
    typer.Option(help="A Python file or folder with tasks or methods of your own.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def include_files(paths: list[Path] | None) -> None:
    """Registers the tasks and methods in files of the user's own.

    Raises:
        ConfigurationError: a file that cannot be imported, or that defines neither.
    """
    from ..method import methods
    from ..task import tasks

    for path in paths or []:
        if not tasks.include(path) + methods.include(path):
            raise ConfigurationError(f"--include {path} defines no task and no method (a subclass with a name).")
