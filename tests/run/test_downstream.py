"""Families that act on the model, in suites, records and on the board: pruning, editing and preference in a toy world.

What the families measure is judged in their own tests; here is judged what becomes of it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from PIL import Image
from transformers import PreTrainedTokenizerFast

from attriboard import instructions
from attriboard.board import figures
from attriboard.board.board import Board
from attriboard.board.formats import render
from attriboard.board.wording import examples_line, number
from attriboard.errors import ConfigurationError
from attriboard.evaluation import capability
from attriboard.measurements.registry import METRICS
from attriboard.model import Model
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Cell, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run import runner
from attriboard.run.identity import record_identity
from attriboard.run.runner import Outcome, run_cells
from attriboard.run.suite import Suite
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
name = "acting"
models = ["{model}"]

[settings]
train_examples = 12
test_examples = 14
max_kept = 6
min_kept = 4
ablation = { draws = 2 }
speed_examples = 2
speed_repeats = 2
batch_size = 8
pruning_sparsities = [0.25, 0.5, 0.75]
edit_sizes = [4, 12]
preference_sizes = [4, 12, 40]
capability = ["attriboard_next_word", "attriboard_prose"]
"""

GROUP = """
[[groups]]
tasks = ["{task}"]
methods = ["attribution_patching", "random"]
levels = ["{level}"]
settings = {{ families = {families} }}
"""

ALL = ("faithfulness", "ablation", "pruning", "editing", "preference")
GROUPS = (
    ("one_of_two", "neurons", ("pruning",)),
    ("one_of_two", "neurons", ("editing",)),
    ("inclined", "neurons", ("preference",)),
    ("inclined", "neurons", ALL),
)
LACKING = ["attriboard_next_word", "no_such_task"]


def write_suite(file: Path, model: Path, *groups: tuple[str, str, tuple[str, ...]]) -> Path:
    """A suite with one group for every ``(task, level, families)``."""
    text = SUITE.format(model=model)
    for task, level, families in groups:
        text += GROUP.format(task=task, level=level, families=json.dumps(families))
    file.write_text(text)
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
    path = tmp_path_factory.mktemp("acting")
    model = save_with_start(path / "model")
    (path / "acting_tasks.py").write_text(TASK)
    tasks.include(path / "acting_tasks.py")
    write_suite(path / "acting.toml", model, *GROUPS)
    texts = path / "capability_tasks"
    shutil.copytree(capability.FOLDER, texts, ignore=shutil.ignore_patterns("__pycache__"))
    rng = random.Random(0)
    drawn = [rng.sample(WORDS, 4) for _ in range(6)]
    rows = [{"prompt": f"{a} {b}", "right": f" {b}", "wrong": f" {c}"} for a, b, c, _ in drawn]
    prose = [{"title": str(i), "text": " ".join(rng.choices(WORDS, k=12 + i))} for i in range(4)]
    for name, lines in {"next_word": rows, "facts": rows, "agreement": rows, "prose": prose}.items():
        (texts / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manager = TaskManager(include_path=str(texts), include_defaults=False)
    runner._harness_hash.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "FOLDER", texts)
        patch.setattr(capability, "_manager", lambda all_tasks: manager)  # lm-eval's own index takes ten seconds
        patch.setattr(instructions, "hub_answers", lambda: False)
        yield path
    runner._harness_hash.cache_clear()


@pytest.fixture(scope="module")
def suite(world: Path) -> Suite:
    return Suite.load(world / "acting.toml")


@pytest.fixture(scope="module")
def made(suite: Suite, world: Path) -> tuple[Path, Outcome, int]:
    """The whole suite, run once: its records, and how often the untouched model's capability was measured."""
    path = world / "results"
    measured: list[str] = []
    measure = capability.measure

    def count(model: Model, *args: object, **kwargs: object) -> capability.Capability:
        measured.append(Model(model.hf, prove=False).weights_sha256)
        return measure(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "measure", count)
        outcome = run_cells(suite.name, suite.plan(), Folder(path))
    (untouched,) = {r.model.weights_sha256 for r in outcome.made if r.model}
    return path, outcome, measured.count(untouched)


