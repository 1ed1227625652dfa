"""Records: what they hold comes back from JSON as it was, and what cannot be is refused."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from attriboard.errors import UnknownNameError
from attriboard.measurements.ablation import Ablation
from attriboard.measurements.bias import Bias
from attriboard.measurements.speed import Speed
from attriboard.records.record import SCHEMA, Aggregate, Cell, Precomputed, Record
from tests.bench.boards import METRIC, record, speed, stored


def _again(record: Record) -> Record:
    """The record as it comes back from its file."""
    return Record.model_validate_json(json.dumps(record.model_dump(mode="json")))


def test_a_record_comes_back_as_it_was() -> None:
    before = record("a", [0.1, 0.2, 0.3], variant="another", sketch=[1.0, 2.0], top=[("a0.h1", 2.0)])
    after = _again(before)
    assert after == before
    assert isinstance(after.measured(Ablation), Ablation) and isinstance(after.measured(Speed), Speed)
    assert after.measured(Bias) is None
    assert list(after.measurements) == ["ablation", "speed"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_come_back_as_they_were(number: float) -> None:
    whole = record("a", [0.1, 0.2])
    ablation = whole.measurements["ablation"].model_copy(update={"clean": [[number, 1.0], [0.5, number], [1.0, 1.0]]})
    scores = stored(sketch=[number, 1.0]).model_copy(update={"metadata": {"loss": number, "rest": [number]}})
    aggregate = Aggregate(value=number, low=None, high=number, version=1)
    before = whole.model_copy(
        update={
            "measurements": {**whole.measurements, "ablation": ablation},
            "scores": scores,
            "aggregates": {METRIC: aggregate},
        }
    )
    after = _again(before)
    rows = after.measured(Ablation)
    assert rows is not None and after.scores is not None
    stored_again = [rows.clean[0][0], rows.clean[1][1], after.scores.sketch[0], after.scores.metadata["loss"]]
    stored_again += [after.scores.metadata["rest"][0], after.aggregates[METRIC].value, after.aggregates[METRIC].high]
    assert [str(value) for value in stored_again] == [str(number)] * len(stored_again)
    assert after.aggregates[METRIC].low is None
    assert json.dumps(after.model_dump(mode="json")) == json.dumps(before.model_dump(mode="json"))


def test_a_record_of_another_version_is_refused() -> None:
    content = record("a", [0.1]).model_dump(mode="json") | {"schema_version": SCHEMA - 1}
    with pytest.raises(ValidationError, match=f"schema version {SCHEMA - 1}, this version reads {SCHEMA}"):
        Record.model_validate(content)


def test_a_measurement_that_nobody_knows_is_refused_with_the_way_out() -> None:
    content = record("a", [0.1]).model_dump(mode="json")
    content["measurements"]["ablaton"] = content["measurements"].pop("ablation")
    with pytest.raises(UnknownNameError, match=r"unknown evaluation 'ablaton': did you mean 'ablation' .*--include"):
        Record.model_validate(content)


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ({"measurements": {"speed": speed()}}, "an 'ok' record without its measurements"),
        ({"scores": None}, "an 'ok' record without scores, measurements or examples"),
        ({"kept": {}}, "an 'ok' record without scores, measurements or examples"),
    ],
)
def test_an_ok_record_lacks_nothing(lacking: dict, sentence: str) -> None:
    content = dict(record("a", [0.1])) | lacking
    with pytest.raises(ValidationError, match=sentence):
        Record(**content)
    failed = Record(**(content | {"status": "failed", "reason": "its own mistake"}))
    assert failed.reason == "its own mistake"


def test_what_was_not_measured_is_said_and_not_missed() -> None:
    content = dict(record("a", [0.1])) | {
        "measurements": {"speed": speed()},
        "not_measured": {"ablation": "it cannot be measured of these scores."},
    }
    assert Record(**content).status == "ok"


def test_statistics_name_the_measurement_that_they_are_of() -> None:
    whole = record("a", [0.1, 0.3])
    measurement, statistic = whole.statistics[METRIC]
    assert measurement is whole.measurements["ablation"]
    assert float(statistic([0, 1])) == pytest.approx(0.2)
    assert "seconds_per_example" not in whole.statistics


def test_two_runs_of_a_cell_are_alike_but_for_times() -> None:
    one = record("a", [0.1, 0.3])
    slower = speed(seconds=[3.0, 4.0])
    stages = {name: stage.model_copy(update={"seconds": 5.0, "created": "today"}) for name, stage in one.stages.items()}
    aggregates = one.aggregates | {"seconds_per_example": Aggregate(value=3.5, version=1)}
    measurements = {**one.measurements, "speed": slower}
    other = one.model_copy(update={"measurements": measurements, "stages": stages, "aggregates": aggregates})
    assert other != one and other.without_timings() == one.without_timings()
    assert other.seconds == dict.fromkeys(one.stages, 5.0)
    assert record("a", [0.1, 0.4]).without_timings() != one.without_timings()


def test_labels_say_what_is_not_the_usual() -> None:
    options = {"b": ("1", "2"), "a": "x"}
    cell = Cell(task="t", task_options=options, method="m", model="gpt", level="heads", variant="v")
    assert cell.task_label == "t(a=x, b=1,2)" and cell.method_label == "m"
    assert str(cell) == "t(a=x, b=1,2) / heads / m on gpt, seed 0, v"
    other = cell.model_copy(update={"replacement": "zero", "precomputed": Precomputed(file="f", sha256="s")})
    assert other.method_label == "m (precomputed)" and "m (precomputed) (zero) on gpt" in str(other)


def test_a_record_is_stored_under_a_name_that_says_what_it_is_of() -> None:
    whole = record("a b/c", [0.1])
    assert whole.filename == f"made_up.heads.a-b-c.{whole.identity[:12]}.json"
