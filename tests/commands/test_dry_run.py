"""``attriboard run --dry-run``: what it prints, and that it runs, loads and writes nothing; the time left of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attriboard.commands.output import about
from attriboard.commands.progress import Clock
from attriboard.method import methods
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.stored import Ahead, Stored
from attriboard.run.suite import Suite
from attriboard.task import tasks
from tests.bench.cli import call


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> Any:
        raise AssertionError("weights are loaded")

    for place in ("_with_all_weights", "_load_gguf", "convert"):
        monkeypatch.setattr(f"attriboard.models.pretrained.{place}", refuse)


def _cells(out: str) -> dict[str, list[str]]:
    """The columns behind the level, by model and level."""
    lines = [line.split() for line in out.splitlines() if line and not line.startswith(("model ", "unknown", "Est"))]
    return {
        " ".join(line[:2]) if line[0] != "total" else "total": line[2 if line[0] != "total" else 1 :] for line in lines
    }


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_says_what_a_run_would_cost_and_leaves_no_trace(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_dir = tmp_path / "out"
    arguments = ["run", toy["suite"], "--include", toy["task"], "--out", out_dir, "--dry-run", "--on", "h100"]
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "") and not out_dir.exists()
    whole = _cells(out)
    assert set(whole) == {f"{toy['model']} heads", "total"}
    cells, done, tera, gib, *time = whole["total"]
    assert (cells, done) == ("3", "0") and float(tera) > 0 and 0 < float(gib) < 1 and time[1] in ("s", "min")
    assert "time on h100" in out and "\x1b" not in out
    _, out, _ = call(capsys, *arguments, "--method", "random", "--level", "heads", "--limit", "8")
    narrow = _cells(out)["total"]
    assert narrow[0] == "1" and float(narrow[2]) < float(tera)
    _, more, _ = call(capsys, *arguments, "--method", "head_ablation")
    assert float(_cells(more)["total"][2]) > float(narrow[2])


def test_a_dry_run_says_what_is_done_and_writes_nothing_beside_it(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", toy["suite"], "--include", toy["task"], "--out", tmp_path]
    assert call(capsys, *arguments, "--method", "random")[0] == 0
    (tmp_path / ".index.jsonl").unlink(missing_ok=True)  # what is made again by a run, and not by looking
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    code, out, _ = call(capsys, *arguments, "--dry-run", "--on", "a100")
    assert code == 0 and _cells(out)["total"][:2] == ["3", "1"]
    code, out, _ = call(capsys, *arguments, "--method", "random", "--dry-run", "--on", "a100")
    assert code == 0 and "nothing to do" in out
    code, out, _ = call(capsys, *arguments, "--method", "random", "--dry-run", "--on", "a100", "--force")
    assert code == 0 and _cells(out)["total"][:2] == ["1", "0"]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    other = tmp_path / "other.toml"
    other.write_text(toy["suite"].read_text().replace('name = "toy"', 'name = "other"'))
    code, _, err = call(capsys, "run", other, *arguments[2:], "--dry-run", "--on", "a100")
    assert code == 2 and "holds the records of suite 'toy', not 'other'" in err


def test_a_model_that_is_not_here_is_unknown_and_the_rest_goes_on(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    suite = tmp_path / "two.toml"
    text = toy["suite"].read_text()
    suite.write_text(text.replace("models = [", 'models = ["nobody/nowhere", ', 1))
    arguments = ["run", suite, "--include", toy["task"], "--out", tmp_path / "out", "--dry-run", "--on", "h200"]
    code, out, err = call(capsys, *arguments)
    assert (code, err) == (0, "")
    rows = _cells(out)
    assert rows["nobody/nowhere heads"] == ["3", "0", "unknown", "unknown", "unknown"]
    assert float(rows[f"{toy['model']} heads"][2]) > 0
    assert rows["total"][:3] == ["6", "0", ">"]
    assert out.count("unknown: model 'nobody/nowhere'") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dry-run", "--on", "h20"], "unknown device 'h20': did you mean 'h200'"),
        (["--on", "h100"], "--on h100 names the device that --dry-run speaks of; add --dry-run."),
        (["--dry-run", "--level", "haeds"], "unknown level 'haeds'"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out_dir = tmp_path / "out"
    code, out, err = call(capsys, "run", toy["suite"], "--include", toy["task"], "--out", out_dir, *more)
    assert code == 2 and message in err and out == "" and not out_dir.exists()


# --- the time left ------------------------------------------------------------------------------------------------


def test_every_line_but_the_last_says_how_much_time_is_left(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "run", toy["suite"], "--include", toy["task"], "--out", tmp_path)
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert code == 0 and [line[:5] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert [", about " in line and line.endswith(" left") for line in lines] == [True, True, False]


def test_the_clock_goes_by_work_and_runs_down_between_cells(toy: dict, tmp_path: Path) -> None:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    suite = Suite.load(toy["suite"])
    outcome = run_cells(suite.name, suite.plan(), Folder(tmp_path))
    ahead = Stored.of(Folder(tmp_path), again=True, look=True).ahead(suite.plan())
    now = [100.0]
    clock = Clock(ahead, now=lambda: now[0])
    assert clock.left() is None and clock.share == 0
    took = []
    for record in outcome.made:
        stages = {name: stage.model_copy(update={"seconds": 10.0}) for name, stage in record.stages.items()}
        slow = record.model_copy(update={"stages": stages})
        clock.started(record.cell)
        now[0] += 10.0 * len(stages) + 5  # loading and drawing take the rest
        before = clock.share
        clock.finished(slow)
        assert clock.share > before
        took.append(clock.left())
    assert took[0] > took[1] > took[2] == 0 and clock.share == 1  # type: ignore[operator]
    again = Clock(ahead, now=lambda: now[0])
    again.started(outcome.made[0].cell)
    now[0] += 50
    again.finished(outcome.made[0])
    said = again.left()
    now[0] += 0.25 * said  # type: ignore[operator]
    assert again.left() == pytest.approx(0.75 * said)  # type: ignore[operator]
    now[0] += 1e6
    assert again.left() == 0


def test_how_many_are_at_work_is_seen_where_nobody_says_it(toy: dict, tmp_path: Path) -> None:
    """Cells that were all started at once, and whose stages together took three times as long as the clock says."""
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    suite = Suite.load(toy["suite"])
    made = run_cells(suite.name, suite.plan(), Folder(tmp_path)).made
    ahead = [Ahead(planned, tuple(r.stages)) for planned, r in zip(suite.plan(), made)]
    left = {}
    for workers in (1, 3, None):
        now = [0.0]
        clock = Clock(ahead, workers, now=lambda now=now: now[0])
        for record in made:
            clock.started(record.cell)
        stages = {name: stage.model_copy(update={"seconds": 6.0}) for name, stage in made[0].stages.items()}
        now[0] = 6.0 * len(stages) / 3
        clock.finished(made[0].model_copy(update={"stages": stages}))
        left[workers] = clock.left()
    assert left[None] == left[3] < left[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (40, "40 s"),
        (89, "89 s"),
        (720, "12 min"),
        (5399, "90 min"),
        (12_600, "3.5 h"),
        (200_000, "2.3 days"),
    ],
)
def test_a_length_of_time_is_said_as_one_says_it(seconds: float, text: str) -> None:
    assert about(seconds) == text
