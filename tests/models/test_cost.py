"""What work a model and its methods do, judged by PyTorch's own formulas on the products that are really made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attriboard.components import get_level
from attriboard.errors import SkipCell
from attriboard.interventions import Intervention, single_effects
from attriboard.method import methods
from attriboard.model import Cost, EncodedExample, Model, hook_name
from attriboard.models.cost import sizes_of
from attriboard.task import IMAGE
from tests.bench.models import (
    EVERY,
    EXAMPLES,
    FOUR,
    SEEING,
    example,
    fresh,
    fresh_seeing,
    hooked,
    in_single_products,
    tiny_llava,
    tokenizer,
    vision_examples,
)


class Judge(TorchDispatchMode):
    """Counts the operations of every matrix product, convolution and attention that PyTorch runs while it is open.

    As ``FlopCounterMode``, whose module tracker cannot follow gradients at leaves, by the same formulas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def judged(work: Callable[[], Any]) -> int:
    with Judge() as judge:
        work()
    return judge.flops


@functools.cache
def _eager(family: str) -> Model:
    """All in single products, since PyTorch has no formula for its fused kernels on a CPU."""
    return Model(in_single_products(fresh(family)), tokenizer(), name=family)


def eager(family: str) -> Model:
    model = _eager(family)
    model.cost = Cost()
    return model


def counted(model: Model, work: Callable[[], Any]) -> int:
    model.cost = Cost()
    work()
    return model.cost.flops


# --- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
def test_a_pass_takes_the_products_that_are_really_made(family: str) -> None:
    model = eager(family)
    batch = model.batch(EXAMPLES[:1])
    passes: list[Callable[[], Any]] = [
        lambda: model.run(batch),
        lambda: model.run(batch, [hook_name("pattern", 1)]),
        lambda: model.run(batch, start=(2, torch.zeros(1, 7, model.d_model))),
        lambda: model.share_prefix(batch),
        lambda: model.run(model.share_prefix(batch)),
        lambda: model.run(model.share_prefix(batch), start=(1, torch.zeros(1, 3, model.d_model))),
        lambda: model.continued(batch, [(), (5,), (5, 9)]),
    ]
    for work in passes:
        found = counted(model, work)
        assert found == judged(work) > 0
    assert counted(model, passes[0]) == model.full_pass(EXAMPLES[0])


@pytest.mark.parametrize("family", EVERY)
def test_a_backward_pass_counts_twice_the_forward_pass(family: str) -> None:
    """Without gradients of weights it takes one product for each weight matrix, and two for each of attention."""
    model = eager(family)
    batch = model.batch(EXAMPLES[:1])

    def both() -> None:
        run = model.run(batch, ["hook_embed"], gradients=True)
        run.gradients(model.metric(run.logits, batch), ["hook_embed"])

    forward = model.full_pass(EXAMPLES[0])
    attention = 4 * 7 * 7 * model.n_heads * model.d_head * model.n_layers
    assert counted(model, both) == 3 * forward
    assert judged(both) == 2 * forward + attention


def test_the_full_pass_of_a_known_shape() -> None:
    """Llama, 3 layers: weights of 32 × 32, 32 × 16 twice, 32 × 32 and three of 32 × 40; attention of 4 heads of 8."""
    model = hooked("llama")
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 40
    assert model.full_pass(example([5, 6, 7, 8])) == 2 * (3 * (4 * layer + 2 * 4 * 4 * 32) + 97 * 32)


@pytest.mark.parametrize("family", SEEING)
def test_the_tower_takes_the_products_that_are_really_made(family: str) -> None:
    hf, processor = fresh_seeing(family)
    hf.set_attn_implementation("eager")
    model = Model(hf, processor.tokenizer, name=family, processor=processor)
    assert model.vision is not None
    inputs = model.vision.inputs(IMAGE, Image.new("RGB", (64, 48)))
    with torch.no_grad():
        assert counted(model, lambda: model.features(inputs)) == judged(lambda: model.features(inputs)) > 0


def test_a_picture_goes_through_the_tower_once_however_many_passes_read_it() -> None:
    model, seen = tiny_llava(), vision_examples()[0]
    assert model.vision is not None
    text = model.sizes.flops(len(seen.tokens))
    batch = model.batch([seen])
    model.run(batch)
    assert model.cost.flops == text + model.vision.flops == model.full_pass(seen)
    model.run(batch.rows(torch.tensor([0, 0])))
    model.embeddings(batch)
    assert model.cost.flops == 3 * text + model.vision.flops
    assert batch.counterfactual is not None
    model.run(batch.counterfactual)  # of another picture
    assert model.cost.flops == 4 * text + 2 * model.vision.flops
    model.cost = Cost()
    same = model.batch([vision_examples()[1]])  # of the same picture, another text
    assert same.counterfactual is not None
    model.run(same), model.run(same.counterfactual)
    assert model.cost.flops == 2 * model.sizes.flops(len(vision_examples()[1].tokens)) + model.vision.flops


# --- nothing but the examples decides ---------------------------------------------------------------------------------


