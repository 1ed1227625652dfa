"""An evaluation of one's own: one file that enters by --include, runs, is stored, and stands on the board."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.cli import call, process

EVALUATION = '''
"""How far apart the highest and the mean score of the examples are; measured of heads."""

from attriboard.evaluation.base import Evaluation
from attriboard.measurements.base import Measurement, Metric, Options


class Spread(Measurement):
    """The highest score, disturbed by a different constant on every test example."""

    name = "spread"
    levels = ("heads",)
    metrics = (
        Metric("score_spread", title="spread", unit="logits", better="higher", text="Highest score above the mean."),
    )

    class Options(Options):
        scale: float = 1.0

    values: list[float]

    @property
    def n(self):
        return len(self.values)

    def statistics(self):
        import numpy as np

        values = np.array(self.values)
        return {"score_spread": lambda index: values[index].mean(-1)}


class SpreadEvaluation(Evaluation):
    name = "spread"
    measurement = Spread

    def measure(self, job):
        scores = job.component_scores.values
        top = float(scores.max() - scores.mean()) * job.options.scale
        return Spread(values=[top + 0.01 * i for i, _ in enumerate(job.context.test)])
'''


@pytest.fixture
def included(tmp_path: Path) -> Path:
    file = tmp_path / "spread.py"
    file.write_text(EVALUATION)
    return file


def _suite(toy: dict[str, Path], tmp_path: Path, evaluations: str, options: str = "") -> Path:
    text = toy["suite"].read_text().replace("[settings]\n", f"[settings]\nevaluations = {evaluations}\n", 1)
    file = tmp_path / "toy.toml"
    file.write_text(text.replace("[[groups]]", f"{options}\n[[groups]]", 1))
    return file


def test_it_runs_is_stored_and_stands_on_the_board_with_its_interval(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = _suite(toy, tmp_path, '["ablation", "spread"]', "[settings.spread]\nscale = 2.0\n")
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    code, _, err = call(capsys, "run", suite, "--out", tmp_path / "out", *includes)
    assert code == 0, err
    stored = [json.loads(f.read_text()) for f in sorted((tmp_path / "out").glob("repeat.*.json"))]
    assert len(stored) == 3
    for record in stored:
        values = record["measurements"]["spread"]["values"]
        aggregate = record["aggregates"]["score_spread"]
        assert aggregate["value"] == pytest.approx(sum(values) / len(values))
        assert aggregate["low"] < aggregate["value"] < aggregate["high"]
        assert record["settings"]["options"]["spread"] == {"scale": 2.0}
    board = call("leaderboard", str(tmp_path / "out"), "--include", str(included))
    assert board.exit_code == 0, board.output
    row = next(
        line for line in board.output.splitlines() if line.startswith("| attribution_patching |") and "[" in line
    )
    assert "| spread |" in board.output
    assert row.count("[") >= 1
    again = call("run", str(suite), "--out", str(tmp_path / "out"), *includes)
    assert "0 cells run, 3 done before" in again.output


def test_one_more_evaluation_of_a_finished_run_scores_nothing_again(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    out = ["--out", str(tmp_path / "out")]
    assert call(capsys, "run", _suite(toy, tmp_path, '["ablation"]'), *out, *includes)[0] == 0
    before = {f.name: json.loads(f.read_text()) for f in (tmp_path / "out").glob("repeat.*.json")}
    assert call(capsys, "run", _suite(toy, tmp_path, '["ablation", "spread"]'), *out, *includes)[0] == 0
    after = {f.name: json.loads(f.read_text()) for f in (tmp_path / "out").glob("repeat.*.json")}
    assert set(after) == set(before)
    for name, record in after.items():
        assert record["stages"]["scores"] == before[name]["stages"]["scores"]
        assert record["stages"]["speed"] == before[name]["stages"]["speed"]
        assert record["stages"]["ablation"] == before[name]["stages"]["ablation"]
        assert record["measurements"]["ablation"] == before[name]["measurements"]["ablation"]
        assert set(record["measurements"]) == {"ablation", "spread", "speed"}


def test_without_its_file_the_records_are_named_and_how_they_can_be_read(
    toy: dict[str, Path], tmp_path: Path, included: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    includes = [word for file in (toy["task"], toy["methods"], included) for word in ("--include", str(file))]
    suite = _suite(toy, tmp_path, '["ablation", "spread"]')
    assert call(capsys, "run", suite, "--out", tmp_path / "out", *includes)[0] == 0
    # in a process of its own, which does not know the evaluation
    done = process("leaderboard", tmp_path / "out")
    assert done.returncode == 2
    assert "unknown evaluation 'spread'" in done.stderr and "--include FILE" in done.stderr
