"""Replacing components against whole plain runs: no restart, no shared prefix, one unpadded row at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from attriboard.components import COMPONENTS, LEVELS, get_level
from attriboard.errors import ConfigurationError, UnknownNameError
from attriboard.interventions import (
    REPLACEMENTS,
    Intervention,
    Replacement,
    component_means,
    replacement_values,
    single_effects,
)
from attriboard.measurements.base import Measure
from attriboard.model import Batch, Model, hook_name
from tests.bench.models import (
    EVERY,
    EXAMPLES,
    FOUR,
    LAYERS,
    SITES,
    WITHOUT_FOILS,
    Plain,
    close,
    component_edits,
    example,
    get,
    hooked,
    in_out,
    literal_intervention,
    literal_means,
    literal_replacements,
    literal_single_effects,
    metric,
    plain_run,
)

SLICES = [name for name, level in COMPONENTS.items() if level.sites]
"""Levels whose components are slices of activations; edges have tests of their own."""
ROUNDING = 1e-5
"""Relative to the largest logit."""


def logits(logits: Tensor, batch: Batch) -> Tensor:
    """A measure that keeps everything."""
    return logits


def random_masks(model: Model, level: str) -> Tensor:
    """Sets of many kinds: empty, full, single, sparse, dense, the first layers, the last ones, one in the middle."""
    size = LEVELS[level].size(model)
    layer = LEVELS[level].layer_of(model)
    generator = torch.Generator().manual_seed(1)
    masks = [torch.zeros(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)]
    masks += [torch.rand(size, generator=generator) < density for density in (0.02, 0.3, 0.7, 0.98)]
    masks[2][-2] = True  # so few that it might have been empty
    masks += [layer < 1, layer >= 2, (layer < 2) | (torch.rand(size, generator=generator) < 0.5), layer == 1]
    single = torch.zeros(size, dtype=torch.bool)
    single[size - 1] = True
    return torch.stack([*masks, single, ~single])


# --- any set, any level, any replacement ------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("level", SLICES)
@pytest.mark.parametrize("family", FOUR)
def test_every_set_gives_the_logits_of_a_whole_plain_run(family: str, level: str, replacement: Replacement) -> None:
    model, plain = hooked(family, batch_size=5), plain_run(family)
    shape = LEVELS[level].shape(model)
    means = literal_means(plain, EXAMPLES, level)
    masks = random_masks(model, level)
    intervention = Intervention(
        model, model.batch(EXAMPLES), LEVELS[level], replacement, component_means(model, EXAMPLES, LEVELS[level])
    )
    found = intervention(masks, logits)
    for b, e in list(enumerate(EXAMPLES))[1:3]:  # the shortest and the longest
        values = literal_replacements(plain, e, level, replacement, means)
        expected = [literal_intervention(plain, e, level, mask.view(shape), values) for mask in masks]
        assert close(found[:, b], torch.stack(expected), ROUNDING)
    spread = (found - found[:1]).abs().amax((1, 2))
    assert float(spread[1:].min()) > 1e-3, "every set but the empty one changes something"


@pytest.mark.parametrize("family", [f for f in EVERY if f not in FOUR])
def test_every_other_family_too_with_right_padding_and_counterfactuals(family: str) -> None:
    model, plain = hooked(family, batch_size=7, padding_side="right"), plain_run(family)
    masks = random_masks(model, "nodes")
    found = Intervention(model, model.batch(EXAMPLES), LEVELS["nodes"])(masks, logits)
    for b, e in enumerate(EXAMPLES):
        values = literal_replacements(plain, e, "nodes", "counterfactual")
        expected = [literal_intervention(plain, e, "nodes", m.view(LAYERS, -1), values) for m in masks]
        assert close(found[:, b], torch.stack(expected), ROUNDING)


def test_explicit_rows_pair_each_set_with_its_example_in_the_order_given() -> None:
    model, plain = hooked("llama", batch_size=3), plain_run("llama")
    level = LEVELS["heads"]
    masks = random_masks(model, "heads")
    rows = torch.arange(len(masks)) * 7 % len(EXAMPLES)
    found = Intervention(model, model.batch(EXAMPLES), level).rows(masks, rows, logits)
    for mask, row, mine in zip(masks, rows.tolist(), found):
        values = literal_replacements(plain, EXAMPLES[row], "heads", "counterfactual")
        expected = literal_intervention(plain, EXAMPLES[row], "heads", mask.view(level.shape(model)), values)
        assert close(mine, expected, ROUNDING)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_sets_do_not_depend_on_batch_size_or_padding_side(batch_size: int, padding_side: str) -> None:
    masks = random_masks(hooked("gemma2"), "nodes")

    def run(model: Model) -> Tensor:
        return Intervention(model, model.batch(EXAMPLES), LEVELS["nodes"])(masks)

    found = run(hooked("gemma2", batch_size=batch_size, padding_side=padding_side))
    assert close(found, run(hooked("gemma2")), 1e-4)


@pytest.mark.parametrize("level", SLICES)
@pytest.mark.parametrize("family", FOUR)
def test_the_empty_set_is_the_clean_model_exactly(family: str, level: str) -> None:
    model = hooked(family)
    batch = model.batch(EXAMPLES)
    intervention = Intervention(model, batch, LEVELS[level], "zero")
    found = intervention(torch.zeros(1, LEVELS[level].size(model), dtype=torch.bool), logits)[0]
    assert torch.equal(found, model.run(batch).logits)


# --- the full set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY)
def test_all_nodes_replaced_leave_the_clean_embedding_and_the_counterfactuals_sub_layers(family: str) -> None:
    """Final residual = clean token and position embedding + every counterfactual sub-layer output with its bias."""
    model, plain = hooked(family), plain_run(family)
    everything = torch.ones(1, LEVELS["nodes"].size(model), dtype=torch.bool)
    found = Intervention(model, model.batch(EXAMPLES), LEVELS["nodes"])(everything, logits)[0]
    sub_layers = [(site, layer) for site in ("attn_out", "mlp_out") for layer in range(LAYERS)]
    for b, e in enumerate(EXAMPLES):
        assert e.counterfactual is not None
        first = plain.run(e.tokens, read=[("resid_pre", 0)])[1]["resid_pre", 0]
        other_logits, other = plain.run(e.counterfactual, read=sub_layers)
        final = first + torch.stack([other[s] for s in sub_layers]).sum(0)
        expected, _ = plain.run(e.tokens, {("resid_post", LAYERS - 1): lambda x, f=final: f})
        assert close(found[b], expected, ROUNDING)
        if e.tokens[-1] == e.counterfactual[-1]:
            assert close(found[b], other_logits, ROUNDING), "same last token, so the counterfactual model itself"
        else:
            assert not close(found[b], other_logits, 1e-2)


@pytest.mark.parametrize("family", FOUR)
def test_zeroing_all_heads_of_a_layer_leaves_only_the_output_bias_of_its_attention(family: str) -> None:
    model, plain = hooked(family), plain_run(family)
    e = EXAMPLES[0]
    for layer in range(LAYERS):
        mask = torch.zeros(LAYERS, 4, dtype=torch.bool)
        mask[layer] = True
        edits = component_edits("heads", mask, literal_replacements(plain, e, "heads", "zero"))
        attention = plain.run(e.tokens, edits, read=[("attn_out", layer)])[1]["attn_out", layer]
        bias = plain.part("out", layer).bias
        expected = torch.zeros(32) if bias is None else bias
        assert torch.allclose(attention, expected.expand_as(attention), atol=1e-6)
        found = Intervention(model, model.batch([e]), LEVELS["heads"], "zero")(mask.view(1, -1), logits)[0, 0]
        constant, _ = plain.run(e.tokens, {("attn_out", layer): lambda x, b=expected: b.expand_as(x)})
        assert close(found, constant, ROUNDING)


# --- means, values, measures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("level", SLICES)
def test_component_means_are_those_of_all_real_tokens_whatever_the_padding(level: str, padding_side: str) -> None:
    for family in FOUR:
        expected = literal_means(plain_run(family), EXAMPLES, level)
        for size in (1, 3, 16):
            model = hooked(family, batch_size=size, padding_side=padding_side)
            found = component_means(model, EXAMPLES, LEVELS[level])
            assert len(found) == len(expected) == LAYERS * len(SITES[level])
            for (site, layer), mean in expected.items():
                assert close(found[hook_name(site, layer)], mean, ROUNDING)


def test_means_differ_between_components() -> None:
    model = hooked("llama")
    mean = component_means(model, EXAMPLES, LEVELS["neurons"])[hook_name("post", 1)]
    assert float(mean.std()) > 1e-3


def test_replacements_that_cannot_be_made_say_what_is_missing() -> None:
    model = hooked("llama")
    names = LEVELS["heads"].hooks(model)
    alone = model.batch([example([5, 6, 7])])
    with pytest.raises(ConfigurationError, match="counterfactual for every example"):
        Intervention(model, alone, LEVELS["heads"])
    with pytest.raises(ConfigurationError, match="means of the train split"):
        Intervention(model, alone, LEVELS["heads"], "mean")
    with pytest.raises(UnknownNameError, match="'nought'"):
        replacement_values(model, alone, names, "nought")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"'head'.*'heads'"):
        get_level("head")


def test_measures_are_the_metric_the_log_probability_and_whether_the_answer_is_on_top() -> None:
    model, plain = hooked("gpt2"), plain_run("gpt2")
    top = int(plain.run(EXAMPLES[0].tokens)[0].argmax())
    examples = [*WITHOUT_FOILS, example(EXAMPLES[0].tokens, EXAMPLES[0].counterfactual, answer=top)]
    none = torch.zeros(1, LEVELS["heads"].size(model), dtype=torch.bool)
    found = Intervention(model, model.batch(examples), LEVELS["heads"])(none)[0]
    for e, mine in zip(examples, found):
        out, _ = plain.run(e.tokens)
        log_prob = torch.log_softmax(out, -1)[e.answer]
        expected = torch.stack([metric(out, e), log_prob, torch.tensor(float(out.argmax() == e.answer))])
        assert torch.allclose(mine, expected, atol=3e-5)
    assert found[-1, Measure.CORRECT] == 1


# --- one component at a time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "replacement"), [*itertools.product(["heads", "nodes"], REPLACEMENTS), ("neurons", "counterfactual")]
)
@pytest.mark.parametrize("family", FOUR)
def test_single_effects_equal_a_loop_of_whole_runs(family: str, level: str, replacement: Replacement) -> None:
    model, plain = hooked(family, batch_size=6), plain_run(family)
    examples = WITHOUT_FOILS[:1] if level == "neurons" else WITHOUT_FOILS[1:3]
    means = component_means(model, EXAMPLES, LEVELS[level])
    found = single_effects(Intervention(model, model.batch(examples), LEVELS[level], replacement, means), chunk=7)
    literal = literal_means(plain, EXAMPLES, level)
    for b, e in enumerate(examples):
        expected = literal_single_effects(plain, e, level, LEVELS[level].shape(model), replacement, literal)
        # the metric is a difference of logits of up to 10, so its own rounding is 1e-5 of that
        assert torch.allclose(found[b].view_as(expected), expected, atol=1e-4)
        assert float(expected.abs().max()) > 0.05


def test_a_component_whose_activation_is_the_same_in_both_prompts_has_no_effect() -> None:
    model = hooked("llama")
    same = example([5, 17, 33], [5, 17, 33])
    effects = single_effects(Intervention(model, model.batch([same]), LEVELS["nodes"]))
    assert float(effects.abs().max()) < 1e-5


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", SLICES)
def test_names_shapes_layers_and_sizes_of_a_level_agree(level: str) -> None:
    model = hooked("gemma2")
    names, shape = LEVELS[level].names(model), LEVELS[level].shape(model)
    assert len(names) == len(set(names)) == LEVELS[level].size(model) == torch.Size(shape).numel()
    assert len(shape) == len(LEVELS[level].axes)
    for name, layer in zip(names, LEVELS[level].layer_of(model).tolist()):
        assert name.split(".")[0][1:] == str(layer)
    last = {"heads": "a2.h3", "neurons": "m2.n39", "attn_neurons": "a2.h3.d11", "nodes": "m2"}
    assert names[-1] == last[level]


@pytest.mark.parametrize("level", SLICES)
def test_reduce_sums_each_components_own_slice_over_positions(level: str) -> None:
    model = hooked("llama")
    products = model.run(model.batch(EXAMPLES[:2]), LEVELS[level].hooks(model))
    found = LEVELS[level].reduce(model, {n: products[n] for n in LEVELS[level].hooks(model)})
    for i, name in enumerate(LEVELS[level].names(model)):
        site, *rest = name.split(".")
        kind, layer = site[0], int(site[1:])
        index = [int(part[1:]) for part in rest]
        x = products[hook_name("z" if kind == "a" else "post" if index else "mlp_out", layer)]
        for part in index:
            x = x[:, :, part]
        assert torch.allclose(found.flatten(1)[:, i], x.reshape(2, -1).sum(1), atol=1e-4)


def test_zeroing_a_head_equals_zeroing_its_rows_of_the_output_projection() -> None:
    for family in FOUR:
        model, plain = hooked(family), plain_run(family)
        for layer, head in ((0, 1), (2, 3)):
            mask = torch.zeros(LAYERS, 4, dtype=torch.bool)
            mask[layer, head] = True
            edited = Plain(family)
            weight = in_out(get(edited.blocks[layer], edited.parts.out))
            weight[head * model.d_head : (head + 1) * model.d_head] = 0
            found = Intervention(model, model.batch(EXAMPLES), LEVELS["heads"], "zero")(mask.view(1, -1), logits)[0]
            expected = torch.stack([edited.run(e.tokens)[0] for e in EXAMPLES])
            assert close(found, expected, ROUNDING)
            assert not close(found, torch.stack([plain.run(e.tokens)[0] for e in EXAMPLES]), 1e-3)
