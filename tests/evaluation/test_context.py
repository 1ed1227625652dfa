"""What the cells of one task share: examples kept and counted, and replacements that a cache does not change."""

from __future__ import annotations

import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import TaskError
from attriboard.evaluation.context import Context
from attriboard.loading import load_model
from attriboard.task import tasks


@pytest.fixture(scope="module")
def context(toy: dict) -> Context:
    tasks.include(toy["task"])
    model = load_model(str(toy["model"]), batch_size=4)
    return Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)


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
    before = context.model.cost.flops
    again = context.measure(level, "zero", masks)
    once = context.model.cost.flops - before
    assert torch.equal(again, first)
    doubled = context.measure(level, "zero", masks.repeat(2, 1))
    assert context.model.cost.flops - before == 2 * once
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
