"""``python -m fuzz.crash``: runs are killed at every point of a write and at random; what is lost, as a record.

A run is real: a small suite on a planted model, in a process of its own. Kills at points come from the process itself
(SIGKILL, at the k-th time that it reaches the point), kills at random from outside (SIGKILL, SIGTERM or SIGINT, after a
random time). The same folder is run again until everything is done. Lost is a record that a run had called finished and
that is not there, whole, with the reference's numbers; left over is any draft or claim in the folder at the end.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from attriboard.records.record import Record
from attriboard.records.store import DRAFT, Folder
from attriboard.run import index, worker
from attriboard.run.claims import PREFIX
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite

from .common import scratch

SUITE = """
name = "small"
models = ["planted-copy"]
[settings]
train_examples = 8
test_examples = 8
max_kept = 4
min_kept = 1
folds = 0
repetitions = 1
evaluations = ["ablation"]
ablation = { draws = 1 }
speed = { examples = 1, repeats = 1 }
batch_size = 8
[[groups]]
tasks = ["planted_copy"]
methods = ["random", "weight_norm"]
levels = ["heads", "nodes"]
"""
POINTS = ("draft made", "half written", "before fsync", "after fsync", "before rename", "after rename",
          "before claim", "after claim", "before index", "after index")  # fmt: skip


Say = Callable[[str], None]
Work = Callable[[Say], None]


class Crashes(BaseModel):
    """What came of all kills.

    Attributes:
        at_points: by point, how often a run was killed there.
        at_random: by signal, how often a run was killed while it ran.
        lost: records that were called finished and were not there, or had other numbers.
        unequal: folders whose final records were not the reference's.
        left_over: drafts and claims in folders that were run to their end.
        twice: cells that were run again though their record was there.
        seconds: wall time.
    """

    cells: int
    at_points: dict[str, int]
    at_random: dict[str, int]
    lost: int = 0
    unequal: int = 0
    left_over: int = 0
    twice: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(self.at_points.values()) + sum(self.at_random.values())


def in_child(work: Work, killed_after: float = 0.0, by: int = 0) -> tuple[int, list[str]]:
    """Runs something in a forked process, and kills that after some seconds where a signal is given.

    Returns:
        the signal it died of (0 if it came to its end), and the lines that it said.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            work(lambda line: void(os.write(write, f"{line}\n".encode())))
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    os.close(write)
    if by:
        time.sleep(killed_after)
        os.kill(pid, by)
    with os.fdopen(read) as lines:
        said = lines.read().splitlines()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), said
    if os.WEXITSTATUS(status) == 130:
        return signal.SIGINT, said
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"a run failed: {said[-1:]}")
    return 0, said


def void(value: Any) -> None:
    """Nothing, of whatever was returned."""


def run(plan: list[Any], folder: Path, say: Callable[[str], None]) -> None:
    """The suite in a folder; says the file of each finished record, as ``attriboard run`` prints its cells."""
    run_cells("small", plan, Folder(folder), finished=lambda record: say(record.filename))


def kill_at(point: str, time_of: int) -> None:
    """Makes this process kill itself the ``time_of``-th time that it reaches a point."""
    count = 0

    def reached() -> None:
        nonlocal count
        count += 1
        if count == time_of:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner: Any, name: str, before: bool) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before:
                reached()
            value = real(*args, **kwargs)
            if not before:
                reached()
            return value

        setattr(owner, name, wrapped)

    if point == "half written":
        real_open = os.fdopen

        def opened(handle: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = real_open(handle, mode, *args, **kwargs)
            if mode != "wb":
                return file

            class Half:
                """A file whose content is written in two halves."""

                def write(self, content: bytes) -> None:
                    file.write(content[: len(content) // 2])
                    file.flush()
                    reached()
                    file.write(content[len(content) // 2 :])

                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

            return Half()

        os.fdopen = opened  # type: ignore[assignment]
        return
    from attriboard.records import store

    owner, name = {
        "draft": (store.tempfile, "mkstemp"),
        "fsync": (os, "fsync"),
        "rename": (os, "replace"),
        "claim": (os, "link"),
        "index": (index, "append"),
    }[point.replace(" made", "").split()[-1]]
    around(owner, name, point.startswith("before"))


def numbers(record: Record) -> str:
    """All of a record that equal runs share."""
    return json.dumps(record.without_timings(), sort_keys=True)


class Bench:
    """A folder under test, and what its records must be."""

    def __init__(self, plan: list[Any], reference: dict[str, str], folder: Path, found: Crashes) -> None:
        self.plan, self.reference, self.folder, self.found = plan, reference, folder, found
        self.finished: set[str] = set()

    def step(self, work: Callable[[Callable[[str], None]], None], after: float = 0.0, by: int = 0) -> int:
        """One run, killed or not; counts what it lost."""
        signal_, said = in_child(work, after, by)
        self.found.twice += len(self.finished & set(said))
        self.finished |= set(said)
        there = {record.filename: numbers(record) for record in Folder(self.folder).records()} if said else {}
        if said:
            self.found.lost += sum(there.get(name) != self.reference[name] for name in self.finished)
        return signal_

    def end(self) -> None:
        """The folder is run to its end, and looked through."""
        self.step(lambda say: run(self.plan, self.folder, say))
        there = {record.filename: numbers(record) for record in Folder(self.folder).records()}
        self.found.unequal += there != self.reference
        left = [file.name for file in self.folder.rglob("*") if file.name.startswith((DRAFT, PREFIX))]
        self.found.left_over += len(left)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz.crash", description=__doc__)
    parser.add_argument("--random", type=int, default=200, help="How many kills at random.")
    parser.add_argument("--times", type=int, default=12, help="At each point, up to which time it is reached.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    start = time.perf_counter()
    with scratch() as folder:
        worker.load_model = functools.cache(worker.load_model)
        file = folder / "small.toml"
        file.write_text(SUITE)
        plan = Suite.load(file).plan()
        run(plan, folder / "first", void)  # loads the model, which the runs that are forked have then
        gc.freeze()
        began = time.perf_counter()
        in_child(lambda say: run(plan, folder / "reference", say))
        whole = time.perf_counter() - began
        reference = {record.filename: numbers(record) for record in Folder(folder / "reference").read()}
        found = Crashes(cells=len(plan), at_points={}, at_random={})
        points: Counter[str] = Counter()
        for point in POINTS:
            for at in range(1, given.times + 1):
                bench = Bench(plan, reference, folder / f"{point}{at}", found)

                def killed(say: Callable[[str], None], bench: Bench = bench, point: str = point, at: int = at) -> None:
                    kill_at(point, at)
                    run(plan, bench.folder, say)

                if not bench.step(killed):
                    break  # it is reached less often
                points[point] += 1
                bench.end()
        found.at_points = dict(points)
        rng = random.Random(given.seed)
        signals: Counter[str] = Counter()
        number = 0
        while signals.total() < given.random:
            number += 1
            bench = Bench(plan, reference, folder / f"random{number}", found)
            for _ in range(4):
                by = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
                died = bench.step(lambda say, b=bench: run(plan, b.folder, say), rng.uniform(0, whole), by)  # type: ignore[misc]
                if died:
                    signals[signal.Signals(died).name] += 1
            bench.end()
        found.at_random = dict(sorted(signals.items()))
    found.seconds = round(time.perf_counter() - start, 1)
    print(found.model_dump_json(indent=1))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if found.lost or found.unequal or found.left_over or found.twice:
        sys.exit(1)


if __name__ == "__main__":
    main()
