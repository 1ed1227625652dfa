"""Scores from files: they stand on the board beside the methods, run no code, and are checked before anything runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from attriboard.board.board import Board
from attriboard.board.formats import render
from attriboard.components import LEVELS
from attriboard.errors import ScoresError
from attriboard.evaluation import concepts
from attriboard.exchange import mib
from attriboard.exchange.precomputed import ScoreFile, read, read_all, shape_of
from attriboard.graph import Graph
from attriboard.method import methods
from attriboard.records.record import Planned, Precomputed, Record
from attriboard.records.store import Folder
from attriboard.run import worker
from attriboard.run.attribute import Request, attribute_task
from attriboard.run.identity import record_identity
from attriboard.run.runner import Outcome, run_cells
from attriboard.run.suite import Suite
from attriboard.run.worker import PRECOMPUTED
from attriboard.scores import Scores
from attriboard.task import tasks
from tests.bench.cli import call

SPEED = {"seconds_per_example", "forward_equivalents", "flops_per_example", "peak_memory_mib"}
MORE = """
[[groups]]
tasks = ["repeat"]
methods = ["attribution_patching"]
levels = ["nodes"]
"""


@pytest.fixture
def suite(toy: dict, tmp_path: Path) -> Suite:
    """The toy suite with nodes too; it scores the examples that ``attribute_task`` scores, in the same batches."""
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    file = tmp_path / "toy.toml"
    text = toy["suite"].read_text().replace("max_kept = 6", "max_kept = 12")
    file.write_text(text.replace("batch_size = 4", "batch_size = 16") + MORE)
    return Suite.load(file)


def stored(toy: dict, file: Path, level: str = "heads", seed: int = 0, **metadata: str) -> Path:
    """A file of random scores for the toy model."""
    shape = LEVELS[level].shape(shape_of(str(toy["model"])))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scores = Scores(values, level, LEVELS[level].names(shape_of(str(toy["model"]))))
    file.parent.mkdir(parents=True, exist_ok=True)
    scores.save(file, **{"model": str(toy["model"]), **metadata})
    return file


def run(suite: Suite, plan: list[Planned], path: Path, **kwargs: Any) -> Outcome:
    return run_cells(suite.name, plan, Folder(path), **kwargs)


def measured(record: Record) -> dict[str, Any]:
    """All that a record says of its scores, but for their cost."""
    content = record.without_timings()
    values = {name: value for name, value in content["aggregates"].items() if name not in SPEED}
    assert set(content["measurements"]) == {"faithfulness", "ablation"}
    scores = {key: content["scores"][key] for key in ("top", "sketch", "values_sha256")}
    return {key: content[key] for key in ("measurements", "items", "kept")} | scores | values


# --- what stands on the board -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [".safetensors", ".json", ".pt"])
def test_a_methods_scores_from_a_file_measure_as_the_method_itself(
    how: str, suite: Suite, toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one set of scores, of every train example that is answered, as `attribute_task` makes it
    # one set of scores, of all train examples that are answered, as those of the file
    suite = suite.model_copy(update={"settings": suite.settings.changed({"folds": 0, "keep": "answer"})})
    own = suite.plan(method=["attribution_patching"], level=["nodes"])
    run(suite, own, tmp_path / "out")
    scores, _ = attribute_task(Request(str(toy["model"]), "attribution_patching", "nodes"), "repeat", 12)
    file = tmp_path / f"mine{how}"
    if how == ".safetensors":
        scores.save(file, model=str(toy["model"]))
    else:
        mib.save(scores, shape_of(str(toy["model"])).graph, file)
    plan = suite.precomputed([read(file)])
    monkeypatch.setattr(worker, "make_method", lambda *arguments: pytest.fail("a method was made"))
    (record,) = run(suite, plan, tmp_path / "out").made
    assert record.status == "ok", record.reason
    theirs = next(r for r in Folder(tmp_path / "out").read() if not r.cell.precomputed)
    assert measured(record) == measured(theirs)
    assert "speed" not in record.measurements and not SPEED & set(record.aggregates)
    assert record.not_measured["speed"] == PRECOMPUTED
    assert record.cell.method_label == "mine (precomputed)" and not record.control


def test_names_decide_and_the_order_in_the_file_does_not(suite: Suite, toy: dict, tmp_path: Path) -> None:
    straight = read(stored(toy, tmp_path / "a" / "mine.safetensors"))
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    save_file(
        {"scores": straight.scores.values.flatten()[turned]},
        tmp_path / "b.safetensors",
        {"names": json.dumps([straight.scores.names[i] for i in turned]), "level": "heads", "model": straight.model},
    )
    model = shape_of(straight.model)
    fitted = read(tmp_path / "b.safetensors").fitting(model)
    assert fitted.names == LEVELS["heads"].names(model)
    assert torch.equal(fitted.values, straight.scores.values)


def test_the_board_shows_it_beside_the_methods_and_leaves_its_cost_empty(
    suite: Suite, toy: dict, tmp_path: Path
) -> None:
    plan = suite.plan(level=["heads"]) + suite.precomputed([read(stored(toy, tmp_path / "mine.safetensors"))])
    run(suite, plan, tmp_path / "out")
    board = Board.read(tmp_path / "out")
    (table,) = board.tables
    assert len(table.records) == 4 and set(table.metrics) > SPEED
    assert set(table.ranks("cpr")) == {"mine (precomputed)", "head_ablation", "attribution_patching", "random"}
    text = render(board)
    (row,) = [line for line in text.splitlines() if line.startswith("| mine (precomputed) |") and "[" in line]
    assert row.endswith("|  |  |  |")
    (method,) = [line for line in text.splitlines() if line.startswith("| head_ablation |") and "[" in line]
    assert not method.endswith("|  |")
    assert "(precomputed): scores from a file" in text
    assert "speed not measured: repeat / heads / mine (precomputed)" in text
    for form in ("csv", "latex", "html", "json"):
        assert "mine (precomputed)" in render(board, form)


def test_a_board_without_precomputed_scores_says_nothing_of_them(suite: Suite, tmp_path: Path) -> None:
    run(suite, suite.plan(method=["random"]), tmp_path / "out")
    assert "precomputed" not in render(Board.read(tmp_path / "out"))


def test_a_name_of_a_method_stays_apart_from_that_method(suite: Suite, toy: dict, tmp_path: Path) -> None:
    file = read(stored(toy, tmp_path / "f.safetensors", method="random"))
    run(suite, suite.plan(method=["random"], level=["heads"]) + suite.precomputed([file]), tmp_path / "out")
    (table,) = Board.read(tmp_path / "out").tables
    assert {r.cell.method_label for r in table.records} == {"random", "random (precomputed)"}


def test_a_file_changed_and_read_again_takes_the_place_of_the_older_one(
    suite: Suite, toy: dict, tmp_path: Path
) -> None:
    file = stored(toy, tmp_path / "mine.safetensors")
    (old,) = run(suite, suite.precomputed([read(file)]), tmp_path / "out").made
    assert run(suite, suite.precomputed([read(file)]), tmp_path / "out").done_before == 1
    shutil.copy(file, tmp_path / "elsewhere.safetensors")
    moved = read(tmp_path / "elsewhere.safetensors")
    (planned,) = suite.precomputed([ScoreFile(moved.path, moved.sha256, "mine", moved.scores, moved.model)])
    assert record_identity(*planned) == old.identity  # where a file stands does not matter
    stored(toy, file, seed=1)
    (new,) = run(suite, suite.precomputed([read(file)]), tmp_path / "out").made
    assert new.identity != old.identity
    board = Board.read(tmp_path / "out")
    assert [r.identity for t in board.tables for r in t.records] == [new.identity] and board.superseded == 1


def test_ray_gives_the_same_record(suite: Suite, toy: dict, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    plan = suite.precomputed([read(stored(toy, tmp_path / "mine.safetensors"))])
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        (distributed,) = run(suite, plan, tmp_path / "ray", executor="ray").made
    finally:
        ray.shutdown()
    (local,) = run(suite, plan, tmp_path / "local").made
    assert distributed.status == "ok", distributed.reason
    assert distributed.without_timings() == local.without_timings()


def test_a_file_that_changes_during_the_run_fails_its_cell(suite: Suite, toy: dict, tmp_path: Path) -> None:
    plan = suite.precomputed([read(stored(toy, tmp_path / "mine.safetensors"))])
    stored(toy, tmp_path / "mine.safetensors", seed=1)
    (record,) = run(suite, plan, tmp_path / "out").made
    assert record.status == "failed" and "has changed since the run began" in record.reason


def test_only_precomputed_scores_may_lack_their_cost(suite: Suite, toy: dict, tmp_path: Path) -> None:
    plan = suite.precomputed([read(stored(toy, tmp_path / "mine.safetensors"))])
    (record,) = run(suite, plan, tmp_path / "out").made
    content = record.model_dump()
    Record.model_validate(content)
    with pytest.raises(ValidationError, match="without its measurements"):
        Record.model_validate({**content, "cell": {**content["cell"], "method": "random", "precomputed": None}})
    with pytest.raises(ValidationError, match="without its measurements"):
        Record.model_validate({**content, "not_measured": {}})


def test_properties_of_concepts_are_said_to_be_missing(
    suite: Suite, toy: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concepts, "applies", lambda examples, level: True)
    group = suite.groups[1].model_copy(update={"levels": ["neurons"]})
    of_neurons = suite.model_copy(update={"groups": [group]})
    plan = of_neurons.precomputed([read(stored(toy, tmp_path / "mine.safetensors", "neurons"))])
    (record,) = run(of_neurons, plan, tmp_path / "out").made
    assert record.status == "ok" and record.not_measured["concepts"] == PRECOMPUTED


# --- which cells --------------------------------------------------------------------------------------------------


def test_a_file_stands_in_every_cell_of_its_level_and_model(suite: Suite, toy: dict, tmp_path: Path) -> None:
    group = suite.groups[0].model_copy(update={"replacements": ("counterfactual", "mean")})
    wider = suite.model_copy(update={"groups": [group, suite.groups[1]], "seeds": [0, 1]})
    file = read(stored(toy, tmp_path / "mine.safetensors"))
    assert [(c.level, c.seed, c.replacement) for c, _ in wider.precomputed([file])] == [
        ("heads", seed, replacement) for seed in (0, 1) for replacement in ("counterfactual", "mean")
    ]
    assert {c.seed for c, _ in wider.precomputed([file], seed=7)} == {7}
    assert {c.task for c, _ in wider.precomputed([file], task=["hopeless"])} == {"hopeless"}
    of_one = read(stored(toy, tmp_path / "one.safetensors", task="repeat", seed=0))
    assert len(wider.precomputed([of_one])) == 4
    stored_for = read(stored(toy, tmp_path / "two.safetensors", task="repeat"))
    assert len(wider.precomputed([stored_for], level=["heads"])) == 4


def test_scores_of_a_planted_model_meet_the_truth(tmp_path: Path) -> None:
    model = shape_of("planted-copy")
    assert model.truth is not None
    helps = {part.name for part in model.truth.levels["heads"] if part.role == "helps"}
    names = LEVELS["heads"].names(model)
    values = torch.tensor([float(name in helps) for name in names]).view(LEVELS["heads"].shape(model))
    file = tmp_path / "oracle.safetensors"
    Scores(values, "heads", names).save(file, model="planted-copy", task="planted_copy")
    loaded = Suite.load(Path("planted"))
    plan = loaded.precomputed([read(file)], ["planted_copy"], ["heads"])
    (record,) = run_cells(loaded.name, plan, Folder(tmp_path / "out")).made
    assert record.status == "ok" and record.aggregates["truth_auroc"].value == 1.0


def test_metadata_narrows_to_a_task_and_a_seed(suite: Suite, toy: dict, tmp_path: Path) -> None:
    two = suite.model_copy(update={"seeds": [0, 1]})
    values, names = torch.zeros(3, 4), LEVELS["heads"].names(shape_of(str(toy["model"])))
    file = tmp_path / "mine.safetensors"
    Scores(values, "heads", names).save(file, model=str(toy["model"]), task="repeat", seed="1")
    assert [c.seed for c, _ in two.precomputed([read(file)])] == [1]
    with pytest.raises(ScoresError, match=r"task repeat, level heads, model .*, seed 1, which this run of suite 'toy'"):
        suite.precomputed([read(file)])
    Scores(values, "heads", names).save(file, model=str(toy["model"]), task="arithmetic")
    with pytest.raises(ScoresError, match="task arithmetic, level heads"):
        suite.precomputed([read(file)])


def test_names_given_pass_over_what_they_leave_out_but_not_everything(suite: Suite, toy: dict, tmp_path: Path) -> None:
    files = [read(stored(toy, tmp_path / f"{level}.safetensors", level)) for level in ("heads", "nodes")]
    assert [c.level for c, _ in suite.precomputed(files)] == ["heads", "nodes"]
    assert [c.level for c, _ in suite.precomputed(files, level=["nodes"])] == ["nodes"]
    with pytest.raises(ScoresError, match="which this run of suite 'toy' does not ask for"):
        suite.precomputed(files[:1], level=["nodes"])
    files.append(read(stored(toy, tmp_path / "neurons.safetensors", "neurons")))
    with pytest.raises(ScoresError, match=r"neurons\.safetensors holds scores of level neurons.*has heads, nodes on"):
        suite.precomputed(files)


def test_two_files_for_one_row_are_refused(suite: Suite, toy: dict, tmp_path: Path) -> None:
    files = [read(stored(toy, tmp_path / folder / "mine.safetensors")) for folder in "ab"]
    with pytest.raises(ScoresError, match="would both stand on the board as 'mine'"):
        suite.precomputed(files)


def test_a_file_without_a_model_goes_to_the_only_one_of_its_shape(suite: Suite, toy: dict, tmp_path: Path) -> None:
    graph = shape_of(str(toy["model"])).graph
    names = graph.src_nodes[1:]
    mib.save(Scores(torch.zeros(3, 5), "nodes", names), graph, tmp_path / "ioi_toy" / "importances.json")
    file = read(tmp_path / "ioi_toy" / "importances.json")
    assert (file.name, file.model, file.level) == ("ioi_toy", "", "nodes")
    assert [c.model for c, _ in suite.precomputed([file])] == [str(toy["model"])]
    twin = tmp_path / "twin"
    shutil.copytree(toy["model"], twin)
    both = suite.model_copy(update={"models": [str(toy["model"]), str(twin)]})
    with pytest.raises(ScoresError, match="alike; say with --model which one it is of"):
        both.precomputed([file])
    assert [c.model for c, _ in both.precomputed([file], model=str(twin))] == [str(twin)]
    other = Graph(3, 5, False, 32)
    values = Scores(torch.zeros(3, 6), "nodes", other.src_nodes[1:])
    mib.save(values, other, tmp_path / "other.json")
    with pytest.raises(ScoresError, match=r"is for 3 layers, 5 heads and width 32, but .* has 3 layers, 4 heads"):
        suite.precomputed([read(tmp_path / "other.json")])


@pytest.mark.parametrize("suffix", [".json", ".pt", ".safetensors"])
def test_edges_come_in_from_every_kind_of_file(suffix: str, toy: dict, tmp_path: Path) -> None:
    own = stored(toy, tmp_path / "e.safetensors", "edges")
    model = shape_of(str(toy["model"]))
    file = own if suffix == ".safetensors" else tmp_path / f"e{suffix}"
    if file != own:
        mib.save(read(own).scores, model.graph, file)
    fitted = read(file).fitting(model)
    assert fitted.level == "edges" and fitted.names == list(model.graph.edge_names)
    assert torch.equal(fitted.values, read(own).scores.values)


def test_of_a_file_of_nodes_and_edges_what_the_run_asks_for_is_read(toy: dict, tmp_path: Path) -> None:
    graph = shape_of(str(toy["model"])).graph
    nodes, edges = (stored(toy, tmp_path / f"{level}.safetensors", level) for level in ("nodes", "edges"))
    for file in (nodes, edges):
        mib.save(read(file).scores, graph, file.with_suffix(".json"))
    both = json.loads(nodes.with_suffix(".json").read_text())
    both["edges"] = json.loads(edges.with_suffix(".json").read_text())["edges"]
    (tmp_path / "both.json").write_text(json.dumps(both))
    for asked, level in (([], "edges"), (["edges", "nodes"], "edges"), (["nodes"], "nodes"), (["heads"], "nodes")):
        assert [file.level for file in read_all([tmp_path / "both.json"], asked)] == [level]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["cfg"].update(n_layers=4), "is for 4 layers, 4 heads and width 32, and"),
        (lambda c: c["edges"].update({"input->a5.h0<q>": {"score": 1.0, "in_graph": False}}), "input->a5.h0<q>"),
        (lambda c: c["edges"]["input->m0"].pop("score"), "has no score for input->m0; MIB reads every edge's score"),
    ],
)
def test_edges_that_do_not_fit_the_model_are_one_sentence(
    change: Callable[[dict[str, Any]], Any], message: str, toy: dict, tmp_path: Path
) -> None:
    model = shape_of(str(toy["model"]))
    mib.save(read(stored(toy, tmp_path / "e.safetensors", "edges")).scores, model.graph, tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text())
    change(content)
    (tmp_path / "e.json").write_text(json.dumps(content))
    with pytest.raises(ScoresError) as caught:
        read(tmp_path / "e.json").fitting(model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_scores_of_another_models_edges_name_those_that_lack(toy: dict, tmp_path: Path) -> None:
    other = Graph(2, 4, False, 32)
    scores = Scores(torch.zeros(other.n_edges), "edges", list(other.edge_names))
    scores.save(tmp_path / "e.safetensors", model=str(toy["model"]))
    with pytest.raises(ScoresError, match=r"does not score the 262 edges of .*: it lacks input->a2\.h0<q>"):
        read(tmp_path / "e.safetensors").fitting(shape_of(str(toy["model"])))


def test_identity_follows_what_the_file_holds_and_not_where_it_stands(suite: Suite) -> None:
    cell, settings = suite.plan()[0]
    first, second = (
        cell.model_copy(update={"precomputed": Precomputed(file=file, sha256="0" * 64)}) for file in ("a", "b")
    )
    assert record_identity(first, settings) != record_identity(cell, settings)
    assert record_identity(second, settings) == record_identity(first, settings)


# --- what is refused ----------------------------------------------------------------------------------------------


def heads(change: Callable[[dict[str, float]], None] = lambda found: None) -> dict[str, float]:
    found = {f"a{layer}.h{head}": float(layer - head) for layer in range(3) for head in range(4)}
    change(found)
    return found


def lacking(found: dict[str, float]) -> None:
    for name in ("a0.h1", "a2.h3"):
        del found[name]


def too_many(found: dict[str, float]) -> None:
    found.update({f"m{i}": 0.0 for i in range(7)})


@pytest.mark.parametrize(
    ("scores", "metadata", "message"),
    [
        (heads(lacking), {}, "does not score the 12 heads of"),
        (heads(lacking), {}, "it lacks a0.h1, a2.h3."),
        (heads(too_many), {}, "it has beside them m0, m1, m2, m3, m4 and 2 more (7 in all)."),
        (heads(lambda f: (lacking(f), too_many(f))), {}, "it lacks a0.h1, a2.h3 and has beside them m0, m1"),
        (heads(), {"level": "nodes"}, "does not score the 15 nodes of"),
        (heads(), {"level": "haeds"}, "unknown level 'haeds': did you mean 'heads'"),
        (heads(), {"level": "tokens"}, "scores tokens, which belong to single examples and are not read"),
        (heads(), {"level": ""}, "lacks the metadata 'level'."),
        (heads(), {"model": ""}, "lacks the metadata 'model'."),
        (heads(), {"model": "smollm2-135m"}, "model smollm2-135m, which this run of suite 'toy' does not ask for"),
        (heads(), {"names": "a0.h0"}, "has metadata 'names' that is not JSON"),
        (heads(), {"names": "{}"}, "has metadata 'names' that is not a list of component names."),
        (heads(), {"names": '["a0.h0"]'}, "has 12 scores and 1 names; they must be as many."),
        (heads(), {"names": json.dumps(["a0.h0", *list(heads())[:-1]])}, "names a0.h0 more than once"),
        (heads(), {"seed": "-1"}, "has '-1' as its seed, expected a whole number."),
        (heads(), {"method": "a|b\n"}, r"would stand on the board as 'a|b\n'"),
        (heads(lambda f: f.update({"a1.h1": math.nan})), {}, "scores that are not finite numbers: a1.h1."),
        (heads(lambda f: f.update({"a1.h1": math.inf})), {}, "scores that are not finite numbers: a1.h1."),
        (torch.zeros(4, 3), {}, "has scores of shape (4, 3), expected (3, 4) (layer, head) or (12,)."),
        (torch.zeros(12, dtype=torch.complex64), {}, "has scores of type torch.complex64, expected real numbers."),
        (torch.full((12,), 1e300, dtype=torch.float64), {}, "scores that are not finite numbers: a0.h0"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence_before_anything_runs(
    scores: Any, metadata: dict[str, str], message: str, suite: Suite, toy: dict, tmp_path: Path, capsys: Any
) -> None:
    names = list(heads()) if isinstance(scores, torch.Tensor) else list(scores)
    values = scores if isinstance(scores, torch.Tensor) else torch.tensor(list(scores.values()))
    said = {"names": json.dumps(names), "level": "heads", "model": str(toy["model"]), **metadata}
    save_file({"scores": values}, tmp_path / "mine.safetensors", {k: v for k, v in said.items() if v})
    arguments = ["--out", tmp_path / "out", "--include", toy["task"], "--scores", tmp_path / "mine.safetensors"]
    code, _, err = call(capsys, "run", tmp_path / "toy.toml", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.safetensors", b"no tensors", "mine.safetensors cannot be read as safetensors ("),
        ("mine.pt", b"\x80\x04N.", "cannot be read as tensors and plain values alone"),
        ("mine.json", b"{}", "is not a file of MIB's circuits: it lacks cfg, nodes, edges."),
        ("mine.npz", b"", "is not a score file; known are .safetensors, .json, .pt."),
        ("folder/readme.txt", b"", "holds no score file (.safetensors, .json, .pt)."),
        (None, b"", "does not exist; give a file or folder of scores."),
    ],
)
def test_what_is_no_score_file_is_one_sentence(
    name: str | None, content: bytes, message: str, suite: Suite, toy: dict, tmp_path: Path, capsys: Any
) -> None:
    place = tmp_path / (name or "nowhere")
    if name is not None:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    given = place.parent if name and "/" in name else place
    arguments = ["--out", tmp_path / "out", "--include", toy["task"], "--scores", given]
    code, _, err = call(capsys, "run", tmp_path / "toy.toml", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_file_without_the_tensor_names_those_it_has(tmp_path: Path) -> None:
    save_file({"values": torch.zeros(2)}, tmp_path / "mine.safetensors")
    with pytest.raises(ScoresError, match=r"has no tensor called 'scores'; it has values\."):
        read(tmp_path / "mine.safetensors")


# --- on the command line ------------------------------------------------------------------------------------------


def test_scores_alone_are_run_unless_methods_are_named_too(
    suite: Suite, toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(toy, tmp_path / "mine" / "a.safetensors")
    stored(toy, tmp_path / "mine" / "deep" / "b.safetensors", "nodes", seed=1)
    arguments = ["--out", tmp_path / "out", "--include", toy["task"], "--scores", tmp_path / "mine"]
    code, out, err = call(capsys, "run", tmp_path / "toy.toml", *arguments)
    assert code == 0 and "2 cells run, 0 done before, 0 failed" in out, err
    arguments += ["--scores", tmp_path / "mine" / "a.safetensors", "--method", "random"]  # named twice, read once
    code, out, err = call(capsys, "run", tmp_path / "toy.toml", *arguments)
    assert code == 0 and "1 cells run, 2 done before, 0 failed" in out, err
    assert {r.cell.method_label for r in Folder(tmp_path / "out").read()} == {
        "a (precomputed)",
        "b (precomputed)",
        "random",
    }
    assert len(read_all([tmp_path / "mine", tmp_path / "mine" / "a.safetensors"])) == 2


def test_a_file_made_by_attribute_says_its_task_and_seed(
    suite: Suite, toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.safetensors"
    arguments = ["--model", toy["model"], "--method", "random", "--level", "heads", "--out", file]
    drawn = ["--task", "repeat", "--seed", "3", "--limit", "4", "--include", toy["task"]]
    assert call(capsys, "attribute", *arguments, *drawn)[0] == 0
    found = read(file)
    assert (found.name, found.task, found.seed, found.model) == ("random", "repeat", 3, str(toy["model"]))
    assert call(capsys, "attribute", *arguments, "--prompt", "w1 w2 w3", "--answer", "w3")[0] == 0
    found = read(file)
    assert (found.task, found.seed) == ("", None)
