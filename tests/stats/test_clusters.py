"""Rows that depend on each other: against loops over clusters, formulas for balanced layouts and small exact cases."""

from __future__ import annotations

import itertools
import json
import runpy
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from attriboard.errors import AttriboardError
from attriboard.stats.clusters import Clusters, cluster_sums, effective_n, spread_of_mean, train_share
from attriboard.stats.intervals import LEVEL, bootstrap_interval, nanmean, pseudo_values
from attriboard.stats.tests import FLIPS, at_random, gap_of_means, paired_test, smallest_p, unpaired_test

N = 24
RNG = np.random.default_rng(0)


def crossed_rows(n: int = N, seed: int = 0, train: int = 0) -> Clusters:
    """Rows of 9 items in 6 frames at random, and of ``train`` groups."""
    rng = np.random.default_rng(seed)
    ways = {"item": rng.integers(0, 9, n).tolist(), "frame": rng.integers(0, 6, n).tolist()}
    if train:
        ways["train"] = (np.arange(n) % train).tolist()
    return Clusters(n, ways)


# --- clusters -------------------------------------------------------------------------------------------------------


def test_labels_are_numbers_in_order_of_appearance_and_rows_without_a_name_stand_alone() -> None:
    found = Clusters(6, {"item": ["b", "", "a", "b", "", "a"], "frame": ["x", "x", "y", "", "y", ""]})
    assert found.labels["item"].tolist() == [0, 1, 2, 0, 3, 2]
    assert found.labels["frame"].tolist() == [0, 0, 1, 2, 1, 3]
    assert found.counts == {"item": 4, "frame": 4} and found.number == 4
    assert [g.tolist() for g in found.groups("item")] == [[0, 3], [1], [2, 5], [4]]
    assert [g.tolist() for g in found.groups("train")] == [[0], [1], [2], [3], [4], [5]]
    part = found.subset([5, 3, 2])
    assert part.labels["item"].tolist() == [0, 1, 0] and part.labels["frame"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("frames", [[], ["", "", "", ""], ["f", "f", "f", "f"]])
def test_one_frame_or_none_is_no_way(frames: list[str]) -> None:
    found = Clusters(4, {"item": list("aabb"), "frame": frames, "train": ["t"] * 4})
    assert set(found.labels) == {"item"} and not found.has_train
    assert found.single is not None and found.single.tolist() == [0, 0, 1, 1]


def test_a_way_that_is_nested_in_the_other_says_nothing_beyond_it() -> None:
    items, frames = list("aabbccdd"), list("xxxxyyyy")
    assert Clusters(8, {"item": items, "frame": frames}).single.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Clusters(8, {"item": frames, "frame": items}).single.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Clusters(8, {"item": items, "frame": list("xyxyxyxy")}).single is None
    assert Clusters(3).single.tolist() == [0, 1, 2]
    assert Clusters(4, {"train": list("aabb")}).single is None


def test_equal_clusters_are_equal_whatever_they_are_called() -> None:
    one = Clusters(3, {"item": ["a", "b", "a"]})
    assert one == Clusters(3, {"item": [1, 2, 1], "frame": []}) and hash(one) == hash(Clusters(3, {"item": [1, 2, 1]}))
    assert one != Clusters(3, {"item": ["a", "b", "b"]}) and one != Clusters(3, {"frame": ["a", "b", "a"]})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Clusters(3, {"item": ["a", "b"]}),
        lambda: Clusters(1, {"colour": ["a"]}),
        lambda: Clusters.of(Clusters(2), 3),
        lambda: Clusters(2).merged_train(Clusters(3)),
    ],
)
def test_what_does_not_fit_is_one_sentence(wrong) -> None:
    with pytest.raises(AttriboardError) as caught:
        wrong()
    assert str(caught.value).count(".") == 1


