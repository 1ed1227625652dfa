"""The programs beside the suites: they run, and what they write is what they measured."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

from attriboard.method import methods

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_every_forward_only_method_is_timed_on_the_shape_of_a_model_that_sees(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "speed.json"
    arguments = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--repeats", "2", "--out", str(out)]
    # a process of its own: methods that other tests include are not timed
    subprocess.run([sys.executable, str(BENCHMARKS / "speed_vision.py"), *arguments], check=True, capture_output=True)
    stored = json.loads(out.read_text())
    made = {(row["level"], row["method"]) for row in stored["methods"]}
    for level in ("patches", "heads", "neurons"):
        for cls in (cls for cls in methods if cls.__module__.startswith("attriboard.methods.")):
            forward_only = not cls.needs - {"forward", "weights"}
            assert ((level, cls.name) in made) == (forward_only and level in cls.levels), (level, cls.name)
    for row in stored["methods"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median_seconds"] <= max(row["seconds"])
    cost = {(row["level"], row["method"]): row["forward_equivalents"] for row in stored["methods"]}
    assert cost["patches", "patch_log_prob_increase"] == cost["heads", "log_prob_increase"] == 1
    assert cost["heads", "weight_norm"] == 0


BOARD = """# Leaderboard

## Overall

### heads

| method | rank |
| --- | ---: |
| a | 0.1 |

## Tables

### arithmetic, heads, m, n = 8

About these.

| method | S |
| --- | ---: |
| a | 0.5 |

| method | more |
| --- | ---: |
| a | 7 |

### other, heads, m, n = 8
"""


def test_a_section_of_the_board_is_cut_out_whole() -> None:
    section = runpy.run_path(str(BENCHMARKS / "readme.py"))["section"]
    assert section(BOARD, "heads\n") == ("heads", ["| method | rank |", "| --- | ---: |", "| a | 0.1 |"], "")
    title, rows, about = section(BOARD, "arithmetic, heads")
    assert (title, rows[-1], len(rows), about) == ("arithmetic, heads, m, n = 8", "| a | 0.5 |", 3, "About these.")
