"""Editing against a literal version: weights of a copy edited by loops, one prompt at a time, sums written out."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from attriboard.components import Level, get_level
from attriboard.edits import STRENGTHS
from attriboard.errors import AttriboardError, ConfigurationError, MethodError, UnknownNameError
from attriboard.evaluation.context import Context
from attriboard.evaluation.editing import evaluate
from attriboard.loading import load_model
from attriboard.measurements.capability import Capability
from attriboard.measurements.editing import KINDS, Editing, EditResult
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from attriboard.task import Example, Task
from tests.bench.toy import WORDS, save_model
from tests.measurements.test_editing import right

NEUTRAL = ("w1 w9 w4", "w20 w2", "w7 w3 w3 w11 w18", "w5", "w13 w8 w22 w1", "w2 w4 w6 w8 w10")
SIZES = (2, 5, 12, 40)
OTHERS = 3


@dataclass
class Repeat(Task):
    """Repeat the last word; the paraphrases have other words before it."""

    name: ClassVar[str] = "repeat_in_other_words"
    description: ClassVar[str] = "Repeat the last word."
    all_subsets: ClassVar[tuple[str, ...]] = ("words", "choices", "bare")
    controls: ClassVar[tuple[str, ...]] = ("bare",)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            words = rng.sample(WORDS, 7)
            last, foil = words[-1], words[0]
            prompt = " ".join([*words[1:4], last])
            if subset == "bare":
                yield Example(prompt, last, item=prompt)
                continue
            yield Example(
                prompt=prompt,
                answer=last,
                foil=foil,
                item=prompt,
                subset=subset,
                choice=subset == "choices",
                # what the tokenizer makes nothing of is left out
                paraphrases=(f"{words[4]} {last}", f"{words[5]} {words[4]} {last}", ""),
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("often wrong"), noise=0.2)


def make_context(folder: Path, batch_size: int = 16, padding_side: str = "left", **options: Any) -> Context:
    model = load_model(str(folder), batch_size=batch_size)
    model.padding_side = padding_side
    return Context(model, Repeat(**options), 0, 16, 20, 6, 4, keep="answer")


@pytest.fixture(scope="module")
def context(folder: Path) -> Context:
    return make_context(folder)


def random_scores(context: Context, level: Level, seed: int = 0) -> Scores:
    values = torch.randn(level.shape(context.model), generator=torch.Generator().manual_seed(seed))
    return Scores(values, level.name, level.names(context.model))


# --- the literal version ----------------------------------------------------------------------------------------------


class Literal:
    """Everything by hand, on Llama modules: no batches, no hooks, a fresh copy of the model for every edit."""

    def __init__(self, context: Context, scores: Scores, sizes: Sequence[int]) -> None:
        self.context, self.model = context, context.model
        self.neutral = [context.model.tokenizer(text)["input_ids"] for text in NEUTRAL]
        self.order = sorted(range(scores.values.numel()), key=lambda i: -float(scores.values.flatten()[i]))
        self.heads, self.sizes = scores.level == "heads", sizes
        self.layer_size = scores.values.shape[1]

    def probabilities(self, hf: Any, tokens: Sequence[int]) -> Tensor:
        return torch.softmax(hf(input_ids=torch.tensor([list(tokens)])).logits[0, -1].double(), -1)

    def vectors(self, hf: Any, component: int) -> Tensor:
        layer, at = divmod(component, self.layer_size)
        block = hf.model.layers[layer]
        return (
            block.self_attn.o_proj.weight[:, 8 * at : 8 * at + 8] if self.heads else block.mlp.down_proj.weight[:, at]
        )

    def scaled(self, k: int, factor: float) -> Any:
        hf = copy.deepcopy(self.model.hf)
        for component in self.order[:k]:
            self.vectors(hf, component).mul_(factor)
        return hf

    def rewritten(self, k: int, encoded: EncodedExample) -> Any:
        hf, top = copy.deepcopy(self.model.hf), self.order[:k]
        seen: dict[int, Tensor] = {}
        for layer, block in enumerate(hf.model.layers):
            block.mlp.down_proj.register_forward_pre_hook(
                lambda m, args, at=layer: seen.__setitem__(at, args[0][0, -1])
            )
        self.probabilities(hf, encoded.tokens)
        c = torch.stack([seen[j // self.layer_size][j % self.layer_size] for j in top])
        W_U = hf.lm_head.weight
        towards = hf.model.norm.weight * (W_U[encoded.foil] - W_U[encoded.answer])
        size = math.sqrt(sum(float(self.vectors(hf, j).square().sum()) for j in top))
        for strength in STRENGTHS:
            changed = copy.deepcopy(self.model.hf)
            for j, share in zip(top, c / c.norm()):
                self.vectors(changed, j).add_(strength * size * float(share) * towards / towards.norm())
            if self.reached("rewrite", encoded, self.probabilities(changed, encoded.tokens)):
                break
        return changed

    def right(self, encoded: EncodedExample, p: Tensor) -> bool:
        if encoded.example.choice:
            return bool(p[encoded.answer] > p[encoded.foil])
        return int(p.argmax()) == encoded.answer

    def reached(self, kind: str, encoded: EncodedExample, p: Tensor) -> bool:
        if kind == "rewrite":
            return (
                bool(p[encoded.foil] > p[encoded.answer]) if encoded.example.choice else int(p.argmax()) == encoded.foil
            )
        return self.right(encoded, p) == (kind == "boost")

    def likelier(self, kind: str, encoded: EncodedExample, p: Tensor) -> bool:
        if kind == "boost":
            return bool(p[encoded.answer] > self.probabilities(self.model.hf, encoded.tokens)[encoded.answer])
        return bool(p[encoded.foil] > p[encoded.answer])

    def generality(self, kind: str, encoded: EncodedExample, hf: Any) -> float | None:
        values = []
        for text in encoded.example.paraphrases[:2]:
            tokens = self.model.tokenizer(text)["input_ids"]
            if self.right(encoded, self.probabilities(self.model.hf, tokens)) != (kind == "boost"):
                values.append(self.reached(kind, encoded, self.probabilities(hf, tokens)))
        return float(np.mean(values)) if values else None

    def elsewhere(self, hf: Any, prompts: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
        stays, kl = [], []
        for tokens in prompts:
            p, q = self.probabilities(self.model.hf, tokens), self.probabilities(hf, tokens)
            stays.append(float(p.argmax() == q.argmax()))
            kl.append(sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q)))
        return stays, kl

    def around(self, i: int, examples: Sequence[EncodedExample]) -> list[Sequence[int]]:
        neutral = [self.neutral[(OTHERS * i + j) % len(self.neutral)] for j in range(OTHERS)]
        return neutral + [examples[(i + 1 + j) % len(examples)].tokens for j in range(min(OTHERS, len(examples) - 1))]

    def wrong(self, split: str) -> list[EncodedExample]:
        drawn = self.context.drawn[split]
        return [e for e in drawn if not self.right(e, self.probabilities(self.model.hf, e.tokens))]

    def train(self, kind: str, factor: float) -> list[tuple[int, float, float]]:
        found = []
        for k in self.sizes:
            reached, stays = [], []
            if kind == "rewrite":
                for i, e in enumerate(self.context.train):
                    hf = self.rewritten(k, e)
                    reached.append(self.reached(kind, e, self.probabilities(hf, e.tokens)))
                    stays.append(np.mean(self.elsewhere(hf, self.around(i, self.context.train))[0]))
            else:
                hf = self.scaled(k, factor)
                judged = self.context.train if kind == "suppress" else self.wrong("train")
                reached = [self.reached(kind, e, self.probabilities(hf, e.tokens)) for e in judged]
                stays = self.elsewhere(hf, self.neutral)[0]
            found.append((k, float(np.mean(reached)), float(np.mean(stays))))
        return found


def harmonic(*values: float) -> float:
    return 0.0 if 0.0 in values else len(values) / sum(1 / v for v in values)


def check(found: EditResult, literal: Literal, kind: str) -> None:
    """Every field of one kind of edit."""
    examples, test = literal.context.test + literal.wrong("test"), literal.context.test
    factor = found.factor or 0.0
    train = literal.train(kind, factor)
    assert [t[0] for t in found.train] == [t[0] for t in train]
    np.testing.assert_allclose(found.train, train, rtol=1e-6)
    k = max(train, key=lambda t: (harmonic(*t[1:]), -t[0]))[0]
    assert found.k == k
    one = None if kind == "rewrite" else literal.scaled(k, factor)
    for i, e in enumerate(examples):
        kept = i < len(test)
        asked = kept or kind == "boost"
        if not asked:
            assert (found.argmax[i], found.probability[i], found.generality[i]) == (None, None, None)
            continue
        hf = literal.rewritten(k, e) if one is None else one
        p = literal.probabilities(hf, e.tokens)
        assert found.argmax[i] == (literal.reached(kind, e, p) if not (kept and kind == "boost") else None)
        assert found.probability[i] == literal.likelier(kind, e, p)
        assert found.generality[i] == literal.generality(kind, e, hf)
        if one is None:
            stays, kl = literal.elsewhere(hf, literal.around(i, test))
            assert found.stays[i] == stays
            np.testing.assert_allclose(found.kl[i], kl, rtol=1e-3, atol=1e-6)
    if one is not None:
        stays, kl = literal.elsewhere(one, literal.neutral)
        assert found.stays == [stays]
        np.testing.assert_allclose(found.kl[0], kl, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("level_name", "sizes"), [("neurons", SIZES), ("heads", (1, 2, 4, 6))])
def test_everything_agrees_with_a_literal_version(context: Context, level_name: str, sizes: Sequence[int]) -> None:
    level = get_level(level_name)
    scores = random_scores(context, level)
    found = evaluate(context, scores, level, NEUTRAL, sizes, suppress_factor=0.0, boost_factor=3.0, others=OTHERS)
    literal = Literal(context, scores, sizes)
    assert (found.kept, found.wrong) == (len(context.test), len(literal.wrong("test")))
    assert found.wrong >= 2, "something is there to be put right"
    expected = ["suppress", "boost"] if level_name == "heads" else ["suppress", "boost", "rewrite"]
    assert list(found.kinds) == expected
    for kind, measured in found.kinds.items():
        check(measured, literal, kind)
        for values in (measured.probability, measured.generality):
            assert any(v is not None for v in values)
    if level_name == "heads":
        assert found.not_measured == {
            "edit_rewrite": "only neurons have one output vector each that can be rewritten, heads have not."
        }


def test_k_is_chosen_on_the_train_split(context: Context) -> None:
    level = get_level("neurons")

    def swapped() -> Context:
        other = copy.copy(context)
        for name in ("examples", "wrong", "drawn"):
            splits = getattr(context, name)
            setattr(other, name, {"train": splits["test"], "test": splits["train"]})
        return other

    differ = 0
    for seed in range(4):
        scores = random_scores(context, level, seed)
        options = {"sizes": SIZES, "kinds": ["rewrite"], "others": 1}
        here, there = (evaluate(c, scores, level, NEUTRAL, **options).kinds["rewrite"] for c in (context, swapped()))
        for kind in (here, there):
            assert kind.k == max(kind.train, key=lambda t: (harmonic(*t[1:]), -t[0]))[0]
        differ += here.k != there.k
    assert differ, "the test split would have chosen another k"


@pytest.mark.parametrize(("batch_size", "padding_side"), [(1, "left"), (3, "right"), (32, "right")])
def test_nothing_depends_on_the_batch(folder: Path, context: Context, batch_size: int, padding_side: str) -> None:
    level = get_level("neurons")
    scores = random_scores(context, level)
    expected, found = (
        evaluate(c, scores, level, NEUTRAL, SIZES, others=OTHERS).model_dump()
        for c in (context, make_context(folder, batch_size, padding_side))
    )
    for kind in KINDS:
        a, b = expected["kinds"][kind], found["kinds"][kind]
        for x, y in zip(a.pop("kl"), b.pop("kl")):
            np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6)
        if kind == "rewrite":
            assert b.pop("strengths")[: len(context.test)] == pytest.approx(a.pop("strengths")[: len(context.test)])
    assert found == expected


def test_no_other_example_has_a_part_in_an_examples_efficacy_and_generality(context: Context) -> None:
    level = get_level("neurons")
    scores, fewer = random_scores(context, level), copy.copy(context)
    fewer.examples = {**context.examples, "test": context.test[:2]}
    every, two = (
        evaluate(c, scores, level, NEUTRAL, (5,), kinds=["suppress", "rewrite"]).kinds for c in (context, fewer)
    )
    for kind in ("suppress", "rewrite"):
        for name in ("argmax", "probability", "generality"):
            assert getattr(every[kind], name)[:2] == getattr(two[kind], name)


def test_capability_is_measured_with_the_edit_in_place(context: Context) -> None:
    level = get_level("neurons")
    scores = random_scores(context, level)
    top = scores.ranking()[:5].tolist()
    seen: list[list[Tensor]] = []

    def capability(model: Model) -> Capability:
        seen.append([model.W_out(j // model.d_mlp)[j % model.d_mlp].clone() for j in top])
        return right(12 // len(seen))

    clean = [context.model.W_out(j // context.model.d_mlp)[j % context.model.d_mlp].clone() for j in top]
    found = evaluate(
        context,
        scores,
        level,
        NEUTRAL,
        (5,),
        capability=capability,
        capability_before=right(12),
        capability_edits=2,
        boost_factor=2.0,
    )
    assert all(torch.equal(x, torch.zeros_like(x)) for x in seen[0])
    assert all(torch.equal(x, 2 * y) for x, y in zip(seen[1], clean))
    assert len(seen) == 4
    for changed in seen[2:]:
        assert not any(torch.equal(x, y) for x, y in zip(changed, clean))
    stored = {name: kind.capability for name, kind in found.kinds.items()}
    assert stored == {"suppress": [right(12)], "boost": [right(6)], "rewrite": [right(4), right(3)]}
    kept = {name: found.scalars()[f"edit_{name}_capability_kept"] for name in found.kinds}
    assert kept["suppress"] == (1.0, None, None) and kept["boost"] == (0.5, None, None)
    assert kept["rewrite"][0] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert Editing.model_validate_json(found.model_dump_json()) == found


# --- gaps and refusals ------------------------------------------------------------------------------------------------


def test_boost_without_wrong_examples_says_so_and_chooses_by_probability(context: Context) -> None:
    level = get_level("neurons")
    scores, faultless = random_scores(context, level), copy.copy(context)
    faultless.wrong = {"train": [], "test": []}
    found = evaluate(faultless, scores, level, NEUTRAL, SIZES, kinds=["boost"])
    assert found.wrong == 0
    assert found.not_measured["edit_boost_efficacy"] == "no test example was answered wrongly before."
    assert {"edit_boost_efficacy", "edit_boost_score"} & set(found.statistics()) == set()
    literal = Literal(context, scores, SIZES)
    for k, efficacy, _ in found.kinds["boost"].train:
        hf = literal.scaled(k, 2.0)
        rises = [literal.likelier("boost", e, literal.probabilities(hf, e.tokens)) for e in context.train]
        assert efficacy == pytest.approx(np.mean(rises))


def test_examples_without_foil_or_paraphrases_leave_out_what_needs_them(folder: Path) -> None:
    bare = make_context(folder, subsets=("bare",))
    level = get_level("neurons")
    found = evaluate(bare, random_scores(bare, level), level, NEUTRAL, SIZES)
    assert set(found.not_measured) >= {"edit_rewrite", "edit_suppress_generality"}
    assert found.not_measured["edit_rewrite"] == "not every example has a foil."
    assert "paraphrase" in found.not_measured["edit_suppress_generality"]
    names = set(found.statistics())
    assert "edit_suppress_efficacy" in names
    assert not {"edit_suppress_efficacy_probability", "edit_suppress_generality", "edit_rewrite_efficacy"} & names
    assert Editing.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "attn_neurons"}, MethodError, "attn_neurons cannot be edited"),
        ({"sizes": (100,)}, ConfigurationError, "the numbers of neurons to edit are 100; at least one from 1 to 72"),
        ({"sizes": (0, 4)}, ConfigurationError, "the numbers of neurons to edit are 0, 4; at least one"),
        ({"neutral": ()}, ConfigurationError, "locality is measured on neutral prompts, and none was given"),
        ({"kinds": ("supress",)}, UnknownNameError, "unknown kind of edit 'supress': did you mean 'suppress'"),
        ({"boost_factor": float("inf")}, ConfigurationError, "cannot be scaled by inf"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    context: Context, options: dict[str, Any], error: type[AttriboardError], message: str
) -> None:
    level = get_level(options.pop("level", "neurons"))
    chosen: dict[str, Any] = {"neutral": NEUTRAL, "sizes": SIZES, **options}
    run: Callable[..., Editing] = evaluate
    with pytest.raises(error, match=message):
        run(context, random_scores(context, level), level, **chosen)
