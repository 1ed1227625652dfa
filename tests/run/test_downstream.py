"""Evaluations that change the model, in suites, records and on the board: pruning, editing and bias in a toy world.

What they measure is judged in their own tests; here is judged what becomes of it.

Long because three evaluations share the one toy run that it makes.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from PIL import Image
from transformers import PreTrainedTokenizerFast

from attriboard import instructions
from attriboard.board import figures
from attriboard.board.board import Board, Table
from attriboard.board.columns import best_first, is_cost
from attriboard.board.formats import render
from attriboard.board.wording import examples_line, number
from attriboard.errors import ConfigurationError
from attriboard.evaluation import capability
from attriboard.measurements.bias import Bias
from attriboard.measurements.capability import Capability
from attriboard.measurements.editing import Editing
from attriboard.measurements.pruning import Pruning
from attriboard.measurements.registry import MEASUREMENTS, METRICS
from attriboard.model import Model
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Cell, Planned, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run import ray, remote
from attriboard.run.identity import record_identity, scoring_identity, wanted_stages
from attriboard.run.runner import Outcome, run_cells
from attriboard.run.suite import Suite
from attriboard.run.worker import Earlier, Worker
from attriboard.task import tasks
from tests.bench.cli import call, process
from tests.bench.toy import WORDS, save_model

TASK = '''
"""Repeat the last word, one of two; or a preference between the two."""
from dataclasses import dataclass

from attriboard.task import Example, Task

WORDS = [f"w{i}" for i in range(24)]


@dataclass
class OneOfTwo(Task):
    name = "one_of_two"
    description = "Repeat the last word, w3 or w8."
    labels = ("w3", "w8")
    all_subsets = ("first", "second")

    def candidates(self, subset, rng):
        answer, foil = ("w3", "w8") if subset == "first" else ("w8", "w3")
        while True:
            before = rng.sample([word for word in WORDS if word not in (answer, foil)], 5)
            prompt, other = (" ".join([*before[:3], last]) for last in (answer, foil))
            again = tuple(" ".join([*some, answer]) for some in (before[3:], before[2:]))
            yield Example(prompt, answer, foil, other, {}, prompt, subset, choice=True, paraphrases=again)


@dataclass
class Inclined(OneOfTwo):
    name = "inclined"
    description = "Which of w3 and w8 comes next."
    all_subsets = ("first", "second", "control")
    controls = ("control",)
    preference = ("w3", "w8")

    def candidates(self, subset, rng):
        if subset != "control":
            yield from super().candidates(subset, rng)
        while True:
            prompt = " ".join(rng.sample(WORDS, 3))
            yield Example(prompt, "w3", "w8", None, {}, prompt, subset, choice=True)
'''

SUITE = """
name = "downstream"
models = ["{model}"]

