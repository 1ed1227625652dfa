"""Information flow routes against their definition written out: one position, one part, one path after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from attriboard.components import LEVELS
from attriboard.errors import ConfigurationError
from attriboard.method import methods
from attriboard.model import EncodedExample, Model
from attriboard.task import Example
from methods import ifr
from tests.bench.memory import LivingTensors
from tests.bench.models import (
    EVERY,
    EXAMPLES,
    FOUR,
    LAYERS,
    PARALLEL,
    PARTS,
    Plain,
    close,
    get,
    hooked,
    in_double,
    in_out,
    literal_outputs,
    tiny,
    tiny_llava,
    vision_examples,
)

HEADS = 4
POSITIONS = ("gpt2", "gpt_neo", "gpt_bigcode", "opt")
"""Families with position embeddings."""
JUDGED = (
    *FOUR, "gemma3", "olmo2", "granite", "gpt_neo", "gpt_bigcode", "bloom", "opt", "phi", "falcon", "llama_biases_tied",
    "stablelm_parallel", "gpt_oss", "mixtral",
)  # fmt: skip
ROUTED = (*FOUR, "gemma3", "olmo2", "granite", "opt", "phi", "falcon", "llama_biases_tied", "mixtral")


# --- the definition ---------------------------------------------------------------------------------------------------


def importances(whole: Tensor, parts: dict[Any, Tensor], epsilon: float = 1e-5, threshold: float = 0.0) -> Any:
    """By part, of one sum."""
    near = {name: max(float(whole.abs().sum() - (whole - z).abs().sum()), epsilon) for name, z in parts.items()}
    total = sum(near.values())
    found = {name: x / total for name, x in near.items()}
    kept = {name: x for name, x in found.items() if x >= threshold}
    return {name: kept.get(name, 0.0) / sum(kept.values()) for name in found}


@functools.cache
def double(family: str) -> tuple[Model, Plain]:
    hf = in_double(tiny(family))
    return Model(hf, name=family, prove=False), Plain(family, hf)


def seen_in(plain: Plain, e: EncodedExample) -> dict[Any, Tensor]:
    sites = [(site, layer) for layer in range(LAYERS) for site in ("resid_pre", "attn_out", "z", "mlp_out")]
    return plain.run(e.tokens, read=[*sites, ("embed", 0), ("resid_post", LAYERS - 1)])[1]


def bias(plain: Plain, layer: int, whole: Tensor, heads: Tensor) -> Tensor | None:
    """What attention writes beside its heads, at one position."""
    return None if plain.part("out", layer).bias is None else whole - heads.sum(0)


def literal_edges(plain: Plain, e: EncodedExample, names: Sequence[str], **options: float) -> Tensor:
    """``[E]``; a destination's parts are collected by name, and must add up to it with biases and positions."""
    seen, parallel, found = seen_in(plain, e), plain.family in PARALLEL, dict.fromkeys(names, 0.0)
    for t in range(len(e.tokens)):
        embed, rest = seen["resid_pre", 0][t], None
        if plain.family in POSITIONS:
            rest, embed = seen["resid_pre", 0][t] - seen["embed", 0][t], seen["embed", 0][t]
        parts = {"input": embed}

        def give(destinations: Sequence[str], whole: Tensor, parts: dict[str, Tensor], rest: Tensor | None) -> None:
            assert close(sum(parts.values(), torch.zeros(())) + (0 if rest is None else rest), whole, 1e-6)
            shares = importances(whole, parts if rest is None else {**parts, "rest": rest}, **options)
            for v in destinations:
                for u in parts:
                    found[f"{u}->{v}"] += shares[u] / len(e.tokens)

        for layer in range(LAYERS):
            whole = seen["resid_pre", layer][t]
            give([f"a{layer}.h{h}<{x}>" for h in range(HEADS) for x in "qkv"], whole, parts, rest)
            if parallel:
                give([f"m{layer}"], whole, parts, rest)
            outputs, attention = literal_outputs(plain, "heads", seen["z", layer][t], layer), seen["attn_out", layer][t]
            parts = {**parts, **{f"a{layer}.h{h}": x for h, x in enumerate(outputs)}}
            more = bias(plain, layer, attention, outputs)
            rest = rest if more is None else more if rest is None else rest + more
            if not parallel:
                give([f"m{layer}"], whole + attention, parts, rest)
            parts = {**parts, f"m{layer}": seen["mlp_out", layer][t]}
        give(["logits"], seen["resid_post", LAYERS - 1][t], parts, rest)
    return torch.tensor([found[name] for name in names])