def test_a_difference_depends_on_the_train_groups_of_both_sides() -> None:
    a = Clusters(4, {"item": list("abcd"), "train": list("ttuu")})
    b = Clusters(4, {"item": list("abcd"), "train": list("vwvw")})
    both = a.merged_train(b)
    assert both.labels["train"].tolist() == [0, 0, 1, 1] and both.labels["other_train"].tolist() == [0, 1, 0, 1]
    assert a.merged_train(Clusters(4, {"train": ["1", "1", "2", "2"]})) is a
    without = a.test_side()
    assert set(without.labels) == {"item"} and without.merged_train(a) == a and a.merged_train(without) is a
    assert set(both.test_side().labels) == {"item"}


# --- the variance of a mean -----------------------------------------------------------------------------------------


def looped_term(values: np.ndarray, names: Sequence[Hashable]) -> float:
    """The jackknife over clusters, literally: the mean is taken anew without each of them."""
    n, whole = len(values), float(np.mean(values))
    moved = []
    for name in set(names):
        out = [i for i in range(n) if names[i] == name]
        rest_sum = sum(values[i] - whole for i in range(n) if i not in out)
        moved.append(rest_sum / (n - len(out)))
    return (len(moved) - 1) / len(moved) * sum(m * m for m in moved)


def looped_variance(values: np.ndarray, ways: dict[str, list]) -> float:
    """Inclusion and exclusion, without the correction of train groups; never below a one-way term."""
    total, ones = 0.0, []
    for size in range(1, len(ways) + 1):
        for some in itertools.combinations(ways.values(), size):
            term = looped_term(values, list(zip(*some)))
            total += term if size % 2 else -term
            ones += [term] if size == 1 else []
    return max(total, *ones)


def test_sums_of_clusters_are_those_of_a_loop() -> None:
    of, values = crossed_rows(), RNG.normal(size=(3, N))
    labels = of.labels["frame"]
    expected = [[row[labels == c].sum() for c in range(labels.max() + 1)] for row in values]
    assert cluster_sums(values, labels) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("seed", range(5))
def test_the_two_way_variance_is_that_of_a_loop(seed: int) -> None:
    of, values = crossed_rows(seed=seed), np.random.default_rng(seed).normal(size=(2, N))
    found = spread_of_mean(values, of).variance
    assert found == pytest.approx([looped_variance(row, dict(of.ways)) for row in values])


def test_the_variance_with_train_groups_is_that_of_a_loop_and_its_train_part_is_raised() -> None:
    of, values = crossed_rows(48, train=4), np.random.default_rng(3).normal(size=48)
    values = values + 2.0 * np.array(of.ways["train"])
    test = {way: names for way, names in of.ways.items() if way != "train"}
    whole, without = looped_variance(values, dict(of.ways)), looped_variance(values, test)
    kish = {way: 48**2 / sum(names.count(c) ** 2 for c in set(names)) for way, names in test.items()}
    held = np.prod([1 - 1 / k for k in kish.values()])
    assert whole > without
    expected = whole + (whole - without) * (1 / held - 1)
    assert float(spread_of_mean(values, of).variance) == pytest.approx(expected)
    assert train_share(values, of) == pytest.approx(1 - without / expected)


@pytest.mark.parametrize("size", [1, 4])
def test_of_equal_clusters_of_one_way_the_variance_is_that_of_their_means(size: int) -> None:
    values = RNG.normal(size=12 * size)
    found = spread_of_mean(values, Clusters(12 * size, {"item": np.repeat(np.arange(12), size).tolist()}))
    means = values.reshape(12, size).mean(1)
    assert float(found.variance) == pytest.approx(means.var(ddof=1) / 12)
    assert 1 <= float(found.df) <= 11


def test_in_a_balanced_two_way_layout_the_variance_is_that_of_the_mean_squares() -> None:
    """Searle, Casella and McCulloch 1992, table 4.3: E(MS rows) and E(MS columns) give the variance of the mean."""
    rows, columns = 8, 6
    values = RNG.normal(size=(rows, columns)) + 2 * RNG.normal(size=(rows, 1)) + RNG.normal(size=(1, columns))
    ways = {"item": np.repeat(np.arange(rows), columns).tolist(), "frame": np.tile(np.arange(columns), rows).tolist()}
    by_row, by_column = (values.mean(axis).var(ddof=1) / len(values.mean(axis)) for axis in (1, 0))
    n = rows * columns
    found = float(spread_of_mean(values.ravel(), Clusters(n, ways)).variance)
    assert found == pytest.approx(by_row + by_column - values.var(ddof=1) / n)


