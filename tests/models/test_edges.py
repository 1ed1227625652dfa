"""Replaced edges and gradients at destinations, against runs in which every destination is read by a run of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import get_level
from attriboard.interventions import EdgeIntervention, intervene
from attriboard.model import EncodedExample, Model
from attriboard.models.edges import OwnGradients, ReplacedEdges, Written
from attriboard.models.names import hook_name
from tests.bench import models as m

EDGES = get_level("edges")
FIRST = m.EXAMPLES[0]
HEADS = 4

# --- the literal run --------------------------------------------------------------------------------------------------

_QKV = {
    "gpt2": ("attn.c_attn",),
    "gptj": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "neox_parallel": ("attention.query_key_value",),
    "gpt_neo": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    "gpt_bigcode": ("attn.c_attn",),
    "falcon": ("self_attention.query_key_value",),
    "falcon_groups": ("self_attention.query_key_value",),
    "bloom": ("self_attention.query_key_value",),
    "phi3": ("self_attn.qkv_proj",),
}
_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GROUPS = {"gemma": 1, "gpt_bigcode": 1, "falcon": 1}
_OWN_KEYS = ("gpt2", "gptj", "neox_parallel", "gpt_neo", "bloom", "opt")
JUDGED = (
    "llama", "llama_biases_tied", "qwen3", "gemma", "gemma2", "gemma3", "gpt2", "gptj", "neox_parallel", "opt", "phi",
    "phi3", "olmo2", "stablelm_parallel", "granite", "glm4", "gpt_neo", "gpt_bigcode", "bloom", "falcon",
    "falcon_groups",
)  # fmt: skip


SINGLE = ("gptj", "gpt_neo", "cohere", "cohere2")
"""Families that compute scores or rotary embeddings in float32, whatever the model's precision."""


