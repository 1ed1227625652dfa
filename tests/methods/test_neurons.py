"""Methods for neurons alone against their definitions: counted tokens, explicit logits and weights, a Newton solver."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attriboard.components import LEVELS
from attriboard.errors import ConfigurationError, MethodError, SkipCell, UnknownNameError
from attriboard.method import checked, methods
from attriboard.model import EncodedExample, Model
from attriboard.records.record import Planned
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks
from tests.bench.models import (
    EXAMPLES,
    FAMILIES,
    FOUR,
    LAYERS,
    Plain,
    close,
    example,
    fresh,
    fresh_llava,
    get,
    hooked,
    in_out,
    pixels,
    tiny,
    tiny_llava,
    tokenizer,
    vision_examples,
)

NEURONS = LEVELS["neurons"]
TOGETHER = ("lape", "domain_entropy", "sparse_probe", "wanda")
"""The methods that score all examples together."""


def model_of(family: str, batch_size: int = 3, padding_side: str = "left") -> Model:
    make = tiny_llava if family == "llava" else functools.partial(hooked, family)
    return make(batch_size=batch_size, padding_side=padding_side)


@functools.cache
def plain_of(family: str) -> Plain:
    return Plain(family, fresh_llava() if family == "llava" else tiny(family))


def shown(e: EncodedExample) -> dict[str, Tensor]:
    return {} if e.image is None else {"pixel_values": pixels(e.example.image)}


def labeled(e: EncodedExample, subset: str, answer: int) -> EncodedExample:
    return dataclasses.replace(e, example=dataclasses.replace(e.example, subset=subset), answer=answer)


@functools.cache
def examples_of(family: str) -> tuple[EncodedExample, ...]:
    """Prompts of four to nine tokens (or about pictures), of three subsets of unequal size and three answers.

    The last answer is that of one example alone.
    """
    if family == "llava":
        made: Sequence[EncodedExample] = (*vision_examples(0), *vision_examples(1), *vision_examples(2))
    else:
        rng = random.Random(0)
        made = [example([rng.randint(1, 95) for _ in range(rng.randint(4, 9))]) for _ in range(12)]
    answers = [7, 11, 7, 12, 11, 7, 11, 7, 7, 11, 11, 7]
    return tuple(labeled(e, "aabcab"[i % 6], answers[i]) for i, e in enumerate(made))


def scores_of(
    model: Model, name: str, examples: Sequence[EncodedExample], level: str = "neurons", **options: Any
) -> Tensor:
    method = methods.make(name, options)
    return checked(method.attribute(model, examples, LEVELS[level]), method, model, LEVELS[level]).values


def literal_reads(plain: Plain, e: EncodedExample, site: str) -> list[Tensor]:
    """By layer an activation at every token; "act" of a gated FFN is computed from what enters the FFN."""
    entered: list[Tensor] = []
    gated = hasattr(getattr(plain.blocks[0], "mlp", None), "gate_proj")
    handles = []
    if gated and site == "act":
        for block in plain.blocks:
            handles.append(block.mlp.register_forward_pre_hook(lambda module, args: entered.append(args[0][0])))
    read = "post" if site == "act" else site
    _, seen = plain.run(e.tokens, read=[(read, layer) for layer in range(LAYERS)], **shown(e))
    for handle in handles:
        handle.remove()
    if entered:
        return [block.mlp.act_fn(block.mlp.gate_proj(x)) for block, x in zip(plain.blocks, entered)]
    return [seen[read, layer] for layer in range(LAYERS)]


# --- entropy over subsets ---------------------------------------------------------------------------------------------


@functools.cache
def literal_probabilities(family: str) -> NDArray[np.float64]:
    """``[L, d_mlp, S]``: tokens at which a neuron is active, counted one by one, over the subset's tokens."""
    plain, examples = plain_of(family), examples_of(family)
    counts, tokens = np.zeros((LAYERS, 40, 3)), np.zeros(3)
    for e in examples:
        s = "abc".index(e.example.subset)
        tokens[s] += len(e.tokens)
        for layer, activation in enumerate(literal_reads(plain, e, "act")):
            for token in activation:
                for j, value in enumerate(token.tolist()):
                    counts[layer, j, s] += value > 0
    return counts / tokens