class Routes:
    """The flow of one example, from the last residual down, each sum by itself."""

    def __init__(self, plain: Plain, e: EncodedExample, **options: float) -> None:
        self.plain, self.e, self.options = plain, e, options
        self.seen, self.parallel = seen_in(plain, e), plain.family in PARALLEL
        self.patterns, self.values = plain.patterns(e.tokens), plain.values(e.tokens)
        n = len(e.tokens)
        self.heads = torch.zeros(LAYERS, HEADS)
        flow = {n - 1: 1.0}
        for layer in reversed(range(LAYERS)):
            below = dict.fromkeys(range(n), 0.0)
            for query, amount in flow.items():
                for part, share in self.importances(layer, query).items():
                    if part in ("residual", "ffn"):
                        below[query] += amount * share
                    elif part != "bias":
                        head, key = part
                        self.heads[layer, head] += amount * share
                        below[key] += amount * share
            flow = below
        self.tokens = torch.tensor([flow[t] for t in range(n)])

    def importances(self, layer: int, query: int) -> Any:
        seen, before = self.seen, self.seen["resid_pre", layer][query]
        attention = seen["attn_out", layer][query]
        parts: dict[Any, Tensor] = {"residual": before}
        z = seen["z", layer][query]
        outputs = literal_outputs(self.plain, "heads", z, layer)
        for head in range(HEADS):
            for key in range(len(self.e.tokens)):
                weight = self.patterns[layer][head, query, key]
                if weight > 0:
                    read = torch.zeros_like(z)
                    read[head] = weight * self.values[layer][head, key]
                    parts[head, key] = self.written(layer, z, read)[head]
        rest = bias(self.plain, layer, attention, outputs)
        if rest is not None:
            parts["bias"] = rest
        whole = before + attention
        if self.parallel:
            parts["ffn"] = seen["mlp_out", layer][query]
            whole = whole + parts["ffn"]
        assert close(torch.stack(list(parts.values())).sum(0), whole, 1e-6)
        return importances(whole, parts, **self.options)

    def written(self, layer: int, z: Tensor, read: Tensor) -> Tensor:
        """``[H, d_model]``: what a share ``read`` of ``z`` writes, by the factors that the whole ``z`` has behind W_O.

        Those are 1, or the model's own factor, or a norm's weights over its scale at ``z``.
        """
        weight = in_out(self.plain.part("out", layer)).view(*z.shape, -1)
        before, part = (torch.einsum("he,hed->hd", x, weight) for x in (z, read))
        return part * literal_outputs(self.plain, "heads", z, layer) / before


def scored(model: Model, level: str, examples: Sequence[EncodedExample], **options: Any) -> list[Tensor]:
    return methods.make("ifr", options).each(model, examples, LEVELS[level])


# --- against it -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", JUDGED)
def test_edges_are_how_close_each_source_is_to_what_a_destination_reads(family: str) -> None:
    model, plain = double(family)
    names = LEVELS["edges"].names(model)
    for e in EXAMPLES[:2]:
        (found,) = scored(model, "edges", [e])
        assert close(found.double(), literal_edges(plain, e, names).double(), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"threshold": 0.05}, {"epsilon": 1.0}], ids=str)
def test_edges_with_other_options_are_their_definition(options: dict[str, float]) -> None:
    model, plain = double("gpt2")
    (found,) = scored(model, "edges", EXAMPLES[:1], **options)
    assert close(
        found.double(), literal_edges(plain, EXAMPLES[0], LEVELS["edges"].names(model), **options).double(), 1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ROUTED)
def test_heads_and_tokens_are_what_flows_back_along_the_routes(family: str) -> None:
    model, plain = double(family)
    for e in EXAMPLES[:2]:
        routes = Routes(plain, e)
        assert close(scored(model, "heads", [e])[0].double(), routes.heads.double(), 1e-6)
        assert close(scored(model, "tokens", [e])[0].double(), routes.tokens.double(), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox_parallel"])
def test_heads_at_the_last_token_are_their_importance_in_its_sums(family: str) -> None:
    model, plain = double(family)
    e = EXAMPLES[1]
    routes = Routes(plain, e)
    expected = torch.zeros(LAYERS, HEADS)
    for layer in range(LAYERS):
        for part, share in routes.importances(layer, len(e.tokens) - 1).items():
            if isinstance(part, tuple):
                expected[layer, part[0]] += share
    assert close(scored(model, "heads", [e], at="last")[0].double(), expected.double(), 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"threshold": 0.03}], ids=str)
def test_routes_with_other_options_are_their_definition(options: dict[str, float]) -> None:
    model, plain = double("gpt2")
    routes = Routes(plain, EXAMPLES[0], **options)
    assert close(scored(model, "tokens", EXAMPLES[:1], **options)[0].double(), routes.tokens.double(), 1e-6)


@torch.no_grad()
def test_parts_by_key_are_the_same_however_few_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = hooked("gemma2")
    reference = [scored(model, level, EXAMPLES) for level in ("tokens", "edges")]
    monkeypatch.setitem(ifr.PART_BYTES, "cpu", 1)
    for level, expected in zip(("tokens", "edges"), reference):
        assert all(close(a, b, 1e-6) for a, b in zip(scored(model, level, EXAMPLES), expected))


