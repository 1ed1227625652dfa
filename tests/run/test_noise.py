"""The noise floor: rounding is found where there is nothing else, and little is lost where there is something."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS, get_level
from attriboard.evaluation import localization
from attriboard.evaluation.context import Context
from attriboard.loading import load_model
from attriboard.method import Method, methods
from attriboard.model import Batch, EncodedExample, Model
from attriboard.models.rounding import BLOCK, stochastic
from attriboard.run.noise import EXAMPLES, REPEATS, TIMES, Noise, noise, settle
from attriboard.scores import Scores
from attriboard.task import tasks
from tests.bench.models import EXAMPLES as ROWS
from tests.bench.models import fresh, hooked, in_double

EPS = torch.finfo(torch.float32).eps
TOKENS = get_level("tokens")


# --- stochastic arithmetic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_result_moves_by_the_last_digit_up_as_often_as_down(dtype: torch.dtype) -> None:
    x = torch.full((40_000,), 1.5, dtype=dtype)
    with stochastic(0):
        y = x + 0
    off = (y - 1.5).double() / torch.finfo(dtype).eps
    assert set(off.abs().tolist()) <= {1.0, 2.0}
    assert abs(float((off > 0).double().mean()) - 0.5) < 0.01
    assert torch.equal(x, torch.full_like(x, 1.5)) and torch.equal(x + 0, x)


def test_what_only_moves_numbers_is_exact_and_nothing_overflows() -> None:
    x = torch.randn(50, 20)
    with stochastic(0):
        assert torch.equal(x.T.contiguous().T, x) and torch.equal(torch.cat([x, x])[50:], x)
        assert torch.equal(x[torch.arange(50)], x) and torch.equal(x.abs().sign(), torch.ones_like(x))
        assert bool((torch.full((1000,), torch.finfo(torch.float32).max) + 0.0).isfinite().all())


def test_seeds_differ_and_the_same_seed_repeats_itself() -> None:
    x = torch.randn(BLOCK + 7)
    drawn = []
    for seed in (0, 0, 1):
        with stochastic(seed):
            drawn.append((x * 1.0, x * 1.0))
    assert torch.equal(drawn[0][0], drawn[1][0]) and not torch.equal(drawn[0][0], drawn[2][0])
    assert not torch.equal(*drawn[0])


def test_the_way_back_and_the_inside_of_attention_are_moved() -> None:
    # a pattern that is 1 to single precision: its gradient is a difference that rounding alone makes
    query, key, value = torch.tensor([[[[30.0]]]]), torch.tensor([[[[1.0], [0.0]]]]), torch.tensor([[[[2.0], [0.0]]]])
    gradients = []
    for seed in range(8):
        q = query.clone().requires_grad_()
        with stochastic(seed):
            out = torch.nn.functional.scaled_dot_product_attention(q, key, value, scale=1.0)
            gradients.append(float(torch.autograd.grad(out.sum(), q)[0]))
    exact = 2 * 30.0 * 0 + 2 * torch.tensor(-30.0, dtype=torch.float64).exp()
    assert max(map(abs, gradients)) > 1e3 * float(exact)
    assert 0.1 * EPS < max(map(abs, gradients)) < 10 * EPS


# --- the floor --------------------------------------------------------------------------------------------------------


@dataclass
class Cancelling(Method):
    """``(b + c s) - b``, where ``b`` is a number made from the model's logits: known to the rounding of ``b`` alone."""

    name = "cancelling"
    levels = ("heads", "tokens")
    big: float = 1e4
    small: float = 0.0

    def score_batch(self, model: Model, batch: Batch, level: object) -> Tensor:
        b = self.big * (1 + model.run(batch).logits.softmax(-1)[:, 0])
        shape = batch.tokens.shape if level is TOKENS else (len(batch), model.n_layers, model.n_heads)
        b = b.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        wanted = self.small * torch.arange(b[0].numel()).view(1, *shape[1:]).expand(shape)
        return (b * 3 + wanted) - b * 3


def test_the_floor_is_of_the_size_of_what_was_subtracted_and_falls_with_the_number_of_examples() -> None:
    model, heads = hooked("llama"), LEVELS["heads"]
    found = noise(Cancelling(), model, ROWS, heads)
    assert found.sd.shape == heads.shape(model) and found.averages and found.repeats == REPEATS
    largest = 3e4 * (1 + 1.0)
    assert float(found.sd.min()) > 0.1 * EPS * 3e4 and float(found.sd.max()) < 3 * EPS * largest
    for n in (1, 4, 100):
        assert torch.equal(found.floor(n), TIMES * found.sd / n**0.5)
    tenfold = noise(Cancelling(big=1e5), model, ROWS, heads)
    assert float(tenfold.sd.mean() / found.sd.mean()) == pytest.approx(10, rel=0.5)


@pytest.mark.parametrize("small", [0.0, 0.05])
def test_what_is_rounding_is_set_to_zero_and_what_is_more_stays_as_it_was(small: float) -> None:
    model, heads = hooked("llama"), LEVELS["heads"]
    method = Cancelling(small=small)
    given = method.attribute(model, ROWS, heads)
    found = settle(given, noise(method, model, ROWS, heads), len(ROWS))
    assert isinstance(found.scores, Scores)
    own = small * torch.arange(given.values.numel()).view(given.values.shape)
    assert torch.equal(found.scores.values != 0, own > 0)
    kept = found.scores.values != 0
    assert torch.equal(found.scores.values[kept], given.values[kept]) and found.scores.names == given.names
    assert found.share == int(((found.scores.values == 0) & (given.values != 0)).sum()) / given.values.numel()


