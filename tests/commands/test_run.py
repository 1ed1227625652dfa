"""``attriboard run``: in real processes where it counts, interrupted, limited, and into folders that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.bench.cli import BINARY, call, interruptible, process


def test_run_then_board_then_rerun_in_real_processes(toy: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = process("run", toy["suite"], "--out", out, "--include", toy["task"])
    assert run.returncode == 0, run.stderr
    assert "3 cells run, 0 done before, 0 failed" in run.stdout
    assert len(list(out.glob("repeat.heads.*.json"))) == 3
    again = process("run", toy["suite"], "--out", out, "--include", toy["task"])
    assert again.returncode == 0
    assert "0 cells run, 3 done before, 0 failed" in again.stdout
    board = process("leaderboard", out)
    assert board.returncode == 0
    assert "| head_ablation |" in board.stdout and "| *random* |" in board.stdout


def test_failed_cells_exit_1_after_everything_else_ran(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--include", toy["task"], "--include", toy["methods"], "--method", "raises", "--method", "random"]
    code, out, err = call(capsys, "run", toy["suite"], "--out", tmp_path, *arguments)
    assert code == 1
    assert "1 cells run, 0 done before, 1 failed" in out
    assert "failed: repeat / heads / raises" in err and "its own mistake" in err
    code, out, _ = call(capsys, "leaderboard", tmp_path)
    assert "failed: repeat / heads / raises" in out


def test_a_suite_that_is_a_smoke_test_says_so_on_its_board(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "smoke.toml"
    suite.write_text("smoke = true\n" + Path(toy["suite"]).read_text())
    out = tmp_path / "out"
    assert call(capsys, "run", suite, "--out", out, "--include", toy["task"], "--method", "random")[0] == 0
    assert json.loads((out / "suite.json").read_text())["smoke"] is True
    assert call(capsys, "leaderboard", out)[1].splitlines()[0].startswith("# Leaderboard of a smoke test:")


def test_interrupting_a_run_keeps_finished_cells(toy: dict, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom dataclasses import dataclass\nfrom attriboard.method import Method\n\n\n"
        '@dataclass\nclass Slow(Method):\n    name = "slow"\n    levels = ("heads",)\n\n'
        "    def attribute(self, model, examples, level):\n        time.sleep(600)\n"
    )
    out = tmp_path / "out"
    arguments = ["run", toy["suite"], "--out", out, "--include", toy["task"], "--include", slow]
    arguments += ["--method", "random", "--method", "slow"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with interruptible():
        process = subprocess.Popen([*BINARY, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=env)
    with process:
        deadline = time.monotonic() + 120
        while not list(out.glob("repeat.heads.random.*.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished cells are stored" in err and "Traceback" not in err
    assert len(list(out.glob("repeat.heads.*.json"))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "run", "quick", "--device", "cuda")
    assert code == 2 and "PyTorch sees no GPU here; use --device cpu" in err


def test_an_output_folder_of_another_suite_exits_2(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.json").write_text('{"suite": "quick"}')
    code, _, err = call(capsys, "run", toy["suite"], "--out", tmp_path, "--include", toy["task"])
    assert code == 2 and "holds the records of suite 'quick', not 'toy'" in err


def test_an_output_path_that_is_a_file_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "run", toy["suite"], "--out", tmp_path / "file", "--include", toy["task"])
    assert code == 2 and "cannot make the folder" in err


def test_a_limited_run_draws_so_many_examples(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", tmp_path, "--include", toy["task"], "--method", "random", "--limit", "3", "--seed", "5"]
    code, _, _ = call(capsys, "run", toy["suite"], *arguments)
    assert code == 0
    (file,) = tmp_path.glob("repeat.*.json")
    record = json.loads(file.read_text())
    assert record["kept"]["test"]["seen"] == 3 and record["cell"]["seed"] == 5
