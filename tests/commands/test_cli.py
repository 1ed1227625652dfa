"""The command line as a user types it: wrong names, what is shown, and how fast it starts."""

from __future__ import annotations

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
    ],
)
def test_wrong_names_exit_2_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err and "Traceback" not in err
