"""The frozen unembedding and the exact top against the definition written out in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard import log_prob
from attriboard.components import LEVELS
from attriboard.log_prob import Candidates, FrozenUnembedding, exact_top, last_token, level_candidates, top_candidates
from attriboard.model import Model, hook_name
from tests.bench.models import EXAMPLES, FAMILIES, FOUR, LAYERS, Literal, close, get, hooked, literal_outputs, plain_run
from tests.bench.rounding import same_order, within_rounding

WIDE = (*FAMILIES, "granite", "cohere", "olmo2")
"""With factors on what blocks and the unembedding return, and with norms behind the sub-layers only."""
UNCAPPED = tuple(f for f in WIDE if f != "gemma2")
"""Families whose logits are the unembedding itself, not a soft-capped function of it."""


def target_of(examples: Any) -> Tensor:
    return torch.tensor([e.answer for e in examples])


def frozen(model: Model, published: bool = False) -> tuple[FrozenUnembedding, dict[str, Tensor], Tensor]:
    """``U`` for the examples, their last-token activations by site, and their last residuals."""
    sites = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "post", "z")
    found, last = last_token(model, model.batch(EXAMPLES), sites)
    return FrozenUnembedding(model, last, published), found, last


# --- U and I ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("family", WIDE)
def test_logits_and_log_prob_equal_the_definition_at_any_vector(family: str, published: bool) -> None:
    model, plain = hooked(family), plain_run(family)
    unembedding, found, last = frozen(model, published=published)
    z = found["resid_pre"]  # [B, L, d_model]
    logits, log_probs = unembedding.logits(z), unembedding.log_prob(z, target_of(EXAMPLES))
    for b, e in enumerate(EXAMPLES):
        literal = Literal(plain, last[b], published)
        for layer in range(LAYERS):
            assert close(logits[b, layer], literal.logits(z[b, layer]).float(), 1e-5)
            assert abs(float(log_probs[b, layer] - literal.log_prob(z[b, layer], e.answer))) < 2e-5
        assert close(unembedding.row(b).logits(z[b : b + 1]), logits[b : b + 1])


@pytest.mark.parametrize("family", UNCAPPED)
def test_log_prob_of_the_last_residual_is_the_models_own(family: str) -> None:
    unembedding, _, last = frozen(hooked(family))
    own = [torch.log_softmax(plain_run(family).run(e.tokens)[0], -1)[e.answer] for e in EXAMPLES]
    assert torch.allclose(unembedding.log_prob(last, target_of(EXAMPLES)), torch.stack(own), atol=3e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "neox_parallel"])
def test_the_published_form_leaves_the_norms_bias_out(family: str) -> None:
    model = hooked(family)
    unembedding, _, last = frozen(model)
    published, _, _ = frozen(model, published=True)
    difference = unembedding.logits(last) - published.logits(last)
    norm = get(model.hf, plain_run(family).parts.norm)
    assert close(difference, (model.W_U @ norm.bias).expand_as(difference), 1e-4)


@pytest.mark.parametrize("family", WIDE)
def test_increases_of_the_sub_layers_telescope(family: str) -> None:
    """A1: what attention and FFN layers add sums to log p at the end minus log p at the embedding."""
    unembedding, found, last = frozen(hooked(family))
    target = target_of(EXAMPLES)
    attention = unembedding.increase(found["resid_pre"], found["attn_out"], target)
    ffn = unembedding.increase(found["resid_mid"], found["mlp_out"], target)
    whole = unembedding.log_prob(last, target) - unembedding.log_prob(found["resid_pre"][:, 0], target)
    assert torch.allclose((attention + ffn).sum(1), whole, atol=1e-4)
    assert float(attention.abs().min()) > 1e-4


@pytest.mark.parametrize("family", FOUR)
def test_the_tangent_is_the_gradient_of_log_prob(family: str) -> None:
    unembedding, found, last = frozen(hooked(family))
    for b, e in enumerate(EXAMPLES):
        literal = Literal(plain_run(family), last[b])
        for layer in range(LAYERS):
            z = found["resid_mid"][b, layer].double().requires_grad_()
            with torch.enable_grad():
                (expected,) = torch.autograd.grad(literal.log_prob(z, e.answer), z)
            mine = unembedding.tangent(found["resid_mid"], target_of(EXAMPLES))[b, layer]
            assert close(mine, expected.float(), 1e-4)


@pytest.mark.parametrize("family", FOUR)
def test_pulling_back_a_weighting_of_the_vocabulary_is_the_transpose_of_the_logits(family: str) -> None:
    unembedding, found, _ = frozen(hooked(family))
    weights = torch.randn(len(EXAMPLES), 97)
    z = found["resid_mid"][:, 1]
    forward = (weights * (unembedding.logits(z) - unembedding.bias)).sum(-1)
    assert torch.allclose((unembedding.pull_back(weights) * z).sum(-1), forward, rtol=1e-4, atol=1e-3)


def test_log_prob_stays_finite_where_the_probability_underflows() -> None:
    unembedding, found, _ = frozen(hooked("llama"))
    z = found["resid_pre"][:, 0] * 1e4
    assert torch.isfinite(unembedding.log_prob(z, target_of(EXAMPLES))).all()
    assert float(unembedding.log_prob(z, target_of(EXAMPLES)).min()) < -200


# --- candidates -------------------------------------------------------------------------------------------------------


def literal_increases(family: str, level: str, found: dict[str, Tensor], last: Tensor, b: int) -> Tensor:
    literal = Literal(plain_run(family), last[b])
    site, base = ("post", "resid_mid") if level == "neurons" else ("z", "resid_pre")
    increases = []
    for layer in range(LAYERS):
        outputs = literal_outputs(plain_run(family), level, found[site][b, layer], layer)
        increases += [literal.increase(out, found[base][b, layer], EXAMPLES[b].answer) for out in outputs]
    return torch.stack(increases)


def candidates_of(model: Model, level: str, found: dict[str, Tensor]) -> Candidates:
    site, base = ("post", "resid_mid") if level == "neurons" else ("z", "resid_pre")
    return level_candidates(model, LEVELS[level], found[base], found[site])


@pytest.mark.parametrize("cells", [97, 48_000_000])
@pytest.mark.parametrize("level", ["neurons", "attn_neurons"])
@pytest.mark.parametrize("family", [*FOUR, "gemma3", "opt"])
def test_exact_increases_equal_the_definition_however_they_are_split(
    family: str, level: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_prob, "_MAX_CELLS", cells)
    model = hooked(family)
    unembedding, found, last = frozen(model)
    order = torch.randperm(LEVELS[level].size(model))[:60]
    mine = candidates_of(model, level, found).increases(unembedding, target_of(EXAMPLES), order)
    for b in range(2):
        expected = literal_increases(family, level, found, last, b)[order]
        assert within_rounding(mine[b].double(), expected, unembedding.row(b).logits(last[b : b + 1]), terms=2)


@pytest.mark.parametrize("level", ["neurons", "attn_neurons"])
@pytest.mark.parametrize("family", WIDE)
def test_the_tangent_bounds_the_increase_of_every_component(family: str, level: str) -> None:
    model = hooked(family)
    unembedding, found, last = frozen(model)
    bounds = candidates_of(model, level, found).bounds(unembedding, target_of(EXAMPLES))
    for b in (0, 2):
        truth = literal_increases(family, level, found, last, b)
        assert float((bounds[b].double() - truth).min()) > -1e-5
        assert float((bounds[b].double() - truth).max()) > 1e-4, "somewhere the bound is not the truth itself"


@pytest.mark.parametrize("k", [1, 5, 40, 1000])
@pytest.mark.parametrize("level", ["neurons", "attn_neurons"])
@pytest.mark.parametrize("family", FOUR)
def test_the_exact_top_is_the_top_of_evaluating_everything(family: str, level: str, k: int) -> None:
    model = hooked(family)
    unembedding, found, last = frozen(model)
    values, exact = exact_top(candidates_of(model, level, found), unembedding, target_of(EXAMPLES), k, chunk=8)
    truth = torch.stack([literal_increases(family, level, found, last, b) for b in range(len(EXAMPLES))]).mean(0)
    # an increase is the difference of two log-probabilities, and as uncertain as they are
    logits, best = unembedding.logits(last), values.argsort(descending=True)[:k]
    assert same_order(best.tolist(), truth, logits, terms=2)
    assert bool(exact[best].all())
    assert within_rounding(values[exact], truth[exact], logits, terms=2)
    assert float((values - truth).min()) > -1e-5, "the rest carries an over-estimate"
    if k == 1:
        assert int(exact.sum()) < len(truth) // 2, "and is not evaluated"


def test_the_exact_top_is_exact_even_where_the_bounds_mislead() -> None:
    """Bounds in the reverse order of the truth: everything has to be evaluated, and is."""

    class Misleading(Candidates):
        def bounds(self, unembedding: FrozenUnembedding, target: Tensor) -> Tensor:
            return 10 - torch.arange(100.0).expand(2, 100) / 100

        def increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
            return index.float().expand(2, -1) / 100

    zero = torch.zeros(0)
    values, exact = exact_top(Misleading(zero, [], lambda g: zero), None, zero, 3, chunk=4)  # type: ignore[arg-type]
    assert values.argsort(descending=True)[:3].tolist() == [99, 98, 97]
    assert bool(exact.all())


def test_last_token_activations_are_those_of_the_last_real_token() -> None:
    for padding_side in ("left", "right"):
        model = hooked("gpt2", padding_side=padding_side)
        found, last = last_token(model, model.batch(EXAMPLES), ("post", "z"))
        for b, e in enumerate(EXAMPLES):
            sites = [("post", 0), ("z", 2), ("resid_post", 2)]
            _, seen = plain_run("gpt2").run(e.tokens, read=sites)
            assert close(found["post"][b, 0], seen["post", 0][-1])
            assert close(found["z"][b, 2], seen["z", 2][-1])
            assert close(last[b], seen["resid_post", 2][-1])
    edited, _ = last_token(model, model.batch(EXAMPLES), ("post",), {hook_name("z", 0): torch.zeros_like})
    assert not close(edited["post"], found["post"], 1e-3)


class Tied(Candidates):
    """Bounds and exact values as given, the same in both of two examples; counts what is evaluated."""

    def __init__(self, bounds: Tensor, values: Tensor, n_bases: int = 1) -> None:
        super().__init__(torch.zeros(2, n_bases, 1), [torch.zeros(len(bounds) // n_bases, 1)] * n_bases, lambda g: zero)
        self.given, self.values, self.calls = bounds, values, []  # type: ignore[var-annotated]

    def _bounds(self, unembedding: FrozenUnembedding, target: Tensor) -> Iterator[Tensor]:
        yield from self.given.expand(2, -1).chunk(self.base.shape[1], dim=1)

    def increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
        self.calls.append(index.tolist())
        return self.values[index].expand(2, -1)


zero = torch.zeros(0)


def adversarial() -> dict[str, tuple[Tensor, Tensor]]:
    """Bounds and truths of 400 candidates, of which many tie at the border of the top ten, by name."""
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(400, generator=random)
    truth[100:] = 0.5
    steps = (truth * 8).floor() / 8
    reversed_bounds = 2 - truth
    return {
        "all the same": (torch.ones(400), torch.ones(400)),
        "300 the same, and tight": (truth, truth),
        "eight steps behind one bound": (torch.ones(400), steps),
        "eight steps, and tight": (steps, steps),
        "the worst bounds first": (reversed_bounds, truth.minimum(reversed_bounds)),
        "apart by less than rounding": (1 + truth * 1e-7, 1 + truth * 1e-7),
        "negative": (-truth, -truth - 0.25),
    }


@pytest.mark.parametrize("k", [1, 10, 100, 399, 400])
@pytest.mark.parametrize("name", adversarial())
def test_ties_at_the_border_never_cost_a_candidate_its_place(name: str, k: int) -> None:
    bounds, truth = adversarial()[name]
    best = truth.sort(descending=True).values[:k]
    one = Tied(bounds, truth)
    values, exact = exact_top(one, None, zero, k, chunk=16)  # type: ignore[arg-type]
    assert torch.equal(values.sort(descending=True).values[:k], best.double())
    assert bool(exact[values.argsort(descending=True)[:k]].all())
    border = best[-1] - 1e-5
    assert bool(exact[bounds >= border].all()), "what is left out has a bound below the border"
    seen = [i for call in one.calls for i in call]
    assert len(seen) == len(set(seen)), "nothing is evaluated twice"
    for keep in (1, 3, 400):
        index, increase = top_candidates(Tied(bounds, truth, 4), None, zero, k, keep=keep)  # type: ignore[arg-type]
        assert torch.equal(increase, best.double())
        assert torch.equal(truth[index].double(), increase)
        assert len(index.unique()) == k


def test_what_is_evaluated_does_not_depend_on_how_many_are_evaluated_at_a_time() -> None:
    """The candidates that count as exact are those of asking after every step, one step at a time."""
    bounds = torch.linspace(2, 1, 400)
    truth = bounds - torch.rand(400, generator=torch.Generator().manual_seed(1)) * 0.3
    for k, chunk in ((10, 16), (40, 128), (100, 16)):
        _, exact = exact_top(Tied(bounds, truth), None, zero, k, chunk)  # type: ignore[arg-type]
        done = min(k, chunk)
        while len(truth[:done]) < k or bounds[done] + 2e-5 >= truth[:done].sort(descending=True).values[k - 1]:
            done += min(chunk, max(8, k // 8))
        assert int(exact.sum()) == done < 400
        assert bool(exact[:done].all())


def test_the_device_is_waited_for_a_few_times_and_not_once_per_base() -> None:
    bounds = torch.linspace(2, 1, 4000)
    truth = bounds - torch.rand(4000, generator=torch.Generator().manual_seed(1)) * 0.3
    one = Tied(bounds, truth)
    _, exact = exact_top(one, None, zero, 100)  # type: ignore[arg-type]
    assert int(exact.sum()) > 500
    assert len(one.calls) < 12
    assert sum(map(len, one.calls)) < 2 * int(exact.sum())
