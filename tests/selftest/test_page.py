"""docs/selftests.md is what the properties say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import attriboard.selftest
from attriboard.selftest import PROPERTIES
from attriboard.selftest.page import page


def test_the_page_is_current() -> None:
    current = (Path(__file__).parents[2] / "docs" / "selftests.md").read_text()
    # in a process of its own, since other tests register methods
    command = [sys.executable, "-m", "attriboard.selftest"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert current == made.stdout, "run `make docs`"
    for name in PROPERTIES:
        assert f"| `{name}` |" in current


def test_every_file_that_the_page_names_exists() -> None:
    folder = Path(attriboard.selftest.__file__).parent
    named = set(re.findall(r"`(\w+\.py)`", page()))
    assert {"owed.py", "derivatives.py", "controls.py"} <= named
    assert [name for name in named if not (folder / name).is_file()] == []