def test_at_inputs_there_is_one_floor_from_the_positions_that_are_within_their_own() -> None:
    model, method = hooked("llama"), Cancelling(small=0.5)
    each = method.each(model, ROWS, TOKENS)
    found = noise(method, model, ROWS, TOKENS)
    assert found.sd.shape == () and 0.1 * EPS * 3e4 < float(found.sd) < 10 * EPS * 3e4
    done = settle(each, noise(method, model, ROWS, TOKENS))
    assert isinstance(done.scores, list)
    for before, after in zip(each, done.scores, strict=True):
        assert torch.equal(after, torch.where(before.abs() <= TIMES * found.sd, 0.0, before))


def test_methods_that_run_no_pass_random_ones_and_those_that_need_more_examples_have_no_floor() -> None:
    model, heads, given = hooked("llama"), LEVELS["heads"], torch.full((3, 4), 1e-30)
    for name in ("random", "random_same_layer", "first_layers", "last_layers", "weight_norm"):
        found = noise(methods.make(name), model, ROWS, heads)
        assert (found.repeats, float(found.sd.abs().max())) == (0, 0.0)
        scores = Scores(given, "heads", [])
        assert settle(scores, found, 4).scores.values.equal(given) and settle(scores, found, 4).share == 0  # type: ignore[union-attr]
    assert noise(methods.make("lape"), model, ROWS[:2], LEVELS["neurons"]).repeats == 0


def test_a_method_that_scores_all_together_has_the_noise_of_its_scores() -> None:
    found = noise(methods.make("cna", {"candidates": 4}), hooked("llama"), ROWS, LEVELS["neurons"])
    assert not found.averages and torch.equal(found.floor(9), found.floor(1)) and float(found.sd.max()) > 0


def test_the_floor_costs_the_method_nothing_and_leaves_the_model_as_it_was() -> None:
    model, heads, method = hooked("llama"), LEVELS["heads"], methods.make("attribution_patching")
    before, cost = method.attribute(model, ROWS, heads).values, model.cost.flops
    noise(method, model, ROWS, heads)
    assert model.cost.flops == cost > 0
    assert torch.equal(method.attribute(model, ROWS, heads).values, before)


@pytest.mark.parametrize(("name", "level"), [("attribution_patching", "heads"), ("activation_patching", "neurons")])
def test_errors_against_double_precision_are_within_the_floor_and_what_is_lost_is_rounding(
    name: str, level: str
) -> None:
    model, double, at = hooked("llama"), Model(in_double(fresh("llama"))), LEVELS[level]
    model = Model(copy.deepcopy(fresh("llama")))
    given = methods.make(name).attribute(model, ROWS, at)
    exact = methods.make(name).attribute(double, ROWS, at).values
    found = noise(methods.make(name), model, ROWS, at)
    floor = found.floor(len(ROWS))
    error = (given.values.double() - exact.double()).abs()
    assert float((error <= floor).double().mean()) > 0.9
    assert float(floor.median()) < 1e-4 * float(exact.abs().max())
    done = settle(given, found, len(ROWS))
    assert isinstance(done.scores, Scores)
    lost = done.scores.values == 0
    assert bool((exact.abs()[lost] <= 2 * floor[lost]).all())


# --- the case that it is for ------------------------------------------------------------------------------------------


@cache
def planted() -> Context:
    model = load_model("planted-copy", batch_size=64)
    return Context(model, tasks.make("planted_copy"), 0, 30, 8, 24, 8)


def _insertion(context: Context, scores: Sequence[Tensor]) -> float:
    found = localization.evaluate(context, scores, TOKENS, "counterfactual", [0])  # type: ignore[arg-type]
    return float(found.statistics()["insertion_auc"](torch.arange(found.n).numpy()))


def test_where_the_true_gradient_is_nothing_the_board_does_not_depend_on_how_it_is_rounded() -> None:
    context, method = planted(), methods.make("gradient_saliency")
    single, examples = context.model, context.test
    double = Model(in_double(copy.deepcopy(single.hf)), single.tokenizer, "double", truth=single.truth)

    def scored(model: Model, chosen: Sequence[EncodedExample]) -> list[Tensor]:
        return method.each(model, chosen, TOKENS)

    with stochastic(5):
        otherwise = scored(single, examples)
    variants = [scored(single, examples), scored(double, examples), otherwise]
    floor = noise(method, single, examples, TOKENS)
    after = [settle(scores, floor).scores for scores in variants]
    lost = [torch.cat([s.flatten() for s in scores]) for scores in variants]
    lost = [scores[lost[1] <= float(floor.floor())] for scores in lost]
    assert float(((lost[2] - lost[1]).abs() / lost[1]).max()) > 1  # of these scores nothing is certain
    for scores in after[1:]:
        for one, other in zip(after[0], scores, strict=True):  # type: ignore[call-overload]
            assert torch.equal(one != 0, other != 0)
            assert torch.allclose(one, other, rtol=1e-5)
    values = [_insertion(context, scores) for scores in after]  # type: ignore[arg-type]
    assert max(values) - min(values) < 1e-4
    assert EXAMPLES == 2 and isinstance(floor, Noise)