@pytest.mark.parametrize("level", ["tokens", "heads", "edges"])
def test_long_prompts_take_no_more_than_the_bound(level: str) -> None:
    """The parts by head and key position alone would take 4 heads x 228 x 228 x 64 numbers, 53 MB a row."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = Model(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=97)), name="eight layers")
    rows, n = 2, 228
    examples = [EncodedExample(Example("", ""), tuple(range(3, 60)) * 4, 1, 2, None) for _ in range(rows)]
    with LivingTensors(model.hf.parameters()) as bare:
        model.run(model.batch(examples))
    with LivingTensors(model.hf.parameters()) as memory:
        scored(model, level, examples)
    residual, pattern, shares = 4 * n * 64, 4 * 4 * n * n, 4 * 2 * 8 * 42 * n
    bound = (
        8 * 8 * residual + 4 * residual + 3 * shares if level == "edges" else 2 * pattern + 8 * pattern + 8 * residual
    )
    assert memory.peak < bare.peak + rows * bound + ifr.PART_BYTES["cpu"]


# --- what must hold ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_edges_into_a_destination_and_tokens_add_up_to_one_less_what_no_source_writes(family: str) -> None:
    model = hooked(family)
    e = EXAMPLES[0]
    (edges,), (tokens,) = scored(model, "edges", [e]), scored(model, "tokens", [e])
    sums = torch.zeros(len(model.graph.dst_nodes)).index_add_(0, torch.tensor(model.graph.edge_destinations), edges)
    sums = torch.cat([sums, tokens.sum()[None]])
    biased = any(get(block, PARTS[family].out).bias is not None for block in model.blocks)
    if biased or family.startswith(POSITIONS):
        assert bool((sums < 0.99).any()) and float(sums.max()) < 1 + 1e-5
    else:
        assert close(sums, torch.ones_like(sums), 1e-5)
    assert float(edges.min()) >= 0 and float(tokens.min()) >= 0


@torch.no_grad()
def test_a_layers_queries_keys_and_values_have_the_same_scores() -> None:
    graph = hooked("llama").graph
    (found,) = scored(hooked("llama"), "edges", EXAMPLES[:1])
    for layer in range(LAYERS):
        block = graph.into_heads(layer)
        rows = found[block.edges].view(block.n_destinations, block.n_sources)
        assert torch.equal(rows, rows[:1].expand_as(rows))


@torch.no_grad()
def test_tokens_and_patches_of_a_picture_add_up_to_one() -> None:
    model = tiny_llava()
    examples = list(vision_examples())
    for words, picture in zip(scored(model, "tokens", examples), scored(model, "patches", examples)):
        assert float(words.sum() + picture.sum()) == pytest.approx(1, abs=1e-5)
        assert float(picture.min()) > 0


def parts_and_whole(*parts: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    stacked = torch.tensor(parts, dtype=torch.float32)
    return stacked.sum(0), stacked


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (((1, 1), (-1, 0), (2, 1)), (0.4, 0, 0.6)),
        (((2, 0), (1, 1)), (0.5, 0.5)),
        (((1, 1), (1, 1), (2, 2)), (0.25, 0.25, 0.5)),
        (((3, 1), (0, 0)), (1, 0)),  # a part equal to the sum
        (((-1, -1), (3, 3)), (0, 1)),  # a part against it
        (((3, 0), (-2, 0)), (0, 0)),  # large parts that cancel: none is close
        (((0.5, 3), (-0.5, 2)), (0.625, 0.375)),  # where the sum is zero, every part leads away from it
    ],
)
def test_importances_of_small_sums(parts: Any, expected: tuple[float, ...]) -> None:
    whole, parts = parts_and_whole(*parts)
    found = ifr._shares(ifr.Ifr(epsilon=0.0)._close(whole, parts), 0.0)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float32))


def test_small_parts_of_a_large_sum_are_not_lost_in_rounding() -> None:
    whole, parts = parts_and_whole((1e8, 0, 0), (0, 1, 0), (0, 0, -2))
    assert ifr.Ifr()._close(whole, parts).tolist() == [1e8, 1, 2]


def test_without_anything_close_epsilon_gives_equal_shares() -> None:
    whole, parts = parts_and_whole((3, 0), (-2, 0))
    assert ifr._shares(ifr.Ifr()._close(whole, parts), 0.0).tolist() == [0.5, 0.5]


def test_what_is_below_the_threshold_is_dropped_and_the_rest_made_whole() -> None:
    found = ifr._shares(torch.tensor([0.05, 0.15, 0.8]), 0.1)
    assert torch.allclose(found, torch.tensor([0, 0.157894, 0.842105]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", [*FOUR, "gpt_oss", "falcon"])
def test_edges_and_last_heads_do_not_depend_on_the_batch(family: str, padding_side: str) -> None:
    model = hooked(family, batch_size=3, padding_side=padding_side)
    for level, options in (("edges", {}), ("heads", {"at": "last"})):
        alone = [scored(hooked(family), level, [e], **options)[0] for e in EXAMPLES]
        for a, b in zip(scored(model, level, EXAMPLES, **options), alone):
            assert close(a, b, 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1e-5}, "epsilon of ifr is -1e-05, expected a number of at least 0"),
        ({"epsilon": float("nan")}, "epsilon of ifr is nan"),
        ({"epsilon": True}, "epsilon of ifr is True"),
        ({"threshold": 1.0}, "threshold of ifr is 1.0, expected a number of at least 0 and less than 1"),
        ({"at": "first"}, "at of ifr is 'first', expected 'routes' or 'last'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        methods.make("ifr", options)
