"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError

Include = Annotated[
    list[Path] | None,
    typer.Option(
        help="A Python file or folder with tasks, methods, evaluations or architectures of your own.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def include_files(paths: list[Path] | None) -> None:
    """Registers the tasks, methods, evaluations and architectures in files of the user's own.

    Raises:
        ConfigurationError: a file that cannot be imported, or that defines none.
    """
    if not paths:
        return  # nothing else here needs a model
    from ..evaluation.base import evaluations
    from ..method import methods
    from ..models.architectures import architectures
    from ..task import tasks

    for path in paths:
        if not sum(registry.include(path) for registry in (tasks, methods, evaluations, architectures)):
            raise ConfigurationError(
                f"--include {path} defines no task, method or evaluation (a subclass with a name), and no Architecture."
            )
