"""``python -m attriboard.run.suite_page`` prints docs/suites.md: every key of a suite, from the code that reads it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..measurements.capability import CapabilityOptions
from ..measurements.registry import MEASUREMENTS
from ..records.settings import HARDWARE, Settings
from .suite import Group, Suite

INTRODUCTION = """# The suite file

Made by `make docs` from the code that reads suites. A suite is a TOML file; [adding.md](adding.md) has an example that
can be copied, and `attriboard validate FILE` says which key cannot be used, and why. A key that is not on this page is
refused.

A task or a method is a name, or a table of its name and options: `{ name = "occlusion", replacement = "mean" }`.
`attriboard list tasks` and `attriboard list methods` have the names; the options are the fields of its class, explained
in the file of that name under `tasks/` or `methods/`.
"""
NAMED = {"Spec": "names, or tables with options", "Group": "tables as below", "Settings": "table as below"}
"""What the types of nested tables are called."""
FREE = {"options", "capability"}
"""Settings that have tables of their own below."""


def explained(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring says of each attribute; one entry may explain several."""
    _, _, listed = (inspect.getdoc(model) or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + listed):
        names, colon, text = entry.strip().partition(":")
        if colon:
            plain = re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(text.split())).replace("``", "`")
            texts |= dict.fromkeys(re.split(r",\s*", names), plain[:1].upper() + plain[1:])
    return texts


def kind(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """A type of JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return NAMED.get(name) or kind(definitions[name], definitions)
    if "anyOf" in schema:
        return " or ".join(kind(part, definitions) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema.get("type") == "array":
        items = schema.get("items", {})
        if items.get("$ref"):
            return kind(items, definitions)
        if "enum" in items:
            return f"list of values of {kind(items, definitions)}"
        word, comma, bounds = kind(items, definitions).partition(",")
        return f"list of {word}{'' if word == 'text' else 's'}{comma}{bounds}"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{said} {schema[name]:g}" for name, said in signs.items() if name in schema]
    return ", ".join([words.get(str(schema.get("type")), "table"), *limits])


def rows(model: type[BaseModel], without: set[str] | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every field.

    Raises:
        LookupError: the docstring explains one of them not.
    """
    schema, texts = model.model_json_schema(), explained(model)
    for name, field in schema.get("properties", {}).items():
        if name in (without or ()):
            continue
        if name not in texts:
            raise LookupError(f"the docstring of {model.__qualname__} does not explain {name}.")
        info = model.model_fields[name]
        default = info.get_default(call_default_factory=True) if not info.is_required() else None
        if info.is_required():
            shown = "**needed**"
        elif isinstance(default, BaseModel):
            shown = ""
        else:
            shown = "" if default is None else f"`{json.dumps(default)}`"
        yield f"`{name}`", kind(field, schema.get("$defs", {})), shown, texts[name]


def table(model: type[BaseModel], without: set[str] | None = None) -> list[str]:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows(model, without):
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return [*lines, ""]


def page() -> str:
    """The whole page, in Markdown."""
    lines = [INTRODUCTION, "## The suite", "", *table(Suite)]
    lines += ["## `[[groups]]`", "", "The product of what a group lists is its cells.", "", *table(Group)]
    hardware = ", ".join(f"`{name}`" for name in HARDWARE)
    lines += ["## `[settings]`", "", f"A group can change all but {hardware}.", "", *table(Settings, FREE)]
    for name, measurement in MEASUREMENTS.items():
        if not measurement.Options.model_fields:
            continue
        lines += [f"## `[settings.{name}]`", "", f"At levels {', '.join(measurement.levels)}.", ""]
        lines += table(measurement.Options)
    lines += ["## `[settings.capability]`", "", *table(CapabilityOptions)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
