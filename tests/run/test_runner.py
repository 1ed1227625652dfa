"""Suites, records and the runner: what is named, skipped, recorded, resumed and refused."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from attriboard.board.board import Board
from attriboard.board.check import records_in
from attriboard.errors import ConfigurationError, ModelError, UnknownNameError
from attriboard.evaluation.base import evaluations
from attriboard.measurements.ablation import Ablation
from attriboard.method import methods
from attriboard.records import store
from attriboard.records.record import Cell, Planned, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run import index, runner
from attriboard.run.identity import files_behind, record_identity, scoring_identity, wanted_stages
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.run.worker import Earlier, Worker
from attriboard.task import tasks


@pytest.fixture
def suite(toy: dict) -> Suite:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    return Suite.load(toy["suite"])


def _run(suite: Suite, path: Path, **kwargs) -> runner.Outcome:
    plan = kwargs.pop("plan", None) or suite.plan()
    return run_cells(suite.name, plan, Folder(path), **kwargs)


# --- suites -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_kept = 6", "max_keptt = 6"), "toy.toml: key 'settings.max_keptt' is not known here"),
        (("max_kept = 6", 'max_kept = "six"'), "key 'settings.max_kept' is 'six'"),
        (("max_kept = 6", "max_kept = 0"), "key 'settings.max_kept' is 0"),
        (('levels = ["heads"]', ""), "key 'groups.0.levels' is missing"),
        (("[settings]", "[settings"), "is not valid TOML"),
        (('"repeat"', '"repaet"'), "unknown task 'repaet': did you mean 'repeat'?"),
        (('"random"', '"randmo"'), "unknown method 'randmo': did you mean 'random'"),
        (('levels = ["heads"]', 'levels = ["haeds"]'), "unknown level 'haeds': did you mean 'heads'"),
        (('levels = ["heads"]', 'levels = ["neurons"]'), "asks head_ablation for level 'neurons', but it scores heads"),
        (('"random"', '{name = "random", sede = 1}'), "unknown option of method 'random': 'sede': did you mean 'seed'"),
        (('"random"', '{name = "head_ablation", replacement = "nil"}'), "replacement of head_ablation is 'nil'"),
        (("models = [", 'replacements = ["x"]\nmodels = ['), "key 'replacements' is not known here"),
        (('levels = ["heads"]', 'levels = ["heads"]\nsettings = {dtype = "bfloat16"}'), "sets dtype in a group"),
        (('levels = ["heads"]', 'levels = ["heads"]\nsettings = {max_kpt = 1}'), "group: key 'max_kpt' is not known"),
        (('levels = ["heads"]', 'levels = ["heads"]\nmodels = ["smollm"]'), "unknown model 'smollm'"),
    ],
)
def test_a_wrong_suite_file_is_one_sentence_that_names_the_fault(
    toy: dict, suite: Suite, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    text = toy["suite"].read_text()
    assert change[0] in text
    file = tmp_path / "toy.toml"
    file.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises((ConfigurationError, UnknownNameError)) as caught:
        Suite.load(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_built_on_another_file_is_stale_when_that_file_changes() -> None:
    behind = {Path(f).name for f in files_behind(sys.modules[tasks.get("color_tqa_scenes").__module__])}
    assert behind == {"color_tqa_scenes.py", "color_vqa.py", "language.py", "scenes.py"}


def test_a_group_may_have_models_and_settings_of_its_own(toy: dict, suite: Suite, tmp_path: Path) -> None:
    group = '\n[[groups]]\ntasks = ["repeat"]\nmethods = ["random"]\nlevels = ["heads"]\nmodels = ["{}"]\n'
    file = tmp_path / "toy.toml"
    more = group.format(toy["model"]) + "settings = {max_kept = 4, ablation = {draws = 1}}\n"
    file.write_text(toy["suite"].read_text() + more)
    plan = Suite.load(file).plan(method=["random"])
    assert [p.settings.max_kept for p in plan] == [6, 4]
    assert [p.settings.asked("ablation") for p in plan] == [{"draws": n, "repetitions": 2} for n in (2, 1)]
    folder = Folder(tmp_path / "out")
    assert not run_cells(suite.name, plan, folder).failed
    large, small = sorted(folder.read(), key=lambda r: -r.settings.max_kept)
    assert (large.settings.max_kept, small.settings.max_kept) == (6, 4)
    assert [r.settings.asked("ablation")["draws"] for r in (large, small)] == [2, 1]
    # twice each: as many train as test examples are kept
    assert [r.measurements["ablation"].n for r in (large, small)] == [2 * (6 + 6), 2 * (4 + 4)]
    assert (len(large.items), len(small.items)) == (6, 4)
    assert run_cells(suite.name, plan, folder).done_before == 2


GROUP = '\n[[groups]]\ntasks = ["repeat"]\nmethods = ["random", "attribution_patching"]\nlevels = ["heads"]\n'


def test_groups_that_ask_other_things_of_one_cell_are_one_cell(toy: dict, suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(toy["suite"].read_text() + GROUP + 'settings = {evaluations = ["reliability"]}\n')
    plan = {p.cell.method: p.settings for p in Suite.load(file).plan()}
    assert len(Suite.load(file).plan()) == len(plan) == 3
    for method in ("random", "attribution_patching"):
        assert plan[method].measured("heads") == ("faithfulness", "ablation", "reliability", "speed")
    assert plan["head_ablation"].measured("heads") == ("faithfulness", "ablation", "speed")


def test_one_thing_asked_of_a_cell_in_two_ways_needs_a_variant(toy: dict, suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    other = GROUP + 'settings = {evaluations = ["ablation"], ablation = {draws = 7}}\n'
    file.write_text(toy["suite"].read_text() + other)
    with pytest.raises(ConfigurationError, match=r"asks for ablation of repeat / heads / .* in two ways; give one"):
        Suite.load(file).plan()
    file.write_text(toy["suite"].read_text() + other + 'variant = "seven draws"\n')
    plan = Suite.load(file).plan(method=["random"])
    assert [p.cell.variant for p in plan] == ["", "seven draws"]
    assert scoring_identity(*plan[0]) == scoring_identity(*plan[1])
    assert record_identity(*plan[0]) != record_identity(*plan[1])


def test_an_unknown_model_is_refused_with_a_near_name(toy: dict, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(toy["suite"].read_text().replace(str(toy["model"]), "smollm2-153m"))
    with pytest.raises(UnknownNameError, match="unknown model 'smollm2-153m': did you mean 'smollm2-135m'"):
        Suite.load(file)


def test_a_new_method_joins_every_task_and_level_it_can_score(suite: Suite) -> None:
    cells = [p.cell for p in suite.plan(method=["activation_norm"])]
    assert [(c.task, c.level, c.method) for c in cells] == [("repeat", "heads", "activation_norm")]


def test_a_method_asked_for_a_level_it_lacks_is_refused(suite: Suite) -> None:
    with pytest.raises(ConfigurationError, match="cna scores neurons, not heads"):
        suite.plan(method=["cna"], level=["heads"])


def test_the_shipped_suites_are_valid() -> None:
    for name in ("quick", "full"):
        assert Suite.load(Path(name)).plan()


# --- identity -----------------------------------------------------------------------------------------------------


def test_a_record_is_named_by_what_is_scored_and_replaced(suite: Suite) -> None:
    cell, settings = suite.plan()[0]
    base = record_identity(cell, settings)
    assert record_identity(cell, settings.changed({"batch_size": 1})) == base
    assert record_identity(cell, settings.changed({"ablation": {"draws": 3}})) == base
    for change in ({"max_kept": 5}, {"test_examples": 11}, {"dtype": "bfloat16"}):
        assert record_identity(cell, settings.changed(change)) != base
    for update in ({"seed": 1}, {"replacement": "zero"}, {"method_options": {"replacement": "mean"}}):
        assert record_identity(cell.model_copy(update=update), settings) != base
    other = cell.model_copy(update={"replacement": "zero"})
    assert scoring_identity(other, settings) == scoring_identity(cell, settings)


def test_an_evaluation_is_named_by_its_own_options_and_version(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, settings = suite.plan()[0]
    base = wanted_stages(Planned(cell, settings))
    assert set(base) == {"faithfulness", "ablation", "speed"}

    def changed(settings: Settings) -> set[str]:
        now = wanted_stages(Planned(cell, settings))
        return {name for name in now if now[name] != base.get(name)}

    assert changed(settings.changed({"ablation": {"draws": 3}})) == {"ablation"}
    assert changed(settings.changed({"pruning": {"slice": 0.25}})) == set()
    assert changed(settings.changed({"capability": {"limit": 3}})) == set()
    monkeypatch.setattr(evaluations.get("faithfulness"), "version", 99)
    assert changed(settings) == {"faithfulness"}


def test_identity_depends_on_the_methods_code_and_the_weights(suite: Suite, toy: dict, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in toy["model"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    cell, settings = suite.plan()[0]
    cell = cell.model_copy(update={"model": str(copy)})
    before = record_identity(cell, settings)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert record_identity(cell, settings) != before

    own = tmp_path / "mine.py"
    text = toy["methods"].read_text().replace('"wrong_shape"', '"mine"')
    own.write_text(text[: text.index("@dataclass\nclass NotANumber")])
    methods.include(own)
    mine = suite.plan(method=["mine"])[0]
    before = record_identity(*mine)
    own.write_text(own.read_text() + "\n# a comment changes no result\n")
    assert record_identity(*mine) == before
    own.write_text(own.read_text() + "\nCHANGED = True\n")
    assert record_identity(*mine) != before


# --- running ------------------------------------------------------------------------------------------------------


def test_a_rerun_skips_what_is_done_and_runs_what_changed(suite: Suite, tmp_path: Path) -> None:
    first = _run(suite, tmp_path)
    assert [r.status for r in first.made] == ["ok"] * 3
    again = _run(suite, tmp_path)
    assert (len(again.made), again.done_before) == (0, 3)
    forced = _run(suite, tmp_path, force=True)
    assert len(forced.made) == 3
    changed = suite.model_copy(update={"settings": suite.settings.changed({"max_kept": 5})})
    assert len(_run(changed, tmp_path).made) == 3


def test_compressed_records_are_found_done_with_and_without_an_index(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PACKED_BYTES", 1)
    first = _run(suite, tmp_path)
    assert len(list(tmp_path.glob("*.json.gz"))) == len(first.made) > 0
    for _ in range(2):
        again = _run(suite, tmp_path)
        assert not again.made and again.done_before == len(first.made)
        (tmp_path / index.FILE).unlink()
    monkeypatch.setattr(store, "PACKED_BYTES", 2**20)
    plan = [Planned(p.cell, p.settings.changed({"ablation": {"draws": 3}})) for p in suite.plan()]
    changed = _run(suite, tmp_path, plan=plan)
    assert len(changed.made) == len(first.made) and not list(tmp_path.glob("*.json.gz"))
    assert [r.scores for r in changed.made] == [r.scores for r in first.made]  # taken from the compressed ones


def test_only_what_changed_is_measured_again(suite: Suite, tmp_path: Path) -> None:
    before = {r.cell.method: r for r in _run(suite, tmp_path).made}
    changed = suite.model_copy(update={"settings": suite.settings.changed({"ablation": {"draws": 40}})})
    made = _run(changed, tmp_path).made
    assert len(made) == len(before) == len(Folder(tmp_path).read())
    for record in made:
        old = before[record.cell.method]
        assert record.filename == old.filename and record.scores == old.scores
        for name in ("scores", "speed", "faithfulness"):
            assert record.stages[name] == old.stages[name]
        assert record.measurements["faithfulness"] == old.measurements["faithfulness"]
        assert record.measurements["speed"] == old.measurements["speed"]
        new, ablation = record.measurements["ablation"], old.measurements["ablation"]
        assert record.stages["ablation"] != old.stages["ablation"] and new.random != ablation.random
        for again, first in ((new.clean, ablation.clean), (new.top, ablation.top)):
            np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-5)  # other batches, six digits


def test_cells_that_differ_in_the_replacement_are_scored_once(suite: Suite, tmp_path: Path) -> None:
    group = suite.groups[0].model_copy(update={"replacements": ("counterfactual", "zero")})
    made = _run(suite.model_copy(update={"groups": [group]}), tmp_path).made
    assert len(made) == 6
    for method in {r.cell.method for r in made}:
        one, other = (r for r in made if r.cell.method == method)
        assert one.cell.replacement != other.cell.replacement
        assert one.stages["scores"] == other.stages["scores"]
        assert one.scores == other.scores
        assert one.measurements["faithfulness"] != other.measurements["faithfulness"]
    assert len(list((tmp_path / "scores").iterdir())) == 3


def test_stored_scores_that_are_gone_or_damaged_are_made_again(suite: Suite, tmp_path: Path) -> None:
    plan = suite.plan(method=["attribution_patching"])
    (before,) = _run(suite, tmp_path, plan=plan).made
    (tmp_path / before.scores.file).write_bytes(b"damaged")
    changed = [Planned(p.cell, p.settings.changed({"ablation": {"draws": 3}})) for p in plan]
    (after,) = _run(suite, tmp_path, plan=changed).made
    assert after.scores == before.scores
    assert after.stages["scores"].created > before.stages["scores"].created
    assert after.stages["faithfulness"] == before.stages["faithfulness"]  # of the same scores
    assert Folder(tmp_path).read_scores(after) is not None
    content = bytearray((tmp_path / after.scores.file).read_bytes())
    content[-1] ^= 1  # of the same length
    (tmp_path / after.scores.file).write_bytes(content)
    _run(suite, tmp_path, plan=plan)
    assert Folder(tmp_path).read_scores(after) is not None


def test_a_failure_costs_nothing_that_was_measured(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = suite.plan(method=["random"])
    (before,) = _run(suite, tmp_path, plan=plan).made
    wrong = evaluations.get("ablation")

    def fails(self: object, question: object, measured: object) -> None:
        raise ZeroDivisionError("its own mistake")

    monkeypatch.setattr(wrong, "made", fails)
    changed = [Planned(p.cell, p.settings.changed({"ablation": {"draws": 3}})) for p in plan]
    (record,) = _run(suite, tmp_path, plan=changed).made
    assert (record.status, record.reason) == ("failed", "ablation: ZeroDivisionError: its own mistake")
    assert record.measurements["faithfulness"] == before.measurements["faithfulness"]
    assert "its own mistake" in record.traceback
    monkeypatch.undo()
    (record,) = _run(suite, tmp_path, plan=changed).made
    assert record.status == "ok" and len(record.measurements["ablation"].random) == 3
    assert record.stages["faithfulness"] == before.stages["faithfulness"]


def test_a_method_put_back_to_what_it_was_stands_on_the_board_again(suite: Suite, tmp_path: Path) -> None:
    file, out = tmp_path / "put_back.py", tmp_path / "out"
    values = []
    for sign in ("", "-", ""):
        file.write_text(MINE.replace("1.0", f"{sign}1.0"))
        methods.include(file)
        outcome = _run(suite, out, plan=suite.plan(method=["put_back"]))
        (table,) = Board.read(out).tables
        (record,) = table.records
        values.append(record.scores.top[0][1])
    assert (len(outcome.made), outcome.done_before) == (0, 1)
    assert values == [3.0, -3.0, 3.0]
    assert Board.read(out).superseded == 1
    (record,) = records_in(out)[0]
    assert record.scores.top[0][1] == 3.0
    _run(suite, out, plan=suite.plan(method=["put_back"]), force=True)
    assert "current" not in Folder(out).about()


MINE = """
import torch
from attriboard.method import Method


