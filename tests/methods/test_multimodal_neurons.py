"""Multi-modal neurons: both methods against their definitions, and the properties of concepts' neurons literally."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from attriboard.board.board import Board
from attriboard.board.formats import FORMATS, render
from attriboard.components import LEVELS
from attriboard.errors import ConfigurationError, MethodError, SkipCell
from attriboard.evaluation import concepts
from attriboard.measurements.concepts import Concepts
from attriboard.measurements.registry import METRICS
from attriboard.method import Method, methods
from attriboard.model import EncodedExample, Model
from attriboard.records.aggregate import aggregates
from attriboard.records.record import Planned, Record
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks
from tests.bench.models import (
    EXAMPLES,
    LAYERS,
    Plain,
    close,
    example,
    fresh,
    fresh_llava,
    get,
    hooked,
    in_double,
    in_out,
    pixels,
    slope,
    tiny,
    tiny_llava,
    tiny_processor,
    tokenizer,
    vision_examples,
)

NEURONS = LEVELS["neurons"]
GATED = ("llama", "qwen3", "gemma", "gemma2", "llava")
UNGATED = ("gpt2", "gptj", "neox_parallel", "opt", "neox_sequential")
NO_NORM_AFTER = ("llama", "qwen3", "gpt2", "gptj", "neox_parallel", "opt", "llava")


def model_of(family: str, batch_size: int = 16) -> Model:
    return tiny_llava(batch_size) if family == "llava" else hooked(family, batch_size)


def examples_of(family: str) -> tuple[EncodedExample, ...]:
    return vision_examples() if family == "llava" else EXAMPLES


@functools.cache
def plain_of(family: str) -> Plain:
    return Plain(family, fresh_llava() if family == "llava" else tiny(family))


def shown(e: EncodedExample) -> dict[str, Tensor]:
    return {} if e.image is None else {"pixel_values": pixels(e.example.image)}


# --- activation times projection --------------------------------------------------------------------------------------


def literal_gate(plain: Plain, e: EncodedExample) -> list[Tensor]:
    """By layer the gate at the last token ``[d_mlp]``: the activation function of the gate projection's output."""
    entered: list[Tensor] = []
    handles = [
        block.mlp.register_forward_pre_hook(lambda module, args: entered.append(args[0][0, -1]))
        for block in plain.blocks
    ]
    plain.run(e.tokens, **shown(e))
    for handle in handles:
        handle.remove()
    return [block.mlp.act_fn(block.mlp.gate_proj.weight @ x) for block, x in zip(plain.blocks, entered)]


@pytest.mark.parametrize("activation", ["gate", "down_in"])
@pytest.mark.parametrize("family", [*GATED, *UNGATED])
def test_multimodal_neurons_are_activation_times_projection_in_a_loop(family: str, activation: str) -> None:
    model, plain = model_of(family, batch_size=3), plain_of(family)
    method = methods.make("multimodal_neurons", {"activation": activation})
    # two examples ask for the same answer, in one batch
    same = dataclasses.replace(examples_of(family)[1], answer=examples_of(family)[0].answer)
    examples = (*examples_of(family)[:1], same, *examples_of(family)[2:])
    W_U = plain.hf.get_output_embeddings().weight
    for e, found in zip(examples, method.each(model, examples, NEURONS)):
        _, seen = plain.run(e.tokens, read=[("post", layer) for layer in range(LAYERS)], **shown(e))
        a = [seen["post", layer][-1] for layer in range(LAYERS)]
        if activation == "gate" and family in GATED:
            a = literal_gate(plain, e)
        expected = torch.zeros(NEURONS.shape(model))
        for layer in range(LAYERS):
            W_out = in_out(plain.part("down", layer))
            for j in range(len(W_out)):
                expected[layer, j] = a[layer][j] * (W_out[j] * W_U[e.answer]).sum()
        assert close(found, expected, 1e-5)


def test_the_two_activations_differ_where_there_is_a_gate_and_nowhere_else() -> None:
    for family, alike in (("llama", False), ("llava", False), ("gpt2", True)):
        gate, down_in = (
            methods.make("multimodal_neurons", {"activation": a}).attribute(
                model_of(family), examples_of(family), NEURONS
            )
            for a in ("gate", "down_in")
        )
        assert torch.equal(gate.values, down_in.values) == alike


