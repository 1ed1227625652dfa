"""Several folders on one board: which record counts, what may stand side by side, and what may be compared."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attriboard.board.board import Board, Table
from attriboard.board.formats import FORMATS, render
from attriboard.board.machines import Machine, machine_of
from attriboard.board.wording import legend, lines_above
from attriboard.errors import ConfigurationError
from attriboard.measurements.registry import METRICS
from attriboard.measurements.speed import VARYING
from attriboard.records.record import Provenance, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from tests.bench.boards import METRIC, ablation, faithfulness, made, record, speed
from tests.bench.cli import call

PROCESSOR, GPU = "AMD EPYC", "NVIDIA H200"
ON_GPU = {"settings": Settings(evaluations=("ablation", "speed"), device="cuda")}
N = 16


def drops(shift: float, seed: int = 1) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(0.0, 0.02, size=N), -0.1, 0.1) + shift


def on_cpu(method: str, shift: float, created: str = "2026-01", **changes: Any) -> Record:
    return made(record(method, drops(shift), **changes), created, PROCESSOR, threads=2)


def on_gpu(method: str, shift: float, created: str = "2026-02", **changes: Any) -> Record:
    return made(record(method, drops(shift), **{**ON_GPU, **changes}), created, GPU)


def folder(path: Path, records: Sequence[Record], suite: str = "made_up", **about: Any) -> Path:
    store = Folder(path)
    store.claim(suite, **about)
    for one in records:
        store.write(one.model_copy(update={"suite": suite}))
    return path


def shown(board: Board) -> list[tuple[str, str]]:
    return [(r.cell.method, r.provenance.device if r.provenance else "") for t in board.tables for r in t.records]


# --- which record counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lean", [False, True])
def test_a_gpu_run_beside_a_cpu_run_is_one_row_per_cell_the_newest(tmp_path: Path, lean: bool) -> None:
    cpu = folder(tmp_path / "cpu", [on_cpu(m, s) for m, s in (("a", 0.2), ("b", 0.1), ("slow", 0.0))])
    gpu = folder(tmp_path / "gpu", [on_gpu(m, s) for m, s in (("a", 0.2), ("b", 0.1))])
    for order in ([cpu, gpu], [gpu, cpu]):
        board = Board.read(order, lean=lean)
        assert shown(board) == [("a", GPU), ("b", GPU), ("slow", PROCESSOR)]  # in one table
        assert {s.name: (s.records, s.passed_over) for s in board.sources} == {"cpu": (1, 2), "gpu": (2, 0)}
        text = render(board)
        assert "`cpu` (suite `made_up`, 1 records and 2 passed over)" in text
        assert "`gpu` (suite `made_up`, 2 records)" in text
        assert "Of a cell that several hold, the record made last counts, before any that failed." in text
        assert board.superseded == 0


def test_shards_of_a_suite_make_the_board_of_the_whole(tmp_path: Path) -> None:
    records = [on_cpu(m, s) for m, s in (("a", 0.2), ("b", 0.1), ("c", 0.0))]
    whole = Board.read(folder(tmp_path / "whole", records))
    shards = [folder(tmp_path / f"shard{i}", records[i::2]) for i in range(2)]
    for lean in (False, True):
        merged = Board.read(shards, lean=lean)
        assert merged.tables[0].comparisons == whole.tables[0].comparisons and len(merged.tables) == 1
        assert merged.rows() == whole.rows() and merged.about == whole.about
        assert "passed over" not in render(merged)


def test_a_record_that_failed_later_does_not_take_the_place_of_one_that_ran(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "Out of memory.", "measurements": ()}
    ran = folder(tmp_path / "ran", [on_cpu("a", 0.2)])
    fell = folder(tmp_path / "fell", [on_gpu("a", 0.2, **failed), on_gpu("b", 0.2, **failed)])
    board = Board.read([ran, fell])
    assert shown(board) == [("a", PROCESSOR)]
    assert [r.cell.method for r in board.not_run] == ["b"]  # no other record has this cell


def test_a_suite_that_measures_less_does_not_hide_what_another_measured(tmp_path: Path) -> None:
    both = (faithfulness(0.6 + drops(0.1)), ablation(drops(0.1)), speed())
    more = folder(tmp_path / "more", [on_cpu("a", 0.1, measurements=both)], "more")
    less = folder(tmp_path / "less", [on_cpu("a", 0.2, "2026-05")], "less")
    board = Board.read([more, less])
    assert sorted(t.title for t in board.tables) == [
        f"made_up, heads, no_model, suite {name}, n = {N}" for name in ("less", "more")
    ]
    later = folder(tmp_path / "later", [on_cpu("a", 0.1, "2026-06", measurements=both)], "later")
    assert [r.suite for t in Board.read([more, less, later]).tables for r in t.records] == ["later"]


def test_methods_of_two_suites_on_the_same_examples_stand_in_one_table(tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine", [on_cpu("new", 0.3)], "mine", description="My method.")
    known = folder(tmp_path / "known", [on_cpu("a", 0.1), on_cpu("b", 0.0)], "known", description="Known ones.")
    board = Board.read([mine, known])
    (table,) = board.tables
    assert sorted(r.cell.method for r in table.records) == ["a", "b", "new"]
    assert table.comparisons[METRIC].methods == 3
    text = render(board)
    assert "Suite `mine`. My method." in text and "Suite `known`. Known ones." in text
    assert [about["suite"] for about in json.loads(render(board, "json"))["about"]["suites"]] == ["mine", "known"]
    assert {row["suite"] for row in csv.DictReader(io.StringIO(render(board, "csv")))} == {"mine", "known"}


def test_another_dtype_is_another_table(tmp_path: Path) -> None:
    half = Settings(evaluations=("ablation", "speed"), device="cuda", dtype="bfloat16")
    paths = [folder(tmp_path / "a", [on_cpu("a", 0.1)]), folder(tmp_path / "b", [on_gpu("a", 0.1, settings=half)])]
    assert sorted(t.title for t in Board.read(paths).tables) == [
        f"made_up, heads, no_model, bfloat16, cuda, n = {N}",
        f"made_up, heads, no_model, n = {N}",
    ]


def test_folders_are_told_by_their_last_names_or_by_all(tmp_path: Path) -> None:
    paths = [folder(tmp_path / name / "results", [on_cpu(name, 0.1)]) for name in ("x", "y")]
    assert [s.name for s in Board.read(paths).sources] == [str(path) for path in paths]
    (paths[1] / "other.json").write_text("{}")
    assert list(Board.read(paths).foreign) == [f"{paths[1]}/other.json"]
    assert list(Board.read(paths[1]).foreign) == ["other.json"]


def test_a_folder_that_is_given_twice_or_holds_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = folder(tmp_path / "one", [on_cpu("a", 0.1)])
    with pytest.raises(ConfigurationError, match=r"one is given twice; give every folder once\."):
        Board.read([one, tmp_path / "x" / ".." / "one"])
    with pytest.raises(ConfigurationError, match="give one or more"):
        Board.read([])
    code, _, err = call(capsys, "leaderboard", one, tmp_path / "none")
    assert code == 2 and "there is no results folder" in err and "none" in err


def test_the_command_takes_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [folder(tmp_path / name, [on_cpu(name, shift)]) for name, shift in (("x", 0.1), ("y", 0.2))]
    code, out, _ = call(capsys, "leaderboard", *paths, "--format", "csv")
    assert code == 0 and [row["method"] for row in csv.DictReader(io.StringIO(out))] == ["x", "y"]


# --- several devices ------------------------------------------------------------------------------------------------


def mixed(path: Path) -> Board:
    cpu = folder(path / "cpu", [on_cpu("a", 0.2), on_cpu("b", 0.1)])
    return Board.read([cpu, folder(path / "gpu", [on_gpu("c", 0.15), on_gpu("d", 0.0)])])


def test_rows_say_on_what_they_were_timed_where_that_differs(tmp_path: Path) -> None:
    board = mixed(tmp_path)
    (table,) = board.tables
    assert table.title == f"made_up, heads, no_model, n = {N}"
    named = f"(a: {PROCESSOR}, 2 threads; b: {GPU}, 1 thread): s / example and peak MiB compare only between rows"
    assert named in " ".join(lines_above(table))
    lines = [line for line in render(board).splitlines() if line.startswith("| ")]
    head = next(line for line in lines if "s / example" in line).split(" | ")
    assert head[1] == "device"
    marks = {line.split(" | ")[0].strip("| "): line.split(" | ")[1] for line in lines if "[" in line}
    assert marks == {"a": "a", "b": "a", "c": "b", "d": "b"}
    assert "s / example and peak MiB compare within one device only." in legend(board)
    rows = {row["method"]: (row["device"], row["threads"], row["workers"]) for row in board.rows()}
    assert rows["a"] == (PROCESSOR, 2, 1) and rows["d"] == (GPU, 1, 1)


@pytest.mark.parametrize("form", ["md", "html", "latex"])
def test_the_board_of_one_device_names_none_by_row(tmp_path: Path, form: str) -> None:
    text = render(Board.read(folder(tmp_path, [on_cpu("a", 0.2), on_cpu("b", 0.1)])), form)
    assert "compare only between rows" not in text and "within one device" not in text
    assert not re.search(r"(\| device \||<th>device</th>|& device &)", text)


def test_on_a_board_of_several_devices_a_table_of_one_names_it(tmp_path: Path) -> None:
    cpu = folder(tmp_path / "cpu", [on_cpu("a", 0.2), on_cpu("b", 0.1)])
    gpu = folder(tmp_path / "gpu", [on_gpu("a", 0.2, task="other"), on_gpu("b", 0.0, task="other")])
    said = {t.task: " ".join(lines_above(t)) for t in Board.read([cpu, gpu]).tables}
    assert said["made_up"].endswith(f"Timed on {PROCESSOR}, 2 threads.")
    assert said["other"].endswith(f"Timed on {GPU}, 1 thread.")
    assert "Timed on" not in " ".join(lines_above(Board.read(cpu).tables[0]))


def test_what_is_judged_is_compared_over_devices_and_times_never_are(tmp_path: Path) -> None:
    (table,) = mixed(tmp_path).tables
    assert table.comparisons[METRIC].methods == 4
    assert not set(VARYING) & set(table.comparisons)
    assert not any(set(VARYING) & table.bold(r) for r in table.records)
    assert not any(METRICS[name].ranks or METRICS[name].sorts for name in VARYING)


def test_rows_of_other_examples_are_never_paired_and_the_tables_say_so(tmp_path: Path) -> None:
    items = [f"item {i}" for i in range(N - 1)]
    fewer = [made(record(m, drops(s)[1:], items=items, **ON_GPU), "2026-02", GPU) for m, s in (("c", 0.1), ("d", 0.0))]
    cpu = folder(tmp_path / "cpu", [on_cpu("a", 0.2), on_cpu("b", 0.1)])
    tables = Board.read([cpu, folder(tmp_path / "gpu", fewer)]).tables
    assert {t.title: [r.cell.method for r in t.records] for t in tables} == {
        f"made_up, heads, no_model, n = {N}": ["a", "b"],
        f"made_up, heads, no_model, cuda, n = {N - 1}": ["c", "d"],
    }
    said = {t.title: " ".join(lines_above(t)) for t in tables}
    for title, other in zip(sorted(said), (PROCESSOR, GPU)):
        assert f"The model answers other examples on {other}, so what was measured there stands in" in said[title]


def test_examples_of_the_same_number_are_told_apart(tmp_path: Path) -> None:
    other = made(record("c", drops(0.1), items=[f"thing {i}" for i in range(N)], **ON_GPU), "2026-02", GPU)
    tables = Board.read([folder(tmp_path / "x", [on_cpu("a", 0.2)]), folder(tmp_path / "y", [other])]).tables
    assert sorted(len(t.records) for t in tables) == [1, 1] and len({t.title for t in tables}) == 2


def test_other_halves_of_what_is_cross_fitted_are_other_tables(tmp_path: Path) -> None:
    def crossed(method: str, kept: int, n_eff: float = 3.0, **changes: Any) -> Record:
        one = record(method, drops(0.1), **changes)
        whole = one.kept["train"].model_copy(update={"kept": kept, "n_eff": n_eff})
        settings = one.settings.model_copy(update={"folds": 4})
        return one.model_copy(update={"kept": {**one.kept, "train": whole}, "settings": settings})

    cpu = folder(tmp_path / "cpu", [made(crossed("a", N), "1", PROCESSOR)])
    gpu = folder(tmp_path / "gpu", [made(crossed("b", N - 1, **ON_GPU), "2", GPU)])
    tables = Board.read([cpu, gpu]).tables
    assert [len(t.records) for t in tables] == [1, 1] and all(t.elsewhere for t in tables)
    # to how many independent ones they amount is worked out from measured values, which rounding moves
    rounded = folder(tmp_path / "same", [made(crossed("b", N, n_eff=3.00002, **ON_GPU), "2", GPU)])
    (table,) = Board.read([cpu, rounded]).tables
    assert len(table.records) == 2 and not table.elsewhere


@pytest.mark.parametrize("lean", [False, True])
def test_a_time_is_of_the_device_that_took_it_and_not_of_the_last_run(tmp_path: Path, lean: bool) -> None:
    resumed = on_cpu("a", 0.2)
    timed = {**resumed.stages, "speed": resumed.stages["speed"].model_copy(update={"device": GPU})}
    board = Board.read(folder(tmp_path, [resumed.model_copy(update={"stages": timed})]), lean=lean)
    assert [row["device"] for row in board.rows()] == [GPU]


def test_seeds_of_several_devices_share_no_mean_time(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [on_cpu("a", 0.2, data="x")])
    here, there = (
        folder(tmp_path / name, [make("a", 0.1, seed=1, data="y")]) for name, make in (("h", on_cpu), ("t", on_gpu))
    )
    for other, mixes in ((here, False), (there, True)):
        board = Board.read([one, other])
        (summary,) = board.over_seeds()
        assert summary.mixes_machines == mixes and METRIC in summary.columns
        assert bool(set(VARYING) & set(summary.columns)) != mixes
        for form in ("md", "html", "latex"):
            assert ("are left out: the seeds were run on several devices" in render(board, form)) == mixes


# --- several workers ------------------------------------------------------------------------------------------------


class Shared(Provenance):
    """What is noted of a run with several processes on one machine."""

    workers: int = 2


def test_times_taken_beside_other_workers_are_said_to_be_so() -> None:
    alone = on_cpu("a", 0.2)
    assert alone.provenance is not None
    shared = Shared(**{**alone.provenance.model_dump(), "workers": 2})
    beside = on_cpu("b", 0.1).model_copy(update={"provenance": shared})
    assert machine_of(alone) == Machine(PROCESSOR, 2, 1) and machine_of(beside) == Machine(PROCESSOR, 2, 2)
    table = Table("made_up", "heads", "no_model", "counterfactual", "", 0, (alone, beside))
    assert "a: AMD EPYC, 2 threads; b: AMD EPYC, 2 threads, 2 workers at once" in " ".join(lines_above(table))
    board = Board(sources=(), tables=(table,), not_run=(), superseded=0)
    said = "s / example and peak MiB of 1 of 2 records were measured beside other workers on the same machine"
    assert said in legend(board)


# --- smoke tests ----------------------------------------------------------------------------------------------------

SMOKE = "few examples, no verdict (for that see the suite `standard`)"


def test_the_first_line_says_that_a_suite_is_a_smoke_test(tmp_path: Path) -> None:
    path = folder(tmp_path / "smoke", [on_cpu("a", 0.2)], smoke=True)
    board = Board.read(path)
    assert render(board).splitlines()[0] == f"# Leaderboard of a smoke test: {SMOKE}"
    assert f"<h1>Leaderboard of a smoke test: {SMOKE}</h1>" in render(board, "html")
    assert render(board, "latex").splitlines()[0] == f"% Leaderboard of a smoke test: {SMOKE}"
    assert json.loads(render(board, "json"))["smoke_test"] is True
    assert [row["smoke_test"] for row in csv.DictReader(io.StringIO(render(board, "csv")))] == ["True"]


@pytest.mark.parametrize("about", [{}, {"smoke": False}, {"smoke": "yes"}])
def test_of_any_other_suite_nothing_is_said(tmp_path: Path, about: dict[str, Any]) -> None:
    board = Board.read(folder(tmp_path, [on_cpu("a", 0.2)], **about))
    assert render(board).splitlines()[0] == "# Leaderboard"
    assert not any("smoke test" in render(board, form) for form in FORMATS)


def test_a_smoke_test_beside_another_suite_is_named(tmp_path: Path) -> None:
    smoke = folder(tmp_path / "s", [on_cpu("a", 0.2)], "small", smoke=True)
    board = Board.read([smoke, folder(tmp_path / "t", [on_cpu("b", 0.1)], "large")])
    assert render(board).splitlines()[0] == f"# Leaderboard; `small` is a smoke test: {SMOKE}"
    assert {row["method"]: row["smoke_test"] for row in board.rows()} == {"a": True, "b": False}
