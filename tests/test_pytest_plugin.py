"""The pytest plugin, as a method's author uses it: a real pytest in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attriboard.pytest_plugin import AttriboardCheck
from attriboard.records.store import Folder

MINE = '''
"""Attribution patching under another name."""
from dataclasses import dataclass

from attriboard.methods.attribution_patching import AttributionPatching


@dataclass
class {name}(AttributionPatching):
    name = "{label}"

    def score_batch(self, model, batch, level):
        return {sign}super().score_batch(model, batch, level)
'''

TESTS = """
def test_mine(attriboard_check):
    metric = "performance"
    report = attriboard_check("methods/mine.py", suite="toy.toml", include="toy_task.py", metric=metric)
    assert report.cells == 1
"""


def write_method(folder: Path, sign: str = "", name: str = "Mine", label: str = "mine") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{label}.py").write_text(MINE.format(sign=sign, name=name, label=label))


@pytest.fixture
def project(toy: dict, tmp_path: Path) -> Path:
    """An author's repository: a method, a task, a suite and a test."""
    write_method(tmp_path / "methods")
    (tmp_path / "toy_task.py").write_text(toy["task"].read_text())
    suite = toy["suite"].read_text()
    (tmp_path / "toy.toml").write_text(
        suite.replace("_examples = 12", "_examples = 160").replace("max_kept = 6", "max_kept = 80")
    )
    (tmp_path / "test_mine.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run_pytest(project: Path, *arguments: str) -> tuple[int, str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=env, check=False)
    return done.returncode, done.stdout + done.stderr


def test_without_a_baseline_then_with_one_then_with_a_worse_method(project: Path) -> None:
    code, said = run_pytest(project)
    assert code == 1
    assert f"there is no baseline {project / 'attriboard-baseline' / 'toy'} to hold mine against" in said
    assert "type pytest --attriboard-update once" in said and "Traceback" not in said

    assert run_pytest(project, "--attriboard-update")[0] == 0
    (stored,) = Folder(project / "attriboard-baseline" / "toy").read()
    assert (stored.cell.method, stored.status) == ("mine", "ok")

    code, said = run_pytest(project)
    assert code == 0, said

    write_method(project / "methods", sign="-")
    code, said = run_pytest(project)
    assert code == 1
    assert "worse: repeat / heads / mine on" in said and "(paired, n = " in said

    assert run_pytest(project, "--attriboard-update")[0] == 0  # the new state takes the place of the old
    (replaced,) = Folder(project / "attriboard-baseline" / "toy").read()
    assert replaced.identity != stored.identity


def test_loading_the_plugin_does_not_import_the_library(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\ndef test_nothing():\n"
        "    assert 'attriboard.pytest_plugin' in sys.modules\n"
        "    assert not {'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)\n"
    )
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins import what they like
    command = [sys.executable, "-m", "pytest", "-p", "attriboard.pytest_plugin", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout


def test_the_plugin_is_installed_with_the_package() -> None:
    from importlib.metadata import entry_points

    assert "attriboard.pytest_plugin" in {point.value for point in entry_points(group="pytest11")}


class Config:
    """What the fixture asks pytest's configuration."""

    def __init__(self, root: Path, update: bool = False) -> None:
        self.rootpath, self.update = root, update

    def getoption(self, name: str) -> bool:
        assert name == "--attriboard-update"
        return self.update

    def getini(self, name: str) -> str:
        assert name == "attriboard_baseline"
        return "baseline"


def failure(call, *arguments, **kwargs) -> str:
    with pytest.raises(pytest.fail.Exception) as caught:
        call(*arguments, suite="toy.toml", include="toy_task.py", **kwargs)
    return str(caught.value)


def test_what_a_call_narrows_runs_once_and_refuses(project: Path, toy: dict, tmp_path_factory) -> None:
    (project / "toy_task.py").unlink()
    (project / "toy_task.py").symlink_to(toy["task"])  # one file, whoever includes it
    write_method(project / "methods", name="Another", label="another")
    folder = tmp_path_factory.mktemp("runs")
    update = AttriboardCheck(Config(project, update=True), folder)
    report = update("methods/another.py", suite="toy.toml", include="toy_task.py", limit=8, task="repeat")
    assert report.cells == 1 and (project / "baseline" / "toy").is_dir()
    before = sorted((folder / "toy").glob("*.json"))
    check = AttriboardCheck(Config(project), folder)
    again = check("another", suite="toy.toml", include="toy_task.py", limit=8, level=["heads"], metric="cpr")
    assert {c.metric for c in again.changes} == {"cpr"} and {c.verdict for c in again.changes} == {"unchanged"}
    assert sorted((folder / "toy").glob("*.json")) == before  # nothing was run again

    assert "other settings (train_examples 8 -> 6, test_examples 8 -> 6)" in failure(check, "another", limit=6)
    assert "holds no record of random; type pytest --attriboard-update to add them" in failure(check, "random", limit=8)
    assert "unknown method 'anothr': did you mean 'another'" in failure(check, "anothr")
    assert "unknown metric 'cprr': did you mean 'cpr'" in failure(check, "another", metric="cprr")
    assert "there is no file" in failure(check, "methods/nowhere.py")
    assert "--limit is 0" in failure(check, "another", limit=0)
    (project / "methods" / "empty.py").write_text("")
    assert "methods/empty.py defines no method" in failure(check, "methods/empty.py")
    assert "there is no baseline" in failure(check, "another", against="elsewhere")


def test_a_failed_cell_fails_the_test_even_when_updating(project: Path, toy: dict, tmp_path: Path) -> None:
    (project / "toy_task.py").unlink()
    (project / "toy_task.py").symlink_to(toy["task"])
    update = AttriboardCheck(Config(project, update=True), tmp_path / "runs")
    said = failure(update, str(toy["methods"]), limit=8, level="heads")
    assert "failed: repeat / heads / raises on" in said and "its own mistake" in said
    assert not (project / "baseline").exists()
