"""``attriboard selftest``: whether methods have the properties that their definitions imply."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Include, include_files
from .output import out


def selftest(
    method: Annotated[list[str] | None, typer.Argument(help="Only these methods; all by default.")] = None,
    include: Include = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Checks on tiny random models that methods have the properties that their definitions imply."""
    from ..method import methods
    from ..selftest import examine
    from ..selftest.properties import check_names

    include_files(include)
    chosen = [methods.get(name) for name in method or methods.names()]
    if not method:
        for name, why in methods.broken.items():
            raise ConfigurationError(f"method file {name!r} cannot be imported: {why}")
    for cls in chosen:
        check_names(cls)
    findings = []
    for cls in chosen:
        of_method = examine(cls)
        findings += of_method
        if as_json:
            continue
        holding = [finding for finding in of_method if finding.status == "holds"]
        out.print(f"{cls.name}: {len(holding)} of {len(of_method)} properties hold", highlight=False, markup=False)
        for finding in of_method:
            if finding.status != "holds":
                out.print(f"  {finding.property} {finding.status}: {finding.detail}", highlight=False, markup=False)
    failed = [finding for finding in findings if finding.status == "fails"]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    elif not failed:
        out.print(f"all properties of {len(chosen)} methods that could be tested hold.", highlight=False)
    if failed:
        raise typer.Exit(1)