def run_one(suite: Suite, folder: Path, families: tuple[str, ...], **changes: object) -> Record:
    """The record of one cell with these families."""
    fields = {"task": "one_of_two", "level": "neurons", "method": "random", "model": suite.models[0]}
    settings = {"families": list(families), **changes.pop("settings", {})}  # type: ignore[dict-item]
    cell = Cell(**{**fields, **changes}, settings=settings)  # type: ignore[arg-type]
    (record,) = run_cells(suite.name, [cell], Folder(folder)).made
    return record


# --- records ----------------------------------------------------------------------------------------------------------


def test_records_hold_the_families_that_their_group_asks_for(made: tuple[Path, Outcome, int]) -> None:
    _, outcome, _ = made
    assert [(r.status, r.reason) for r in outcome.made] == [("ok", "")] * 2 * len(GROUPS)
    asked = [set(families) for _, _, families in GROUPS for _ in range(2)]
    for record in outcome.made:
        assert set(record.measurements) == set(record.settings.evaluations)
        assert {METRICS[name].family for name in record.aggregates} == {*record.measurements, "speed"}
        assert set(record.measurements) <= set(record.seconds)
    assert sorted(map(sorted, asked)) == sorted(sorted(r.measurements) for r in outcome.made)


def test_records_are_read_as_they_were_written(made: tuple[Path, Outcome, int]) -> None:
    path, outcome, _ = made
    by_name = {r.filename: r for r in outcome.made}
    folder = Folder(path)
    assert {r.filename: r for r in folder.read()} == by_name and folder.foreign == {}


def test_aggregates_follow_from_the_stored_measurements(made: tuple[Path, Outcome, int]) -> None:
    for record in Folder(made[0]).read():
        assert record.measurements["speed"]
        assert aggregates(record.measurements.values(), record.items) == record.aggregates


def test_all_families_together_measure_what_they_measure_alone(made: tuple[Path, Outcome, int]) -> None:
    inclined = [r for r in made[1].made if r.cell.task == "inclined"]
    for method in ("attribution_patching", "random"):
        alone, together = sorted((r for r in inclined if r.cell.method == method), key=lambda r: len(r.measurements))
        assert alone.preference and alone.preference == together.preference
        assert alone.scores_sha256 == together.scores_sha256


def test_the_factors_of_the_settings_are_those_of_the_edits(made: tuple[Path, Outcome, int]) -> None:
    for record in made[1].made:
        if record.measurements["editing"]:
            assert {name: kind.factor for name, kind in record.measurements["editing"].kinds.items()} == {
                "suppress": 0.0,
                "boost": 2.0,
                "rewrite": None,
            }
        if record.measurements["bias"]:
            assert record.measurements["bias"].factor == 0.0


def test_other_factors_give_other_edits(made: tuple[Path, Outcome, int], suite: Suite, tmp_path: Path) -> None:
    factors = {"suppress_factor": 0.5, "boost_factor": 3.0}
    families = ("editing", "preference")
    other = run_one(suite, tmp_path, families, task="inclined", method="attribution_patching", settings=factors)
    usual = next(
        r
        for r in made[1].made
        if r.measurements["editing"] and r.measurements["bias"] and r.cell.method == other.cell.method
    )
    assert other.editing and other.preference and usual.editing and usual.preference
    assert (other.editing.kinds["suppress"].factor, other.editing.kinds["boost"].factor) == (0.5, 3.0)
    for kind in ("suppress", "boost"):
        assert other.editing.kinds[kind].kl != usual.editing.kinds[kind].kl
    assert other.editing.kinds["rewrite"] == usual.editing.kinds["rewrite"]
    assert other.preference.factor == 0.5 and other.preference.test == usual.preference.test
    assert other.preference.test_removed != usual.preference.test_removed


