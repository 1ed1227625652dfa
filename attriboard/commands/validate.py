"""``attriboard validate``: suites and definitions are checked; nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import Include, include_files
from .output import out


def validate(
    suite: Annotated[Path | None, typer.Argument(help="A suite file or name; all suites by default.")] = None,
    include: Include = None,
) -> None:
    """Checks a suite and every definition it names; runs nothing."""
    from ..method import methods
    from ..run.suite import Suite, lacking, suites
    from ..selftest.properties import check_names
    from ..task import tasks

    include_files(include)
    missing: dict[str, str] = {}
    for path in [suite] if suite else suites().values():
        loaded = Suite.load(path)
        plan = loaded.plan()
        out.print(f"{loaded.name}: {len(plan)} cells, all names and options are good.", highlight=False)
        for why in lacking(plan):
            missing.setdefault(why, loaded.name)
    for registry in (tasks, methods):
        for name, why in registry.broken.items():
            raise ConfigurationError(f"{registry.kind} file {name!r} cannot be imported: {why}")
        out.print(f"{len(registry.names())} {registry.kind}s can be imported.", highlight=False)
    for method in methods:
        check_names(method)
    if missing:
        raise ConfigurationError(" ".join(f"suite {name!r} cannot be run: {why}" for why, name in missing.items()))
