"""``attriboard audit`` as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attriboard.commands.audit import read_options
from attriboard.errors import ConfigurationError
from attriboard.studies.audit import Audit
from attriboard.studies.audit_report import render
from tests.bench.cli import call


def test_prints_and_stores_the_same(toy: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "repeat.json"
    code, out, _ = call(
        capsys, "audit", "repeat", "--include", toy["task"], "--model", toy["model"], "--examples", 12, "--json", file
    )
    stored = Audit.model_validate_json(file.read_text())
    assert code == 0 and out.startswith(render(stored)) and out.endswith("repeat.json\n")
    assert stored.task == "repeat" and stored.parts[0].n == 24 and stored.weights_sha256
    assert stored.provenance["threads"]


def test_options_subsets_and_splits_reach_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    arguments = ["--option", "shots=3", "--subset", "addition", "--split", "test", "--examples", 20, "--json", file]
    code, out, _ = call(capsys, "audit", "arithmetic", *arguments)
    stored = Audit.model_validate_json(file.read_text())
    assert code == 0 and "No model was asked" in out
    assert stored.options == {"shots": 3, "subsets": ["addition"]} and stored.splits == ("test",)
    assert stored.parts[0].n == 20 and len(stored.parts) == 1 and not stored.asked


def test_an_option_is_json_or_text() -> None:
    given = ["shots=4", "source=own", 'label_words=["foo", "bar"]', "spaces=false", "data=a=b"]
    assert read_options(given) == {
        "shots": 4,
        "source": "own",
        "label_words": ["foo", "bar"],
        "spaces": False,
        "data": "a=b",
    }
    for wrong in (["shots"], ["=4"], ["shots=1", "shots=2"]):
        with pytest.raises(ConfigurationError, match="--option"):
            read_options(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ioii"], "unknown task 'ioii': did you mean 'ioi'"),
        (["ioi", "--model", "smollm2"], "unknown model 'smollm2': did you mean 'smollm2-135m'"),
        (["ioi", "--examples", "0"], "--examples is 0, expected at least 1."),
        (["gender_bias", "--examples", "5000"], "ask for fewer"),
        (["ioi", "--split", "tain"], "unknown split 'tain': did you mean 'train'"),
        (["ioi", "--subset", "giver"], "did you mean 'giver_first'"),
        (["arithmetic", "--option", "shot=3"], "did you mean 'shots'"),
        (["arithmetic", "--option", "shots"], "--option is 'shots', expected NAME=VALUE."),
        (["ioi", "--json", "a.txt"], "--json a.txt does not end in .json."),
        (["ioi", "--dtype", "bfloat16"], "--dtype is that of a model; give --model."),
        (["captioning_neurons"], "asks about what a model writes; give --model."),
        (["color_vqa", "--model", "smollm2-135m"], "choose a vision-language model"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "audit", *arguments)
    assert code == 2 and message in err and "Traceback" not in err