def literal_information(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """``ln S`` minus the entropy by scipy, neuron by neuron."""
    found = np.zeros(p.shape[:2])
    for at in np.ndindex(found.shape):
        if p[at].sum() > 0:
            found[at] = math.log(3) - scipy.stats.entropy(p[at])
    return found


@pytest.mark.parametrize("family", [*FAMILIES, "llava"])
def test_domain_entropy_is_that_of_counted_tokens(family: str) -> None:
    found = scores_of(model_of(family), "domain_entropy", examples_of(family))
    assert np.allclose(found.numpy(), literal_information(literal_probabilities(family)), atol=1e-6)
    assert 0 <= float(found.min()) < float(found.max()) <= math.log(3) + 1e-6


@pytest.mark.parametrize("rate", [0.95, 0.5])
@pytest.mark.parametrize("family", [*FAMILIES, "llava"])
def test_lape_ranks_by_entropy_the_neurons_that_pass_the_filter_and_then_the_others(family: str, rate: float) -> None:
    p = literal_probabilities(family)
    expected = literal_information(p)
    bar = sorted(p.flatten())[round(p.size * rate) - 1]
    passing = 0
    for at in np.ndindex(expected.shape):
        if any(share > bar for share in p[at]):
            expected[at] += 2 * math.log(3)
            passing += 1
    found = scores_of(model_of(family), "lape", examples_of(family), filter_rate=rate)
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    order = found.flatten().argsort(descending=True)
    assert passing < len(order)
    assert passing > 0 or bar == 1, "more than 5 % of all shares can be 1"
    largest = torch.from_numpy(p.max(-1)).flatten()[order]
    assert bool((largest[:passing] > bar).all()) and bool((largest[passing:] <= bar).all())


def test_neurons_that_are_always_or_never_active_are_not_specific() -> None:
    hf = fresh("gpt2")
    for block in hf.transformer.h:
        block.mlp.c_fc.bias.data[0] = 1000.0
        block.mlp.c_fc.bias.data[1] = -1000.0
    model = Model(hf, tokenizer(), prove=False)
    unfiltered = scores_of(model, "domain_entropy", examples_of("gpt2"))
    filtered = scores_of(model, "lape", examples_of("gpt2"), filter_rate=0.5)
    assert unfiltered[:, :2].abs().max() < 1e-6, "equally active in every subset, or in none"
    assert torch.allclose(filtered[:, 0], torch.tensor(2 * math.log(3))), "often active, so eligible"
    assert filtered[:, 1].abs().max() == 0


def test_a_neuron_of_one_subset_has_the_highest_score() -> None:
    """The embedding of token 90 alone drives a neuron of the first layer; only subset b has that token."""
    hf = fresh("gpt2")
    special = [labeled(example([5, 90, 33]), "b", 7), labeled(example([90, 90]), "b", 7)]
    plain_ones = [labeled(example([5, 17, 33, 21]), "a", 7), labeled(example([60, 9, 44]), "a", 11)]
    block, embed = hf.transformer.h[0], hf.transformer.wte.weight.data
    hf.transformer.wpe.weight.data.zero_()
    block.attn.c_proj.weight.data.zero_()
    block.attn.c_proj.bias.data.zero_()
    normed = {token: block.ln_2(embed[token]) for token in range(97)}
    block.mlp.c_fc.weight.data[:, 3] = normed[90]
    others = max(float(normed[token] @ normed[90]) for token in (5, 17, 33, 21, 60, 9, 44))
    own = float(normed[90] @ normed[90])
    assert own > others, "the token can be told from the others"
    block.mlp.c_fc.bias.data[3] = -(own + others) / 2
    found = scores_of(Model(hf, tokenizer(), prove=False), "domain_entropy", [*special, *plain_ones])
    assert float(found[0, 3]) == pytest.approx(math.log(2))
    assert float(found.max()) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["lape", "domain_entropy"])
def test_one_subset_gives_nothing_to_compare(name: str) -> None:
    method, alone = methods.make(name), [e for e in examples_of("llama") if e.example.subset == "a"]
    for ask in (method.check_examples, lambda given: method.attribute(model_of("llama"), given, NEURONS)):
        with pytest.raises(SkipCell, match=r"needs examples of at least 2 of them, but 1 \('a'\) were given; choose"):
            ask(alone)
    method.check_examples(examples_of("llama"))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "0.95", True, float("nan")])
