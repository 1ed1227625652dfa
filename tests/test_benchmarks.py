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
import torch

from attriboard.measurements.registry import METRICS
from attriboard.method import methods
from attriboard.records.record import Aggregate, Record
from attriboard.run.suite import Suite, suites
from tests.bench.boards import record
from tests.bench.models import example, hooked

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
    assert len(found) == 12
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
    assert len(found) == 12
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


# --- other people's code beside ours ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peers() -> dict[str, Any]:
    """What ``benchmarks/peers.py`` defines."""
    return runpy.run_path(str(BENCHMARKS / "peers.py"))


def bench(peers: dict[str, Any], **changes: Any) -> Any:
    """A tiny model of Llama's family, with two prompts of one length."""
    model = hooked("llama", batch_size=4)
    prompts = [example(a, counterfactual=b) for a, b in (((3, 5, 7, 9), (3, 6, 7, 9)), ((4, 5, 7, 8), (4, 6, 7, 8)))]
    return peers["Bench"](model, prompts, prompts[0], **changes)


def compared(peers: dict[str, Any], theirs: torch.Tensor, **changes: Any) -> Any:
    """A comparison with a peer that returns these values; ours are 1, -2, 3 and 4."""
    ours = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    weight = torch.nn.Linear(2, 2, bias=False)
    given = {"equal": True, "difference": "Equal.", "modules": (weight,)} | changes
    return peers["Comparison"]("captum", "four numbers", 1, lambda: weight(ours) * 0 + ours, lambda: theirs, **given)


RATES = SimpleNamespace(flops=8.0, bytes=4.0)
"""Floating-point operations and bytes in a second."""


def test_values_and_times_of_a_peer_are_those_of_its_own_code(peers: dict[str, Any]) -> None:
    theirs = torch.tensor([[1.0, -2.0], [3.0, 4.00001]])
    found = peers["measured"](compared(peers, theirs), pairs=3, rates=RATES)
    assert found["agreement"]["all"]["values"] == 4 and found["agreement"]["all"]["rank_correlation"] == 1
    assert found["agreement"]["all"]["largest_difference"] == pytest.approx(0.00001 / 4, rel=0.05)
    ratios = sorted(b / a for a, b in zip(found["seconds"]["ours"], found["seconds"]["theirs"], strict=True))
    assert len(ratios) == 3
    assert found["times_faster"] == {"smallest": ratios[0], "median": ratios[1], "largest": ratios[2]}
    # a product of 2 by 2 by 2 has 16 operations, and reads 4 weights of 4 bytes: 2 seconds and 4 seconds
    assert found["floor"]["ours"] == {"seconds": 4, "flops": 16, "weight_bytes": 16}
    assert found["floor"]["theirs"] == {"seconds": 0, "flops": 0, "weight_bytes": 0}


def test_both_sides_are_run_in_turn(peers: dict[str, Any]) -> None:
    order: list[str] = []
    peers["in_turn"](lambda: order.append("ours"), lambda: order.append("theirs"), 2)
    assert order == ["ours", "theirs"] * 2


