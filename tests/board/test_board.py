"""The board: the same records give the same bytes, every format tells the same, and the committed one is up to date."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from attriboard.board import figures
from attriboard.board.board import Board
from attriboard.board.columns import costs, main_columns
from attriboard.board.formats import FORMATS, render
from attriboard.board.wording import number
from attriboard.errors import ConfigurationError
from attriboard.measurements.base import Kept
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.measurements.pruning import Pruning
from attriboard.measurements.registry import METRICS
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Precomputed, Provenance, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.shipped import pages_from
from attriboard.studies.audit_report import findings, read_audits
from tests.bench.boards import COSTS, METRIC, ablation, faithfulness, record, speed

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "quick"
COLUMNS = tuple(name for name in main_columns("heads") if name != "stability")
"""What records show whose rows are all judged by the same scores."""
DROPS = np.clip(np.random.default_rng(0).normal(0.1, 0.05, size=6), -0.3, 0.4)


def provenance(created: str = "2026-01-01") -> Provenance:
    versions = {"attriboard": "0", "attriboard_commit": None, "python": "3", "torch": "2", "transformers": "5"}
    return Provenance(**versions, platform="p", device="d", threads=1, created=created)


def whole(method: str, shift: float, **changes: object) -> Record:
    """A record with everything that a usual suite asks for."""
    measured = (faithfulness(0.6 + DROPS - shift), ablation(DROPS - shift), speed())
    one = record(method, DROPS - shift, **{"measurements": measured, **changes})
    return one.model_copy(update={"provenance": provenance()})


def written(path: Path, *records: Record) -> Board:
    folder = Folder(path)
    folder.claim("made_up")
    for one in records:
        folder.write(one)
    return Board.read(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results")
    Folder(path).claim("made_up", description="A toy.", not_run=["nothing else exists here"])
    reason = {"status": "failed", "reason": "It is hopeless.", "measurements": (), "settings": Settings()}
    failed = whole("random", 0.3, task="hopeless", **reason)
    shapes = {"sketch": [1.0, 2.0, 3.0, 4.0]}
    written(
        path,
        whole("head_ablation", 0.0, **shapes),
        whole("attribution_patching", 0.05, **shapes),
        whole("random", 0.3, control=True, **shapes),
        failed.model_copy(update={"kept": {}, "items": [], "frames": [], "subsets": [], "scores": None}),
    )
    return path


@pytest.mark.parametrize("form", list(FORMATS))
def test_the_same_records_give_the_same_bytes(folder: Path, tmp_path: Path, form: str) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert render(Board.read(folder), form) == render(Board.read(copy), form)


def test_markdown_shows_every_method_what_was_kept_and_what_was_not_run(folder: Path) -> None:
    text = render(Board.read(folder))
    for name in ("head_ablation", "attribution_patching", "*random*"):
        assert f"| {name} |" in text
    assert (
        "Of 6 test examples 6 are answered, and the counterfactuals of 6 of these by their foil. 6 of them are" in text
    )
    assert "judged by the scores of 6 train examples." in text and "### made_up, heads, no_model, n = 6\n" in text
    assert "nothing else exists here" in text
    assert "failed: hopeless / heads / random on no_model, seed 0: It is hopeless." in text


@pytest.mark.parametrize(
    ("docs", "link"),
    [
        ("docs", "[docs/metrics.md](docs/metrics.md)"),
        ("../../docs", "[docs/metrics.md](../../docs/metrics.md)"),
        (None, "docs/metrics.md of attriboard"),
    ],
)
def test_links_lead_to_the_pages_from_where_the_board_is_written(folder: Path, docs: str | None, link: str) -> None:
    text = render(Board.read(folder), docs=docs)
    assert f"Definitions: {link}; tests:" in text and ("](" in text) == (docs is not None)


def test_the_way_to_the_pages(tmp_path: Path) -> None:
    assert pages_from(ROOT) == "docs" and pages_from(ROOT / "results" / "quick") == "../../docs"
    assert pages_from(tmp_path) is None


def test_every_number_in_a_row_is_the_records_own(folder: Path) -> None:
    text = render(Board.read(folder))
    for one in Folder(folder).read():
        if one.status != "ok":
            continue
        label = f"*{one.cell.method}*" if one.control else one.cell.method
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {label} |") and "[" in line]
        for name in (*COLUMNS, *costs()):
            assert number(METRICS[name], one.aggregates[name].value) in row


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


def test_findings_of_an_audit_stand_above_the_tables_of_the_same_task_version_and_model(folder: Path) -> None:
    (table,) = Board.read(folder).tables
    first = table.records[0]
    assert first.model is not None
    key = (first.cell.task, first.task_version, first.model.weights_sha256)
    sentences = ("Shortcut: all of it is kept.", "Overlap: 3 prompts.")
    for form in ("md", "latex", "html"):
        text = render(Board.read(folder, {key: sentences}), form)
        assert text.count("Shortcut: all of it is kept. Overlap: 3 prompts.") == 1
    for other in ((f"{key[0]}s", *key[1:]), (key[0], key[1] + 1, key[2]), (*key[:2], "0")):
        assert render(Board.read(folder, {other: sentences})) == render(Board.read(folder))


def test_latex_is_a_booktabs_table_with_escaped_names(folder: Path) -> None:
    text = render(Board.read(folder), "latex")
    assert text.count("\\begin{table}") == 1
    for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
        assert rule in text
    assert "head\\_ablation" in text and "head_ablation" not in text.replace("head\\_ablation", "")


def test_ranks_share_ties_and_run_from_best_to_last(folder: Path) -> None:
    (table,) = Board.read(folder).tables
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
    drawn = figures.draw(Board.read(folder), tmp_path)
    assert len(drawn) == 2 and drawn[1].name == drawn[0].name.replace(".png", ".agreement.png")
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_small_and_missing_numbers_are_printed_honestly() -> None:
    assert number(METRICS["cpr"], -0.00001) == "0.000"
    assert number(METRICS["cpr"], float("nan")) == "n/a"
    assert number(METRICS["cpr"], -0.25) == "−0.250"
    assert number(METRICS["seconds_per_example"], 0.01234) == "0.012"


# --- what stands beside what ------------------------------------------------------------------------------------------


def pruning(accuracies: tuple[float, ...] = (1.0, 0.5)) -> Pruning:
    """Accuracy of six examples falls as said while components are removed."""
    clean, *masked = [[[0.0, 0.0, float(i < round(6 * share))] for i in range(6)] for share in (1.0, *accuracies)]
    return Pruning(
        allocation="layerwise",
        sparsities=[0.25, 0.5],
        examples_sha256="e",
        clean=clean,
        masked=masked,
        masked_absolute=masked,
        slice_sparsity=0.5,
        not_sliced="No need.",
        base_items=[f"item {i}" for i in range(6)],
    )


def test_what_one_record_holds_is_one_table_with_parts_of_those_that_have_them(tmp_path: Path) -> None:
    settings = Settings(evaluations=("faithfulness", "ablation", "pruning", "speed"))
    base = whole("both", 0.0).measurements.values()
    board = written(
        tmp_path,
        whole("both", 0.0, measurements=(*base, pruning((1.0, 0.5))), settings=settings),
        whole("plain", 0.1, settings=settings),
        whole("pruned", 0.0, measurements=(pruning((1.0, 1.0)), speed()), settings=settings),
    )
    (table,) = board.tables
    first, second = table.parts
    assert first.metrics == (*COLUMNS, *COSTS)
    assert [r.cell.method for r in first.records] == ["both", "plain"]
    assert second.metrics[0] == "pruning_accuracy_area" and not set(second.metrics) & set(COSTS)
    assert [r.cell.method for r in second.records] == ["pruned", "both"]  # by what all of them have
    assert table.ranks("cpr") == {"both": 0.0, "plain": 1.0}
    assert table.ranks("pruning_accuracy_area") == {"pruned": 0.0, "both": 1.0}
    assert "(pruning and bias: all 6 of the test half)" in render(board)


def test_a_metric_that_only_some_have_is_a_column_that_is_empty_elsewhere(tmp_path: Path) -> None:
    groups = {"train_groups": [f"group {i % 3}" for i in range(6)]}
    crossed = whole("crossed", 0.0, measurements=(faithfulness(0.6 + DROPS).model_copy(update=groups), speed()))
    board = written(tmp_path, crossed, whole("plain", 0.1, measurements=(faithfulness(0.5 + DROPS), speed())))
    (table,) = board.tables
    own = [name for name in main_columns("heads") if METRICS[name].measurement == "faithfulness"]
    assert table.metrics == (*own, *COSTS) and "stability" in own
    rows = {r["method"]: r for r in json.loads(render(board, "json"))["rows"]}
    share = crossed.aggregates["stability"].value
    assert 0 <= share <= 1 and rows["crossed"]["stability"] == share and rows["plain"]["stability"] is None
    place = 1 + own.index("stability")
    for name, shown in (("crossed", f"{share:.2f}"), ("plain", "")):
        (line,) = [line for line in render(board).splitlines() if line.startswith(f"| {name} |") and "[" in line]
        assert line.strip("|").split("|")[place].strip() == shown


def test_counts_of_several_subsets_stand_in_the_line_above_the_table(tmp_path: Path) -> None:
    kept = Kept(seen=9, correct=8, passing=7, kept=6, by_subset={"odd": (3, 4, 5), "even": (4, 4, 4)})
    text = render(written(tmp_path, whole("a", 0.0).model_copy(update={"kept": {"train": kept, "test": kept}})))
    said = "Of 9 test examples 8 are answered, and the counterfactuals of 7 of these by their foil"
    assert f"{said} (odd 4 and 3 of 5; even 4 and 4 of 4). 6 of them are judged" in text


def test_where_no_first_part_is_costs_stand_behind_the_next(tmp_path: Path) -> None:
    settings = Settings(evaluations=("pruning", "speed"))
    (table,) = written(tmp_path, record("a", DROPS, measurements=(pruning(), speed()), settings=settings)).tables
    (part,) = table.parts
    assert part.metrics[0] == "pruning_accuracy_area" and part.metrics[-len(COSTS) :] == COSTS


def test_other_options_of_one_measurement_are_other_tables(tmp_path: Path) -> None:
    few, many = (Settings.model_validate({"ablation": {"draws": draws}}) for draws in (1, 5))
    alone = (faithfulness(DROPS), speed())
    records = [
        whole("a", 0.0, settings=few),
        whole("b", 0.0, settings=many),
        whole("c", 0.0, settings=many, measurements=alone),
        whole("d", 0.0, settings=few, variant="few"),
    ]
    tables = written(tmp_path, *records).tables
    methods = sorted(tuple(sorted(r.cell.method for r in t.records)) for t in tables)
    assert sorted(map(len, methods)) == [1, 1, 2] and ("d",) in methods
    assert all(not {"a", "b"} <= set(group) for group in methods)
    (variant,) = [t for t in tables if t.variant]
    assert variant.title == "made_up, heads, no_model, few, n = 6"


def test_options_of_what_was_not_measured_and_hardware_of_one_kind_do_not_part_records(tmp_path: Path) -> None:
    settings = Settings.model_validate({"pruning": {"sparsities": [0.5]}, "batch_size": 3})
    (table,) = written(tmp_path, whole("a", 0.0), whole("b", 0.1, settings=settings)).tables
    assert len(table.records) == 2


def test_a_failed_record_stands_with_what_it_has_and_is_listed(tmp_path: Path) -> None:
    broken = whole("broken", 0.1, status="failed", reason="Ablation ran out.", measurements=(faithfulness(DROPS),))
    board = written(tmp_path, whole("a", 0.0), whole("b", 0.05), broken)
    text = render(board)
    (row,) = [line for line in text.splitlines() if line.startswith("| broken |")][-1:]
    filled = [m.name for m in Faithfulness.metrics if m.name in COLUMNS]
    assert row.rstrip("| ").count("|") == 1 + len(filled) == 9 and row.count("|") == len(table_columns(board)) + 2
    assert "- failed: made_up / heads / broken on no_model, seed 0: Ablation ran out." in text
    assert text.splitlines()[2:5][0].startswith("Suite") and "2 records, 1 failed, 0 skipped." in text
    (table,) = board.tables
    assert set(table.ranks(METRIC)) == {"a", "b"} and set(table.ranks("cpr")) == {"a", "b", "broken"}


def table_columns(board: Board) -> tuple[str, ...]:
    (table,) = board.tables
    return table.metrics


def test_precomputed_scores_have_no_costs_and_say_so(tmp_path: Path) -> None:
    given = whole(
        "theirs",
        0.1,
        precomputed=Precomputed(file="f.safetensors", sha256="s"),
        measurements=(faithfulness(DROPS), ablation(DROPS)),
    )
    text = render(written(tmp_path, whole("a", 0.0), given))
    (row,) = [line for line in text.splitlines() if line.startswith("| theirs (precomputed) |") and "[" in line]
    assert row.endswith("|  |  |  |") and "(precomputed): scores from a file" in text


def test_aggregates_of_an_older_definition_are_derived_again(tmp_path: Path) -> None:
    one = whole("a", 0.0)
    old = one.model_copy(
        update={"aggregates": {k: v.model_copy(update={"value": 9.0, "version": 0}) for k, v in one.aggregates.items()}}
    )
    (table,) = written(tmp_path, old).tables
    assert table.records[0].aggregates == one.aggregates


# --- what it needs ----------------------------------------------------------------------------------------------------

LABORATORY = {"torch", "transformers", "datasets", "lm_eval", "peft", "matplotlib", "pandas"}


def imported(*arguments: object) -> set[str]:
    """The top-level packages that a Python process imports."""
    command = [sys.executable, "-X", "importtime", *map(str, arguments)]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    names = [line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(names) > 100
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "command", ["leaderboard {}", "check {} --against {}", *(f"leaderboard {{}} --format {form}" for form in FORMATS)]
)
def test_reading_records_needs_no_laboratory(folder: Path, command: str) -> None:
    arguments = [word.format(folder) for word in command.split()]
    assert not imported("-m", "attriboard.cli", *arguments) & LABORATORY


def test_notebooks_need_no_laboratory() -> None:
    assert not imported("-c", "from attriboard import Folder, Board, METRICS, render") & LABORATORY


# --- the committed reference run ------------------------------------------------------------------------------------


def _reference() -> list[Record]:
    records = [r for r in Folder(REFERENCE).read() if r.status == "ok"]
    assert records
    return records


def test_the_committed_board_is_what_its_records_give() -> None:
    found = findings(read_audits(ROOT / "results" / "audit"))
    assert (ROOT / "leaderboard.md").read_text() == render(Board.read(ROOT / "results" / "standard", found))
    quick = render(Board.read(REFERENCE), docs=pages_from(REFERENCE))
    assert (REFERENCE / "leaderboard.md").read_text() == quick


def test_the_committed_aggregates_follow_from_the_per_example_measurements() -> None:
    for one in _reference():
        assert set(one.settings.measured(one.cell.level)) <= {*one.measurements, *one.not_measured}
        again = aggregates(one.measurements.values(), one.items, one.frames)
        for name, stored in one.aggregates.items():
            assert again[name].value == pytest.approx(stored.value, rel=1e-9, abs=1e-12)
            for side in ("low", "high"):
                a, b = getattr(again[name], side), getattr(stored, side)
                assert (a is None) == (b is None)
                assert a is None or np.isclose(a, b, rtol=1e-6)


def test_the_committed_run_covers_the_quick_suite_with_enough_examples() -> None:
    from attriboard.run.suite import Suite

    cells = {repr(planned.cell) for planned in Suite.load(Path("quick")).plan()}
    records = _reference()
    assert {repr(r.cell) for r in records} == cells
    assert all(len(r.items) == r.settings.max_kept for r in records if r.cell.model == "smollm2-135m")
