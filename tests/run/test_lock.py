"""The lock of the measuring code: it matches, notices what decides a measurement and passes over what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.evaluation.base import evaluations
from attriboard.measurements.registry import MEASUREMENTS
from attriboard.run import lock
from attriboard.run.lock import Lock, current, differences, main, parts, stored, taken_up

USING_CAPABILITY = {name for name, measurement in MEASUREMENTS.items() if measurement.uses_capability}


@pytest.fixture(scope="module")
def checkout() -> Lock:
    """Of this checkout, whatever its lock says."""
    return current()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, checkout: Lock) -> Iterator[Path]:
    """A copy of the package, whose code may be changed; that of tasks and methods is beside it."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "data")
    shutil.copytree(lock.PACKAGE, root / "attriboard", ignore=ignored)
    for name in ("methods", "tasks"):
        shutil.copytree(lock.PACKAGE.parent / name, root / name, ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "PACKAGE", root / "attriboard")
        yield root / "attriboard"


@pytest.fixture(scope="module")
def before(copy: Path) -> Lock:
    return current()


def _changed(file: Path, old: str, new: str, before: Lock) -> set[str]:
    """The names whose code differs once a text in a file is another; ``old`` empty: the text is put behind it."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
    try:
        now = current()
    finally:
        file.write_text(text, encoding="utf-8")
    assert set(now) == set(before)
    return {name for name in now if now[name] != before[name]}


# --- this checkout ------------------------------------------------------------------------------------------------


def test_the_lock_is_that_of_the_code() -> None:
    assert differences(current(), stored()) == []


def test_every_evaluation_is_locked_and_what_else_has_a_version() -> None:
    own = {cls.name for cls in evaluations if cls.__module__.startswith("attriboard.")}
    assert set(stored()) == {"core", "precomputed", "statistics", *own} and "pruning" in own
    assert all(set(entry) == {"version", "code"} for entry in stored().values())


def test_what_decides_a_measurement_is_in_and_what_decides_none_is_out() -> None:
    files = {name: {file.relative_to(lock.PACKAGE).as_posix() for file in own} for name, (_, own) in parts().items()}
    core = files["core"]
    models = {f"models/{file.name}" for file in (lock.PACKAGE / "models").glob("*.py")}
    assert models | {"components.py", "interventions.py", "levels.py", "loading.py", "method.py", "task.py"} <= core
    assert {
        "evaluation/context.py",
        "evaluation/drawing.py",
        "evaluation/sets.py",
        "run/scoring.py",
        "run/worker.py",
        "evaluation/timing.py",
    } <= core
    assert {"log_prob.py", "images.py", "instructions.py"} <= core, "methods and tasks use them"
    assert not [file for own in files.values() for file in own if file.startswith(("board/", "commands/", "records/"))]
    assert not core & {f"{room}/{name}.py" for room in ("evaluation", "measurements") for name in evaluations.names()}
    for name in files.keys() - {"core", "precomputed", "statistics"}:
        assert {f"evaluation/{name}.py", f"measurements/{name}.py"} <= files[name]
        assert ("evaluation/capability.py" in files[name]) == (name in USING_CAPABILITY)
    for name, own in {
        "ablation": {"evaluation/controls.py", "stats/sets.py"},
        "bias": {"edits.py", "stats/sets.py"},
        "editing": {"edits.py", "stats/sets.py"},
        "faithfulness": {"evaluation/controls.py", "stats/sets.py"},
        "pruning": {"slicing.py", "evaluation/recovery.py"},
        "reliability": {"stats/ranks.py", "stats/intervals.py", "stats/clusters.py"},
        "sanity": {"edits.py", "stats/ranks.py", "stats/sets.py"},
        "precomputed": {"exchange/mib.py"},
    }.items():
        assert own <= files[name]


# --- a copy of it -------------------------------------------------------------------------------------------------


def test_the_lock_does_not_depend_on_where_the_code_stands(before: Lock, checkout: Lock) -> None:
    assert before == checkout


CODE = "\nADDED = 1\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "names"),
    [
        ("interventions.py", "", CODE, {"core"}),
        ("log_prob.py", "", CODE, {"core"}),
        ("evaluation/drawing.py", "", CODE, {"core"}),
        ("measurements/base.py", "CORRECT = 2", "CORRECT = 3", {"core"}),
        ("evaluation/ablation.py", "", CODE, {"ablation"}),
        ("measurements/ablation.py", "n // 10", "n // 9", {"ablation"}),
        ("evaluation/controls.py", "", CODE, {"ablation", "concepts", "faithfulness", "pruning"}),
        ("stats/sets.py", "", CODE, {"ablation", "bias", "editing", "faithfulness", "localization", "sanity"}),
        ("stats/intervals.py", "LEVEL = 0.95", "LEVEL = 0.9", {"statistics", "reliability"}),
        ("stats/clusters.py", "", CODE, {"statistics", "reliability"}),
        ("evaluation/capability.py", "BATCH_TOKENS = 1024", "BATCH_TOKENS = 64", USING_CAPABILITY),
        ("capability_tasks/facts.jsonl", "", "\n", USING_CAPABILITY),
        ("capability_tasks/_two_choices_yaml", "", "\n", USING_CAPABILITY),
        ("exchange/precomputed.py", "", CODE, {"precomputed"}),
        ("../methods/random_scores.py", "", CODE, set()),
        ("board/board.py", "", CODE, set()),
        ("records/record.py", "", CODE, set()),
        ("records/aggregate.py", "", CODE, set()),
        ("commands/run.py", "", CODE, set()),
        ("interventions.py", "", "\n# a comment\n", set()),
        ("interventions.py", '"""', '"""Otherwise: ', set()),
        ("interventions.py", "import numpy as np\n", "import torch.nn\nimport numpy as np\n", set()),
        ("measurements/ablation.py", 'title="drop in p"', 'title="fall in p"', set()),
        ("measurements/ablation.py", "Drop in p(answer) when", "Fall of p(answer) if", set()),
        ("measurements/ablation.py", "(random - top).mean(1)", "(random + top).mean(1)", set()),
        ("measurements/pruning.py", "mean over the capability tasks", "Mean over those tasks", set()),
        ("measurements/pruning.py", "Area under the accuracy", "Area below the accuracy", set()),
        ("measurements/bias.py", "float(size.mean())", "float(size.max())", set()),
    ],
)
def test_code_counts_where_it_decides_a_measurement(
    copy: Path, before: Lock, file: str, old: str, new: str, names: set[str]
) -> None:
    assert _changed(copy / file, old, new, before) == names


# --- what is said and taken up ------------------------------------------------------------------------------------

STORED: Lock = {
    "core": {"version": 1, "code": "a"},
    "ablation": {"version": 1, "code": "b"},
    "pruning": {"version": 2, "code": "c"},
    "old": {"version": 1, "code": "d"},
}
NOW: Lock = {
    "core": {"version": 1, "code": "a"},
    "ablation": {"version": 1, "code": "changed"},
    "pruning": {"version": 3, "code": "changed"},
    "new": {"version": 1, "code": "e"},
}


def test_every_difference_is_a_sentence_that_says_what_to_do() -> None:
    sentences = dict(sentence.split(": ", 1) for sentence in differences(NOW, STORED))
    assert sentences.keys() == {"ablation", "new", "old", "pruning"}
    assert "its version did not. Raise the version" in sentences["ablation"]
    assert sentences["ablation"].endswith("--same-results ablation.")
    assert sentences["pruning"] == "version 2 became 3; take it up with --write."
    assert sentences["new"].startswith("new;") and sentences["old"].startswith("gone;")
    assert differences(STORED, STORED) == []


def test_raised_versions_and_new_names_are_taken_up_and_changed_code_is_not() -> None:
    lock = taken_up(NOW, STORED, [])
    assert lock == {**NOW, "ablation": STORED["ablation"]}
    assert [sentence.split(":")[0] for sentence in differences(NOW, lock)] == ["ablation"]


def test_changed_code_is_taken_up_where_its_results_are_the_same() -> None:
    assert differences(NOW, taken_up(NOW, STORED, ["ablation"])) == []


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file of its own, for the code as :data:`NOW` says it is."""
    monkeypatch.setattr(lock, "LOCK", tmp_path / "identity.lock")
    monkeypatch.setattr(lock, "current", lambda: NOW)
    return tmp_path / "identity.lock"


def test_the_program_says_what_differs_and_changes_nothing(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked.write_text(json.dumps(STORED))
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines() == differences(NOW, STORED)
    assert json.loads(locked.read_text()) == STORED


def test_the_program_writes_what_may_be_taken_up(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked.write_text(json.dumps(STORED))
    assert main(["--write"]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["ablation"]
    assert main(["--same-results", "ablation"]) == 0
    assert capsys.readouterr().out == "" and stored() == NOW


def test_without_a_lock_everything_is_new(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"identity\.lock cannot be read .* restore it from version control"):
        stored()
    assert main([]) == 1
    assert all(": new; put it into identity.lock" in line for line in capsys.readouterr().out.splitlines())
    assert main(["--write"]) == 0
    assert stored() == NOW


def test_an_unknown_name_is_refused_with_near_names(locked: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown name in identity\.lock 'prunning': did you mean 'pruning'"):
        main(["--same-results", "prunning"])
    assert not locked.exists()
