"""``python -m fuzz``: seeded bad input of every kind; what came of it, as ``results/reliability/fuzz.json``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path

from pydantic import BaseModel

from .common import Outcomes, run

KINDS = {
    "suites": 2500,
    "records": 2000,
    "scores": 1500,
    "pictures": 2500,
    "json_lines": 1200,
    "paths": 300,
    "model_folders": 300,
}
"""By kind of input, how many cases are run."""


class Fuzzed(BaseModel):
    """Outcomes by kind of input."""

    seed: int
    kinds: dict[str, Outcomes]

    @property
    def cases(self) -> int:
        return sum(outcomes.cases for outcomes in self.kinds.values())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="Only this kind (repeatable).")
    parser.add_argument("--cases", type=int, help="As many cases of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found = Fuzzed(seed=given.seed, kinds={})
    for kind in given.only or KINDS:
        if importlib.util.find_spec(f"fuzz.{kind}") is None:
            continue
        driver = importlib.import_module(f"fuzz.{kind}")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcomes = run(driver.cases(given.seed), given.cases or KINDS[kind])
        found.kinds[kind] = outcomes
        print(
            f"{kind}: {outcomes.cases} cases, {outcomes.refused} refused, {len(outcomes.tracebacks)} tracebacks, "
            f"{len(outcomes.hangs)} hangs, {outcomes.seconds} s",
            flush=True,
        )
        for fault in [*outcomes.tracebacks, *outcomes.hangs][:8]:
            print(f"  {fault.name}\n    {fault.what}".replace("\n", "\n    "), flush=True)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if any(outcomes.tracebacks or outcomes.hangs for outcomes in found.kinds.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
