"""Products of float32 rows with weights of fewer digits: all digits of float32, whichever way they are taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS
from attriboard.method import methods
from attriboard.model import Model
from attriboard.models import products as module
from attriboard.models.products import factor, parts, product, products
from tests.bench.models import EXAMPLES, close, fresh


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Lets bfloat16 weights be multiplied in parts here too; the shapes of the products that were taken."""
    taken: list[tuple[int, ...]] = []

    def sums(x: Tensor, weight: Tensor) -> Tensor:
        assert x.dtype == weight.dtype == torch.bfloat16
        taken.append((*x.shape, weight.shape[1]))
        return x.float() @ weight.float()

    monkeypatch.setattr(module, "_takes_parts", lambda weight: weight.dtype == torch.bfloat16)
    monkeypatch.setattr(module, "_sums_in_float32", sums)
    return taken


def test_three_parts_are_the_number_itself() -> None:
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-20, 30)
    three = parts(x)
    assert three.shape == (4, 3, 50)
    assert three.dtype == torch.bfloat16
    assert torch.equal(three.double().sum(1), x.double())
    assert not torch.equal(three[:, :2].double().sum(1), x.double()), "two are not enough"


def test_products_in_parts_have_the_digits_of_float32(as_on_a_gpu: list[tuple[int, ...]]) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 64, generator=random)
    weights = [torch.randn(64, 7, generator=random).bfloat16() for _ in range(3)]
    truth = torch.stack([a.double() @ w.double() for a, w in zip(x, weights)])
    found = products(x, weights)
    assert as_on_a_gpu == [(15, 64, 7)] * 3
    assert float((found - truth).abs().max()) < 4 * torch.finfo(torch.float32).eps * float(truth.abs().max())
    assert torch.equal(product(x[0], weights[0]), found[0])
    assert torch.equal(product(x[0, 0], weights[0]), products(x[:1, :1], weights[:1])[0, 0])
    assert factor(weights[0]) is weights[0]


def test_elsewhere_weights_are_copied_once() -> None:
    weight = torch.randn(8, 4).bfloat16()
    assert factor(weight).dtype == torch.float32
    once = factor(weight)
    assert factor(once) is once
    x = torch.randn(2, 3, 8)
    assert torch.equal(product(x, weight), x @ weight.float())


def test_gradients_pass_through_products(as_on_a_gpu: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(8, 4).bfloat16()
    (gradient,) = torch.autograd.grad(product(x, weight).sum(), x)
    assert torch.equal(gradient, weight.float().sum(1).expand(2, -1))


@pytest.mark.parametrize(
    ("name", "level"), [("log_prob_increase", "neurons"), ("query_neurons", "neurons"), ("log_prob_increase", "heads")]
)
def test_methods_score_the_same_either_way(name: str, level: str, request: pytest.FixtureRequest) -> None:
    def scores() -> Tensor:
        model = Model(fresh("llama").bfloat16(), name="llama")
        return methods.make(name).attribute(model, EXAMPLES, LEVELS[level]).values

    by_copies = scores()
    taken = request.getfixturevalue("as_on_a_gpu")
    assert close(scores(), by_copies, 1e-3 if name == "query_neurons" else 1e-5)
    assert taken
