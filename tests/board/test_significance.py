"""What a board says of differences: found where planted, not where there are none, never across other examples."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from attriboard.board import figures, significance
from attriboard.board.agreement import TOP, between_methods, between_seeds, between_tasks
from attriboard.board.board import Board
from attriboard.board.formats import FORMATS, render
from attriboard.board.significance import ColumnTest
from attriboard.measurements.base import Kept
from attriboard.measurements.registry import METRICS
from attriboard.records.record import Record
from attriboard.records.store import Folder
from attriboard.stats.clusters import Clusters
from attriboard.stats.ranks import critical_difference
from attriboard.stats.tests import holm, paired_test, smallest_p
from tests.bench.boards import COSTS, METRIC, ablation, faithfulness, record, speed


def board(path: Path, records: Sequence[Record]) -> Board:
    folder = Folder(path)
    folder.claim("made_up")
    for one in records:
        folder.write(one)
    return Board.read(path)


def compared(*records: Record) -> ColumnTest:
    return significance.compare_columns(records, [METRIC])[METRIC]


def draw(seed: int, n: int = 16) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(0.1, 0.05, size=n), -0.3, 0.4)


def planted(n: int = 16) -> list[Record]:
    """Two good methods that differ by noise alone, one worse on every example, and a control that is worse still."""
    base, noise = draw(0, n), 0.03 * np.random.default_rng(1).normal(size=n)
    worse = 0.05 + 0.01 * np.random.default_rng(2).normal(size=n)
    return [
        record("good", base),
        record("as_good", base + noise - noise.mean() - 0.001),
        record("worse", base - worse),
        record("chance", base - 2 * worse, control=True),
    ]


# --- one column -----------------------------------------------------------------------------------------------------


def test_a_planted_difference_is_found_and_a_difference_of_noise_is_not() -> None:
    records = planted()
    names = {r.filename: r.cell.method for r in records}
    found = compared(*records)
    assert {names[f] for f in found.best} == {"good", "as_good"}
    p = {frozenset((names[x.first], names[x.second])): x.adjusted for x in found.pairs}
    assert p[frozenset(("good", "as_good"))] > 0.05
    assert all(value <= 0.05 for pair, value in p.items() if pair & {"worse", "chance"})


def test_every_pair_is_tested_once_and_holm_corrects_over_all_of_them() -> None:
    records = [record(f"m{i}", draw(i)) for i in range(5)]
    found = compared(*records)
    assert (found.examples, found.items, found.methods, len(found.pairs)) == (16, 16, 5, 10)
    values = {r.filename: draw(i) for i, r in enumerate(records)}
    for pair in found.pairs:
        assert pair.p == pytest.approx(paired_test(values[pair.first] - values[pair.second]))
        assert pair.difference == pytest.approx(values[pair.first].mean() - values[pair.second].mean())
    assert [pair.adjusted for pair in found.pairs] == holm([pair.p for pair in found.pairs])


def test_equal_methods_are_seldom_told_apart() -> None:
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        records = [record(f"m{i}", np.clip(rng.normal(0.1, 0.1, size=12), -0.4, 0.45)) for i in range(4)]
        alarms += any(pair.adjusted <= 0.05 for pair in compared(*records).pairs)
    assert alarms <= scipy.stats.binom.ppf(0.999, 40, 0.05)


def test_records_with_other_examples_are_never_paired() -> None:
    base = draw(0)
    items = [f"item {i}" for i in range(16)]
    first, second = record("a", base), record("b", base - 0.05)
    for odd in (
        record("c", base, data="other data"),
        record("c", base, items=items[::-1]),
        record("c", base[:15]),
        record("c", base, task="other"),
    ):
        found = compared(first, second, odd)
        assert {x for pair in found.pairs for x in pair[:2]} == {first.filename, second.filename}
        assert METRIC not in significance.compare_columns([first, odd], [METRIC])


def test_a_best_row_that_cannot_be_compared_leaves_the_column_unmarked() -> None:
    base = draw(0)
    found = compared(record("a", base), record("b", base - 0.05), record("best", base + 0.1, data="other data"))
    assert len(found.pairs) == 1 and not found.best


def test_examples_of_one_item_count_once() -> None:
    base = draw(0)
    alone = compared(record("a", base), record("b", base - 0.05))
    shared = [str(i // 4) for i in range(16)]
    together = compared(record("a", base, items=shared), record("b", base - 0.05, items=shared))
    assert alone.has_power and len(alone.best) == 1
    assert (together.examples, together.items) == (16, 4)
    assert together.pairs[0].p == 2 / 2**4 and not together.has_power and not together.best


def cross_fitted(method: str, drops: np.ndarray, groups: Sequence[str], frames: Sequence[str]) -> Record:
    """A record whose rows are its examples, each judged by the scores of a train group."""
    measured = ablation(drops).model_copy(update={"train_groups": list(groups)})
    return record(method, drops, measurements=[measured, speed()], frames=list(frames))


def test_rows_that_share_frames_and_train_groups_are_tested_by_the_multiway_variance() -> None:
    frames, groups = [f"f{i % 5}" for i in range(16)], [f"t{i % 4}" for i in range(16)]
    first, second = draw(0), draw(0) - 0.03 + draw(1) / 4
    a, b = cross_fitted("a", first, groups, frames), cross_fitted("b", second, groups, frames)
    found = compared(a, b)
    ways = {"item": [str(i) for i in range(16)], "frame": frames, "train": groups}
    assert found.pairs[0].p == pytest.approx(paired_test(first - second, Clusters(16, ways)))
    assert (found.examples, found.items, found.frames, found.train_groups) == (16, 16, 5, 4)
    assert found.smallest == smallest_p(Clusters(16, ways))
    other = cross_fitted("b", second, groups[::-1], frames)
    both = Clusters(16, ways | {"other_train": groups[::-1]})
    assert compared(a, other).pairs[0].p == pytest.approx(paired_test(first - second, both))
    assert METRIC not in significance.compare_columns([a, cross_fitted("b", second, groups, frames[::-1])], [METRIC])


@pytest.mark.parametrize(("n", "methods", "can"), [(5, 2, False), (6, 2, True), (8, 4, True), (8, 5, False)])
def test_too_few_examples_for_any_pair_mark_nothing(n: int, methods: int, can: bool) -> None:
    """2 / 2^n times the number of pairs against 0.05."""
    base = draw(0, n)
    found = compared(*(record(f"m{i}", base - 0.05 * i) for i in range(methods)))
    assert found.has_power == can == bool(found.best)
    best = min(pair.adjusted for pair in found.pairs)
    assert (best <= 0.05) == can  # all differences are in one direction: the smallest there can be


def test_equal_columns_are_not_marked() -> None:
    assert not compared(record("a", draw(0)), record("b", draw(0))).best


def test_only_statistics_over_examples_that_have_a_better_end_are_tested() -> None:
    asked = ["sufficiency_log_area", METRIC, *COSTS, *(name for name, m in METRICS.items() if m.better == "neither")]
    assert set(significance.compare_columns(planted(), asked)) == {METRIC}


# --- the board ------------------------------------------------------------------------------------------------------


def test_the_best_is_bold_in_every_format_and_pairs_stand_in_the_json(tmp_path: Path) -> None:
    found = board(tmp_path, planted())
    marks = {"md": r"\*\*0", "latex": r"\\textbf{0", "html": "<b>0"}
    for form, mark in marks.items():
        lines = [line for line in re.split(r"\n(?! *<td>)", render(found, form)) if re.search(mark, line)]
        methods = sorted(
            re.split(r"[^a-z_\\]", line.replace("<tr>", "").replace("<td>", "").strip("| \n"))[0] for line in lines
        )
        assert [m.replace("\\", "") for m in methods] == ["as_good", "good"], (form, lines)
    comparisons = {each["metric"]: each for each in json.loads(render(found, "json"))["comparisons"]}
    assert comparisons.keys() == {METRIC, "ablation_drop_raw"}
    for comparison in comparisons.values():  # what random sets cost is the same everywhere, so both say the same
        assert comparison["best"] == ["as_good", "good"] and len(comparison["pairs"]) == 6
        assert all(0 < pair["p"] <= pair["p_adjusted"] <= 1 for pair in comparison["pairs"])


def test_a_board_that_cannot_tell_says_so_above_the_table(tmp_path: Path) -> None:
    base = draw(0, 8)
    text = render(board(tmp_path, [record(f"m{i}", base - 0.05 * i) for i in range(5)]))
    said = "n = 8 cannot tell 5 methods apart (drop in p, raw drop in p): the smallest p-value of a paired test on so "
    assert said + "few, 0.0078, times 10 pairs, is above 0.05." in text
    assert "**0" not in text
    assert text.index(said) < text.index("| m0 |", text.index("## Tables"))


def test_a_table_of_repetitions_counts_examples_and_the_legend_says_what_brackets_hold(tmp_path: Path) -> None:
    def in_halves(method: str, drops: np.ndarray) -> Record:
        """Two examples of each half, each judged twice."""
        names = {"base_items": list("abcd") * 2, "train_groups": [f"group {i // 2}" for i in range(8)]}
        one = record(method, drops, measurements=[ablation(drops).model_copy(update=names), speed()])
        kept = Kept(seen=3, correct=3, passing=2, kept=2, by_subset={"": (2, 3, 3)})
        halves = {"train": kept, "test": kept}
        settings = one.settings.model_copy(update={"folds": 2, "repetitions": 2})
        return one.model_copy(update={"kept": halves, "settings": settings, "items": ["c", "d"], "subsets": [""] * 2})

    text = render(board(tmp_path / "crossed", [in_halves("a", draw(0, 8)), in_halves("b", draw(1, 8))]))
    assert "### made_up, heads, no_model, n = 4\n" in text
    assert "Of 6 examples 6 are answered, and the counterfactuals of 4 of these by their foil." in text
    assert (
        "4 of them, in two halves of 2 groups, are judged 2 times, each time by the scores of a group of the other"
        in text
    )
    few = "n = 4 cannot tell 2 methods apart (drop in p, raw drop in p): the smallest p-value of a paired test on so "
    assert few + "few, 0.12, which is above 0.05." in text  # of four base items: 2 / 2^4
    plain = render(board(tmp_path / "plain", planted()))
    for said in ("those judged by the scores of one group", "another for every group"):
        assert said in text and said not in plain


def test_the_order_of_records_changes_nothing(tmp_path: Path) -> None:
    records = [*planted(), record("good", draw(3), task="other"), record("worse", draw(4), task="other")]
    for form in FORMATS:
        here, there = (tmp_path / name / form for name in ("here", "there"))
        assert render(board(here, records), form) == render(board(there, records[::-1]), form)


# --- ranks over tables ----------------------------------------------------------------------------------------------


def judged(method: str, values: np.ndarray, **changes: object) -> Record:
    """A record whose log-CMD is 0.5 minus the mean of ``values``; necessity ranks too, and is the same for all."""
    return record(method, values, measurements=(faithfulness(0.5 + values), speed()), **changes)


def test_the_rank_test_of_a_level_is_that_of_its_tables(tmp_path: Path) -> None:
    order = {"one": "abc", "two": "abc", "three": "acb", "four": "bac"}
    records = [
        judged(method, draw(0) - 0.02 * place, task=task)
        for task, names in order.items()
        for place, method in enumerate(names)
    ]
    records.append(judged("only_here", draw(0), task="one"))
    found = board(tmp_path, records)
    test = found.rank_tests()["heads"]
    assert (test.tables, test.blocks, test.methods) == (4, 4, ("a", "b", "c"))
    assert test.result is not None
    assert test.result.mean_ranks == pytest.approx([1.25, 2.0, 2.75])
    ranks = np.array([[names.index(m) for m in "abc"] for names in order.values()])
    assert test.result.statistic == pytest.approx(scipy.stats.friedmanchisquare(*ranks.T).statistic)
    text = render(found)
    assert "a 1.25, b 2.00, c 2.75" in text and f"closer than {critical_difference(3, 4):.2f}" in text


def test_tables_of_one_task_and_model_are_one_block(tmp_path: Path) -> None:
    records = [
        judged(m, draw(seed) - 0.02 * i, task=task, seed=seed, data=f"{seed}")
        for task in ("one", "two")
        for seed in range(3)
        for i, m in enumerate("abc")
    ]
    test = board(tmp_path, records).rank_tests()["heads"]
    assert (test.tables, test.blocks) == (6, 2)
    assert test.result is not None and test.result.critical_difference == critical_difference(3, 2)


def test_a_single_task_has_no_rank_test(tmp_path: Path) -> None:
    found = board(tmp_path, [judged(m, draw(0) - 0.02 * i) for i, m in enumerate("abc")])
    assert found.rank_tests()["heads"].result is None
    assert "No test of the ranks" in render(found)


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_seeds_of_one_cell_are_summed_up_in_one_table(tmp_path: Path) -> None:
    scores = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0], [4.0, 3.0, 2.0, 1.0]]
    drops = [draw(i) for i in range(3)]
    records = [
        record(method, drops[i] - shift, seed=i, data=f"{i}", sketch=scores[i])
        for method, shift in (("a", 0.0), ("b", 0.1))
        for i in range(3)
    ]
    found = board(tmp_path, records)
    (summary,) = found.over_seeds()
    assert len(found.tables) == 3 and summary.seeds == ["0", "1", "2"]
    means = [d.mean() for d in drops]
    (fields,) = json.loads(render(found, "json"))["over_seeds"]
    row = next(r for r in fields["rows"] if r["method"] == "a")
    held = row["metrics"][METRIC]
    assert (row["seeds"], held["seeds"]) == (3, 3)
    assert held["mean"] == pytest.approx(np.mean(means)) and held["standard_deviation"] == pytest.approx(
        np.std(means, ddof=1)
    )
    pairs = [scipy.stats.spearmanr(scores[i], scores[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert row["rank_correlation"] == pytest.approx(np.mean(pairs))
    text = render(found)
    assert "### made_up, heads, no_model, seeds 0, 1, 2" in text
    assert f"| a | 3 | {np.mean(means):.3f} ± {np.std(means, ddof=1):.3f} |" in text
    assert text.index("## Over seeds") > text.index("## Tables")
    assert "one draw for each seed" in text
    for form, sign in (("html", "±"), ("latex", r"$\pm$")):
        assert f"{np.mean(means):.3f} {sign} {np.std(means, ddof=1):.3f}" in render(found, form)


def test_one_seed_has_no_summary_and_other_settings_are_not_seeds(tmp_path: Path) -> None:
    found = board(tmp_path / "one", planted())
    assert not found.over_seeds() and "Over seeds" not in render(found) and "are one draw." in render(found)
    other = [record("a", draw(i), seed=i, data=f"{i}", replacement=("mean", "zero")[i]) for i in range(2)]
    assert not board(tmp_path / "two", other).over_seeds()


def test_the_same_seed_on_other_data_is_no_other_seed(tmp_path: Path) -> None:
    found = board(tmp_path, [record("ab"[i], draw(i), data=f"{i}") for i in range(2)])
    assert len(found.tables) == 2 and not found.over_seeds()


def test_models_built_from_seeds_are_one_model(tmp_path: Path) -> None:
    records = [
        record("a", draw(i), model=f"built-seed{i}", recipe="built", weights=f"w{i}", data=f"{i}", sketch=sketch)
        for i, sketch in enumerate(([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]))
    ]
    records.append(record("a", draw(5), model="other-model", weights="v"))
    (summary,) = board(tmp_path, records).over_seeds()
    assert summary.seeds == ["built-seed0", "built-seed1"]
    assert between_seeds(summary.rows[0][1]) is None  # other weights: their components are not the same ones
    assert summary.title == "made_up, heads, built, seeds built-seed0, built-seed1"


# --- agreement of scores --------------------------------------------------------------------------------------------


def test_agreement_between_methods_is_spearmans(tmp_path: Path) -> None:
    sketches = np.random.default_rng(0).normal(size=(3, 40)).round(1)
    records = [record(f"m{i}", draw(i), sketch=s.tolist()) for i, s in enumerate(sketches)]
    records += [record("flat", draw(9), sketch=[1.0] * 40), record("old", draw(8))]
    held, matrix = between_methods(records)
    assert [r.cell.method for r in held] == ["m0", "m1", "m2", "flat"]
    assert matrix[:3, :3] == pytest.approx(scipy.stats.spearmanr(sketches.T).statistic)
    assert np.isnan(matrix[3]).all()
    (entry,) = json.loads(render(board(tmp_path, records), "json"))["agreement"]
    assert len(entry["methods"]) == 4 and None in entry["rank_correlation"][0]
    assert between_methods(records[-1:])[0] == []


def components(best: int, n: int = 30) -> dict:
    """A sketch over n components and the twenty highest, which start at ``best``."""
    scores = np.zeros(n)
    scores[best : best + TOP] = np.arange(TOP, 0, -1)
    top = [(f"a0.h{i}", float(scores[i])) for i in np.argsort(-scores, kind="stable")[:TOP]]
    return {"sketch": scores.tolist(), "top": top}


def test_overlap_between_tasks_by_hand() -> None:
    records = [
        record("m", draw(0), task="color_tqa", **components(0)),
        record("m", draw(0), task="color_vqa", **components(5)),
        record("m", draw(0), task="color_vqa", model="another", weights="v", **components(5)),
        record("n", draw(0), task="color_tqa", **components(0)),
        record("m", draw(0), task="old"),
    ]
    (found,) = between_tasks(records)
    assert (found.method, found.first, found.second, found.shared) == ("m", "color_tqa", "color_vqa", 15 / 20)
    expected = scipy.stats.spearmanr(records[0].scores.sketch, records[1].scores.sketch).statistic
    assert found.correlation == pytest.approx(expected)
    assert between_tasks(records) == between_tasks(records[::-1])


def test_figures_of_agreement_are_drawn_and_named(tmp_path: Path) -> None:
    records = [
        record(m, draw(i) - shift, task=task, **components(i + shift_by))
        for i, m in enumerate(("first", "second"))
        for task, shift, shift_by in (("color_tqa", 0.0, 0), ("color_vqa", 0.1, 4))
    ]
    made = figures.draw(board(tmp_path / "records", records), tmp_path / "figures")
    names = [path.name for path in made]
    assert [n for n in names if n.endswith(".agreement.png")] == [
        f"{task}--heads--no_model--n---16.agreement.png" for task in ("color_tqa", "color_vqa")
    ]
    assert names[-1] == "heads.tasks.png"
    assert all(path.stat().st_size > 5_000 for path in made)
