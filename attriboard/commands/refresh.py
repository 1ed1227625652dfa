"""``attriboard refresh``: aggregates derived again from stored measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from .options import Include, include_files
from .output import note_foreign_file, out


def refresh(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of records.")],
    include: Include = None,
) -> None:
    """Derives every aggregate in DIR again from the stored measurements, and says in each record what derived it."""
    from ..records.store import Folder

    include_files(include)
    records = Folder(folder)
    changed, total = records.refresh()
    for name, why in sorted(records.foreign.items()):
        note_foreign_file(folder / name, why)
    for record in changed:
        out.print(f"derived again: {escape(str(record.cell))}", highlight=False)
    out.print(f"{len(changed)} of {total} records changed. Records: {escape(str(folder))}", highlight=False)
