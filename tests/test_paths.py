"""Path patching against two literal runs: in the first heads are held by hooks, in the second receivers by theirs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS, get_level
from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.interventions import EdgeIntervention, single_effects
from attriboard.method import methods
from attriboard.model import EncodedExample, Model
from attriboard.paths import PathIntervention, first_reads
from attriboard.selftest.tiny import hooked as hooked_tiny
from attriboard.selftest.tiny import in_double, linear_gpt2, tiny_examples
from tests.bench import models as m
from tests.models.test_edges import Literal, double

EDGES = get_level("edges")
SINGLE = 3e-7
"""Logits are handed over in float32: how far a difference of two may be off, as a share of the largest."""
SENDERS = ("a0.h1", "m0", "a1.h2", "m1", "a2.h3", "m2")
ALONE = {True: ["logits"], False: ["a1.h0<q>", "a1.h3<q>", "a1.h3<k>"]}
"""Receivers of which none stands before another."""
SEVERAL = (["a1.h1<k>", "a1.h2<v>", "m1", "a2.h0<q>", "m2"], ["m0", "a2.h2<v>", "logits"])
"""Of which some do."""


class TwoRuns(Literal):
    """Path patching as it is written: nothing of the project's computes a number here."""

    given: dict[str, Tensor]

    def read(self, name: str, now: dict[str, Tensor], other: dict[str, Tensor], replaced: set[str]) -> Tensor:
        return self.given[name] if name in self.given else super().read(name, now, other, replaced)

    def reads(self, tokens: Sequence[int], edits: dict[Any, Any]) -> dict[str, Tensor]:
        """What everything reads in a run, by name of the destination."""
        sites = [(site, i) for i in range(self.plain.n_layers) for site in ("resid_pre", "attn_out", "resid_post")]
        _, seen = self.plain.run(tokens, edits, sites)
        found = {"logits": seen["resid_post", self.plain.n_layers - 1]}
        for layer in range(self.plain.n_layers):
            before = seen["resid_pre", layer]
            found |= {f"a{layer}.h{h}<{part}>": before for h in range(4) for part in "qkv"}
            found[f"m{layer}"] = before if self.parallel else before + seen["attn_out", layer]
        return found

    def patched(self, e: EncodedExample, sender: str, receivers: Sequence[str], through_ffns: bool) -> Tensor:
        assert e.counterfactual is not None
        sites = [(site, layer) for layer in range(self.plain.n_layers) for site in ("z", "mlp_out")]
        (_, clean), (_, other) = (self.plain.run(tokens, read=sites) for tokens in (e.tokens, e.counterfactual))
        held = {site: x.clone() for site, x in clean.items() if site[0] == "z" or not through_ffns}
        layer = int(sender[1])
        if sender.startswith("a"):
            held["z", layer][:, int(sender[-1])] = other["z", layer][:, int(sender[-1])]
        else:
            held["mlp_out", layer] = other["mlp_out", layer]
        first = self.reads(e.tokens, {site: lambda x, value=value: value for site, value in held.items()})
        self.given = {name: first[name] for name in receivers}
        return self.run(e.tokens, e.counterfactual, set())


@functools.cache
def literal(family: str) -> TwoRuns:
    return TwoRuns(family, m.in_double(m.tiny(family)))


def effects(model: Model, e: EncodedExample, receivers: Sequence[str], **how: bool) -> Tensor:
    with m._SoftmaxInDouble():
        return PathIntervention(model, model.batch([e]), receivers, **how).effects(LEVELS["nodes"].names(model))[0]


