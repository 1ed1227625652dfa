"""``attriboard validate``: suites, and what methods declare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.cli import call
from tests.bench.toy import SUITE


def test_validate_accepts_the_shipped_suites_and_a_file(toy: dict, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "validate")
    assert code == 0 and "quick:" in out and "full:" in out
    code, out, _ = call(capsys, "validate", toy["suite"], "--include", toy["task"])
    assert code == 0 and "toy: 3 cells" in out


def test_a_suite_with_an_unknown_key_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("colour = 1\n" + SUITE.format(model=toy["model"]))
    code, _, err = call(capsys, "validate", file)
    assert code == 2 and "bad.toml: key 'colour' is not known here" in err
