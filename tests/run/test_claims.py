"""Processes that share a folder: one holds a claim, and what dead ones held is free."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from attriboard.records.processes import Maker, this_process
from attriboard.records.store import DRAFT, DRAFT_DAYS, Folder
from attriboard.run.claims import LEASE, PREFIX, Claims
from attriboard.run.stored import Stored
from tests.bench.boards import record
from tests.bench.cli import BINARY, environment, process

DEAD = 2**22 - 3
"""No process has so high a number."""


def _claim(folder: Path, maker: Maker, age: float = 0.0) -> Path:
    file = folder / f"{PREFIX}cell"
    file.write_text(json.dumps(maker._asdict()))
    os.utime(file, (time.time() - age,) * 2)
    return file


def test_one_of_two_gets_a_claim_until_it_is_given_back(tmp_path: Path) -> None:
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take("cell") and one.take("cell") and not other.take("cell")
    assert other.holder("cell") == this_process() and other.take("another")
    one.give_back("cell")
    assert other.take("cell")
    one.close()
    other.close()
    assert not list(tmp_path.iterdir())


def test_of_many_exactly_one_takes_over_what_a_dead_process_held(tmp_path: Path) -> None:
    _claim(tmp_path, this_process()._replace(pid=DEAD, started=0))
    many = [Claims(tmp_path) for _ in range(16)]
    took: list[bool] = []
    threads = [threading.Thread(target=lambda c=c: took.append(c.take("cell"))) for c in many]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(took) == [False] * 15 + [True]
    for claims in many:
        claims.close()


@pytest.mark.parametrize(
    ("change", "age", "free"),
    [
        ({}, 0.0, False),
        ({"started": 1}, 0.0, True),  # the number was given to another process
        ({"host": "elsewhere", "pid": DEAD}, 0.0, False),
        ({"host": "elsewhere"}, LEASE + 60, True),
    ],
)
def test_a_claim_is_void_when_its_process_is_dead_or_its_lease_over(
    tmp_path: Path, change: dict, age: float, free: bool
) -> None:
    _claim(tmp_path, this_process()._replace(**change), age)
    claims = Claims(tmp_path)
    assert (claims.holder("cell") is None) == free
    assert claims.take("cell") == free
    claims.close()


def test_a_claim_that_says_nothing_is_left_until_its_lease_is_over(tmp_path: Path) -> None:
    file = _claim(tmp_path, this_process())
    file.write_text("")
    assert not Claims(tmp_path).take("cell")
    os.utime(file, (time.time() - LEASE - 60,) * 2)
    assert Claims(tmp_path).take("cell")


def test_drafts_of_dead_processes_are_cleared_and_those_of_running_ones_are_not(tmp_path: Path) -> None:
    here = this_process()
    (tmp_path / "scores").mkdir()
    dead = tmp_path / "scores" / f"{DRAFT}{here.host}-{DEAD}-abc.tmp"
    living = tmp_path / f"{DRAFT}{here.host}-{here.pid}-abc.tmp"
    elsewhere, old = tmp_path / f"{DRAFT}elsewhere-1-abc.tmp", tmp_path / f"{DRAFT}abcdef.tmp"
    for file in (dead, living, elsewhere, old):
        file.write_text("half")
    os.utime(old, (time.time() - DRAFT_DAYS * 86400 - 60,) * 2)
    Folder(tmp_path).claim("made_up")
    assert [file.exists() for file in (dead, living, elsewhere, old)] == [False, True, True, False]


def test_a_draft_bears_its_process_so_that_it_can_be_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*args: object) -> None:
        raise Killed

    monkeypatch.setattr("os.replace", die)
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)  # a killed process clears nothing
    with pytest.raises(Killed):
        Folder(tmp_path).write(record("a", [0.1, 0.2]))
    (draft,) = tmp_path.glob(f"{DRAFT}*")
    assert f"-{os.getpid()}-" in draft.name


@pytest.mark.slow
def test_two_runs_of_one_folder_share_the_cells_and_their_records_are_those_of_one(toy: dict, tmp_path: Path) -> None:
    suite = ["run", str(toy["suite"]), "--include", str(toy["task"])]
    command = [*BINARY, *suite, "--out", str(tmp_path / "shared")]
    env = environment(OMP_NUM_THREADS="1")
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    said = [run.communicate(timeout=300) for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    assert process(*suite, "--out", tmp_path / "one", env=env).returncode == 0
    alone, shared = (
        [record.without_timings() for record in Folder(tmp_path / name).read()] for name in ("one", "shared")
    )
    assert len(alone) == 3 and alone == shared
    assert sum(err.count("] ok ") for _, err in said) == 3, "each cell is run once"
    assert not list((tmp_path / "shared").glob(f"{PREFIX}*"))


def test_the_index_is_not_believed_of_a_file_that_was_changed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    one = record("a", [0.1, 0.2])
    folder.claim(one.suite)
    file = folder.write(one)
    assert set(Stored.of(folder).by_identity) == {one.identity}
    assert (tmp_path / ".index.jsonl").exists()
    file.write_text(file.read_text().replace('"rows"', '"rowz"')[:-20])
    again = Folder(tmp_path)
    assert not Stored.of(again).by_identity and file.name in again.foreign
    (tmp_path / ".index.jsonl").write_bytes(b"\xff[[[")
    folder.write(one)
    assert set(Stored.of(folder).by_identity) == {one.identity}
