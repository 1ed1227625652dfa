"""Stored records of evaluations that run methods again give the same aggregates as the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attriboard.measurements.reliability import Reliability
from attriboard.measurements.sanity import Sanity
from attriboard.records.aggregate import aggregates
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks
from tests.bench.toy import toy_context


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
