"""The two tasks about indirect objects and their kin: our own (ioi), and MIB's data sets (mib)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from attriboard.tasks import ioi

from attriboard.errors import ConfigurationError, TaskError
from attriboard.evaluation.drawing import answered
from attriboard.evaluation.drawing import draw as draw_for
from attriboard.model import Model
from attriboard.task import SPLITS, Example, tasks
from tests.bench.cli import call
from tests.models.test_pretrained import smollm2  # noqa: F401
from tests.tasks.test_tasks import draw, length, marked, no_shared_cache  # noqa: F401

# --- ioi ----------------------------------------------------------------------------------------------------------

both_orders = pytest.mark.parametrize("order", ["receiver_first", "giver_first"])


SLOTS = {"place": ioi.PLACES, "object": ioi.OBJECTS, "first": ioi.NAMES, "second": ioi.NAMES, "giver": ioi.NAMES}


def matching(parts: tuple[str, ...], end: str) -> dict[str, re.Pattern[str]]:
    return {
        part: re.compile(re.sub(r"\\{(\w+)\\}", lambda slot: f"({'|'.join(SLOTS[slot[1]])})", re.escape(part)) + end)
        for part in parts
    }


OPENINGS, ACTS = matching(ioi.OPENINGS, " "), matching(ioi.ACTS, "")


def said(prompt: str) -> tuple[tuple[str, str], list[str]]:
    """The opening and the act of a prompt, found by matching it against all of them, and its names in order."""
    found = [
        (opening, act)
        for opening, form in OPENINGS.items()
        if (begun := form.match(prompt))
        for act, rest in ACTS.items()
        if rest.fullmatch(prompt[begun.end() :])
    ]
    (frame,) = found
    return frame, [word for word in re.findall(r"\w+", prompt) if word in ioi.NAMES]


def test_there_is_enough_to_say() -> None:
    for words in (ioi.OPENINGS, ioi.ACTS, ioi.NAMES, ioi.PLACES, ioi.OBJECTS):
        assert len(set(words)) == len(words)
    assert len(ioi.PLACES) >= 15 and len(ioi.OBJECTS) >= 15
    for opening in ioi.OPENINGS:
        assert re.findall(r"\{(first|second)\}", opening) == ["first", "second"]
        assert all(f" {slot}" in opening for slot in ("{first}", "{second}")) and "{place}" in opening
    for act in ioi.ACTS:
        assert act.startswith("{giver} ") and "{object}" in act  # behind the space after the opening
    consonants = "bcdfghjklmnpqrstvwxyz"
    assert all(word[0] in consonants for word in (*ioi.OBJECTS, *ioi.PLACES))  # "a" is right before all of them


def test_every_word_is_one_token(length: Callable[[str], int]) -> None:  # noqa: F811
    assert {word for word in (*ioi.NAMES, *ioi.OBJECTS) if length(f" {word}") != 1} == set()


@both_orders
def test_the_answer_is_the_name_that_does_not_give(order: str) -> None:
    for example in draw("ioi", order):
        _, (first, second, giver) = said(example.prompt)
        assert giver in (first, second) and first != second
        receiver = second if giver == first else first
        assert (example.answer, example.foil) == (f" {receiver}", f" {giver}")
        assert (receiver == first) == (order == "receiver_first")


@both_orders
def test_the_counterfactual_exchanges_the_second_mention_alone(order: str) -> None:
    for example in draw("ioi", order):
        answer, foil = str(example.answer).strip(), str(example.foil).strip()
        at = example.prompt.rindex(foil)
        assert example.counterfactual == example.prompt[:at] + answer + example.prompt[at + len(foil) :]
        frame, (first, second, giver) = said(example.counterfactual)
        assert frame == said(example.prompt)[0]
        assert foil == (second if giver == first else first)  # there, the foil is right


@both_orders
def test_marks_name_the_receiver_and_both_mentions_of_the_giver(order: str) -> None:
    for example in draw("ioi", order):
        giver = str(example.foil).strip()
        mentions = [match.span() for match in re.finditer(rf"\b{giver}\b", example.prompt)]
        assert [example.marks["s1"], example.marks["s2"]] == [(span,) for span in mentions]
        assert marked(example, "io") == [str(example.answer).strip()]


def test_both_orders_are_drawn_equally_often_so_that_no_place_gives_the_answer_away() -> None:
    for split in SPLITS:
        examples = tasks.make("ioi").examples(split, 64, 0)
        firsts = Counter(said(e.prompt)[1][0] == str(e.answer).strip() for e in examples)
        assert firsts == {True: 32, False: 32}


def test_splits_share_no_pair_no_name_no_opening_and_no_act() -> None:
    seen: dict[str, list[set[Any]]] = {}
    for split in SPLITS:
        examples = tasks.make("ioi").examples(split, 200, 0)
        told = [said(text) for e in examples for text in (e.prompt, e.other_question or "", *e.paraphrases)]
        seen[split] = [
            {e.item for e in examples},
            {name for _, names in told for name in names},
            {opening for (opening, _), _ in told},
            {act for (_, act), _ in told},
        ]
        for example in examples:
            (opening, _), names = said(example.prompt)
            assert example.frame == opening and example.item == " and ".join(sorted(set(names)))
        assert [len(values) >= least for values, least in zip(seen[split], (100, 30, 40, 18))] == [True] * 4
    assert not any(train & test for train, test in zip(*seen.values()))


def test_half_of_96_examples_have_48_pairs_or_nearly_so_and_many_frames() -> None:
    for split in SPLITS:
        examples = tasks.make("ioi").examples(split, 96, 0)
        assert len({e.item for e in examples}) >= 64 and len({e.frame for e in examples}) >= 35


@both_orders
def test_the_other_question_lets_a_third_person_give(order: str) -> None:
    for example in draw("ioi", order):
        frame, (first, second, _) = said(example.prompt)
        other, (first_too, second_too, third) = said(example.other_question or "")
        assert other == frame and (first_too, second_too) == (first, second) and third not in (first, second)


def test_paraphrases_say_the_same_of_the_same_people_in_another_frame() -> None:
    for example in tasks.make("ioi").examples("test", 48, 0):
        frame, names = said(example.prompt)
        assert len(example.paraphrases) == 2
        for paraphrase in example.paraphrases:
            other, people = said(paraphrase)
            assert not set(other) & set(frame) and people == names
            for words in (ioi.PLACES, ioi.OBJECTS):
                assert set(words) & set(re.findall(r"\w+", paraphrase)) == set(words) & set(
                    re.findall(r"\w+", example.prompt)
                )


def mean_metric(model: Model, examples: list[Any]) -> float:
    values = [v for batch in model.batches(examples) for v in model.metric(model.run(batch).logits, batch).tolist()]
    return fmean(values)


def test_smollm2_answers_mostly_and_the_other_name_on_the_counterfactual(smollm2: Model) -> None:  # noqa: F811
    drawn = draw_for(smollm2, tasks.make("ioi"), "train", 48, 0)
    flipped = [Example(e.example.counterfactual or "", e.example.foil or "", e.example.answer) for e in drawn]
    both = zip(answered(smollm2, drawn), answered(smollm2, [smollm2.encode(e) for e in flipped]))
    kept = [e for e, right in zip(drawn, both) if all(right)]
    assert len(kept) >= 28
    # where a third person gives, next to nothing of the preference is left
    asked = [Example(e.example.other_question or "", e.example.answer, e.example.foil) for e in kept]
    left, whole = (
        mean_metric(smollm2, [smollm2.encode(e) for e in these]) for these in (asked, [e.example for e in kept])
    )
    assert abs(left) < 0.25 * whole
    for encoded in drawn[:8]:
        (s2,) = smollm2.mark_positions(encoded, "s2")
        differ = [i for i, (a, b) in enumerate(zip(encoded.tokens, encoded.counterfactual or ())) if a != b]
        assert differ == [s2]


# --- mib ----------------------------------------------------------------------------------------------------------

LETTERS = ("A", "B", "C", "D")


def indirect_object(i: int) -> dict[str, Any]:
    return {
        "prompt": f"Number {i}: Ann met Bo, and Bo wrote to",
        "template": "{name_A} met {name_B}, and {name_B} wrote to",
        "metadata": {"subject": "Bo", "indirect_object": "Ann", "random_c": "Cy"},
        "s2_io_flip_counterfactual": {"prompt": f"Number {i}: Ann met Bo, and Ann wrote to"},
    }


def choice(i: int, end: str = "Answer:") -> dict[str, Any]:
    other = LETTERS[(i + 1) % 4]
    return {
        "prompt": f"Question {i}. {end}",
        "choices": {"label": list(LETTERS), "text": ["a", "b", "c", "d"]},
        "answerKey": i % 4,
        "symbol_counterfactual": {
            "prompt": f"Question {i}, relabelled. {end}",
            "choices": {"label": [other, "X", "Y", "Z"], "text": ["a", "b", "c", "d"]},
            "answerKey": 0,
        },
    }


def arithmetic(i: int, operator: str) -> dict[str, Any]:
    a, b = 40 + i, 7
    count = {"+": lambda x: x + b, "-": lambda x: x - b}[operator]
    return {
        "prompt": f"{a} {operator} {b} = ",
        "label": str(count(a)),
        "operator": operator,
        "random_counterfactual": {"prompt": f"{a + 1} {operator} {b} = ", "label": str(count(a + 1))},
    }


SETS: dict[str, Callable[[int], dict[str, Any]]] = {
    "ioi": indirect_object,
    "copycolors_mcqa": choice,
    "arc_easy": choice,
    "arc_challenge": lambda i: choice(i, "Answer: "),
    "arithmetic_addition": lambda i: arithmetic(i, "+"),
    "arithmetic_subtraction": lambda i: arithmetic(i, "-"),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets of our own with the fields of MIB's: train, validation and test parts as JSON lines."""
    root = tmp_path_factory.mktemp("mib")
    for name, row in SETS.items():
        (root / name).mkdir()
        for first, part in ((0, "train"), (20, "validation"), (40, "test")):
            lines = [json.dumps(row(i)) for i in range(first, first + 12)]
            (root / name / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def asked(source: Path, subset: str, split: str = "test", n: int = 8) -> list[Example]:
    return tasks.make("mib", {"subsets": (subset,), "source": str(source)}).examples(split, n, 0)


def number(example: Example) -> int:
    return int(re.search(r"\d+", example.prompt)[0])  # type: ignore[index]


@pytest.mark.usefixtures("no_shared_cache")
@pytest.mark.parametrize("subset", SETS)
def test_rows_keep_the_part_they_stand_in(subset: str, copies: Path) -> None:
    shift = 40 if subset.startswith("arithmetic") else 0
    for split, first in (("train", 0), ("test", 40)):
        examples = asked(copies, subset, split, 12)
        assert {number(e) - shift for e in examples} == set(range(first, first + 12))
        assert [e.prompt for e in examples] != sorted(e.prompt for e in examples)  # drawn, not read in order
    with pytest.raises(TaskError, match="gave only 12 test examples"):
        asked(copies, subset, "test", 13)


@pytest.mark.usefixtures("no_shared_cache")
def test_the_fields_mean_what_they_mean_in_mib(copies: Path) -> None:
    for example in asked(copies, "ioi"):
        assert (example.answer, example.foil) == (" Ann", " Bo")
        assert example.counterfactual == example.prompt.replace("and Bo", "and Ann")
        assert example.frame == "{name_A} met {name_B}, and {name_B} wrote to"
    for subset, space in (("copycolors_mcqa", " "), ("arc_easy", " "), ("arc_challenge", "")):
        for example in asked(copies, subset):
            assert example.frame == ""
            i = number(example)
            assert (example.answer, example.foil) == (space + LETTERS[i % 4], space + LETTERS[(i + 1) % 4])
            assert example.counterfactual == example.prompt.replace(f"{i}.", f"{i}, relabelled.")
    for subset in ("arithmetic_addition", "arithmetic_subtraction"):
        for example in asked(copies, subset):
            for prompt, label in ((example.prompt, example.answer), (example.counterfactual, example.foil)):
                assert eval(str(prompt).replace("=", "")) == int(str(label))


@pytest.mark.usefixtures("no_shared_cache")
def test_other_operations_and_rows_without_a_counterfactual_are_left_out(tmp_path: Path) -> None:
    rows = [arithmetic(1, "+"), arithmetic(2, "-"), {**arithmetic(3, "+"), "random_counterfactual": None}]
    (tmp_path / "arithmetic_addition").mkdir()
    for part in SPLITS:
        (tmp_path / "arithmetic_addition" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [e.prompt for e in asked(tmp_path, "arithmetic_addition", n=1)] == ["41 + 7 = "]
    with pytest.raises(TaskError, match="gave only 1 test examples"):
        asked(tmp_path, "arithmetic_addition", n=2)


@pytest.mark.usefixtures("no_shared_cache")
def test_validation_stands_in_for_a_missing_test_part_and_one_part_is_divided(tmp_path: Path) -> None:
    import datasets

    rows = [datasets.Dataset.from_list([indirect_object(i) for i in range(a, a + 30)]) for a in (0, 30)]
    datasets.DatasetDict({"train": rows[0], "validation": rows[1]}).save_to_disk(tmp_path / "two" / "ioi")
    assert {number(e) >= 30 for e in asked(tmp_path / "two", "ioi")} == {True}
    rows[0].save_to_disk(tmp_path / "one" / "ioi")
    found = {split: {number(e) for e in asked(tmp_path / "one", "ioi", split)} for split in SPLITS}
    assert not found["train"] & found["test"] and len(found["train"]) == len(found["test"]) == 8


@pytest.mark.usefixtures("no_shared_cache")
@pytest.mark.parametrize(
    ("subset", "change", "message"),
    [
        ("ioi", {"metadata": {"subject": "Bo"}}, "lacks the field 'metadata.indirect_object'"),
        ("ioi", {"s2_io_flip_counterfactual": {"text": "x"}}, "lacks the field 's2_io_flip_counterfactual.prompt'"),
        ("arc_easy", {"answerKey": 4}, "has 4 as answerKey, expected the index of a choice"),
        ("arc_easy", {"answerKey": "A"}, "has 'A' as answerKey, expected the index of a choice"),
        ("arc_easy", {"answerKey": True}, "has True as answerKey, expected the index of a choice"),
        ("arc_easy", {"choices": {"label": 5}}, "has 5 as choices.label, expected a list"),
        ("ioi", {"prompt": 3}, "has 3 as prompt, expected a text"),
        ("arithmetic_addition", {"label": None}, "lacks the field 'label'"),
    ],
)
def test_a_row_that_lacks_a_field_is_named(subset: str, change: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / subset).mkdir()
    (tmp_path / subset / "test.jsonl").write_text(json.dumps({**SETS[subset](1), **change}))
    with pytest.raises(TaskError) as caught:
        asked(tmp_path, subset)
    assert message in str(caught.value) and str(caught.value).startswith("row 1 of test in ")


@pytest.mark.usefixtures("no_shared_cache")
def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task 'mib' needs source='hub', or source=PATH"):
        tasks.make("mib").examples("test", 1, 0)
    with pytest.raises(TaskError, match=r"there is no folder .*nowhere/ioi"):
        asked(tmp_path / "nowhere", "ioi")
    (tmp_path / "ioi").mkdir()
    with pytest.raises(TaskError, match=r"the data set .*/ioi cannot be read \(.*\); download mib-bench/ioi"):
        asked(tmp_path, "ioi")


def test_the_division_does_not_depend_on_where_a_copy_stands(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([SETS["arc_easy"](i) for i in range(1, 17)])
    for place in ("a", "b"):
        rows.save_to_disk(tmp_path / place / "arc_easy")
    here, there = (sorted(e.item for e in asked(tmp_path / place, "arc_easy")) for place in ("a", "b"))
    assert here == there


def test_a_source_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="source of task mib is 5"):
        tasks.make("mib", {"source": 5})


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path) -> None:
    code = "from attriboard.task import tasks; tasks.make('mib', {'source': 'hub'}).examples('test', 1, 0)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("attriboard.errors.TaskError: the data set mib-bench/ioi cannot be read (")
    assert "source=PATH" in last


@pytest.mark.usefixtures("no_shared_cache")
def test_a_suite_names_the_set_and_its_copy(copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f'{{ name = "mib", subsets = ["ioi"], source = "{copies}" }}'
    file = tmp_path / "mine.toml"
    file.write_text(
        f'name = "mine"\nmodels = ["smollm2-135m"]\n[[groups]]\ntasks = [{spec}]\nmethods = ["random"]\n'
        'levels = ["heads", "nodes"]\n'
    )
    code, out, err = call(capsys, "validate", file)
    assert code == 0 and "mine: 2 cells" in out, err
