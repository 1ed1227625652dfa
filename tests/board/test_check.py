"""The regression check: what it pairs, tests, refuses, calls missing or slow, and how often it cries wolf.

Long because matching, tests, times and the command share the records that it makes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from attriboard.board import check
from attriboard.board.check import check_folders, check_records, headlines
from attriboard.board.check_report import MetricChange, Report, Times
from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.measurements.base import Kept
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.measurements.ground_truth import GroundTruth, JudgedScores
from attriboard.measurements.registry import METRICS
from attriboard.measurements.speed import Speed
from attriboard.records.record import Aggregate, Cell, ModelFacts, Provenance, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.stats.clusters import Clusters
from attriboard.stats.tests import gap_of_means, holm, paired_test, smallest_p, unpaired_test
from tests.bench.boards import ablation, by_name, faithfulness, named, speed, stages, stored
from tests.bench.cli import call, process

ROOT = Path(__file__).parents[2]
DISTANCE, NECESSITY = "log_cmd", "necessity"
"""The headlines of heads; the first is better when lower."""
RNG = np.random.default_rng(0)
GOOD = RNG.normal(0.7, 0.1, 10)
"""f of ten examples."""


def made(
    values: Sequence[float], items: Sequence[str] | None = None, *, method: str = "mine", **changes: Any
) -> Record:
    """A record whose log-CMD is 1 minus the mean of ``values`` ``[N]``, if below 1, and whose necessity is always 1."""
    n = len(values)
    seed, named_items = changes.pop("seed", 0), list(items or map(str, range(n)))
    measurements = by_name(
        faithfulness(values), speed(seconds=[1.0, 1.1, 1.2], forward_equivalents=1), *changes.pop("extra", ())
    )
    measurements |= by_name(*changes.pop("instead", ()))
    measurements = by_name(*named(list(measurements.values()), named_items, changes.get("frames", ())))
    settings = Settings(evaluations=tuple(measurements), **changes.pop("settings", {}))
    cell = Cell(task="t", method=method, model="m", level="heads", seed=seed)
    names = [m.name for m in METRICS.values() if m.measurement in ("faithfulness", "speed")]
    return Record(
        **{
            "suite": "s",
            "identity": f"{method}{seed}",
            "cell": cell,
            "settings": settings,
            "status": "ok",
            "task_version": 1,
            "model": ModelFacts(source="m", weights_sha256="w" * 64, n_layers=1, n_heads=1, n_components=2),
            "data_sha256": f"d{seed}" * 20,
            "kept": {"test": Kept(seen=n, correct=n, passing=n, kept=n, by_subset={})},
            "items": named_items,
            "scores": stored(),
            "measurements": measurements,
            "stages": stages(measurements),
            "aggregates": {name: Aggregate(value=0.5, version=METRICS[name].version) for name in names},
            "provenance": provenance(),
            **changes,
        }
    )


def timed(**changes: Any) -> Speed:
    """The usual times, some of it changed."""
    return speed(**{"seconds": [1.0, 1.1, 1.2], **changes})


def provenance(**changes: Any) -> Provenance:
    said = {"attriboard": "0", "attriboard_commit": None, "python": "3", "torch": "2", "transformers": "5"}
    return Provenance(**{**said, "platform": "p", "device": "d", "threads": 1, "created": "2026-01-01", **changes})


def only(report: Report, metric: str = DISTANCE) -> MetricChange:
    (change,) = [c for c in report.changes if c.metric == metric]
    return change


# --- tests ----------------------------------------------------------------------------------------------------------


def test_the_same_examples_are_paired_and_tested_by_every_change_of_sign() -> None:
    now = GOOD - 0.05 + RNG.normal(0, 0.02, 10)
    found = only(check_records([made(now)], [made(GOOD)]))
    assert found.paired and (found.n_old, found.n_new) == (10, 10)
    assert (found.old, found.new) == pytest.approx((1 - GOOD.mean(), 1 - now.mean()))
    judge = scipy.stats.permutation_test((now - GOOD,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.p == pytest.approx(judge.pvalue)
    assert found.verdict == "worse" and 0 < found.low < GOOD.mean() - now.mean() < found.high


@pytest.mark.parametrize(("metric", "sign"), [(DISTANCE, 1), ("cmd", 1), ("performance", -1), ("cpr", -1)])
def test_a_metric_that_is_better_when_lower_is_worse_when_higher(metric: str, sign: int) -> None:
    fewer = made(1 - GOOD)  # f is lower, so the distance from 1 is larger
    change = only(check_records([fewer], [made(GOOD)], [metric]), metric)
    assert np.sign(change.new - change.old) == sign and change.verdict == "worse"
    assert only(check_records([made(GOOD)], [fewer], [metric]), metric).verdict == "better"


def test_examples_of_one_base_item_change_sign_together() -> None:
    items = [str(i // 2) for i in range(10)]
    found = only(check_records([made(GOOD - 0.2, items)], [made(GOOD, items)]))
    assert found.p == found.smallest_p == 2 / 2**5


def several_ways(values: Sequence[float], **changes: Any) -> Record:
    """A record of 24 examples that share frames and train groups."""
    frames = [f"f{i % 7}" for i in range(24)]
    judged = faithfulness(values).model_copy(update={"train_groups": [f"t{i % 6}" for i in range(24)]})
    return made(values, frames=frames, instead=[judged], **changes)


def test_rows_that_share_frames_and_train_groups_are_compared_by_t_tests() -> None:
    before = np.random.default_rng(1).normal(0.7, 0.1, 24)
    now = before - 0.1 + np.random.default_rng(2).normal(0, 0.05, 24)
    old = several_ways(before)
    found = only(check_records([several_ways(now)], [old]))
    of = old.clusters(DISTANCE)
    assert set(of.labels) == {"item", "frame", "train"}
    assert found.paired and found.verdict == "worse" and found.p == pytest.approx(paired_test(before - now, of))
    assert found.smallest_p == smallest_p(of) == 2.0**-6  # every item stands in one of seven frames
    assert 0 < found.low < found.difference < found.high
    assert only(check_records([old], [old])).verdict == "unchanged"


def test_of_other_examples_in_several_ways_the_variances_add() -> None:
    before, now = np.random.default_rng(3).normal(0.7, 0.1, 24), np.random.default_rng(4).normal(0.3, 0.1, 24)
    a, b = several_ways(now, seed=5), several_ways(before, seed=1)
    found = only(check_records([a], [b]))
    assert not found.paired and found.verdict == "worse"
    x, y, ways = 1 - now, 1 - before, (a.clusters(DISTANCE), b.clusters(DISTANCE))
    assert found.p == pytest.approx(unpaired_test(x, y, *ways))
    gap, spread = gap_of_means(x, y, *ways)
    half = scipy.stats.t.ppf(0.975, spread.df) * np.sqrt(spread.variance)
    assert (found.difference, found.low, found.high) == pytest.approx((gap, gap - half, gap + half))


def test_holm_is_over_all_tests_of_the_check() -> None:
    shifts = {"a": 0.3, "b": 0.11, "c": 0.07, "d": 0.0}
    noise = {m: RNG.normal(0, 0.1, 10) for m in shifts}
    new = [made(GOOD - shift + noise[m], method=m) for m, shift in shifts.items()]
    report = check_records(new, [made(GOOD, method=m) for m in shifts])
    tests = [c for c in report.changes if c.metric == DISTANCE]
    p = sorted(c.p for c in tests)
    for c in tests:  # by the definition: the largest of (m - j + 1) p_j over the p up to its own
        assert c.adjusted == pytest.approx(min(1.0, max((len(p) - j) * q for j, q in enumerate(p) if q <= c.p)))
    assert {c.verdict for c in tests if c.adjusted <= 0.05} == {"worse"}
    assert {c.verdict for c in report.changes if c.metric == NECESSITY} == {"unchanged"}


def test_cells_that_did_not_change_cost_the_changed_one_nothing() -> None:
    names = [f"m{i}" for i in range(40)]
    new = [made(GOOD - (0.2 if m == "m7" else 0.0), method=m) for m in names]
    report = check_records(new, [made(GOOD, method=m) for m in names])
    (worse,) = report.judged("worse")
    assert worse.cell.method == "m7" and worse.adjusted == 2 / 2**10
    assert len(report.judged("unchanged")) == 79 and not report.judged("cannot detect")
    assert "40 cells, 80 tests (80 paired, 0 unpaired), n = 10: 1 worse, 0 better, 0 not different, 79 unchanged" in (
        report.summary()
    )


def test_what_can_reject_is_the_largest_set_that_its_own_size_allows() -> None:
    for _ in range(200):
        floor = RNG.choice([1.0, 0.25, 0.03, 0.02, 0.015, 0.01, 0.004, 0.001], size=RNG.integers(0, 9))
        able = check._able(floor.tolist())
        sets = [np.nonzero(floor <= top)[0].tolist() for top in {0.0, *floor}]
        fit = [chosen for chosen in sets if all(floor[i] <= 0.05 / len(chosen) for i in chosen)]
        assert able == max(fit, key=len)


def test_false_alarms_of_a_whole_check_stay_within_the_level() -> None:
    """Without any true difference, one check in twenty at most finds one; few and many examples mixed."""
    alarms = 0
    for _ in range(400):
        differences = [RNG.standard_t(3, size=n) for n in (4, 5, 7, 8, 8, 9, 10, 10)]
        able = check._able([check._smallest_paired(d, Clusters(len(d)), len(differences)) for d in differences])
        alarms += min(holm([paired_test(differences[i]) for i in able])) <= 0.05
    assert alarms <= scipy.stats.binom.ppf(0.999, 400, 0.05)


def test_too_few_examples_are_said_to_detect_nothing() -> None:
    report = check_records([made([0.1] * 4)], [made([0.9] * 4)])
    assert only(report).smallest_p == only(report).p == 2 / 2**4
    assert only(report).verdict == "cannot detect" and not report.failed
    text = "\n".join(report.lines())
    assert "cannot detect: 1 of 1 tests could not have found any difference" in text and "n = 4 examples" in text
    assert "1 not detectable" in report.summary()


# --- matching -------------------------------------------------------------------------------------------------------


def test_other_seeds_are_compared_unpaired_and_equal_ones_first() -> None:
    old = [made(GOOD, seed=0), made(GOOD, seed=1)]
    report = check_records([made(GOOD, seed=0), made(GOOD - 0.5, seed=5)], old)
    same, other = (c for c in report.changes if c.metric == DISTANCE)
    assert (same.cell.seed, same.seed_before, same.paired, same.verdict) == (0, 0, True, "unchanged")
    assert (other.cell.seed, other.seed_before, other.paired, other.verdict) == (5, 1, False, "worse")
    assert other.smallest_p == pytest.approx(1e-4)
    assert "seed 5 (seed 1 before)" in str(other)


def test_the_unpaired_interval_is_that_of_two_samples_drawn_anew() -> None:
    x, y = RNG.normal(1.0, 1.0, 12), RNG.normal(0.0, 0.5, 20)
    items = [str(i // 2) for i in range(12)]
    low, high = check._interval_of_gap(check._of_items(x, Clusters(12, {"item": items})), y)
    gaps = []
    for _ in range(4000):
        drawn = [x[2 * i : 2 * i + 2] for i in RNG.integers(0, 6, 6)]
        gaps.append(np.concatenate(drawn).mean() - RNG.choice(y, 20).mean())
    assert (low, high) == pytest.approx(np.percentile(gaps, [2.5, 97.5]), abs=0.1)


def test_of_the_same_data_the_examples_that_both_kept_are_paired() -> None:
    items = list("abcdefghij")
    now = made([*(GOOD[:8] - 0.2), 5.0], [*items[:8], "x"])
    before = made([*GOOD[1:8][::-1], 9.0, 9.0], [*items[1:8][::-1], "y", "z"])
    found = only(check_records([now], [before]))
    assert found.paired and (found.n_old, found.n_new) == (7, 7)
    assert (found.old, found.new) == pytest.approx((1 - GOOD[1:8].mean(), 1 - GOOD[1:8].mean() + 0.2))
    assert found.p == 2 / 2**7


def test_of_the_same_data_examples_that_cannot_be_told_apart_are_not_paired() -> None:
    found = only(check_records([made(GOOD[:8], list("aabbccdd"))], [made(GOOD, list("aabbccddee"))]))
    assert not found.paired and (found.n_old, found.n_new) == (10, 8)


def test_device_batch_and_repeats_may_differ() -> None:
    now = made(GOOD, settings={"batch_size": 3, "device": "cuda", "speed": {"repeats": 9}})
    assert only(check_records([now], [made(GOOD)])).verdict == "unchanged"


def halves(test: dict[str, Any], train: dict[str, Any]) -> dict[str, Kept]:
    """Ten examples kept in each half, but for what is given."""
    usual = {"seen": 12, "correct": 11, "passing": 10, "kept": 10, "by_subset": {}, "n_eff": 7.25}
    return {"test": Kept(**usual | test), "train": Kept(**usual | train)}


@pytest.mark.parametrize(
    ("test", "train", "paired"),
    [({}, {}, True), ({"n_eff": 7.2500001}, {"n_eff": 7.2}, True), ({"seen": 13}, {}, False), ({}, {"seen": 9}, False)],
)
def test_examples_are_the_same_where_both_halves_kept_as_many_of_as_many(test: dict, train: dict, paired: bool) -> None:
    nameless = [""] * 10
    now, before = made(GOOD, nameless, kept=halves(test, train)), made(GOOD, nameless, kept=halves({}, {}))
    assert only(check_records([now], [before])).paired == paired


def test_a_measurement_that_only_one_side_has_is_no_reason_not_to_match() -> None:
    more = made(GOOD, extra=[ablation(GOOD - 0.6)])
    assert not check_records([more], [made(GOOD)]).failed
    assert "1 cells" in check_records([more], [made(GOOD)]).summary()


def test_other_options_of_a_measurement_are_named_and_the_rest_is_compared() -> None:
    few, many = (made(GOOD, extra=[ablation(GOOD - 0.6)], settings={"ablation": {"draws": draws}}) for draws in (1, 5))
    report = check_records([few], [many])
    assert report.failures() == [
        "missing: t / heads / mine on m, seed 0: ablation was measured with other options before (draws 5 -> 1)"
    ]
    assert {c.metric for c in report.changes} == {DISTANCE, NECESSITY}


def test_what_is_gone_is_named_and_fails() -> None:
    old = [made(GOOD, method=m) for m in ("here", "gone", "broken", "other")]
    failed = Record(
        suite="s", identity="f", cell=old[2].cell, settings=old[2].settings, status="failed", reason="It is."
    )
    new = [made(GOOD, method="here"), failed, made(GOOD, method="other", settings={"max_kept": 9})]
    report = check_records(new, old)
    assert report.failed
    assert sorted(report.failures()) == [
        "missing: t / heads / broken on m, seed 0: failed now: It is.",
        "missing: t / heads / gone on m, seed 0: there before, and no record now",
        "missing: t / heads / other on m, seed 0: there before, and no record now: other settings (max_kept 64 -> 9)",
    ]
    assert "3 missing; 1 new cells" in report.summary()
    assert not check_records(old, [made(GOOD, method="here")]).failed  # what is new is no failure


def test_a_metric_that_is_gone_is_missing() -> None:
    gone = made(GOOD).model_copy(
        update={"measurements": by_name(speed()), "not_measured": {"faithfulness": "No room."}}
    )
    report = check_records([gone], [made(GOOD)])
    assert any(f"metric {DISTANCE} was measured before and is not now: No room." in line for line in report.failures())


def test_a_quantity_without_a_test_is_missing_too_when_it_is_gone() -> None:
    extra = {"capability_kept": Aggregate(value=0.9, version=1)}
    before = made(GOOD, aggregates=made(GOOD).aggregates | extra)
    (line,) = check_records([made(GOOD)], [before]).failures()
    assert "metric capability_kept was measured before and is not now" in line


def test_examples_that_lost_their_value_are_missing() -> None:
    some = GOOD.copy()
    some[:4] = np.nan
    side = check._Side(lambda index: np.nanmean(some[index], axis=-1), 10, Clusters(10))
    whole = check._Side(lambda index: GOOD[index].mean(-1), 10, side.clusters)
    found, lost = check._change(check._Asked(DISTANCE, made(GOOD), made(GOOD)), side, whole, 1)
    assert lost == 4 and found.n_new == found.n_old == 6 and found.verdict == "unchanged"


def test_more_than_500_tests_can_still_fail() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, 24)
    names = [f"m{i}" for i in range(520)]
    noise = [np.random.default_rng(i).normal(0, 0.01, 24) for i in range(520)]
    old = [made(values, method=m) for m in names]
    new = [made(values - (0.3 if i == 7 else 0) + noise[i], method=m) for i, m in enumerate(names)]
    report = check_records(new, old, [DISTANCE])
    assert not report.judged("cannot detect")
    assert [c.cell.method for c in report.judged("worse")] == ["m7"]
    assert report.judged("worse")[0].p < 1 / (1 + check.FLIPS)


def test_of_other_examples_what_was_tested_decides_what_is_worse() -> None:
    # one base item of many examples moves the mean the other way than all others do
    rng = np.random.default_rng(0)
    small, sizes = rng.normal(0, 0.01, 12), [12] + [1] * 11
    items = [str(i) for i, size in enumerate(sizes) for _ in range(size)]
    before = np.repeat(np.r_[0.3, 0.6 + small[1:]], sizes)
    now = np.repeat(np.r_[0.9, 0.4 + small[1:]], sizes)
    found = only(check_records([made(now, items, seed=1)], [made(before, items, seed=0)]))
    assert not found.paired and found.new < found.old and found.difference > 0 and found.worse
    assert found.low < found.difference < found.high


def test_agreement_with_a_known_mechanism_is_compared_as_it_is() -> None:
    def planted(scores: Sequence[float]) -> Record:
        judged = GroundTruth(cases=[JudgedScores(scores=list(scores), truth=[1, 0, 0, 0])], each_example=False)
        return made(GOOD, extra=[judged])

    good, bad = planted([3, 2, 1, 0]), planted([0, 1, 2, 3])
    assert only(check_records([bad], [good]), "truth_auroc").verdict == "worse"
    assert "(one value, no test)" in str(only(check_records([bad], [good]), "truth_auroc"))
    assert only(check_records([good], [good]), "truth_auroc").verdict == "unchanged"
    assert only(check_records([good], [bad]), "truth_auroc").verdict == "better"


def test_cells_in_which_nothing_can_be_compared_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [made(GOOD)]
    monkeypatch.setattr(check, "headlines", lambda: ("insertion_auc",))
    with pytest.raises(ConfigurationError, match="none of the 1 matched cells has a metric that is compared"):
        check_records(records, records)


# --- refusals -------------------------------------------------------------------------------------------------------

FACTS = made(GOOD).model


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data_sha256": "e" * 64}, "was run on other data than before with the same seed and settings (eeeeeeeeeeee"),
        ({"task_version": 2}, "has version 2 of its task and had version 1 before"),
        ({"model": FACTS.model_copy(update={"weights_sha256": "v" * 64})}, "other weights than before (vvvvvvvvvvvv"),
        (
            {"aggregates": made(GOOD).aggregates | {DISTANCE: Aggregate(value=0.5, version=7)}},
            f"has version 7 of metric {DISTANCE} and had version {METRICS[DISTANCE].version} before",
        ),
        ({"cell": made(GOOD, method="another").cell}, "no cell of the new records matches"),
        ({"settings": Settings(evaluations=("faithfulness",), max_kept=9)}, "other settings (max_kept 64 -> 9)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_records([made(GOOD).model_copy(update=change)], [made(GOOD)])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_records_of_nothing_but_failures_are_refused() -> None:
    old = made(GOOD)
    failed = Record(suite="s", identity="f", cell=old.cell, settings=old.settings, status="failed", reason="It is.")
    with pytest.raises(ConfigurationError, match="none of the records before is of a cell that ran"):
        check_records([old], [failed])


def test_metrics_are_known_have_a_direction_and_were_measured() -> None:
    records = [made(GOOD)]
    with pytest.raises(UnknownNameError, match="unknown metric 'log_cdm': did you mean"):
        check_records(records, records, ["log_cdm"])
    for describes in ("bias", "overshoot"):
        with pytest.raises(ConfigurationError, match=f"metric '{describes}' describes, it has no better or worse"):
            check_records(records, records, [describes])
    with pytest.raises(ConfigurationError, match="has metric 'insertion_auc' example by example; those that have: "):
        check_records(records, records, ["insertion_auc"])
    assert {c.metric for c in check_records(records, records).changes} == {DISTANCE, NECESSITY}
    assert {c.metric for c in check_records(records, records, ["cpr"]).changes} == {"cpr"}
    assert all(METRICS[m].better != "neither" for m in headlines())


def test_a_metric_that_is_younger_than_a_record_follows_from_its_measurements() -> None:
    records = [made(GOOD), made(GOOD)]
    records[1] = records[1].model_copy(update={"aggregates": {}})
    assert only(check_records(*[[r] for r in records])).verdict == "unchanged"


# --- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "slower"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2], True),
        ([1.0, 1.1, 2.05], [2.0, 2.1, 2.2], False),  # the spreads meet
        ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], False),  # apart, but by less than the ratio
        ([1.0, 1.1], [2.0, 2.1, 2.2], False),  # too few repeats
        ([0.001, 0.001, 0.001], [0.004, 0.004, 0.004], False),  # too short to time
        ([0.001, 0.001, 0.001], [0.04, 0.04, 0.04], True),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2], False),
    ],
)
def test_slower_is_beyond_the_spread_of_both(old: list[float], new: list[float], slower: bool) -> None:
    sides = [made(GOOD, instead=[timed(seconds=side)]) for side in (new, old)]
    report = check_records(*[[side] for side in sides])
    assert bool(report.slower) == report.failed == slower
    assert not check_records(*[[side] for side in sides], speed=False).failed
    if slower:
        assert report.failures()[0].startswith("slower: t / heads / mine on m, seed 0: ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"provenance": provenance(device="other")}, "another device"),
        ({"provenance": provenance(threads=8)}, "another number of threads"),
        (
            {"instead": [speed(examples=9, seconds=[90.0] * 3)]},
            "another number of examples",
        ),
        ({"instead": [speed(seconds=[9.0])]}, "fewer than 3 repeats"),
    ],
)
def test_times_of_other_conditions_are_said_to_be_not_compared(change: dict[str, Any], why: str) -> None:
    slow = made(GOOD, **{"instead": [timed(seconds=[9.0] * 3)], **change})
    report = check_records([slow], [made(GOOD)])
    assert not report.failed and report.times[0].not_compared == why
    assert f"times of 0 cells: 0 slower, 1 not compared ({why})." in report.summary()


def test_times_are_per_example() -> None:
    pair = [made(GOOD, instead=[timed(examples=4)]) for _ in range(2)]
    (times,) = check_records([pair[0]], [pair[1]]).times
    assert isinstance(times, Times) and times.new == [0.25, 1.1 / 4, 1.2 / 4] and times.ratio == 1.0


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two methods' records, and the same with one method worse."""
    good, bad = (Folder(tmp_path_factory.mktemp(name)) for name in ("good", "bad"))
    for folder, values in ((good, GOOD), (bad, GOOD - 0.2)):
        folder.claim("s")
        folder.write(made(values, method="mine"))
        folder.write(made(GOOD, method="other"))
    return good.path, bad.path