def test_an_unknown_activation_is_refused_with_what_is_expected() -> None:
    with pytest.raises(ConfigurationError, match="activation of multimodal_neurons is 'up', expected 'gate' or"):
        methods.make("multimodal_neurons", {"activation": "up"})


def test_multimodal_neurons_cost_one_forward_pass() -> None:
    model = tiny_llava()
    methods.make("multimodal_neurons").attribute(model, vision_examples(), NEURONS)
    assert model.forward_equivalents(vision_examples()) == 1


# --- gradients at the picture's positions -----------------------------------------------------------------------------


def image_positions(e: EncodedExample) -> list[int]:
    return [i for i, token in enumerate(e.tokens) if token == 97]


def test_the_gradient_method_is_autograd_at_the_patches_written_out() -> None:
    plain, sites = plain_of("llava"), [("post", layer) for layer in range(LAYERS)]
    found = methods.make("multimodal_neurons_gradient").each(tiny_llava(batch_size=3), vision_examples(), NEURONS)
    for e, scores in zip(vision_examples(), found):
        with torch.enable_grad():
            edits = {("embed", 0): lambda x: x.clone().requires_grad_()}
            logits, seen = plain.run(e.tokens, edits, sites, **shown(e))
        gradients = torch.autograd.grad(logits[e.answer], [seen[s] for s in sites])
        expected = torch.zeros_like(scores)
        for layer, (site, gradient) in enumerate(zip(sites, gradients)):
            for p in image_positions(e):
                expected[layer] += (seen[site][p] * gradient[p]).detach()
        assert close(scores, expected, 1e-4)


def test_the_gradient_method_is_the_slope_of_scaling_a_neuron_at_the_patches() -> None:
    processor = tiny_processor()
    double = in_double(fresh_llava())
    model = Model(double, processor.tokenizer, processor=processor, prove=False)
    plain = Plain("llava", double)
    e = model.encode(vision_examples()[2].example)
    (scores,) = methods.make("multimodal_neurons_gradient").each(model, [e], NEURONS)
    at = image_positions(e)
    for layer in range(LAYERS):
        for j in (0, 17, 39):

            def scaled(t: float, layer: int = layer, j: int = j) -> Tensor:
                def scale(x: Tensor) -> Tensor:
                    x = x.clone()
                    x[at, j] *= 1 + t
                    return x

                picture = pixels(e.example.image).double()
                return plain.run(e.tokens, {("post", layer): scale}, pixel_values=picture)[0][e.answer]

            # the literal run's attention weights are float32: 1e-7 divided by the step
            assert float(scores[layer, j]) == pytest.approx(float(slope(scaled, 1e-2)), rel=1e-3, abs=3e-5)


def test_the_gradient_method_skips_examples_without_an_image() -> None:
    with pytest.raises(SkipCell, match="multimodal_neurons_gradient needs examples with an image"):
        methods.make("multimodal_neurons_gradient").check_examples(EXAMPLES)


def test_methods_that_see_all_examples_together_have_no_scores_of_single_ones() -> None:
    with pytest.raises(SkipCell, match="cna scores all examples together"):
        methods.make("cna").each(hooked("llama"), EXAMPLES, NEURONS)


# --- properties measured on a model -----------------------------------------------------------------------------------


@dataclass
class Told(Method):
    """Says of each example what it is told, and something else when the patches stand in another order."""

    name: ClassVar[str] = "told"
    levels: ClassVar[tuple[str, ...]] = ("neurons",)
    scores_of: dict[int, Tensor] = field(default_factory=dict)
    permuted: dict[int, Tensor] = field(default_factory=dict)

    def score_batch(self, model: Model, batch: Any, level: Any) -> Tensor:
        rows = []
        for e in batch.examples:
            (original,) = [o for o in named_examples(model) if o.example is e.example]
            moved = e.image is not None and not torch.equal(e.image, original.image)
            rows.append((self.permuted if moved else self.scores_of)[id(e.example)].view(level.shape(model)))
        return torch.stack(rows)


CONCEPTS = (" W12", "w7", "w12", "w40 ")


@functools.cache
def _named(family: str) -> tuple[EncodedExample, ...]:
    return tuple(
        dataclasses.replace(e, example=dataclasses.replace(e.example, concept=word))
        for e, word in zip(examples_of(family), CONCEPTS)
    )


def named_examples(model: Model) -> tuple[EncodedExample, ...]:
    """The family's examples with concepts that its tokenizer has as words, written in several ways."""
    return _named(model.name)


