"""docs/selftests.md is what the properties say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from attriboard.selftest import PROPERTIES


def test_the_page_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selftests.md").read_text()
    # in a process of its own, since other tests register methods
    command = [sys.executable, "-m", "attriboard.selftest"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert page == made.stdout, "run `make docs`"
    for name in PROPERTIES:
        assert f"| `{name}` |" in page
