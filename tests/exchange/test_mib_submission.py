"""A submission to MIB from the folder of a run: which records, which files, which edges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import get_level
from attriboard.exchange import mib, mib_submission
from attriboard.exchange.precomputed import shape_of
from attriboard.graph import Graph
from attriboard.method import methods
from attriboard.records.record import Precomputed, Record
from attriboard.records.store import Folder
from attriboard.run.scoring import Scored, packed
from attriboard.scores import Scores
from tests.bench import boards
from tests.bench.cli import call, process

BUDGETS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""In percent."""


def scores_of(model: Path | str, level: str = "edges", seed: int = 0) -> Scores:
    shape, at = shape_of(str(model)), get_level(level)
    values = torch.randn(at.shape(shape), generator=torch.Generator().manual_seed(seed))
    return Scores(values, level, at.names(shape))


def store(folder: Path, model: Path | str, method: str = "eap", values: int = 0, **changes: Any) -> Record:
    """A record whose scores, random by the seed ``values``, stand beside it as a run leaves them."""
    level = changes.get("level", "edges")
    scores = scores_of(model, level, values)
    content = packed(scores, get_level(level))
    made = boards.record(method, [0.1, 0.2], **{"task": "ioi", "model": str(model), "level": level, **changes})
    made = made.model_copy(update={"scores": Scored(scores, None, {}, content).stored("i")})
    if options := {k: v for k, v in changes.items() if k in ("task_options", "method_options")}:
        made = made.model_copy(update={"cell": made.cell.model_copy(update=options)})
    there = Folder(folder)
    there.claim(made.suite)
    there.write(made)
    assert made.scores is not None
    there.write_scores(made.scores.file, content)
    return made


def literally_pruned(graph: Graph, kept: Tensor) -> Tensor:
    """Nodes without an edge in or out, and then edges without an end, are dropped until nothing changes."""
    edges = {tuple(name.split("->")) for name, here in zip(graph.edge_names, kept.tolist()) if here}
    while True:
        fed = {"input"} | {target.split("<")[0] for _, target in edges}
        heard = {"logits"} | {source for source, _ in edges}
        left = {(u, v) for u, v in edges if u in fed and v.split("<")[0] in heard}
        if left == edges:
            return torch.tensor([tuple(name.split("->")) in left for name in graph.edge_names])
        edges = left


@pytest.fixture
def run(toy: dict, tmp_path: Path) -> Path:
    """A folder with two methods' scores of edges, and one's of nodes."""
    store(tmp_path / "run", toy["model"], "eap", 0)
    store(tmp_path / "run", toy["model"], "eap_ig", 1, method_options={"steps": 5, "rule": "left"})
    store(tmp_path / "run", toy["model"], "eap", 2, level="nodes")
    return tmp_path / "run"


def named(toy: dict) -> list[str]:
    return ["--model", f"{toy['model']}=interpbench"]


