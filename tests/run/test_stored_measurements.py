"""Stored records of evaluations that run methods again give the same aggregates as the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attriboard.measurements.base import Measurement, Metric, Statistic
from attriboard.measurements.reliability import Reliability
from attriboard.measurements.sanity import Sanity
from attriboard.records.aggregate import aggregates
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.run.worker import _derived, _Measured
from attriboard.task import tasks
from tests.bench.toy import toy_context


class Means(Measurement):
    """A mean over the test examples kept; without a name, so that suites cannot ask for it."""

    metrics = (Metric("mean_of_kept", title="mean", unit="1", better="higher", text="A mean."),)
    values: list[float]

    @property
    def n(self) -> int:
        return len(self.values)

    def statistics(self) -> dict[str, Statistic]:
        values = np.array(self.values)
        return {"mean_of_kept": lambda index: values[index].mean(-1)}


def test_the_intervals_of_a_fresh_record_heed_items_and_frames_as_those_derived_again_do() -> None:
    means = Means(values=[1.0, 1.1, 5.0, 5.1, 2.0, 2.1, 7.0, 7.1])
    items, frames = ([f"{name}{i // size}" for i in range(8)] for name, size in (("item", 1), ("frame", 2)))
    derived, gaps = _derived(_Measured(measurements={"means": means}), items, frames)
    assert derived == aggregates([means], items, frames) and gaps == {}
    alone = aggregates([means], items)["mean_of_kept"]
    assert derived["mean_of_kept"].value == alone.value == pytest.approx(3.8)
    # pairs of one frame say nearly the same, so there are half as many examples
    low, high = derived["mean_of_kept"].low, derived["mean_of_kept"].high
    assert low is not None and high is not None and alone.low is not None and alone.high is not None
    assert high - low > alone.high - alone.low


def test_reliability_of_stored_records_gives_the_same_aggregates(toy: dict[str, Path], tmp_path: Path) -> None:
    tasks.include(toy["task"])
    file = tmp_path / "toy.toml"
    settings = 'evaluations = ["reliability", "speed"]\nreliability = { halvings = 7 }'
    file.write_text(toy["suite"].read_text().replace("batch_size = 4", settings))
    suite = Suite.load(file)
    assert not run_cells(suite.name, suite.plan(), Folder(tmp_path / "out")).failed
    records = Folder(tmp_path / "out").read()
    assert len(records) == 3
    for record in records:
        reliability = record.measured(Reliability)
        assert reliability is not None and "speed" in record.measurements
        assert len(reliability.halves) == (1 if record.cell.method == "random" else 7)
        again = aggregates(record.measurements.values(), record.items)
        assert again == record.aggregates
        assert {"reliability", "reliability_stepped_up", "reliability_top"} <= set(again)
        assert "each" not in json.dumps(record.model_dump(mode="json"))


def test_sanity_of_stored_records_gives_the_same_aggregates(toy: dict[str, Path], tmp_path: Path) -> None:
    toy_context(toy)
    file = tmp_path / "toy.toml"
    more = '\n[[groups]]\ntasks = ["repeat"]\nmethods = ["gradient_saliency", "random"]\nlevels = ["tokens"]\n'
    settings = 'evaluations = ["sanity", "localization", "speed"]\nsanity = { stages = [0.5, 1.0] }'
    file.write_text(toy["suite"].read_text().replace("batch_size = 4", settings) + more)
    suite = Suite.load(file)
    assert not run_cells(suite.name, suite.plan(), Folder(tmp_path / "out")).failed
    records = Folder(tmp_path / "out").read()
    assert [r.cell.level for r in records] == ["heads"] * 3 + ["tokens"] * 2
    for record in records:
        sanity = record.measured(Sanity)
        assert sanity is not None and sanity.layers == [2, 3]
        assert "speed" in record.measurements
        assert ("localization" in record.measurements) == (record.cell.level == "tokens")
        again = aggregates(record.measurements.values(), record.items)
        assert again == record.aggregates
        names = {name for name in again if "randomisation" in name}
        assert names == {
            *(f"model_randomisation{suffix}" for suffix in ("", "_signed", "_50")),
            *(f"label_randomisation{suffix}" for suffix in ("", "_absolute")),
        }
        if record.cell.method == "random":
            assert [again[name].value for name in names] == pytest.approx([1.0] * 5, abs=1e-12)
        elif record.cell.level == "tokens":
            assert again["model_randomisation"].low is not None, "an interval over examples"
