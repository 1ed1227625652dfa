"""Aggregates follow from what is stored: declared metrics with intervals, and which are of today's definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from attriboard.errors import ConfigurationError
from attriboard.measurements.ablation import Ablation
from attriboard.measurements.base import METRICS, Scalar, Statistic
from attriboard.measurements.bias import Bias
from attriboard.records.aggregate import aggregates, derived_again, is_current, up_to_date
from attriboard.records.record import Aggregate, Record
from attriboard.stats.clusters import Clusters
from attriboard.stats.intervals import VERSION, bootstrap_interval
from tests.bench.boards import METRIC, ablation, faithfulness, record, speed

DROPS = [0.1, 0.2, 0.4, -0.1]
ITEMS = ["one", "one", "two", "three"]


class OverKept(Ablation):
    """Rows are the test examples kept, once or several times over."""

    over_kept = True
    cross_fitted = False


class Undeclared(Ablation):
    def statistics(self) -> dict[str, Statistic]:
        return {**super().statistics(), "ablation_dorp": lambda index: index.mean(-1)}


class UndeclaredScalar(Ablation):
    def scalars(self) -> dict[str, Scalar]:
        return {"ablation_dorp": (1.0, None, None)}


class Lacking(Ablation):
    def statistics(self) -> dict[str, Statistic]:
        return {METRIC: super().statistics()[METRIC]}


def over_kept(drops: Sequence[float], **names: list[str]) -> OverKept:
    """Drops on test examples kept, whose base items and frames the record has."""
    return OverKept(**ablation(drops).model_dump() | names)


def test_a_statistic_has_its_interval_over_base_items_and_a_scalar_its_own() -> None:
    derived = aggregates([over_kept(DROPS), speed()], ITEMS)
    statistic = over_kept(DROPS).statistics()[METRIC]
    assert derived[METRIC].value == pytest.approx(np.mean(DROPS))
    interval = bootstrap_interval(len(DROPS), statistic, items=ITEMS)
    assert (derived[METRIC].low, derived[METRIC].high) == interval
    assert interval != bootstrap_interval(len(DROPS), statistic)
    seconds = derived["seconds_per_example"]
    assert (seconds.value, seconds.low, seconds.high) == (pytest.approx(0.15), 0.1, 0.2)
    assert all(aggregate.version == METRICS[name].version for name, aggregate in derived.items())
    assert aggregates([over_kept(DROPS[:1])], ITEMS[:1])[METRIC].low is None, "one base item has no interval"


def test_rows_of_examples_of_both_halves_have_items_of_their_own() -> None:
    judged = ablation(DROPS).model_copy(update={"base_items": ITEMS})
    statistic = judged.statistics()[METRIC]
    found = aggregates([judged], ["of", "other", "test", "examples"])[METRIC]
    assert (found.low, found.high) == bootstrap_interval(len(DROPS), statistic, items=ITEMS)
    unknown = aggregates([ablation(DROPS)], ITEMS)[METRIC]
    assert (unknown.low, unknown.high) == bootstrap_interval(len(DROPS), statistic) != (found.low, found.high)


def test_base_items_of_other_examples_are_the_measurements_own() -> None:
    values = {"test": [1.0, 2.0, 3.0], "test_removed": [[0.5, 1.0, 1.5]], "train": [1.0], "train_removed": [[0.5]]}
    bias = Bias(
        **values,
        factor=0.0,
        items=["a", "b", "c"],
        base_items=["one", "one", "two"],
        sizes=[1],
        control=[],
        control_removed=[[]],
        words=[10],
        documents=[-5.0],
        documents_removed=[[-5.0]],
    )
    derived = aggregates([bias], ["of", "other", "examples"])["bias"]
    interval = bootstrap_interval(3, bias.statistics()["bias"], items=["one", "one", "two"])
    assert interval is not None and (derived.low, derived.high) == interval


def test_rows_of_repetitions_have_the_items_and_frames_of_their_examples_and_their_own_train_groups() -> None:
    items, frames = ["one", "", "", "two"], ["x", "x", "y", "y"]
    groups = [f"group {i % 3}" for i in range(8)]
    twice = over_kept([*DROPS, *(d / 2 for d in DROPS)], train_groups=groups)
    of = twice.clusters(items, frames)
    assert of.labels["item"].tolist() == [0, 1, 2, 3] * 2, "an example without an item is itself in every repetition"
    assert of.labels["frame"].tolist() == [0, 0, 1, 1] * 2 and of.labels["train"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    derived = aggregates([twice], items, frames)[METRIC]
    assert (derived.low, derived.high) == bootstrap_interval(8, twice.statistics()[METRIC], items=of)
    whole = record("a", DROPS, measurements=[twice, speed()], items=items, frames=frames)
    assert whole.clusters(METRIC) == of and whole.aggregates[METRIC] == derived
    own = twice.model_copy(update={"base_items": list("abcdabcd"), "base_frames": list("pqrspqrs")})
    assert own.clusters(items, frames).counts == {"item": 4, "frame": 4, "train": 3}


def test_examples_of_several_frames_have_the_interval_over_both_ways() -> None:
    drops, frames = [0.1, 0.2, 0.4, -0.1, 0.3, 0.0], list("xyxyxy")
    items = ["a", "a", "b", "b", "c", "c"]
    derived = aggregates([over_kept(drops)], items, frames)[METRIC]
    both = Clusters(6, {"item": items, "frame": frames})
    assert (derived.low, derived.high) == bootstrap_interval(6, ablation(drops).statistics()[METRIC], items=both)
    assert derived != aggregates([over_kept(drops)], items)[METRIC]


@pytest.mark.parametrize("field", ["base_items", "base_frames", "train_groups"])
def test_labels_that_are_not_one_for_each_row_are_one_sentence(field: str) -> None:
    wrong = ablation(DROPS).model_copy(update={field: ["a", "b"]})
    with pytest.raises(ConfigurationError, match="4 rows have 2 names of their"):
        aggregates([wrong], ITEMS)


@pytest.mark.parametrize("kind", [Undeclared, UndeclaredScalar])
def test_a_metric_that_is_not_declared_is_one_sentence(kind: type[Ablation]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        aggregates([kind(**ablation(DROPS).model_dump())])
    assert str(caught.value) == "ablation has a value of metric 'ablation_dorp', which it does not declare."


def test_a_metric_that_must_be_there_and_is_not_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError) as caught:
        aggregates([Lacking(**ablation(DROPS).model_dump())])
    lacking = "ablation_drop_raw, ablation_drop_logprob, ablation_drop_accuracy"
    assert str(caught.value) == f"ablation lacks {lacking}, which it declares."


def test_an_optional_metric_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = tuple(dataclasses.replace(m, optional=m.name != METRIC) for m in Ablation.metrics)
    monkeypatch.setattr(Lacking, "metrics", metrics)
    assert set(aggregates([Lacking(**ablation(DROPS).model_dump())])) == {METRIC}


# --- what is older ------------------------------------------------------------------------------------------------


def _without(record: Record) -> Record:
    return record.model_copy(update={"aggregates": {k: a for k, a in record.aggregates.items() if k != METRIC}})


def _with_version(record: Record, version: int) -> Record:
    older = Aggregate(value=99.0, low=98.0, high=100.0, version=version)
    return record.model_copy(update={"aggregates": record.aggregates | {METRIC: older}})


OLD: dict[str, Callable[[Record], Record]] = {
    "an older metric": lambda r: _with_version(r, METRICS[METRIC].version - 1),
    "a later metric": lambda r: _with_version(r, METRICS[METRIC].version + 1),
    "a metric that is new": _without,
    "a metric that is gone": lambda r: r.model_copy(
        update={"aggregates": r.aggregates | {"gone": Aggregate(value=1.0, version=1)}}
    ),
    "older statistics": lambda r: r.model_copy(update={"statistics_version": VERSION - 1}),
}


def test_what_is_current_is_left_as_it_is() -> None:
    whole = record("a", DROPS, items=ITEMS)
    assert is_current(whole) and up_to_date(whole) is whole and whole.derived is None


@pytest.mark.parametrize("kind", OLD)
def test_what_is_older_is_derived_again_and_says_what_derived_it(kind: str) -> None:
    whole = record("a", DROPS, items=ITEMS)
    old = OLD[kind](whole)
    assert not is_current(old)
    new = up_to_date(old)
    assert is_current(new) and new.aggregates == whole.aggregates and new.statistics_version == VERSION
    assert new.derived is not None and new.derived.attriboard and new.derived.created
    assert new.model_copy(update={"derived": None}) == whole
    assert new.aggregates == derived_again(whole).aggregates


def test_a_record_without_measurements_has_nothing_to_derive() -> None:
    failed = record("a", DROPS).model_copy(
        update={"status": "failed", "measurements": {}, "aggregates": {}, "statistics_version": 0}
    )
    assert is_current(failed) and up_to_date(failed) is failed


def test_an_interval_ends_where_its_metric_does() -> None:
    measured = faithfulness([0.99, 0.2, 1.0, 0.98]).model_copy(
        update={"base_items": list("aabb"), "base_frames": list("xyxy"), "removed": [[0.0, 0.4, 0.0, 0.0]] * 2}
    )
    derived = aggregates([measured])
    need, distance = derived["necessity"], derived["log_cmd"]
    assert need.value == pytest.approx(0.9) and need.high == 1.0 and need.low is not None and need.low < 0.9
    assert distance.value == pytest.approx(1 - 0.7925) and distance.low == 0.0 and distance.high is not None
    free = derived["necessity_log_area"]  # which has no ends
    assert free.high is not None and free.high > 1.0 and free.value == need.value
