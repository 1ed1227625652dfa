"""What several processes on one computer are worth: the same cells run by one and by N, in turn.

Three ways, each a whole command from its start to its end with a folder of its own: one worker with one thread; one
worker with N threads; N workers with one thread each. The first and the last must give the same records. The cells are
those of a task of the planted suite, whose models are small, so that no other part of the computer is in the way.

    python benchmarks/workers.py --out results/workers.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from attriboard.records.store import Folder
from attriboard.run.provenance import provenance


def run(arguments: list[str], out: Path, workers: int, threads: int) -> float:
    """Runs the cells; returns the seconds that it took."""
    command = [sys.executable, "-m", "attriboard.cli", "run", *arguments, "--workers", str(workers), "--out", str(out)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **limits})
    return time.perf_counter() - start


def contents(folder: Path) -> list[str]:
    """What does not vary of each record, as text, in which a number that is none equals itself."""
    return [json.dumps(record.without_timings(), sort_keys=True) for record in Folder(folder).read()]


def measured(arguments: list[str], n: int, repeats: int) -> dict[str, Any]:
    """The seconds of each way, and how often N workers are as fast as one."""
    ways = {"one worker, one thread": (1, 1), f"one worker, {n} threads": (1, n), f"{n} workers": (n, n)}
    alone, _, together = ways
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / str(i) for i, name in enumerate(ways)}
        for i in range(repeats):
            for name, (workers, threads) in ways.items():
                out = folders[name] / str(i)
                seconds[name].append(run(arguments, out, workers, threads))
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
        first, last = (contents(folders[name] / "0") for name in (alone, together))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "cells": len(first),
        "seconds": seconds,
        "median_seconds": median,
        "times_faster": {name: median[name] / median[together] for name in ways if name != together},
        "records_equal": first == last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="planted")
    parser.add_argument("--task", default="planted_copy")
    parser.add_argument("--level", default=None, help="only this level, for a trial")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/workers.json"))
    given = parser.parse_args()
    arguments = [given.suite, "--task", given.task, *(["--level", given.level] if given.level else [])]
    result = {
        "run": " ".join(arguments),
        "workers": given.workers,
        "processors": os.cpu_count(),
        **measured(arguments, given.workers, given.repeats),
        "provenance": provenance(torch.device("cpu")).model_dump(mode="json", exclude={"threads", "workers"}),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["times_faster"]), "records equal:", result["records_equal"])


if __name__ == "__main__":
    main()