def test_every_method_has_a_folder_with_one_for_each_pair(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", *named(toy))
    assert code == 0, err
    files = {
        "eap/ioi_interpbench/importances.json": 0,
        "eap_ig-rule=left-steps=5/ioi_interpbench/importances.json": 1,
    }
    assert {f.relative_to(tmp_path / "sub").as_posix() for f in (tmp_path / "sub").rglob("*.*")} == set(files)
    for file, seed in files.items():
        graph, back = mib.load(tmp_path / "sub" / file)
        assert graph == shape_of(str(toy["model"])).graph
        assert back.level == "edges" and torch.equal(back.values, scores_of(toy["model"], seed=seed).values)
    assert out.count("262 edges by") == 2
    assert "at least 2 tasks, and these are of 1" in err and "at least 2 models, and these are of 1" in err


def test_nodes_are_handed_in_where_they_are_asked_for(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", "--level", "nodes", *named(toy))
    assert code == 0, err
    [file] = (tmp_path / "sub").rglob("*.json")
    assert torch.equal(mib.load(file)[1].values, scores_of(toy["model"], "nodes", 2).values)


@pytest.mark.parametrize("absolute", [False, True])
def test_circuits_are_the_best_edges_of_every_budget_without_those_that_lead_nowhere(
    absolute: bool, toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--circuits", *(["--absolute"] if absolute else []), "--method", "eap"]
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", *flags, *named(toy))
    assert code == 0, err
    folder = tmp_path / "sub" / "eap" / "ioi_interpbench"
    assert {file.name for file in folder.iterdir()} == {f"{budget}.json" for budget in BUDGETS}
    scores, graph = scores_of(toy["model"]), shape_of(str(toy["model"])).graph
    size = scores.values.abs() if absolute else scores.values
    in_order = sorted(range(graph.n_edges), key=lambda i: -float(size[i]))
    smaller = 0
    for budget in BUDGETS:
        most = int(budget * graph.n_edges / 100 + 1e-9)
        top = torch.zeros(graph.n_edges, dtype=torch.bool)
        top[in_order[:most]] = True
        expected = literally_pruned(graph, top)
        content = json.loads((folder / f"{budget}.json").read_text())
        kept = torch.tensor([content["edges"][name]["in_graph"] for name in graph.edge_names])
        assert torch.equal(kept, expected) and int(kept.sum()) <= most
        smaller += int(kept.sum()) < most
        assert [content["edges"][name]["score"] for name in graph.edge_names] == scores.values.tolist()
        ends = {end.split("<")[0] for name, here in zip(graph.edge_names, kept) if here for end in name.split("->")}
        assert {name for name, node in content["nodes"].items() if node["in_graph"]} == ends - {"logits"}
    assert smaller > 0  # else nothing was pruned here


def test_a_method_that_takes_its_circuits_from_the_logits_back_hands_them_in_so(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "run", toy["model"], "ifr", 0)
    assert methods.get("ifr").circuits == "greedy"
    code, _, err = call(capsys, "export-mib", tmp_path / "run", "--out", tmp_path / "sub", "--circuits", *named(toy))
    assert code == 0, err
    graph, scores = shape_of(str(toy["model"])).graph, scores_of(toy["model"]).values.tolist()
    taken: list[int] = []
    reached = {"logits"}  # whose edges in are on offer
    while len(taken) < graph.n_edges:
        offered = [
            i
            for i, name in enumerate(graph.edge_names)
            if i not in taken and name.split("->")[1].split("<")[0] in reached
        ]
        taken.append(max(offered, key=scores.__getitem__))
        reached.add(graph.edge_names[taken[-1]].split("->")[0])
    for budget in BUDGETS:
        kept = torch.zeros(graph.n_edges, dtype=torch.bool)
        kept[taken[: int(budget * graph.n_edges / 100 + 1e-9)]] = True
        file = tmp_path / "sub" / "ifr" / "ioi_interpbench" / f"{budget}.json"
        content = json.loads(file.read_text())["edges"]
        assert [content[name]["in_graph"] for name in graph.edge_names] == literally_pruned(graph, kept).tolist()


@pytest.mark.parametrize(
    ("changes", "arguments", "pair"),
    [
        ({"task": "mib", "task_options": {"subsets": ["ioi"], "source": "hub"}}, [], "ioi"),
        ({"task": "mine"}, ["--task", "mine=ioi"], "ioi"),
        ({"task": "mine", "task_options": {"frames": 3}}, ["--task", "mine(frames=3)=ioi"], "ioi"),
    ],
)
def test_tasks_are_known_by_name_by_their_only_subset_or_as_said(
    changes: dict[str, Any],
    arguments: list[str],
    pair: str,
    toy: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store(tmp_path / "run", toy["model"], **changes)
    store(tmp_path / "run", toy["model"], values=1, task="another")
    code, _, err = call(capsys, "export-mib", tmp_path / "run", "--out", tmp_path / "sub", *arguments, *named(toy))
    assert code == 0, err
    assert [f.parent.name for f in (tmp_path / "sub").rglob("*.json")] == [f"{pair}_interpbench"]
    assert "left out: another on" in err


@pytest.mark.parametrize(
    ("name", "task", "known"),
    [
        ("openai-community/gpt2", "ioi", "gpt2"),
        ("Qwen/Qwen2.5-0.5B", "ioi", "qwen2.5"),
        ("google/gemma-2-2b", "arc-easy", "gemma2"),
        ("/models/Llama-3.1-8B/", "arc_challenge", "llama3"),
    ],
)
def test_models_are_known_by_the_last_part_of_their_names(name: str, task: str, known: str) -> None:
    record = boards.record("eap", [0.1], task=task, model=name, level="edges")
    [entry], left_out = mib_submission.entries([record], "edges", {}, {})
    assert (entry.task, entry.model) == (task.replace("-", "_"), known) and not left_out


def test_equal_scores_of_several_records_are_one_and_others_are_told_apart_by_seed(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "run", toy["model"], values=0)
    store(tmp_path / "run", toy["model"], values=0, variant="longer")
    arguments = ["export-mib", tmp_path / "run", *named(toy), "--out"]
    assert call(capsys, *arguments, tmp_path / "one")[0] == 0
    store(tmp_path / "run", toy["model"], values=1, seed=1)
    code, _, err = call(capsys, *arguments, tmp_path / "two")
    assert code == 2 and "eap on ioi with interpbench would be handed in twice" in err
    assert "choose one with --seed" in err and not (tmp_path / "two").exists()
    assert call(capsys, *arguments, tmp_path / "two", "--seed", 1)[0] == 0
    [file] = (tmp_path / "two").rglob("*.json")
    assert torch.equal(mib.load(file)[1].values, scores_of(toy["model"], seed=1).values)


def test_precomputed_scores_stand_under_their_name(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "run", toy["model"], "mine", precomputed=Precomputed(file="m.json", sha256="s"))
    assert call(capsys, "export-mib", tmp_path / "run", "--out", tmp_path / "sub", *named(toy))[0] == 0
    assert [f.parent.parent.name for f in (tmp_path / "sub").rglob("*.json")] == ["mine-precomputed"]


def test_scores_that_are_not_there_are_named_and_the_others_written(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [r for r in Folder(run).read() if r.cell.method == "eap_ig"]
    assert records[0].scores is not None
    gone = run / records[0].scores.file
    gone.write_bytes(b"damaged")
    code, out, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", *named(toy))
    assert code == 1 and "262 edges by eap on ioi" in out
    assert f"failed: {gone}, with the scores of ioi / edges / eap_ig(rule=left, steps=5) on" in err
    assert f"run suite 'made_up' with --out {run} --task ioi --method eap_ig" in err and "--force" in err
    gone.unlink()
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "s", "--method", "eap_ig", *named(toy))
    assert code == 2 and f"{gone}, with the scores of" in err and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MIB does not evaluate ioi on"),
        (["--model", "{model}"], "--model '{model}' is not of the form NAME=MIBNAME, such as models/copy=gpt2."),
        (["--model", "{model}=gpt3"], "unknown model of MIB's 'gpt3': did you mean 'gpt2'"),
        (["--model", "{model}=gpt2"], "MIB's 'gpt2' has 12 layers and 12 heads, but the scores are for 3 layers"),
        (["--model", "smollm=gpt2"], "--model names 'smollm', which has no scores of edges in the run; there are"),
        (["--task", "iio=ioi"], "--task names 'iio', which has no scores of edges in the run; there are ioi."),
        (["--task", "ioi=io"], "unknown task of MIB's 'io': did you mean 'ioi'"),
        (["--method", "epa"], "the run has no scores of edges by epa; it has those by eap, eap_ig of seed 0: name one"),
        (["--seed", "3"], "the run has no scores of edges of seed 3; it has those by eap, eap_ig of seed 0"),
        (["--level", "heads"], "the run has no scores of heads; it has scores of edges, nodes: choose another --level"),
        (["--level", "neurons"], "scores of neurons cannot be written for MIB"),
        (["--level", "egdes"], "unknown level 'egdes': did you mean 'edges'"),
        (["--level", "nodes", "--circuits"], "--circuits are sets of edges, and --level is nodes; choose edges."),
        (["--absolute"], "--absolute says which edges circuits keep; add --circuits."),
        (["--submission", "ioi", "gpt2"], "--submission belongs to a file of scores, and"),
    ],
)
def test_what_cannot_be_handed_in_is_one_sentence_and_nothing_is_written(
    arguments: list[str], message: str, toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(model=toy["model"]) for argument in arguments]
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", *arguments)
    assert code == 2 and message.format(model=toy["model"]) in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "sub").exists()


def test_scores_and_circuits_do_not_stand_in_one_folder(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export-mib", run, "--out", tmp_path / "sub", "--method", "eap", *named(toy)]
    assert call(capsys, *arguments)[0] == 0 and call(capsys, *arguments)[0] == 0
    code, _, err = call(capsys, *arguments, "--circuits")
    assert code == 2 and "importances.json stands already where 9 other files are to be handed in" in err


def test_a_run_that_is_not_there_and_a_folder_that_is_a_file_are_one_sentence(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "export-mib", tmp_path / "nothing", "--out", tmp_path / "sub")
    assert code == 2 and "nothing does not exist; give a .safetensors file of scores, or the folder of a run." in err
    (tmp_path / "empty").mkdir()
    code, _, err = call(capsys, "export-mib", tmp_path / "empty", "--out", tmp_path / "sub")
    assert code == 2 and "empty holds no records" in err
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "file", *named(toy))
    assert code == 2 and "cannot write" in err and "Traceback" not in err


def test_a_model_that_is_not_there_is_named_and_the_others_are_written(
    toy: dict, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "interpbench"
    shutil.copytree(toy["model"], gone)
    store(run, gone, "gone", 5)
    shutil.rmtree(gone)
    shape_of.cache_clear()
    code, out, err = call(capsys, "export-mib", run, "--out", tmp_path / "sub", *named(toy))
    assert code == 1 and f"failed: the model folder {str(gone)!r} does not exist" in err
    assert "262 edges by eap on ioi" in out and not (tmp_path / "sub" / "gone").exists()
    code, _, err = call(capsys, "export-mib", run, "--out", tmp_path / "none", "--method", "gone")
    assert code == 2 and f"the model folder {str(gone)!r} does not exist" in err


@pytest.mark.parametrize("option", [["--circuits"], ["--task", "a=ioi"], ["--seed", "0"], ["--absolute"]])
def test_options_of_a_run_are_refused_with_a_file_of_scores(
    option: list[str], toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores_of(toy["model"]).save(tmp_path / "e.safetensors", model=str(toy["model"]))
    code, _, err = call(capsys, "export-mib", tmp_path / "e.safetensors", "--out", tmp_path / "e.json", *option)
    assert code == 2 and f"{option[0]} belongs to the folder of a run" in err


def test_a_file_of_edges_is_written_as_mibs(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = scores_of(toy["model"])
    scores.save(tmp_path / "e.safetensors", model=str(toy["model"]))
    for suffix in (".json", ".pt"):
        code, out, err = call(capsys, "export-mib", tmp_path / "e.safetensors", "--out", tmp_path / f"e{suffix}")
        assert code == 0 and out.strip().endswith("262 edges"), err
        assert torch.equal(mib.load(tmp_path / f"e{suffix}")[1].values, scores.values)


def test_from_a_run_to_a_submission_to_the_board_of_another_run(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "edges.toml"
    text = toy["suite"].read_text().split("[[groups]]")[0].replace("min_kept = 4", "min_kept = 2")
    text = text.replace("[settings]", '[settings]\nevaluations = ["ablation"]')
    suite.write_text(f'{text}[[groups]]\ntasks = ["repeat"]\nmethods = ["random"]\nlevels = ["edges"]\n')
    common = ["--include", toy["task"], "--limit", 4]
    code, _, err = call(capsys, "run", suite, "--out", tmp_path / "run", *common)
    assert code == 0, err
    names = ["--task", "repeat=ioi", "--model", f"{toy['model']}=interpbench"]
    done = process("export-mib", tmp_path / "run", "--out", tmp_path / "sub", *names)
    assert done.returncode == 0 and "262 edges by random on ioi with interpbench" in done.stdout, done.stderr
    file = tmp_path / "sub" / "random" / "ioi_interpbench" / "importances.json"
    code, _, err = call(capsys, "run", suite, "--out", tmp_path / "again", "--scores", file, *common)
    assert code == 0, err
    [first], [again] = Folder(tmp_path / "run").read(), Folder(tmp_path / "again").read()
    assert again.cell.precomputed is not None and again.cell.method == "ioi_interpbench"
    assert first.scores is not None and again.scores is not None
    assert again.scores.top == first.scores.top and again.scores.sketch == first.scores.sketch
