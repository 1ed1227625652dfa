"""The folder of a run: whole files or none, scores beside records, and one record per cell on a board."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from attriboard.errors import ConfigurationError
from attriboard.records import store
from attriboard.records.record import Aggregate, Precomputed, Provenance, Record
from attriboard.records.settings import Settings
from attriboard.records.store import MARKER, Folder, newest
from tests.bench.boards import METRIC, record, stored

DROPS = [0.1, 0.2, 0.4]


def _made(created: str, method: str = "a", **changes: object) -> Record:
    """A record that was made at that time."""
    provenance = Provenance(
        attriboard="0",
        attriboard_commit=None,
        python="3",
        torch="2",
        transformers="5",
        platform="here",
        device="cpu",
        threads=1,
        created=created,
    )
    return record(method, DROPS, **changes).model_copy(update={"provenance": provenance, "identity": created + method})


def _stale(whole: Record) -> Record:
    """The record with a value by an older definition of its metric."""
    old = Aggregate(value=99.0, version=whole.aggregates[METRIC].version - 1)
    return whole.model_copy(update={"aggregates": whole.aggregates | {METRIC: old}})


def test_records_are_read_by_file_name_as_they_were_written(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    records = [record(method, DROPS) for method in ("b", "a", "c")]
    for one in records:
        assert folder.write(one) == tmp_path / one.filename
    assert Folder(tmp_path).read() == sorted(records, key=lambda r: r.filename)
    assert all(os.stat(file).st_mode & 0o777 == 0o644 for file in tmp_path.glob("*.json"))
    assert not list(tmp_path.glob(".draft*"))


def test_what_is_no_record_is_named_with_the_reason(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    whole = record("a", DROPS)
    folder.claim("made_up")
    text = folder.write(whole).read_text()
    (tmp_path / "cut.json").write_text(text[:100])
    (tmp_path / "other.json").write_text(text.replace('"suite":"made_up"', '"suite":"another"'))
    (tmp_path / "unknown.json").write_text(text.replace('"ablation":{"base_items"', '"ablaton":{"base_items"'))
    (tmp_path / "changed.json").write_text(text.replace('"status":"ok"', '"status":"fine"'))
    assert folder.read() == [whole]
    assert folder.foreign.keys() == {"cut.json", "other.json", "unknown.json", "changed.json"}
    assert folder.foreign["other.json"] == "a record of suite 'another'"
    assert folder.foreign["unknown.json"].startswith("unknown evaluation 'ablaton'")
    assert folder.foreign["changed.json"].startswith("status: ")


def test_a_folder_belongs_to_one_suite(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new" / "folder")
    folder.claim("made_up", description="made by hand")
    assert folder.about() == {"suite": "made_up", "description": "made by hand"}
    folder.claim("made_up")
    assert folder.about()["description"] == "made by hand", "kept where nothing else is said"
    with pytest.raises(ConfigurationError, match="holds the records of suite 'made_up', not 'another'; choose another"):
        folder.claim("another")


def test_records_without_a_marker_say_whose_folder_it_is(tmp_path: Path) -> None:
    Folder(tmp_path).write(record("a", DROPS))
    with pytest.raises(ConfigurationError, match="holds the records of suite 'made_up', not 'another'"):
        Folder(tmp_path).claim("another")
    assert not (tmp_path / MARKER).exists()


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no results folder .*; run a suite with --out"):
        Folder(tmp_path / "none").read()


def test_scores_are_stored_once_and_read_where_they_are_what_the_record_says(tmp_path: Path) -> None:
    folder, content = Folder(tmp_path), b"scores"
    sha256 = hashlib.sha256(content).hexdigest()
    scores = stored().model_copy(update={"file": f"scores/{sha256}.safetensors", "sha256": sha256})
    whole = record("a", DROPS).model_copy(update={"scores": scores})
    assert folder.read_scores(whole) is None
    folder.write_scores(scores.file, content)
    first = (tmp_path / scores.file).stat()
    folder.write_scores(scores.file, content)
    again = (tmp_path / scores.file).stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    assert folder.read_scores(whole) == content
    (tmp_path / scores.file).write_bytes(b"other!")
    assert folder.read_scores(whole) is None
    assert folder.read_scores(whole.model_copy(update={"scores": None})) is None


# --- aggregates derived again -------------------------------------------------------------------------------------


def test_refreshing_writes_what_is_older_and_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    current, whole = record("current", DROPS), record("older", DROPS)
    for one in (current, _stale(whole)):
        folder.write(one)
    before = (tmp_path / current.filename).stat(), (tmp_path / current.filename).read_bytes()
    changed, total = folder.refresh()
    assert ([r.cell.method for r in changed], total) == (["older"], 2)
    again = (tmp_path / current.filename).stat(), (tmp_path / current.filename).read_bytes()
    assert (before[0].st_ino, before[0].st_mtime_ns, before[1]) == (again[0].st_ino, again[0].st_mtime_ns, again[1])
    (older,) = (r for r in Folder(tmp_path).read() if r.cell.method == "older")
    assert [older] == changed and older.derived is not None
    assert older.model_copy(update={"derived": None}) == whole
    assert folder.refresh() == ([], 2)


def test_a_value_that_is_no_number_is_current(tmp_path: Path) -> None:
    whole = record("a", [float("nan")] * 3)
    assert str(whole.aggregates[METRIC].value) == "nan"
    file = Folder(tmp_path).write(whole)
    before = file.read_bytes()
    assert Folder(tmp_path).refresh() == ([], 1)
    assert file.read_bytes() == before


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path)
    file = folder.write(_stale(record("a", DROPS)))
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=r"cannot write .*: No space left on device\."):
        folder.refresh()
    assert file.read_bytes() == before and not list(tmp_path.glob(".draft*"))


# --- the newest ---------------------------------------------------------------------------------------------------


def test_the_last_made_of_a_cell_and_its_examples_counts() -> None:
    records = [_made("2026-02"), _made("2026-03"), _made("2026-01"), _made("2026-01", "b")]
    chosen, passed_over = newest(records)
    assert sorted((r.cell.method, r.identity[:7]) for r in chosen) == [("a", "2026-03"), ("b", "2026-01")]
    assert passed_over == 2


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"variant": "another"},
        {"replacement": "zero"},
        {"settings": Settings(evaluations=("ablation",), max_kept=3)},
        {"settings": Settings(evaluations=("ablation",), dtype="bfloat16")},
        {"precomputed": Precomputed(file="f", sha256="s")},
    ],
)
def test_other_cells_and_other_examples_stand_beside_each_other(other: dict) -> None:
    chosen, passed_over = newest([_made("2026-01"), _made("2026-02", **other)])
    assert (len(chosen), passed_over) == (2, 0)


def test_of_two_files_under_one_name_the_later_counts() -> None:
    files = [Precomputed(file=name, sha256=name) for name in ("one", "two")]
    (chosen,), passed_over = newest([_made(f"2026-0{i}", precomputed=file) for i, file in enumerate(files, start=1)])
    assert (chosen.cell.precomputed, passed_over) == (files[1], 1)


def test_what_was_measured_with_other_options_is_the_same_cell() -> None:
    settings = Settings(evaluations=("ablation",), options={"ablation": {"draws": 7}})
    chosen, passed_over = newest([_made("2026-01"), _made("2026-02", settings=settings)])
    assert ([r.identity[:7] for r in chosen], passed_over) == (["2026-02"], 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r["measurements"]["ablation"]["clean"].pop(), "ablation: clean has 2 entries where there are 3"),
        (lambda r: r["measurements"]["ablation"]["top"][0][0].pop(), "top has 2 entries where there are 3 rows"),
        (lambda r: r["measurements"]["speed"]["seconds"].clear(), "speed: examples or seconds are empty"),
        (lambda r: r["subsets"].pop(), "subsets has 2 entries where items has 3"),
    ],
)
def test_a_record_with_a_list_that_is_short_is_named_with_the_field(tmp_path: Path, change: Any, why: str) -> None:
    folder = Folder(tmp_path)
    whole = json.loads(folder.write(record("a", DROPS)).read_text())
    change(whole)
    (tmp_path / "short.json").write_text(json.dumps(whole))
    assert [r.cell.method for r in folder.read()] == ["a"]
    assert why in folder.foreign["short.json"] and "\n" not in folder.foreign["short.json"]


def test_what_is_no_file_among_the_records_is_named_and_never_read(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(record("a", DROPS))
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / MARKER).write_text('{"suite": ' + "[" * 100_000)
    assert len(folder.read()) == 1
    assert folder.foreign.keys() == {"pipe.json", "zero.json", "deep.json"}
    assert folder.foreign["zero.json"] == "no regular file (a folder, pipe, socket or device)"
    with pytest.raises(ConfigurationError, match=r"suite.json cannot be read as JSON with a suite's name"):
        folder.claim("made_up")


# --- large records ----------------------------------------------------------------------------------------------------


def test_a_large_record_is_compressed_and_reads_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole = Folder(tmp_path), record("a", DROPS)
    plain = folder.write(whole)
    text = plain.read_bytes()
    assert folder.file_of(whole.filename) == plain
    monkeypatch.setattr(store, "PACKED_BYTES", len(text) - 1)
    packed = folder.write(whole)
    assert packed.name == f"{whole.filename}.gz" == folder.file_of(whole.filename).name
    assert gzip.decompress(packed.read_bytes()) == text and not plain.exists()  # one file for one record
    content = packed.read_bytes()
    assert folder.read() == [whole] and folder.write(whole).read_bytes() == content
    monkeypatch.setattr(store, "PACKED_BYTES", len(text))
    assert folder.write(whole) == plain and not packed.exists()
    assert folder.read() == [whole] and not folder.foreign


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda packed: packed[:-9], "no whole gzip file"),
        (lambda packed: packed + b"x", "no whole gzip file"),
        (lambda packed: b"{}", "no whole gzip file"),
        (lambda packed: packed[:40] + bytes(8) + packed[48:], "no whole gzip file"),
        (lambda packed: gzip.compress(b"{}"), "Field required"),
        (lambda packed: gzip.compress(bytes(2**21)), "more than 1,048,576"),
    ],
)
def test_a_compressed_file_that_is_no_record_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, why: str
) -> None:
    monkeypatch.setattr(store, "PACKED_BYTES", 1)
    folder, whole = Folder(tmp_path), record("a", DROPS)
    packed = folder.write(whole)
    monkeypatch.setattr(store, "RECORD_BYTES", 2**20)
    (tmp_path / "other.json.gz").write_bytes(change(packed.read_bytes()))
    assert folder.read() == [whole]
    assert why in folder.foreign["other.json.gz"] and "\n" not in folder.foreign["other.json.gz"]
