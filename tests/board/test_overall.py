"""Overall ranks: who is counted where, who stands apart, and what enters no ranks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attriboard.board.board import Board, OverallRank
from attriboard.board.formats import render
from attriboard.measurements.pruning import Pruning
from attriboard.measurements.registry import METRICS
from attriboard.records.record import Record
from tests.bench.boards import METRIC, record
from tests.board.test_standing import N, at_random, draw, read

OTHER = "pruning_accuracy_area"


@pytest.fixture(autouse=True)
def two_ranking_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drop in p, which makes the headline, and the area of pruning rank; no other metric does."""
    for name, metric in list(METRICS.items()):
        ranks = name in (METRIC, OTHER)
        monkeypatch.setitem(METRICS, name, dataclasses.replace(metric, headline=name == METRIC, ranks=ranks))


def pruning(accuracy: float) -> Pruning:
    """Accuracy while half is removed."""
    rows = [[0.0, 0.0, float(i < round(N * accuracy))] for i in range(N)]
    return Pruning(
        allocation="layerwise",
        sparsities=[0.5],
        examples_sha256="e",
        clean=[[0.0, 0.0, 1.0]] * N,
        masked=[rows],
        masked_absolute=[rows],
        slice_sparsity=0.5,
        not_sliced="No need.",
        base_items=[f"item {i}" for i in range(N)],
    )


def table(task: str, *methods: str, **changes: Any) -> list[Record]:
    """Records of one task, each method a good deal better than the next, and random last."""
    seed = sum(map(ord, task))
    found = [record(m, draw(seed + i) + 0.06 * (len(methods) - i), task=task, **changes) for i, m in enumerate(methods)]
    return [*found, at_random(seed + 50, task=task, **changes)]


def by_method(board: Board) -> dict[str, OverallRank]:
    return {row.method: row for row in board.overall()}


def test_a_method_is_counted_wherever_any_ranking_metric_ranks_it(tmp_path: Path) -> None:
    only_pruned = [
        record("a", draw(1), task="four", measurements=(pruning(0.8),)),
        record("random", draw(2), task="four", measurements=(pruning(0.2),), control_kind="random"),
    ]
    records = [*table("one", "a", "b"), *table("two", "a", "b"), *table("three", "a", "b"), *only_pruned]
    board = read(tmp_path, *records)
    rows = by_method(board)
    assert {m: (row.tables, row.of) for m, row in rows.items()} == {"a": (4, 4), "b": (3, 4), "random": (4, 4)}
    assert "| *random* | 4 of 4 |" in render(board)
    assert set(rows["a"].by_metric) == {METRIC, OTHER} and set(rows["b"].by_metric) == {METRIC}


def test_ranks_follow_wins_over_common_tables(tmp_path: Path) -> None:
    # "new" meets the strongest alone and loses; "old" beats the weakest alone: a mean of ranks put it first
    records = [*table("one", "a", "new", "b"), *table("two", "a", "new", "b"), *table("three", "b", "old")]
    records += table("four", "b", "old")
    rows = by_method(read(tmp_path, *records))
    assert list(rows) == ["a", "new", "b", "old", "random"]
    assert all(rows[m].wins is not None and 0 < (rows[m].wins or 0) < 1 for m in rows)


def test_methods_in_fewer_than_half_of_the_tables_stand_apart(tmp_path: Path) -> None:
    tables = [one for task in ("one", "two", "three") for one in table(task, "a", "b")]
    without = by_method(read(tmp_path / "without", *table("four", "a", "b"), *tables))
    fourth = [*table("four", "a", "b"), record("thin", draw(7) + 0.4, task="four")]
    board = read(tmp_path / "with", *fourth, *tables)
    rows = by_method(board)
    assert list(rows)[-1] == "thin"
    thin = rows.pop("thin")
    assert (thin.tables, thin.of, thin.wins, thin.by_metric) == (1, 4, None, {})
    assert rows == without  # it changes nothing for the others
    text = render(board)
    assert (
        "in fewer than half of the tables, and not ranked: thin (1 of 4)." in text and "| thin | 1 of 4 |" not in text
    )
    half = read(tmp_path / "half", *fourth, *tables, record("thin", draw(8) + 0.4, task="one"))
    assert by_method(half)["thin"].wins is not None and next(iter(by_method(half))) == "thin"


def test_uninformative_tables_enter_no_ranks(tmp_path: Path) -> None:
    noise = [record("b", draw(3), task="noise"), record("a", draw(4), task="noise"), at_random(5, task="noise")]
    tables = [*table("one", "a", "b"), *table("two", "a", "b"), *table("three", "a", "b")]
    board = read(tmp_path / "with", *tables, *noise)
    assert {t.task: t.informative for t in board.tables}["noise"] == "no"
    assert board.overall() == read(tmp_path / "without", *tables).overall()
    assert board.rank_tests()["heads"].tables == 3
    (level,) = board.levels
    assert level.left_out == ("noise, heads, no_model, n = 16",)
    assert "Left out, because no method is told apart from random there: noise, heads" in render(board)


def test_a_level_without_an_informative_table_has_no_ranks(tmp_path: Path) -> None:
    board = read(tmp_path, record("a", draw(4)), at_random(5))
    assert board.overall() == [] and board.rank_tests() == {} and "## Overall" not in render(board)


def test_intervals_resample_tasks_and_models_and_say_what_they_do(tmp_path: Path) -> None:
    orders = {"one": "ab", "two": "ab", "three": "ba", "four": "ab", "five": "ab"}
    records = [one for task, order in orders.items() for one in table(task, *order)]
    many = read(tmp_path / "many", *records)
    first = by_method(many)["a"]
    assert first.low is not None and first.high is not None and first.wins is not None
    assert 0 <= first.low < first.wins < first.high <= 1
    assert "Intervals resample the 5 tasks and models." in render(many)
    assert f"| a | 5 of 5 | {first.wins:.2f} [{first.low:.2f}, {first.high:.2f}] |" in render(many)
    assert json.loads(render(many, "json"))["overall"][0]["wins_high"] == first.high
    seeds = [one for s in range(5) for one in table("one", *("ab" if s else "ba"), seed=s, data=f"{s}")]
    alike = read(tmp_path / "alike", *seeds)
    assert by_method(alike)["a"].low is not None
    assert "Intervals resample the 5 tables, of 1 task and model only: they say nothing of others." in render(alike)
    few = read(tmp_path / "few", *records[:6])
    assert by_method(few)["a"].low is None and "No intervals: 2 tables are too few to resample." in render(few)


def test_a_metric_counts_as_much_as_another_on_one_table(tmp_path: Path) -> None:
    """Where two metrics contradict each other the pair is tied, whatever the sizes of the differences."""
    cells = {"a": (0.3, 0.2), "b": (0.0, 0.8)}
    base = {m: next(iter(record(m, draw(1) + drop).measurements.values())) for m, (drop, _) in cells.items()}
    records = [record(m, draw(1), measurements=(base[m], pruning(kept))) for m, (_, kept) in cells.items()]
    rows = by_method(read(tmp_path, *records))
    assert rows["a"].wins == pytest.approx(0.5) and rows["b"].wins == pytest.approx(0.5)
    assert rows["a"].by_metric[METRIC] > 0.5 > rows["a"].by_metric[OTHER]
    assert np.isclose(rows["a"].by_metric[METRIC], 0.75)
