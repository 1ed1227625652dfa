"""Comparing two ways of asking: literal statistics, two tasks on tiny models, and sentences that follow numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from attriboard.components import get_level
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.model import Model
from attriboard.studies.two_forms import (
    TOP,
    Answer,
    Asked,
    ComparedModel,
    Pair,
    TwoForms,
    View,
    default_methods,
    overlap,
    resampled_mean,
    spearman,
    split_half,
)
from attriboard.studies.two_forms_report import render_report
from attriboard.task import Example, split_of, tasks
from tests.bench import models as m
from tests.bench.cli import call

TASKS = '''
"""The same questions with a picture and in words; what is asked stands in a file."""
import json
import sys
from dataclasses import dataclass

sys.path.insert(0, {tests!r})  # other processes that include this file do not know the folder
from tests.bench import models as m

from attriboard.task import Example, Task

ASKED = json.loads(open({file!r}).read())
SIZE = (56, 42)


@dataclass
class Seen(Task):
    name = "asked_of_a_picture"
    description = "A question about a picture."
    all_subsets = ("all",)
    modality = "vision"
    stream = "made by hand"

    def candidates(self, subset, rng):
        for q in ASKED:
            square = (14, 0, 28, 28)
            regions = {{"object": m.mask(SIZE, square)}}
            if q["item"] % 2:
                regions["other"] = m.mask(SIZE, (35, 28, 49, 42))
            yield Example(
                q["seen"][0], q["seen"][1], item=str(q["item"]), twin=str(q["item"]), image=m.picture(q["item"], SIZE),
                marks={{"object": ((0, q["seen"][0].index(" ")),)}}, regions=regions,
            )


@dataclass
class Told(Task):
    name = "asked_in_words"
    description = "The same in words."
    all_subsets = ("all",)
    stream = "made by hand"

    def candidates(self, subset, rng):
        for q in ASKED[::-1]:
            yield Example(q["told"][0], q["told"][1], item=str(q["item"]), twin=str(q["item"]))


@dataclass
class Lonely(Told):
    name = "asked_of_nobody"

    def candidates(self, subset, rng):
        for e in super().candidates(subset, rng):
            yield Example(e.prompt, e.answer, item=e.item)


@dataclass
class Elsewhere(Told):
    name = "asked_elsewhere"

    def candidates(self, subset, rng):
        for e in super().candidates(subset, rng):
            yield Example(e.prompt, e.answer, item=e.item, twin="other " + e.twin)
'''

N = 80
WRONG = 5  # every fifth question has an answer that the model does not give


def _own_answer(model: Model, example: Example) -> str:
    return f" w{int(model.run(model.batch([model.encode(example)])).logits.argmax())}"


def _second() -> Any:
    """The first model's weights, a little disturbed."""
    hf, noise = m.fresh_llava(), m.fresh_llava(seed=1)
    for weight, other in zip(hf.parameters(), noise.parameters()):
        weight.add_(0.05 * other)
    return hf


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that are nearly the same, and two tasks that the first mostly answers."""
    root = tmp_path_factory.mktemp("pair")
    for name, hf in (("one", m.fresh_llava()), ("two", _second())):
        hf.save_pretrained(root / name)
        m.tiny_processor().save_pretrained(root / name)
    rng, model, asked = random.Random(0), m.tiny_llava(), []
    for i in range(N):
        a, b, c, d = rng.sample(range(3, 90), 4)
        prompts = f"w{a} <image> w{b}", f"w{a} w{c} w{d} w{b}"
        answers = [
            _own_answer(model, Example(prompts[0], "w1", image=m.picture(i))),
            _own_answer(model, Example(prompts[1], "w1")),
        ]
        if i % WRONG == 0:
            answers[i % 2] = " w1" if answers[i % 2] != " w1" else " w2"
        asked.append({"item": i, "seen": [prompts[0], answers[0]], "told": [prompts[1], answers[1]]})
    asked = [q for q in asked if all(x[1] not in (" w0", " w96", " w97") for x in (q["seen"], q["told"]))]
    (root / "asked.json").write_text(json.dumps(asked))
    (root / "pair.py").write_text(TASKS.format(file=str(root / "asked.json"), tests=str(Path(__file__).parents[2])))
    tasks.include(root / "pair.py")
    return {"one": root / "one", "two": root / "two", "tasks": root / "pair.py", "asked": root / "asked.json"}


@pytest.fixture(scope="module")
def found(world: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TwoForms]:
    """The report and the measurements that the command line writes for the pair."""
    from typer.testing import CliRunner

    from attriboard.cli import app

    out = tmp_path_factory.mktemp("report") / "deep" / "seen_vs_told.md"
    arguments = ["compare-forms", "asked_of_a_picture", "asked_in_words", "--model", world["one"]]
    arguments += [
        "--against",
        world["two"],
        "--method",
        "log_prob_increase",
        "--method",
        "activation_norm",
        "--limit",
        "30",
        "--out",
        out,
    ]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert f"wrote {out} and seen_vs_told.json" in done.output
    return out.read_text(), TwoForms.model_validate_json(out.with_suffix(".json").read_text())


# --- statistics, literally --------------------------------------------------------------------------------------------


def test_spearman_is_scipys_for_every_row() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 30)), rng.integers(0, 6, size=(5, 30)).astype(float)  # with ties
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y)]
    np.testing.assert_allclose(spearman(x, y), expected, rtol=1e-12)
    assert np.isnan(spearman(x[0], np.ones(30)))


@pytest.mark.parametrize("k", [1, 10, 20])
def test_overlap_is_that_of_the_sets_of_top_heads(k: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    for a, b, value in zip(x, y, overlap(x, y, k)):
        tops = [set(sorted(range(30), key=lambda i, v=v: -v[i])[:k]) for v in (a, b)]
        assert value == len(tops[0] & tops[1]) / k
    np.testing.assert_array_equal(overlap(x, x, k), np.ones(4))


def test_resampled_means_are_those_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(2)
    scores, index = rng.normal(size=(7, 5)), rng.integers(0, 7, size=(3, 2, 7))
    np.testing.assert_allclose(resampled_mean(scores, index), scores[index].mean(-2), rtol=1e-12)
    np.testing.assert_allclose(resampled_mean(scores, np.arange(7)), scores.mean(0), rtol=1e-12)


def test_halves_agree_as_far_as_their_items_do() -> None:
    rng = np.random.default_rng(3)
    order = rng.normal(size=40)
    consistent, noise = order + 0.01 * rng.normal(size=(20, 40)), rng.normal(size=(20, 40))
    halves = split_half(consistent, noise)
    assert halves["first"].min() > 0.95 and abs(np.median(halves["between"])) < 0.3
    mean = split_half(consistent, -consistent)
    assert mean["between"].max() < -0.95 and mean["second"].min() > 0.95
    again = split_half(consistent, noise)
    np.testing.assert_array_equal(halves["between"], again["between"])


def test_the_committed_report_is_rendered_from_its_measurements() -> None:
    folder = Path(__file__).parents[2] / "results" / "compare"
    for measured in folder.glob("*.json"):
        stored = TwoForms.model_validate_json(measured.read_text())
        assert render_report(stored) == measured.with_suffix(".md").read_text()
    assert (folder / "vqa_vs_tqa.json").exists()


# --- a pair of tasks on tiny models -----------------------------------------------------------------------------------


def _asked(world: dict[str, Path]) -> list[dict]:
    return [q for q in json.loads(world["asked"].read_text()) if split_of(str(q["item"])) == "train"]


def test_answers_are_those_of_each_model(world: dict[str, Path], found: tuple[str, TwoForms]) -> None:
    _, c = found
    assert [(a.model, a.task) for a in c.asked] == [
        (str(world["one"]), "asked_of_a_picture"),
        (str(world["one"]), "asked_in_words"),
        (str(world["two"]), "asked_in_words"),
    ]
    seen, told = _asked(world)[:30], _asked(world)[::-1][:30]
    assert [a.twin for a in c.asked[0].answers] == [str(q["item"]) for q in seen]
    assert [a.twin for a in c.asked[1].answers] == [str(q["item"]) for q in told]
    for asked, side in zip(c.asked[:2], (0, 1)):
        for answer in asked.answers:
            item = int(answer.twin)
            assert answer.right == (item % WRONG != 0 or item % 2 != side)
    other = load_model(str(world["two"]))
    assert {a.right for a in c.asked[2].answers} == {True, False}
    for answer, q in zip(c.asked[2].answers, told):
        assert answer.right == (_own_answer(other, Example(q["told"][0], "w1")) == q["told"][1])


def test_head_scores_are_those_of_each_question_alone(world: dict[str, Path], found: tuple[str, TwoForms]) -> None:
    _, c = found
    model, by_item = m.tiny_llava(), {str(q["item"]): q for q in _asked(world)}
    right = [{a.twin for a in asked.answers if a.right} for asked in c.asked]
    assert c.shape == (model.n_layers, model.n_heads)
    for name, pair in c.heads.items():
        assert set(pair.twins) == right[0] & right[1] and len(pair.twins) >= 10
        level = get_level("heads")
        for twin, first, second in list(zip(pair.twins, pair.first, pair.second))[:4]:
            q = by_item[twin]
            examples = (
                Example(*q["seen"], image=m.picture(q["item"], (56, 42))),
                Example(*q["told"]),
            )
            for example, scores in zip(examples, (first, second)):
                expected = methods.make(name).attribute(model, [model.encode(example)], level).values
                assert m.close(torch.tensor(scores), expected.flatten(), 1e-4)


def test_views_are_the_literal_logit_lens_at_the_patches(world: dict[str, Path], found: tuple[str, TwoForms]) -> None:
    _, c = found
    assert c.viewed == "asked_of_a_picture"
    assert {v.twin for v in c.views} == {a.twin for a in c.asked[0].answers if a.right}
    plain = m.Plain("llava", m.fresh_llava())
    norm, head = plain.hf.model.language_model.norm, plain.hf.lm_head
    by_item = {str(q["item"]): q for q in _asked(world)}
    total = 0
    for view in c.views[:6]:
        q = by_item[view.twin]
        encoded = m.tiny_llava().encode(Example(*q["seen"], image=m.picture(q["item"], (56, 42))))
        sites = [("resid_pre", 0), *(("resid_post", layer) for layer in range(plain.n_layers))]
        _, seen = plain.run(encoded.tokens, read=sites, pixel_values=m.pixels(encoded.example.image))
        # columns 7 to 48 are seen: the object is half of the first two patches of the upper two rows
        patches = {"object": [0, 1, 3, 4], "other": [8], "background": [2, 5, 6, 7, 8]}
        if q["item"] % 2:
            patches["background"].remove(8)
        else:
            del patches["other"]
        assert view.patches == {region: len(places) for region, places in patches.items()}
        words = {"answer": q["seen"][1].strip(), "object": q["seen"][0].split()[0]}
        assert view.words == words
        first = encoded.tokens.index(m.IMAGE_ID)
        for region, places in patches.items():
            for role, word in words.items():
                for depth, site in enumerate(sites):
                    hits = 0
                    for place in places:
                        logits = head(norm(seen[site][first + place]))
                        top = [plain_word(int(i)) for i in logits.topk(TOP).indices]
                        hits += word in top
                    assert view.hits[region][role][depth] == hits
                    total += hits
    assert total > 0


def plain_word(token: int) -> str:
    return m.tiny_llava().tokenizer.decode([token])


def test_the_report_comes_from_the_stored_measurements_alone(found: tuple[str, TwoForms]) -> None:
    text, c = found
    assert render_report(c) == text
    for method, pair in c.heads.items():
        section = text.split(f"### {method}: asked_of_a_picture")[1].split("###")[0]
        rho = scipy.stats.spearmanr(np.mean(pair.first, 0), np.mean(pair.second, 0)).statistic
        assert f"Rank correlation (Spearman) {rho:.2f} [" in section
        tops = [set(np.argsort(-np.mean(x, 0), kind="stable")[:10].tolist()) for x in (pair.first, pair.second)]
        assert (
            f"| 10 | {len(tops[0] & tops[1]) / 10:.2f} [" in section and "] | 0.83 (0.80 to 0.90) |" in section
        )  # of 12
        assert "| 20 |" not in section  # there are only 12
    share = np.mean([a.right for a in c.asked[0].answers])
    assert f"asked_of_a_picture | 30 | {share:.2f} [" in text
    assert c.provenance["transformers"] in text


# --- sentences --------------------------------------------------------------------------------------------------------


def _made(first: np.ndarray, second: np.ndarray, **changes: object) -> TwoForms:
    twins = [str(i) for i in range(len(first))]
    pair = Pair(twins=twins, first=first.tolist(), second=second.tolist())
    base = {
        "tasks": ("a", "b"),
        "task_versions": (1, 1),
        "models": [ComparedModel(name="one", source="here", weights_sha256="")],
        "shape": (5, 8),
        "seed": 0,
        "limit": 20,
        "asked": [Asked(model="one", task=t, answers=[Answer(twin=i, right=True) for i in twins]) for t in ("a", "b")],
        "heads": {"some_method": pair},
        "viewed": None,
        "views": [],
        "heads_against": {},
        "provenance": {},
    }
    return TwoForms.model_validate({**base, **changes})


def _scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    order = rng.normal(size=40)
    return order + 0.2 * rng.normal(size=(20, 40)), order + 0.2 * rng.normal(size=(20, 40))


def test_sentences_about_heads_follow_the_numbers() -> None:
    x, y = _scores(0)
    alike = render_report(_made(x, y))
    assert "a and b rank heads alike, beyond chance." in alike
    assert "The top 10 share more heads than chance would give them." in alike
    assert "That a and b agree less than halves of either do with each other cannot be told." in alike
    opposite = render_report(_made(x, -y))
    assert "a and b rank heads in opposite order, beyond chance." in opposite and "rank heads alike" not in opposite
    assert "The top 20 share fewer heads than chance would give them." in opposite
    assert "a and b agree less than halves of either do with each other." in opposite
    rng = np.random.default_rng(5)
    noise = render_report(_made(rng.normal(size=(20, 40)), rng.normal(size=(20, 40))))
    assert "no common order of heads can be told from chance in a and b." in noise
    assert "Whether the top 10 share more heads than by chance is open." in noise
    assert "Neither task has pictures." in noise
    # two orders that never change from question to question, and have no more in common than unrelated ones may
    orders = (np.random.default_rng(i).permutation(40).astype(float) for i in range(100))
    fixed = next(o for o in orders if 0.1 < spearman(o, np.arange(40.0)) < 0.3)
    shaken = [o + 0.01 * rng.normal(size=(20, 40)) for o in (fixed, np.arange(40.0))]
    assert "no common order of heads can be told from chance in a and b." in render_report(_made(*shaken))
    assert "a and b agree less than halves of either do with each other." in render_report(_made(*shaken))
    same = render_report(_made(np.ones((20, 40)), np.ones((20, 40))))
    assert "Rank correlation (Spearman) –" in same and "rank heads alike" not in same


def _view(i: int, hits: dict[str, int]) -> View:
    return View(
        twin=str(i),
        words={"answer": "red"},
        patches={"object": 4, "background": 8} | ({"other": 2} if "other" in hits else {}),
        hits={region: {"answer": [h] * 6} for region, h in hits.items()},
    )


def test_sentences_about_patches_follow_the_numbers() -> None:
    x, y = _scores(0)

    def said(hits: list[dict[str, int]]) -> str:
        return render_report(_made(x, y, viewed="a", views=[_view(i, h) for i, h in enumerate(hits)]))

    more = said([{"object": 3 + i % 2, "background": 1} for i in range(20)])
    assert "patches of the object asked for show the word more often than those of the background." in more
    assert "above 0 at 6 of 6 depths" in more
    assert "| 0 | 0.88 | – | 0.12 | 0.75 [" in more  # means of 3/4 and 4/4, of 1/8, and their difference
    assert "No question has patches both of the object asked for and of other." in more
    less = said([{"object": 0, "background": 4 + i % 2, "other": 1} for i in range(20)])
    assert "patches of the object asked for show the word less often than those of the background." in less
    assert "above 0 at 0 of 6 depths" in less
    open_ = said([{"object": i % 3, "background": 2 * ((i + 1) % 3)} for i in range(21)][:20])
    assert "no difference from patches of the background can be told from chance." in open_


def test_sentences_about_two_models_follow_the_numbers() -> None:
    x, y = _scores(0)
    models = [ComparedModel(name=n, source="here", weights_sha256="") for n in ("one", "two")]
    pair = Pair(twins=[str(i) for i in range(20)], first=x.tolist(), second=y.tolist())

    def said(right: list[bool]) -> str:
        made = _made(x, y)
        other = Asked(model="two", task="b", answers=[Answer(twin=str(i), right=r) for i, r in enumerate(right)])
        changes = {"models": models, "asked": [*made.asked, other], "heads_against": {"some_method": pair}}
        return render_report(made.model_copy(update=changes))

    worse = said([i % 2 == 0 for i in range(20)])
    assert "both answer 10 of them right (0.50)" in worse and "one answers more of them right than two." in worse
    equal = said([True] * 20)
    assert "no difference between one and two can be told from chance." in equal
    mean_x, mean_y = x.mean(0), y.mean(0)
    best = sorted(range(40), key=lambda i: -mean_x[i])[:10]
    places = [1 + sum(mean_y[j] > mean_y[i] for j in range(40)) for i in best]
    assert ", ".join(f"a{i // 8}.h{i % 8} ({p})" for i, p in zip(best, places)) in equal
    assert (
        f"Median rank {np.median(places):g}; the same heads in the same order would have 5.5, a random order 20.5"
        in equal
    )


# --- what cannot be compared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["asked_of_a_pictur", "asked_in_words"]}, "unknown task 'asked_of_a_pictur': did you mean"),
        ({"tasks": ["asked_of_nobody", "asked_in_words"]}, "the examples of task 'asked_of_nobody' have no twin"),
        ({"tasks": ["asked_of_a_picture", "asked_elsewhere"]}, "only 0 questions are answered right both in"),
        ({"--limit": 3}, "at least 4 are needed: raise --limit"),
        ({"--limit": 0}, "--limit is 0, expected at least 1."),
        ({"--method": "cna"}, "cna scores neurons, not heads."),
        ({"--out": "report.txt"}, "--out report.txt does not end in .md."),
        ({"--out": "/dev/null/report.md"}, "cannot write /dev/null/report.md"),
        ({"--model": "smollm"}, "unknown model 'smollm'"),
        ({"--against": "smollm"}, "unknown model 'smollm'"),
        ({"--model": "TOY"}, "asks about images, and"),
        ({"--against": "NARROW"}, "heads can be compared only where there are equally many."),
    ],
)
def test_what_cannot_be_compared_exits_2_with_one_sentence(
    changes: dict,
    message: str,
    world: dict[str, Path],
    toy: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--model": world["one"], "--limit": 30, "--out": tmp_path / "r.md", **changes}
    pair = options.pop("tasks", ["asked_of_a_picture", "asked_in_words"])
    if "NARROW" in options.values():
        config = m.CONFIGS["gpt2"]()
        config.n_head = config.num_attention_heads = 2
        hf = m.AutoModelForCausalLM.from_config(config)
        hf.save_pretrained(tmp_path / "narrow")
        m.tokenizer().save_pretrained(tmp_path / "narrow")
    places = {"TOY": toy["model"], "NARROW": tmp_path / "narrow"}
    arguments = [x for name, value in options.items() for x in (name, places.get(str(value), value))]
    code, _, err = call(capsys, "compare-forms", *pair, *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "r.md").exists()


def test_a_pair_without_pictures_is_compared_too(
    world: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["compare-forms", "asked_in_words", "asked_in_words", "--model", world["one"], "--limit", "12"]
    code, _, err = call(capsys, *arguments)
    assert code == 0, err
    text = (tmp_path / "asked_in_words_vs_asked_in_words.md").read_text()
    assert "Neither task has pictures." in text and "(Spearman) 1.00 [1.00, 1.00]" in text
    assert "a picture" not in text


def test_the_method_that_offers_itself_is_used_unless_others_are_named() -> None:
    assert default_methods() == ["log_prob_increase"]
