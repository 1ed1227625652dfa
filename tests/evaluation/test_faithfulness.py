"""The scores themselves: areas, test vectors, matched draws, intervals, and curves against a literal computation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import TaskError
from attriboard.evaluation import ablation, faithfulness
from attriboard.evaluation.context import Context
from attriboard.interventions import component_means
from attriboard.loading import load_model
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Planned, Record
from attriboard.run.suite import Suite
from attriboard.run.worker import Worker
from attriboard.scores import Scores
from attriboard.stats.intervals import bootstrap_interval
from attriboard.task import tasks

MIB_F = np.array(
    [
        0.023235465441,
        0.239347123232,
        0.498787047064,
        0.802994846828,
        0.881251360233,
        0.920282182087,
        0.935665904451,
        0.967238759677,
        0.978127967780,
        1.0,
    ]
)


def test_cpr_and_cmd_reproduce_the_published_test_vector() -> None:
    assert faithfulness.cpr(MIB_F) == pytest.approx(0.967818, abs=5e-7)
    assert faithfulness.cmd(MIB_F) == pytest.approx(0.031182, abs=5e-7)


def test_mib_sizes_are_floors_and_the_published_ones_for_32491_edges() -> None:
    assert faithfulness.mib_sizes(32491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert faithfulness.mib_sizes(270)[:4] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (270, [1, 3, 5, 14, 27, 54, 135, 270]),
        (46080, [46, 92, 230, 461, 922, 2304, 4608, 9216, 23040, 46080]),
        (3, [1, 2, 3]),
        (1, [1]),
    ],
)
def test_sizes_are_the_distinct_nearest_whole_numbers(n: int, expected: list[int]) -> None:
    assert faithfulness.sizes(n) == expected


def _curves(suff: list[float], need: list[float], sizes: list[int]) -> faithfulness.Faithfulness:
    flat = [[0.0]] * 10
    return faithfulness.Faithfulness(
        sizes=sizes,
        full=[1.0],
        empty=[0.0],
        sufficiency=[[x] for x in suff],
        necessity=[[x] for x in need],
        mib_sizes=[1] * 10,
        mib_signed=flat,
        mib_absolute=flat,
    )


def test_log_areas_are_one_for_a_perfect_ranking_and_weigh_each_decade_alike() -> None:
    at = np.arange(1)
    perfect = _curves([1, 1, 1], [0, 0, 0], [1, 10, 100]).statistics()
    assert float(perfect["sufficiency_log_area"](at)) == pytest.approx(1.0)
    assert float(perfect["necessity_log_area"](at)) == pytest.approx(1.0)
    half = _curves([0, 0, 1], [1, 1, 0], [1, 10, 100]).statistics()
    assert float(half["sufficiency_log_area"](at)) == pytest.approx(0.25)  # a triangle over the last of two decades
    over = _curves([2, 2, 2], [-1, -1, -1], [1, 10, 100]).statistics()
    assert float(over["sufficiency_log_area"](at)) == pytest.approx(2.0)  # never clipped
    assert float(over["necessity_log_area"](at)) == pytest.approx(2.0)


def test_f_is_a_ratio_of_averages_not_an_average_of_ratios() -> None:
    faith = _curves([0.5], [0.5], [1]).model_copy(
        update={"full": [1.0, 3.0], "empty": [0.0, 1.0], "sufficiency": [[1.0, 1.0]], "sizes": [1]}
    )
    assert float(faith.curve(faith.sufficiency, np.arange(2))[0]) == pytest.approx((1.0 - 0.5) / (2.0 - 0.5))


@pytest.fixture(scope="module")
def context(toy: dict) -> Context:
    tasks.include(toy["task"])
    model = load_model(str(toy["model"]), batch_size=4)
    return Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)


def _score(context: Context, level_name: str) -> Scores:
    level = get_level(level_name)
    values = torch.randn(level.shape(context.model), generator=torch.Generator().manual_seed(3))
    return Scores(values, level_name, level.names(context.model))


@pytest.mark.parametrize("replacement", ["counterfactual", "mean", "zero"])
@pytest.mark.parametrize("level_name", ["heads", "neurons", "attn_neurons", "nodes"])
def test_curves_agree_with_one_plain_forward_pass_per_set_and_example(
    context: Context, level_name: str, replacement: str
) -> None:
    level, model = get_level(level_name), context.model
    scores = _score(context, level_name)
    found = faithfulness.evaluate(context, scores, level, replacement)
    n, order = level.size(model), scores.values.flatten().argsort(descending=True).tolist()
    means = component_means(model, context.train, level)

    def literal(example_index: int, replaced: set[int]) -> float:
        batch = model.batch([context.test[example_index]])
        names = level.hooks(model)
        assert batch.counterfactual is not None
        other = model.run(batch.counterfactual, names)
        mask = torch.zeros(1, n, dtype=torch.bool)
        mask[0, list(replaced)] = True
        slices = level.slices(model, mask)

        def edit(name: str):
            value = {
                "counterfactual": lambda: other[name],
                "mean": lambda: means[name],
                "zero": lambda: torch.zeros(()),
            }[replacement]()
            return lambda x: torch.where(slices[name], value, x)

        logits = model.run(batch, edits={name: edit(name) for name in slices}).logits
        return float(model.metric(logits, batch))

    for i in range(len(context.test)):
        assert found.full[i] == pytest.approx(literal(i, set()), abs=1e-4)
        assert found.empty[i] == pytest.approx(literal(i, set(range(n))), abs=1e-4)
    for at in (0, len(found.sizes) // 2):
        k = found.sizes[at]
        assert found.sufficiency[at][1] == pytest.approx(literal(1, set(order[k:])), abs=1e-4)
        assert found.necessity[at][1] == pytest.approx(literal(1, set(order[:k])), abs=1e-4)
    assert found.sufficiency[-1] == found.full
    assert found.necessity[-1] == found.empty


def test_mib_curves_rank_by_signed_and_by_absolute_score(context: Context) -> None:
    level = get_level("heads")
    values = torch.tensor([[-9.0, 1.0, 2.0, 3.0], [0.0] * 4, [0.0] * 4])
    scores = Scores(values, "heads", level.names(context.model))
    found = faithfulness.evaluate(context, scores, level, "counterfactual")
    positive = Scores(values.abs(), "heads", scores.names)
    again = faithfulness.evaluate(context, positive, level, "counterfactual")
    np.testing.assert_allclose(found.mib_absolute, again.mib_signed, rtol=1e-5, atol=1e-5)
    assert not np.allclose(found.mib_signed, found.mib_absolute, rtol=1e-3, atol=1e-3)


def test_nothing_to_explain_is_an_error_that_says_so(context: Context) -> None:
    class Blind(Context):
        def __init__(self, other: Context) -> None:
            self.__dict__.update(other.__dict__)

        def measure(self, level, replacement, masks):
            return torch.ones(len(masks), 6, 3)

    with pytest.raises(TaskError, match="does not change the metric of task 'repeat'"):
        faithfulness.evaluate(Blind(context), _score(context, "heads"), get_level("heads"), "zero")


@pytest.mark.parametrize("k", [1, 5, 20])
def test_matched_draws_have_as_many_components_in_every_layer(k: int) -> None:
    layer_of = torch.arange(6).repeat_interleave(10)
    top = torch.zeros(60, dtype=torch.bool)
    top[torch.randperm(60, generator=torch.Generator().manual_seed(k))[:k]] = True
    draws = [ablation.matched_draw(top, layer_of, d) for d in range(4)]
    for draw in draws:
        assert torch.equal(torch.bincount(layer_of[draw], minlength=6), torch.bincount(layer_of[top], minlength=6))
    assert torch.equal(draws[0], ablation.matched_draw(top, layer_of, 0))
    assert any(not torch.equal(draws[0], other) for other in draws[1:])


def test_ablation_drop_is_the_gap_between_random_and_top() -> None:
    measured = ablation.Ablation(
        sizes=[1, 2],
        clean=[[np.log(0.9), 1.0]],
        top=[[[np.log(0.2), 0.0]], [[np.log(0.1), 0.0]]],
        random=[[[[np.log(0.8), 1.0]], [[np.log(0.6), 1.0]]], [[[np.log(0.6), 1.0]], [[np.log(0.4), 0.0]]]],
    )
    found = {name: float(f(np.arange(1))) for name, f in measured.statistics().items()}
    assert found["ablation_drop_p"] == pytest.approx(np.mean([0.7 - 0.2, 0.5 - 0.1]))
    assert found["ablation_drop_accuracy"] == pytest.approx(np.mean([1.0, 0.5]))


def test_measuring_does_not_depend_on_batch_size_or_on_what_is_cached(toy: dict, context: Context) -> None:
    level = get_level("neurons")
    masks = torch.rand(5, level.size(context.model), generator=torch.Generator().manual_seed(0)) < 0.5
    expected = context.measure(level, "counterfactual", masks)
    for batch_size, cache_bytes in ((1, 2**30), (4, 0), (16, 2**30)):
        model = load_model(str(toy["model"]), batch_size=batch_size)
        other = Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4, cache_bytes=cache_bytes)
        torch.testing.assert_close(other.measure(level, "counterfactual", masks), expected, rtol=1e-4, atol=1e-5)


def test_cached_tensors_stay_below_the_limit_however_many_examples(toy: dict) -> None:
    model = load_model(str(toy["model"]), batch_size=2)
    level = get_level("neurons")
    masks = torch.rand(2, level.size(model)) < 0.5
    limit = 150_000
    for n in (8, 32):
        context = Context(model, tasks.make("repeat"), 0, 8, n, n, 4, cache_bytes=limit)
        context.measure(level, "counterfactual", masks)
        assert 0 < sum(i.nbytes for i in context._interventions.values()) <= limit


def test_equal_sets_are_run_once_and_a_call_gives_the_same_bits_whatever_ran_before(context: Context) -> None:
    level = get_level("heads")
    masks = torch.rand(3, level.size(context.model), generator=torch.Generator().manual_seed(9)) < 0.5
    first = context.measure(level, "zero", masks)
    context.measure(level, "zero", ~masks)
    before = context.model.cost.total
    again = context.measure(level, "zero", masks)
    once = context.model.cost.total - before
    assert torch.equal(again, first)
    doubled = context.measure(level, "zero", masks.repeat(2, 1))
    assert context.model.cost.total - before == pytest.approx(2 * once)
    assert torch.equal(doubled, first.repeat(2, 1, 1))


def test_kept_examples_are_answered_correctly_and_counted(context: Context) -> None:
    model = context.model
    for split in ("train", "test"):
        kept = context.kept[split]
        assert kept.seen == 12 and kept.kept == min(6, kept.correct)
        assert sum(right for right, _ in kept.by_subset.values()) == kept.correct
        assert sum(seen for _, seen in kept.by_subset.values()) == kept.seen
        for example in context.examples[split]:
            batch = model.batch([example])
            assert int(model.run(batch).logits.argmax()) == example.answer


def test_too_few_kept_examples_are_an_error(toy: dict) -> None:
    tasks.include(toy["task"])
    with pytest.raises(TaskError, match="answers only 0 of 12 train examples of task 'hopeless'; at least 4"):
        Context(load_model(str(toy["model"])), tasks.make("hopeless"), 0, 12, 12, 6, 4)


def test_aggregates_can_be_recomputed_from_a_stored_record(toy: dict) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    cell = suite.plan(method=["attribution_patching"])[0]
    record = Worker().execute("toy", Planned(cell, suite.settings))[0]
    assert record.status == "ok", record.reason
    stored = Record.model_validate_json(json.dumps(record.model_dump(mode="json")))
    assert stored == record
    assert stored.measurements["faithfulness"] and stored.measurements["ablation"] and stored.measurements["speed"]
    assert aggregates(stored.measurements.values(), stored.items) == record.aggregates


def test_bootstrap_interval_is_reproducible_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 40)

    def mean(index: np.ndarray) -> np.ndarray:
        return values[index].mean(-1)

    interval = bootstrap_interval(40, mean)
    assert interval == bootstrap_interval(40, mean)
    assert interval is not None and interval[0] < values.mean() < interval[1]
    spread = interval[1] - interval[0]
    assert spread == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(40), rel=0.2)


def test_bootstrap_of_equal_values_is_that_value_and_of_one_value_nothing() -> None:
    assert bootstrap_interval(5, lambda index: np.ones(index.shape[:-1])) == (1.0, 1.0)
    assert bootstrap_interval(1, lambda index: index.mean(-1)) is None
