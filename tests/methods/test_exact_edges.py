"""The exact effect of edges: every measured one against a run in which that edge alone is replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attriboard.components import get_level
from attriboard.errors import ConfigurationError
from attriboard.method import methods
from tests.bench import models as m
from tests.models.test_edges import Literal, double

EDGES = get_level("edges")
SOME = ("input->a0.h1<q>", "a0.h2->a1.h1<v>", "m0->a2.h3<k>", "a1.h0->m1", "m1->m2", "a2.h1->logits", "input->logits")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "neox_parallel"])
def test_an_edges_score_is_the_metric_lost_in_a_run_of_its_own(family: str) -> None:
    model, literal, e = double(family), Literal(family, m.in_double(m.tiny(family))), m.EXAMPLES[1]
    assert e.counterfactual is not None
    with m._SoftmaxInDouble():
        scores = methods.make("exact_edges").attribute(model, [e], EDGES)
    found = dict(zip(scores.names, scores.values.tolist()))
    clean = literal.plain.run(e.tokens)[0]
    for name in SOME:
        if name not in found:  # the FFN of a parallel block does not read its own layer's heads
            assert family == "neox_parallel" and name == "a1.h0->m1"
            continue
        expected = m.metric(clean, e) - m.metric(literal.run(e.tokens, e.counterfactual, {name}), e)
        assert found[name] == pytest.approx(float(expected), abs=3e-7 * float(clean.abs().max()))


def test_a_sample_has_the_largest_by_eap_and_others_at_random_and_says_which() -> None:
    model = m.hooked("gpt2")
    whole = methods.make("exact_edges").attribute(model, m.EXAMPLES, EDGES)
    assert "measured" not in whole.metadata and whole.each is not None and len(whole.each) == len(m.EXAMPLES)
    eap = methods.make("eap").attribute(model, m.EXAMPLES, EDGES)
    drawn = {}
    for seed in (0, 1):
        scores = methods.make("exact_edges", {"sample": 12, "top": 5, "seed": seed}).attribute(model, m.EXAMPLES, EDGES)
        drawn[seed] = scores.metadata["measured"]
        inside = torch.tensor([name in drawn[seed] for name in scores.names])
        assert int(inside.sum()) == len(drawn[seed]) == 17
        assert {eap.names[i] for i in eap.ranking(absolute=True)[:5].tolist()} <= set(drawn[seed])
        assert m.close(scores.values[inside], whole.values[inside], 1e-5)
        assert not scores.values[~inside].any()
    assert drawn[0] != drawn[1]
    everything = methods.make("exact_edges", {"sample": 10**6}).attribute(model, m.EXAMPLES, EDGES)
    assert len(everything.metadata["measured"]) == EDGES.size(model)


def test_scores_of_a_sample_do_not_average_and_those_of_all_edges_do() -> None:
    assert methods.make("exact_edges").averages and not methods.make("exact_edges", {"sample": 3}).averages


def test_too_many_edges_are_refused_unless_some_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = m.hooked("gpt2")
    module: Any = __import__("attriboard.methods.exact_edges", fromlist=["MOST"])
    monkeypatch.setattr(module, "MOST", 100)
    with pytest.raises(ConfigurationError, match=r"edges, too many for exact_edges .* \(at most 100\): set sample"):
        methods.make("exact_edges").attribute(model, m.EXAMPLES, EDGES)
    methods.make("exact_edges", {"sample": 3, "top": 2}).attribute(model, m.EXAMPLES[:1], EDGES)


@pytest.mark.parametrize(("option", "value"), [("sample", -1), ("top", -3), ("sample", 2.5), ("seed", "one")])
def test_wrong_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} of exact_edges is {value!r}, expected"):
        methods.make("exact_edges", {option: value})