def test_what_nothing_depends_on_has_the_usual_variance_and_one_cluster_has_none() -> None:
    values = RNG.normal(size=10)
    assert float(spread_of_mean(values, Clusters(10)).variance) == pytest.approx(values.var(ddof=1) / 10)
    assert np.isnan(spread_of_mean(values, Clusters(10, {"item": ["a"] * 10})).variance)
    assert np.isnan(spread_of_mean(np.zeros((3, 0)), Clusters(0)).variance).all()


def test_few_clusters_that_make_up_the_variance_give_few_degrees_of_freedom() -> None:
    of = Clusters(20, {"item": np.arange(20).tolist()})
    even, one = np.tile([1.0, -1.0], 10), np.r_[50.0, np.tile([1.0, -1.0], 9), 1.0]
    assert float(spread_of_mean(even, of).df) == pytest.approx(19)
    assert 1 <= float(spread_of_mean(one, of).df) < 3


def test_the_variance_is_unbiased_where_rows_share_items_and_frames() -> None:
    of, rng = crossed_rows(120, seed=1), np.random.default_rng(2)
    item, frame = of.labels["item"], of.labels["frame"]
    draws = rng.normal(size=(3000, item.max() + 1))[:, item] + 0.7 * rng.normal(size=(3000, frame.max() + 1))[:, frame]
    draws += rng.normal(size=draws.shape)
    found = spread_of_mean(draws, of).variance.mean()
    assert found == pytest.approx(draws.mean(1).var(), rel=0.2)
    assert found > 3 * draws.var() / 120


# --- effective n and the train side ---------------------------------------------------------------------------------


def test_the_effective_number_of_copies_is_that_of_the_originals() -> None:
    values = np.repeat(RNG.normal(size=10), 4)
    of = Clusters(40, {"item": np.repeat(np.arange(10), 4).tolist()})
    expected = values.var(ddof=1) / (values[::4].var(ddof=1) / 10)
    assert effective_n(values, of) == pytest.approx(expected) and expected == pytest.approx(10, rel=0.1)


def test_the_effective_number_is_at_most_that_of_the_examples() -> None:
    apart = RNG.normal(size=20)
    assert effective_n(apart, Clusters(20)) == pytest.approx(20)
    twice, ways = np.tile(apart, 2), {"item": np.tile(np.arange(20), 2).tolist()}
    assert effective_n(twice, Clusters(40, ways), np.tile(np.arange(20), 2).tolist()) == pytest.approx(20)
    assert np.isnan(effective_n(np.ones(5), Clusters(5))) and np.isnan(
        effective_n(np.array([1.0, np.nan]), Clusters(2))
    )


def test_kishs_design_effect() -> None:
    """1 + (m - 1) * rho for clusters of m rows with intra-class correlation rho (Kish 1965, section 5.4)."""
    rng, found = np.random.default_rng(4), []
    of = Clusters(240, {"item": np.repeat(np.arange(60), 4).tolist()})
    for _ in range(200):
        values = np.sqrt(0.5) * np.repeat(rng.normal(size=60), 4) + np.sqrt(0.5) * rng.normal(size=240)
        found.append(effective_n(values, of))
    assert np.median(found) == pytest.approx(240 / (1 + 3 * 0.5), rel=0.08)


def test_the_share_of_the_train_side() -> None:
    of = Clusters(80, {"item": np.tile(np.arange(40), 2).tolist(), "train": np.repeat(np.arange(8), 10).tolist()})
    train = np.repeat(RNG.normal(size=8), 10)
    items = np.tile(RNG.normal(size=40), 2)
    assert train_share(train, of) > 0.9
    assert 0 <= train_share(items, of) < 0.5
    assert np.isnan(train_share(items, of.test_side())) and np.isnan(train_share(np.ones(80), of))