def _check(*arguments: object) -> subprocess.CompletedProcess[str]:
    return process("check", *arguments)


def test_the_command_fails_on_what_became_worse(folders: tuple[Path, Path]) -> None:
    good, bad = folders
    same = _check(good, "--against", good)
    assert same.returncode == 0, same.stderr
    (line,) = same.stdout.splitlines()
    assert line == (
        "compared 2 cells, 4 tests (4 paired, 0 unpaired), n = 10: 0 worse, 0 better, 0 not different, 4 unchanged, "
        "0 not detectable; times of 2 cells: 0 slower."
    )
    worse = _check(bad, "--against", good, "--no-speed")
    assert worse.returncode == 1
    values = f"log-CMD (log_cmd) {1 - GOOD.mean():.3f} -> {1.2 - GOOD.mean():.3f}"
    assert worse.stdout.startswith(f"worse: t / heads / mine on m, seed 0: {values}, ")
    assert "difference +0.200 [+0.200, +0.200], p = 0.002 after Holm (paired, n = 10)" in worse.stdout
    assert check_folders(good, bad, speed=False).judged("better")


def test_the_command_speaks_json(folders: tuple[Path, Path]) -> None:
    good, bad = folders
    done = _check(bad, "--against", good, "--no-speed", "--json", "--metric", DISTANCE)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["failed"] and said["cells"] == 2 and not said["times"]
    assert said["lines"][0].startswith("worse: t / heads / mine on m")
    report = check_folders(bad, good, [DISTANCE], speed=False)
    assert {k: v for k, v in said.items() if k not in ("failed", "lines")} == report.model_dump(mode="json")
    assert sorted(c["verdict"] for c in said["changes"]) == ["unchanged", "worse"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{good}", "--against", "{empty}"], "holds no records; run a suite with --out"),
        (["{good}", "--against", "{empty}/nowhere"], "there is no results folder"),
        (["{good}", "--against", "{good}", "--metric", "cprr"], "unknown metric 'cprr': did you mean 'cpr'"),
    ],
)
def test_the_command_refuses_with_a_sentence(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    filled = [a.format(good=folders[0], empty=tmp_path) for a in arguments]
    code, _, err = call(capsys, "check", *filled)
    assert code == 2
    assert sentence in err


def test_a_damaged_record_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for file in folders[0].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "half.json").write_text("{")
    (line, _) = check_folders(tmp_path, folders[0]).lines()
    assert line.startswith(f"left out: {tmp_path / 'half.json'} is not a record (")


