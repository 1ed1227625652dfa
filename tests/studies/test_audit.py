"""The shortcut audit: what it measures, by counting; that it catches tasks that cheat; and that ours do not."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from attriboard.errors import ConfigurationError, TaskError, UnknownNameError
from attriboard.evaluation.drawing import draw
from attriboard.loading import load_model
from attriboard.model import Model
from attriboard.studies import audit
from attriboard.studies.audit import (
    RULES,
    Answers,
    Audit,
    ask,
    asked_of,
    measure,
    occurrences,
    overlap_of,
    parts_of,
    problems,
    question_start,
    remarks,
)
from attriboard.studies.audit_report import findings, page, read_audits, render
from attriboard.task import SPLITS, Example, Task, split_of, tasks
from attriboard.zoo.language import caption
from tests.bench.toy import WORDS

ROOT = Path(__file__).parents[2]
COLORS = ("red", "blue", "green", "black", "white", "brown", "gray", "pink")
NOUNS = tuple(f"thing{i}" for i in range(64))


@dataclass
class Binding(Task):
    """Two things, their colors, and the color of one of them; by ``how`` it cheats in one way or in none."""

    name: ClassVar[str] = "binding"
    labels: ClassVar[tuple[str, ...]] = tuple(f" {color}" for color in COLORS)
    all_subsets: ClassVar[tuple[str, ...]] = ("only",)
    marks: ClassVar[tuple[str, ...]] = ("color",)

    how: str = ""

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            own = [noun for noun in NOUNS if split_of(noun) == rng.choice(SPLITS)]
            things, colors = rng.sample(own, 2), rng.sample(COLORS, 3)
            asked = {"first": 0, "last": 1}.get(self.how, rng.randrange(2))
            if self.how == "constant" and rng.random() < 0.6 and "red" not in colors:
                colors[asked] = "red"
            shown, solved = "", ()
            if self.how.startswith("shown"):
                label = colors[asked] if self.how == "shown_answer" else rng.choice((colors[0], colors[1]))
                thing = rng.choice([noun for noun in own if noun not in things])
                shown, solved = f"the {thing} , it is {label}\n", (thing,)
            text = f"the {things[0]} is {colors[0]} and the {things[1]} is {colors[1]} ; the {things[asked]} is"
            if self.how == "alone":
                text = f"the {things[asked]} is {colors[asked]} ; the {things[asked]} is"
            prompt = shown + text
            at = prompt.index(f" {colors[asked]}", len(shown)) + 1
            absent = self.how in ("absent", "alone")
            yield Example(
                prompt,
                f" {colors[asked]}",
                f" {colors[2] if absent else colors[1 - asked]}",
                marks={"color": ((at, at + len(colors[asked])),)},
                item=things[asked],
                subset=subset,
                demonstrations=solved,
            )


HONEST = ("", "shown")


def audited(how: str, examples: int = 96) -> Audit:
    return measure(Binding(how=how), examples=examples)


@pytest.mark.parametrize("how", HONEST)
def test_a_task_without_shortcuts_passes(how: str) -> None:
    found = audited(how)
    assert problems(found) == []
    part = found.parts[0]
    assert part.answer.prompt == 1.0 and part.foil is not None and part.foil.prompt == 1.0
    for rule in part.rules:
        assert abs(rule.right - rule.chance) < 0.12, rule


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("constant", "Rule: to say the most frequent answer is right in"),
        ("first", "Rule: to say the first candidate word of the prompt is right in 100 %, where chance is 50 %"),
        ("last", "Rule: to say the last candidate word of the prompt is right in 100 %, where chance is 50 %"),
        ("shown_answer", "Rule: to copy the label of the last demonstration is right in 100 %"),
        ("absent", "Copying: in the whole task the answer stands in the prompt in 100 % and the foil in 0 %"),
        ("absent", "the first candidate word of the prompt puts the answer before the foil in 100 %"),
        ("alone", "Rule: to say the first candidate word of the prompt is right in 100 %, where chance is 12 %"),
    ],
)
def test_each_way_of_cheating_is_caught(how: str, message: str) -> None:
    assert any(message in sentence for sentence in problems(audited(how))), problems(audited(how))


@dataclass
class Leaking(Binding):
    """An honest task whose splits share what ``how`` names."""

    name: ClassVar[str] = "leaking"

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        things = itertools.cycle(NOUNS)
        for thing, e in zip(things, super().candidates(subset, rng)):
            leak: dict[str, Any] = {
                "items": {"item": "one and the same"},
                "frames": {"frame": "one and the same"},
                "demonstrations": {"demonstrations": ("one and the same",)},
                "solved": {"demonstrations": (thing,)},
                "prompts": {"prompt": "one and the same", "answer": f" {rng.choice(COLORS)}"},
            }
            fields = {"prompt": e.prompt, "answer": e.answer, "item": e.item, **leak[self.how]}
            yield Example(foil=e.foil, subset=subset, **fields)

    def split(self, candidate: Example) -> str:
        return random.Random(candidate.prompt + candidate.answer).choice(SPLITS)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("items", "Overlap: 1 base items are asked about in both splits."),
        ("frames", "Overlap: 1 frames stand in both splits."),
        ("demonstrations", "Overlap: 1 base items are demonstrated in both splits."),
        ("solved", "base items are asked about in one split and demonstrated in the other."),
        ("prompts", "Overlap: 1 prompts stand in both splits."),
    ],
)
def test_each_overlap_of_the_splits_is_caught(how: str, message: str) -> None:
    task = Leaking(how=how)
    examples = 1 if how == "prompts" else 48
    assert any(message in sentence for sentence in problems(measure(task, examples=examples))), how


def test_what_is_counted_is_what_is_there() -> None:
    task = Binding()
    drawn = {split: task.examples(split, 40, 3) for split in SPLITS}
    examples = drawn["train"] + drawn["test"]
    (part,) = parts_of(task, drawn)
    answers = [e.answer for e in examples]
    top = max(set(answers), key=answers.count)
    assert part.n == 80 and part.items == len({e.item for e in examples}) and part.frames == 0 and part.labels == 8
    assert part.most_frequent_share == answers.count(top) / 80
    assert part.entropy_bits == pytest.approx(
        -sum(answers.count(a) / 80 * math.log2(answers.count(a) / 80) for a in set(answers))
    )
    first = sum(re.findall("|".join(COLORS), e.prompt)[0] == e.answer.strip() for e in examples) / 80
    rule = part.rule("first")
    assert part.answer.first == first and rule is not None and rule.right == rule.prefers == first
    assert part.answer.last == 1 - first == part.answer_later and part.answer.between == 0
    assert part.answer.marks == {"color": 1.0} and part.foil is not None and part.foil.marks == {"color": 0.0}
    assert part.rule("label") is None  # nothing is demonstrated
    constant = part.rule("constant")
    best = {
        s: min({e.answer for e in drawn[s]}, key=lambda a: (-[e.answer for e in drawn[s]].count(a), a)) for s in SPLITS
    }
    right = sum(e.answer == best["test"] for e in drawn["train"]) + sum(
        e.answer == best["train"] for e in drawn["test"]
    )
    assert constant is not None and constant.right == right / 80 and constant.chance == 1 / 8


def test_whole_words_are_found_and_the_longest() -> None:
    assert occurrences([" red", " dark red", "1", "12"], "a reddish dark red, 12 red1 Red 1") == [
        (10, " dark red"),
        (20, "12"),
        (32, "1"),
    ]
    assert occurrences(["", " "], "anything") == []


@pytest.mark.parametrize(
    ("prompt", "demonstrations", "question"),
    [
        ("good -> yes\nbad -> no\nfine ->", ("a", "b"), "fine ->"),
        ("Label each.\ngood -> yes\nfine ->", ("a",), "fine ->"),
        ("Q: one\nA: 1\n\nQ: two\nA:", ("a",), "Q: two\nA:"),
        ("the ball red . the cup blue . the ball", ("a", "b"), "the ball"),
        ("no line", ("a",), "no line"),
        ("one\ntwo", (), "one\ntwo"),
    ],
)
def test_where_the_question_starts(prompt: str, demonstrations: tuple[str, ...], question: str) -> None:
    example = Example(prompt, "x", demonstrations=demonstrations)
    assert prompt[question_start(example) :] == question


def test_overlap_is_counted_in_distinct_things() -> None:
    train = [Example("a", "x", item="1", frame="f", demonstrations=("2", "3")), Example("b", "x", item="1")]
    test = [Example("c", "x", item="3", frame="f", demonstrations=("2", "1")), Example("b", "x", item="4")]
    assert overlap_of(train, test).model_dump() == {
        "items": 0,
        "frames": 1,
        "prompts": 1,
        "demonstrations": 1,
        "solved": 2,
    }


# what examples are worth


def anova(values: np.ndarray, groups: list[str]) -> float:
    """ICC(1) written out group by group."""
    names = sorted(set(groups))
    by = [values[[g == name for g in groups]] for name in names]
    n, k = len(values), len(names)
    msb = sum(len(v) * (v.mean() - values.mean()) ** 2 for v in by) / (k - 1)
    msw = sum(((v - v.mean()) ** 2).sum() for v in by) / (n - k)
    n0 = (n - sum(len(v) ** 2 for v in by) / n) / (k - 1)
    return float((msb - msw) / (msb + (n0 - 1) * msw))


def test_effective_number() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 20, 96)]
    effect = {g: rng.normal() for g in sorted(set(groups))}
    values = np.array([effect[g] for g in groups]) + 0.7 * rng.normal(size=96)
    found = audit.worth(values, groups)
    icc = anova(values, groups)
    size = sum(groups.count(g) for g in groups) / 96
    assert 0.4 < icc < 0.9 and found.icc == pytest.approx(icc)
    assert found.n == pytest.approx(96 / (1 + (size - 1) * icc)) and found.groups == len(set(groups))
    same = audit.worth(np.array([effect[g] for g in groups]), groups)
    assert same.icc == pytest.approx(1.0) and same.n == pytest.approx(96 / size)
    assert audit.worth(values, [""] * 96).n == 96
    assert audit.worth(values, ["one"] * 96).n == 1
    assert audit.worth(np.ones(4), list("aabb")).n == 4  # nothing varies


def test_shares_and_the_shortcut_from_answers() -> None:
    examples = [Example(f"p{i}", "a", "b", item=f"{i // 2}", other_question="?") for i in range(6)]
    answers = [
        Answers(True, True, 4.0, 1.0),
        Answers(True, True, 2.0, -2.0),
        Answers(True, True, 6.0, None),
        Answers(True, False, 9.0, 9.0),
        Answers(False, True, -3.0, 5.0),
        Answers(True, None, 4.0, 5.0),
    ]
    (whole,) = asked_of(examples, answers)
    assert (whole.n, whole.kept, whole.asked_otherwise) == (6, 4, 3)
    assert whole.answered == pytest.approx(5 / 6) and whole.counterfactual == pytest.approx(4 / 5)
    assert whole.metric == 4.0 and whole.metric_there == pytest.approx(4 / 3)
    assert whole.shortcut == pytest.approx(4 / 10)
    assert whole.interval is not None and whole.interval[0] <= 0.4 <= whole.interval[1]
    assert whole.by_item is not None and whole.by_item.groups == 3 and whole.by_frame is None


# a model


@pytest.fixture(scope="session")
def repeats(toy: dict[str, Path]) -> Model:
    """A model that repeats the last word."""
    return load_model(str(toy["model"]), batch_size=4)


@dataclass
class LastWord(Task):
    """Asks the toy model for the last word; ``other`` says which word another question ends in."""

    name: ClassVar[str] = "last_word"
    labels: ClassVar[tuple[str, ...]] = tuple(WORDS)
    all_subsets: ClassVar[tuple[str, ...]] = ("short", "long")

    other: str = "foil"

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            *start, answer, foil = rng.sample(WORDS, 4 if subset == "short" else 6)
            ends = {"answer": answer, "foil": foil, "neither": start[0]}
            yield Example(
                " ".join([*start, foil, answer]),
                answer,
                foil,
                " ".join([*start, answer, foil]),
                item=" ".join(start),
                subset=subset,
                other_question=" ".join([start[-1], *start, ends[self.other]]) if self.other != "none" else None,
            )


def test_a_model_is_asked_the_prompt_the_counterfactual_and_the_other_question(repeats: Model) -> None:
    encoded = draw(repeats, LastWord(), "test", 9, 0)
    for e, found in zip(encoded, ask(repeats, encoded)):
        logits = {}
        for name in ("prompt", "counterfactual", "other_question"):
            alone = repeats.encode(Example(getattr(e.example, name), e.example.answer, e.example.foil))
            logits[name] = repeats.run(repeats.batch([alone])).logits[0].double()
        differences = {name: float(x[e.answer] - x[e.foil]) for name, x in logits.items()}
        assert found.right == (int(logits["prompt"].argmax()) == e.answer)
        assert found.turns == (int(logits["counterfactual"].argmax()) == e.foil)
        assert found.metric == pytest.approx(differences["prompt"], abs=1e-4)
        assert found.elsewhere == pytest.approx(differences["other_question"], abs=1e-4)


def test_a_metric_that_needs_no_question_is_caught(repeats: Model) -> None:
    def judged(other: str) -> Audit:
        return measure(LastWord(other=other), repeats, examples=24)

    cheats, honest = judged("answer"), judged("foil")
    whole = cheats.asked[0]
    assert whole.kept >= audit.FEWEST and whole.shortcut is not None and whole.shortcut > 0.8
    (sentence,) = [s for s in problems(cheats) if s.startswith("Shortcut")]
    assert sentence.startswith("Shortcut: in the whole task another question about the same context keeps")
    assert honest.asked[0].shortcut is not None and honest.asked[0].shortcut < -0.8
    assert not [s for s in problems(honest) if s.startswith("Shortcut")]
    assert [asked.subset for asked in honest.asked] == ["", "short", "long"]
    assert sum(asked.kept for asked in honest.asked[1:]) == honest.asked[0].kept


def test_what_cannot_be_judged_is_said(repeats: Model) -> None:
    none = measure(LastWord(other="none"), repeats, examples=8, splits=("test",))
    assert none.asked[0].shortcut is None and none.overlap is None
    assert remarks(none) == [
        "No example has another question about its context, so there is no shortcut share.",
        "One split was drawn, so what both share is not known.",
        "The task names no frames.",
    ]
    few = measure(LastWord(), repeats, examples=4)
    assert any(sentence.startswith(f"Only {few.asked[0].asked_otherwise} kept") for sentence in remarks(few))
    assert remarks(audited(""))[0] == "No model was asked, so there is no shortcut share."


def test_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="number of examples is 0"):
        measure(Binding(), examples=0)
    with pytest.raises(UnknownNameError, match="unknown split 'tset': did you mean 'test'"):
        measure(Binding(), splits=("tset",))
    with pytest.raises(TaskError, match="gave only"):
        measure(Leaking(how="prompts"), examples=30)
    with pytest.raises(ConfigurationError, match="no examples"):
        parts_of(Binding(), {"train": []})


# what is shown


def test_the_text_says_it_all_and_is_narrow(repeats: Model) -> None:
    text = render(measure(LastWord(other="answer"), repeats, examples=24, options={"other": "answer"}))
    assert text.startswith("last_word, version 1 on ") and "(other=answer): 24 train and 24 test examples" in text
    for rule in ("constant", "first", "last"):
        assert RULES[rule] in text
    assert "- Shortcut: in the whole task" in text and "beyond their limits" in text
    body = text.split("\n", 1)[1]
    assert max(map(len, body.replace(str(repeats.name), "model").splitlines())) <= 100
    assert "Nothing is beyond its limit" in render(audited(""))


def test_stored_audits_make_the_page(tmp_path: Path, repeats: Model) -> None:
    stored = [measure(LastWord(other=other), repeats, 24, options={"other": other}) for other in ("foil", "answer")]
    for i, one in enumerate(stored):
        (tmp_path / f"{i}.json").write_text(one.model_dump_json(indent=1))
    found = read_audits(tmp_path)
    assert found == stored[::-1]  # by their options
    text = page(found)
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [
        "`last_word` (other = answer)",
        "`last_word` (other = foil)",
    ]
    asked = stored[0].asked[0]
    assert f"| whole task | 48 | {100 * asked.answered:.0f} % |" in text and "**Shortcut: in the whole task" in text
    assert "No audit is stored." in page([])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"bad\.json is not an audit of this version; make it again"):
        read_audits(tmp_path)


def test_a_board_is_told_what_audits_with_the_usual_options_found(repeats: Model) -> None:
    usual = measure(LastWord(), repeats, 24)
    other = measure(LastWord(other="answer"), repeats, 24, options={"other": "answer"})
    key = ("last_word", LastWord.version, repeats.weights_sha256)
    assert findings([usual, other]) == findings([usual]) == {key: tuple(problems(usual))}
    assert findings([other]) == {}


def test_the_page_is_what_the_stored_audits_say() -> None:
    assert (ROOT / "docs" / "audit.md").read_text() == page(read_audits(ROOT / "results" / "audit"))


# our tasks

ON_MODEL = ("arithmetic", "color_tqa", "icl_sentiment", "ioi", "gender_bias")


@pytest.mark.parametrize("name", [name for name in tasks.names() if name != "mib"])  # its data do not ship
def test_our_tasks_have_no_shortcut_that_needs_no_model(name: str) -> None:
    def write(candidate: Any, limit: int) -> str:
        return caption(candidate.scene.left_to_right)

    task = tasks.make(name)
    assert problems(measure(task, examples=64, write=write if task.writes else None)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_MODEL)
def test_our_tasks_pass_on_smollm2(name: str) -> None:
    assert problems(measure(tasks.make(name), load_model("smollm2-135m"), examples=96)) == []
