"""Several processes of one computer: the same records as one gives, and none lost with a process."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import pytest

from attriboard.errors import ConfigurationError
from attriboard.method import methods
from attriboard.records.record import Cell, Planned, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run.claims import PREFIX, Claims
from attriboard.run.parts import groups_of, pairs_of
from attriboard.run.remote import packed, run_packed
from attriboard.run.runner import Outcome, run_cells
from attriboard.run.stored import Stored
from attriboard.run.suite import Suite
from attriboard.run.work import Work
from attriboard.run.worker import NOTHING, Earlier, Worker
from attriboard.run.workers import PER_PROCESSOR, SPAWN, Workers
from attriboard.task import tasks
from tests.bench.cli import BINARY, call, environment, interruptible

KILLED = '''
import os
import signal
from dataclasses import dataclass

from attriboard.method import Method


@dataclass
class Killed(Method):
    """Ends the process that it runs in."""

    name = "killed"
    paper = "none"
    description = "goes wrong"
    levels = ("heads",)

    def attribute(self, model, examples, level):
        os.kill(os.getpid(), signal.SIGKILL)
'''

SLEEPS = '''
import os
import time
from dataclasses import dataclass
from pathlib import Path

from attriboard.method import Method


@dataclass
class Sleeps(Method):
    """Says where it runs, and does not end."""

    name = "sleeps"
    paper = "none"
    description = "goes wrong"
    levels = ("heads",)
    folder: str = ""
    part: int = 0

    def attribute(self, model, examples, level):
        (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(600)
'''

SHORT = """
[settings]
train_examples = 12
test_examples = 12
max_kept = 6
min_kept = 4
folds = 0
evaluations = ["ablation"]
ablation = { draws = 1 }
speed = { examples = 1, repeats = 1 }
"""


def _suite(toy: dict, path: Path, groups: str) -> Path:
    path.write_text(f'name = "short"\nmodels = ["{toy["model"]}"]\n{SHORT}\n{groups}')
    return path


def _load(toy: dict, path: Path, groups: str) -> Suite:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    return Suite.load(_suite(toy, path, groups))


def _run(suite: Suite, path: Path, **changes) -> Outcome:
    return run_cells(suite.name, suite.plan(), Folder(path), **changes)


def _contents(path: Path) -> list[dict]:
    return [record.without_timings() for record in Folder(path).read()]


TWO_TASKS = """
[[groups]]
tasks = ["repeat", {name = "repeat", subsets = ["short"]}]
methods = ["random", "activation_norm", "weight_norm"]
levels = ["heads"]
replacements = ["counterfactual", "mean"]
"""


def test_two_workers_give_the_records_of_one_and_say_that_they_were_two(toy: dict, tmp_path: Path) -> None:
    suite = _load(toy, tmp_path / "short.toml", TWO_TASKS)
    assert not _run(suite, tmp_path / "one").failed
    begun: list[Cell] = []
    outcome = _run(suite, tmp_path / "two", workers=2, started=begun.append)
    assert len(outcome.made) == len(begun) == 12 and not outcome.failed
    assert _contents(tmp_path / "two") == _contents(tmp_path / "one")
    for name, n in (("one", 1), ("two", 2)):
        for record in Folder(tmp_path / name).read():
            assert record.provenance is not None and record.provenance.workers == n
            assert {stage.workers for stage in record.stages.values() if stage.created} == {n}
    assert not list((tmp_path / "two").glob(f"{PREFIX}*"))


def test_a_cell_crosses_to_another_process_whole(toy: dict, tmp_path: Path) -> None:
    suite = _load(toy, tmp_path / "short.toml", TWO_TASKS)
    (record,) = run_cells(suite.name, suite.plan()[:1], Folder(tmp_path / "out")).made
    earlier = Earlier(record, record, b"content", again=True)
    came: list[tuple[Planned, Earlier]] = []

    class Other(Worker):
        def execute(self, suite: str, planned: Planned, earlier: Earlier = NOTHING) -> tuple[Record, bytes | None]:
            came.append((planned, earlier))
            return record, b"scores"

    text, scores = run_packed(Other(), suite.name, pickle.loads(pickle.dumps(packed(suite.plan()[0], earlier))))
    assert came == [(suite.plan()[0], earlier)]
    assert (Record.model_validate_json(text), scores) == (record, b"scores")


def test_a_worker_that_is_killed_fails_its_cell_alone_and_is_replaced(toy: dict, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    methods.include(tmp_path / "killed.py")
    groups = '[[groups]]\ntasks = ["repeat"]\nmethods = ["killed", "random", "weight_norm"]\nlevels = ["heads"]\n'
    groups += 'replacements = ["counterfactual", "mean"]\n'
    suite = _load(toy, tmp_path / "short.toml", groups)
    outcome = _run(suite, tmp_path / "out", workers=2)
    assert len(outcome.made) == 6
    assert [record.cell.method for record in outcome.failed] == ["killed", "killed"]
    for record in outcome.failed:
        assert record.reason.startswith("its worker process was killed by signal 9; the memory may not be enough")
    assert len(Folder(tmp_path / "out").read()) == 6


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_ends_takes_its_workers_with_it_and_finished_cells_stay(
    toy: dict, tmp_path: Path, killed: bool
) -> None:
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    pids = tmp_path / "pids"
    pids.mkdir()
    sleepers = ", ".join(f'{{name = "sleeps", folder = "{pids}", part = {i}}}' for i in range(2))
    groups = f'[[groups]]\ntasks = ["repeat"]\nmethods = ["random", {sleepers}]\nlevels = ["heads"]\n'
    file, out = tmp_path / "short.toml", tmp_path / "out"
    _suite(toy, file, groups)
    arguments = ["run", file, "--out", out, "--include", toy["task"], "--include", tmp_path / "sleeps.py"]
    command = [*BINARY, *map(str, arguments), "--workers", "2"]
    with interruptible():
        # a group of its own, so that all its processes get the signal, as those at a terminal do
        run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    with run:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (len(list(pids.iterdir())) == 2 and list(out.glob("repeat.*.json"))):
            time.sleep(0.1)
        workers = [int(file.name) for file in pids.iterdir()]
        assert len(workers) == 2 and run.pid not in workers
        os.kill(run.pid, signal.SIGKILL) if killed else os.killpg(run.pid, signal.SIGINT)
        _, err = run.communicate(timeout=60)  # which ends when no process has the pipe any more
    assert run.returncode == (-signal.SIGKILL if killed else 130)
    assert killed or "finished cells are stored" in err
    assert "Traceback" not in err
    for pid in workers:
        assert _ended(pid)
    assert [record.cell.method for record in Folder(out).read()] == ["random"]
    assert killed or not list(out.glob(f"{PREFIX}*"))


def _ended(pid: int) -> bool:
    """Whether a process runs no more; of an orphan nobody may have asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("n", [0, -3, PER_PROCESSOR * (os.cpu_count() or 1) + 1, 10**30])