class Mine(Method):
    name = "put_back"
    levels = ("heads",)

    def score_batch(self, model, batch, level):
        scores = torch.zeros(len(batch), *level.shape(model))
        scores[:, 0, 0] = 1.0 * model.n_layers
        scores[:, 0, 1:] = scores[:, 1:] = min(0.0, float(scores[0, 0, 0]))
        return scores
"""
"""The first head scores highest; with a minus sign, all score the same and below zero."""


def test_what_is_no_longer_asked_for_stays(suite: Suite, tmp_path: Path) -> None:
    (before,) = _run(suite, tmp_path, plan=suite.plan(method=["random"])).made
    other = suite.model_copy(update={"settings": suite.settings.changed({"evaluations": ["sanity"]})})
    (after,) = _run(other, tmp_path, plan=other.plan(method=["random"])).made
    assert set(after.measurements) == {"faithfulness", "ablation", "sanity", "speed"}
    assert after.stages["ablation"] == before.stages["ablation"]
    assert after.settings.asked("ablation") == {"draws": 2, "repetitions": 2}
    assert {name: after.aggregates[name] for name in before.aggregates} == before.aggregates
    assert _run(suite, tmp_path, plan=suite.plan(method=["random"])).done_before == 1


def test_what_was_judged_another_number_of_times_does_not_stay(suite: Suite, tmp_path: Path) -> None:
    _run(suite, tmp_path, plan=suite.plan(method=["random"]))
    changes = {"evaluations": ["sanity"], "repetitions": 3}
    other = suite.model_copy(update={"settings": suite.settings.changed(changes)})
    (after,) = _run(other, tmp_path, plan=other.plan(method=["random"])).made
    assert set(after.measurements) == {"sanity", "speed"} and after.settings.repetitions == 3


def test_forcing_keeps_what_is_there_where_the_new_fails(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = suite.plan(method=["random"])
    (before,) = _run(suite, tmp_path, plan=plan).made

    def fails(self: object, *arguments: object) -> None:
        raise ZeroDivisionError("its own mistake")

    monkeypatch.setattr(methods.get("random"), "attribute", fails)
    (record,) = _run(suite, tmp_path, plan=plan, force=True).made
    assert (record.status, record.measurements) == ("failed", before.measurements)
    monkeypatch.undo()
    (record,) = _run(suite, tmp_path, plan=plan, force=True).made
    assert record.status == "ok" and record.stages["scores"].created > before.stages["scores"].created


def test_an_evaluation_whose_statistics_go_wrong_costs_no_other(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ablation, "statistics", lambda self: {"no_such_metric": lambda index: index.mean(-1)})
    (record,) = _run(suite, tmp_path, plan=suite.plan(method=["random"])).made
    assert record.status == "failed"
    assert record.reason == "ablation: ablation has a value of metric 'no_such_metric', which it does not declare."
    assert set(record.measurements) == {"faithfulness", "speed"} and "sufficiency_log_area" in record.aggregates
    monkeypatch.undo()
    (again,) = _run(suite, tmp_path, plan=suite.plan(method=["random"])).made
    assert again.status == "ok" and again.stages["scores"] == record.stages["scores"]


def test_two_included_files_of_one_name_are_told_apart(suite: Suite, toy: dict, tmp_path: Path) -> None:
    text = toy["methods"].read_text()
    text = text[: text.index("@dataclass\nclass NotANumber")]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(text.replace('"wrong_shape"', f'"mine_{folder}"'))
        methods.include(tmp_path / folder / "mine.py")
    first, second = (record_identity(*suite.plan(method=[f"mine_{name}"])[0]) for name in ("one", "other"))
    file = tmp_path / "one" / "mine.py"
    file.write_text(file.read_text() + "\nCHANGED = True\n")
    assert record_identity(*suite.plan(method=["mine_one"])[0]) != first
    assert record_identity(*suite.plan(method=["mine_other"])[0]) == second


def test_cells_that_share_scores_and_are_timed_differently_are_both_done(suite: Suite, tmp_path: Path) -> None:
    (one,) = suite.plan(method=["random"])
    other = Planned(one.cell.model_copy(update={"variant": "slow"}), one.settings.changed({"speed": {"repeats": 1}}))
    assert len(_run(suite, tmp_path, plan=[one, other]).made) == 2
    assert _run(suite, tmp_path, plan=[one, other]).done_before == 2


def test_a_model_that_is_gone_does_not_take_finished_measurements_with_it(suite: Suite, tmp_path: Path) -> None:
    (before,) = _run(suite, tmp_path, plan=suite.plan(method=["random"])).made
    error = ModelError("gone")
    worker = Worker()
    worker.context = lambda cell, settings: (_ for _ in ()).throw(error)  # type: ignore[method-assign]
    record, _ = worker.execute(suite.name, suite.plan(method=["random"])[0], Earlier(before))
    assert (record.status, record.reason) == ("failed", "gone")
    assert record.measurements == before.measurements and record.aggregates == before.aggregates


def test_the_same_cell_run_twice_gives_the_same_record_up_to_timings(suite: Suite, tmp_path: Path) -> None:
    a, b = _run(suite, tmp_path / "a"), _run(suite, tmp_path / "b")
    assert [r.without_timings() for r in a.made] == [r.without_timings() for r in b.made]


def test_failed_cells_are_recorded_and_cost_no_other_cell(suite: Suite, tmp_path: Path) -> None:
    plan = suite.plan(method=["wrong_shape", "not_a_number", "raises", "needs_a_mark", "random"])
    outcome = _run(suite, tmp_path, plan=plan)
    found = {r.cell.method: (r.status, r.reason) for r in Folder(tmp_path).read()}
    assert found["random"][0] == "ok"
    assert found["needs_a_mark"][0] == "skipped" and "mark called 'object'" in found["needs_a_mark"][1]
    assert found["wrong_shape"] == (
        "failed",
        "wrong_shape.score_batch returned shape (4, 7), expected shape (4, 3, 4) (examples, layer, head).",
    )
    assert "1 scores that are NaN or infinite, the first for a1.h2" in found["not_a_number"][1]
    assert found["raises"] == ("failed", "ZeroDivisionError: its own mistake")
    assert {r.cell.method for r in outcome.failed} == {"wrong_shape", "not_a_number", "raises"}
    trace = next(r for r in outcome.failed if r.cell.method == "raises").traceback
    assert "its own mistake" in trace


def test_failed_cells_are_tried_again(suite: Suite, tmp_path: Path) -> None:
    plan = suite.plan(method=["raises"])
    _run(suite, tmp_path, plan=plan)
    assert len(_run(suite, tmp_path, plan=plan).made) == 1


def test_a_task_without_kept_examples_fails_its_cells_only(suite: Suite, tmp_path: Path) -> None:
    plan = suite.plan(task=["hopeless"], method=["random"]) + suite.plan(method=["random"])
    by_task = {r.cell.task: r for r in _run(suite, tmp_path, plan=plan).made}
    assert by_task["repeat"].status == "ok"
    assert by_task["hopeless"].status == "failed"
    assert "answers only 0 of 12" in by_task["hopeless"].reason


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on_from_there(suite: Suite, tmp_path: Path) -> None:
    def interrupt(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(suite, tmp_path, finished=interrupt)
    assert len(Folder(tmp_path).read()) == 1
    rest = _run(suite, tmp_path)
    assert (len(rest.made), rest.done_before) == (2, 1)


def test_foreign_and_truncated_files_are_named_left_alone_and_not_counted(suite: Suite, tmp_path: Path) -> None:
    outcome = _run(suite, tmp_path)
    whole = (tmp_path / outcome.made[0].filename).read_text()
    (tmp_path / outcome.made[0].filename).write_text(whole[: len(whole) // 2])
    (tmp_path / "notes.json").write_text('{"hello": 1}')
    folder = Folder(tmp_path)
    assert len(folder.read()) == 2
    assert set(folder.foreign) == {outcome.made[0].filename, "notes.json"}
    assert len(_run(suite, tmp_path).made) == 1
    assert (tmp_path / "notes.json").read_text() == '{"hello": 1}'


def test_a_folder_of_another_suite_is_refused(suite: Suite, tmp_path: Path) -> None:
    Folder(tmp_path).claim("other")
    with pytest.raises(ConfigurationError, match="holds the records of suite 'other', not 'toy'"):
        _run(suite, tmp_path)


def test_a_full_disk_stops_with_a_sentence_and_leaves_no_partial_file(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(tmp_path).claim("toy")
    real = os.fsync
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 4:  # the scores and the record of the first cell, and the scores of the second, were
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device; 1 records made before it are safe"):
        _run(suite, tmp_path)
    assert len(Folder(tmp_path).read()) == 1
    assert not [f for f in tmp_path.iterdir() if f.suffix == ".tmp"]


def test_records_carry_what_made_them(suite: Suite, tmp_path: Path) -> None:
    record = _run(suite, tmp_path).made[0]
    assert record.model and len(record.model.weights_sha256) == 64
    assert record.model.n_components == 12
    assert len(record.data_sha256) == 64
    assert record.provenance and record.provenance.torch and record.provenance.created
    faithful = record.measurements["faithfulness"]
    assert len(record.items) == len(record.frames) == 6 and len(faithful.full) == 12 and faithful.n == 24
    assert set(faithful.base_items[6:12]) == set(record.items)  # the train half is judged first
    assert record.chance == pytest.approx(1 / 24)
    assert json.loads((tmp_path / record.filename).read_text())["status"] == "ok"
    assert record.filename.endswith(f"{record.identity[:12]}.json")


def test_ray_gives_the_same_records_as_local(suite: Suite, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        plan = suite.plan() + suite.plan(method=["raises"])
        distributed = _run(suite, tmp_path / "ray", plan=plan, executor="ray")
        again = _run(suite, tmp_path / "ray", plan=plan[:1], executor="ray", force=True)
    finally:
        ray.shutdown()
    local = _run(suite, tmp_path / "local", plan=plan)
    assert {r.reason for r in distributed.failed} == {r.reason for r in local.failed}
    by_name = {r.filename: r for r in local.made}
    assert {r.filename for r in distributed.made} == set(by_name)
    for record in distributed.made:
        assert record.without_timings() == by_name[record.filename].without_timings()
    assert [r.cell.method for r in distributed.failed] == ["raises"]
    assert {r.provenance.workers for r in distributed.made if r.provenance} == {2}
    made = [{name: stage.created for name, stage in run.made[0].stages.items()} for run in (distributed, again)]
    assert made[0].keys() == made[1].keys() and all(made[1][name] > made[0][name] for name in made[0])


def test_a_cell_reads_like_a_sentence() -> None:
    cell = Cell(
        task="arithmetic", method="head_ablation", method_options={"replacement": "mean"}, model="m", level="heads"
    )
    assert str(cell) == "arithmetic / heads / head_ablation(replacement=mean) on m, seed 0"
