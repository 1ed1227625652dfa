"""Curves against a literal computation, and intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import TaskError
from attriboard.evaluation.context import Context
from attriboard.evaluation.crossfit import trials
from attriboard.evaluation.faithfulness import FaithfulnessEvaluation
from attriboard.evaluation.sets import Question
from attriboard.interventions import component_means
from attriboard.loading import load_model
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Record
from attriboard.run.suite import Suite
from attriboard.run.worker import Worker
from attriboard.scores import Scores
from attriboard.stats.intervals import bootstrap_interval
from attriboard.task import tasks


@pytest.fixture(scope="module")
def context(toy: dict) -> Context:
    tasks.include(toy["task"])
    model = load_model(str(toy["model"]), batch_size=4)
    return Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)


def _score(context: Context, level_name: str) -> Scores:
    level = get_level(level_name)
    values = torch.randn(level.shape(context.model), generator=torch.Generator().manual_seed(3))
    return Scores(values, level_name, level.names(context.model))


def _judged(context: Context, scores: Scores, replacement: str = "counterfactual") -> Faithfulness:
    """The test half judged by these scores."""
    whole = trials(context, scores.values, None, 0, 1, ("cell",))
    measured = FaithfulnessEvaluation().ask(Question(context, get_level(scores.level), whole, replacement))  # type: ignore[arg-type]
    assert isinstance(measured, Faithfulness)
    return measured


@pytest.mark.parametrize("replacement", ["counterfactual", "mean", "zero"])
@pytest.mark.parametrize("level_name", ["heads", "neurons", "attn_neurons", "nodes"])
def test_curves_agree_with_one_plain_forward_pass_per_set_and_example(
    context: Context, level_name: str, replacement: str
) -> None:
    level, model = get_level(level_name), context.model
    scores = _score(context, level_name)
    found = _judged(context, scores, replacement)
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
        largest = sorted(range(n), key=lambda i: -abs(float(scores.values.flatten()[i])))
        assert found.signed[at][1] == pytest.approx(literal(1, set(order[k:])), abs=1e-4)
        assert found.absolute[at][1] == pytest.approx(literal(1, set(largest[k:])), abs=1e-4)
        assert found.removed[at][1] == pytest.approx(literal(1, set(order[:k])), abs=1e-4)
    assert found.signed[-1] == found.absolute[-1] == found.full
    assert found.shuffled[-1] == pytest.approx(found.full, rel=1e-5)  # a mean over shuffles, to six digits
    assert found.removed[-1] == found.empty


def test_mib_curves_rank_by_signed_and_by_absolute_score(context: Context) -> None:
    level = get_level("heads")
    values = torch.tensor([[-9.0, 1.0, 2.0, 3.0], [0.0] * 4, [0.0] * 4])
    scores = Scores(values, "heads", level.names(context.model))
    found = _judged(context, scores)
    positive = Scores(values.abs(), "heads", scores.names)
    again = _judged(context, positive)
    everyone = np.arange(found.n)
    areas = [{name: m.statistics()[name](everyone) for name in ("cpr", "cmd")} for m in (found, again)]
    # all scores above 0: one order, whose curve stays below 1 or does not
    assert areas[0]["cmd"] == pytest.approx(areas[1]["cmd"], abs=1e-5)
    assert areas[0]["cpr"] != pytest.approx(areas[1]["cpr"], abs=1e-3)
    assert found.mib_sizes[:3] == [0, 0, 0] and set(found.mib_sizes) - {0} <= set(found.sizes)


def test_nothing_to_explain_is_an_error_that_says_so(context: Context) -> None:
    class Blind(Context):
        def __init__(self, other: Context) -> None:
            self.__dict__.update(other.__dict__)

        def measure_all(self, level, replacement, asked):
            return [torch.ones(len(one.masks), len(one.members), 3) for one in asked]

    with pytest.raises(TaskError, match="does not change the metric of task 'repeat'"):
        _judged(Blind(context), _score(context, "heads"), "zero")


def test_aggregates_can_be_recomputed_from_a_stored_record(toy: dict) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    (planned,) = suite.plan(method=["attribution_patching"])
    record, _ = Worker().execute("toy", planned)
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
