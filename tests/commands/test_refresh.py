"""``attriboard refresh`` and what the board does without it: aggregates by today's definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attriboard.measurements.ablation import Ablation
from attriboard.records.record import Aggregate, Record
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.stats.intervals import VERSION
from attriboard.task import tasks
from tests.bench.boards import METRIC, ablation, record
from tests.bench.cli import call

DROPS = [0.1, 0.2, 0.3, 0.4]


def _older(whole: Record, value: float = 0.777) -> Record:
    """The record with a value by an older definition of its metric."""
    old = Aggregate(value=value, low=value, high=value, version=whole.aggregates[METRIC].version - 1)
    return whole.model_copy(update={"aggregates": whole.aggregates | {METRIC: old}})


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Record]:
    """By method: one that is current, one with an older metric and one with older statistics, written to a folder."""
    whole = {method: record(method, DROPS) for method in ("current", "older", "statistics")}
    folder = Folder(tmp_path)
    folder.claim("made_up")
    folder.write(whole["current"])
    folder.write(_older(whole["older"]))
    folder.write(whole["statistics"].model_copy(update={"statistics_version": VERSION - 1}))
    return whole


def _bytes(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.json")}


def test_the_board_derives_what_is_older_and_writes_nothing(
    records: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _bytes(tmp_path)
    code, out, _ = call(capsys, "leaderboard", tmp_path, "--format", "json")
    assert code == 0 and _bytes(tmp_path) == before
    rows = {row["method"]: row for row in json.loads(out)["rows"]}
    assert rows.keys() == records.keys()
    for method, whole in records.items():
        assert rows[method][METRIC] == pytest.approx(whole.aggregates[METRIC].value)
        assert rows[method][f"{METRIC}_low"] == pytest.approx(whole.aggregates[METRIC].low)
    code, out, _ = call(capsys, "leaderboard", tmp_path)
    assert code == 0 and "0.777" not in out and _bytes(tmp_path) == before


def test_refresh_writes_it_and_says_what_derived_it(
    records: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _bytes(tmp_path)
    code, out, err = call(capsys, "refresh", tmp_path)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"derived again: {records['older'].cell}",
        f"derived again: {records['statistics'].cell}",
        f"2 of 3 records changed. Records: {tmp_path}",
    ]
    after = _bytes(tmp_path)
    assert {name for name in before if after[name] == before[name]} == {"suite.json", records["current"].filename}
    for one in Folder(tmp_path).read():
        whole = records[one.cell.method]
        assert one.aggregates == whole.aggregates and one.statistics_version == VERSION
        assert one.measurements == whole.measurements and one.stages == whole.stages
        assert one.provenance == whole.provenance
        if one.cell.method == "current":
            assert one.derived is None
        else:
            assert one.derived is not None and one.derived.attriboard and one.derived.created


def test_refreshing_twice_changes_nothing_more(
    records: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "refresh", tmp_path)
    before = _bytes(tmp_path)
    code, out, _ = call(capsys, "refresh", tmp_path)
    assert code == 0 and out == f"0 of 3 records changed. Records: {tmp_path}\n"
    assert _bytes(tmp_path) == before


def test_the_records_of_a_run_are_current(
    toy: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    assert not run_cells(suite.name, suite.plan(), Folder(tmp_path)).failed
    before = _bytes(tmp_path)
    code, out, _ = call(capsys, "refresh", tmp_path)
    assert code == 0 and "0 of 3 records changed." in out and _bytes(tmp_path) == before
    (first, *_) = Folder(tmp_path).read()
    Folder(tmp_path).write(_older(first))
    code, out, _ = call(capsys, "refresh", tmp_path)
    assert code == 0 and f"derived again: {first.cell}" in out
    (again, *_) = Folder(tmp_path).read()
    assert again.model_copy(update={"derived": None}) == first and again.derived is not None


def test_a_record_that_was_refreshed_is_not_run_again(toy: dict[str, Path], tmp_path: Path) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    plan = suite.plan(method=["random"])
    folder = Folder(tmp_path)
    (made,) = run_cells(suite.name, plan, folder).made
    folder.write(_older(made))
    assert len(folder.refresh()[0]) == 1
    assert run_cells(suite.name, plan, folder).done_before == 1


def test_files_that_are_no_records_are_named_and_left_alone(
    records: dict[str, Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.json").write_text('{"hello": 1}')
    code, out, err = call(capsys, "refresh", tmp_path)
    assert code == 0 and "2 of 3 records changed." in out
    assert "notes.json is not a record of this suite" in err and (tmp_path / "notes.json").exists()


@pytest.mark.parametrize(
    ("statistics", "sentence"),
    [
        (
            {"ablation_dorp": lambda index: index.mean(-1)},
            "ablation has a value of metric 'ablation_dorp', which it does",
        ),
        (
            {},
            "ablation lacks ablation_drop_p, ablation_drop_raw, ablation_drop_logprob, "
            "ablation_drop_accuracy, which it declares.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["refresh", "leaderboard"])
def test_a_measurement_that_does_not_keep_to_what_it_declares_is_one_sentence(
    records: dict[str, Record],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    statistics: dict,
    sentence: str,
) -> None:
    whole = ablation(DROPS).statistics() if statistics else {}
    monkeypatch.setattr(Ablation, "statistics", lambda self: {**whole, **statistics})
    code, _, err = call(capsys, command, tmp_path)
    assert code == 2 and sentence in err and "Traceback" not in err


def test_a_folder_that_is_not_there_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "refresh", tmp_path / "none")
    assert code == 2 and "there is no results folder" in err
