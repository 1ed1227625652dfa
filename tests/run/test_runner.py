"""Suites, records and the runner: what is named, skipped, recorded, resumed and refused."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.method import methods
from attriboard.records.record import Cell, Record
from attriboard.records.store import Folder
from attriboard.run import runner
from attriboard.run.identity import record_identity
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks


@pytest.fixture
def suite(toy: dict) -> Suite:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    return Suite.load(toy["suite"])


def _run(suite: Suite, path: Path, **kwargs) -> runner.Outcome:
    cells = kwargs.pop("cells", None) or suite.plan()
    return run_cells(suite.name, cells, Folder(path), **kwargs)


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
    behind = {Path(f).name for f in runner._files_behind(sys.modules[tasks.get("color_tqa_scenes").__module__])}
    assert behind == {"color_tqa_scenes.py", "color_vqa.py", "language.py", "scenes.py"}


def test_a_group_may_have_models_and_settings_of_its_own(toy: dict, suite: Suite, tmp_path: Path) -> None:
    group = '\n[[groups]]\ntasks = ["repeat"]\nmethods = ["random"]\nlevels = ["heads"]\nmodels = ["{}"]\n'
    file = tmp_path / "toy.toml"
    more = group.format(toy["model"]) + "settings = {max_kept = 4, ablation = { draws = 1 }}\n"
    file.write_text(toy["suite"].read_text() + more)
    cells = Suite.load(file).plan(method=["random"])
    assert [cell.settings for cell in cells] == [{}, {"max_kept": 4, "ablation_draws": 1}]
    folder = Folder(tmp_path / "out")
    assert not run_cells(suite.name, cells, suite.settings, folder).failed
    large, small = sorted(folder.read(), key=lambda r: -r.settings.max_kept)
    assert (large.settings.max_kept, small.settings.max_kept) == (6, 4)
    assert small.settings.ablation_draws == len(small.measurements["ablation"].random) == 1
    assert (len(large.items), len(small.items)) == (6, 4)
    assert run_cells(suite.name, cells, suite.settings, folder).done_before == 2
    # the same settings, wherever they are written, make the same cell
    plain = cells[0].model_copy(update={"settings": {"max_kept": 6}})
    assert record_identity(plain, suite.settings.of(plain)) == record_identity(cells[0], suite.settings)


def test_an_unknown_model_is_refused_with_a_near_name(toy: dict, tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(toy["suite"].read_text().replace(str(toy["model"]), "smollm2-153m"))
    with pytest.raises(UnknownNameError, match="unknown model 'smollm2-153m': did you mean 'smollm2-135m'"):
        Suite.load(file)


def test_a_new_method_joins_every_task_and_level_it_can_score(suite: Suite) -> None:
    cells = suite.plan(method=["activation_norm"])
    assert [(c.task, c.level, c.method) for c in cells] == [("repeat", "heads", "activation_norm")]


def test_a_method_asked_for_a_level_it_lacks_is_refused(suite: Suite) -> None:
    with pytest.raises(ConfigurationError, match="cna scores neurons, not heads"):
        suite.plan(method=["cna"], level=["heads"])


def test_the_shipped_suites_are_valid() -> None:
    for name in ("quick", "full"):
        assert Suite.load(Path(name)).plan()


# --- identity -----------------------------------------------------------------------------------------------------


def test_identity_depends_on_every_setting_but_the_batch_size(suite: Suite) -> None:
    cell = suite.plan()[0]
    base = record_identity(cell, suite.settings)
    assert record_identity(cell, suite.settings.model_copy(update={"batch_size": 1})) == base
    for change in ({"max_kept": 5}, {"test_examples": 11}, {"ablation_draws": 3}, {"dtype": "bfloat16"}):
        assert record_identity(cell, suite.settings.model_copy(update=change)) != base
    for change in ({"seed": 1}, {"replacement": "zero"}, {"method_options": {"replacement": "mean"}}):
        assert record_identity(cell.model_copy(update=change), suite.settings) != base


def test_identity_depends_on_the_method_file_and_the_weights(suite: Suite, toy: dict, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in toy["model"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    cell = suite.plan()[0].model_copy(update={"model": str(copy)})
    before = record_identity(cell, suite.settings)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert record_identity(cell, suite.settings) != before

    own = tmp_path / "mine.py"
    text = toy["methods"].read_text().replace('"wrong_shape"', '"mine"')
    own.write_text(text[: text.index("@dataclass\nclass NotANumber")])
    methods.include(own)
    mine = suite.plan(method=["mine"])[0]
    before = record_identity(mine, suite.settings)
    own.write_text(own.read_text() + "\n# changed\n")
    assert record_identity(mine, suite.settings) != before


# --- running ------------------------------------------------------------------------------------------------------


def test_a_rerun_skips_what_is_done_and_runs_what_changed(suite: Suite, tmp_path: Path) -> None:
    first = _run(suite, tmp_path)
    assert [r.status for r in first.made] == ["ok"] * 3
    again = _run(suite, tmp_path)
    assert (len(again.made), again.done_before) == (0, 3)
    forced = _run(suite, tmp_path, force=True)
    assert len(forced.made) == 3
    changed = suite.model_copy(update={"settings": suite.settings.model_copy(update={"max_kept": 5})})
    assert len(_run(changed, tmp_path).made) == 3


def test_the_same_cell_run_twice_gives_the_same_record_up_to_timings(suite: Suite, tmp_path: Path) -> None:
    a, b = _run(suite, tmp_path / "a"), _run(suite, tmp_path / "b")
    assert [r.without_timings() for r in a.made] == [r.without_timings() for r in b.made]


def test_failed_cells_are_recorded_and_cost_no_other_cell(suite: Suite, tmp_path: Path) -> None:
    cells = suite.plan(method=["wrong_shape", "not_a_number", "raises", "needs_a_mark", "random"])
    outcome = _run(suite, tmp_path, cells=cells)
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
    cells = suite.plan(method=["raises"])
    _run(suite, tmp_path, cells=cells)
    assert len(_run(suite, tmp_path, cells=cells).made) == 1


def test_a_task_without_kept_examples_fails_its_cells_only(suite: Suite, tmp_path: Path) -> None:
    cells = suite.plan(task=["hopeless"], method=["random"]) + suite.plan(method=["random"])
    by_task = {r.cell.task: r for r in _run(suite, tmp_path, cells=cells).made}
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
        if len(calls) == 2:
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
    assert len(record.items) == len(record.measurements["faithfulness"].full) == 6
    assert record.chance == pytest.approx(1 / 24)
    assert json.loads((tmp_path / record.filename).read_text())["status"] == "ok"
    assert record.filename.endswith(f"{record.identity[:12]}.json")


def test_ray_gives_the_same_records_as_local(suite: Suite, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        cells = suite.plan() + suite.plan(method=["raises"])
        distributed = _run(suite, tmp_path / "ray", cells=cells, executor="ray")
    finally:
        ray.shutdown()
    local = _run(suite, tmp_path / "local", cells=cells)
    assert {r.reason for r in distributed.failed} == {r.reason for r in local.failed}
    by_name = {r.filename: r for r in local.made}
    assert {r.filename for r in distributed.made} == set(by_name)
    for record in distributed.made:
        assert record.without_timings() == by_name[record.filename].without_timings()
    assert [r.cell.method for r in distributed.failed] == ["raises"]


def test_a_cell_reads_like_a_sentence() -> None:
    cell = Cell(
        task="arithmetic", method="head_ablation", method_options={"replacement": "mean"}, model="m", level="heads"
    )
    assert str(cell) == "arithmetic / heads / head_ablation(replacement=mean) on m, seed 0"