def test_a_number_of_workers_that_cannot_be_is_one_sentence(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    code, _, err = call(
        capsys, "run", toy["suite"], "--include", toy["task"], "--out", tmp_path / "out", "--workers", n
    )
    assert code == 2 and "--workers is" in err and "expected at" in err and "Traceback" not in err


def test_workers_are_not_rays(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--include", toy["task"], "--out", tmp_path / "out", "--executor", "ray", "--workers", 2]
    code, _, err = call(capsys, "run", toy["suite"], *arguments)
    assert code == 2 and "--workers belongs to --executor local" in err


# --- who gets what -------------------------------------------------------------------------------------------------


def _order(tmp_path: Path, counts: dict[tuple[str, str], int], n: int) -> list[list[tuple[str, str]]]:
    """What each of ``n`` workers is given, (model, task) in order, where all cells take equally long."""
    plan = [
        Planned(Cell(task=task, method="random", method_options={"seed": i}, model=model, level="heads"), Settings())
        for (model, task), count in counts.items()
        for i in range(count)
    ]
    pairs = pairs_of(plan)
    stored = Stored(Folder(tmp_path))
    crew = Workers("toy", stored, lambda cell: None, n)
    claims = Claims(tmp_path)
    work, groups = Work(dict(pairs), stored, claims), groups_of(pairs)
    given: list[list[tuple[str, str]]] = [[] for _ in range(n)]
    while any(groups.values()):
        for seat, own in zip(crew.seats, given):
            name = crew._chosen(seat, groups, work)
            if name is not None:
                (planned,) = work.take(name) or []
                seat.left = [planned]
                own.append((planned.cell.model, planned.cell.task))
    claims.close()
    everything = sorted(one for own in given for one in own)
    assert everything == sorted((p.cell.model, p.cell.task) for p in plan), "each cell once"
    return given


def test_a_worker_stays_with_a_task_and_a_model_while_there_is_enough(tmp_path: Path) -> None:
    copy, other = "planted-copy", "planted-arithmetic"
    counts = {(copy, "ioi"): 3, (copy, "arithmetic"): 3, (other, "ioi"): 3, (other, "arithmetic"): 3}
    one, two = _order(tmp_path, counts, 2)
    assert one == [(copy, "ioi")] * 3 + [(copy, "arithmetic")] * 3
    assert two == [(other, "ioi")] * 3 + [(other, "arithmetic")] * 3


def test_a_worker_without_work_helps_with_the_largest_task_that_is_left(tmp_path: Path) -> None:
    counts = {("planted-copy", "ioi"): 2, ("planted-copy", "arithmetic"): 8, ("planted-copy", "color_tqa"): 5}
    one, two, three = _order(tmp_path, counts, 3)
    assert [task for _, task in one] == ["ioi"] * 2 + ["arithmetic"] * 3
    assert [task for _, task in two] == ["arithmetic"] * 5 and [task for _, task in three] == ["color_tqa"] * 5


def test_a_computer_that_is_full_of_processes_is_one_sentence(
    toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(process: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(SPAWN.Process, "start", full)
    with pytest.raises(ConfigurationError, match=r"can be started \(.*\); ask for fewer --workers"):
        _run(_load(toy, tmp_path / "short.toml", TWO_TASKS), tmp_path / "out", workers=2)
    assert not list((tmp_path / "out").glob(f"{PREFIX}*"))


def test_a_worker_that_cannot_start_is_one_sentence(toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = _load(toy, tmp_path / "short.toml", TWO_TASKS)
    monkeypatch.setattr("attriboard.run.workers._serve", os._exit)  # refuses its arguments
    with pytest.raises(ConfigurationError, match="ended with exit code 1 before it could run anything"):
        _run(suite, tmp_path / "out", workers=2)