def told(model: Model, seed: int = 0) -> Told:
    generator = torch.Generator().manual_seed(seed)
    n = NEURONS.size(model)
    draw = [[torch.randn(n, generator=generator) for _ in range(2)] for _ in named_examples(model)]
    keys = [id(e.example) for e in named_examples(model)]
    return Told({k: d[0] for k, d in zip(keys, draw)}, {k: d[0] + 0.5 * d[1] for k, d in zip(keys, draw)})


def evaluated(model: Model, method: Method, draws: int = 2) -> Concepts:
    context: Any = types.SimpleNamespace(model=model, test=list(named_examples(model)))
    return concepts.evaluate(context, method, NEURONS, draws)


def best(scores: Tensor, k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: -float(scores[i]))[:k])


def test_overlaps_are_shares_of_common_top_neurons() -> None:
    model = tiny_llava()
    method = told(model)
    found = evaluated(model, method)
    assert found.top == NEURONS.size(model) // 2 and found.naming == concepts.NAMING
    keys = [id(e.example) for e in named_examples(model)]
    tops = [best(method.scores_of[k], found.top) for k in keys]
    for i, a in enumerate(tops):
        for j, b in enumerate(tops):
            assert found.overlap[i][j] == pytest.approx(len(a & b) / found.top)
        moved = best(method.permuted[keys[i]], found.top)
        assert found.shuffled is not None
        assert found.shuffled[i] == pytest.approx(len(a & moved) / found.top)
    assert found.concepts == list(CONCEPTS) and len(set(found.sources)) == len(CONCEPTS)


