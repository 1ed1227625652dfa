"""What the cells of one task share: examples kept and counted, and replacements that a cache does not change."""

from __future__ import annotations

import itertools

import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import TaskError
from attriboard.evaluation.context import Context, _check_subset, _spread
from attriboard.loading import load_model
from attriboard.model import EncodedExample
from attriboard.task import Example, Task, tasks
from tests.bench.toy import WORDS


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
        assert kept.seen == 12 and kept.kept == min(6, kept.passing)
        totals = [sum(counts) for counts in zip(*kept.by_subset.values())]
        assert totals == [kept.passing, kept.correct, kept.seen]
        for example in context.examples[split]:
            batch = model.batch([example])
            assert int(model.run(batch).logits.argmax()) == example.answer


def test_too_few_kept_examples_are_an_error(toy: dict) -> None:
    tasks.include(toy["task"])
    with pytest.raises(TaskError, match="answers only 0 of 12 train examples of task 'hopeless'; at least 4"):
        Context(load_model(str(toy["model"])), tasks.make("hopeless"), 0, 12, 12, 6, 4)


class Turned(Task):
    """Asks for the last word; the counterfactual of every other example ends in the answer again."""

    name = "turned"
    description = "Repeat the last word."
    all_subsets = ("only",)

    def candidates(self, subset, rng):  # type: ignore[no-untyped-def]
        for i in itertools.count():
            *start, answer, foil = rng.sample(WORDS, 5)
            last = foil if i % self.every else answer  # type: ignore[attr-defined]
            first = rng.choice(WORDS)
            prompt, other = " ".join([*start, answer]), " ".join([first, *start[1:], last])
            yield Example(prompt, answer, foil, other, item=prompt, subset=subset)


def _turned(toy: dict, every: int, keep: str) -> Context:
    task = Turned()
    task.every = every  # type: ignore[attr-defined]
    return Context(load_model(str(toy["model"]), batch_size=4), task, 0, 24, 24, 8, 4, keep=keep)


def test_an_example_is_kept_only_if_its_counterfactual_is_answered_by_the_foil(toy: dict) -> None:
    both, answer = _turned(toy, 3, "both"), _turned(toy, 3, "answer")
    for split in ("train", "test"):
        kept, before = both.kept[split], answer.kept[split]
        assert kept.correct == before.correct == before.passing
        assert 0 < kept.passing < kept.correct and kept.share == kept.passing / 24
        for encoded in both.examples[split]:
            assert encoded.example.counterfactual is not None and encoded.example.foil is not None
            assert encoded.example.counterfactual.endswith(encoded.example.foil)
    ends = [e.example.counterfactual.endswith(e.example.answer) for e in answer.both]  # type: ignore[union-attr]
    assert any(ends)


def test_a_subset_whose_counterfactuals_rarely_turn_is_refused_with_the_figures(toy: dict) -> None:
    with pytest.raises(TaskError, match=r"'turned' is no task for .*: of 48 examples it answers \d+, .* of 0"):
        _turned(toy, 1, "both")
    assert _turned(toy, 1, "answer").kept["train"].kept == 8


@pytest.mark.parametrize(
    ("passing", "right", "seen", "refused"),
    [
        (4, 10, 16, False),  # 4 or fewer of 10 at even odds: 38 %
        (1, 10, 16, True),  # 1 or fewer: 1 %
        (2, 10, 16, False),  # 2 or fewer: 5.5 %
        (16, 48, 60, True),  # 16 or fewer of 48: 1.5 %
        (30, 48, 60, False),
        (3, 3, 96, True),  # 3 or fewer of 96 where 10 % pass: 1.7 %
        (0, 0, 8, False),  # none of 8 where 10 % pass: 43 %
        (0, 0, 32, True),  # none of 32: 3 %
    ],
)
def test_a_subset_is_refused_on_evidence(context: Context, passing: int, right: int, seen: int, refused: bool) -> None:
    if refused:
        with pytest.raises(TaskError, match=f"of {seen} examples it answers {right}, .* of {passing} of these"):
            _check_subset(context.model, context.task, "short", passing, right, seen)
    else:
        _check_subset(context.model, context.task, "short", passing, right, seen)


def test_examples_of_other_items_and_frames_are_preferred() -> None:
    examples = [
        EncodedExample(Example(f"{item}{frame}", " a", item=item, frame=frame), (1,), 1, None, None)
        for item, frame in (("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "z"))
    ]
    chosen = [(e.example.item, e.example.frame) for e in _spread(examples, 3)]
    assert chosen == [("a", "x"), ("b", "y"), ("c", "z")]


def test_a_subset_of_few_items_waits_for_one_that_has_new_ones() -> None:
    """Of a subset with one item, the second example is worth less than a new item of the other subset."""
    examples = [
        EncodedExample(Example(f"{subset}{i}", " a", item=item, subset=subset), (1,), 1, None, None)
        for subset, item, i in [*(("few", "a", i) for i in range(4)), *(("many", f"b{i}", i) for i in range(4))]
    ]
    for n, subsets in ((2, "fm"), (5, "fmmmm"), (7, "fmmmmff"), (8, "fmmmmfff")):
        assert "".join(e.example.subset[0] for e in _spread(examples, n)) == subsets
