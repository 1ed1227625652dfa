"""Planted models: every component of every model is ablated, and the truth is what the ablations show.

Long because the proof by ablation of all four mechanisms shares its models.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attriboard.board.board import Board
from attriboard.board.markdown import markdown
from attriboard.components import LEVELS, InputLevel, get_level
from attriboard.errors import ConfigurationError, ModelError, SkipCell, UnknownNameError
from attriboard.evaluation import ground_truth
from attriboard.evaluation.context import Context
from attriboard.evaluation.drawing import draw
from attriboard.interventions import Intervention, replace_positions
from attriboard.loading import check_model_name, fingerprint, load_model
from attriboard.log_prob import last_token
from attriboard.measurements.base import Measure
from attriboard.measurements.ground_truth import GroundTruth
from attriboard.measurements.localization import Localization
from attriboard.measurements.registry import METRICS
from attriboard.method import make_method
from attriboard.model import Model, hook_name
from attriboard.models.objective import measure
from attriboard.records.record import Cell, Planned
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run.suite import Suite, find_suite
from attriboard.run.worker import Worker
from attriboard.scores import Scores
from attriboard.task import Example, split_of, tasks
from attriboard.truth import FILE, Part, Truth, read_truth
from attriboard.zoo import planted
from attriboard.zoo.planted import D_HEAD, MECHANISMS, NAMES, blueprint, build, written

EXACT = 1e-5
"""The mechanisms hold to this, and distractors change less."""
MATTERS = 1.0
"""Every needed part moves the logit difference by more than this; the smallest by 4 * sqrt(2 / 10)."""
COMPONENT_LEVELS = ("heads", "nodes", "attn_neurons", "neurons")
PLACED = (*NAMES, "planted-copy-seed3", "planted-redundant-gpt2-seed5", "planted-arithmetic-seed8")


@cache
def model_of(name: str) -> Model:
    return load_model(name, batch_size=64)


def task_of(name: str) -> str:
    return f"planted_{name.split('-')[1]}"


@cache
def context_of(name: str) -> Context:
    return Context(model_of(name), tasks.make(task_of(name)), 0, 30, 8, 64, 8)


def truth_of(name: str) -> Truth:
    truth = model_of(name).truth
    assert truth is not None
    return truth


def effects(name: str, level: str, replacement: Any, n: int = 4) -> tuple[list[Example], Tensor]:
    """Some examples, and ``[n, components, 2]``: what the metric and log p(answer) lose without each component."""
    model, examples = model_of(name), context_of(name).train[:n]
    intervention = Intervention(model, model.batch(examples), get_level(level), replacement)
    size = get_level(level).size(model)
    with_all = torch.zeros(1, size, dtype=torch.bool)
    found = intervention(torch.cat([with_all, torch.eye(size, dtype=torch.bool)]))[..., :2]
    return [e.example for e in examples], (found[:1] - found[1:]).transpose(0, 1)


def previous_heads(name: str) -> list[str]:
    """Of a redundant model, the strong and the weak head that write the noun before."""
    return [part.name for part in truth_of(name).levels["heads"][:2]]


# --- the truth, by exact ablation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", ["zero", "counterfactual"])
@pytest.mark.parametrize("name", PLACED)
def test_every_component_does_what_the_truth_says(name: str, replacement: str) -> None:
    blind = set()
    if "redundant" in name:  # alone, neither does anything when zeroed, and the weak one nothing when patched
        blind = set(previous_heads(name)[0 if replacement == "zero" else 1 :])
    for level in COMPONENT_LEVELS:
        examples, lost = effects(name, level, replacement)
        parts = truth_of(name).levels[level]
        mechanism = {part.name for part in parts}
        for example, row in zip(examples, lost):
            sign = {p.name: 1 if p.role == "helps" else -1 for p in parts if p.matters(example)}
            for component, (metric, log_p) in zip(get_level(level).names(model_of(name)), row.tolist()):
                if component.rpartition(".d")[0] in blind or component in blind:
                    assert abs(metric) < EXACT, (level, component)
                elif component in sign:
                    assert sign[component] * metric > MATTERS, (level, component)
                elif component not in mechanism or replacement == "zero":
                    # a part that is not needed is silent; its counterfactual activation may speak for the foil
                    assert abs(metric) < EXACT and abs(log_p) < EXACT, (level, component)


@pytest.mark.parametrize("name", [n for n in PLACED if "redundant" in n])
def test_two_backups_are_blind_alone_and_break_together(name: str) -> None:
    model, level = model_of(name), get_level("heads")
    names = level.names(model)
    masks = torch.zeros(4, len(names), dtype=torch.bool)
    strong, weak = (names.index(head) for head in previous_heads(name))
    masks[1, strong] = masks[2, weak] = masks[3, strong] = masks[3, weak] = True
    whole, *single, both = context_of(name).measure(level, "zero", masks)[..., Measure.METRIC]
    for one in single:
        assert torch.allclose(one, whole, atol=EXACT)
    assert (both.abs() < EXACT).all()  # all values alike
    patched = context_of(name).measure(level, "counterfactual", masks)[..., Measure.METRIC]
    assert torch.allclose(patched[1], -whole, atol=EXACT)
    assert torch.allclose(patched[2], whole, atol=EXACT)


@pytest.mark.parametrize("name", PLACED)
def test_the_tokens_of_the_truth_are_those_without_which_the_answer_is_lost(name: str) -> None:
    model, level = model_of(name), get_level("tokens")
    assert isinstance(level, InputLevel)
    for encoded in context_of(name).test[:4]:
        n = len(encoded.tokens)
        found = replace_positions(model, encoded, level, "zero", torch.cat([torch.zeros(1, n), torch.eye(n)]).bool())
        lost = found[0, 0] - found[1:, 0]
        true = {at for mark in truth_of(name).tokens for at in model.mark_positions(encoded, mark)}
        assert true and {i for i in range(n) if lost[i] > MATTERS} == true
        assert all(abs(float(lost[i])) < EXACT for i in range(n) if i not in true)


@pytest.mark.parametrize("name", PLACED)
def test_all_is_answered_and_the_counterfactual_is_answered_by_the_foil(name: str) -> None:
    model, context = model_of(name), context_of(name)
    for kept in context.kept.values():
        assert kept.correct == kept.seen
    for encoded in context.test:
        example = encoded.example
        assert example.counterfactual is not None and example.foil is not None
        other = model.encode(Example(example.counterfactual, example.foil, example.answer))
        clean, swapped = (measure(model.run(b).logits, b)[0] for b in map(model.batch, ([encoded], [other])))
        assert torch.allclose(clean, swapped, atol=EXACT)
        assert float(clean[Measure.LOGPROB].exp()) > 0.99


@pytest.mark.parametrize("name", PLACED)
def test_norms_do_nothing(name: str) -> None:
    model = model_of(name)
    batch = model.batch(context_of(name).train[:4])
    sites = [hook_name("resid_pre", layer) for layer in range(model.n_layers)]
    run = model.run(batch, sites)
    for layer, site in enumerate(sites):
        x = run[site]
        assert torch.allclose(model.parts.ln1[layer](x), x, rtol=1e-6, atol=1e-9 if model.architecture.rms else 1e-6)
        assert float(x.mean(-1).abs().max()) < 1e-6


# --- distractors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACED)
def test_distractors_are_as_large_and_as_active_as_the_real_parts(name: str) -> None:
    model = model_of(name)
    assert sum(p.numel() for p in model.hf.parameters()) <= 2_000_000
    heads = torch.stack([model.W_O(layer).flatten(2).norm(dim=-1) for layer in range(model.n_layers)])
    neurons = torch.stack([model.W_out(layer).norm(dim=1) for layer in range(model.n_layers)])
    assert torch.allclose(heads, heads[0, 0, 0].expand_as(heads)) and heads.shape[-1] == D_HEAD
    assert torch.allclose(neurons, neurons[0, 0].expand_as(neurons))
    blocks = heads.square().sum(-1).sqrt()
    assert torch.allclose(neurons.square().sum(-1).sqrt(), blocks[:, 0])
    found, _ = last_token(model, model.batch(context_of(name).train), ("z", "post", "mlp_out"))
    outputs = torch.stack([model.head_outputs(layer, found["z"][:, layer]) for layer in range(model.n_layers)], 1)
    sizes = torch.cat([outputs.norm(dim=-1), found["mlp_out"].norm(dim=-1)[..., None]], -1)
    assert torch.allclose(sizes, torch.tensor(2.0).expand_as(sizes), atol=1e-4)
    active = (found["post"] > planted.ACTIVE / 2).sum(-1)
    assert (active == blueprint(name).together).all()
    assert (found["post"][found["post"] < planted.ACTIVE / 2].abs() < EXACT).all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_real_parts_and_the_unembedding_read_no_axis_that_a_distractor_writes(mechanism: str) -> None:
    """The proof that the module gives, on the blueprint and so for every input."""
    for seed in range(4):
        plan = blueprint(f"planted-{mechanism}-seed{seed}")
        real = {part.name for level in ("attn_neurons", "neurons") for part in plan.truth.levels[level]}
        heads = {part.name for part in plan.truth.levels["heads"]}
        read = {axis for vector in plan.unembed.values() for axis in vector}
        wrote: set[int] = set()
        for layer, (row, neurons) in enumerate(zip(plan.heads, plan.neurons)):
            for h, head in enumerate(row):
                at = f"a{layer}.h{h}"
                if at in heads:
                    read |= {*head.query, *head.key}
                for d, (source, vector) in enumerate(head.rows):
                    if f"{at}.d{d}" in real:
                        read.add(source)
                    else:
                        wrote |= set(vector)
            for j, neuron in enumerate(neurons):
                if f"m{layer}.n{j}" in real:
                    read |= set(neuron.reads)
                else:
                    wrote |= set(neuron.writes)
        assert wrote and not read & wrote


@pytest.mark.parametrize("weight", [1.0, -1.0, 0.5, -0.3])
def test_what_is_written_has_sum_zero_and_one_length(weight: float) -> None:
    vector = written(weight, 3, [5, 8])
    assert vector[3] == weight
    assert sum(vector.values()) == pytest.approx(0, abs=1e-12)
    assert sum(w**2 for w in vector.values()) == pytest.approx(2)


def test_seeds_move_the_places_and_architectures_share_them() -> None:
    for mechanism in MECHANISMS:
        truths = [build(f"planted-{mechanism}-seed{seed}")[2] for seed in range(6)]
        assert len({part.name for truth in truths for part in truth.levels["heads"]}) > 4
        assert len({truth.model_dump_json() for truth in truths}) == 6
        assert build(f"planted-{mechanism}-gpt2-seed3")[2] == truths[3]
        assert build(f"planted-{mechanism}")[2] == truths[0]
    assert {build(f"planted-arithmetic-seed{s}")[2].levels["neurons"][0].name.split(".")[0] for s in range(12)} == {
        "m1",
        "m2",
        "m3",
    }


def test_the_same_name_gives_the_same_weights() -> None:
    names = ["planted-copy", "planted-copy-gpt2", "planted-copy-seed1", "planted-redundant"]
    hashes = [load_model(name).weights_sha256 for name in names]
    assert len(set(hashes)) == len(names)
    assert hashes == [load_model(name).weights_sha256 for name in names]
    assert len({fingerprint(name) for name in names}) == len(names)


# --- saving and loading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["planted-suppressor-seed2", "planted-arithmetic-gpt2"])
def test_a_saved_model_is_the_same_model_with_the_same_truth(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["planted", name, str(tmp_path)])
    planted.main()
    saved, built = load_model(str(tmp_path)), load_model(name)
    assert saved.weights_sha256 == built.weights_sha256
    assert saved.truth == built.truth == read_truth(tmp_path)
    batch = built.batch(draw(built, tasks.make(task_of(name)), "test", 4, 0))
    assert torch.equal(saved.run(batch).logits, built.run(batch).logits)
    before = fingerprint(str(tmp_path))
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("helps", "hurts"))
    assert fingerprint(str(tmp_path)) != before


def test_names_of_planted_models_are_checked(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for name in (*NAMES, "planted-copy-seed12", "planted-redundant-gpt2-seed0"):
        check_model_name(name)
    for name in ("planted-coppy", "planted-copy-seed", "planted-copy-seed01", "planted-copy-gpt3"):
        with pytest.raises(UnknownNameError, match="planted-copy"):
            check_model_name(name)
    monkeypatch.setattr("sys.argv", ["planted", "planted-coppy", "nowhere"])
    with pytest.raises(SystemExit):
        planted.main()
    assert "did you mean 'planted-copy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", "is not a truth: the file: invalid JSON"),
        ({"proof": 3}, "is not a truth: proof: input should be a valid string; mend or remove it."),
        ({"levels": {"head": []}}, "there is no level 'head' of components, but heads, neurons"),
        ({"levels": {"tokens": []}}, "there is no level 'tokens' of components"),
        ({"levels": {"heads": [{"name": "a0.h1", "role": "both"}]}}, "levels.heads.0.role: input should be 'helps'"),
        (
            {"levels": {"heads": [{"name": "a0.h1"}, {"name": "a0.h1", "role": "hurts"}]}},
            "levels: a0.h1 both helps and hurts",
        ),
        ({"levels": {"heads": [{"name": "a0.h4"}]}}, "unknown component of .* level heads: 'a0.h4': did you mean"),
        ({"levels": {"neurons": [{"name": "a0.h1"}]}}, "level neurons: 'a0.h1'"),
    ],
)
def test_a_wrong_truth_is_refused_in_a_sentence(tmp_path: Path, change: Any, said: str) -> None:
    planted.save("planted-copy", tmp_path)
    whole = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(change if isinstance(change, str) else json.dumps({**whole, **change}))
    with pytest.raises(ModelError, match=said):
        load_model(str(tmp_path))


def test_a_model_without_a_truth_has_none(toy: dict[str, Path]) -> None:
    assert load_model(str(toy["model"])).truth is None


def test_a_truth_knows_what_examples_need() -> None:
    truth = Truth(
        proof="by hand",
        levels={
            "heads": (
                Part(name="a0.h0"),
                Part(name="a0.h1", when={"noun": "cat"}),
                Part(name="a0.h2", role="hurts", when={"noun": "dog", "value": "red"}),
                Part(name="a0.h3", when={"absent": "cat"}),
            )
        },
    )
    marks = {"noun": ((0, 3),), "value": ((4, 7),)}
    cat, dog = Example("cat red", "x", marks=marks), Example("dog red", "x", marks=marks)
    assert truth.at("heads", [cat]) == ({"a0.h0", "a0.h1"}, set(), {"a0.h2", "a0.h3"})
    assert truth.at("heads", [dog]) == ({"a0.h0"}, {"a0.h2"}, {"a0.h1", "a0.h3"})
    assert truth.at("heads", [cat, dog]) == ({"a0.h0", "a0.h1"}, {"a0.h2"}, {"a0.h3"})


# --- tasks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_item_of_a_split_comes_before_any_again_and_the_suite_covers_them(mechanism: str) -> None:
    task = tasks.make(f"planted_{mechanism}")
    stream = task.candidates(task.subsets[0], random.Random(0))
    items = {next(stream).item for _ in range(49)}
    assert len(items) == 49
    drawn = Suite.load(find_suite(Path("planted"))).settings.train_examples
    for split in ("train", "test"):
        own = {item for item in items if split_of(item) == split}
        for seed in range(3):
            examples = task.examples(split, 3 * len(own), seed)
            assert {e.item for e in examples[: len(own)]} == own
        assert split == "test" or drawn >= len(own)


def test_counterfactuals_are_what_the_tasks_say() -> None:
    for e in tasks.make("planted_copy").examples("train", 40, 0):
        assert e.counterfactual is not None
        clean, other = e.prompt.split(), e.counterfactual.split()
        assert Counter(clean) == Counter(other) and clean[-2:] == other[-2:]
        assert sum(a != b for a, b in zip(clean, other)) == 2
        assert e.foil is not None and other[other.index(clean[-1]) + 1] == e.foil.strip()
        assert {name: e.prompt[slice(*spans[0])] for name, spans in e.marks.items() if name in ("noun", "query")} == {
            "noun": clean[-1],
            "query": clean[-1],
        }
        assert f" {e.prompt[slice(*e.marks['value'][0])]}" == e.answer
    for e in tasks.make("planted_arithmetic").examples("train", 60, 0):
        assert e.counterfactual is not None
        (a, b), (c, d) = ((int(text.split()[0]), int(text.split()[2])) for text in (e.prompt, e.counterfactual))
        assert a != c and b != d and a + b == int(e.answer) != c + d == int(e.foil or 0)
        assert split_of(f"{c} + {d}") == "train"


# --- scores against the truth --------------------------------------------------------------------------------------


def scored(name: str, method: str, level: str, **options: Any) -> GroundTruth:
    context, made = context_of(name), make_method(method, options, 0)
    at = get_level(level)
    if at.inputs:
        return ground_truth.evaluate(context, made.each(context.model, context.test, at), at)
    return ground_truth.evaluate(context, made.attribute(context.model, context.train, at), at)


def values(found: GroundTruth) -> dict[str, float]:
    return {name: float(statistic(np.arange(found.n))) for name, statistic in found.statistics().items()}


@pytest.mark.parametrize("level", ["heads", "nodes"])
@pytest.mark.parametrize("name", [f"{n}{s}" for n in NAMES for s in ("", "-seed4")])
def test_exact_methods_find_the_mechanism_except_where_there_is_a_backup(name: str, level: str) -> None:
    for method in ("head_ablation", "activation_patching"):
        found = values(scored(name, method, level))
        perfect = {"truth_auroc", "truth_average_precision", "truth_precision_at_size"}
        if "redundant" in name:
            # zeroing sees one of three and patching two; the others tie with the distractors
            assert found["truth_auroc"] == pytest.approx(2 / 3 if method == "head_ablation" else 5 / 6)
            continue
        assert all(found[m] == found[f"{m}_absolute"] == 1.0 for m in perfect)
        assert ("suppressor_auroc" in found) == ("suppressor" in name)
        assert found.get("suppressor_auroc", 1.0) == 1.0


@pytest.mark.parametrize("name", [n for n in PLACED if "redundant" not in n])
def test_patching_finds_the_neurons_and_occlusion_the_tokens(name: str) -> None:
    assert values(scored(name, "occlusion", "tokens", replacement="zero"))["truth_auroc"] == 1.0
    if truth_of(name).levels["neurons"]:
        found = values(scored(name, "activation_patching", "neurons"))
        assert found["truth_auroc"] == found["truth_average_precision"] == 1.0


@pytest.mark.parametrize("kind", ["", "-gpt2"])
def test_norms_and_chance_do_not_find_the_mechanism(kind: str) -> None:
    for mechanism in MECHANISMS:
        names = [f"planted-{mechanism}{kind}-seed{seed}" for seed in range(6)]
        for level in ("heads", "nodes", "neurons"):
            if not truth_of(names[0]).levels[level]:
                continue
            for method in ("activation_norm", "weight_norm"):
                found = [values(scored(name, method, level))["truth_auroc"] for name in names]
                if level == "neurons" and method == "activation_norm":
                    assert all(0.4 < one < 0.6 for one in found), (mechanism, found)
                else:
                    assert found == [0.5] * len(names), (mechanism, level, method)
            drawn = [values(scored(name, "random", level))["truth_auroc"] for name in names]
            assert 0.25 < float(np.mean(drawn)) < 0.75 and max(drawn) < 1


def test_where_nothing_is_known_there_is_nothing_to_compare() -> None:
    with pytest.raises(SkipCell, match="has no part among the neurons at all"):
        scored("planted-copy", "weight_norm", "neurons")
    context = context_of("planted-copy")
    truth, heads = truth_of("planted-copy"), get_level("heads")
    scores = Scores(torch.zeros(heads.shape(context.model)), "heads", heads.names(context.model))
    try:
        for change, said in (
            (None, "planted-copy has no planted mechanism"),
            ({"levels": {}}, "says nothing about heads"),
            ({"levels": {"heads": (Part(name="a0.h0", when={"noun": "fish"}),)}}, "that these examples need"),
        ):
            context.model.truth = None if change is None else truth.model_copy(update=change)
            with pytest.raises(SkipCell, match=said):
                ground_truth.evaluate(context, scores, heads)
        tokens = [torch.zeros(len(e.tokens)) for e in context.test]
        context.model.truth = truth.model_copy(update={"tokens": ("absent",)})
        with pytest.raises(SkipCell, match="the mark 'absent'"):
            ground_truth.evaluate(context, tokens, LEVELS["tokens"])
    finally:
        context.model.truth = truth


def test_parts_that_no_scored_example_needs_are_not_judged() -> None:
    found = scored("planted-arithmetic", "activation_patching", "neurons")
    needed = {e.example.item for e in context_of("planted-arithmetic").train}
    assert found.cases[0].truth.count(1) == len(needed) < 49
    assert found.cases[0].left_out == 49 - len(needed)
    assert len(found.cases[0].scores) == 256 - found.cases[0].left_out


# --- what methods miss is the model's own doing ---------------------------------------------------------------------


def at_head(model: Model, head: str) -> tuple[str, int]:
    layer, h = head[1:].split(".h")
    return hook_name("z", int(layer)), int(h)


@pytest.mark.parametrize("name", [n for n in PLACED if "arithmetic" not in n])
def test_a_little_of_what_gradients_do_not_see_really_changes_nothing(name: str) -> None:
    """The gradient through a saturated pattern is zero, though all of the head decides the answer."""
    model, examples = model_of(name), context_of(name).train[:4]
    batch = model.batch(examples)
    clean = model.metric(model.run(batch).logits, batch)
    heads = [part.name for part in truth_of(name).levels["heads"]]
    previous, match = heads[0], heads[2 if "redundant" in name else 1]
    for method in ("attribution_patching", "gradient_x_activation"):
        scores = make_method(method, {}, 0).attribute(model, examples, get_level("heads"))
        found = dict(zip(scores.names, scores.values.flatten().tolist()))
        assert abs(found[previous]) < EXACT and found[match] > MATTERS
        for head, slope in ((previous, 0.0), (match, None)):
            site, h = at_head(model, head)
            for share in (0.9, 1.1):

                def scaled(z: Tensor, h: int = h, share: float = share) -> Tensor:
                    return torch.cat([z[..., :h, :], share * z[..., h : h + 1, :], z[..., h + 1 :, :]], -2)

                change = clean - model.metric(model.run(batch, edits={site: scaled}).logits, batch)
                assert (float(change.abs().max()) < 1e-4) == (slope == 0.0), (head, share)


@pytest.mark.parametrize("name", PLACED)
def test_what_direct_effects_do_not_see_is_not_read_by_the_unembedding(name: str) -> None:
    model = model_of(name)
    batch = model.batch(context_of(name).train[:4])
    heads = [part.name for part in truth_of(name).levels["heads"]]
    movers = heads[: 1 if "copy" in name or "suppressor" in name else 2]
    found, resid = last_token(model, batch, ("z",))
    for head in movers:
        layer, h = (int(n) for n in head[1:].split(".h"))
        written_there = model.head_outputs(layer, found["z"][:, layer])[:, h]
        assert (written_there.norm(dim=-1) > 1).all()
        assert torch.allclose(model.unembed(resid - written_there), model.unembed(resid), atol=EXACT)
    scores = make_method("direct_logit_attribution", {}, 0).attribute(
        model, context_of(name).train[:4], get_level("heads")
    )
    direct = dict(zip(scores.names, scores.values.flatten().tolist()))
    assert all(abs(direct[head]) < EXACT for head in movers)


@pytest.mark.parametrize("name", ["planted-arithmetic", "planted-suppressor"])
def test_value_neurons_that_nothing_activates_have_no_shares_of_query_neurons(name: str) -> None:
    scores = make_method("query_neurons", {}, 0).attribute(model_of(name), context_of(name).train, get_level("neurons"))
    assert torch.isfinite(scores.values).all()
    assert values(scored(name, "query_neurons", "neurons"))["truth_auroc"] == 0.5


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_integrated_gradients_see_both_backups_where_they_share_a_layer(seed: int) -> None:
    name = f"planted-redundant-seed{seed}"
    one_layer = len({head.split(".")[0] for head in previous_heads(name)}) == 1
    found = values(scored(name, "integrated_gradients", "heads"))["truth_auroc"]
    assert found == pytest.approx(1.0 if one_layer else 5 / 6)


@pytest.mark.parametrize("name", ["planted-arithmetic", "planted-arithmetic-seed2"])
def test_a_distractor_may_know_what_a_real_neuron_knows(name: str) -> None:
    model = model_of(name)
    found, _ = last_token(model, model.batch(context_of(name).train), ("post",))
    active = dict(zip(get_level("neurons").names(model), found["post"].flatten(1).T > planted.ACTIVE / 2))
    real = {part.name for part in truth_of(name).levels["neurons"]}
    needed = [n for n in real if active[n].any()]
    assert needed
    for neuron in needed:
        twins = [n for n, on in active.items() if n not in real and torch.equal(on, active[neuron])]
        assert len(twins) == model.n_layers - 1  # one in every other layer


@pytest.mark.parametrize("name", ["planted-copy", "planted-suppressor-gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_do_not_depend_on_padding_or_neighbors(name: str, side: str) -> None:
    model = load_model(name)
    model.padding_side = side
    texts = (
        "the cup red . the cup",
        "the ball red . the cup blue . the box green . the box",
        "the key gray . the pen red . the key",
    )
    examples = [model.encode(Example(text, answer)) for text, answer in zip(texts, (" red", " green", " gray"))]
    together = model.run(model.batch(examples)).logits
    for row, example in zip(together, examples):
        (alone,) = model.run(model.batch([example])).logits
        assert torch.allclose(row, alone, atol=EXACT)
        assert int(row.argmax()) == example.answer


# --- in records and on the board -----------------------------------------------------------------------------------

SETTINGS = Settings.model_validate(
    {
        "evaluations": ("ground_truth", "localization"),
        "train_examples": 24,
        "test_examples": 8,
        "speed": {"examples": 1, "repeats": 1, "max_seconds": 0.1},
    }
)


def test_records_hold_the_truth_beside_the_scores(tmp_path: Path, toy: dict[str, Path]) -> None:
    folder = Folder(tmp_path)
    folder.claim("mine")
    worker = Worker()
    cells = [
        Cell(task="planted_suppressor", method="activation_patching", model="planted-suppressor", level="neurons"),
        Cell(task="planted_suppressor", method="random", model="planted-suppressor", level="neurons"),
        Cell(task="planted_suppressor", method="random", model="planted-suppressor", level="tokens"),
    ]
    records = [worker.execute("mine", Planned(cell, SETTINGS))[0] for cell in cells]
    for record in records:
        assert record.status == "ok" and record.measured(GroundTruth) is not None, record.reason
        folder.write(record)
        again = type(record).model_validate_json((tmp_path / record.filename).read_text())
        assert again.measured(GroundTruth) == record.measured(GroundTruth)
    patched, _, tokens = records
    assert patched.aggregates["suppressor_auroc"].value == patched.aggregates["truth_auroc"].value == 1.0
    assert patched.aggregates["truth_auroc"].low is None
    truth = tokens.measured(GroundTruth)
    assert tokens.measured(Localization) is not None and truth is not None and truth.n == 8
    interval = tokens.aggregates["truth_auroc"]
    assert interval.low is not None and interval.high is not None and interval.low < interval.value < interval.high
    board = markdown(Board.read(tmp_path))
    for name in ("truth_auroc", "suppressor_auroc", "truth_share"):
        assert METRICS[name].title.replace("|", r"\|") in board
    assert board.index("| activation_patching") < board.index("| *random*")
    cell = Cell(task="planted_copy", method="random", model="planted-copy", level="neurons")
    skipped, _ = worker.execute("mine", Planned(cell, SETTINGS))
    assert skipped.status == "skipped" and "no part among the neurons" in skipped.reason


def test_a_suite_asks_for_the_truth_only_where_there_is_one(toy: dict[str, Path]) -> None:
    suite = Suite.load(find_suite(Path("planted")))
    group = suite.groups[0].model_copy(update={"models": [str(toy["model"])]})
    with pytest.raises(ConfigurationError, match="of which no mechanism is known; choose a planted model"):
        suite.model_copy(update={"groups": [group]}).check()