# --- intervals and tests --------------------------------------------------------------------------------------------


def test_the_interval_over_several_ways_is_students_on_the_multiway_variance() -> None:
    of = crossed_rows(48, train=4)
    a, b = RNG.normal(3, 1, 48), RNG.normal(5, 1, 48)

    def ratio(index: np.ndarray) -> np.ndarray:
        return a[index].mean(-1) / b[index].mean(-1)

    spread = spread_of_mean(pseudo_values(48, ratio), of)
    t = scipy.stats.t.ppf((1 + LEVEL) / 2, spread.df)
    value = a.mean() / b.mean()
    expected = (value - t * np.sqrt(spread.variance), value + t * np.sqrt(spread.variance))
    assert bootstrap_interval(48, ratio, items=of) == pytest.approx(expected)
    lost = a.copy()
    lost[:3] = np.nan

    assert bootstrap_interval(48, nanmean(lost), items=of) == pytest.approx(
        bootstrap_interval(45, lambda index: a[3:][index].mean(-1), items=of.subset(range(3, 48)))
    )


def test_clusters_of_one_way_have_the_bootstrap_interval_of_their_names() -> None:
    values, items = RNG.normal(size=12), [str(i // 2) for i in range(12)]

    def mean(index: np.ndarray) -> np.ndarray:
        return values[index].mean(-1)

    of = Clusters(12, {"item": items, "frame": ["f"] * 12})
    assert bootstrap_interval(12, mean, items=of) == bootstrap_interval(12, mean, items=items)
    assert paired_test(values, of) == paired_test(values, items)


@pytest.mark.parametrize("train", [0, 4])
def test_over_several_ways_the_test_is_students(train: int) -> None:
    of = crossed_rows(48, train=train)
    d = RNG.normal(0.3, 1, 48)
    spread = spread_of_mean(d, of)
    t = abs(d.mean()) / np.sqrt(spread.variance)
    assert paired_test(d, of) == pytest.approx(2 * scipy.stats.t.sf(t, spread.df)) and not at_random(of)
    assert at_random(Clusters(14)) and not at_random(Clusters(13))


@pytest.mark.parametrize("train", [0, 4])
def test_no_p_is_below_the_smallest(train: int) -> None:
    of = crossed_rows(48, train=train)
    most = max(of.counts["item"], of.counts["frame"])
    assert smallest_p(of) == 2.0 ** (1 - most)
    assert smallest_p(Clusters(48)) == 1 / (1 + FLIPS)
    assert paired_test(np.ones(48), of) >= smallest_p(of)
    assert paired_test(10 + 0.1 * RNG.normal(size=48), of) >= smallest_p(of)
    assert paired_test(np.zeros(48), of) == paired_test(np.full(48, np.nan), of) == 1.0
    assert smallest_p(Clusters(0)) == 1.0


def test_equal_methods_are_seldom_told_apart_where_rows_share_items_and_frames() -> None:
    rng, alarms = np.random.default_rng(8), {"two ways": 0, "one way": 0}
    for seed in range(200):
        item, frame = rng.integers(0, 30, 60), rng.integers(0, 14, 60)
        of = Clusters(60, {"item": item.tolist(), "frame": frame.tolist()})
        d = rng.normal(size=14)[frame] + 0.5 * rng.normal(size=30)[item] + rng.normal(size=60)
        alarms["two ways"] += paired_test(d, of, seed) <= 0.05
        alarms["one way"] += paired_test(d, Clusters(60, {"item": item.tolist()}), seed) <= 0.05
    assert alarms["two ways"] <= scipy.stats.binom.ppf(0.999, 200, 0.05) < alarms["one way"]


def test_of_other_examples_the_variances_add() -> None:
    one, other = crossed_rows(40, 1, train=4), crossed_rows(30, 2)
    a, b = RNG.normal(1, 1, 40), RNG.normal(0, 2, 30)
    gap, spread = gap_of_means(a, b, one, other)
    va, vb = spread_of_mean(a, one), spread_of_mean(b, other)
    assert gap == pytest.approx(a.mean() - b.mean())
    assert float(spread.variance) == pytest.approx(float(va.variance + vb.variance))
    alone = [Clusters(40), Clusters(30)]
    assert gap_of_means(a, b, *alone)[1].variance == pytest.approx(a.var(ddof=1) / 40 + b.var(ddof=1) / 30)
    p = unpaired_test(a, b, one, other)
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(gap) / np.sqrt(spread.variance), spread.df))
    assert unpaired_test(np.ones(40), np.ones(30), one, other) == 1.0
    assert unpaired_test(a, np.full(30, np.nan), one, other) == 1.0


