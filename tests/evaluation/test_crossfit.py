"""Which examples are judged with which scores, and what that makes of the curves."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import SkipCell
from attriboard.evaluation import ablation
from attriboard.evaluation.ablation import AblationEvaluation
from attriboard.evaluation.context import Context
from attriboard.evaluation.crossfit import (
    RANDOM_DRAWS,
    Found,
    Trial,
    seed_of,
    trials,
)
from attriboard.evaluation.division import divided, merged
from attriboard.evaluation.faithfulness import FaithfulnessEvaluation
from attriboard.evaluation.sets import Question
from attriboard.measurements.ablation import Ablation
from attriboard.measurements.base import Measure
from attriboard.method import Method, methods
from attriboard.model import EncodedExample
from attriboard.run.scoring import of_groups, packed, unpacked
from attriboard.scores import ORDERS, ordered
from attriboard.task import SPLITS, Example
from tests.bench.toy import toy_context

HEADS = get_level("heads")


@pytest.fixture(scope="module")
def context(toy: dict[str, Path]) -> Context:
    return toy_context(toy)


def _examples(*pairs: tuple[str, str]) -> list[EncodedExample]:
    return [EncodedExample(Example("p", " a", item=item, frame=frame), (1,), 1, 2, None) for item, frame in pairs]


# --- the division -----------------------------------------------------------------------------------------------------


def test_groups_share_neither_items_nor_frames_where_the_examples_fall_apart_so() -> None:
    examples = _examples(*((f"i{b}{i}", f"f{b}{i % 2}") for b in range(4) for i in range(6)))
    groups = divided(examples, 4)
    assert sorted(itertools.chain(*groups)) == list(range(24)) and [len(group) for group in groups] == [6] * 4
    for name in ("item", "frame"):
        own = [{getattr(examples[i].example, name) for i in group} for group in groups]
        assert not any(a & b for a, b in itertools.combinations(own, 2))


def test_frames_are_kept_apart_before_items_where_both_cannot_be() -> None:
    examples = _examples(*((f"i{i % 3}", f"f{i // 3}") for i in range(24)))  # every item meets every frame
    groups = divided(examples, 4)
    frames = [{examples[i].example.frame for i in group} for group in groups]
    assert not any(a & b for a, b in itertools.combinations(frames, 2)) and [len(g) for g in groups] == [6] * 4
    alone = divided(_examples(*((f"i{i // 2}", "one frame") for i in range(24))), 4)
    items = [{i // 2 for i in group} for group in alone]
    assert not any(a & b for a, b in itertools.combinations(items, 2))


def test_no_more_groups_than_examples_and_groups_can_be_put_together() -> None:
    assert divided(_examples(("a", ""), ("b", "")), 4) == [[0], [1]]
    assert merged([[0], [1], [2], [3]], 2) == [[0, 2], [1, 3]]
    assert merged([[0], [1], [2]], 1) == [[0, 1, 2]]


# --- trials -----------------------------------------------------------------------------------------------------------


def test_every_example_is_judged_once_per_repetition_by_scores_of_the_other_half(context: Context) -> None:
    values = torch.arange(2 * 4 * 12.0).view(2, 4, 1, 3, 4)  # every group's scores are its own
    made = trials(context, torch.zeros(12), Found(values), 4, 2, ("cell",))
    n = len(context.both)
    for repetition in (made[:8], made[8:]):
        assert sorted(i for trial in repetition for i in trial.members) == list(range(n))
    met: dict[int, set[str]] = {i: set() for i in range(n)}
    for trial in made:
        halves = {SPLITS[i >= len(context.train)] for i in trial.members}
        half, _, group = trial.train.partition(" ")
        assert halves == {"test" if half == "train" else "train"}
        assert torch.equal(trial.values[0], values[SPLITS.index(half), int(group), 0].flatten())
        for i in trial.members:
            met[i].add(trial.train)
    assert all(len(groups) == 2 for groups in met.values())


def test_without_folds_the_test_half_is_judged_by_the_scores_of_the_train_half(context: Context) -> None:
    (trial,) = trials(context, torch.arange(12.0).view(3, 4), None, 0, 2, ())
    assert (
        trial.members == tuple(context.test_half) and trial.train == "" and trial.values.tolist() == [list(range(12))]
    )


def test_precomputed_scores_are_judged_on_the_test_half_alone(context: Context) -> None:
    scores = torch.arange(12.0).view(3, 4)  # which may have been found on the train half
    (trial,) = trials(context, scores, None, 4, 2, ("cell",))
    assert trial.members == tuple(context.test_half) and trial.train == ""
    assert torch.equal(trial.values, scores.view(1, 12))


def test_no_group_is_judged_by_examples_that_share_an_item(context: Context) -> None:
    items = [{e.example.item for e in half} for half in (context.train, context.test)]
    assert not items[0] & items[1]


def test_draws_differ_by_task_model_level_and_seed() -> None:
    cells = [
        ("arithmetic", "m", "heads", 0),
        ("ioi", "m", "heads", 0),
        ("ioi", "m", "nodes", 0),
        ("ioi", "m", "heads", 1),
    ]
    assert len({seed_of(*cell) for cell in cells}) == 4 and seed_of(*cells[0]) == seed_of(*cells[0])


# --- orders -----------------------------------------------------------------------------------------------------------


def test_tied_components_are_ranked_at_random_and_others_never_move() -> None:
    values = torch.tensor([0.0, 5.0, 0.0, 0.0, -1.0])
    orders = [ordered(values, seed=seed).tolist() for seed in range(600)]
    assert {(order[0], order[-1]) for order in orders} == {(1, 4)}
    second = Counter(order[1] for order in orders)
    assert set(second) == {0, 2, 3} and all(abs(count - 200) < 60 for count in second.values())  # 5 standard deviations


def test_ties_get_orders_enough_over_all_trials_and_scores_without_ties_one() -> None:
    def orders(values: list[float], share: int) -> list[list[int]]:
        trial = Trial((0,), "", torch.tensor([values]), 3, share)
        return [order.tolist() for order in trial.orders()]

    assert len(orders([1.0, 2.0, 3.0], 1)) == 1
    assert len(orders([1.0, 1.0, 3.0], 1)) == ORDERS and len(orders([1.0, 1.0, 3.0], 4)) == ORDERS // 4
    assert {tuple(order) for order in orders([0.0] * 4, 1)} != {(0, 1, 2, 3)}
    absolute = Trial((0,), "", torch.tensor([[-1.0, 1.0, 3.0]]), 3, 1)
    assert len(list(absolute.orders(absolute=True))) == ORDERS  # tied in size alone


# --- scores of groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attribution_patching", "gradient_x_activation", "weight_norm"])
def test_scores_of_a_group_are_those_of_its_examples_alone(context: Context, name: str) -> None:
    method = methods.make(name)
    scores = method.attribute(context.model, context.train, HEADS)
    found = of_groups(method, context, HEADS, scores, 4)[0]
    assert found.values.shape == (2, 4, 1, *HEADS.shape(context.model))
    for half, split in enumerate(SPLITS):
        for place, group in enumerate(context.groups(split, 4)):
            alone = method.attribute(context.model, [context.examples[split][i] for i in group], HEADS).values
            torch.testing.assert_close(found.values[half, place, 0], alone, rtol=1e-4, atol=1e-6)


@dataclass
class NeedsThree(Method):
    """Needs three examples at least."""

    levels = ("heads",)
    needs = frozenset()

    def check_examples(self, examples):  # type: ignore[no-untyped-def]
        if len(examples) < 3:
            raise SkipCell("three are needed.")

    def attribute(self, model, examples, level):  # type: ignore[no-untyped-def]
        return self.scores(torch.full(level.shape(model), float(len(examples))), model, level)


def test_a_method_that_cannot_score_few_examples_gets_larger_groups(context: Context) -> None:
    method = NeedsThree()
    found = of_groups(method, context, HEADS, method.attribute(context.model, context.train, HEADS), 4)[0]
    sizes = [[len(group) for group in merged(context.groups(half, 4), 2)] for half in SPLITS]
    assert found.groups == 2 and found.values[:, :, 0, 0, 0].tolist() == sizes


def test_a_method_that_cannot_score_the_test_half_is_refused_in_its_own_words(context: Context, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    method = NeedsThree()
    scores = method.attribute(context.model, context.train, HEADS)
    monkeypatch.setitem(context.examples, "test", context.test[:2])
    monkeypatch.setattr(context, "_groups", {})
    with pytest.raises(SkipCell, match="three are needed"):
        of_groups(method, context, HEADS, scores, 4)[0]


def test_a_control_at_random_is_at_least_sixteen_different_draws(context: Context) -> None:
    method = methods.make("random", {"seed": 5})
    scores = method.attribute(context.model, context.train, HEADS)
    found = of_groups(method, context, HEADS, scores, 4)[0]
    draws = {tuple(row.tolist()) for row in found.values.flatten(3).flatten(0, 2)}
    assert len(draws) == found.values.shape[:3].numel() >= RANDOM_DRAWS
    used = {
        tuple(row.tolist()) for trial in trials(context, scores.values, found, 4, 2, ("cell",)) for row in trial.values
    }
    assert used == draws
    other = of_groups(methods.make("random", {"seed": 6}), context, HEADS, scores, 4)[0]
    assert not draws & {tuple(row.tolist()) for row in other.values.flatten(3).flatten(0, 2)}


def test_scores_of_groups_go_through_their_file(context: Context) -> None:
    method = methods.make("attribution_patching")
    scores = method.attribute(context.model, context.train, HEADS)
    found, _ = of_groups(method, context, HEADS, scores, 2)
    again, groups = unpacked(packed(scores, HEADS, found), context, HEADS)
    assert groups is not None and torch.equal(groups.values, found.values)
    assert not isinstance(again, list) and torch.equal(again.values, scores.values)
    assert unpacked(packed(scores, HEADS), context, HEADS)[1] is None


# --- what is measured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", ["counterfactual", "mean"])
def test_curves_are_those_of_each_example_judged_alone(context: Context, replacement: str) -> None:
    method = methods.make("attribution_patching")
    scores = method.attribute(context.model, context.train, HEADS)
    made = trials(context, scores.values, of_groups(method, context, HEADS, scores, 2)[0], 2, 2, ("cell",))
    measured = FaithfulnessEvaluation().ask(Question(context, HEADS, made, replacement))  # type: ignore[arg-type]
    n = HEADS.size(context.model)
    row = 0
    for trial in made:
        values = trial.values[0]
        for member in trial.members:
            assert measured.train_groups[row] == trial.train
            assert measured.base_items[row] == context.both[member].example.item and measured.examples[row] == member
            for at, k in enumerate(measured.sizes):
                best = sorted(range(n), key=lambda i: -abs(float(values[i])))[:k]
                mask = torch.ones(1, n, dtype=torch.bool)
                mask[0, best] = False
                alone = context.measure(HEADS, replacement, mask, [member])[0, 0]  # type: ignore[arg-type]
                assert measured.absolute[at][row] == pytest.approx(
                    float(alone[Measure.METRIC]),
                    rel=1e-5,
                    abs=2e-5,  # stored to six digits
                )
                assert measured.answered[at][row] == float(alone[Measure.METRIC] > 0)
            row += 1
    assert row == measured.n == 2 * len(context.both)


def test_equal_scores_give_what_random_orders_give(context: Context) -> None:
    n = HEADS.size(context.model)
    equal = trials(context, torch.zeros(n), None, 0, 1, ("cell",))
    measured = FaithfulnessEvaluation().ask(Question(context, HEADS, equal))
    first = measured.sizes.index(1)
    masks = ~torch.eye(n, dtype=torch.bool)
    singles = context.measure(HEADS, "counterfactual", masks)[:, :, Measure.METRIC]
    low, high = singles.min(0).values, singles.max(0).values
    kept = torch.tensor(measured.signed[first])
    assert bool(((kept >= low - 1e-5) & (kept <= high + 1e-5)).all())
    by_position = singles[0]  # what the first component in row-major order alone would give
    assert not torch.allclose(kept, by_position, atol=1e-4)
    seeds = [ordered(torch.zeros(n), seed=seed_of(equal[0].seed, "ties", 0, i))[0] for i in range(ORDERS)]
    torch.testing.assert_close(kept, singles[torch.stack(seeds)].mean(0), rtol=0, atol=2e-5)


def test_ablation_draws_are_other_ones_in_every_trial_and_as_many_as_asked(context: Context, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    seeds: list[int] = []
    real = ablation.matched_draw

    def watched(top: torch.Tensor, layer_of: torch.Tensor, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return real(top, layer_of, seed)

    monkeypatch.setattr(ablation, "matched_draw", watched)
    method = methods.make("attribution_patching")
    scores = method.attribute(context.model, context.train, HEADS)
    made = trials(context, scores.values, of_groups(method, context, HEADS, scores, 2)[0], 2, 2, ("cell",))
    measured = AblationEvaluation().ask(Question(context, HEADS, made, "zero"), Ablation.Options(draws=50))
    assert len(set(seeds)) == len(seeds) >= 50 * len(measured.sizes)
    assert measured.n == 2 * len(context.both)
    seeds.clear()
    tied = trials(context, torch.zeros(HEADS.size(context.model)), None, 0, 1, ("cell",))
    measured = AblationEvaluation().ask(Question(context, HEADS, tied, "zero"), Ablation.Options(draws=2 * ORDERS + 1))
    # each of the orders has as many, so they are rounded up
    assert len(set(seeds)) == len(seeds) == 3 * ORDERS * len(measured.sizes)