def test_a_filter_rate_that_is_no_quantile_is_refused(rate: object) -> None:
    with pytest.raises(ConfigurationError, match=r"filter_rate of lape is .*, expected a number of at least 0"):
        methods.make("lape", {"filter_rate": rate})
    with pytest.raises(UnknownNameError, match="filter_rate"):
        methods.make("domain_entropy", {"filter_rate": rate})


# --- k-sparse probes --------------------------------------------------------------------------------------------------


def newton(x: NDArray[np.float64], positive: NDArray[np.bool_], c: float) -> NDArray[np.float64]:
    """The coefficients that minimize ``c sum_i s_i log(1 + exp(-y_i (x_i w + b))) + |w|^2 / 2``, ``s`` balanced."""
    n = len(x)
    y, with_one = np.where(positive, 1.0, -1.0), np.c_[x, np.ones(n)]
    weight = np.where(positive, n / (2 * positive.sum()), n / (2 * (~positive).sum()))
    ridge = np.diag([*np.ones(x.shape[1]), 0.0])
    w = np.zeros(x.shape[1] + 1)
    for _ in range(50):
        wrong = 1 / (1 + np.exp(y * (with_one @ w)))
        gradient = -c * with_one.T @ (weight * y * wrong) + ridge @ w
        hessian = c * with_one.T @ ((weight * wrong * (1 - wrong))[:, None] * with_one) + ridge
        w -= np.linalg.solve(hessian, gradient)
    return w[:-1]