# --- how far this can be trusted ------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "benchmarks" / "coverage_crossed.py"))


def test_simulated_rows_share_what_they_say(script: dict) -> None:
    design = script["Design"](24, True, np.random.default_rng(0))
    assert design.n == 192 and set(np.bincount(design.example).tolist()) == {2}
    assert design.clusters.counts["item"] == 64 and design.clusters.counts["train"] == 8
    assert 20 <= design.clusters.counts["frame"] <= 24
    halves = [set(design.train[design.example < 48].tolist()), set(design.train[design.example >= 48].tolist())]
    assert halves == [{4, 5, 6, 7}, {0, 1, 2, 3}], "each half is judged by the groups of the other"
    for example in range(96):
        assert len(set(design.train[design.example == example].tolist())) == 2
    drawn = np.array([design.normal() for _ in range(4000)])
    same_frame = [(i, j) for i in range(48) for j in range(i) if design.frame[i] == design.frame[j]]
    pairs = [(i, j) for i, j in same_frame if design.item[i] != design.item[j]]
    found = np.mean([np.mean(drawn[:, i] * drawn[:, j]) for i, j in pairs])
    assert drawn.var() == pytest.approx(1, abs=0.05) and found == pytest.approx(script["ICC_FRAME"], abs=0.03)
    assert np.mean(drawn[:, 0] * drawn[:, 96]) == pytest.approx(1 - script["ROW"], abs=0.06)


def test_simulated_values_have_the_truth_and_the_train_share_that_they_name(script: dict) -> None:
    for kind, made in script["KINDS"].items():
        rng, values = np.random.default_rng(1), []
        for _ in range(400):
            design = script["Design"](48, True, rng)
            values.append(float(made.draw(design, made.common(design), 0.0)(np.arange(design.n))))
        assert np.mean(values) == pytest.approx(made.truth, abs=np.std(values)), kind
    rng = np.random.default_rng(2)
    deviations = []
    for share in (0.0, 0.6):
        values = [
            float(statistic(np.arange(design.n)))
            for design, (statistic,) in (script["data"]("mean", 24, share, 1, rng) for _ in range(500))
        ]
        deviations.append(np.var(values))
    assert 1 - deviations[0] / deviations[1] == pytest.approx(0.6, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("kind", ["mean", "log-CMD, f below 1"])
def test_intervals_with_train_draws_hold_the_truth_as_often_as_they_say(kind: str, share: float, script: dict) -> None:
    found = script["simulate"](kind, 24, share, 600, seed=1)
    assert found["coverage"] >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / 600), found
    assert found["false_alarms"] <= scipy.stats.binom.ppf(0.999, 600, 0.05) / 600, found
    if share:
        assert found["coverage"] > found["test_side_only"] + 0.1, found


def test_the_stored_coverage_is_what_the_page_says(script: dict) -> None:
    stored = json.loads((ROOT / "results" / "coverage.json").read_text())["crossed"]
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert script["table"](stored) in page and script["bold_table"](stored) in page
    for row in stored["cases"]:
        assert row["coverage"] == pytest.approx(1 - row["too_low"] - row["too_high"])
        error = np.sqrt(0.93 * 0.07 / stored["simulations"])
        assert row["coverage"] >= 0.93 - 2 * error, row
    for row in stored["bold"]:
        assert row["unmarked"] <= row["any"] <= scipy.stats.binom.ppf(0.99, stored["tables"], 0.05) / stored["tables"]
