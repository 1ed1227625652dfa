"""Methods on edges, against sums written out, node methods, and exact effects where these are linear."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from attriboard.components import get_level
from attriboard.errors import ConfigurationError
from attriboard.interventions import EdgeIntervention, pinned, single_effects
from attriboard.method import methods
from attriboard.model import Batch, Model, hook_name
from attriboard.models.edges import OwnGradients
from attriboard.selftest import tiny
from tests.bench import models as m

EDGES, NODES = get_level("edges"), get_level("nodes")
FAMILIES = ("llama", "qwen3", "gemma3", "gpt2", "neox_parallel", "falcon_groups", "olmo2", "granite", "opt")


def scored(model: Model, name: str, batch: Batch | None = None, level: Any = EDGES, **options: Any) -> Tensor:
    """``[B, n]``."""
    batch = model.batch(m.EXAMPLES) if batch is None else batch
    return methods.make(name, options).score_batch(model, batch, level).flatten(1)


def out_of_nodes(model: Model, scores: Tensor) -> Tensor:
    """``[B, nodes]``: edge scores summed over all edges out of each node, without the embedding's."""
    sums = torch.zeros(len(scores), len(model.graph.src_nodes))
    return sums.index_add_(1, torch.tensor(model.graph.edge_sources), scores)[:, 1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_out_of_a_node_add_up_to_the_score_of_the_node(family: str) -> None:
    model = m.hooked(family)
    for name, options, of_nodes in (
        ("eap", {}, "attribution_patching"),
        ("eap_ig", {"steps": 3}, "eap_ig"),
        ("eap_ig", {"steps": 2, "rule": "left"}, "eap_ig"),
    ):
        expected = scored(model, of_nodes, level=NODES, **options)
        assert m.close(out_of_nodes(model, scored(model, name, **options)), expected, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_eap_is_every_source_s_difference_times_every_destination_s_gradient(family: str) -> None:
    """One example, no shared prefix, one edge after the other; only a few edges of each kind."""
    model, e = m.hooked(family), m.EXAMPLES[2]
    batch = model.batch([e])
    assert batch.counterfactual is not None
    own = OwnGradients(model, batch)
    run = model.run(batch, also=own.install, gradients=True)
    gradients = own.gradients(model.metric(run.logits, batch))
    sites = [hook_name(site, layer) for layer in range(model.n_layers) for site in ("z", "mlp_out", "attn_out")]
    clean, other = (model.run(b, [hook_name("resid_pre", 0), *sites]) for b in (batch, batch.counterfactual))
    found = dict(zip(EDGES.names(model), scored(model, "eap", batch)[0].tolist()))

    def difference(source: str) -> Tensor:
        if source == "input":
            return (other[hook_name("resid_pre", 0)] - clean[hook_name("resid_pre", 0)])[0]
        layer = int(source[1 : source.index(".")] if "." in source else source[1:])
        if source.startswith("m"):
            return (other[hook_name("mlp_out", layer)] - clean[hook_name("mlp_out", layer)])[0]
        head, name = int(source.split(".h")[1]), hook_name("z", layer)
        changed = torch.zeros_like(clean[name])
        changed[:, :, head] = other[name][:, :, head] - clean[name][:, :, head]

        def written(share: float) -> Tensor:
            edits = {name: lambda z: z + share * changed}
            return model.run(batch, [hook_name("attn_out", layer)], edits)[hook_name("attn_out", layer)][0]

        with torch.no_grad():
            return m.slope(written, 1e-2)  # behind a norm after attention to first order

    def at(destination: str) -> Tensor:
        if destination == "logits":
            return gradients["logits"][0, 0]
        layer = int(destination[1 : destination.index(".")] if "." in destination else destination[1:])
        if destination.startswith("m"):
            return gradients[f"ffn.{layer}"][0, 0]
        head, part = int(destination.split(".h")[1][:-3]), "qkv".index(destination[-2])
        return gradients[f"heads.{layer}"][0, part * model.n_heads + head]

    chosen = [
        "input->a0.h0<q>", "input->m0", "input->a2.h1<v>", "a0.h1->a1.h2<k>", "a0.h3->a2.h0<v>", "m0->a1.h1<q>",
        "m1->a2.h3<k>", "a1.h2->logits", "m2->logits", "input->logits",
    ]  # fmt: skip
    if not model.graph.parallel_attn_mlp:
        chosen += ["a0.h2->m0", "a2.h0->m2"]
    expected = torch.stack([-(difference(u) * at(v)).sum() for u, v in (name.split("->") for name in chosen)])
    assert m.close(torch.tensor([found[name] for name in chosen]), expected, 2e-4)


def test_one_step_to_the_clean_prompt_is_eap_and_one_from_the_counterfactual_its_gradient_there() -> None:
    model = m.hooked("gpt2")
    batch = model.batch(m.EXAMPLES)
    assert batch.counterfactual is not None
    swapped = copy.copy(batch.counterfactual)
    object.__setattr__(swapped, "counterfactual", batch)
    clean, there = scored(model, "eap"), -scored(model, "eap", swapped)
    assert m.close(scored(model, "eap_ig", steps=1), clean, 1e-5)
    assert m.close(scored(model, "eap_clean_corrupted"), (clean + there) / 2, 1e-5)
    # GPT-2's position embeddings are added behind what is interpolated, so that the path begins at the counterfactual
    assert m.close(scored(model, "eap_ig", steps=1, rule="left"), there, 1e-5)


def test_all_rules_come_to_the_same_integral() -> None:
    model = m.hooked("gpt2")
    left, right, midpoint = (scored(model, "eap_ig", steps=40, rule=rule) for rule in ("left", "right", "midpoint"))
    few = scored(model, "eap_ig", steps=5, rule="right")
    assert m.close((left + right) / 2, midpoint, 2e-3)  # trapezoid against midpoint rule
    assert not m.close(few, midpoint, 2e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("credit", ["own", "all"])
def test_activation_paths_are_those_of_whole_layers(family: str, credit: str) -> None:
    """Summed over edges out of a node: its difference times its mean gradient along its own group's path, or all's."""
    model, steps = m.hooked(family), 2
    batch = model.share_prefix(model.batch(m.EXAMPLES))
    assert batch.counterfactual is not None
    names = [hook_name(site, layer) for layer in range(model.n_layers) for site in ("z", "mlp_out")]
    clean, other = (model.run(b, ["hook_embed", *names]) for b in (batch, batch.counterfactual))
    means: dict[str, dict[str, Tensor]] = {}
    for group in ("hook_embed", *names):
        for k in range(1, steps + 1):
            point = other[group] + k / steps * (clean[group] - other[group])
            run = model.run(batch, names, {group: pinned(point)}, gradients=True)
            for name, g in run.gradients(model.metric(run.logits, batch), names).items():
                sums = means.setdefault(group, {})
                sums[name] = sums.get(name, torch.zeros_like(g)) + g / steps
    products = {}
    for name in names:
        over = torch.stack([of_group[name] for of_group in means.values()]).mean(0)
        products[name] = (clean[name] - other[name]) * (means[name][name] if credit == "own" else over)
    expected = NODES.reduce(model, products).flatten(1)
    found = out_of_nodes(model, scored(model, "eap_ig_activations", steps=steps, credit=credit))
    assert m.close(found, expected, 1e-5)


def test_on_a_linear_model_estimates_are_exact_edge_by_edge() -> None:
    model = tiny.hooked(tiny.in_double(tiny.linear_gpt2()))
    batch = model.batch(tiny.tiny_examples(model)[:2])
    exact = single_effects(EdgeIntervention(model, batch, EDGES))
    assert float(exact.abs().max()) > 0.1
    for name in ("eap", "eap_ig", "eap_clean_corrupted", "eap_ig_activations"):
        assert m.close(scored(model, name, batch), exact, 1e-5)


@pytest.mark.parametrize("name", ["eap", "eap_ig", "eap_clean_corrupted", "eap_ig_activations"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_scores_do_not_depend_on_batch_size_or_padding(name: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = scored(m.hooked(family), name)
    for size, side in ((1, "left"), (3, "right")):
        model = m.hooked(family, batch_size=size, padding_side=side)
        method = methods.make(name)
        each = torch.stack(method.each(model, m.EXAMPLES, EDGES))
        assert m.close(each, reference, 1e-4)
    monkeypatch.setattr("attriboard.edges.CHANGE_BYTES", 1)  # one row at a time
    assert m.close(scored(m.hooked(family), name), reference, 1e-4)


def test_work_is_what_each_example_takes_by_itself() -> None:
    counted = []
    for size in (1, 4):
        model = m.hooked("llama", batch_size=size)
        methods.make("eap").attribute(model, m.EXAMPLES, EDGES)
        counted.append(model.cost.flops)
    assert counted[0] == counted[1]


@pytest.mark.parametrize("name", ["eap", "eap_ig", "eap_clean_corrupted", "eap_ig_activations"])
def test_a_pair_that_cannot_tell_edges_apart_is_refused(name: str) -> None:
    model = m.hooked("llama")
    same = m.example([5, 17, 33], [5, 17, 33])
    with pytest.raises(ConfigurationError, match=r"the counterfactual of 'w5 w17 w33' is the prompt itself, so that"):
        scored(model, name, model.batch([same]))
    with pytest.raises(ConfigurationError, match="give one for every example"):
        scored(model, name, model.batch([m.example([5, 17, 33])]))


def test_options_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="rule of eap_ig is 'middle', expected one of right, left, midpoint"):
        methods.make("eap_ig", {"rule": "middle"})
    with pytest.raises(ConfigurationError, match="credit of eap_ig_activations is 'half', expected 'all' or 'own'"):
        methods.make("eap_ig_activations", {"credit": "half"})
    with pytest.raises(ConfigurationError, match="replacement of eap_ig is 'zero' there"):
        scored(m.hooked("llama"), "eap_ig", replacement="zero")
