"""The verdict in words: who cannot be told from the best, how far others are behind, and when nothing can be said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attriboard.board import verdict_wording
from attriboard.board.board import Board
from attriboard.board.formats import FORMATS, render
from attriboard.board.significance import equal, without_rounding
from attriboard.board.verdict import LevelVerdict, Place, told_apart, verdicts
from attriboard.measurements.registry import METRICS
from attriboard.records.record import Record
from attriboard.stats.ranks import win_shares, wins_of
from tests.bench.boards import METRIC, ablation, faithfulness, record, speed
from tests.board.test_standing import N, draw, read

TASKS = ("one", "two", "three", "four", "five", "six")
OTHER = "log_cmd"


@pytest.fixture(autouse=True)
def headline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drop in p makes the headline and ranks; no other metric does."""
    for name, metric in list(METRICS.items()):
        changes = {"headline": name == METRIC, "ranks": name == METRIC}
        changes |= {"shown": True, "perfect": None} if name == METRIC else {}
        monkeypatch.setitem(METRICS, name, dataclasses.replace(metric, **changes))


def centered(seed: int, spread: float = 0.02) -> np.ndarray:
    """Noise ``[N]`` whose mean is 0."""
    noise = np.random.default_rng(seed).uniform(-spread, spread, size=N)
    return noise - noise.mean()


def costing(forwards: float) -> Any:
    return speed(forward_equivalents=forwards)


def known(task: str, **changes: Any) -> list[Record]:
    """A is best, B tied with it, C worse by 0.2 on average, a rule by 0.3, and random scores by 0.4."""
    seed, base = sum(map(ord, task)), 0.3
    shared = centered(seed)

    def one(method: str, behind: float, own: int, forwards: float, **kinds: Any) -> Record:
        drops = base - behind + shared + centered(seed + own, 0.01)
        return record(method, drops, task=task, measurements=(ablation(drops), costing(forwards)), **kinds, **changes)

    return [
        one("A", 0.0, 1, 4.0),
        one("B", 0.0005, 2, 2.0),
        one("C", 0.2, 3, 1.0),
        one("rule", 0.3, 4, 0.0, control_kind="trivial"),
        one("random", 0.4, 5, 0.0, control_kind="random"),
    ]


def everywhere(tasks: Iterable[str] = TASKS) -> list[Record]:
    return [one for task in tasks for one in known(task)]


def only(board: Board) -> LevelVerdict:
    (verdict,) = verdicts(board)
    return verdict


def by_method(verdict: LevelVerdict) -> dict[str, Place]:
    return {place.method: place for place in verdict.places}


# --- a known outcome ------------------------------------------------------------------------------------------------


def test_the_best_its_equal_and_the_worse_are_told_as_they_were_made(tmp_path: Path) -> None:
    verdict = only(read(tmp_path, *everywhere()))
    assert (verdict.level, verdict.metric, verdict.tables, verdict.of, verdict.blocks) == ("heads", METRIC, 6, 6, 6)
    assert [place.method for place in verdict.never_worse] == ["A", "B"]
    assert [place.method for place in verdict.places] == ["A", "B", "C", "rule", "random"]
    places = by_method(verdict)
    assert {m: (p.best, p.tables) for m, p in places.items()} == {
        **dict.fromkeys("AB", (6, 6)),
        **dict.fromkeys(("C", "rule", "random"), (0, 6)),
    }
    for method, behind in (("A", 0.0), ("B", 0.0005), ("C", 0.2), ("rule", 0.3), ("random", 0.4)):
        place = places[method]
        assert all(value == pytest.approx(behind, abs=1e-9) for value in (place.behind, place.least, place.most))
    assert [(p.better, p.against) for p in places.values()] == [(6, 6)] * 3 + [(0, 0)] * 2
    assert [p.forwards for p in places.values()] == [4.0, 2.0, 1.0, 0.0, 0.0]
    assert verdict.best_control == places["rule"]
    assert verdict.undecided == {} and verdict.thin == () and verdict.passed_over == ()


