"""The page of what bad input and kills do is what its stored runs say, and the drivers still find nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from fuzz.__main__ import Fuzzed
from fuzz.common import Outcomes, run
from fuzz.crash import Crashes
from fuzz.page import page

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "results" / "reliability"


def test_the_page_says_what_the_stored_runs_say() -> None:
    assert (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == page()


def test_the_stored_runs_found_nothing() -> None:
    fuzzed = Fuzzed.model_validate_json((STORED / "fuzz.json").read_text(encoding="utf-8"))
    assert fuzzed.cases >= 10_000
    assert [o.tracebacks + o.hangs for o in fuzzed.kinds.values()] == [[]] * len(fuzzed.kinds)
    crashes = Crashes.model_validate_json((STORED / "crash.json").read_text(encoding="utf-8"))
    assert crashes.kills >= 300
    assert (crashes.lost, crashes.unequal, crashes.left_over, crashes.twice) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "cases"),
    [("suites", 60), ("records", 25), ("scores", 60), ("pictures", 80), ("model_folders", 12)],
)
def test_cases_of_another_seed_give_no_traceback_and_no_hang(kind: str, cases: int) -> None:
    found = run(importlib.import_module(f"fuzz.{kind}").cases(1000), cases)
    assert found.cases == cases
    assert (found.tracebacks, found.hangs) == ([], [])
    if kind != "records":  # a bad one is named and left out, and the board is made of the others
        assert found.refused > 0, "nothing was refused, so nothing bad was tried"


def test_a_driver_that_finds_a_traceback_says_so() -> None:
    found = run(iter([("divides", lambda: 1 / 0), ("fine", lambda: None)]), 5)
    assert isinstance(found, Outcomes) and found.cases == 2
    assert [fault.name for fault in found.tracebacks] == ["divides"]
    assert "ZeroDivisionError" in found.tracebacks[0].what