def literal_probe(family: str, k: int, candidates: int, c: float) -> NDArray[np.float64]:
    plain, examples = plain_of(family), examples_of(family)
    x = torch.stack([torch.cat([a[-1] for a in literal_reads(plain, e, "post")]) for e in examples]).double().numpy()
    answers = [e.answer for e in examples]
    probes = [answer for answer in (7, 11, 12) if answers.count(answer) >= 2]
    assert len(probes) == 2 < len(set(answers)), "one answer is that of a single example"
    coefficients, differences = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for answer in probes:
        positive = np.array([a == answer for a in answers])
        difference = np.array([abs(x[positive, j].mean() - x[~positive, j].mean()) for j in range(x.shape[1])])
        kept = sorted(sorted(range(x.shape[1]), key=lambda j, d=difference: -d[j])[:candidates])
        while True:
            w = newton((x[:, kept] - x[:, kept].mean(0)) / x[:, kept].std(0), positive, c)
            if len(kept) <= k:
                break
            best = sorted(range(len(kept)), key=lambda i, w=w: -abs(w[i]))[: max(k, len(kept) // 2)]
            kept = sorted(kept[i] for i in best)
        coefficients[kept] += abs(w) / 2
        differences += difference / 2
    probed = coefficients > 0
    highest = max(differences[~probed])
    return np.where(probed, coefficients, 0.5 * coefficients[probed].min() * differences / highest)


@pytest.mark.parametrize(("k", "candidates", "c"), [(5, 24, 1.0), (3, 120, 0.1), (8, 8, 2.0)])
@pytest.mark.parametrize("family", [*FOUR, "llava"])
def test_sparse_probe_is_the_cascade_written_out(family: str, k: int, candidates: int, c: float) -> None:
    found = scores_of(model_of(family), "sparse_probe", examples_of(family), k=k, candidates=candidates, C=c)
    expected = torch.from_numpy(literal_probe(family, k, candidates, c)).view(found.shape).float()
    assert close(found, expected, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_probe_ranks_its_neurons_above_all_others(family: str) -> None:
    model = model_of(family)
    scores = methods.make("sparse_probe", {"k": 4, "candidates": 30}).attribute(model, examples_of(family), NEURONS)
    assert tuple(scores.values.shape) == NEURONS.shape(model)
    probed = scores.metadata["probed"]
    assert scores.metadata["probes"] == 2
    assert 4 <= probed <= 8
    ranked = scores.values.flatten().sort(descending=True).values
    assert float(ranked[probed]) == pytest.approx(0.5 * float(ranked[probed - 1]))
    assert float(ranked[-1]) >= 0


def test_sparse_probe_finds_the_neuron_that_decides_the_answer() -> None:
    rng = random.Random(1)
    prompts = [example([rng.randint(1, 95) for _ in range(5)]) for _ in range(60)]
    plain = plain_of("gpt2")
    activation = torch.tensor([float(literal_reads(plain, e, "post")[1][-1, 17]) for e in prompts])
    bar = float(activation.median())
    examples = [labeled(e, "", 7 if a > bar else 11) for e, a in zip(prompts, activation.tolist())]
    scores = methods.make("sparse_probe", {"k": 1}).attribute(model_of("gpt2"), examples, NEURONS)
    assert scores.top(1)[0][0] == "m1.n17"


def test_sparse_probe_needs_two_answers_with_two_examples_each() -> None:
    method = methods.make("sparse_probe")
    for examples, usable, seen in ((EXAMPLES, 0, 4), ([labeled(e, "", 7) for e in EXAMPLES], 1, 1)):
        said = f"but {usable} of the {seen} answers of these 4 examples are such; choose"
        with pytest.raises(SkipCell, match=said):
            method.check_examples(examples)
        with pytest.raises(SkipCell, match=said):
            method.attribute(model_of("llama"), examples, NEURONS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k of sparse_probe is 0, expected a whole number"),
        ({"candidates": 2.5}, "candidates of sparse_probe is 2.5, expected a whole number"),
        ({"k": 50, "candidates": 20}, "k of sparse_probe is 50, more than candidates, 20; lower"),
        ({"C": 0}, "C of sparse_probe is 0, expected a number above 0"),
        ({"C": "1"}, "C of sparse_probe is '1', expected a number above 0"),
        ({"C": float("inf")}, "C of sparse_probe is inf, expected a number above 0"),
    ],
)
def test_options_of_sparse_probe_that_make_no_probe_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        methods.make("sparse_probe", options)


# --- the unembedding alone --------------------------------------------------------------------------------------------


def literal_z_scores(plain: Plain, answer: int) -> Tensor:
    """``[L, d_mlp]``: each output vector through the model's own norms and unembedding, all logits written out."""
    norm = get(plain.hf, plain.parts.norm)
    W_U = plain.hf.get_output_embeddings().weight.double()
    found = torch.zeros(LAYERS, 40)
    for layer in range(LAYERS):
        down, end = plain.part("down", layer), plain.part("mlp_end", layer)
        for j, vector in enumerate(in_out(down)):
            vector = vector if end is down else end(vector)
            vector = norm(vector) - norm.bias if isinstance(norm, nn.LayerNorm) else norm(vector)
            logits = [float(row @ vector.double()) for row in W_U]
            found[layer, j] = (logits[answer] - np.mean(logits)) / np.std(logits)
    return found


@pytest.mark.parametrize("family", [*FAMILIES, "llava"])
def test_lm_head_decoding_is_the_z_score_among_all_logits(family: str) -> None:
    model, examples = model_of(family), examples_of(family)[:3]
    z = {answer: literal_z_scores(plain_of(family), answer) for answer in {e.answer for e in examples}}
    for signed in (False, True):
        each = torch.stack([z[e.answer] if signed else z[e.answer].abs() for e in examples])
        assert close(scores_of(model, "lm_head_decoding", examples, signed=signed), each.mean(0), 1e-4)
        for own, expected in zip(
            methods.make("lm_head_decoding", {"signed": signed}).each(model, examples, NEURONS), each
        ):
            assert close(own, expected, 1e-4)


def test_lm_head_decoding_runs_no_forward_pass_and_sees_the_answer_alone() -> None:
    model, e = model_of("llama"), EXAMPLES[0]
    found = scores_of(model, "lm_head_decoding", [e])
    square = 2 * model.d_model**2
    assert model.cost.flops == (model.d_vocab + model.n_layers * model.d_mlp) * square  # of weights alone
    other_prompt = dataclasses.replace(EXAMPLES[1], answer=e.answer)
    assert torch.equal(found, scores_of(model, "lm_head_decoding", [other_prompt]))
    assert not close(found, scores_of(model, "lm_head_decoding", [dataclasses.replace(e, answer=8)]), 0.1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_neuron_that_writes_nothing_says_nothing(family: str) -> None:
    hf = fresh(family)
    model = Model(hf, tokenizer(), prove=False)
    model.W_out(1)[5].zero_()
    found = scores_of(model, "lm_head_decoding", EXAMPLES)
    assert float(found[1, 5]) == 0
    assert int((found == 0).sum()) == 1


def test_a_sign_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="signed of lm_head_decoding is 'yes', expected true or false"):
        methods.make("lm_head_decoding", {"signed": "yes"})


# --- wanda ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["heads", "neurons"])
@pytest.mark.parametrize("family", [*FAMILIES, "llava"])
def test_wanda_sums_weight_times_activation_norm_over_a_components_weights(family: str, level: str) -> None:
    plain, examples = plain_of(family), examples_of(family)[:4]
    role, site = ("out", "z") if level == "heads" else ("down", "post")
    read = [literal_reads(plain, e, site) for e in examples]
    expected = []
    for layer in range(LAYERS):
        x = torch.cat([one[layer].flatten(1) for one in read]).double()  # [all tokens, inputs]
        weights = in_out(plain.part(role, layer)).double()
        norms = [math.sqrt(sum(float(v) ** 2 for v in column)) for column in x.T]
        importance = torch.stack([row.abs() * n for row, n in zip(weights, norms)])
        width = len(weights) // (4 if level == "heads" else len(weights))
        expected.append(torch.stack([block.sum() for block in importance.split(width)]))
    found = scores_of(model_of(family), "wanda", examples, level)
    assert close(found.double(), torch.stack(expected), 1e-5)


def test_the_norm_in_wanda_runs_over_all_tokens_and_is_no_average() -> None:
    model, examples = model_of("llama"), examples_of("llama")
    once, twice = (scores_of(model, "wanda", many) for many in (examples, (*examples, *examples)))
    assert close(twice, once * math.sqrt(2), 1e-6)
    with pytest.raises(MethodError, match="wanda was given no examples"):
        scores_of(model, "wanda", [])


# --- all of them ------------------------------------------------------------------------------------------------------

CASES = [*((name, "neurons") for name in (*TOGETHER, "lm_head_decoding")), ("wanda", "heads")]
SMALL = {"sparse_probe": {"k": 6, "candidates": 48}}


@pytest.mark.parametrize("family", [*FOUR, "llava"])
@pytest.mark.parametrize(("name", "level"), CASES)
def test_scores_do_not_depend_on_batches_or_padding(name: str, level: str, family: str) -> None:
    examples, options = examples_of(family), SMALL.get(name, {})
    reference = scores_of(model_of(family, 1), name, examples, level, **options)
    assert float(reference.std()) > 0
    for batch_size, padding_side in ((5, "left"), (16, "right")):
        found = scores_of(model_of(family, batch_size, padding_side), name, examples, level, **options)
        assert close(found, reference, 1e-4)
        turned = scores_of(model_of(family, batch_size, padding_side), name, examples[::-1], level, **options)
        assert close(turned, reference, 1e-4)


@pytest.mark.parametrize("name", ["lape", "domain_entropy", "sparse_probe"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_they_work_in_bfloat16(name: str, family: str) -> None:
    model = Model(fresh(family).bfloat16(), tokenizer())
    assert scores_of(model, name, examples_of(family), **SMALL.get(name, {})).dtype == torch.float32


@pytest.mark.parametrize("name", TOGETHER)
def test_methods_that_score_examples_together_have_no_scores_of_single_ones(name: str) -> None:
    with pytest.raises(SkipCell, match=f"{name} scores all examples together"):
        methods.make(name).each(model_of("llama"), examples_of("llama"), NEURONS)


def test_in_a_run_they_make_records_and_say_why_where_they_cannot(toy: dict, tmp_path: Path) -> None:
    """The toy task has two subsets and, among the few examples kept, hardly an answer twice."""
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    ((template, _),) = suite.plan(method=["random"])
    settings = suite.settings.changed({"speed": {"examples": 1}})
    names = (*TOGETHER, "lm_head_decoding")
    plan = [Planned(template.model_copy(update={"method": name, "level": "neurons"}), settings) for name in names]
    target = Folder(tmp_path / "results")
    run_cells("toy", plan, target)
    found = {r.cell.method: r for r in target.read()}
    assert "at least 2 answers that 2 or more examples have" in found["sparse_probe"].reason
    assert {name: r.status for name, r in found.items()} == {**dict.fromkeys(names, "ok"), "sparse_probe": "skipped"}
    assert {name for name, r in found.items() if r.control} == {"wanda"}