def test_parts_are_compared_by_themselves_and_only_what_should_be_equal_must_be(peers: dict[str, Any]) -> None:
    theirs = torch.tensor([[1.0, -2.0], [4.0, 3.0]])
    rows = {"parts": lambda values: {"first": values[0], "second": values[1]}}
    with pytest.raises(peers["Disagreement"], match=r"four numbers, second: .* differ by 0\.25 of the largest"):
        peers["measured"](compared(peers, theirs, **rows), pairs=1, rates=RATES)
    found = peers["measured"](compared(peers, theirs, equal=False, timed=False, **rows), pairs=1, rates=RATES)
    assert found["agreement"]["first"]["largest_difference"] == 0
    second = found["agreement"]["second"]
    assert (second["largest_difference"], second["rank_correlation"]) == (0.25, pytest.approx(-1))
    assert "seconds" not in found
    with pytest.raises(ValueError, match=r"ours has shape \(2, 2\), theirs \(2,\)"):
        peers["agreement"](torch.ones(2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="not finite"):
        peers["agreement"](torch.ones(2), torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion"])
def test_on_a_tiny_model_captum_gives_what_our_methods_give(peers: dict[str, Any], name: str) -> None:
    found = peers["measured"](peers[name](bench(peers)), pairs=1, rates=RATES)
    assert found["agreement"]["all"]["values"] == 2 * 4
    assert found["agreement"]["all"]["largest_difference"] < peers["ROUNDING"]


def test_kernel_shap_estimates_what_sampled_orders_estimate(peers: dict[str, Any]) -> None:
    comparison = peers["kernel_shap"](bench(peers))
    ours, theirs = comparison.ours(), comparison.theirs()
    # both divide the same difference among the tokens, each with passes of its own
    assert float(theirs.sum()) == pytest.approx(float(ours.sum()), rel=1e-3)
    assert not torch.equal(ours, theirs)


def test_norms_of_a_clone_are_read_from_its_file(peers: dict[str, Any], tmp_path: Path) -> None:
    code = tmp_path / "wanda" / "lib" / "layerwrapper.py"
    code.parent.mkdir(parents=True)
    # what the published class keeps, written anew: squares summed over tokens, averaged over sequences
    code.write_text(
        "class WrappedGPT:\n"
        "    def __init__(self, layer):\n"
        "        self.layer = layer\n"
        "    def add_batch(self, inp, out):\n"
        "        self.scaler_row = inp.float().square().sum((0, 1)) / len(inp)\n"
    )
    comparison = peers["wanda"](bench(peers, clones=tmp_path))
    assert peers["agreement"](comparison.ours(), comparison.theirs())["largest_difference"] < peers["ROUNDING"]


def test_a_peer_that_is_not_there_is_left_out_with_a_sentence(peers: dict[str, Any], tmp_path: Path) -> None:
    def there(bench: Any) -> Any:
        return compared(peers, torch.tensor([[1.0, -2.0], [3.0, 4.0]]), timed=False)

    def absent(bench: Any) -> Any:
        return peers["package"]("TransformerLens", "a_package_that_nobody_has")

    *_, stored = peers["run"](bench(peers), 1, (peers["wanda"], absent, there))
    assert [found["compared"] for found in stored["comparisons"]] == ["four numbers"]
    assert stored["skipped"] == [
        "wanda needs a clone of https://github.com/locuslab/wanda as DIR/wanda (--peers DIR); no folder of clones was "
        "given.",
        "TransformerLens needs transformer-lens from PyPI (`make peers` installs it); No module named "
        "'a_package_that_nobody_has'.",
    ]
    with pytest.raises(peers["MissingPeer"], match=r"layerwrapper\.py does not exist"):
        peers["wanda"](bench(peers, clones=tmp_path))


def test_products_of_attention_and_of_backward_passes_are_counted() -> None:
    floor = runpy.run_path(str(BENCHMARKS / "floor.py"))
    layer, x = torch.nn.Linear(8, 16, bias=False), torch.randn(4, 8, requires_grad=True)
    with floor["Products"]([layer]) as products:
        layer(x).sum().backward()
    assert products.flops == 3 * 2 * 4 * 8 * 16  # forward, and a product for each factor's gradient
    assert products.bytes == 2 * 8 * 16 * 4  # the gradient of the weights reads none
    with torch.inference_mode(), floor["Products"]([layer]) as products:
        layer(x)
    assert (products.flops, products.bytes) == (2 * 4 * 8 * 16, 8 * 16 * 4)
    q = torch.randn(2, 3, 5, 8)
    with floor["Products"]([layer]) as products:
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert (products.flops, products.bytes) == (2 * 2 * 2 * 3 * 5 * 5 * 8, 0)


def test_the_page_of_what_it_costs_is_that_of_the_stored_runs() -> None:
    page = runpy.run_path(str(BENCHMARKS / "speed_page.py"))["page"]
    root = BENCHMARKS.parent
    peers, speed = (json.loads((root / "results" / name).read_text()) for name in ("peers.json", "speed.json"))
    text = (root / "docs" / "speed.md").read_text()
    assert text == page(peers, speed)
    for found in peers["comparisons"]:
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {found['compared']} |"))
        assert "seconds" not in found or f"{found['times_faster']['median']:.3g} (" in row
        assert f"- {found['compared']}: " in text
    for pair in speed["pairs"]:
        assert f"| {pair['name']} | {pair['median']['fast']:.3g} |" in text
    left_out = peers | {"comparisons": [], "skipped": ["captum needs a hat."]}
    assert "- captum needs a hat." in page(left_out, speed)


def test_a_run_that_was_cut_short_goes_on_only_with_its_own_kind(peers: dict[str, Any]) -> None:
    def again(bench: Any) -> Any:
        return compared(peers, torch.full((2, 2), 9.0), timed=False)  # would disagree

    here = bench(peers)
    (first,) = peers["run"](here, 1, (lambda _: compared(peers, torch.tensor([[1.0, -2.0], [3.0, 4.0]])),))
    assert list(peers["run"](here, 1, (again,), first)) == []
    (resumed,) = peers["run"](here, 1, (lambda _: peers["package"]("captum", "absent"),), first)
    assert resumed["earlier"] == [first["provenance"]] and resumed["comparisons"] == first["comparisons"]
    assert resumed["rates"] == first["rates"]
    with pytest.raises(peers["MixedRuns"], match="has another pairs; start anew"):
        list(peers["run"](here, 2, (again,), first))
    with pytest.raises(peers["Disagreement"]):
        list(peers["run"](here, 1, (again,)))


def test_where_float32_rounds_much_equality_is_judged_in_float64(peers: dict[str, Any]) -> None:
    rough, fine = torch.tensor([[1.0, -2.0], [3.0, 4.5]]), torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    given = {"timed": False, "exact": lambda: compared(peers, fine)}
    found = peers["measured"](compared(peers, rough, **given), pairs=1, rates=RATES)
    assert found["agreement"]["all"]["largest_difference"] == 0.125
    assert found["agreement_float64"]["all"]["largest_difference"] == 0
    with pytest.raises(peers["Disagreement"]):
        peers["measured"](compared(peers, fine, exact=lambda: compared(peers, rough)), pairs=1, rates=RATES)