def test_the_words_are_those_of_the_numbers(tmp_path: Path) -> None:
    text = render(read(tmp_path, *everywhere()))
    title = METRICS[METRIC].title
    assert (
        f"**heads**: by {title} (higher is better), 6 of 6 tables (6 tasks and models). Not told from the best: A and "
        "B (significantly worse than the best in no table; every other method is in at least one). By wins "
        f"({title}) A leads ("
    ) in text
    assert f"| method | beside the best | behind the best ({title}) | better than the rules | forwards |" in text
    assert "| A | 6 of 6 | 0.000 (0.000 to 0.000) | 6 of 6 | 4.0 |" in text
    assert "| C | 0 of 6 | 0.200 (0.200 to 0.200) | 6 of 6 | 1.0 |" in text
    assert "| *rule* | 0 of 6 | 0.300 (0.300 to 0.300) |  | 0.0 |" in text
    assert "| *random* | 0 of 6 | 0.400" not in text  # of the controls, the one that stands best
    assert text.index("## Verdict") < text.index("records, 0 failed") < text.index("## Overall")


@pytest.mark.parametrize("form", ["md", "html"])
def test_a_level_has_at_most_twelve_lines(tmp_path: Path, form: str) -> None:
    many = [record(f"m{i}", 0.3 - 0.02 * i + centered(i), task=task) for i in range(12) for task in ("one", "two")]
    thin = [record("thin", draw(1), task=task) for task in ("nine",)]
    controls = [record("rule", draw(9) - 0.1, task=task, control_kind="trivial") for task in ("one", "two")]
    board = read(tmp_path, *many, *controls, *thin)
    verdict = only(board)
    shown = verdict_wording.rows(verdict)
    assert [place.method for place, _ in shown] == [*(f"m{i}" for i in range(6)), "rule"]
    assert 4 + len(shown) <= 12  # beside them the paragraphs above and below, and the head with its rule
    assert "Further methods, and how far they are behind the best: m6 0.12" in verdict_wording.ending(verdict)
    assert "Further methods, and how far they are behind the best: m6 0.12" in render(board, form)


def test_programs_are_told_the_same(tmp_path: Path) -> None:
    board = read(tmp_path, *everywhere())
    parsed = json.loads(render(board, "json"))
    (told,) = parsed["verdict"]
    places = by_method(only(board))
    assert {p["method"]: (p["best"], p["behind"], p["forwards"]) for p in told["places"]} == {
        m: (p.best, p.behind, p.forwards) for m, p in places.items()
    }
    assert parsed["told_apart"]["headline_columns"] == {"columns": 0, "of": 6}


def test_lower_is_better_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, METRIC, dataclasses.replace(METRICS[METRIC], better="lower"))
    verdict = only(read(tmp_path, *(r for r in everywhere(TASKS[:2]) if r.cell.method != "random")))
    assert [place.method for place in verdict.places] == ["rule", "C", "B", "A"]
    assert by_method(verdict)["A"].behind == pytest.approx(0.3, abs=1e-9)


# --- who is told from whom by wins ----------------------------------------------------------------------------------


def test_by_wins_the_equal_one_is_not_told_from_the_best_and_the_worse_are(tmp_path: Path) -> None:
    orders = dict(zip(TASKS, (0.001, -0.001, 0.001, -0.001, 0.001, -0.001)))  # A and B win three times each
    records = [
        one
        for task, gap in orders.items()
        for one in (
            record("A", 0.3 + centered(1), task=task),
            record("B", 0.3 - gap + centered(2), task=task),
            record("C", 0.1 + centered(3), task=task),
            record("D", 0.0 + centered(4), task=task),
        )
    ]
    board = read(tmp_path, *records)
    places = by_method(only(board))
    assert not places["A"].behind_by_wins and not places["B"].behind_by_wins
    assert places["C"].behind_by_wins and places["D"].behind_by_wins
    text = render(board)
    assert "A leads (" in text and "B cannot be told from it (95 % interval of the difference)." in text


def test_without_intervals_nothing_is_said_of_wins(tmp_path: Path) -> None:
    board = read(tmp_path, *everywhere(TASKS[:2]))
    assert {place.behind_by_wins for place in only(board).places} == {None}
    assert "leads (" not in render(board)


def test_how_far_a_share_of_wins_is_behind_at_least() -> None:
    always = np.stack([wins_of(np.array([0.0, 1.0, 2.0])) for _ in range(8)])
    found = win_shares(always, range(8), resamples=200)
    assert found.behind[0] == 0 and (found.behind[1:] > 0).all()
    assert np.allclose(found.behind, found.wins[0] - found.wins)  # every draw is the same
    turns = np.stack([wins_of(np.array([i % 2, 1 - i % 2, 2.0])) for i in range(8)])
    assert win_shares(turns, range(8), resamples=200).behind[:2].max() <= 0
    assert np.isnan(win_shares(turns[:2], range(2)).behind).all()