def literal_words(family: str, neuron: int) -> list[str]:
    """The ten words of a neuron: its products with every vocabulary entry but the special ones, sorted."""
    plain = plain_of(family)
    W_U, W_out = plain.hf.get_output_embeddings().weight, in_out(plain.part("down", neuron // 40))
    products = {t: float((W_out[neuron % 40] * W_U[t]).sum()) for t in range(1, 96)}  # 0, 96, 97: special
    return [f"w{t}" for t in sorted(products, key=lambda t: -products[t])[:10]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_vocabulary_words_are_the_largest_products_with_the_unembedding(family: str) -> None:
    model = model_of(family)
    neurons = torch.tensor([0, 39, 40, 77, 119])
    for neuron, words in zip(neurons.tolist(), concepts.vocabulary_words(model, neurons)):
        assert words == set(literal_words(family, neuron))


@pytest.mark.parametrize("family", ["gpt2", "llava"])
def test_sensitivity_counts_neurons_whose_words_name_concept_or_answer(family: str) -> None:
    model = model_of(family)
    method = told(model)
    found = evaluated(model, method)
    shares = []
    for i, e in enumerate(named_examples(model)):
        names = {e.example.concept.strip().lower(), e.example.answer.strip().lower()}
        top = best(method.scores_of[id(e.example)], found.naming)
        shares.append(np.mean([bool(names & set(literal_words(family, j))) for j in top]))
        assert found.named[i] == pytest.approx(shares[-1])
    assert max(shares) > 0, "no top neuron names anything; the comparison shows nothing"
    assert len(found.named_random) == 2
    n = len(named_examples(model))
    assert found.named_random[0] != found.named_random[1] and len(found.named_random[0]) == n


def test_patches_are_permuted_alike_in_prompt_and_counterfactual_and_seen_so_by_the_model() -> None:
    model, plain = tiny_llava(), plain_of("llava")
    e = vision_examples()[0]
    moved = concepts.permuted(e, seed=3)
    assert e.image is not None and moved.image is not None and moved.counterfactual_image is not None
    order = [next(i for i, row in enumerate(e.image) if torch.equal(row, new)) for new in moved.image]
    assert sorted(order) == list(range(9)) and order != sorted(order)
    assert torch.equal(moved.counterfactual_image, e.counterfactual_image[order])  # type: ignore[index]
    assert moved.tokens == e.tokens and torch.equal(concepts.permuted(e, seed=3).image, moved.image)  # type: ignore[arg-type]
    projector = get(plain.hf, "model.multi_modal_projector")
    handle = projector.register_forward_hook(lambda module, args, output: output[..., order, :])
    logits, _ = plain.run(e.tokens, **shown(e))
    handle.remove()
    assert close(model.run(model.batch([moved])).logits[0], logits, 1e-5)


def with_noise(family: str, neurons: Tensor, noise: Tensor) -> Plain:
    """The plain model with noise really added to the output vectors in its weights."""
    plain = plain_of(family)
    edited = Plain(family, copy.deepcopy(plain.hf))
    with torch.no_grad():
        for neuron, vector in zip(neurons.tolist(), noise):
            in_out(edited.part("down", neuron // 40))[neuron % 40] += vector
    return edited


@pytest.mark.parametrize("family", NO_NORM_AFTER)
def test_noise_by_edits_is_noise_in_the_weights(family: str) -> None:
    model, examples = model_of(family), examples_of(family)[:2]
    neurons = [torch.tensor([0, 3, 45, 79, 90, 119]), torch.tensor([1, 2, 3, 4])]
    generator = torch.Generator().manual_seed(1)
    noise = [0.5 * torch.randn(len(index), model.d_model, generator=generator) for index in neurons]
    found = model.run(model.batch(examples), edits=concepts.noise_edits(model, neurons, noise)).logits
    for e, index, vectors, logits in zip(examples, neurons, noise, found):
        expected, _ = with_noise(family, index, vectors).run(e.tokens, **shown(e))
        assert close(logits, expected, 1e-4)
        assert not close(logits, plain_of(family).run(e.tokens, **shown(e))[0], 1e-2)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_causal_effects_are_those_of_runs_with_edited_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family, batch_size=5)
    method = told(model)
    noised: list[tuple[Tensor, Tensor]] = []
    original = concepts.noise_edits

    def recorded(model: Model, neurons: Sequence[Tensor], noise: Sequence[Tensor]) -> Any:
        noised.extend(zip(neurons, noise))
        return original(model, neurons, noise)

    monkeypatch.setattr(concepts, "noise_edits", recorded)
    found = evaluated(model, method, draws=2)
    weights = torch.cat([in_out(plain_of(family).part("down", layer)) for layer in range(LAYERS)])
    assert found.sigma == pytest.approx(concepts.NOISE * float(weights.square().mean().sqrt()), rel=1e-5)
    assert found.clean is not None and found.noised is not None and found.noised_random is not None
    at = iter(noised)
    for i, e in enumerate(named_examples(model)):
        logits, _ = plain_of(family).run(e.tokens, **shown(e))
        assert found.clean[i] == pytest.approx(float(torch.log_softmax(logits, -1)[e.answer]), abs=1e-4)
        for draw in range(2):
            (top, noise), (random, same) = next(at), next(at)
            assert set(top.tolist()) == best(method.scores_of[id(e.example)], found.top)
            assert torch.equal(top // 40, random // 40) and not torch.equal(top, random)
            assert torch.equal(noise, same)
            assert float(noise.std()) == pytest.approx(found.sigma, rel=0.1)
            for neurons, stored in ((top, found.noised[draw][i]), (random, found.noised_random[draw][i])):
                logits, _ = with_noise(family, neurons, noise).run(e.tokens, **shown(e))
                assert stored == pytest.approx(float(torch.log_softmax(logits, -1)[e.answer]), abs=2e-4)
    assert next(at, None) is None
    draws = [noise for _, noise in noised[::2]]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_without_images_or_with_a_norm_after_the_ffn_the_reasons_are_given() -> None:
    text = evaluated(hooked("llama"), told(hooked("llama")))
    assert text.shuffled is None and text.noised is not None
    assert text.not_measured == {"region_invariance": "the examples have no image."}
    gemma = evaluated(hooked("gemma2"), told(hooked("gemma2")))
    assert gemma.noised is None and gemma.noised_random is None and gemma.clean is None
    assert "norm follows the FFN of Gemma 2 and 3" in gemma.not_measured["concept_causal_effect"]
    assert "concept_causal_effect" not in gemma.statistics()


@pytest.mark.parametrize("name", ["multimodal_neurons", "multimodal_neurons_gradient", "attribution_patching"])
def test_properties_are_reproducible_and_do_not_depend_on_batch_size_or_padding(name: str) -> None:
    method = methods.make(name)
    reference = evaluated(tiny_llava(batch_size=1), method)
    assert evaluated(tiny_llava(batch_size=1), method) == reference
    for batch_size, padding_side in ((3, "left"), (16, "right")):
        found = evaluated(tiny_llava(batch_size, padding_side), method)
        for part in ("overlap", "shuffled", "named", "named_random"):
            assert getattr(found, part) == getattr(reference, part)
        for part in ("clean", "noised", "noised_random"):
            np.testing.assert_allclose(getattr(found, part), getattr(reference, part), rtol=1e-4, atol=1e-4)


def test_properties_can_be_measured_in_bfloat16() -> None:
    model = Model(fresh("gpt2").bfloat16(), tokenizer(), name="gpt2")
    found = evaluated(model, methods.make("multimodal_neurons"))
    assert found.noised is not None and found.clean is not None
    assert np.isfinite([*found.noised[0], *found.clean]).all()
    assert float(np.abs(np.array(found.noised) - np.array(found.clean)).max()) > 0.1


def test_scores_that_are_not_finite_are_refused() -> None:
    model = tiny_llava()
    method = told(model)
    method.scores_of[id(named_examples(model)[1].example)][5] = float("nan")
    with pytest.raises(MethodError, match="told returned 1 scores that are NaN or infinite for example 1"):
        evaluated(model, method)


def test_properties_apply_to_neurons_of_examples_that_all_have_a_concept() -> None:
    assert concepts.applies(_named("llama"), NEURONS)
    assert not concepts.applies(_named("llama"), LEVELS["heads"])
    assert not concepts.applies([*_named("llama"), example([5, 6, 7])], NEURONS)


# --- through the harness ----------------------------------------------------------------------------------------------

TASK = '''
"""Repeat the last word, which is what the example is about."""
from dataclasses import dataclass

from attriboard.task import Example, Task

WORDS = [f"w{i}" for i in range(24)]


@dataclass
class About(Task):
    name = "about"
    description = "Repeat the last word."
    all_subsets = ("all",)

    def candidates(self, subset, rng):
        while True:
            words = rng.sample(WORDS, 4)
            last = rng.choice(WORDS[:2])
            foil = next(w for w in words if w != last)
            words = [w for w in words if w != last][:2]
            prompt, other = " ".join([*words, last]), " ".join([*words, foil])
            yield Example(prompt, last, foil, other, item=prompt, subset=subset, concept=last)
'''


@pytest.fixture(scope="module")
def folder(toy: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts")
    (path / "about.py").write_text(TASK)
    for file in (toy["task"], path / "about.py"):
        tasks.include(file)
    suite = Suite.load(toy["suite"])
    target = Folder(path / "results")
    ((template, _),) = suite.plan(method=["random"])
    wanted = (("multimodal_neurons", "neurons"), ("cna", "neurons"), ("random", "heads"))
    cells = [template.model_copy(update={"task": "about", "method": name, "level": at}) for name, at in wanted]
    run_cells("toy", [Planned(cell, suite.settings) for cell in cells], target)
    return path / "results"


def records(folder: Path) -> dict[str, Record]:
    return {r.cell.method: r for r in Folder(folder).read()}


def test_records_hold_the_properties_or_the_reason_why_not(folder: Path) -> None:
    found = records(folder)
    assert {name: r.status for name, r in found.items()} == dict.fromkeys(found, "ok"), [
        r.reason for r in found.values()
    ]
    measured = found["multimodal_neurons"].measured(Concepts)
    assert measured is not None and measured.concepts and set(measured.concepts) == {"w0", "w1"}
    assert found["cna"].measured(Concepts) is None
    assert found["cna"].not_measured == {
        "concepts": "cna scores all examples together and gives no scores of single ones."
    }
    assert found["random"].measured(Concepts) is None and not found["random"].not_measured


def test_aggregates_of_concepts_follow_from_the_stored_record(folder: Path) -> None:
    record = records(folder)["multimodal_neurons"]
    stored = Record.model_validate_json(json.dumps(record.model_dump(mode="json")))
    assert stored.measurements["speed"] and "concepts" in stored.measurements
    assert aggregates(stored.measurements.values(), stored.items) == record.aggregates
    assert record.aggregates["concept_contrast"].value > 0, "neurons of one answer are alike, of two they are not"


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_the_board_shows_the_properties(folder: Path, form: str) -> None:
    text = render(Board.read(folder), form)
    for name, metric in METRICS.items():
        if metric.measurement == "concepts" and name != "region_invariance":
            assert (name if form in ("csv", "json") else metric.title) in text
    if form == "md":
        tables = [line.split("|")[1].strip() for line in text.splitlines() if "[" in line and line.startswith("| ")]
        assert (tables.count("multimodal_neurons"), tables.count("cna")) == (2, 1)
        assert "concepts not measured: about / neurons / cna" in text
        assert METRICS["region_invariance"].title not in text
