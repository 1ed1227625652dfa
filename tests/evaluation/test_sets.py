"""Sets that several evaluations ask for: run together and once, each as if it were run alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import TaskError
from attriboard.evaluation.ablation import AblationEvaluation
from attriboard.evaluation.context import Context
from attriboard.evaluation.crossfit import Trial
from attriboard.evaluation.faithfulness import FaithfulnessEvaluation
from attriboard.evaluation.sets import ByName, Question, measure_together
from attriboard.interventions import Asked, Intervention, distinct
from attriboard.loading import load_model
from attriboard.measurements.ablation import Ablation
from attriboard.measurements.base import Measure, Measurement
from attriboard.task import tasks

HEADS = get_level("heads")


@pytest.fixture(scope="module")
def context(toy: dict) -> Context:
    tasks.include(toy["task"])
    model = load_model(str(toy["model"]), batch_size=16)
    return Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)


@pytest.fixture(scope="module")
def made(context: Context) -> tuple[Trial, ...]:
    """Both halves judged twice: by scores of two groups, of which one has ties."""
    generator = torch.Generator().manual_seed(1)
    n, half = HEADS.size(context.model), len(context.train)
    one, other = torch.randn(1, n, generator=generator), torch.randint(0, 2, (1, n), generator=generator).float()
    members = (tuple(range(half)), tuple(range(half, 2 * half)))
    return tuple(Trial(m, f"g{i}", v, i, 4) for i, (m, v) in enumerate((m, v) for m in members for v in (one, other)))


def test_distinct_sets_and_where_each_is() -> None:
    masks = torch.rand(40, 11, generator=torch.Generator().manual_seed(0)) < 0.3
    masks = torch.cat([masks, masks[[3, 3, 39, 0]], torch.zeros(2, 11, dtype=torch.bool)])
    sets, place = distinct(masks)
    assert torch.equal(sets[place], masks)
    assert len(sets) == len({tuple(mask) for mask in masks.tolist()})


def test_every_row_is_that_of_its_example_and_set_alone(context: Context) -> None:
    n, generator = HEADS.size(context.model), torch.Generator().manual_seed(2)
    asked = [
        Asked(torch.rand(size, n, generator=generator) < 0.5, members)
        for size, members in ((3, (0, 4, 2)), (1, (7,)), (2, (9, 6, 2)))
    ]
    asked.append(Asked(asked[0].masks[:2], (2, 8)))
    for one, measured in zip(asked, context.measure_all(HEADS, "counterfactual", asked)):
        assert measured.shape == (len(one.masks), len(one.members), len(Measure))
        for i, mask in enumerate(one.masks):
            for j, member in enumerate(one.members):
                batch = context.model.batch([context.both[member]])
                alone = Intervention(context.model, batch, HEADS)(mask[None])[0, 0]
                torch.testing.assert_close(measured[i, j], alone, rtol=0, atol=2e-5)


def test_together_is_what_each_gives_alone_and_costs_less(context: Context, made: tuple[Trial, ...]) -> None:
    question, options = Question(context, HEADS, made), Ablation.Options(draws=8)
    cost = context.model.cost
    AblationEvaluation().ask(question, options)  # the passes that all sets start from are kept from here on
    spent = [cost.flops]
    alone: dict[str, Measurement] = {}
    for name, evaluation in (("faithfulness", FaithfulnessEvaluation()), ("ablation", AblationEvaluation())):
        alone[name] = evaluation.ask(question, options)
        spent.append(cost.flops)
    together = measure_together(
        question,
        {"faithfulness": (FaithfulnessEvaluation(), None), "ablation": (AblationEvaluation(), options)},
    )
    spent.append(cost.flops)
    first, second, both = (b - a for a, b in itertools.pairwise(spent))
    assert max(first, second) < both < first + second
    for name, (outcome, seconds) in together.items():
        assert isinstance(outcome, Measurement) and seconds > 0
        for key, value in outcome.model_dump().items():
            expected = getattr(alone[name], key)
            if isinstance(value, list) and value and not isinstance(value[0], str):
                torch.testing.assert_close(torch.tensor(value), torch.tensor(expected), rtol=0, atol=2e-5)
            else:
                assert value == expected


def test_pairs_of_a_set_and_an_example_are_run_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    n = HEADS.size(context.model)
    masks = torch.eye(n, dtype=torch.bool)[:3]
    ran: list[tuple[int, ...]] = []
    real = Intervention.rows

    def watched(self: Intervention, masks: torch.Tensor, rows: torch.Tensor, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
        ran.append((len(masks), len(rows)))
        return real(self, masks, rows, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Intervention, "rows", watched)
    asked = [Asked(masks, (0, 1)), Asked(masks[1:].repeat(2, 1), (1, 2)), Asked(masks[:1], (8,))]
    context.measure_all(HEADS, "zero", asked)
    # example 0: three sets, 1: three (two of them asked for thrice), 2: two, 8: one
    assert sum(rows for _, rows in ran) == 9 and {sets for sets, _ in ran} == {3}


def test_passes_start_where_their_own_rows_need_it(context: Context) -> None:
    """Sorted over everything that is asked, chunks run little more than their rows need."""
    model, n = context.model, HEADS.size(context.model)
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(64, n, dtype=torch.bool)
    masks[torch.arange(64), torch.randint(0, n, (64,), generator=generator)] = True
    run: list[tuple[int, list[int]]] = []
    real = type(model).run

    def watched(self, batch, *args, start=None, needed=None, **kwargs):  # type: ignore[no-untyped-def]
        if needed is not None:
            run.append((start[0], needed))
        return real(self, batch, *args, start=start, needed=needed, **kwargs)

    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(type(model), "run", watched)
        context.measure_all(HEADS, "zero", [Asked(masks[i : i + 4], (0, 1)) for i in range(0, 64, 4)])
    firsts = [at for at, _ in run]
    for at, needed in run:
        assert at == min(needed) and needed == sorted(needed)
    assert len(set(firsts)) > 1


def test_what_fails_in_one_costs_no_other(context: Context, made: tuple[Trial, ...]) -> None:
    class NoSets(FaithfulnessEvaluation):
        def sets(self, question: Question, options: object) -> list[ByName]:
            raise TaskError("no sets")

    class NotMade(AblationEvaluation):
        def made(self, question: Question, measured: Sequence[ByName]) -> Ablation:
            raise TaskError("not made")

    options = Ablation.Options(draws=1)
    found = measure_together(
        Question(context, HEADS, made),
        {"a": (NoSets(), None), "b": (AblationEvaluation(), options), "c": (NotMade(), options)},
    )
    assert list(found) == ["a", "b", "c"]
    assert isinstance(found["b"][0], Ablation)
    assert [str(found[name][0]) for name in "ac"] == ["no sets", "not made"]
    with pytest.raises(TaskError, match="no sets"):
        NoSets().ask(Question(context, HEADS, made))


def test_where_the_passes_fail_all_say_so(context: Context, made: tuple[Trial, ...]) -> None:
    question = Question(context, HEADS, made, "nothing of the kind")  # type: ignore[arg-type]
    found = measure_together(question, {"ablation": (AblationEvaluation(), Ablation.Options(draws=1))})
    assert "nothing of the kind" in str(found["ablation"][0])
