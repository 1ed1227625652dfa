"""The board: the same records give the same bytes, every format tells the same, and the committed one is up to date."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from attriboard.board import board as leaderboard
from attriboard.board.board import Board, number, render
from attriboard.components import get_level
from attriboard.errors import ConfigurationError
from attriboard.measurements.metrics import METRICS, page
from attriboard.records.record import Folder, Record
from attriboard.run.runner import aggregates, run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "quick"


@pytest.fixture(scope="module")
def folder(toy: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    path = tmp_path_factory.mktemp("results")
    target = Folder(path)
    target.claim("toy", description="A toy.", not_run=["nothing else exists here"])
    run_cells("toy", suite.cells(), suite.settings, target)
    run_cells("toy", suite.cells(task=["hopeless"], method=["random"]), suite.settings, target)
    return path


@pytest.mark.parametrize("form", list(leaderboard.FORMATS))
def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path, form: str) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert render(Board.read(folder), form) == render(Board.read(copy), form)


def test_markdown_shows_every_method_what_was_kept_and_what_was_not_run(folder: Path) -> None:
    text = render(Board.read(folder))
    for name in ("head_ablation", "attribution_patching", "*random*"):
        assert f"| {name} |" in text
    assert "of 12 test examples" in text and "n = 6" in text
    assert "nothing else exists here" in text
    assert "failed: hopeless / heads / random" in text


def test_every_number_in_a_row_is_the_records_own(folder: Path) -> None:
    text = render(Board.read(folder))
    for record in Folder(folder).read():
        if record.status != "ok":
            continue
        label = f"*{record.cell.method}*" if record.control else record.cell.method
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {label} |") and "[" in line]
        for name in leaderboard.COLUMNS:
            assert number(METRICS[name], record.aggregates[name].value) in row


def test_csv_and_json_hold_unrounded_values_of_every_record(folder: Path) -> None:
    records = {r.filename: r for r in Folder(folder).read() if r.status == "ok"}
    rows = list(csv.DictReader(io.StringIO(render(Board.read(folder), "csv"))))
    assert {row["record"] for row in rows} == set(records)
    parsed = json.loads(render(Board.read(folder), "json"))
    for row in [*rows, *parsed["rows"]]:
        record = records[row["record"]]
        assert set(row) & set(METRICS) == set(record.aggregates)
        for name in record.aggregates:
            assert float(row[name]) == pytest.approx(record.aggregates[name].value, rel=1e-12)
    assert parsed["not_run"][0]["status"] == "failed"


def test_latex_is_a_booktabs_table_with_escaped_names(folder: Path) -> None:
    text = render(Board.read(folder), "latex")
    assert text.count("\\begin{table}") == 1
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert rule in text
    assert "head\\_ablation" in text and "head_ablation" not in text.replace("head\\_ablation", "")


def test_ranks_share_ties_and_run_from_best_to_last(folder: Path) -> None:
    (table,) = [t for t in Board.read(folder).tables if t.task == "repeat"]
    ranks = table.ranks("cmd")
    values = {r.cell.method_label: r.aggregates["cmd"].value for r in table.records}
    assert min(ranks, key=ranks.__getitem__) == min(values, key=values.__getitem__)
    assert set(ranks.values()) == {0.0, 0.5, 1.0}


def test_only_the_newest_record_of_a_cell_is_shown(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = next(r for r in Folder(copy).read() if r.status == "ok")
    assert record.provenance
    newer = record.model_copy(
        update={"identity": "f" * 64, "provenance": record.provenance.model_copy(update={"created": "2999"})}
    )
    Folder(copy).write(newer)
    board = Board.read(copy)
    assert board.superseded == 1
    shown = [r for t in board.tables for r in t.records if r.cell == record.cell]
    assert [r.identity for r in shown] == ["f" * 64]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no records"):
        render(Board.read(tmp_path))


def test_figures_are_drawn_for_every_table(folder: Path, tmp_path: Path) -> None:
    made = leaderboard.figures(Board.read(folder), tmp_path)
    assert len(made) == 2 and made[1].name == made[0].name.replace(".png", ".agreement.png")
    assert all(path.stat().st_size > 10_000 for path in made)


def test_small_and_missing_numbers_are_printed_honestly() -> None:
    assert number(METRICS["cpr"], -0.00001) == "0.000"
    assert number(METRICS["cpr"], float("nan")) == "n/a"
    assert number(METRICS["cpr"], -0.25) == "−0.250"
    assert number(METRICS["seconds_per_example"], 0.01234) == "0.012"


def test_the_metrics_page_says_what_the_table_says() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == page()


# --- the committed reference run ------------------------------------------------------------------------------------


def _reference() -> list[Record]:
    return [r for r in Folder(REFERENCE).read() if r.status == "ok"]


def test_the_committed_board_is_what_its_records_give() -> None:
    assert (ROOT / "leaderboard.md").read_text() == render(Board.read(REFERENCE))


def test_the_committed_aggregates_follow_from_the_per_example_measurements() -> None:
    for record in _reference():
        asked = {"localization"} if get_level(record.cell.level).inputs else set(record.settings.families)
        assert record.speed and asked <= set(record.families)
        again = aggregates(record.families.values(), record.speed, record.items)
        for name, stored in record.aggregates.items():
            assert again[name].value == pytest.approx(stored.value, rel=1e-9, abs=1e-12)
            for side in ("low", "high"):
                a, b = getattr(again[name], side), getattr(stored, side)
                assert (a is None) == (b is None)
                assert a is None or np.isclose(a, b, rtol=1e-6)


def test_the_committed_run_covers_the_quick_suite_with_enough_examples() -> None:
    cells = [repr(c) for c in Suite.load(Path("quick")).cells()]
    records = _reference()
    assert sorted(repr(r.cell) for r in records) == sorted(cells)
    assert all(len(r.items) == r.settings.max_kept for r in records)  # as many as could be used, were
    assert min(len(r.items) for r in records if r.cell.model == "smollm2-135m") >= 8
