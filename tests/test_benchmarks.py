"""The programs beside the suites: they run, and what they write is what they measured."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from attriboard.measurements.metrics import METRICS
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

Mean rank.

### heads

| method | rank |
| --- | ---: |
| a | 0.1 |

## Tables

### arithmetic, heads, m, n = 8

About few.

| method | area | speed |
| --- | ---: | ---: |
| few | 0.4 | 2 |

### arithmetic, heads, m, n = 8

About these.

| method | S |
| --- | ---: |
| a | 0.5 |

| method | area |
| --- | ---: |
| a | 7 |
| b | 8 |

| method | other area |
| --- | ---: |
| a | 9 |

### other, heads, m, n = 8

About the others.

| method | area |
| --- | ---: |
| a | 1 |
| b | 2 |
| c | 3 |

## Not run, and why

- nothing was left out.
"""


def test_sections_of_the_board_are_cut_out_whole() -> None:
    sections = runpy.run_path(str(BENCHMARKS / "readme.py"))["sections"]
    assert sections(BOARD, "heads\n") == [("heads", "", [["| method | rank |", "| --- | ---: |", "| a | 0.1 |"]])]
    few, these = sections(BOARD, "arithmetic, heads")
    assert (few.title, few.about, len(few.tables)) == ("arithmetic, heads, m, n = 8", "About few.", 1)
    assert (these.about, [rows[-1] for rows in these.tables]) == (
        "About these.",
        ["| a | 0.5 |", "| b | 8 |", "| a | 9 |"],
    )
    (last,) = sections(BOARD, "other")
    assert last.tables == [["| method | area |", "| --- | ---: |", "| a | 1 |", "| b | 2 |", "| c | 3 |"]]
    assert sections(BOARD, "none") == []


def test_a_table_is_found_by_its_columns_and_the_fullest_is_taken() -> None:
    readme = runpy.run_path(str(BENCHMARKS / "readme.py"))
    found = readme["fullest"](BOARD, "arithmetic, heads", ("area",))
    assert found.about == "About these." and [rows[-1] for rows in found.tables] == ["| b | 8 |"]
    found = readme["fullest"](BOARD, "arithmetic, heads", ("S", "other area"))
    assert [rows[-1] for rows in found.tables] == ["| a | 0.5 |", "| a | 9 |"]
    assert readme["fullest"](BOARD, "arithmetic, heads", ("speed",)).about == "About few."
    assert readme["shown"](found, "Name: ")[:3] == [
        "**Name: arithmetic, heads, m, n = 8.** About these.",
        "",
        "| method | S |",
    ]
    with pytest.raises(LookupError, match="no table 'arithmetic, heads' with a column 'bias'"):
        readme["fullest"](BOARD, "arithmetic, heads", ("bias",))


def test_what_is_looked_for_on_the_boards_are_columns_that_a_board_can_have() -> None:
    readme = runpy.run_path(str(BENCHMARKS / "readme.py"))
    titles = {metric.title for metric in METRICS.values()}
    assert {column for _, column in readme["TABLES"]} <= titles
    assert {column for _, _, columns in readme["ACTING"] for column in columns} <= titles


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    readme = runpy.run_path(str(BENCHMARKS / "readme.py"))
    before, after = readme["ACTING_MARKS"]
    empty = f"a\n\n{before}\n{after}\n\nz\n"
    once = readme["replaced"](empty, before, after, "| b |\n")
    assert once == f"a\n\n{before}\n\n| b |\n\n{after}\n\nz\n"
    assert readme["replaced"](once, before, after, "| b |\n") == once
