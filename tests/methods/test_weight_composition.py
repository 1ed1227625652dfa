"""Weight composition against the products of the matrices themselves, one edge after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attriboard.components import LEVELS
from attriboard.errors import SkipCell
from attriboard.method import methods
from attriboard.model import Model
from tests.bench.models import EXAMPLES, FOUR, PARTS, WITH_NEURONS, close, fresh, get, hooked, in_out, tiny, tokenizer

HEADS = 4
FFN = {
    "llama": ("mlp.gate_proj", "mlp.up_proj"),
    "gemma2": ("mlp.gate_proj", "mlp.up_proj"),
    "olmo2": ("mlp.gate_proj", "mlp.up_proj"),
    "gpt2": ("mlp.c_fc",),
    "neox_parallel": ("mlp.dense_h_to_4h",),
    "phi3": ("mlp.gate_up_proj",),
}
BEFORE_FFN = {
    "llama": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gpt2": "ln_2",
    "neox_parallel": "post_attention_layernorm",
    "phi3": "post_attention_layernorm",
}


def through(norm: Any, weight: Tensor) -> Tensor:
    """A reader ``[d_model, n]`` with the linear part of the norm before it: as a matrix, applied to it."""
    if norm is None:
        return weight
    size = len(weight)
    linear = torch.eye(size, dtype=torch.float64)
    if isinstance(norm, nn.LayerNorm):
        linear -= torch.full((size, size), 1 / size, dtype=torch.float64)
    gamma = norm.weight.double() + float(type(norm).__name__.startswith("Gemma"))
    return linear @ torch.diag(gamma) @ weight


def behind(family: str, block: Any, end: str, role: str, weight: Tensor) -> Tensor:
    """A writer ``[n, d_model]`` with the weights of the norm after the sub-layer, if there is one."""
    parts = PARTS[family]
    if getattr(parts, end) == getattr(parts, role):
        return weight
    norm = get(block, getattr(parts, end))
    return weight @ torch.diag(norm.weight.double() + float(type(norm).__name__.startswith("Gemma")))


def literally(family: str, hf: Any, model: Model) -> Tensor:
    """By edge."""
    parts = PARTS[family]
    blocks = list(get(hf, parts.layers))
    writers, readers = {"input": get(hf, parts.embed).weight.double()}, {}
    for layer, block in enumerate(blocks):
        out = in_out(get(block, parts.out)).double()
        for head, own in enumerate(out.split(len(out) // HEADS)):
            writers[f"a{layer}.h{head}"] = behind(family, block, "attn_end", "out", own)
        writers[f"m{layer}"] = behind(family, block, "mlp_end", "down", in_out(get(block, parts.down)).double())
        first = get(block, parts.ln1) if parts.ln1 else None
        for part, all_heads in zip("qkv", (model.W_Q(layer), model.W_K(layer), model.W_V(layer))):
            for head, own in enumerate(all_heads.double()):
                readers[f"a{layer}.h{head}<{part}>"] = through(first, own)
        read = torch.cat([in_out(get(block, path)).double() for path in FFN[family]], dim=1)
        path = BEFORE_FFN.get(family)
        readers[f"m{layer}"] = through(get(block, path) if path else None, read)
    readers["logits"] = through(get(hf, parts.norm), hf.get_output_embeddings().weight.T.double())
    found = []
    for name in model.graph.edge_names:
        written, read = (side[node] for side, node in zip((writers, readers), name.split("->")))
        found.append((written @ read).norm() / written.norm() / read.norm())
    return torch.stack(found).float()


def scored(model: Model) -> Tensor:
    return methods.make("weight_composition").attribute(model, EXAMPLES, LEVELS["edges"]).values


@pytest.mark.parametrize("family", FFN)
def test_an_edge_is_the_norm_of_the_product_of_its_matrices(family: str) -> None:
    model = hooked(family)
    found, expected = scored(model), literally(family, tiny(family), model)
    assert close(found, expected, 1e-5)


@pytest.mark.parametrize("family", WITH_NEURONS)
def test_compositions_are_shares_whose_most_is_one(family: str) -> None:
    found = scored(hooked(family))
    assert 0 < float(found.min()) < float(found.max()) < 1


@pytest.mark.parametrize("family", FOUR)
def test_the_size_of_a_source_or_a_destination_plays_no_part(family: str) -> None:
    hf = fresh(family)
    before = scored(Model(hf, tokenizer(), prove=False))
    block = list(get(hf, PARTS[family].layers))[1]
    in_out(get(block, PARTS[family].out)).mul_(3)
    for path in FFN[family]:
        in_out(get(block, path)).mul_(0.2)
    assert close(scored(Model(hf, tokenizer(), prove=False)), before, 1e-5)


def test_a_source_that_writes_nothing_or_where_nobody_reads_scores_zero() -> None:
    hf = fresh("llama")
    with torch.no_grad():
        hf.model.layers[0].self_attn.o_proj.weight[:16] = 0  # heads write into the last dimensions
        hf.model.layers[0].mlp.down_proj.weight[:] = 0
        for projection in (hf.model.layers[1].self_attn.q_proj, hf.model.layers[2].mlp.gate_proj,
                           hf.model.layers[2].mlp.up_proj):  # fmt: skip
            projection.weight[:, 16:] = 0
    model = Model(hf, tokenizer(), prove=False)
    by_name = dict(zip(model.graph.edge_names, scored(model).tolist()))
    zero = {name for name, score in by_name.items() if score == 0}
    assert {f"a0.h{h}->a1.h{i}<q>" for h in range(HEADS) for i in range(HEADS)} <= zero
    assert {f"a0.h{h}->m2" for h in range(HEADS)} <= zero
    assert {name for name in by_name if name.startswith("m0->")} <= zero
    assert by_name["a0.h0->a1.h0<k>"] > 0 and by_name["a0.h0->m1"] > 0
    assert len(zero) == HEADS * HEADS + HEADS + sum(name.startswith("m0->") for name in by_name)


def test_mixtures_of_experts_have_no_one_matrix() -> None:
    with pytest.raises(SkipCell, match=r"FFNs of .* are mixtures of experts"):
        scored(hooked("mixtral"))