# --- when little can be said ----------------------------------------------------------------------------------------


def test_too_few_examples_give_no_verdict(tmp_path: Path) -> None:
    few = [record(m, draw(i, 4) + 0.3 - 0.1 * i) for i, m in enumerate("abc")]
    board = read(tmp_path, *few)
    verdict = only(board)
    assert (verdict.tables, verdict.of, verdict.undecided, verdict.places) == (0, 1, {"few": 1}, ())
    said = "no verdict by drop in p (higher is better): 1 table has too few examples to tell methods apart."
    assert f"**heads**: {said}" in render(board) and f"<p>heads: {said}</p>" in render(board, "html")
    assert told_apart(board.tables, headlines=True) == (0, 1)


def test_tables_that_say_nothing_do_not_count_and_are_counted(tmp_path: Path) -> None:
    noise = [record(m, draw(i), task="noise") for i, m in enumerate("ab")]
    noise += [record("random", draw(7), task="noise", control_kind="random")]
    few = [record(m, draw(i, 4), task="few") for i, m in enumerate("ab")]
    same = [record(m, draw(3), task="same") for m in "ab"]
    verdict = only(read(tmp_path, *everywhere(TASKS[:2]), *noise, *few, *same))
    assert (verdict.tables, verdict.of) == (2, 5)
    assert verdict.undecided == {"random": 1, "few": 1, "alike": 1}
    assert (
        "Not counted: 1 table has no best method that can be compared; 1 table has too few examples to tell methods "
        "apart; 1 table tells no method from random scores."
    ) in verdict_wording.ending(verdict)


def test_values_beyond_the_model_leave_the_word_to_the_next_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, METRIC, dataclasses.replace(METRICS[METRIC], perfect=0.25))
    monkeypatch.setitem(METRICS, OTHER, dataclasses.replace(METRICS[OTHER], ranks=True))
    both = [
        record(m, drops, measurements=(ablation(drops), faithfulness(0.9 - 0.2 * i + centered(i)), speed()))
        for i, m in enumerate("abc")
        for drops in [0.3 - 0.1 * i + centered(i)]
    ]
    board = read(tmp_path / "both", *both)
    verdict = only(board)
    assert (verdict.metric, verdict.passed_over, verdict.tables) == (OTHER, (METRIC,), 1)
    assert [place.method for place in verdict.places] == ["a", "b", "c"]
    assert "; no table says who is best by drop in p." in render(board)
    alone = only(read(tmp_path / "alone", *everywhere(TASKS[:1])))
    assert (alone.metric, alone.tables, alone.undecided) == (METRIC, 0, {"beyond": 1})


def test_a_control_that_is_best_is_said_to_be(tmp_path: Path) -> None:
    rule = record("rule", 0.4 + centered(1), control_kind="trivial")
    text = render(read(tmp_path, rule, *(record(m, 0.1 + centered(i)) for i, m in enumerate("ab", 2))))
    assert "Every published method is significantly worse than the best in every table: a control is the best." in text
    assert "| *rule* | 1 of 1 | 0.000 |  |" in text


def test_where_no_method_is_beside_the_best_everywhere_the_most_frequent_is_named(tmp_path: Path) -> None:
    tables = [
        record(m, 0.3 - 0.1 * place + centered(place), task=task)
        for task, order in (("one", "abc"), ("two", "abc"), ("three", "bac"))
        for place, m in enumerate(order)
    ]
    text = render(read(tmp_path, *tables))
    assert "No method stands beside the best in every table; most often a does, in 2 of 3." in text


def test_methods_in_fewer_than_half_of_the_tables_are_named_apart(tmp_path: Path) -> None:
    thin = record("thin", 0.39 + centered(3), task="one")
    verdict = only(read(tmp_path, *everywhere(TASKS[:3]), thin))
    assert verdict.thin == ("thin",) and "thin" not in by_method(verdict)
    assert "In fewer than half of these tables: thin." in verdict_wording.ending(verdict)


def test_a_level_without_a_ranking_metric_has_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, METRIC, dataclasses.replace(METRICS[METRIC], headline=False, ranks=False))
    board = read(tmp_path, *everywhere(TASKS[:1]))
    assert verdicts(board) == [] and "**heads**:" not in render(board)
    assert all("of headlines" not in render(board, form) for form in FORMATS)