def test_the_capability_of_the_untouched_model_is_measured_once(made: tuple[Path, Outcome, int]) -> None:
    _, outcome, untouched = made
    assert untouched == 1
    stored = [r.measurements["pruning"].capability for r in outcome.made if r.measurements["pruning"]] + [
        r.measurements["editing"].capability for r in outcome.made if r.measurements["editing"]
    ]
    assert len(stored) == 8 and all(one == stored[0] and one is not None for one in stored)


def test_every_model_has_a_capability_of_its_own(suite: Suite, world: Path, tmp_path: Path) -> None:
    records = [
        run_one(suite, tmp_path / name, ("pruning",), model=str(folder))
        for name, folder in (("a", world / "model"), ("b", save_with_start(tmp_path / "other", seed=1)))
    ]
    both = [Cell(**r.cell.model_dump()) for r in records]
    together = run_cells(suite.name, both, Folder(tmp_path / "together")).made
    for alone, other in zip(records, together):
        assert alone.pruning and other.pruning and alone.pruning.capability == other.pruning.capability
    assert records[0].pruning.capability != records[1].pruning.capability


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
            ("inclined", "heads", ("preference",)),
            "preference is measured of neurons, not of heads; move heads to a group without it.",
        ),
        (
            ("one_of_two", "neurons", ("pruning", "preference")),
            "preference cannot be measured on task 'one_of_two', which measures none between two continuations; take "
            "it out of the families of its group.",
        ),
    ],
)
def test_a_suite_that_asks_for_a_family_that_there_is_not_is_refused(
    world: Path, tmp_path: Path, group: tuple[str, str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(write_suite(tmp_path / "acting.toml", world / "model", group))
    assert str(caught.value) == message


@pytest.mark.parametrize("families", ['["prunning"]', "[]"])
def test_families_that_do_not_exist_are_refused(world: Path, tmp_path: Path, families: str) -> None:
    file = write_suite(tmp_path / "acting.toml", world / "model", GROUPS[0])
    file.write_text(file.read_text().replace('["pruning"]', families))
    with pytest.raises(ConfigurationError, match="settings of a group: key 'families"):
        Suite.load(file)


def test_a_family_that_is_skipped_leaves_the_others(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("faithfulness", "pruning"), level="nodes", method="direct_logit_attribution")
    assert record.status == "ok" and set(record.measurements) == {"faithfulness"}
    why = "nodes cannot be pruned; the levels that can are heads and neurons."
    assert record.not_measured == {"pruning": why}
    assert f"- pruning not measured: {record.cell}: {why}" in render(Board.read(tmp_path))


def test_a_cell_of_which_every_family_is_skipped_is_skipped(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("preference",))
    assert (record.status, record.reason) == (
        "skipped",
        "task 'one_of_two' measures no preference between two continuations.",
    )
    assert f"- skipped: {record.cell}: {record.reason}" in render(Board.read(tmp_path))


def test_an_lm_eval_task_that_does_not_exist_is_named_and_the_rest_goes_on(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("pruning", "editing"), settings={"capability": LACKING})
    assert record.status == "ok" and set(record.measurements) == {"pruning", "editing"}
    why = record.not_measured["lm-eval task no_such_task"]
    assert why.startswith("lm-eval has no task 'no_such_task'")
    assert (
        record.measurements["pruning"] and record.measurements["pruning"].capability and record.measurements["editing"]
    )
    assert list(record.measurements["pruning"].capability.accuracy) == ["attriboard_next_word"]
    assert {"capability_kept", "edit_suppress_capability_kept"} <= set(record.aggregates)
    text = render(Board.read(tmp_path))
    assert f"- lm-eval task no_such_task not measured: {record.cell}: {why}" in text.split("## Not run, and why")[1]


def test_without_any_capability_task_what_is_kept_is_absent(suite: Suite, tmp_path: Path) -> None:
    record = run_one(suite, tmp_path, ("pruning", "editing"), settings={"capability": ["no_such_task"]})
    assert record.status == "ok" and "lm-eval task no_such_task" in record.not_measured
    assert not [name for name in record.aggregates if "capability" in name]
    assert record.aggregates["edit_suppress_score"].value >= 0, "of what was measured"
    assert Folder(tmp_path).read() == [record]


def test_numbers_that_are_none_come_back_from_another_process(
    made: tuple[Path, Outcome, int], suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = next(r for r in made[1].made if r.measurements["bias"])
    assert record.measurements["bias"]
    broken = record.measurements["bias"].model_copy(update={"documents_removed": [[-math.inf] * 4] * 3})
    sent = record.model_copy(update={"preference": broken})
    monkeypatch.setattr(runner.Workshop, "execute", lambda self, suite, cell: sent)
    text = runner._ray_cell("acting", record.cell.model_dump(), suite.settings.model_dump(), 1, [])
    assert Record.model_validate_json(text) == sent


# --- the command line -------------------------------------------------------------------------------------------------


def _arguments(world: Path, tmp_path: Path) -> list[object]:
    """Of a run of one cell with pruning."""
    file = write_suite(tmp_path / "acting.toml", world / "model", GROUPS[0])
    file.write_text(file.read_text().replace("batch_size", "capability_limit = 2\nbatch_size"))
    return ["run", file, "--out", tmp_path / "out", "--include", world / "acting_tasks.py", "--method", "random"]


def _check_run(said: str, folder: Path) -> None:
    assert "1 cells run, 0 done before, 0 failed" in said
    (record,) = Folder(folder).read()
    assert record.settings.capability == ("attriboard_next_word", "attriboard_prose", "no_such_task")
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


def own_columns(family: str) -> list[str]:
    """Metrics of a family that the toy's records must show."""
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
        "preference": ["bias_removed", "bias", "bias_signed", "bias_control"],
    }.get(family, [])


def test_tables_with_different_families_do_not_mix(made: tuple[Path, Outcome, int]) -> None:
    board = Board.read(made[0])
    assert len(board.tables) == len(GROUPS) and len({table.title for table in board.tables}) == len(GROUPS)
    for table in board.tables:
        assert len({r.settings.evaluations for r in table.records}) == 1
        assert {r.cell.method for r in table.records} == {"attribution_patching", "random"}
        family, *more = table.records[0].settings.evaluations
        assert more or f", {family}, n = 6" in table.title


@pytest.mark.parametrize(
    ("families", "settings", "said"),
    [
        (("pruning",), {}, "pruning"),
        (("pruning",), {"pruning_allocation": "global"}, "pruning, global allocation"),
        (("pruning",), {"recovery_steps": 30, "suppress_factor": 0.5}, "pruning, 30 steps of recovery"),
        (("editing",), {"suppress_factor": 0.5, "recovery_steps": 30}, "editing, suppressed to 0.5"),
        (("preference",), {"suppress_factor": 0.25}, "preference, suppressed to 0.25"),
        (("faithfulness", "ablation"), {"suppress_factor": 0.5}, ""),
    ],
)
def test_a_title_says_what_was_measured_and_how(
    made: tuple[Path, Outcome, int], families: tuple[str, ...], settings: dict, said: str
) -> None:
    table = Board.read(made[0]).tables[0]
    changed = table.records[0].settings.changed({"families": families, **settings})
    other = replace(table, records=(table.records[0].model_copy(update={"settings": changed}),))
    assert other.title == ", ".join(filter(None, [table.task, table.level, table.model, said, "n = 6"]))


def test_every_table_shows_its_families_and_its_records_own_numbers(made: tuple[Path, Outcome, int]) -> None:
    board = Board.read(made[0])
    for table in board.tables:
        shown = [name for columns, _ in table.parts for name in columns]
        assert len(shown) == len(set(shown))
        assert {METRICS[name].family for name in shown} == {*table.records[0].families, "speed"}
        for family in table.records[0].families:
            assert set(own_columns(family)) <= set(shown)
        section = render(board).split(f"### {table.title}\n")[1].split("\n### ")[0]
        for columns, records in table.parts:
            head = " | ".join(METRICS[name].title.replace("|", r"\|") for name in columns)
            rows = section.split(f"| method | {head} |\n")[1].splitlines()[1 : 1 + len(records)]
            for row, record in zip(rows, records):
                label, *cells = [cell.strip() for cell in row.strip("|").split(" | ")]
                assert label.strip("*") == record.cell.method and len(cells) == len(columns)
                for name, cell in zip(columns, cells):
                    held = record.aggregates.get(name)
                    assert cell.split(" [")[0].strip("*") == ("" if held is None else number(METRICS[name], held.value))


def test_the_order_is_that_of_the_first_score_a_table_has(made: tuple[Path, Outcome, int]) -> None:
    decides = {"pruning": "pruning_accuracy_area", "editing": "edit_suppress_score", "preference": "bias_removed"}
    for table in Board.read(made[0]).tables:
        if len(table.records[0].families) == 1:
            values = [r.aggregates[decides[table.records[0].settings.evaluations[0]]].value for r in table.records]
            assert values == sorted(values, reverse=True)


def test_all_formats_hold_what_the_records_hold(made: tuple[Path, Outcome, int]) -> None:
    board = Board.read(made[0])
    by_name = {r.filename: r for r in made[1].made}
    rows = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    parsed = json.loads(render(board, "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(rows) == len(parsed["rows"]) == len(by_name)
    for row in [*rows, *parsed["rows"]]:
        held = by_name[row["record"]].aggregates
        for name in METRICS:
            if name in held:
                assert float(row[name]) == pytest.approx(held[name].value, rel=1e-12)
            else:
                assert row.get(name) in (None, "")
    latex, html = render(board, "latex"), render(board, "html")
    assert latex.count("\\begin{table}") == len(GROUPS) == len(set(latex.split("\\label{tab:")[1:]))
    assert "keeps 95 \\% to (\\textbar{}score\\textbar{})" in latex
    for text in (latex, html):
        for title in ("accuracy area", "suppress: score", "rewrite: efficacy", "bias removed", "CPR"):
            assert title in text


def test_a_table_says_what_is_judged_on_all_examples_drawn(made: tuple[Path, Outcome, int]) -> None:
    for table in Board.read(made[0]).tables:
        families = set(table.records[0].families)
        said = "n = 6 of them judged here (pruning and bias: all 14)," in examples_line(table)
        assert said == bool(families & {"pruning", "preference"})


def test_the_overall_ranks_come_from_tables_with_faithfulness(made: tuple[Path, Outcome, int]) -> None:
    overall = Board.read(made[0]).overall()
    assert {row.tables for row in overall} == {"1 of 1"} and len(overall) == 2
    ranking = {"sufficiency_log_area", "necessity_log_area", "ablation_drop_p"}
    assert all(ranking <= set(row.by_metric) for row in overall)


def test_without_faithfulness_there_are_no_overall_ranks(suite: Suite, tmp_path: Path) -> None:
    cells = [c for c in suite.plan() if c.settings["families"] == ["preference"]]
    run_cells(suite.name, cells, Folder(tmp_path))
    board = Board.read(tmp_path)
    assert not board.overall() and "## Overall" not in render(board)
    assert json.loads(render(board, "json"))["overall"] == []


def test_figures_are_drawn_of_what_the_records_hold(made: tuple[Path, Outcome, int], tmp_path: Path) -> None:
    board = Board.read(made[0])
    drawn = figures.draw(board, tmp_path)
    kinds = {"faithfulness": "", "pruning": ".pruning", "preference": ".preference"}
    wanted = [kinds[family] for table in board.tables for family in kinds if family in table.records[0].families]
    assert len(wanted) == 5
    wanted += [".agreement" for table in board.tables if len(table.records) > 1]
    of_tables = [file for file in drawn if not file.name.endswith(".tasks.png")]
    assert sorted(file.name.split("n---6")[1] for file in of_tables) == sorted(f"{kind}.png" for kind in wanted)
    assert len(set(drawn)) == len(drawn)
    for file in drawn:
        with Image.open(file) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**20)) > 20


def test_tables_of_one_title_have_figures_of_their_own(suite: Suite, tmp_path: Path) -> None:
    for limit in (2, 3):
        run_one(suite, tmp_path / "out", ("pruning",), settings={"capability_limit": limit})
    board = Board.read(tmp_path / "out")
    assert len({table.title for table in board.tables}) == 1
    drawn = figures.draw(board, tmp_path / "figures")
    assert len(set(drawn)) == 2 and all(file.stat().st_size > 10_000 for file in drawn)


def test_the_figures_show_the_records_curves(made: tuple[Path, Outcome, int]) -> None:
    (table,) = [t for t in Board.read(made[0]).tables if len(t.records[0].families) == 5]
    pruned, preferred = figures.pruning(table), figures.bias(table)
    assert pruned and preferred
    lines = pruned.axes[0].lines
    assert len({line.get_color() for line in lines[::2]}) == len(table.records) + 1  # and chance
    for i, record in enumerate(table.records):
        assert record.measurements["pruning"] and record.measurements["bias"]
        for line, curve in zip(
            lines[2 * i : 2 * i + 2],
            (record.measurements["pruning"].masked, record.measurements["pruning"].masked_absolute),
        ):
            rows = [record.measurements["pruning"].clean, *curve]
            assert line.get_xdata().tolist() == [0, 0.25, 0.5, 0.75]
            assert line.get_ydata().tolist() == pytest.approx([sum(x[2] for x in row) / 14 for row in rows])
        assert [line.get_linestyle() for line in lines[2 * i : 2 * i + 2]] == ["-", "--"]
        (line,) = [x for x in preferred.axes[0].lines if x.get_label() == record.cell.method]
        held = record.measurements["bias"]
        before = sum(map(abs, held.test))
        left = [100.0, *(100 * sum(map(abs, values)) / before for values in held.test_removed)]
        assert line.get_ydata().tolist() == pytest.approx(left)
        assert line.get_xdata().tolist() == pytest.approx([0, *(100 * rise for rise in held.perplexity_rises())])
    assert [list(x.get_xdata()) for x in preferred.axes[0].lines].count([2.0, 2.0]) == 1


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["next_word", "facts", "agreement", "prose"])
def test_identity_depends_on_the_texts_of_the_capability_tasks(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copy = tmp_path / "capability_tasks"
    shutil.copytree(capability.FOLDER, copy)
    monkeypatch.setattr(capability, "FOLDER", copy)

    def now() -> str:
        runner._harness_hash.cache_clear()
        cell = suite.plan()[0]
        return record_identity(cell, suite.settings.of(cell))

    before = now()
    assert now() == before
    with (copy / f"{name}.jsonl").open("a") as file:
        file.write("\n")
    changed = now()
    monkeypatch.undo()
    runner._harness_hash.cache_clear()
    assert changed != before


@pytest.mark.parametrize(
    "change",
    [
        {"pruning_sparsities": (0.5,)},
        {"pruning_slice": 0.4},
        {"pruning_allocation": "global"},
        {"recovery_steps": 1},
        {"edit_sizes": (4,)},
        {"suppress_factor": 0.5},
        {"boost_factor": 3.0},
        {"preference_sizes": (4,)},
        {"capability": ("attriboard_facts",)},
        {"capability_limit": 2},
        {"families": ("pruning",)},
    ],
)
def test_identity_depends_on_the_settings_of_the_families(suite: Suite, change: dict) -> None:
    cell = suite.plan()[0].model_copy(update={"settings": {}})
    assert record_identity(cell, suite.settings.changed(change)) != record_identity(cell, suite.settings)
    assert Settings() != Settings().changed(change)
