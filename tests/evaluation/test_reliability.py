"""Split halves against ranks counted by hand, and scores of single examples against their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from attriboard import method as method_module
from attriboard.components import Level, get_level
from attriboard.errors import SkipCell
from attriboard.evaluation.context import Context
from attriboard.evaluation.reliability import evaluate, halvings
from attriboard.method import Method, methods
from attriboard.model import Batch, EncodedExample, Model
from attriboard.scores import Scores
from attriboard.stats.intervals import clusters_of
from tests.bench.models import EXAMPLES, hooked
from tests.bench.toy import toy_context
from tests.stats.test_ranks import literal_rank_correlation

HEADS, NEURONS = get_level("heads"), get_level("neurons")


@dataclass
class Noise(Method):
    """Scores of each example drawn from the example alone."""

    name: ClassVar[str] = "noise"
    levels: ClassVar[tuple[str, ...]] = ("heads", "neurons")

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        seeds = [sum((i + 1) * token for i, token in enumerate(e.tokens)) for e in batch.examples]
        drawn = [torch.randn(level.shape(model), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(drawn)


@dataclass
class AllEqual(Noise):
    name: ClassVar[str] = "all_equal"

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        return torch.ones(len(batch), *level.shape(model))


@dataclass
class Together(Method):
    """The scores of another method, of all examples together, and no fewer than ``least``."""

    name: ClassVar[str] = "together"
    levels: ClassVar[tuple[str, ...]] = ("heads", "neurons")

    least: int = 1

    def check_examples(self, examples: Sequence[EncodedExample]) -> None:
        if len({e.answer for e in examples}) < self.least:
            raise SkipCell(f"{self.least} answers are needed.")

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_examples(examples)
        return replace(methods.make("attribution_patching").attribute(model, examples, level), each=None)


@pytest.fixture(scope="module")
def context(toy: dict[str, Path]) -> Context:
    return toy_context(toy)


def with_items(context: Context, items: Sequence[str]) -> Context:
    """The context with other base items, and as many train examples as there are."""
    other = object.__new__(Context)
    other.__dict__.update(context.__dict__)
    chosen = [replace(e, example=replace(e.example, item=item)) for e, item in zip(context.train, items)]
    other.examples = {**context.examples, "train": chosen}
    return other


def by_hand(values: Sequence[Sequence[float]]) -> Scores:
    """Neuron scores of the toy model (3 layers of 48) of one example after the other; what is not given is 0."""
    each = [torch.nn.functional.pad(torch.tensor(row), (0, 144 - len(row))).view(3, 48) for row in values]
    mean = torch.stack(each).double().mean(0).float()
    return Scores(mean, "neurons", [f"m{i // 48}.n{i % 48}" for i in range(144)], each=each)


# --- scores of single examples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attribution_patching", "activation_patching", "activation_norm"])
def test_scores_carry_those_of_each_example_and_are_their_mean(name: str) -> None:
    model, method = hooked("llama", batch_size=3), methods.make(name)
    found = method.attribute(model, EXAMPLES, HEADS)
    assert found.each is not None and len(found.each) == len(EXAMPLES)
    torch.testing.assert_close(torch.stack(found.each).double().mean(0).float(), found.values)
    for own, encoded in zip(found.each, EXAMPLES):
        alone = method.attribute(model, [encoded], HEADS).values
        torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_scores_of_single_examples_are_in_no_file_and_in_no_comparison(tmp_path: Path) -> None:
    found = methods.make("attribution_patching").attribute(hooked("llama"), EXAMPLES, HEADS)
    found.save(tmp_path / "scores.safetensors")
    with safe_open(tmp_path / "scores.safetensors", framework="pt") as file:
        assert file.keys() == ["scores"]
        assert set(file.metadata()) == {"names", "level", "details"}
    assert Scores.load(tmp_path / "scores.safetensors").each is None
    assert "each" not in repr(found)


def test_a_method_that_scores_all_examples_together_has_none() -> None:
    assert methods.make("weight_norm").attribute(hooked("llama"), EXAMPLES, HEADS).each is None


def test_scores_of_single_examples_are_dropped_above_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = hooked("llama"), methods.make("activation_norm")
    whole = method.attribute(model, EXAMPLES, HEADS)
    monkeypatch.setattr(method_module, "EACH_BYTES", 4 * len(EXAMPLES) * HEADS.size(model))
    assert method.attribute(model, EXAMPLES, HEADS).each is not None
    monkeypatch.setattr(method_module, "EACH_BYTES", 4 * len(EXAMPLES) * HEADS.size(model) - 1)
    found = method.attribute(model, EXAMPLES, HEADS)
    assert found.each is None
    assert torch.equal(found.values, whole.values)


# --- halvings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "different"), [(4, 3), (5, 10), (6, 10), (7, 35)])
def test_all_halvings_of_few_groups_are_taken_once(n: int, different: int) -> None:
    groups = [np.array([i]) for i in range(n)]
    found = halvings(groups, 100, seed=0)
    assert len({frozenset(map(frozenset, pair)) for pair in found}) == len(found) == different
    assert all(sorted(a + b) == list(range(n)) and len(a) == n // 2 for a, b in found)


@pytest.mark.parametrize("n", [11, 12])
def test_many_halvings_are_drawn_without_repetition_and_by_the_seed(n: int) -> None:
    groups = [np.array([i, n + i]) for i in range(n)]
    found = halvings(groups, 40, seed=1)
    assert len({frozenset(map(frozenset, pair)) for pair in found}) == len(found) == 40
    for a, b in found:
        assert sorted(a + b) == list(range(2 * n))
        assert {i % n for i in a}.isdisjoint({i % n for i in b}), "a group stays in one half"
    assert found == halvings(groups, 40, seed=1) != halvings(groups, 40, seed=2)


# --- the measurements -------------------------------------------------------------------------------------------------


def test_halves_are_compared_as_counted_by_hand(context: Context) -> None:
    items = ["a", "b", "b", "c", "d", "d"]
    rows = torch.randn(6, 144, generator=torch.Generator().manual_seed(5)).tolist()
    found = evaluate(with_items(context, items), Noise(), by_hand(rows), NEURONS, 100)
    assert found.base_items == items
    assert sorted(found.halves) == [[0, 1, 2], [0, 3], [0, 4, 5]]
    assert found.top == 20
    for half, r, share in zip(found.halves, found.rank_correlation, found.in_common):
        rest = [i for i in range(6) if i not in half]
        a, b = ([sum(rows[i][c] for i in part) / len(part) for c in range(144)] for part in (half, rest))
        assert r == pytest.approx(literal_rank_correlation(a, b), abs=1e-9)
        tops = [set(sorted(range(144), key=lambda c, values=values: -values[c])[:20]) for values in (a, b)]
        assert share == len(tops[0] & tops[1]) / 20
    values = found.scalars()
    mean = sum(found.rank_correlation) / 3
    assert values["reliability"][0] == pytest.approx(mean)
    assert values["reliability_stepped_up"][0] == pytest.approx(2 * mean / (1 + abs(mean)))
    assert values["reliability_top"][0] == pytest.approx(sum(found.in_common) / 3)
    low, high = values["reliability"][1:]
    assert low is not None and high is not None
    assert min(found.rank_correlation) <= low <= high <= max(found.rank_correlation)


def test_noise_has_none_and_what_is_the_same_for_all_examples_has_all(context: Context) -> None:
    model = context.model
    noise = Noise().attribute(model, context.train, NEURONS)
    found = evaluate(context, Noise(), noise, NEURONS, 50).scalars()
    assert abs(found["reliability"][0]) < 0.15
    assert found["reliability_top"][0] < 0.35  # by chance 20 of 144
    for name in ("weight_norm", "random"):
        method = methods.make(name)
        same = evaluate(context, method, method.attribute(model, context.train, NEURONS), NEURONS, 50)
        assert len(same.halves) == 1
        assert same.scalars()["reliability"] == (pytest.approx(1, abs=1e-12), None, None)
        assert same.in_common == [1.0]


def test_a_method_without_scores_of_single_examples_scores_two_halves(context: Context) -> None:
    method = Together()
    one = evaluate(context, method, method.attribute(context.model, context.train, NEURONS), NEURONS, 50)
    assert len(one.halves) == 1
    patching = methods.make("attribution_patching")
    many = evaluate(context, patching, patching.attribute(context.model, context.train, NEURONS), NEURONS, 50)
    assert len(many.halves) == 35
    at = many.halves.index(one.halves[0])
    assert one.rank_correlation[0] == pytest.approx(many.rank_correlation[at], abs=1e-6)
    assert one.in_common[0] == many.in_common[at]


def test_the_halving_of_such_a_method_is_one_it_can_score(context: Context) -> None:
    answers = [e.answer for e in context.train]
    least = max(
        min(len({answers[i] for i in part}) for part in pair) for pair in halvings(clusters_of([], 8), 50, context.seed)
    )
    method = Together(least)
    scores = method.attribute(context.model, context.train, HEADS)
    (half,) = evaluate(context, method, scores, HEADS, 50).halves
    assert len({answers[i] for i in half}) >= least
    method.least = least + 1
    with pytest.raises(SkipCell, match=f"no half of them is enough for it: {least + 1} answers are needed"):
        evaluate(context, method, scores, HEADS, 50)


def test_too_few_base_items_and_scores_without_ranks_are_gaps(context: Context) -> None:
    scores = Noise().attribute(context.model, context.train, HEADS)
    few = with_items(context, ["a", "b", "c", "c", "c", "a", "b", "b"])
    with pytest.raises(SkipCell, match="needs 4 base items, but there are 3; raise max_train"):
        evaluate(few, Noise(), scores, HEADS, 10)
    equal = AllEqual().attribute(context.model, context.train, HEADS)
    with pytest.raises(SkipCell, match="all scores of all_equal are equal on half of the examples"):
        evaluate(context, AllEqual(), equal, HEADS, 10)


@pytest.mark.parametrize("name", ["attribution_patching", "log_prob_increase"])
def test_batches_and_padding_change_nothing(toy: dict[str, Path], context: Context, name: str) -> None:
    found = []
    for other in (context, toy_context(toy, 1), toy_context(toy, 16, "right")):
        method = methods.make(name)
        scores = method.attribute(other.model, other.train, NEURONS)
        found.append(evaluate(other, method, scores, NEURONS, 20))
    for again in found[1:]:
        assert again.halves == found[0].halves
        # scores that differ by rounding may exchange the places of neighbors
        assert again.rank_correlation == pytest.approx(found[0].rank_correlation, abs=1e-3)