@torch.no_grad()
@pytest.mark.parametrize("through_ffns", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "neox_parallel"])
def test_path_patching_is_two_runs(family: str, through_ffns: bool) -> None:
    model, e = double(family), m.EXAMPLES[1]
    logits = literal(family).plain.run(e.tokens)[0]
    clean, rounding = m.metric(logits, e), SINGLE * float(logits.abs().max())
    names = LEVELS["nodes"].names(model)
    for receivers in (ALONE[through_ffns], *SEVERAL):
        found = effects(model, e, receivers, through_ffns=through_ffns)
        for sender in SENDERS[:: 1 if receivers is SEVERAL[0] else 2]:
            expected = clean - m.metric(literal(family).patched(e, sender, receivers, through_ffns), e)
            assert abs(float(found[names.index(sender)] - expected)) <= rounding, (sender, receivers)
        assert float(found.abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", m.FOUR)
def test_all_receivers_together_are_activation_patching_where_only_the_senders_share_is_exchanged(family: str) -> None:
    model = m.hooked(family, batch_size=3)
    options = {"receivers": model.graph.dst_nodes, "through_ffns": False, "held": False}
    for level in ("heads", "nodes"):
        found = methods.make("path_patching", options).attribute(model, m.EXAMPLES, LEVELS[level]).values
        expected = methods.make("activation_patching").attribute(model, m.EXAMPLES, LEVELS[level]).values
        assert m.close(found, expected, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("family", m.FOUR)
def test_the_direct_effect_is_the_unembedding_of_the_last_residual_with_the_senders_output_exchanged(
    family: str, held: bool
) -> None:
    model, lit = double(family), literal(family)
    last = ("resid_post", lit.plain.n_layers - 1)
    for e in m.EXAMPLES[:2]:
        found = effects(model, e, ["logits"], through_ffns=False, held=held)
        sources = [lit.written(tokens) for tokens in (e.tokens, e.counterfactual or ())]
        clean = m.metric(lit.plain.run(e.tokens)[0], e)
        resid = lit.plain.run(e.tokens, read=[last])[1][last]
        for name, own in zip(LEVELS["nodes"].names(model), found.tolist()):
            layer = int(name[1])
            change = sources[1][name] - sources[0][name]
            if name.startswith("a") and lit.normed:  # what the norm behind attention makes of it
                heads = [[x[f"a{layer}.h{h}"] for h in range(4)] for x in (sources[0], sources[0])]
                heads[1][int(name[-1])] = sources[1][name]
                change = lit.attention(layer, heads[1]) - lit.attention(layer, heads[0])
            logits, _ = lit.plain.run(e.tokens, {last: lambda x, moved=resid + change: moved})
            rounding = SINGLE * float(logits.abs().max())
            assert own == pytest.approx(float(clean - m.metric(logits, e)), abs=rounding)


@torch.no_grad()
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox_parallel", "falcon_groups"])
def test_one_receiver_alone_is_the_exact_edge_where_ffns_are_held(family: str, held: bool) -> None:
    model = m.hooked(family)
    names = LEVELS["nodes"].names(model)
    edges = methods.make("exact_edges").attribute(model, m.EXAMPLES, EDGES)
    by_name = dict(zip(edges.names, edges.values.tolist()))
    largest = float(edges.values.abs().max())
    for receiver in ("logits", "m1", "a2.h1<k>", "a1.h0<v>"):
        options = {"receivers": receiver, "through_ffns": False, "held": held}
        found = methods.make("path_patching", options).attribute(model, m.EXAMPLES, LEVELS["nodes"]).values
        for sender, value in zip(names, found.flatten().tolist()):
            assert abs(value - by_name.get(f"{sender}->{receiver}", 0.0)) <= 1e-4 * largest


@torch.no_grad()
def test_on_a_linear_model_the_edges_out_of_a_node_add_up_to_the_node() -> None:
    model = hooked_tiny(in_double(linear_gpt2()))
    batch = model.batch(tiny_examples(model, foils=("w8", "w9", "w10", "w11")))
    edges = single_effects(EdgeIntervention(model, batch, EDGES))
    out = torch.zeros(len(batch), len(model.graph.src_nodes)).index_add_(
        1, torch.tensor(model.graph.edge_sources), edges
    )
    nodes = methods.make("activation_patching").score_batch(model, batch, LEVELS["nodes"])
    assert m.close(out[:, 1:], nodes.flatten(1), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"receivers": SEVERAL[0]}, {"receivers": ["m2"], "through_ffns": False}])
def test_a_row_does_not_depend_on_its_batch(options: dict[str, Any], padding_side: str) -> None:
    reference, method = m.hooked("llama"), methods.make("path_patching", options)
    alone = torch.cat([method.score_batch(reference, reference.batch([e]), LEVELS["nodes"]) for e in m.EXAMPLES])
    for size in (1, 3, 64):
        model = m.hooked("llama", batch_size=size, padding_side=padding_side)
        assert m.close(method.score_batch(model, model.batch(m.EXAMPLES), LEVELS["nodes"]), alone, 1e-4)


def test_who_is_read_first_by_whom() -> None:
    graph = m.hooked("gpt2").graph
    names = graph.src_nodes
    reads = dict(zip(names, first_reads(graph, {"a2.h0<q>", "m1"})))
    assert (reads["input"], reads["a1.h3"], reads["m1"], reads["a2.h0"], reads["m2"]) == (1, 1, 2, None, None)
    assert set(first_reads(graph, {"logits"})) == {2}
    parallel = dict(zip(names, first_reads(m.hooked("neox_parallel").graph, {"m1"})))
    assert (parallel["m0"], parallel["a1.h0"]) == (1, None)


def test_wrong_receivers_and_options_are_refused_in_a_sentence() -> None:
    model = m.hooked("gpt2")
    for name, near in (("a1.h0", "'a1.h0<[qkv]>'"), ("logit", "'logits'"), ("a9.h9<q>", "")):
        method = methods.make("path_patching", {"receivers": ["m1", name]})
        with pytest.raises(UnknownNameError, match=f"unknown receiver of .*: '{name}': did you mean .*{near}"):
            method.attribute(model, m.EXAMPLES, LEVELS["heads"])
    for wrong in ([], 3, ["m1", 2], None):
        with pytest.raises(ConfigurationError, match=r"receivers of path_patching is .*, expected a name such as"):
            methods.make("path_patching", {"receivers": wrong})
    with pytest.raises(ConfigurationError, match="set through_ffns = false too"):
        methods.make("path_patching", {"held": False})
    with pytest.raises(ConfigurationError, match="through_ffns of path_patching is 'no'"):
        methods.make("path_patching", {"through_ffns": "no"})
