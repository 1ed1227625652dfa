"""An evaluation of one's own: one file that enters by --include, runs, is stored, and stands on the board."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attriboard.evaluation.base import evaluations
from attriboard.measurements.registry import MEASUREMENTS, METRICS
from attriboard.method import methods
from attriboard.task import tasks
from tests.bench.cli import call, process

ROOT = Path(__file__).parents[2]


@pytest.fixture
def included(tmp_path: Path) -> Iterator[Path]:
    """The evaluation of docs/adding.md, in a file; what it registers is forgotten afterwards."""
    evaluations.names()  # those that ship are known before
    tables = (MEASUREMENTS, METRICS, evaluations._classes)
    before = [dict(table) for table in tables]
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    code = page.partition("## An evaluation")[2].partition("```python\n")[2].partition("```")[0]
    file = tmp_path / "standing_out.py"
    file.write_text(code, encoding="utf-8")
    yield file
    for table, own in zip(tables, before):
        table.clear()
        table.update(own)
    for registry in (tasks, methods, evaluations):
        registry.included = [path for path in registry.included if path != file.resolve()]


def _suite(toy: dict[str, Path], tmp_path: Path, evaluations: str, options: str = "") -> Path:
    text = toy["suite"].read_text().replace("[settings]\n", f"[settings]\nevaluations = {evaluations}\n", 1)
    file = tmp_path / "toy.toml"
    file.write_text(text.replace("[[groups]]", f"{options}\n[[groups]]", 1))
    return file


def test_it_runs_is_stored_and_stands_on_the_board_with_its_interval(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = _suite(toy, tmp_path, '["ablation", "standing_out"]', "[settings.standing_out]\npower = 2.0\n")
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    code, _, err = call(capsys, "run", suite, "--out", tmp_path / "out", *includes)
    assert code == 0, err
    stored = [json.loads(f.read_text()) for f in sorted((tmp_path / "out").glob("repeat.*.json"))]
    assert len(stored) == 3
    for record in stored:
        measured, aggregate = record["measurements"]["standing_out"], record["aggregates"]["standing_out"]
        mean = sum(measured["probability"]) / len(measured["probability"])
        assert aggregate["value"] == pytest.approx(measured["height"] * mean)
        assert aggregate["low"] < aggregate["value"] < aggregate["high"]
        assert record["settings"]["options"]["standing_out"] == {"power": 2.0}
    code, board, err = call(capsys, "leaderboard", tmp_path / "out", "--include", included)
    assert code == 0, err
    lines = board.splitlines()
    table = lines[
        next(i for i, line in enumerate(lines) if line.startswith("| method |") and "| stands out |" in line) :
    ]
    (row,) = (line for line in table[: table.index("")] if line.startswith("| attribution_patching |"))
    aggregate = next(r for r in stored if r["cell"]["method"] == "attribution_patching")["aggregates"]["standing_out"]
    assert "{value:.3f}".format(**aggregate) in row and "[{low:.3f}, {high:.3f}]".format(**aggregate) in row
    code, out, err = call(capsys, "run", suite, "--out", tmp_path / "out", *includes)
    assert code == 0 and "0 cells run, 3 done before" in out, err


def test_one_more_evaluation_of_a_finished_run_scores_nothing_again(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    out = ["--out", str(tmp_path / "out")]
    assert call(capsys, "run", _suite(toy, tmp_path, '["ablation"]'), *out, *includes)[0] == 0
    before = {f.name: json.loads(f.read_text()) for f in (tmp_path / "out").glob("repeat.*.json")}
    assert call(capsys, "run", _suite(toy, tmp_path, '["ablation", "standing_out"]'), *out, *includes)[0] == 0
    after = {f.name: json.loads(f.read_text()) for f in (tmp_path / "out").glob("repeat.*.json")}
    assert set(after) == set(before)
    for name, record in after.items():
        assert record["stages"]["scores"] == before[name]["stages"]["scores"]
        assert record["stages"]["speed"] == before[name]["stages"]["speed"]
        assert record["stages"]["ablation"] == before[name]["stages"]["ablation"]
        assert record["measurements"]["ablation"] == before[name]["measurements"]["ablation"]
        assert set(record["measurements"]) == {"ablation", "standing_out", "speed"}


def test_without_its_file_the_records_are_named_and_how_they_can_be_read(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    suite = _suite(toy, tmp_path, '["ablation", "standing_out"]')
    assert call(capsys, "run", suite, "--out", tmp_path / "out", *includes)[0] == 0
    suite.with_name("plain.toml").write_text(toy["suite"].read_text())
    # in a process of its own, which does not know the evaluation
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").glob("repeat.*.json")}
    done = process("run", suite.with_name("plain.toml"), "--out", tmp_path / "out", *includes[:-2])
    assert done.returncode == 2 and "unknown evaluation 'standing_out'" in done.stderr
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").glob("repeat.*.json")} == before
    done = process("leaderboard", tmp_path / "out")
    assert done.returncode == 2
    assert "unknown evaluation 'standing_out'" in done.stderr and "--include FILE" in done.stderr


def test_code_of_an_evaluation_of_ones_own_is_part_of_its_identity(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    arguments = ("run", _suite(toy, tmp_path, '["standing_out"]'), "--out", tmp_path / "out", *includes)
    assert call(capsys, *arguments)[0] == 0
    included.write_text(included.read_text().replace("scores.std()", "scores.std(correction=0)"))
    _, out, _ = call(capsys, *arguments)
    assert "3 cells run, 0 done before" in out
    included.write_text(included.read_text() + "\n# a comment\n")
    _, out, _ = call(capsys, *arguments)
    assert "0 cells run, 3 done before" in out
