"""The README's promises: its example method works as it stands, and its numbers are those of stored records."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from attriboard.interventions import measure_all
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.records.store import Folder
from attriboard.run.attribute import Request, attribute_prompt
from attriboard.task import Example

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_method_is_complete_and_right(toy: dict, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.split("## Add a method")[1], flags=re.DOTALL)
    file = tmp_path / "towards_answer.py"
    file.write_text(code)
    assert methods.include(file) == 1
    request = Request(str(toy["model"]), "towards_answer", "heads")
    scores, _ = attribute_prompt(request, Example("w1 w2 w3", "w3"))
    assert tuple(scores.values.shape) == (3, 4) and bool(torch.isfinite(scores.values).all())


def committed(name: str) -> str:
    """A file as it was committed: `make quick` makes the records and the board anew, the README stays."""
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{name}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def test_every_row_of_the_boards_excerpt_stands_in_the_board() -> None:
    now, before = (ROOT / "leaderboard.md").read_text().splitlines(), committed("leaderboard.md").splitlines()
    section = README.split("## The board, as it came out")[1].split("**How to read it.**")[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    assert len(rows) >= 8
    assert all(row in now for row in rows) or all(row in before for row in rows)


def test_every_row_of_the_acting_excerpt_stands_in_its_board() -> None:
    name = "results/acting/leaderboard.md"
    (section,) = re.findall(r"<!-- acting -->\n(.*?)<!-- /acting -->", README, flags=re.DOTALL)
    now = (ROOT / name).read_text() if (ROOT / name).exists() else ""
    if not section.strip() and not now:
        pytest.skip(f"there is no {name} and no excerpt of it")
    rows = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    assert len(rows) >= 8
    assert any(all(row in board.splitlines() for row in rows) for board in (now, committed(name)))


def test_what_is_said_of_pairs_follows_from_the_stored_records() -> None:
    folder = ROOT / "results" / "acting"
    records = [r for r in Folder(folder).read() if r.status == "ok"] if folder.exists() else []
    if not records:
        pytest.skip(f"{folder} holds no records")
    assert runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["paired"](records) in README


def test_the_tables_of_planted_models_are_those_of_the_stored_records() -> None:
    space = runpy.run_path(str(ROOT / "benchmarks" / "ground_truth.py"))
    records = [r for r in Folder(ROOT / "results" / "planted").read() if r.status == "ok"]
    shown = {}
    for page, marks in (
        (ROOT / "docs" / "ground_truth.md", space["MARKS"]),
        (ROOT / "README.md", space["README_MARKS"]),
    ):
        shown[page.name] = page.read_text().split(marks[0])[1].split(marks[1])[0].strip()
    assert shown["ground_truth.md"] == space["tables"](records).strip()
    assert shown["README.md"] == space["tables"](records, ("heads",)).strip()


def test_the_example_of_acting_runs(toy: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.split("## Acting on")[1].split("\n## ")[0], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for said, toys in (("smollm2-135m", str(toy["model"])), ("The capital of France is", "w1 w2 w3")):
        assert code.count(said) == 1
        code = code.replace(said, toys)
    printed: list[torch.Tensor] = []
    space = {"print": printed.append}
    exec(code.replace('" Paris", " London"', '"w3", "w4"'), space)
    (edited,) = printed
    untouched = measure_all(space["model"], space["examples"], {})
    assert edited.shape == untouched.shape and float((edited - untouched).abs().max()) > 1e-3
    whole, sliced = (AutoModelForCausalLM.from_pretrained(folder) for folder in (toy["model"], tmp_path / "pruned"))
    assert 2 * sliced.config.intermediate_size == whole.config.intermediate_size
    assert load_model(str(tmp_path / "pruned")).d_mlp == sliced.config.intermediate_size


def test_the_speed_figures_are_those_of_the_stored_run() -> None:
    stored = json.loads((ROOT / "results" / "speed.json").read_text())
    section = README.split("(`make speed`, records in `results/`)")[1].split("## Licence")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(stored["pairs"])
    for row, pair in zip(rows, stored["pairs"]):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == pair["name"]
        assert cells[1:] == [
            f"{pair['median']['fast']:.3g} s",
            f"{pair['median']['slow']:.3g} s",
            f"{pair['ratio_slow_to_fast']:.3g}",
        ]


def test_every_file_of_the_package_stands_in_the_table_of_rooms() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = {
        Path(name).name for row in page.splitlines() if row.startswith("| `") for name in re.findall(r"`(.*?)`", row)
    }
    package = ROOT / "attriboard"
    files = [*package.glob("*.py"), *(package / "evaluation").glob("*.py")]
    folders = [path for path in package.iterdir() if (path / "__init__.py").exists()]
    there = {path.name for path in files if path.name != "__init__.py"} | {folder.name for folder in folders}
    assert len(there) > 30 and there <= named, sorted(there - named)
