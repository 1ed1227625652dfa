"""``attriboard leaderboard``: the board, from stored records and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import ConfigurationError
from .options import Include, include_files
from .output import err, make_folder_of, note_foreign_file, writing


def leaderboard(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR",
            help="A folder of records, or `quick`, which ships. Several make one board: of a cell that more than one "
            "holds, the record made last counts.",
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="md, csv, latex, html or json.")] = "md",
    out_file: Annotated[Path | None, typer.Option("--out", help="A file; standard output by default.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Also draw curves and maps of every table into this folder.")
    ] = None,
    audits: Annotated[
        Path | None,
        typer.Option(help="A folder of audits; above its tables stands what is beyond a task's limits."),
    ] = None,
    include: Include = None,
) -> None:
    """Builds the board from stored records and nothing else."""
    from ..board import formats
    from ..board.board import Board
    from ..files import is_folder
    from ..shipped import pages_from, records_folder

    include_files(include)
    formats.check_format(form)
    findings = None
    if audits is not None:
        from ..studies import audit_report

        if not is_folder(audits, "--audits"):
            raise ConfigurationError(f"{audits} is not a folder of audits; `attriboard audit TASK --json` makes them.")
        findings = audit_report.findings(audit_report.read_audits(audits))
    board = Board.read([records_folder(folder) for folder in folders], findings, lean=figures is None)
    text = formats.render(board, form, pages_from(Path() if out_file is None else out_file.parent))
    for source in board.sources:
        for name, why in source.foreign.items():
            note_foreign_file(source.path / name, why)
    if figures is not None:
        from ..board.figures import draw

        try:
            drawn = draw(board, figures)
        except OSError as error:
            raise ConfigurationError(f"cannot draw into {figures}: {error.strerror or error}.") from error
        for picture in drawn:
            err.print(f"drew {escape(str(picture))}", highlight=False)
    if out_file is None:
        typer.echo(text, nl=False)
        return
    make_folder_of(out_file)
    with writing(out_file):
        out_file.write_text(text, encoding="utf-8")
    err.print(f"wrote {escape(str(out_file))}", highlight=False)