# --- beside the code ------------------------------------------------------------------------------------------------


def test_the_workflow_is_yaml_and_runs_commands_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "workflows" / "attriboard.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key "on" as true
    (job,) = workflow["jobs"].values()
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    uses = [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python", "actions/cache"]
    (cache,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/cache")]
    assert "~/.cache/attriboard" in cache["with"]["path"]
    for line in ("pytest", "attriboard run", "attriboard check"):
        assert line in commands
    checks = [line.split() for line in commands.splitlines() if line.startswith("attriboard check")]
    options = {word for words in checks for word in words if word.startswith("--")}
    shown = _check("--help").stdout
    assert options and all(option in shown for option in options)


def test_every_pair_of_the_power_study_is_what_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import check_power

    items = [str(i // 2) for i in range(40)]
    good, other, bad = (made(RNG.normal(mean, 0.05, 40), items) for mean in (0.8, 0.8, 0.5))
    pool = check_power.Pool(
        good=good.measured(Faithfulness),
        other_train=other.measured(Faithfulness),
        degraded=bad.measured(Faithfulness),
        items=items,
        subsets=[""] * 40,
        facts=good.model,
        task_version=1,
        speed=good.measured(Speed),
        planted={},
    )
    rng = np.random.default_rng(0)
    for kind, pair in check_power.kinds(pool).items():
        now, before = pair(rng, 16)
        assert len(now.items) == len(before.items) == 16
        if kind.startswith("false_alarms_other") or kind == "caught_unpaired":
            assert now.data_sha256 != before.data_sha256  # so that they are compared as other examples
        else:
            assert now.items == before.items and now.data_sha256 == before.data_sha256
            a, b = (np.array(r.measured(Faithfulness).absolute[0]) for r in (now, before))
            good_values, bad_values = (np.array(f.absolute[0]) for f in (pool.good, pool.degraded))
            assert np.isin([*a, *b], [*good_values, *bad_values]).all() and (a != b).all()
            assert np.isin(a, bad_values).all() == np.isin(b, good_values).all() == (kind == "caught_paired")
    monkeypatch.setattr(check_power, "PAIRS", 5)
    rows = check_power.counted(pool, [4, 16, 24])
    assert [(r["n"]) for r in rows if r["kind"] == "caught_unpaired"] == [4, 16, 24]
    assert check_power.smallest(rows, "caught_paired") == 16
    row = {"kind": "x", "pairs": 100}
    for caught, expected in (((100, 94), None), ((100, 95), 5), ((94, 95), 10)):
        found = [row | {"n": n, "failed": failed} for n, failed in zip((5, 10), caught)]
        assert check_power.smallest(found, "x") == expected


def test_the_page_shows_the_stored_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import check_power

    stored = json.loads((ROOT / "results" / "check_power.json").read_text())
    page = (ROOT / "docs" / "check.md").read_text()
    shown = page.split("<!-- power -->")[1].split("<!-- /power -->")[0]
    assert shown.strip() == check_power.table(stored["rows"]).strip()
    assert all(f"{100 * stored['planted']['drop'][m]:.1f} %" in page for m in stored["metrics"])
    alarms = [row for row in stored["rows"] if row["kind"] == "false_alarms_other_examples"]
    fails, better = (sum(row[key] for row in alarms) for key in ("failed", "improved"))
    assert f"{fails} of the {sum(row['pairs'] for row in alarms)} fail" in " ".join(page.split())
    assert f"{better} are better" in " ".join(page.split())
