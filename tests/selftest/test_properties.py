"""The self-test of every registered method, and that each of its properties refuses a method that lacks it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS
from attriboard.errors import AttriboardError, ConfigurationError, UnknownNameError
from attriboard.interventions import Intervention
from attriboard.method import Method, methods
from attriboard.scores import Scores
from attriboard.selftest import PROPERTIES, Finding, examine, parametrize_with_properties
from attriboard.selftest.bench import FOILS, tiny_model
from attriboard.selftest.findings import judge
from attriboard.selftest.properties import check_names
from attriboard.selftest.reference import Reference, metric
from attriboard.selftest.tiny import hooked, linear_gpt2, tiny_examples


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_the_properties_that_its_definition_implies(name: str) -> None:
    findings = examine(methods.get(name))
    assert [f for f in findings if f.status != "holds"] == []
    assert len(findings) > sum(one.universal for one in PROPERTIES.values()), "it declares none"


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_whether_the_answer_plays_a_part(name: str) -> None:
    assert len({"uses_answer", "ignores_answer"} & set(methods.get(name).properties)) == 1


# --- each property can fail -------------------------------------------------------------------------------------------


def changed(base: str, change: Callable[..., Tensor] = lambda x, *_: x, **attributes: Any) -> type[Method]:
    """A registered method whose scores go through ``change`` (scores, batch or examples, level)."""
    parent: Any = methods.get(base)

    class Broken(parent):
        name = "broken"

        def score_batch(self, model: Any, batch: Any, level: Any) -> Tensor:
            return change(super().score_batch(model, batch, level), batch, level)

        def attribute(self, model: Any, examples: Any, level: Any) -> Scores:
            found = super().attribute(model, examples, level)
            if type(self).score_batch is Method.score_batch:
                found = Scores(change(found.values, examples, level), found.level, found.names)
            return found

    if parent.score_batch is Method.score_batch:
        Broken.score_batch = Method.score_batch  # type: ignore[method-assign]
    for key, value in attributes.items():
        setattr(Broken, key, value)
    return Broken


def with_nan(x: Tensor, *_: Any) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] = torch.nan
    return x


def ffn_halved(x: Tensor, batch: Any, level: Any) -> Tensor:
    x = x.clone()
    if level.name == "nodes":
        x[..., -1] /= 2
    return x


def tokens_halved(x: Tensor, batch: Any, level: Any) -> Tensor:
    return x / 2 if level.inputs else x


def one_below_zero(x: Tensor, *_: Any) -> Tensor:
    """The sum stays."""
    x = x.clone()
    x[:, 0], x[:, 1] = x[:, 0] - 2, x[:, 1] + 2
    return x


def subset_first(x: Tensor, examples: Any, level: Any) -> Tensor:
    return x * (2 if examples[0].example.subset == "a" else 1)


def first_ahead(x: Tensor, *_: Any) -> Tensor:
    x = x.clone()
    x[..., 0] += 0.5
    return x


@dataclass
class Unchecked(methods.get("weight_norm")):  # type: ignore[misc]
    """Has an option that nobody checks."""

    name = "broken"
    strength: float = 1.0


@dataclass
class NoPath(methods.get("attribution_patching")):  # type: ignore[misc]
    """Calls itself a path method and takes the gradient of the clean prompt alone."""

    name = "broken"
    steps: int = 5


@dataclass
class NoConvergence(methods.get("integrated_gradients")):  # type: ignore[misc]
    """Takes one step, whatever it is told."""

    name = "broken"

    def score_batch(self, model: Any, batch: Any, level: Any) -> Tensor:
        return methods.make("integrated_gradients", {"steps": 1}).score_batch(model, batch, level)


class LeavesAHook(methods.get("weight_norm")):  # type: ignore[misc]
    name = "broken"

    def attribute(self, model: Any, examples: Any, level: Any) -> Scores:
        model.blocks[0].register_forward_hook(lambda *_: None)
        return super().attribute(model, examples, level)


class ChangesAWeight(methods.get("weight_norm")):  # type: ignore[misc]
    name = "broken"

    def attribute(self, model: Any, examples: Any, level: Any) -> Scores:
        found = super().attribute(model, examples, level)
        model.W_out(1)[0, 0] += 1e-3
        return found


class DrawsFromTheGlobalGenerator(methods.get("weight_norm")):  # type: ignore[misc]
    name = "broken"

    def attribute(self, model: Any, examples: Any, level: Any) -> Scores:
        torch.rand(1)
        return super().attribute(model, examples, level)


class Float64(methods.get("weight_norm")):  # type: ignore[misc]
    name = "broken"

    def attribute(self, model: Any, examples: Any, level: Any) -> Scores:
        found = super().attribute(model, examples, level)
        return Scores(found.values.double(), found.level, found.names)


@dataclass
class EndOfThePath(methods.get("eap_ig")):  # type: ignore[misc]
    """On edges, takes the gradient of the clean prompt alone, whatever steps it is told."""

    name = "broken"
    levels = ("edges",)

    def score_batch(self, model: Any, batch: Any, level: Any) -> Tensor:
        return methods.make("eap").score_batch(model, batch, level)


class TheCounterfactualsEdges(methods.get("exact_edges")):  # type: ignore[misc]
    """Replaces edges of the counterfactual's run by the prompt's."""

    name = "broken"

    def intervention(self, model: Any, batch: Any, level: Any) -> Any:
        other = replace(batch.counterfactual, counterfactual=replace(batch, counterfactual=None))
        return super().intervention(model, other, level)


class NodesForEdges(methods.get("exact_edges")):  # type: ignore[misc]
    """Replaces what heads and FFNs write, and leaves the embedding as it is."""

    name = "broken"

    def intervention(self, model: Any, batch: Any, level: Any) -> Any:
        nodes = Intervention(model, batch, LEVELS["nodes"])
        size = LEVELS["nodes"].size(model)
        return lambda masks, logits: nodes(masks[:, :1].expand(-1, size), logits)


BROKEN: list[tuple[str, str, type[Method]]] = [
    ("finite_scores", "a NaN", changed("weight_norm", with_nan)),
    ("finite_scores", "wrong type", Float64),
    ("deterministic", "noise", changed("direct_logit_attribution", lambda x, *_: x + 1e-6 * torch.rand(x.shape))),
    ("any_batch_size", "divided by the batch", changed("gradient_x_activation", lambda x, b, _: x / len(b))),
    ("any_padding_side", "last column", changed("activation_norm", lambda x, b, _: x + b.tokens[:, -1, None, None])),
    ("any_neighbors", "centered in the batch", changed("activation_norm", lambda x, *_: x - x.mean(0))),
    ("any_neighbors", "depends on order", changed("wanda", lambda x, e, _: x * e[0].answer)),
    ("options_checked", "unchecked", Unchecked),
    ("model_untouched", "a hook", LeavesAHook),
    ("model_untouched", "a weight", ChangesAWeight),
    ("model_untouched", "random state", DrawsFromTheGlobalGenerator),
    ("finite_differences", "wrong sign", changed("attribution_patching", lambda x, *_: -x)),
    ("finite_differences", "halved", changed("gradient_x_activation", lambda x, *_: x / 2)),
    ("finite_differences", "layer before", changed("attribution_patching", lambda x, *_: x.roll(1, 1))),
    ("path_finite_differences", "FFN halved", changed("eap_ig", ffn_halved)),
    ("path_finite_differences", "no path", NoPath),
    ("gradient_norm", "squared", changed("gradient_saliency", lambda x, *_: x**2)),
    ("picture_finite_differences", "every position", changed("gradient_x_activation", modality="vision")),
    ("completeness", "a tenth too much", changed("integrated_gradients", lambda x, *_: 1.1 * x)),
    ("completeness", "halved", changed("shap", lambda x, *_: x / 2)),
    ("completeness", "no convergence", NoConvergence),
    ("telescoping", "a hundredth less", changed("log_prob_increase", lambda x, *_: 0.99 * x)),
    ("shares_add_up", "a hundredth less", changed("direct_logit_attribution", lambda x, *_: 0.99 * x)),
    ("sums_to_one", "twice", changed("attention_rollout", lambda x, *_: 2 * x)),
    ("parts_sum_to_one", "twice", changed("ifr", lambda x, *_: 2 * x)),
    ("parts_sum_to_one", "half at positions alone", changed("ifr", tokens_halved)),
    ("parts_sum_to_one", "negative", changed("ifr", one_below_zero)),
    ("sums_to_one", "negative", changed("mean_attention", lambda x, *_: 2 * x - x.flip(1))),
    ("adds_over_marks", "squared", changed("in_context_heads", lambda x, *_: x**2)),
    ("column_sums_to_nodes", "another source", changed("eap", lambda x, *_: x.roll(1, 1))),
    ("column_sums_to_nodes", "a hundredth too much", changed("eap_ig", lambda x, *_: 1.01 * x)),
    ("row_sums_to_input", "by size", changed("eap", lambda x, *_: x.abs())),
    ("row_sums_to_input", "another destination", changed("eap_ig", lambda x, *_: x.roll(5, 1))),
    ("all_edges_is_clean", "of the counterfactual", TheCounterfactualsEdges),
    ("no_edges_is_corrupted", "the embedding stays", NodesForEdges),
    ("finite_differences", "of edges, halved", changed("eap", lambda x, *_: x / 2)),
    ("path_finite_differences", "of edges, the clean prompt alone", EndOfThePath),
    ("exact_effect", "an estimate", changed("attribution_patching")),
    ("exact_effect", "an estimate of edges", changed("eap")),
    ("exact_on_linear_model", "of edges, by size", changed("eap", lambda x, *_: x.abs())),
    ("exact_effect", "wrong sign", changed("occlusion", lambda x, *_: -x)),
    ("exact_on_linear_model", "another direction", changed("eap_ig", lambda x, *_: x.abs())),
    ("zero_for_idle", "an offset", changed("head_ablation", lambda x, *_: x + 0.01)),
    ("zero_for_idle", "positions nobody reads", changed("mean_attention")),
    ("zero_for_dead", "weights alone", changed("weight_norm")),
    ("uses_answer", "attention alone", changed("mean_attention")),
    ("ignores_answer", "gradients", changed("gradient_saliency")),
    ("ignores_foil", "logit difference", changed("direct_logit_attribution")),
    ("ignores_weights", "weights", changed("weight_norm")),
    ("symmetric_in_subsets", "the first counts twice", changed("domain_entropy", subset_first)),
    ("scales_with_output", "squared", changed("weight_norm", lambda x, *_: x**2)),
    ("ignores_output_scale", "norms", changed("weight_norm")),
    ("standard_normal", "shifted", changed("random", lambda x, *_: x + 0.1)),
    ("orders_layers", "the first component ahead", changed("first_layers", first_ahead)),
    ("orders_layers", "down and up", changed("first_layers", lambda x, *_: (x - 2) ** 2)),
    ("permutes_reference", "across layers", changed("random_same_layer", lambda x, *_: x.roll(1, 0))),
    ("mirror_symmetric", "looks at the picture", changed("color_contrast")),
]


def judged(name: str, method: type[Method]) -> Finding:
    return judge(method, PROPERTIES[name])


@pytest.mark.parametrize(("name", "method"), [pytest.param(p, m, id=f"{p}-{why}") for p, why, m in BROKEN])
def test_a_method_without_the_property_is_caught_with_its_numbers(name: str, method: type[Method]) -> None:
    finding = judged(name, method)
    assert finding.status == "fails", finding
    assert "broken" in finding.detail and "raised" not in finding.detail
    # of an option, a hook or a weight the thing is named; of scores the numbers
    assert re.search(r"\d", finding.detail) or name in ("options_checked", "model_untouched", "finite_scores")


def test_every_property_is_shown_to_fail() -> None:
    assert {name for name, _, _ in BROKEN} == set(PROPERTIES)


def test_a_failure_names_the_score_both_numbers_and_the_tolerance() -> None:
    detail = judged("finite_differences", changed("gradient_x_activation", lambda x, *_: x / 2)).detail
    found = re.fullmatch(
        r"broken at level heads on the tiny gpt2 gives (a\d\.h\d) (\S+) instead of (\S+) \(minus the slope towards the "
        r"zero replacement\): off by (\S+), allowed (\S+)\.",
        detail,
    )
    assert found, detail
    half, whole, off, allowed = map(float, found.groups()[1:])
    assert half == pytest.approx(whole / 2, rel=1e-3) and off > allowed


def test_what_a_method_raises_is_a_finding_and_not_the_end() -> None:
    def fail(*_: Any) -> Tensor:
        raise ZeroDivisionError("its own mistake")

    findings = examine(changed("weight_norm", fail, properties=("zero_for_idle",)))
    assert {f.status for f in findings if f.property in ("finite_scores", "zero_for_idle")} == {"fails"}
    assert any("raised ZeroDivisionError: its own mistake" in f.detail for f in findings)
    assert next(f for f in findings if f.property == "options_checked").status == "holds"


def test_what_cannot_be_tested_says_why() -> None:
    lonely = changed("in_context_heads", needs=frozenset({"forward"}))
    lonely.check_examples = lambda self, examples: methods.make("lape").check_examples(examples[:1])  # type: ignore[method-assign]
    finding = judged("uses_answer", lonely)
    assert finding.status == "not tested" and "at least 2" in finding.detail


def test_a_declared_property_that_speaks_of_other_levels_fails() -> None:
    finding = judged("mirror_symmetric", methods.get("weight_norm"))
    assert finding.status == "fails" and "speaks of patches" in finding.detail and "scores heads" in finding.detail


def test_the_linear_model_is_linear_and_the_others_are_not() -> None:
    for hf, linear in ((linear_gpt2(), True), (hooked(tiny_model("gpt2", False)).hf, False)):
        reference, model = Reference(hf), hooked(hf)
        for e in tiny_examples(model, foils=FOILS):
            one, other = reference.embeddings(e), reference.embeddings(e, counterfactual=True)
            values = [float(metric(reference.run(x)[0][0], e)) for x in (one, other, (one + other) / 2)]
            assert (abs(values[2] - (values[0] + values[1]) / 2) < 1e-5) == linear


# --- declaring --------------------------------------------------------------------------------------------------------


def test_a_property_that_does_not_exist_or_is_owed_anyway_is_refused_by_name() -> None:
    class Mine(Method):
        name = "mine"
        properties = ("finite_diferences",)

    class Boastful(Method):
        name = "boastful"
        properties = ("deterministic",)

    for refuse in (check_names, examine, lambda method: parametrize_with_properties([method])):
        with pytest.raises(UnknownNameError, match=r"property of method 'mine': 'finite_diferences': did you mean"):
            refuse(Mine)
        with pytest.raises(UnknownNameError, match=r"'deterministic'.*Every method has that one without declaring it"):
            refuse(Boastful)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("log_prob_increase", "published", "no"),
        ("patch_log_prob_increase", "published", 0),
        ("random", "seed", "one"),
        ("shap", "seed", True),
        ("random_same_layer", "seed", 0.5),
    ],
)
def test_options_of_a_wrong_kind_are_refused_by_name(name: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} of {name} is {value!r}, expected"):
        methods.make(name, {option: value})


def test_a_reference_that_nobody_registered_is_refused_when_the_control_is_made() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'eap_ig'"):
        methods.make("random_same_layer", {"reference": "eap-ig"})
    with pytest.raises(AttriboardError, match="reference of random_same_layer is 3"):
        methods.make("random_same_layer", {"reference": 3})
