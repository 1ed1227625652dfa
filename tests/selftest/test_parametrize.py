"""One pytest test for every property, in a suite of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attriboard.method import Method, methods
from attriboard.selftest import examine, parametrize_with_properties
from attriboard.selftest.bench import PropertyError, tiny_model
from attriboard.selftest.tiny import tiny_hf


@parametrize_with_properties([methods.get("weight_norm"), methods.get("center_prior")])
def test_methods_of_ones_own(method, check) -> None:
    check(method)


def cases(method: type[Method]) -> dict[str, tuple]:
    """By test id what the decorator gives the test."""
    return {str(case.id): case.values for case in parametrize_with_properties([method]).args[1]}


def test_every_property_that_is_owed_or_declared_is_one_test() -> None:
    method = methods.get("weight_norm")
    assert list(cases(method)) == [f"weight_norm-{finding.property}" for finding in examine(method)]


def test_a_property_that_does_not_hold_fails_with_the_sentence_of_the_command() -> None:
    class Shifted(methods.get("gradient_x_activation")):  # type: ignore[misc]
        name = "shifted"

        def score_batch(self, model, batch, level) -> Tensor:
            return super().score_batch(model, batch, level) / 2

    method, check = cases(Shifted)["shifted-finite_differences"]
    with pytest.raises(PropertyError) as caught:
        check(method)
    (finding,) = [one for one in examine(Shifted) if one.property == "finite_differences"]
    assert str(caught.value) == finding.detail and "instead of" in finding.detail


def test_a_property_that_cannot_be_tested_is_skipped_with_the_reason() -> None:
    class Lonely(methods.get("lape")):  # type: ignore[misc]
        name = "lonely"

        def check_examples(self, examples) -> None:
            super().check_examples(examples[:1])

    method, check = cases(Lonely)["lonely-finite_scores"]
    with pytest.raises(pytest.skip.Exception, match="at least 2"):
        check(method)


def test_what_one_method_did_to_the_models_is_not_what_the_next_is_judged_on() -> None:
    class Changes(methods.get("weight_norm")):  # type: ignore[misc]
        name = "changes"

        def attribute(self, model, examples, level):
            scores = super().attribute(model, examples, level)
            model.W_out(1)[0, 0] += 1e-3
            return scores

    method, check = cases(Changes)["changes-model_untouched"]
    with pytest.raises(PropertyError, match="changes the weight"):
        check(method)
    method, check = cases(Changes)["changes-finite_scores"]
    check(method)
    before = tiny_hf("gpt2").state_dict()
    assert any(
        not torch.equal(weight, before[name]) for name, weight in tiny_model("gpt2", False, 0).state_dict().items()
    )
    method, check = cases(methods.get("wanda"))["wanda-finite_scores"]
    check(method)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model("gpt2", False, 0).state_dict().items())
