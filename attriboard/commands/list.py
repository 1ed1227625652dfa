"""``attriboard list``: what there is."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import AttriboardError, check_name
from .options import Include, include_files
from .output import out

KINDS = ("tasks", "methods", "models", "evaluations", "suites")


def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="tasks, methods, models, evaluations or suites; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    include: Include = None,
) -> None:
    """Lists what there is: tasks, methods, models, evaluations, suites."""
    if kind is not None:
        check_name("kind", kind, KINDS)
    include_files(include)
    rows_by_kind = {name: _rows(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        typer.echo(json.dumps(rows_by_kind if kind is None else rows_by_kind[kind], indent=1))
        return
    for name, rows in rows_by_kind.items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        shown = [c for c in (rows[0] if rows else ()) if c not in ("paper", "needs", "version", "metrics")]
        for column in shown:
            table.add_column(column, no_wrap=column in ("name", "installed"))
        for row in rows:
            values = [row.get(column, "") for column in shown]
            table.add_row(*(escape(", ".join(v) if isinstance(v, list) else str(v)) for v in values))
        out.print(table)
        out.print()


def _rows(kind: str) -> list[dict[str, Any]]:
    if kind == "tasks":
        from ..task import tasks

        return [
            {
                "name": t.name,
                "version": t.version,
                "subsets": list(t.all_subsets),
                "description": t.description,
                "paper": t.paper,
            }
            for t in tasks
        ] + _broken(tasks)
    if kind == "methods":
        from ..method import methods

        return [
            {
                "name": m.name,
                "levels": list(m.levels),
                "needs": sorted(m.needs),
                "description": m.description,
                "paper": m.paper,
            }
            for m in methods
        ] + _broken(methods)
    if kind == "models":
        from ..loading import MODELS
        from ..zoo import planted

        return [
            {
                "name": name,
                "installed": "yes" if m.installed else "no",
                "wheel": m.wheel,
                "hub": m.hub or "",
                "licence": m.licence,
            }
            for name, m in MODELS.items()
        ] + [
            {"name": name, "installed": "yes", "wheel": "none: built at load", "hub": "", "licence": "Apache-2.0"}
            for name in planted.NAMES
        ]
    if kind == "evaluations":
        from ..evaluation.base import evaluations
        from ..measurements.registry import MEASUREMENTS

        evaluations.names()  # measurements of other packages come with their evaluations
        return [
            {
                "name": name,
                "levels": list(measurement.levels),
                "options": [f"{key} = {value}" for key, value in measurement.Options().model_dump(mode="json").items()],
                "metrics": [metric.name for metric in measurement.metrics],
                "version": evaluations.get(name).version,
                "description": (sys.modules[measurement.__module__].__doc__ or "").strip().partition("\n")[0],
            }
            for name, measurement in MEASUREMENTS.items()
        ] + _broken(evaluations)
    from ..run.suite import Suite, suites

    rows: list[dict[str, Any]] = []
    for name, path in suites().items():
        try:
            suite = Suite.load(path)
        except AttriboardError as error:
            rows.append(
                {"name": name, "cells": 0, "smoke_test": "", "expected": "", "description": f"cannot be used: {error}"}
            )
            continue
        rows.append(
            {
                "name": name,
                "cells": len(suite.plan()),
                "smoke_test": "yes" if suite.smoke else "no",
                "expected": suite.expected,
                "description": suite.description,
            }
        )
    return rows


def _broken(registry: Any) -> list[dict[str, Any]]:
    return [{"name": name, "description": f"cannot be imported: {why}"} for name, why in registry.broken.items()]