def test_rows_count_what_they_would_take_alone() -> None:
    """Prefixes of 4, 2, 6 and 3 positions are shared; the four rows together share the shortest."""
    alone = []
    for e in EXAMPLES:
        model = hooked("llama")
        shared = model.share_prefix(model.batch([e]))
        model.run(shared)
        alone.append(model.cost.flops)
        assert shared.spans == ((len(e.tokens) - shared.past[0][0].shape[2], shared.past[0][0].shape[2]),)
    for side in ("left", "right"):
        model = hooked("llama", padding_side=side)
        model.run(model.share_prefix(model.batch(EXAMPLES)))
        assert model.cost.flops == sum(alone)


def test_a_row_that_shares_nothing_does_not_change_what_its_neighbor_counts() -> None:
    strangers = (EXAMPLES[0], example([9, 8, 7], [1, 8, 7]))
    costs = []
    for batches in ([strangers], [strangers[:1], strangers[1:]]):
        model = hooked("llama")
        for rows in batches:
            shared = model.share_prefix(model.batch(rows))
            assert shared.counterfactual is not None
            model.run(shared), model.run(shared.counterfactual)
        costs.append(model.cost.flops)
    assert costs[0] == costs[1]


def scored(model: Model, name: str, level: str, examples: tuple[EncodedExample, ...]) -> int:
    method, model.cost = methods.make(name), Cost()
    method.check_examples(examples)
    (method.each if get_level(level).inputs else method.attribute)(model, examples, get_level(level))
    return model.cost.flops


@pytest.mark.parametrize("level", ["heads", "neurons", "attn_neurons", "nodes", "tokens"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_work_of_every_method_depends_on_neither_batch_size_nor_padding(family: str, level: str) -> None:
    judged_methods = 0
    for cls in methods:
        if level not in cls.levels:
            continue
        try:
            found = {scored(hooked(family, n, side), cls.name, level, EXAMPLES) for n, side in _SHAPES}
        except SkipCell:
            continue
        assert len(found) == 1, (cls.name, found)
        judged_methods += max(found) > 0
    assert judged_methods


@pytest.mark.parametrize("level", ["heads", "patches", "tokens"])
def test_nor_does_it_in_a_model_that_sees(level: str) -> None:
    for cls in methods:
        if level not in cls.levels or cls.name == "shap":
            continue
        try:
            found = {scored(tiny_llava(n, side), cls.name, level, vision_examples()) for n, side in _SHAPES}
        except SkipCell:
            continue
        assert len(found) == 1, (cls.name, found)


_SHAPES = ((1, "left"), (3, "right"), (64, "left"))


# --- what methods do beside passes ------------------------------------------------------------------------------------


def test_rows_through_the_unembedding_are_counted() -> None:
    """One for every head and one for every layer's base; of in-context heads, one for every head and label."""
    model, e = hooked("llama"), EXAMPLES[0]  # 12 heads in 3 layers, 2 labels
    row = 2 * 97 * 32
    assert scored(model, "log_prob_increase", "heads", (e,)) == model.full_pass(e) + (12 + 3) * row
    assert scored(model, "in_context_heads", "heads", (e,)) == model.full_pass(e) + (2 * 12 + 3) * row


def test_extra_rows_of_a_model_with_a_large_vocabulary_are_worth_passes() -> None:
    """SmolLM2-135M's shape, 30 tokens: 300 rows are 2.6 forward passes and 570 are 4.9."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        hf: Any = transformers.LlamaForCausalLM(config)
    sizes = sizes_of(hf.model.layers, 9 * 64, hf.lm_head.weight)
    assert sizes.weights[0] == 106_168_320  # 134.5 million parameters less the embedding and the norms
    row = 2 * sizes.unembedding
    assert 300 * row / sizes.flops(30) == pytest.approx(2.6, abs=0.05)
    assert 570 * row / sizes.flops(30) == pytest.approx(4.9, abs=0.1)


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("activation_patching", "heads"),
        ("direct_logit_attribution", "heads"),
        ("head_ablation", "nodes"),
        ("in_context_heads", "heads"),
        ("log_prob_increase", "heads"),
        ("log_prob_increase", "neurons"),
        ("lm_head_decoding", "neurons"),
        ("occlusion", "tokens"),
        ("wanda", "neurons"),
    ],
)
def test_forward_only_methods_take_the_products_that_are_really_made(family: str, name: str, level: str) -> None:
    """But for products of single positions with output weights, which are large beside a model this small."""
    model = eager(family)
    model.batch_size = 1
    found = scored(model, name, level, EXAMPLES)
    truth = judged(lambda: scored(model, name, level, EXAMPLES))
    small = len(EXAMPLES) * 2 * sum(sum(w.numel() for w in (model.W_O(i), model.W_out(i))) for i in range(3))
    assert truth - 4 * small <= found <= truth, (found / truth, small / truth)


def test_single_effects_count_each_row_from_the_layer_it_needs() -> None:
    """4 heads a layer: rows of layer ``l`` run ``3 - l`` of 3 layers, beside the one pass that they restart from."""
    for size in (1, 4, 5, 64):
        model = hooked("llama", batch_size=size)
        (e,) = EXAMPLES[:1]
        single_effects(Intervention(model, model.batch([e]), get_level("heads"), "zero"))
        assert model.cost.flops == model.full_pass(e) + 4 * sum(model.sizes.flops(7, layer=at) for at in range(3))