[settings]
train_examples = 12
test_examples = 14
max_kept = 6
min_kept = 4
batch_size = 8
ablation = {{ draws = 2 }}
speed = {{ examples = 2, repeats = 2 }}
pruning = {{ sparsities = [0.25, 0.5, 0.75] }}
editing = {{ sizes = [4, 12] }}
bias = {{ sizes = [4, 12, 40] }}
capability = {{ tasks = ["attriboard_next_word", "attriboard_prose"] }}
"""

GROUP = """
[[groups]]
tasks = ["{task}"]
methods = ["attribution_patching", "random"]
levels = ["{level}"]
settings = {{ evaluations = {evaluations} }}
"""

VARIANT = """
[[groups]]
tasks = ["one_of_two"]
methods = ["attribution_patching", "random"]
levels = ["neurons"]
variant = "global allocation"
settings = { evaluations = ["pruning"], pruning = { allocation = "global" } }
"""

ALL = ("faithfulness", "ablation", "pruning", "editing", "bias")
GROUPS = (
    ("one_of_two", "neurons", ("pruning",)),
    ("one_of_two", "neurons", ("editing",)),
    ("inclined", "neurons", ("bias",)),
    ("inclined", "neurons", ALL),
)
CELLS = {
    ("one_of_two", ""): {"pruning", "editing"},
    ("one_of_two", "global allocation"): {"pruning"},
    ("inclined", ""): set(ALL),
}
"""By task and variant, what all groups together ask of a cell; each is a table of two methods."""
METHODS = ("attribution_patching", "random")
CROSS_FITTED = ("faithfulness", "ablation")
LACKING = ["attriboard_next_word", "no_such_task"]


def write_suite(file: Path, model: Path, *groups: tuple[str, str, tuple[str, ...]], more: str = "") -> Path:
    """A suite with one group for every ``(task, level, evaluations)``."""
    text = SUITE.format(model=model)
    for task, level, evaluations in groups:
        text += GROUP.format(task=task, level=level, evaluations=json.dumps(evaluations))
    file.write_text(text + more)
    return file


def save_with_start(folder: Path, seed: int = 0) -> Path:
    """The toy model, whose tokenizer has a beginning of sequence, from which the first word of prose is predicted."""
    save_model(folder, seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.bos_token = "w0"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with model, tasks and suite; for the time being the capability tasks are a few in the toy's words."""
    path = tmp_path_factory.mktemp("downstream")
    model = save_with_start(path / "model")
    (path / "own_tasks.py").write_text(TASK)
    tasks.include(path / "own_tasks.py")
    write_suite(path / "downstream.toml", model, *GROUPS, more=VARIANT)
    texts = path / "capability_tasks"
    shutil.copytree(capability.FOLDER, texts, ignore=shutil.ignore_patterns("__pycache__"))
    rng = random.Random(0)
    drawn = [rng.sample(WORDS, 4) for _ in range(6)]
    rows = [{"prompt": f"{a} {b}", "right": f" {b}", "wrong": f" {c}"} for a, b, c, _ in drawn]
    prose = [{"title": str(i), "text": " ".join(rng.choices(WORDS, k=12 + i))} for i in range(4)]
    for name, lines in {"next_word": rows, "facts": rows, "agreement": rows, "prose": prose}.items():
        (texts / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manager = TaskManager(include_path=str(texts), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "FOLDER", texts)
        patch.setattr(capability, "_manager", lambda all_tasks: manager)  # lm-eval's own index takes ten seconds
        patch.setattr(instructions, "hub_answers", lambda: False)
        yield path


@pytest.fixture(scope="module")
def suite(world: Path) -> Suite:
    return Suite.load(world / "downstream.toml")


@pytest.fixture(scope="module")
def made(suite: Suite, world: Path) -> tuple[Path, Outcome, int]:
    """The whole suite, run once: its records, and how often the untouched model's capability was measured."""
    path = world / "results"
    measured: list[str] = []
    measure = capability.measure

    def count(model: Model, *args: Any, **kwargs: Any) -> Capability:
        measured.append(Model(model.hf, prove=False).weights_sha256)
        return measure(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "measure", count)
        outcome = run_cells(suite.name, suite.plan(), Folder(path))
    (untouched,) = {r.model.weights_sha256 for r in outcome.made if r.model}
    return path, outcome, measured.count(untouched)


@pytest.fixture(scope="module")
def board(made: tuple[Path, Outcome, int]) -> Board:
    return Board.read(made[0])


def plan_one(
    suite: Suite, evaluations: tuple[str, ...], settings: dict[str, Any] | None = None, **changes: str
) -> Planned:
    """One cell with these evaluations, whether or not a suite may ask for them."""
    cell = Cell(**{"task": "one_of_two", "level": "neurons", "method": "random", "model": suite.models[0], **changes})
    return Planned(cell, suite.settings.changed({"evaluations": evaluations, **(settings or {})}))


def run_one(
    suite: Suite, folder: Path, evaluations: tuple[str, ...], settings: dict[str, Any] | None = None, **changes: str
) -> Record:
    """The record of that cell."""
    (record,) = run_cells(suite.name, [plan_one(suite, evaluations, settings, **changes)], Folder(folder)).made
    return record


def measured(record: Record, *kinds: type) -> list[Any]:
    """What evaluations measured in a cell that has them all."""
    values = [record.measured(kind) for kind in kinds]
    assert all(value is not None for value in values)
    return values


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_hold_everything_that_their_groups_ask_for(made: tuple[Path, Outcome, int]) -> None:
    _, outcome, _ = made
    assert [(r.status, r.reason) for r in outcome.made] == [("ok", "")] * 2 * len(CELLS)
    for record in outcome.made:
        assert set(record.measurements) == CELLS[record.cell.task, record.cell.variant] | {"speed"}
        assert set(record.measurements) == set(record.settings.evaluations)
        assert {METRICS[name].measurement for name in record.aggregates} == set(record.measurements)
        assert set(record.stages) == set(record.seconds) == {"scores", *record.measurements}
    cells = sorted((r.cell.task, r.cell.variant, r.cell.method) for r in outcome.made)
    assert cells == sorted((task, variant, method) for task, variant in CELLS for method in METHODS)


def test_records_are_read_as_they_were_written(made: tuple[Path, Outcome, int]) -> None:
    path, outcome, _ = made
    by_name = {r.filename: r for r in outcome.made}
    folder = Folder(path)
    assert {r.filename: r for r in folder.read()} == by_name and folder.foreign == {}


def test_aggregates_follow_from_the_stored_measurements(made: tuple[Path, Outcome, int]) -> None:
    for record in Folder(made[0]).read():
        assert record.measurements["speed"]
        assert aggregates(record.measurements.values(), record.items, record.frames) == record.aggregates


@pytest.mark.parametrize("method", METHODS)
def test_all_evaluations_together_measure_what_they_measure_alone(
    made: tuple[Path, Outcome, int], suite: Suite, tmp_path: Path, method: str
) -> None:
    (together,) = (r for r in made[1].made if r.cell.task == "inclined" and r.cell.method == method)
    alone = run_one(suite, tmp_path, ("bias",), task="inclined", method=method)
    assert set(alone.measurements) == {"bias", "speed"} and alone.identity == together.identity
    assert alone.measurements["bias"] == together.measurements["bias"]
    assert alone.stages["bias"].identity == together.stages["bias"].identity
    assert alone.scores == together.scores


def test_cells_that_are_measured_in_two_ways_are_scored_once(made: tuple[Path, Outcome, int]) -> None:
    path, outcome, _ = made
    for method in METHODS:
        usual, variant = (r for r in outcome.made if (r.cell.task, r.cell.method) == ("one_of_two", method))
        assert {usual.cell.variant, variant.cell.variant} == {"", "global allocation"}
        assert usual.stages["scores"] == variant.stages["scores"] and usual.scores == variant.scores
        assert usual.identity != variant.identity
        assert usual.measurements["pruning"] != variant.measurements["pruning"]
    files = {file.relative_to(path).as_posix() for file in (path / "scores").rglob("*.safetensors")}
    assert files == {r.scores.file for r in outcome.made if r.scores} and len(files) < len(outcome.made)


def test_the_factors_of_the_settings_are_those_of_the_edits(made: tuple[Path, Outcome, int]) -> None:
    edited = [editing for r in made[1].made if (editing := r.measured(Editing))]
    biased = [bias for r in made[1].made if (bias := r.measured(Bias))]
    assert (len(edited), len(biased)) == (4, 2)
    for editing in edited:
        factors = {name: kind.factor for name, kind in editing.kinds.items()}
        assert factors == {"suppress": 0.0, "boost": 2.0, "rewrite": None}
    assert {bias.factor for bias in biased} == {0.0}


def test_other_factors_give_other_edits(made: tuple[Path, Outcome, int], suite: Suite, tmp_path: Path) -> None:
    factors = {"editing": {"suppress_factor": 0.5, "boost_factor": 3.0}, "bias": {"factor": 0.5}}
    changed = run_one(suite, tmp_path, ("editing", "bias"), factors, task="inclined", method="attribution_patching")
    (usual,) = (r for r in made[1].made if (r.cell.task, r.cell.method) == ("inclined", "attribution_patching"))
    (editing, bias), (usual_editing, usual_bias) = (measured(r, Editing, Bias) for r in (changed, usual))
    assert (editing.kinds["suppress"].factor, editing.kinds["boost"].factor) == (0.5, 3.0)
    for kind in ("suppress", "boost"):
        assert editing.kinds[kind].kl != usual_editing.kinds[kind].kl
    assert editing.kinds["rewrite"] == usual_editing.kinds["rewrite"]
    assert bias.factor == 0.5 and bias.test == usual_bias.test
    assert bias.test_removed != usual_bias.test_removed


def test_the_capability_of_the_untouched_model_is_measured_once(made: tuple[Path, Outcome, int]) -> None:
    _, outcome, untouched = made
    assert untouched == 1
    changing = [m for r in outcome.made for kind in (Pruning, Editing) if (m := r.measured(kind)) is not None]
    stored = [m.capability for m in changing]
    assert len(stored) == 10 and all(one == stored[0] and one is not None for one in stored)


def test_every_model_has_a_capability_of_its_own(suite: Suite, world: Path, tmp_path: Path) -> None:
    folders = (world / "model", save_with_start(tmp_path / "other", seed=1))
    plans = [plan_one(suite, ("pruning",), model=str(folder)) for folder in folders]
    alone = [run_cells(suite.name, [planned], Folder(tmp_path / f"{i}")).made[0] for i, planned in enumerate(plans)]
    together = run_cells(suite.name, plans, Folder(tmp_path / "together")).made
    for one, other in zip(alone, together, strict=True):
        assert measured(one, Pruning)[0].capability == measured(other, Pruning)[0].capability
    assert measured(alone[0], Pruning)[0].capability != measured(alone[1], Pruning)[0].capability


# --- what cannot be measured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            ("one_of_two", "nodes", ("pruning",)),
            "pruning is measured of heads and neurons, not of nodes; move nodes to a group without it.",
        ),
        (
            ("one_of_two", "nodes", ("faithfulness", "editing")),
            "editing is measured of heads and neurons, not of nodes; move nodes to a group without it.",
        ),
        (
            ("inclined", "heads", ("bias",)),
            "bias is measured of neurons, not of heads; move heads to a group without it.",
        ),
        (
            ("one_of_two", "neurons", ("pruning", "bias")),
            "bias cannot be measured on task 'one_of_two', which measures none between two continuations; take it out "
            "of the evaluations of its group.",
        ),
    ],
)
def test_a_suite_that_asks_for_an_evaluation_that_there_is_not_is_refused(
    world: Path, tmp_path: Path, group: tuple[str, str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(write_suite(tmp_path / "downstream.toml", world / "model", group))
    assert str(caught.value) == message


@pytest.mark.parametrize("evaluations", ['["prunning"]', "[]"])
def test_evaluations_that_do_not_exist_are_refused(world: Path, tmp_path: Path, evaluations: str) -> None:
    file = write_suite(tmp_path / "downstream.toml", world / "model", GROUPS[0])
    file.write_text(file.read_text().replace('["pruning"]', evaluations))
    with pytest.raises(ConfigurationError, match="settings of a group: key 'evaluations"):
        Suite.load(file)


def test_an_evaluation_that_is_skipped_leaves_the_others(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("faithfulness", "bias"))
    assert record.status == "ok" and set(record.measurements) == {"faithfulness", "speed"}
    why = "task 'one_of_two' measures no preference between two continuations."
    assert record.not_measured == {"bias": why}
    assert f"- bias not measured: {record.cell}: {why}" in render(Board.read(tmp_path))


def test_what_a_level_does_not_have_is_not_asked_of_it(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("faithfulness", "pruning"), level="nodes", method="direct_logit_attribution")
    assert record.status == "ok" and set(record.measurements) == {"faithfulness", "speed"}
    assert record.not_measured == {} and record.settings.evaluations == ("faithfulness", "speed")


def test_a_cell_of_which_every_evaluation_is_skipped_is_skipped(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("bias",))
    assert (record.status, record.reason) == (
        "skipped",
        "task 'one_of_two' measures no preference between two continuations.",
    )
    assert f"- skipped: {record.cell}: {record.reason}" in render(Board.read(tmp_path))


def test_an_lm_eval_task_that_does_not_exist_is_named_and_the_rest_goes_on(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("pruning", "editing"), {"capability": {"tasks": LACKING}})
    assert record.status == "ok" and set(record.measurements) == {"pruning", "editing", "speed"}
    why = record.not_measured["lm-eval task no_such_task"]
    assert why.startswith("lm-eval has no task 'no_such_task'")
    pruning, _ = measured(record, Pruning, Editing)
    assert list(pruning.capability.accuracy) == ["attriboard_next_word"]
    assert {"capability_kept", "edit_suppress_capability_kept"} <= set(record.aggregates)
    text = render(Board.read(tmp_path))
    assert f"- lm-eval task no_such_task not measured: {record.cell}: {why}" in text.split("## Not run, and why")[1]


def test_without_any_capability_task_what_is_kept_is_absent(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("pruning", "editing"), {"capability": {"tasks": ["no_such_task"]}})
    assert record.status == "ok" and "lm-eval task no_such_task" in record.not_measured
    assert not [name for name in record.aggregates if "capability" in name]
    assert record.aggregates["edit_suppress_score"].value >= 0, "of what was measured"
    assert Folder(tmp_path).read() == [record]


def test_numbers_that_are_none_come_back_from_another_process(
    made: tuple[Path, Outcome, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = next(r for r in made[1].made if r.measured(Bias))
    broken = measured(record, Bias)[0].model_copy(update={"documents_removed": [[-math.inf] * 4] * 3})
    sent = record.model_copy(update={"measurements": {**record.measurements, "bias": broken}})
    monkeypatch.setattr(Worker, "execute", lambda self, suite, planned, earlier: (sent, b"scores"))
    monkeypatch.setattr(ray, "_WORKERS", [])
    work = remote.packed(Planned(record.cell, record.settings), Earlier(sent, sent, b"stored"))
    ((text, scores),) = ray._pair("downstream", [work], 1, [], 1)
    assert Record.model_validate_json(text) == sent and scores == b"scores"


# --- the command line -------------------------------------------------------------------------------------------------


def _arguments(world: Path, tmp_path: Path) -> list[object]:
    """Of a run of one cell with pruning."""
    file = write_suite(tmp_path / "downstream.toml", world / "model", GROUPS[0])
    file.write_text(file.read_text().replace("capability = {", "capability = { limit = 2,"))
    return ["run", file, "--out", tmp_path / "out", "--include", world / "own_tasks.py", "--method", "random"]


def _check_run(output: str, folder: Path) -> None:
    assert "1 cells run, 0 done before, 0 failed" in output
    (record,) = Folder(folder).read()
    assert record.settings.capability.tasks == ("attriboard_next_word", "attriboard_prose", "no_such_task")
    assert record.settings.capability.limit == 2
    assert record.not_measured["lm-eval task no_such_task"].startswith("lm-eval has no task 'no_such_task'")


def test_a_capability_task_that_does_not_exist_does_not_stop_a_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, *_arguments(world, tmp_path), "--capability", "no_such_task")
    assert code == 0, err
    _check_run(out, tmp_path / "out")


@pytest.mark.slow  # lm-eval's own index of tasks is read
def test_nor_does_it_stop_a_real_process(world: Path, tmp_path: Path) -> None:
    done = process(*_arguments(world, tmp_path), "--capability", "no_such_task")
    assert done.returncode == 0, done.stderr
    _check_run(done.stdout, tmp_path / "out")


def test_capability_without_a_name_exits_2(world: Path, tmp_path: Path) -> None:
    done = process(*_arguments(world, tmp_path), "--capability", "")
    assert done.returncode == 2
    assert "--capability names no lm-eval task; give names with commas between them." in done.stderr
    assert not (tmp_path / "out").exists()


# --- the board --------------------------------------------------------------------------------------------------------


def own_columns(evaluation: str) -> list[str]:
    """Metrics of an evaluation that the toy's records must show."""
    return {
        "pruning": [
            *(f"pruning_{name}{s}" for s in ("", "_absolute") for name in ("accuracy_area", "accuracy_half")),
            "parameters_removed",
            "speed_up",
            "capability_kept",
        ],
        "editing": [
            f"edit_{kind}_{name}"
            for kind, names in (
                ("suppress", ("score", "efficacy", "generality", "locality", "locality_kl", "capability_kept")),
                ("boost", ("efficacy_probability", "locality", "capability_kept")),
                ("rewrite", ("score", "efficacy", "generality", "locality", "locality_kl", "capability_kept")),
            )
            for name in names
        ],
        "bias": ["bias_removed", "bias", "bias_signed", "bias_control"],
    }.get(evaluation, [])


def measurements_of(table: Table) -> set[str]:
    """What the records of a table hold, which is the same for all."""
    (names,) = {frozenset(r.measurements) for r in table.records}
    return set(names)


def only(table: Table, *evaluations: str) -> Table:
    """The table of records that lack everything else, as if nothing else had been asked for."""
    records = []
    for record in table.records:
        kept = {name: value for name, value in record.measurements.items() if name in (*evaluations, "speed")}
        own = {name: a for name, a in record.aggregates.items() if METRICS[name].measurement in kept}
        records.append(record.model_copy(update={"measurements": kept, "aggregates": own}))
    return replace(table, records=best_first(records))


def test_a_task_has_one_table_and_one_for_every_variant(board: Board) -> None:
    assert len(board.tables) == len(CELLS) == len({table.title for table in board.tables})
    for table in board.tables:
        assert measurements_of(table) == CELLS[table.task, table.variant] | {"speed"}
        assert {r.cell.method for r in table.records} == set(METHODS)
        assert table.options.keys() == measurements_of(table)


def test_a_title_says_which_variant_was_measured(board: Board) -> None:
    for table in board.tables:
        # what is cross-fitted is judged on the 6 examples of each half, all of different items
        n = 12 if "faithfulness" in measurements_of(table) else 6
        conditions = [table.task, table.level, table.model, table.variant, f"n = {n} (n_eff {n})"]
        assert table.title == ", ".join(filter(None, conditions))
    assert [table.variant for table in board.tables].count("global allocation") == 1


@pytest.mark.parametrize(
    ("evaluation", "options", "title"),
    [
        ("pruning", {"allocation": "global"}, "pruning, global allocation"),
        ("pruning", {"recovery_steps": 30}, "pruning, 30 steps of recovery"),
        ("editing", {"suppress_factor": 0.5}, "editing, suppressed to 0.5"),
        ("bias", {"factor": 0.25}, "bias, suppressed to 0.25"),
    ],
)
def test_records_of_other_options_stand_in_tables_of_their_own(
    made: tuple[Path, Outcome, int], tmp_path: Path, evaluation: str, options: dict[str, Any], title: str
) -> None:
    first, second = (r for r in made[1].made if (r.cell.task, r.cell.variant) == ("inclined", ""))
    changed = second.settings.changed({evaluation: options})
    folder = Folder(tmp_path)
    for record in (first, second.model_copy(update={"settings": changed})):
        folder.write(record)
    tables = Board.read(tmp_path).tables
    assert [len(table.records) for table in tables] == [1, 1], "one thing measured in two ways is not compared"
    assert tables[0].options[evaluation] != tables[1].options[evaluation]
    folder.write(second.model_copy(update={"settings": second.settings.changed({"batch_size": 1})}))
    assert [len(table.records) for table in Board.read(tmp_path).tables] == [2]


def test_every_table_shows_its_evaluations_and_its_records_own_numbers(board: Board) -> None:
    text = render(board)
    for table in board.tables:
        shown = [name for columns, _ in table.parts for name in columns]
        assert len(shown) == len(set(shown))
        assert {METRICS[name].measurement for name in shown} == measurements_of(table)
        for evaluation in measurements_of(table):
            assert set(own_columns(evaluation)) <= set(shown)
        section = text.split(f"### {table.title}\n")[1].split("\n### ")[0]
        for columns, records in table.parts:
            head = " | ".join(METRICS[name].title.replace("|", r"\|") for name in columns)
            rows = section.split(f"| method | sees | {head} |\n")[1].splitlines()[1 : 1 + len(records)]
            assert len(rows) == len(records) == len(METHODS)
            for row, record in zip(rows, records, strict=True):
                label, sees, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
                assert label.strip("*") == record.cell.method and len(cells) == len(columns)
                assert sees == ("nothing" if record.cell.method == "random" else "answer, foil, cf")
                for name, cell in zip(columns, cells, strict=True):
                    value = record.aggregates.get(name)
                    printed = "" if value is None else number(METRICS[name], value.value)
                    assert cell.split(" [")[0].strip("*") == printed


def test_what_changes_the_model_stands_in_parts_of_its_own(board: Board) -> None:
    for table in board.tables:
        first, *further = table.parts
        main = {name for name in measurements_of(table) if MEASUREMENTS[name].main}
        if main == {"speed"}:  # nothing else can stand before the costs
            first, further = first._replace(metrics=tuple(m for m in first.metrics if not is_cost(m))), table.parts[1:]
            assert {METRICS[m].measurement for m in first.metrics} == {"pruning"}
        else:
            assert {METRICS[m].measurement for m in first.metrics} == main
        blocks = [{(METRICS[m].measurement, METRICS[m].block) for m in part.metrics} for part in further]
        assert all(len(block) == 1 for block in blocks)
        kinds = [block for (evaluation, block) in (next(iter(b)) for b in blocks) if evaluation == "editing"]
        assert kinds == (["suppress", "boost", "rewrite"] if "editing" in measurements_of(table) else [])


def test_the_order_is_that_of_the_first_score_a_table_has(board: Board) -> None:
    decides = {"pruning": "pruning_accuracy_area", "editing": "edit_suppress_score", "bias": "bias_removed"}
    judged = 0
    for table in board.tables:
        for evaluation, metric in decides.items():
            if evaluation in measurements_of(table):
                for part in only(table, evaluation).parts:
                    values = [r.aggregates[metric].value for r in part.records]
                    assert len(values) == len(METHODS) and values == sorted(values, reverse=True)
                    judged += 1
        if measurements_of(table) == {"pruning", "editing", "speed"}:
            assert table.records == only(table, "pruning", "editing").records
            assert [r.filename for r in table.records] == [r.filename for r in only(table, "pruning").records]
    assert judged == 3 + 2 * 3 + 1


def test_all_formats_hold_what_the_records_hold(made: tuple[Path, Outcome, int], board: Board) -> None:
    by_name = {r.filename: r for r in made[1].made}
    rows = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    parsed = json.loads(render(board, "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(rows) == len(parsed["rows"]) == len(by_name)
    for row in [*rows, *parsed["rows"]]:
        values = by_name[row["record"]].aggregates
        for name in METRICS:
            if name in values:
                assert float(row[name]) == pytest.approx(values[name].value, rel=1e-12)
            else:
                assert row.get(name) in (None, "")
    latex, html = render(board, "latex"), render(board, "html")
    assert latex.count("\\begin{table}") == len(CELLS) == len(set(latex.split("\\label{tab:")[1:]))
    assert "keeps 95 \\% to (\\textbar{}score\\textbar{})" in latex
    for text in (latex, html):
        for title in ("accuracy area", "suppress: score", "rewrite: efficacy", "bias removed", "CPR"):
            assert title in text


def test_a_table_says_what_is_judged_on_all_examples_drawn(board: Board) -> None:
    for table in board.tables:
        for evaluation in measurements_of(table) - {"speed"}:
            line = examples_line(only(table, evaluation))
            assert ("(pruning and bias: all 14 of the test half)." in line) == (evaluation in ("pruning", "bias"))
            judged = "12 of them, in two halves of 4 groups, are judged 2 times"
            once = "6 of them are judged by the scores of 6 train examples"
            assert (judged in line, once in line) == ((True, False) if evaluation in CROSS_FITTED else (False, True))


def test_the_overall_ranks_come_from_tables_with_faithfulness_that_tell_methods_from_random(
    made: tuple[Path, Outcome, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for informative, ranked in (("yes", 2), ("no", 0)):
        monkeypatch.setattr(Table, "informative", informative)
        overall = Board.read(made[0]).overall()
        assert len(overall) == ranked and all((row.tables, row.of) == (1, 1) for row in overall)
        assert all(set(row.by_metric) == {"log_cmd", "necessity"} for row in overall)


def test_without_faithfulness_there_are_no_overall_ranks(suite: Suite, tmp_path: Path) -> None:
    plan = [plan_one(suite, ("bias",), task="inclined", method=method) for method in METHODS]
    assert not run_cells(suite.name, plan, Folder(tmp_path)).failed
    board = Board.read(tmp_path)
    assert board.overall() == [] and "## Overall" not in render(board)
    assert json.loads(render(board, "json"))["overall"] == []


def test_figures_are_drawn_of_what_the_records_hold(board: Board, tmp_path: Path) -> None:
    drawn = figures.draw(board, tmp_path)
    kinds = {"faithfulness": "", "pruning": ".pruning", "bias": ".bias"}
    wanted = [kinds[name] for table in board.tables for name in kinds if name in measurements_of(table)]
    assert len(wanted) == 5
    wanted += [".agreement" for table in board.tables if len(table.records) > 1]
    of_tables = [file for file in drawn if not file.name.endswith(".tasks.png")]
    ends = [re.split(r"n_eff-\d+-", file.name)[1] for file in of_tables]
    assert sorted(ends) == sorted(f"{kind}.png" for kind in wanted)
    assert len(set(drawn)) == len(drawn)
    for file in drawn:
        with Image.open(file) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**20)) > 20


def test_tables_of_one_title_have_figures_of_their_own(suite: Suite, tmp_path: Path) -> None:
    for limit, method in zip((2, 3), METHODS, strict=True):
        run_one(suite, tmp_path / "out", ("pruning",), {"capability": {"limit": limit}}, method=method)
    board = Board.read(tmp_path / "out")
    assert len(board.tables) == 2 and len({table.title for table in board.tables}) == 1
    drawn = figures.draw(board, tmp_path / "figures")
    of_tables = [file for file in drawn if not file.name.endswith(".tasks.png")]
    assert len(set(of_tables)) == 2 and all(file.stat().st_size > 10_000 for file in of_tables)


def test_the_figures_show_the_records_curves(board: Board) -> None:
    (table,) = [t for t in board.tables if t.task == "inclined"]
    pruned, biased = figures.pruning(table), figures.bias(table)
    assert pruned and biased
    lines = pruned.axes[0].lines
    assert len({line.get_color() for line in lines[::2]}) == len(table.records) + 1  # and chance
    for i, record in enumerate(table.records):
        pruning, bias = measured(record, Pruning, Bias)
        for line, curve in zip(lines[2 * i : 2 * i + 2], (pruning.masked, pruning.masked_absolute), strict=True):
            assert line.get_xdata().tolist() == [0, 0.25, 0.5, 0.75]
            rows = [pruning.clean, *curve]
            assert line.get_ydata().tolist() == pytest.approx([sum(x[2] for x in row) / 14 for row in rows])
        assert [line.get_linestyle() for line in lines[2 * i : 2 * i + 2]] == ["-", "--"]
        (line,) = [x for x in biased.axes[0].lines if x.get_label() == record.cell.method]
        before = sum(map(abs, bias.test))
        left = [100.0, *(100 * sum(map(abs, values)) / before for values in bias.test_removed)]
        assert line.get_ydata().tolist() == pytest.approx(left)
        assert line.get_xdata().tolist() == pytest.approx([0, *(100 * rise for rise in bias.perplexity_rises())])
    assert [list(x.get_xdata()) for x in biased.axes[0].lines].count([2.0, 2.0]) == 1


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "evaluations"),
    [
        ({"pruning": {"sparsities": (0.5,)}}, {"pruning"}),
        ({"pruning": {"slice": 0.4}}, {"pruning"}),
        ({"pruning": {"allocation": "global"}}, {"pruning"}),
        ({"pruning": {"recovery_steps": 1}}, {"pruning"}),
        ({"editing": {"sizes": (4,)}}, {"editing"}),
        ({"editing": {"suppress_factor": 0.5}}, {"editing"}),
        ({"editing": {"boost_factor": 3.0}}, {"editing"}),
        ({"bias": {"sizes": (4,)}}, {"bias"}),
        ({"bias": {"factor": 0.5}}, {"bias"}),
        ({"capability": {"tasks": ("attriboard_facts",)}}, {"pruning", "editing", "bias"}),
        ({"capability": {"limit": 2}}, {"pruning", "editing", "bias"}),
    ],
)
def test_what_is_measured_again_depends_on_the_settings(
    suite: Suite, change: dict[str, Any], evaluations: set[str]
) -> None:
    cell, settings = plan_one(suite, ALL, task="inclined")
    changed = settings.changed(change)
    before, after = (wanted_stages(Planned(cell, s)) for s in (settings, changed))
    assert {name for name in before if after[name] != before[name]} == evaluations
    assert record_identity(cell, changed) == record_identity(cell, settings)
    assert scoring_identity(cell, changed) == scoring_identity(cell, settings)
    assert Settings() != Settings().changed(change)


def test_what_is_asked_for_does_not_name_a_record(suite: Suite) -> None:
    cell, settings = plan_one(suite, ALL, task="inclined")
    fewer = settings.changed({"evaluations": ("pruning",)})
    assert record_identity(cell, fewer) == record_identity(cell, settings)
    assert wanted_stages(Planned(cell, fewer)).keys() == {"pruning", "speed"}
    assert wanted_stages(Planned(cell, fewer)).items() <= wanted_stages(Planned(cell, settings)).items()
