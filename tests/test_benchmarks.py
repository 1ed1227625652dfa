"""The programs beside the suites: they run, and what they write is what they measured."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attriboard.measurements.registry import METRICS
from attriboard.method import methods
from attriboard.records.record import Aggregate, Record
from attriboard.run.suite import Suite, suites
from tests.bench.boards import record

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_every_forward_only_method_is_timed_on_the_shape_of_a_model_that_sees(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "speed.json"
    arguments = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--repeats", "2", "--out", str(out)]
    # a process of its own: methods that other tests include are not timed
    subprocess.run([sys.executable, str(BENCHMARKS / "speed_vision.py"), *arguments], check=True, capture_output=True)
    stored = json.loads(out.read_text())
    timed = {(row["level"], row["method"]) for row in stored["methods"]}
    for level in ("patches", "heads", "neurons"):
        for cls in (cls for cls in methods if cls.__module__.startswith("attriboard.methods.")):
            forward_only = not cls.needs - {"forward", "weights"}
            assert ((level, cls.name) in timed) == (forward_only and level in cls.levels), (level, cls.name)
    for row in stored["methods"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median_seconds"] <= max(row["seconds"])
    cost = {(row["level"], row["method"]): row["forward_equivalents"] for row in stored["methods"]}
    assert cost["patches", "mean_attention"] == cost["heads", "activation_norm"] == 1
    # rows through the unembedding behind a pass: of heads, the inputs of 3 layers and 12 heads; of patches, the inputs
    # of 2 layers there and back, their 8 heads each with its layer's input, then 4 patches with theirs
    beyond = [cost[which] - 1 for which in (("heads", "log_prob_increase"), ("patches", "patch_log_prob_increase"))]
    assert beyond[0] > 0 and beyond[0] / beyond[1] == pytest.approx((3 + 12) / (2 * 2 + 2 * 8 + 1 + 4))
    assert cost["heads", "weight_norm"] == 0


@pytest.mark.slow
def test_cells_of_one_worker_and_of_two_are_timed_and_compared(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "workers.json"
    arguments = ["--task", "planted_copy", "--level", "attn_neurons", "--repeats", "1", "--out", str(out)]
    subprocess.run([sys.executable, str(BENCHMARKS / "workers.py"), *arguments], check=True, capture_output=True)
    stored = json.loads(out.read_text())
    assert stored["records_equal"] and stored["cells"] == 8 and stored["workers"] == 2
    seconds = {name: times[0] for name, times in stored["seconds"].items()}
    together = seconds.pop("2 workers")
    assert stored["times_faster"] == {name: each / together for name, each in seconds.items()}


def test_what_a_gpu_is_measured_by_runs_on_a_cpu_and_both_sides_agree(tmp_path: Path) -> None:
    program, out = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--small"], tmp_path / "gpu.json"
    subprocess.run([*program, "--out", str(out)], check=True, capture_output=True)
    found = json.loads(out.read_text())["items"]
    assert len(found) == 10
    assert not [item for item in found.values() if "failed" in item or "skipped" in item]
    assert found["rates"]["float32_flops_per_second"] > 0
    for shape in ("7B", "135M"):
        increase = found[f"log-probability increase, {shape}"]
        assert increase["same_of_top_100"] >= 98, "but for ties within rounding"
        assert increase["largest_difference_in_top_100"] < 1e-5
    occlusion = found["occlusion, 7B"]
    assert occlusion["largest_difference"] < 1e-4
    # each of 24 positions is the first that is run, 24 to 1 of them
    assert occlusion["whole_forward_equivalents"] == pytest.approx(25)
    assert 1 + 0.5 * 24 < occlusion["behind_prefixes_forward_equivalents"] < 1 + 0.6 * 24
    assert found["head ablation, 7B"]["share_of_matrix_rate"] > 0


def test_what_does_not_fit_into_the_time_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out), "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")
    found = json.loads(out.read_text())["items"]
    assert len(found) == 10
    assert all("0 of 0 s are left" in item["skipped"] for item in found.values())


RULES = {"first_layers", "last_layers", "difference_norm"}
"""What anyone could write down without attribution, and a method must be better than."""


@pytest.mark.parametrize("name", sorted(suites()))
def test_where_methods_are_held_against_random_they_are_held_against_rules_too(name: str) -> None:
    assert all(methods.get(rule).control_kind == "trivial" for rule in RULES)
    tables: dict[str, set[str]] = defaultdict(set)
    for cell, settings in Suite.load(Path(name)).plan():
        if cell.level in ("heads", "neurons", "nodes") and "faithfulness" in settings.measured(cell.level):
            table = cell.model_copy(update={"method": "any", "method_options": {}})
            tables[str(table)].add(cell.method)
    against_random = {table: found for table, found in tables.items() if "random" in found}
    assert {table: RULES - found for table, found in against_random.items() if RULES - found} == {}
    assert against_random or name not in ("quick", "full")


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


@pytest.fixture(scope="module")
def readme() -> dict[str, Any]:
    """What ``benchmarks/readme.py`` defines."""
    return runpy.run_path(str(BENCHMARKS / "readme.py"))


def test_sections_of_the_board_are_cut_out_whole(readme: dict[str, Any]) -> None:
    sections = readme["sections"]
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


def test_a_table_is_found_by_its_columns_and_the_fullest_is_taken(readme: dict[str, Any]) -> None:
    section = readme["fullest"](BOARD, "arithmetic, heads", ("area",))
    assert section.about == "About these." and [rows[-1] for rows in section.tables] == ["| b | 8 |"]
    section = readme["fullest"](BOARD, "arithmetic, heads", ("S", "other area"))
    assert [rows[-1] for rows in section.tables] == ["| a | 0.5 |", "| a | 9 |"]
    assert readme["fullest"](BOARD, "arithmetic, heads", ("speed",)).about == "About few."
    assert readme["in_full"](section, "Name: ")[:3] == [
        "**Name: arithmetic, heads, m, n = 8.** About these.",
        "",
        "| method | S |",
    ]
    with pytest.raises(LookupError, match="no table 'arithmetic, heads' with a column 'bias'"):
        readme["fullest"](BOARD, "arithmetic, heads", ("bias",))


TABLE = [
    "| method | S | (\\|score\\|) | N |",
    "| --- | ---: | ---: | ---: |",
    "| a | **0.9** | 1 | 2 |",
    "| *x* | 0.8 | 3 | 4 |",
    "| b | 0.7 | 5 | 6 |",
    "| c | 0.6 | 7 | 8 |",
    "| *y* |  | 9 | 10 |",
]


def test_the_best_methods_and_all_controls_are_selected_in_the_boards_order(readme: dict[str, Any]) -> None:
    assert readme["selected"](TABLE, ("N", "S"), best=2) == [
        "| method | N | S |",
        "| --- | ---: | ---: |",
        "| a | 2 | **0.9** |",
        "| *x* | 4 | 0.8 |",
        "| b | 6 | 0.7 |",
        "| *y* | 10 |  |",
    ]
    assert readme["selected"](TABLE, (r"(\|score\|)",), best=1)[2:] == ["| a | 1 |", "| *x* | 3 |", "| *y* | 9 |"]
    with pytest.raises(LookupError, match="the table has no column 'CMD'"):
        readme["selected"](TABLE, ("S", "CMD"), best=2)


def test_what_is_looked_for_on_the_boards_are_columns_that_a_board_can_have(readme: dict[str, Any]) -> None:
    titles = {metric.title for metric in METRICS.values()}
    for _, columns in (readme["SMALL"], *readme["WHOLE"]):
        assert set(columns) <= titles
    assert {column for _, _, columns in readme["USES"] for column in columns} <= titles


def test_only_what_stands_between_the_marks_is_replaced(readme: dict[str, Any]) -> None:
    empty = "a\n\n<!-- uses -->\n<!-- /uses -->\n\nz\n"
    once = readme["replaced"](empty, "uses", "| b |\n")
    assert once == "a\n\n<!-- uses -->\n\n| b |\n\n<!-- /uses -->\n\nz\n"
    assert readme["replaced"](once, "uses", "| b |\n") == once
    with pytest.raises(ValueError, match="not found"):
        readme["replaced"](empty, "ranks", "| b |")


def test_only_the_quick_suite_is_called_a_smoke_test(readme: dict[str, Any]) -> None:
    assert "smoke test" in readme["caveat"]("# Leaderboard\n\nSuite `quick`. Five tasks.\n")
    said = readme["caveat"]("# Leaderboard\n\nSuite `standard`. Eight tasks.\n")
    assert "smoke" not in said and "`standard`" in said
    assert readme["PUBLISHED"].name == ("standard" if (readme["STANDARD"] / "suite.json").exists() else "quick")


def test_every_excerpt_has_its_marks_on_its_page(readme: dict[str, Any]) -> None:
    for page, parts in readme["excerpts"]().items():
        text = (BENCHMARKS.parent / page).read_text()
        for name, middle in parts.items():
            assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
            assert middle.strip()


def test_the_best_method_is_compared_with_the_random_control_on_the_same_examples(
    readme: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentences about pairs, from records of which only what they read is filled in."""

    def cell(method: str, value: float, control: bool = False, evaluation: str = "pruning", factor: float = 0.0):
        names = ("pruning_accuracy_half", "pruning_accuracy_half_absolute", "bias_removed")
        return SimpleNamespace(
            cell=SimpleNamespace(method=method, method_label=method, level="neurons"),
            control=control,
            chance=0.1 if evaluation == "pruning" else None,
            aggregates={name: SimpleNamespace(value=value) for name in names},
            measurements={evaluation: value},
            settings=SimpleNamespace(
                of={
                    "pruning": SimpleNamespace(recovery_steps=0),
                    "bias": SimpleNamespace(factor=factor, sizes=[8]),
                }.__getitem__
            ),
        )

    def module(name: str) -> SimpleNamespace:
        if name.endswith("pruning"):
            return SimpleNamespace(paired_difference=lambda a, b, sparsity, absolute: (b - a, -0.25, None))
        return SimpleNamespace(paired_difference=lambda a, b: (a - b, (0.0, 0.5)))

    space = readme["paired"].__globals__
    monkeypatch.setitem(space, "importlib", SimpleNamespace(import_module=module))
    records = [cell("a", 0.5), cell("b", 0.75), cell("random_same_layer", 0.25, True), cell("wanda", 0.9, True)]
    for factor in (0.0, 0.5):
        records += [cell("a", 0.5 + factor, False, "bias", factor), cell("b", 0.75, False, "bias", factor)]
        records.append(cell("random_same_layer", 0.25, True, "bias", factor))
    lines = readme["paired"](records).splitlines()[2:]
    chance = "random_same_layer"
    named = [["b", "wanda"], ["b", "wanda"], ["b", chance], ["a", chance]]
    assert [re.findall(r"`(\w+)`", line) for line in lines] == named
    assert lines[0].endswith(
        "keeps an accuracy of 0.750, same-layer random 0.250; difference −0.500. The best control, `wanda`, has 0.900, "
        "and guessing among the labels gives 0.10."
    )
    assert lines[3].endswith(
        "removes 1.000 of it, same-layer random 0.250; difference 0.750 [0.000, 0.500], so none is shown. The best "
        "control, `random_same_layer`, has 0.250."
    )


def test_what_is_known_of_planted_models_is_one_table_for_each_level() -> None:
    truth = runpy.run_path(str(BENCHMARKS / "ground_truth.py"))
    mechanism = next(iter(truth["MECHANISMS"]))

    def known(method: str, value: float, model: str, **changes: Any) -> Record:
        whole = record(method, [0.1], task=f"planted_{mechanism}", model=model, **changes)
        return whole.model_copy(update={"aggregates": {"truth_auroc": Aggregate(value=value, version=1)}})

    records = [known("a", 0.5, "m"), known("a", 0.7, "n"), known("b", 0.9, "m"), known("c", 0.1, "m", control=True)]
    assert truth["tables"](records).splitlines() == [
        "**heads**",
        "",
        f"| method | {mechanism} |",
        "| --- | ---: |",
        "| b | 0.90 |",
        "| a | 0.60 (0.50 to 0.70) |",
        "| *c* | 0.10 |",
    ]