def columns(family: str, n_kv: int, part: str, head: int, width: int) -> tuple[int, slice]:
    """Which module makes a head's query, key or value, and at which columns, for a model of these numbers."""
    group = head * n_kv // HEADS
    own = head if part == "q" else group
    if len(_QKV.get(family, _SEPARATE)) == 3:
        return "qkv".index(part), slice(own * width, (own + 1) * width)
    if family in ("gpt2", "phi3"):  # all queries, all keys, all values
        start = {"q": 0, "k": HEADS, "v": HEADS + n_kv}[part] + own
    else:  # of every group the queries, the key and the value
        per_group = HEADS // n_kv + 2
        start = group * per_group + {"q": head % (HEADS // n_kv), "k": per_group - 2, "v": per_group - 1}[part]
    return 0, slice(start * width, (start + 1) * width)


class Literal:
    """Every destination's reading is found by a run of the whole model, in which a residual is set to that reading."""

    def __init__(self, family: str, hf: Any) -> None:
        self.plain, self.family = m.Plain(family, hf), family
        plain = self.plain
        self.n_kv = _GROUPS.get(family, HEADS if family in _OWN_KEYS else 2)
        if family == "phi":
            self.n_kv = 2
        self.width = m.in_out(plain.part("out", 0)).shape[0] // HEADS
        self.parallel = family in m.PARALLEL
        self.normed = m.PARTS[family].attn_end != m.PARTS[family].out

    def projections(self, layer: int) -> list[Any]:
        return [m.get(self.plain.blocks[layer], path) for path in _QKV.get(self.family, _SEPARATE)]

    def made(self, tokens: Sequence[int], layer: int, resid: Tensor) -> list[Tensor]:
        """What each projection makes where the block reads ``resid``."""
        seen: list[Tensor] = []
        hooks = [p.register_forward_hook(lambda _, __, out: seen.append(out[0])) for p in self.projections(layer)]
        self.plain.run(tokens, {("resid_pre", layer): lambda x: resid})
        for hook in hooks:
            hook.remove()
        return seen

    def z(self, tokens: Sequence[int], layer: int, resid: Tensor, own: list[Tensor]) -> Tensor:
        """``[T, H, d_head]`` where projections make what is given."""
        hooks = [p.register_forward_hook(lambda *_, x=x: x[None]) for p, x in zip(self.projections(layer), own)]
        _, seen = self.plain.run(tokens, {("resid_pre", layer): lambda x: resid}, [("z", layer)])
        for hook in hooks:
            hook.remove()
        return seen["z", layer]

    def written(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        """What every source of an ordinary run writes, by name; heads before any norm behind attention."""
        layers = range(self.plain.n_layers)
        sites = [("resid_pre", 0), *((site, layer) for site in ("z", "mlp_out") for layer in layers)]
        _, seen = self.plain.run(tokens, read=sites)
        found = {"input": seen["resid_pre", 0]}
        for layer in layers:
            found |= {f"a{layer}.h{h}": x for h, x in enumerate(self.outputs(layer, seen["z", layer]))}
            found[f"m{layer}"] = seen["mlp_out", layer]
        return found

    def outputs(self, layer: int, z: Tensor) -> list[Tensor]:
        weight = m.in_out(self.plain.part("out", layer))
        scale = 1.0 if self.normed else self.plain.scale
        return [z[:, h] @ weight[h * self.width : (h + 1) * self.width] * scale for h in range(HEADS)]

    def attention(self, layer: int, heads: Sequence[Tensor]) -> Tensor:
        """What attention adds to the residual stream, of its heads' outputs."""
        bias = self.plain.part("out", layer).bias
        scale = 1.0 if self.normed else self.plain.scale
        total = torch.stack(list(heads)).sum(0) + (0 if bias is None else bias * scale)
        return self.plain.part("attn_end", layer)(total) if self.normed else total

    def read(self, name: str, now: dict[str, Tensor], other: dict[str, Tensor], replaced: set[str]) -> Tensor:
        """The residual of a destination: equation (1), layer by layer where a norm stands behind attention."""
        chosen = {u: other[u] if f"{u}->{name}" in replaced else x for u, x in now.items()}
        total = chosen["input"]
        for layer in range(self.plain.n_layers):
            heads = [chosen[f"a{layer}.h{h}"] for h in range(HEADS) if f"a{layer}.h{h}" in chosen]
            total = total + (self.attention(layer, heads) if heads else 0)
            total = total + chosen.get(f"m{layer}", 0)
        return total

    def run(self, tokens: Sequence[int], counterfactual: Sequence[int], replaced: set[str]) -> Tensor:
        """Logits ``[V]`` at the last token."""
        other, layers = self.written(counterfactual), range(self.plain.n_layers)
        now = {"input": self.plain.run(tokens, read=[("resid_pre", 0)])[1]["resid_pre", 0]}
        for layer in layers:
            before, ordinary = dict(now), self.read("nothing", now, other, set())
            own = [x.clone() for x in self.made(tokens, layer, ordinary)]
            heads: list[Tensor] = []
            for head in range(HEADS):
                mine = [x.clone() for x in own]
                for part in "qkv":
                    resid = self.read(f"a{layer}.h{head}<{part}>", before, other, replaced)
                    if self.family == "olmo2":  # normed with the other heads' queries, as if these read the same
                        mine["qkv".index(part)] = self.made(tokens, layer, resid)["qkv".index(part)]
                        continue
                    place, at = columns(self.family, self.n_kv, part, head, self.width)
                    mine[place][:, at] = self.made(tokens, layer, resid)[place][:, at]
                heads.append(self.outputs(layer, self.z(tokens, layer, ordinary, mine))[head])
            now |= {f"a{layer}.h{h}": x for h, x in enumerate(heads)}
            resid = self.read(f"m{layer}", before if self.parallel else now, other, replaced)
            edits: dict[Any, Any] = {("resid_pre", layer): lambda x, r=resid: r}
            if not self.parallel:
                edits[("attn_out", layer)] = torch.zeros_like
            now[f"m{layer}"] = self.plain.run(tokens, edits, [("mlp_out", layer)])[1]["mlp_out", layer]
        last = self.read("logits", now, other, replaced)
        return self.plain.run(tokens, {("resid_post", layers[-1]): lambda x: last})[0]


@functools.cache
def double(family: str) -> Model:
    return Model(m.in_double(m.tiny(family)), name=family, prove=False)


def random_edges(model: Model, n: int, share: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, EDGES.size(model), generator=generator) < share


def logits(values: Tensor, batch: Any) -> Tensor:
    return values


@torch.no_grad()
@pytest.mark.parametrize("family", JUDGED)
def test_any_set_of_edges_is_what_runs_of_single_destinations_make_of_it(family: str) -> None:
    model, literal = double(family), Literal(family, m.in_double(m.tiny(family)))
    assert FIRST.counterfactual is not None
    masks = torch.cat([random_edges(model, 1, share, seed) for seed, share in enumerate((0.1, 0.5, 0.97))])
    with m._SoftmaxInDouble():
        found = EdgeIntervention(model, model.batch([FIRST]), EDGES)(masks, logits)[:, 0]
    names = EDGES.names(model)
    for mask, values in zip(masks, found):
        replaced = {name for name, chosen in zip(names, mask.tolist()) if chosen}
        expected = literal.run(FIRST.tokens, FIRST.counterfactual, replaced)
        assert m.close(values.double(), expected, 3e-7)  # logits are handed over in float32


# --- what must hold ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", m.EVERY)
def test_no_edge_replaced_is_the_clean_run_and_every_edge_replaced_the_counterfactual(family: str) -> None:
    model = double(family)
    for e in m.EXAMPLES:
        batch = model.share_prefix(model.batch([e]))
        assert batch.counterfactual is not None
        other = EdgeIntervention(model, model.batch([e]), EDGES)._other
        for replaced, expected in ((False, batch), (True, batch.counterfactual)):
            masks = torch.full((1, EDGES.size(model)), replaced)
            found = model.run(batch, also=ReplacedEdges(model, batch, masks, other).install).logits
            assert m.close(found, model.run(expected).logits, 1e-10)


@torch.no_grad()
@pytest.mark.parametrize("family", m.EVERY)
def test_replacing_all_edges_out_of_a_node_is_replacing_the_node(family: str) -> None:
    model, level = double(family), get_level("nodes")
    batch = model.batch([FIRST])
    graph = model.graph
    out = torch.tensor(graph.edge_sources)[None] == torch.arange(1, len(graph.src_nodes))[:, None]
    found = EdgeIntervention(model, batch, EDGES)(out, logits)
    expected = intervene(model, batch, level)(torch.eye(level.size(model), dtype=torch.bool), logits)
    assert m.close(found, expected, 1e-6)  # handed over in float32


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_only_one_node_into_the_logits_is_the_unembedding_of_what_it_writes(family: str) -> None:
    """All edges into the logits replaced but one: the final norm of that node and everyone else's counterfactual."""
    model = double(family)
    batch = model.batch([FIRST])
    intervention = EdgeIntervention(model, batch, EDGES)
    graph, clean, other = model.graph, intervention._written, intervention._other
    into = graph.into_logits
    for node, clean_out, other_out in (
        (graph.src_nodes.index("m1"), clean.mlp[1], other.mlp[1]),
        (0, clean.embed, other.embed),
    ):
        mask = torch.zeros(1, graph.n_edges, dtype=torch.bool)
        mask[0, into.edges] = True
        mask[0, into.first + node] = False
        last = hook_name("resid_post", model.n_layers - 1)
        corrupted = model.run(intervention.batch.counterfactual, [last])[last]  # type: ignore[arg-type]
        resid = corrupted + clean_out - other_out
        expected = model.run(intervention.batch, edits={last: lambda x, r=resid: r}).logits
        assert m.close(intervention(mask, logits)[0], expected, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon_groups"])
def test_an_edge_without_a_way_in_or_out_changes_nothing(family: str) -> None:
    """A circuit is the same after pruning: what reads nothing of the prompt writes what the counterfactual's writes."""
    model = double(family)
    graph = model.graph
    kept = ~random_edges(model, 1, 0.9)[0]
    destinations = torch.tensor(graph.edge_destinations)
    of_m1 = destinations == graph.dst_nodes.index("m1")
    kept[of_m1] = False  # the FFN of layer 1 reads the counterfactual alone
    sources = torch.tensor(graph.edge_sources)
    pruned = kept & (sources != graph.src_nodes.index("m1"))
    assert bool((pruned != kept).any())
    found = EdgeIntervention(model, model.batch([FIRST]), EDGES)(torch.stack([~kept, ~pruned]), logits)
    assert m.close(found[0], found[1], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "neox_parallel", "falcon_groups", "opt"])
def test_a_row_does_not_depend_on_its_batch(family: str, padding_side: str) -> None:
    reference = m.hooked(family)
    masks = torch.cat([random_edges(reference, 2, share) for share in (0.0, 0.3, 0.9, 1.0)])
    alone = torch.stack(
        [EdgeIntervention(reference, reference.batch([e]), EDGES)(masks, logits)[:, 0] for e in m.EXAMPLES], dim=1
    )
    for size in (1, 3, 64):
        model = m.hooked(family, batch_size=size, padding_side=padding_side)
        found = EdgeIntervention(model, model.batch(m.EXAMPLES), EDGES)(masks, logits)
        assert m.close(found, alone, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox_parallel"])
def test_a_pass_may_begin_where_a_set_begins_to_differ(family: str) -> None:
    """From the clean run or from the counterfactual; each layer in turn is the first that differs."""
    model = double(family)
    graph, batch = model.graph, model.batch([FIRST])
    intervention = EdgeIntervention(model, batch, EDGES)
    shared = intervention.batch
    for layer in range(model.n_layers):
        late = torch.zeros(graph.n_edges, dtype=torch.bool)
        late[graph.into_heads(layer).first :] = random_edges(model, 1, 0.5)[0, graph.into_heads(layer).first :]
        for mask in (late, ~late):
            whole = ReplacedEdges(model, shared, mask[None], intervention._other)
            expected = model.run(shared, also=whole.install).logits
            before = model.cost.flops
            assert m.close(intervention(mask[None], logits)[0], expected, 1e-6)
            assert layer == 0 or model.cost.flops - before < model.sizes.flops(len(FIRST.tokens))


# --- gradients --------------------------------------------------------------------------------------------------------


def gradients_and_written(model: Model, e: EncodedExample) -> tuple[dict[str, Tensor], Written]:
    batch = model.batch([e])
    own = OwnGradients(model, batch)
    run = model.run(batch, also=own.install, gradients=True)
    return own.gradients(m.metric(run.logits[0], e)), own.written


@pytest.mark.parametrize("family", [f for f in m.EVERY if f not in m.MIXTURES])
def test_the_gradient_at_a_destination_is_the_slope_along_a_change_of_what_it_alone_reads(family: str) -> None:
    """Central differences in float64: one edge carries its source's output with a little more of a random direction."""
    model = double(family)
    graph, batch = model.graph, model.batch([FIRST])
    with m._SoftmaxInDouble():
        gradients, clean = gradients_and_written(model, FIRST)
        generator = torch.Generator().manual_seed(0)
        step = torch.randn(clean.embed.shape, generator=generator, dtype=torch.float64)
        found, slopes = [], []
        for destination, (name, row) in {
            "a1.h1<q>": ("heads.1", 1),
            "a1.h3<k>": ("heads.1", 7),
            "a2.h2<v>": ("heads.2", 10),
            "a0.h0<q>": ("heads.0", 0),
            "m0": ("ffn.0", 0),
            "m2": ("ffn.2", 0),
            "logits": ("logits", 0),
        }.items():
            mask = torch.zeros(1, graph.n_edges, dtype=torch.bool)
            mask[0, graph.edge_names.index(f"input->{destination}")] = True

            def moved(h: float, mask: Tensor = mask) -> Tensor:
                other = Written(clean.embed + h * step, clean.z, clean.mlp)
                run = model.run(batch, also=ReplacedEdges(model, batch, mask, other).install)
                return m.metric(run.logits[0], FIRST)[None]

            with torch.no_grad():
                slope = m.slope(moved, 2e-3 if family in SINGLE else 1e-4)
            found.append((gradients[name][0, row] * step[0]).sum()[None])
            slopes.append(slope)
    if family in SINGLE:  # rounding is that of the largest
        assert m.close(torch.cat(found), torch.cat(slopes), 1e-4)
    else:
        assert all(m.close(a, b, 1e-5) for a, b in zip(found, slopes))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "falcon_groups", "mixtral", "gpt_oss"])
def test_gradients_at_all_destinations_add_up_to_that_of_the_embedding(family: str) -> None:
    model = m.hooked(family)
    batch = model.batch([FIRST])
    own = OwnGradients(model, batch)
    run = model.run(batch, [hook_name("resid_pre", 0)], also=own.install, gradients=True)
    value = model.metric(run.logits, batch)
    expected = run.gradients(value, [hook_name("resid_pre", 0)], keep_graph=True)[hook_name("resid_pre", 0)]
    found = torch.stack([g.sum(1) for g in own.gradients(value).values()]).sum(0)
    assert m.close(found, expected, 1e-4)
