"""The page on suites: made from the code, complete, and refused where a key has no explanation."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from attriboard.measurements.registry import MEASUREMENTS
from attriboard.records.settings import Settings
from attriboard.run.suite import Group, Suite
from attriboard.run.suite_page import explained, page, rows

ROOT = Path(__file__).parents[2]


class Explained(BaseModel):
    """A table.

    Attributes:
        low, high: two numbers,
            on two lines.
        words: each a :class:`word`.
    """

    low: int = Field(1, ge=0, lt=9)
    high: float | None = None
    words: tuple[str, ...] = ("a",)


class Unexplained(BaseModel):
    """A table.

    Attributes:
        one: is explained.
    """

    one: int
    other: int


def test_rows_are_what_the_fields_and_the_docstring_say() -> None:
    assert list(rows(Explained)) == [
        ("`low`", "whole number, at least 0, below 9", "`1`", "Two numbers, on two lines."),
        ("`high`", "number", "", "Two numbers, on two lines."),
        ("`words`", "list of text", '`["a"]`', "Each a `word`."),
    ]
    assert explained(Unexplained) == {"one": "Is explained."}
    with pytest.raises(LookupError, match="does not explain other"):
        list(rows(Unexplained))


def test_the_page_is_up_to_date_and_names_every_key() -> None:
    text = page()
    assert (ROOT / "docs" / "suites.md").read_text() == text
    for model in (Suite, Group, *(measurement.Options for measurement in MEASUREMENTS.values())):
        for name in model.model_fields:
            assert f"| `{name}` | " in text
    for name in set(Settings.model_fields) - {"options"}:
        assert f"| `{name}` | " in text or f"## `[settings.{name}]`" in text
