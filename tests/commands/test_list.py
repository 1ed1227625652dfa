"""``attriboard list`` and files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.cli import call


@pytest.mark.parametrize("kind", ["tasks", "methods", "models", "evaluations", "suites"])
def test_list_prints_names_and_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", kind, "--json")
    assert code == 0
    rows = json.loads(out)
    expected = {
        "tasks": "arithmetic",
        "methods": "head_ablation",
        "models": "smollm2-135m",
        "evaluations": "faithfulness",
        "suites": "quick",
    }[kind]
    assert expected in [row["name"] for row in rows]
    code, out, _ = call(capsys, "list", kind)
    assert code == 0 and expected in out


def test_list_without_a_kind_prints_all_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list", "--json")
    assert code == 0 and set(json.loads(out)) == {"tasks", "methods", "models", "evaluations", "suites"}


def test_a_broken_included_file_exits_2_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("import nosuchmodule\n")
    code, _, err = call(capsys, "list", "--include", tmp_path / "broken.py")
    assert code == 2 and "broken.py cannot be imported: ModuleNotFoundError" in err
    (tmp_path / "empty.py").write_text("x = 1\n")
    code, _, err = call(capsys, "list", "--include", tmp_path / "empty.py")
    assert code == 2 and "defines no task, method or evaluation" in err


def test_suites_say_whether_they_are_smoke_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    groups = '[[groups]]\ntasks = ["arithmetic"]\nmethods = ["random"]\nlevels = ["heads"]\n'
    for name, line in (("small", "smoke = true\n"), ("large", "")):
        text = f'name = "{name}"\n{line}models = ["smollm2-135m"]\n{groups}'
        (tmp_path / "benchmarks" / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    _, out, _ = call(capsys, "list", "suites", "--json")
    said = {row["name"]: row["smoke_test"] for row in json.loads(out)}
    assert (said["small"], said["large"], said["quick"]) == ("yes", "no", "yes")
    assert "smoke_test" in call(capsys, "list", "suites")[1]