def test_a_smoke_test_has_no_verdict_by_name(tmp_path: Path) -> None:
    board = read(tmp_path, *everywhere(TASKS[:1]))
    smoke = dataclasses.replace(board.sources[0], about={"suite": "made_up", "smoke": True})
    text = render(dataclasses.replace(board, sources=(smoke,)))
    assert "## What so few examples say" in text and "## Verdict" not in text


# --- the share of columns that tell methods apart ---------------------------------------------------------------------


def worse(*behind: float, task: str, **changes: Any) -> list[Record]:
    """Methods so far behind the best, and a control far behind them all, which counts for nothing."""
    methods = [record(f"m{i}", 0.3 - gap + centered(i), task=task, **changes) for i, gap in enumerate(behind)]
    return [*methods, record("rule", centered(99) - 0.2, task=task, control_kind="trivial", **changes)]


@pytest.mark.parametrize(
    ("behind", "counts"),
    [
        ((0.0, 0.2), 1),  # one of two
        ((0.0, 0.0, 0.2), 0),  # one of three
        ((0.0, 0.2, 0.2), 1),
        ((0.0, 0.0, 0.2, 0.2), 1),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_a_column_counts_where_half_of_the_methods_are_told_from_the_best(
    tmp_path: Path, behind: tuple[float, ...], counts: int
) -> None:
    board = read(tmp_path, *worse(*behind, task="one"))
    assert told_apart(board.tables, headlines=True) == (counts, 1)


def test_the_share_is_printed_of_headlines_and_of_all_tested_columns(tmp_path: Path) -> None:
    board = read(tmp_path, *worse(0.0, 0.2, task="one"), *worse(0.0, 0.0, task="two"))
    assert told_apart(board.tables, headlines=True) == (1, 2)
    tested = told_apart(board.tables)
    assert tested.of > 2 and not any(name in t.comparisons for t in board.tables for name in ("seconds_per_example",))
    said = f"In 1 of 2 columns (50 %) of headlines, and in {tested.columns} of {tested.of} columns"
    assert said in render(board) and said in render(board, "html")


def test_a_column_of_one_method_or_beyond_the_model_or_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told_apart(read(tmp_path / "one", *worse(0.0, task="one")).tables, headlines=True) == (0, 0)
    same = [record(m, draw(3), task="same") for m in "ab"]
    assert told_apart(read(tmp_path / "same", *same).tables, headlines=True) == (0, 1)
    monkeypatch.setitem(METRICS, METRIC, dataclasses.replace(METRICS[METRIC], perfect=0.25))
    beyond = read(tmp_path / "beyond", *worse(0.0, 0.2, task="one"))
    assert told_apart(beyond.tables, headlines=True) == (0, 1)


# --- rounding is no difference --------------------------------------------------------------------------------------


def test_what_differs_by_rounding_is_equal_in_bold_ranks_and_verdict(tmp_path: Path) -> None:
    drops = 0.3 + centered(1)
    twins = [record("a", drops), record("b", drops - 1e-9), record("c", drops - 0.2)]
    board = read(tmp_path, *twins)
    (table,) = board.tables
    test = table.comparisons[METRIC]
    (pair,) = (p for p in test.pairs if {p.first, p.second} == {twins[0].filename, twins[1].filename})
    assert pair.adjusted < 0.05 and pair.difference != 0  # it is the same on every example
    assert test.best == {twins[0].filename, twins[1].filename}
    assert table.ranks(METRIC) == {"a": 0.25, "b": 0.25, "c": 1.0}
    assert [place.method for place in only(board).never_worse] == ["a", "b"]


def test_no_method_is_better_than_a_control_by_rounding(tmp_path: Path) -> None:
    drops = centered(1)
    records = [record("a", drops + 1e-9), record("random", drops, control_kind="random")]
    (table,) = read(tmp_path, *records).tables
    found = table.against_random
    assert found is not None and found.has_power and found.better == ()


def test_values_are_equal_up_to_the_seventh_figure() -> None:
    assert equal(0.5, 0.5 + 4e-7) and not equal(0.5, 0.5 + 6e-7)
    assert equal(0.0, 9e-10) and not equal(0.0, 2e-9)
    plain = without_rounding(np.array([0.3, 0.1, 0.3 + 1e-9, 0.2]))
    assert plain.tolist() == [0.3, 0.1, 0.3, 0.2]
