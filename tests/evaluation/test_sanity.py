"""Scores under noise in the weights and under other labels, against copies of the model; the weights come back."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS, Level
from attriboard.edits import edited, randomized, scale
from attriboard.errors import MethodError, ModelError, SkipCell
from attriboard.evaluation.context import Context
from attriboard.evaluation.sanity import evaluate, relabeled
from attriboard.measurements.sanity import Sanity
from attriboard.method import Method, methods
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from attriboard.stats.ranks import rank_correlation
from tests.bench.models import fresh, get, tiny_llava, tokenizer, vision_examples
from tests.bench.toy import WORDS, toy_context

HEADS, NEURONS, TOKENS = LEVELS["heads"], LEVELS["neurons"], LEVELS["tokens"]


@pytest.fixture(scope="module")
def context(toy: dict[str, Path]) -> Context:
    return toy_context(toy)


def weights_hash(hf: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def measured(context: Context, name: str, level: Level, stages: Sequence[float] = (0.25, 0.5, 1.0)) -> Sanity:
    method = methods.make(name)
    examples = context.test if level.inputs else context.train
    score = method.each if level.inputs else method.attribute
    return evaluate(context, method, score(context.model, examples, level), level, stages)


# --- noise in the weights ---------------------------------------------------------------------------------------------

NAMED_NORMS = ("norm", "ln_", "layer_norm", "layernorm")


@pytest.mark.parametrize(
    "family", ["llama", "llama_biases_tied", "qwen3", "gemma2", "gpt2", "gptj", "neox_parallel", "opt"]
)
def test_projections_become_noise_of_the_same_mean_and_spread_and_nothing_else_changes(family: str) -> None:
    model = Model(fresh(family), tokenizer(), name=family, prove=False)
    before = {name: tensor.clone() for name, tensor in model.hf.named_parameters()}
    with randomized(model, [1, 2], seed=3):
        during = {name: tensor.clone() for name, tensor in model.hf.named_parameters()}
    prefixes = [name for name, module in model.hf.named_modules() for block in model.blocks[1:] if module is block]
    assert len(prefixes) == 2
    touched = 0
    for name, old in before.items():
        new = during[name]
        within = any(name.startswith(f"{prefix}.") for prefix in prefixes)
        if not within or any(part in name for part in NAMED_NORMS):
            assert torch.equal(new, old), name
            continue
        touched += 1
        assert not torch.isclose(new, old).all(), name
        if old.dim() > 1:
            n = old.numel()
            correlation = float(torch.corrcoef(torch.stack([new.flatten(), old.flatten()]))[0, 1])
            assert abs(correlation) < 5 / n**0.5, name
            assert float(new.mean() - old.mean()) == pytest.approx(0, abs=5 * float(old.std()) / n**0.5), name
            assert float(new.std() / old.std()) == pytest.approx(1, abs=5 / (2 * n) ** 0.5), name
    assert touched >= 2 * 4
    assert weights_hash(model.hf) == weights_hash(fresh(family))


def test_every_matrix_of_a_layer_is_redrawn_and_the_noise_of_a_layer_is_its_own() -> None:
    model = Model(fresh("llama"), tokenizer(), prove=False)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    names += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

    def weights(layers: Sequence[int], seed: int) -> list[Tensor]:
        with randomized(model, layers, seed):
            return [get(block, name).weight.clone() for block in model.blocks for name in names]

    untouched = [get(block, name).weight for block in model.blocks for name in names]
    upper, all_layers, other = weights([2], 0), weights([0, 1, 2], 0), weights([0, 1, 2], 1)
    assert all(torch.equal(a, b) for a, b in zip(upper[:14], untouched))
    assert all(torch.equal(a, b) for a, b in zip(upper[14:], all_layers[14:])), "a cascade keeps what it has redrawn"
    assert not any(torch.equal(a, b) for a, b in zip(all_layers, untouched))
    assert not any(torch.equal(a, b) for a, b in zip(all_layers, other))
    # q and o have equal shapes, and so have equal matrices of two layers
    standard = [(w - w.mean()) / w.std() for w in all_layers]
    assert not torch.allclose(standard[0], standard[3], atol=0.1)
    assert not torch.allclose(standard[0], standard[7], atol=0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2", "neox_parallel"])
def test_weights_are_put_back_bit_for_bit_also_after_an_error(family: str) -> None:
    model = Model(fresh(family), tokenizer(), name=family, prove=False)
    before = weights_hash(model.hf)
    with randomized(model, range(model.n_layers), 0):
        assert weights_hash(model.hf) != before
    assert weights_hash(model.hf) == before
    with pytest.raises(ZeroDivisionError), randomized(model, [0, 2], 0):
        raise ZeroDivisionError
    assert weights_hash(model.hf) == before


def test_half_precision_is_put_back_and_stays_half_precision() -> None:
    model = Model(fresh("llama").to(torch.bfloat16), tokenizer(), prove=False)
    before = model.W_out(1).clone()
    with randomized(model, [1], 0):
        assert model.W_out(1).dtype == torch.bfloat16
        assert not torch.equal(model.W_out(1), before)
        assert float(model.W_out(1).float().std() / before.float().std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(model.W_out(1), before)


def test_a_model_is_randomized_or_edited_one_at_a_time_and_what_else_changed_is_reported() -> None:
    model = Model(fresh("llama"), tokenizer(), prove=False)
    edit = scale(model, NEURONS, torch.tensor([3]), 0.0)
    with randomized(model, [1], 0), pytest.raises(ModelError, match="being edited already"), edited(model, edit):
        pass
    with edited(model, edit), pytest.raises(ModelError, match="being edited already"), randomized(model, [1], 0):
        pass
    with pytest.raises(ModelError, match="are not what they were before"), randomized(model, [1], 0):
        model.blocks[1].mlp.up_proj.weight.data = torch.zeros(40, 32)


# --- model randomization ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attribution_patching", "weight_norm"])
@pytest.mark.parametrize("level", [HEADS, NEURONS])
def test_the_components_of_the_randomized_layers_are_compared_with_those_of_a_copy(
    context: Context, name: str, level: Level
) -> None:
    model, method = context.model, methods.make(name)
    found = measured(context, name, level, (1.0, 0.3, 0.6))
    assert (found.stages, found.layers) == ([0.3, 0.6, 1.0], [1, 2, 3])
    before = method.attribute(model, context.train, level).values
    for count, agreement in zip(found.layers, found.model):
        with randomized(model, range(3 - count, 3), context.seed):
            hf = copy.deepcopy(model.hf)
        after = method.attribute(Model(hf, model.tokenizer, batch_size=4), context.train, level).values
        a, b = before[3 - count :].flatten(), after[3 - count :].flatten()
        assert agreement.signed == [pytest.approx(rank_correlation(a, b), abs=1e-6)]
        assert agreement.absolute == [pytest.approx(rank_correlation(a.abs(), b.abs()), abs=1e-6)]


def test_what_ignores_the_model_stays_and_what_reads_its_weights_does_not(context: Context) -> None:
    values = {name: measured(context, name, NEURONS).scalars() for name in ("random", "weight_norm", "eap_ig")}
    stages = [f"model_randomisation{suffix}" for suffix in ("_25", "_50", "", "_signed")]
    for stage in stages:
        assert values["random"][stage] == (pytest.approx(1, abs=1e-12), None, None)
        assert values["weight_norm"][stage][0] < 0.5
        assert values["eap_ig"][stage][0] < 0.6


def test_the_weights_are_as_before_also_when_the_method_fails_on_noise(context: Context) -> None:
    before = weights_hash(context.model.hf)
    calls = []

    @dataclass
    class FailsOnNoise(Method):
        name: ClassVar[str] = "fails_on_noise"
        levels: ClassVar[tuple[str, ...]] = ("heads",)
        error: type[Exception] = MethodError

        def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
            calls.append(weights_hash(model.hf) == before)
            if not calls[-1]:
                raise self.error("noise is too much.")
            return methods.make("weight_norm").attribute(model, examples, level)

    method = FailsOnNoise()
    scores = method.attribute(context.model, context.train, HEADS)
    found = evaluate(context, method, scores, HEADS)
    assert calls == [True, False, True], "the labels are changed in the model as it was"
    assert found.gaps() == {"model_randomisation": "noise is too much."}
    assert set(found.scalars()) == {"label_randomisation", "label_randomisation_absolute"}
    assert weights_hash(context.model.hf) == before
    with pytest.raises(ZeroDivisionError):
        evaluate(context, FailsOnNoise(error=ZeroDivisionError), scores, HEADS)
    assert weights_hash(context.model.hf) == before


# --- label randomization ----------------------------------------------------------------------------------------------


def test_labels_are_others_of_the_task_and_all_else_stays(context: Context) -> None:
    found = relabeled(context, context.train)
    for old, new in zip(context.train, found):
        assert len({old.answer, old.foil, new.answer, new.foil}) == 4
        assert {new.example.answer, new.example.foil} <= set(WORDS)
        assert replace(new.example, answer=old.example.answer, foil=old.example.foil) == old.example
        again = context.model.encode(new.example)
        assert (
            (again.tokens, again.counterfactual) == (new.tokens, new.counterfactual) == (old.tokens, old.counterfactual)
        )
        assert (again.answer, again.foil) == (new.answer, new.foil), "names and tokens belong together"
    assert len({e.answer for e in found}) > 3
    reversed_order = relabeled(context, context.train[::-1])[::-1]
    assert [e.answer for e in reversed_order] == [e.answer for e in found], "an example's labels are its own"


def test_an_example_without_a_foil_gets_none(context: Context) -> None:
    plain = [replace(e, foil=None, example=replace(e.example, foil=None)) for e in context.train]
    for old, new in zip(plain, relabeled(context, plain)):
        assert new.foil is None and new.example.foil is None
        assert new.answer != old.answer


def test_what_does_not_look_at_the_answer_is_the_same_for_any(context: Context) -> None:
    for name in ("random", "weight_norm", "activation_norm"):
        values = measured(context, name, NEURONS, [1.0]).scalars()
        assert values["label_randomisation"] == (pytest.approx(1, abs=1e-12), None, None)
        assert values["label_randomisation_absolute"] == (pytest.approx(1, abs=1e-12), None, None)
    for name in ("attribution_patching", "gradient_x_activation", "log_prob_increase"):
        assert measured(context, name, NEURONS, [1.0]).scalars()["label_randomisation"][0] < 0.9


def test_scores_for_other_labels_are_those_of_examples_made_with_them(context: Context) -> None:
    method = methods.make("attribution_patching")
    found = measured(context, "attribution_patching", HEADS, [1.0])
    other = [context.model.encode(e.example) for e in relabeled(context, context.train)]
    a, b = (method.attribute(context.model, examples, HEADS).values.flatten() for examples in (context.train, other))
    assert found.label is not None
    assert found.label.signed == [pytest.approx(rank_correlation(a, b), abs=1e-9)]


def test_two_labels_are_too_few(context: Context) -> None:
    two = object.__new__(Context)
    two.__dict__.update(context.__dict__)
    fewer = [
        replace(e, answer=5 + i % 2, foil=6 - i % 2, example=replace(e.example, answer="w4", foil="w5"))
        for i, e in enumerate(context.train)
    ]
    two.drawn, two.examples = {"train": fewer, "test": fewer}, {"train": fewer, "test": fewer}
    found = measured(two, "activation_norm", HEADS)
    assert found.label is None
    assert found.gaps() == {
        "label_randomisation": "other labels cannot be drawn: the examples of task 'repeat' have 2 answers and foils "
        "in all."
    }
    assert "model_randomisation" in found.scalars() and "label_randomisation" not in found.scalars()


# --- both -------------------------------------------------------------------------------------------------------------


def test_scores_that_are_all_equal_are_a_gap(context: Context) -> None:
    @dataclass
    class AllEqual(Method):
        name: ClassVar[str] = "all_equal"
        levels: ClassVar[tuple[str, ...]] = ("heads",)

        def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
            return self.scores(torch.ones(level.shape(model)), model, level)

    method = AllEqual()
    found = evaluate(context, method, method.attribute(context.model, context.train, HEADS), HEADS)
    why = "all scores of all_equal are equal, so they have no ranks."
    assert found.gaps() == {"model_randomisation": why, "label_randomisation": why}
    assert found.scalars() == {}


def test_a_method_that_can_score_neither_is_skipped(context: Context) -> None:
    class Once(Method):
        name: ClassVar[str] = "once"
        levels: ClassVar[tuple[str, ...]] = ("heads",)

        def check_examples(self, examples: Sequence[EncodedExample]) -> None:
            raise SkipCell("not these labels.")

        def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
            raise MethodError("not this model.")

    scores = methods.make("random").attribute(context.model, context.train, HEADS)
    with pytest.raises(SkipCell, match=r"not this model\. not these labels\."):
        evaluate(context, Once(), scores, HEADS)


def test_positions_are_compared_example_by_example(context: Context) -> None:
    method, found = methods.make("gradient_saliency"), measured(context, "gradient_saliency", TOKENS)
    assert found.per_example and found.n == len(context.test) == 8
    assert found.scalars() == {}
    before = method.each(context.model, context.test, TOKENS)
    with randomized(context.model, range(3), context.seed):
        hf = copy.deepcopy(context.model.hf)
    after = method.each(Model(hf, context.model.tokenizer, batch_size=4), context.test, TOKENS)
    expected = [rank_correlation(a.abs(), b.abs()) for a, b in zip(before, after)]
    assert found.model[-1].absolute == pytest.approx(expected, abs=1e-6)
    assert float(found.statistics()["model_randomisation"](torch.arange(8).numpy())) == pytest.approx(
        sum(expected) / 8, abs=1e-6
    )
    for name in ("random", "embedding_sum"):
        blind = measured(context, name, TOKENS).correlations()
        assert all(values == pytest.approx([1.0] * 8, abs=1e-12) for values in blind.values())
        assert set(blind) == {
            *(f"model_randomisation{suffix}" for suffix in ("", "_signed", "_25", "_50")),
            *(f"label_randomisation{suffix}" for suffix in ("", "_absolute")),
        }


@pytest.mark.parametrize("level", [HEADS, TOKENS])
def test_batches_and_padding_change_nothing(toy: dict[str, Path], context: Context, level: Level) -> None:
    name = "integrated_gradients"
    found = measured(context, name, level)
    for other in (toy_context(toy, 1), toy_context(toy, 16, "right")):
        again = measured(other, name, level)
        assert again.correlations().keys() == found.correlations().keys()
        for metric, values in found.correlations().items():
            assert again.correlations()[metric] == pytest.approx(values, abs=1e-3), metric


def test_a_model_that_sees_is_randomized_below_its_eyes() -> None:
    model, examples = tiny_llava(), vision_examples()
    eyes = {n: p.clone() for n, p in model.hf.named_parameters() if "vision" in n or "projector" in n}
    method = methods.make("gradient_saliency")
    before = method.each(model, examples, LEVELS["patches"])
    with randomized(model, range(model.n_layers), 0):
        assert eyes and all(torch.equal(p, eyes[n]) for n, p in model.hf.named_parameters() if n in eyes)
        after = method.each(model, examples, LEVELS["patches"])
    assert not any(torch.allclose(a, b, rtol=0.1) for a, b in zip(before, after))
    again = method.each(model, examples, LEVELS["patches"])
    assert all(torch.equal(a, b) for a, b in zip(before, again))
