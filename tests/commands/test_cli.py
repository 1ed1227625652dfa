"""The command line as a user types it: wrong names, what is shown, and how fast it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.bench.cli import call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quikc"], "unknown suite 'quikc': did you mean 'quick'?"),
        (["run", "quick", "--task", "arithmetics"], "unknown task 'arithmetics': did you mean 'arithmetic'"),
        (["run", "quick", "--method", "cnaa"], "unknown method 'cnaa': did you mean 'cna'?"),
        (["run", "quick", "--level", "head"], "unknown level 'head': did you mean 'heads'?"),
        (["run", "quick", "--model", "smollm"], "unknown model 'smollm': did you mean 'smollm2-135m' or"),
        (["run", "quick", "--method", "cna", "--level", "heads"], "cna scores neurons, not heads."),
        (["run", "quick", "--executor", "rya"], "unknown executor 'rya': did you mean 'ray'?"),
        (["run", "quick", "--limit", "0"], "--limit is 0, expected at least 1."),
        (["run", "quick", "--device", "tpu"], "device is 'tpu', expected 'cpu' or 'cuda'."),
        (["run", "quick", "--include", "/nowhere.py"], "--include /nowhere.py does not exist."),
        (["list", "task"], "unknown kind 'task': did you mean 'tasks'"),
        (["leaderboard", "/nowhere"], "there is no results folder /nowhere"),
        (["leaderboard", "results", "--format", "markdown"], "unknown format 'markdown'"),
        (["leaderboard", "results", "--audits", "/nowhere"], "/nowhere is not a folder of audits"),
    ],
)
def test_wrong_names_exit_2_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize(("old", "new"), [("compare", "compare-forms"), ("regression", "scale-questions")])
def test_commands_go_by_their_old_names_too_which_are_not_shown(
    old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, _ = call(capsys, "--help")
    listed = {line.split()[1] for line in shown.splitlines() if line.startswith("│ ") and len(line.split()) > 1}
    assert code == 0 and new in listed and old not in listed
    assert call(capsys, old, "--help")[1].split("Options")[1] == call(capsys, new, "--help")[1].split("Options")[1]


def test_importing_the_command_line_imports_no_torch() -> None:
    code = "import sys, attriboard.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
