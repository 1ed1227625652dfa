"""Tables against their controls: do they say anything, who is no better than a rule, and what is said of scores."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attriboard.board.board import Board, Table
from attriboard.board.formats import FORMATS, render
from attriboard.board.wording import lines_above
from attriboard.measurements.registry import METRICS
from attriboard.records.record import Record
from attriboard.records.store import Folder
from tests.bench.boards import METRIC, record

N = 16


def declared(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Changes what is declared of the metric whose values the records choose."""
    monkeypatch.setitem(METRICS, METRIC, dataclasses.replace(METRICS[METRIC], **changes))


@pytest.fixture(autouse=True)
def headline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen metric, and no other, makes the headline."""
    for name, metric in list(METRICS.items()):
        monkeypatch.setitem(METRICS, name, dataclasses.replace(metric, headline=name == METRIC))
    declared(monkeypatch, ranks=True, shown=True, perfect=None)


def draw(seed: int, n: int = N) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(0.0, 0.02, size=n), -0.1, 0.1)


def read(path: Path, *records: Record) -> Board:
    folder = Folder(path)
    folder.claim("made_up")
    for one in records:
        folder.write(one)
    return Board.read(path)


def only_table(path: Path, *records: Record) -> Table:
    (table,) = read(path, *records).tables
    return table


def at_random(draws: int = 9, n: int = N, **changes: Any) -> Record:
    return record("random", draw(draws, n), control_kind="random", **changes)


# --- is any method told apart from random? ----------------------------------------------------------------------------


def test_a_table_with_one_method_better_than_random_says_something(tmp_path: Path) -> None:
    table = only_table(tmp_path, record("good", draw(1) + 0.2), record("bad", draw(2)), at_random())
    assert table.informative == "yes"
    found = table.against_random
    assert found is not None and (found.better, found.not_better) == (("good",), ("bad",))
    assert "told apart from random" not in " ".join(lines_above(table))


@pytest.mark.parametrize("form", ["md", "html", "latex"])
def test_a_table_without_any_is_uninformative_and_says_so_above(tmp_path: Path, form: str) -> None:
    records = [record("a", draw(1), replacement="zero"), record("b", draw(2), replacement="zero")]
    board = read(tmp_path, *records, at_random(replacement="zero"))
    assert board.tables[0].informative == "no"
    text = render(board, form)
    assert "No method is told apart from random: none is significantly better than random in" in text
    assert "with zero replacement, so the order" in text


def test_being_significantly_worse_than_random_tells_nothing_for_a_method(tmp_path: Path) -> None:
    table = only_table(tmp_path, record("worst", draw(1) - 0.2), record("bad", draw(2)), at_random())
    assert table.informative == "no"


def test_a_control_that_is_better_than_random_makes_no_table_informative(tmp_path: Path) -> None:
    rule = record("rule", draw(3) + 0.2, control_kind="trivial")
    assert only_table(tmp_path, record("bad", draw(2)), rule, at_random()).informative == "no"


def test_where_lower_is_better_the_lower_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, better="lower")
    table = only_table(tmp_path, record("low", draw(1) - 0.2), record("high", draw(2) + 0.2), at_random())
    found = table.against_random
    assert found is not None and (found.better, found.not_better) == (("low",), ("high",))


def test_too_few_examples_are_no_power_and_not_no(tmp_path: Path) -> None:
    records = [record("a", draw(1, 4) + 0.2), record("rule", draw(3, 4), control_kind="trivial"), at_random(n=4)]
    board = read(tmp_path, *records)
    (table,) = board.tables
    assert table.informative == "no power"
    said = " ".join(lines_above(table))
    assert "too few to tell any method from random, or from the best trivial control, rule, in" in said
    assert said.count("too few to tell any method") == 1 and "told apart from random" not in said
    assert board.overall()[0].method == "a"  # it is ranked all the same


def test_without_a_control_at_random_or_a_headline_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record("a", draw(1)), record("b", draw(2))]
    assert only_table(tmp_path / "no_control", *records).informative == "unknown"
    declared(monkeypatch, headline=False)
    assert only_table(tmp_path / "no_headline", *records, at_random()).informative == "unknown"


def test_programs_are_told_for_every_table(tmp_path: Path) -> None:
    good, bad = record("good", draw(1) + 0.2), record("bad", draw(2))
    nothing = [record("good", draw(4), task="empty"), at_random(5, task="empty")]
    board = read(tmp_path, good, bad, at_random(), *nothing)
    rows = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    assert {(row["task"], row["informative"]) for row in rows} == {("made_up", "yes"), ("empty", "no")}
    parsed = json.loads(render(board, "json"))
    (told,) = (entry for entry in parsed["against_controls"] if entry["task"] == "made_up")
    assert told["informative"] == "yes" and told["trivial"] is None
    assert told["random"]["better"] == ["good"] and told["random"]["metric"] == METRIC
    assert [level["uninformative"] for level in parsed["levels"]] == [["empty, heads, no_model, n = 16"]]


# --- is it better than a rule that is no attribution? -----------------------------------------------------------------


def rules() -> list[Record]:
    return [
        record("weak_rule", draw(6) + 0.02, control_kind="trivial"),
        record("strong_rule", draw(7) + 0.15, control_kind="trivial"),
        record("shuffled", draw(8) + 0.4, control_kind="matched"),
    ]


def test_methods_that_are_no_better_than_the_best_rule_are_named(tmp_path: Path) -> None:
    methods = [record("best", draw(1) + 0.3), record("middle", draw(2) + 0.15), record("low", draw(3) + 0.06)]
    table = only_table(tmp_path, *methods, *rules(), at_random())
    said = " ".join(lines_above(table))
    title = METRICS[METRIC].title
    assert f"Not significantly better than the best trivial control, strong_rule, in {title}: low, middle." in said


def test_it_is_said_where_every_method_is_better(tmp_path: Path) -> None:
    table = only_table(tmp_path, record("best", draw(1) + 0.3), *rules(), at_random())
    assert "Every method is significantly better than the best trivial control, strong_rule" in lines_above(table)[1]


# --- what else is said ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_says_what_a_method_sees(tmp_path: Path, form: str) -> None:
    much = record("much", draw(1) + 0.2, sees=["answer", "foil", "counterfactual"])
    text = render(read(tmp_path, much, record("little", draw(2), sees=[]), record("unknown", draw(3))), form)
    assert ("answer, foil, counterfactual" if form in ("csv", "json") else "answer, foil, cf") in text
    assert "nothing" in text
    if form == "md":
        assert "| method | sees |" in text and "| unknown |  |" in text and "**sees**: what a method sees" in text


def test_where_nothing_is_known_of_it_there_is_no_column(tmp_path: Path) -> None:
    board = read(tmp_path, record("a", draw(1)), record("b", draw(2)))
    assert "sees" not in render(board)
    assert {row["sees"] for row in board.rows()} == {None}


def test_effective_examples_stand_beside_n_where_they_are_known(tmp_path: Path) -> None:
    known = only_table(tmp_path / "known", record("a", draw(1), n_eff=11.4))
    assert known.title == "made_up, heads, no_model, n = 16 (n_eff 11)"
    assert only_table(tmp_path / "unknown", record("a", draw(1))).title == "made_up, heads, no_model, n = 16"
    (row,) = csv.DictReader(io.StringIO(render(Board.read(tmp_path / "known"), "csv")))
    assert row["n_eff"] == "11.4"


def test_ties_are_told_from_one_percent_on(tmp_path: Path) -> None:
    records = [
        record("clean", draw(1), ties=0.01),
        record("tied", draw(2), ties=0.12),
        record("rounded", draw(3), ties=0.4, noise=0.3),
    ]
    said = " ".join(lines_above(only_table(tmp_path, *records)))
    assert "tied (12 %)" in said and "rounded (40 %, 30 % below the noise floor)" in said and "clean" not in said


def test_nothing_is_bold_where_the_best_goes_beyond_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record("good", draw(1) + 0.3), record("bad", draw(2))]
    (good, bad) = records

    def bold(folder: str, **changes: Any) -> set[str]:
        declared(monkeypatch, **changes)
        table = only_table(tmp_path / folder, *records)
        (shown,) = (r for r in table.records if r.cell.method == good.cell.method)
        title = METRICS[METRIC].title
        beyond = METRIC in table.beyond_perfect
        assert (f"Nothing is bold in {title}: a value goes beyond" in " ".join(lines_above(table))) == beyond
        return table.bold(shown)

    value = good.aggregates[METRIC].value
    assert METRIC in bold("none")
    assert METRIC in bold("at", perfect=value)
    assert METRIC not in bold("above", perfect=value - 0.01)
    board = Board.read(tmp_path / "above")
    (entry,) = (e for e in json.loads(render(board, "json"))["comparisons"] if e["metric"] == METRIC)
    assert entry["best"] == []
    assert METRIC not in bold("below", better="lower", perfect=bad.aggregates[METRIC].value + 0.01)
