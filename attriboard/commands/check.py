"""``attriboard check``: what became worse, slower or is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Include, include_files
from .output import out


def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of records.")],
    against: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The records it is held against: a folder, or `quick`, which ships."),
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare this metric (repeatable); the headlines by default.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also compare times.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    include: Include = None,
) -> None:
    """Fails if a method became significantly worse, slower, or is missing in DIR, cell by cell."""
    from ..board.check import check_folders
    from ..shipped import records_folder

    include_files(include)
    report = check_folders(records_folder(folder), records_folder(against), metric or (), speed)
    if as_json:
        content = {"failed": report.failed, "lines": report.lines(), **report.model_dump(mode="json")}
        typer.echo(json.dumps(content, indent=1))
    else:
        for line in report.lines():
            out.print(line, highlight=False, markup=False)
    if report.failed:
        raise typer.Exit(1)
