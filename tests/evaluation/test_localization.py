"""Scores of positions: curves against plain Hugging Face calls, known answers, rings, marks, records and boards.

Long because one evaluation is followed from its curves to the board.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from transformers import AutoModelForCausalLM, AutoTokenizer

from attriboard.board.board import Board, Table
from attriboard.board.columns import costs, main_columns, ranking_columns
from attriboard.board.figures import draw
from attriboard.board.formats import render
from attriboard.board.heatmaps import SheetRow, contact_sheet, overlay
from attriboard.board.wording import number
from attriboard.components import get_level
from attriboard.errors import ConfigurationError, MethodError, SkipCell, TaskError
from attriboard.evaluation import localization
from attriboard.evaluation.context import Context
from attriboard.evaluation.localization import evaluate
from attriboard.interventions import replace_positions
from attriboard.loading import load_model
from attriboard.measurements.localization import BINS, FRACTIONS, Localization, against_marks
from attriboard.measurements.registry import METRICS
from attriboard.measurements.speed import Speed
from attriboard.method import methods
from attriboard.model import EncodedExample, Model
from attriboard.records.aggregate import aggregates, is_current, up_to_date
from attriboard.records.record import Cell, Planned, Record
from attriboard.records.settings import Settings
from attriboard.records.store import Folder
from attriboard.run import identity, worker
from attriboard.run.suite import Suite
from attriboard.run.worker import Worker
from attriboard.scores import ORDERS, tied_orders
from attriboard.task import Example, Task, tasks
from tests.bench import toy as toys
from tests.bench.boards import COSTS
from tests.bench.models import IMAGE_ID, mask, picture, pixels, tiny_llava

PATCHES, TOKENS = get_level("patches"), get_level("tokens")
SIZE = (42, 42)


@dataclass
class Echo(Task):
    """Asks a random model about a picture for what it says anyway."""

    name = "echo"
    all_subsets = ("any",)
    marks = ("asked",)
    regions = ("object", "other", "background")
    evidence = ("object", "asked")
    distractors = ("other",)
    levels = ("heads", "patches", "tokens")
    modality = "vision"
    writes = 1

    def candidates(self, subset, rng) -> Iterator[Example]:
        while True:
            seed, word = rng.randrange(10**6), f"w{rng.randrange(1, 96)}"
            left, top = rng.randrange(28), rng.randrange(28)
            square, corner = (left, top, left + 14, top + 14), (28, 28, 42, 42)
            regions = {"object": mask(SIZE, square), "other": mask(SIZE, corner) & ~mask(SIZE, square)}
            yield Example(
                prompt=f"w5 <image> w17 {word}",
                answer="",
                counterfactual=f"w5 <image> w17 w{1 + (int(word[1:]) + 3) % 95}",
                marks={"asked": ((15, 15 + len(word)),)},
                item=str(seed),
                subset=subset,
                image=picture(seed, SIZE, square),
                counterfactual_image=picture(seed + 1, SIZE, square),
                regions={**regions, "background": ~(regions["object"] | regions["other"])},
            )

    def targets(self, candidate, written) -> Iterator[Example]:
        if re.fullmatch(r"w\d+", written.strip()):
            foil = " w3" if written.strip() != "w3" else " w4"
            yield replace(candidate, answer=f" {written.strip()}", foil=foil)


@pytest.fixture(scope="module")
def seen() -> Context:
    """Six questions about pictures, on the tiny LLaVA, whose foils are no answers to the counterfactuals."""
    return Context(tiny_llava(), Echo(), 0, 6, 6, 6, 4, keep="answer")


@pytest.fixture(scope="module")
def told(toy: dict) -> Context:
    """The toy task, on the toy model."""
    tasks.include(toy["task"])
    return Context(load_model(str(toy["model"]), batch_size=4), tasks.make("repeat"), 0, 12, 12, 6, 4)


def _scores(context: Context, level: Any, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(level.example_shape(context.model, e), generator=generator) for e in context.test]


def _values(found: Localization) -> dict[str, float]:
    every = np.arange(len(found.examples))
    return {name: float(statistic(every)) for name, statistic in found.statistics().items()}


# --- literal: one call of the plain model per set -------------------------------------------------------------------


def _embeds(model: Model, ids: tuple[int, ...], image: Any) -> torch.Tensor:
    """``[T, d_model]``, by the Hugging Face model's own parts."""
    embeds = model.hf.get_input_embeddings()(torch.tensor(ids))
    if image is not None:
        embeds[torch.tensor(ids) == IMAGE_ID] = model.hf.model.get_image_features(pixels(image)).pooler_output[0]
    return embeds


def _answers(model: Model, encoded: EncodedExample, embeds: torch.Tensor) -> tuple[float, float]:
    logits = model.hf(inputs_embeds=embeds[None]).logits[0, -1]
    return float(logits[encoded.answer] - logits[encoded.foil]), float(logits.log_softmax(-1)[encoded.answer])


def _literal(model: Model, encoded: EncodedExample, level: Any, replacement: str, removed: set[int]) -> list[float]:
    """Metric and log p(answer) with some positions of a level replaced."""
    example = encoded.example
    own = _embeds(model, encoded.tokens, example.image)
    places = [i for i, t in enumerate(encoded.tokens) if (t == IMAGE_ID) == (level.name == "patches")]
    embeds = own.clone()
    if replacement == "blur":
        assert example.image is not None
        # the pictures have the size that the model sees, so a patch is 14 pixels of the original
        blurred = np.array(example.image.filter(ImageFilter.GaussianBlur(14)))
        mixed = np.array(example.image)
        for p in removed:
            row, column = 14 * (p // 3), 14 * (p % 3)
            mixed[row : row + 14, column : column + 14] = blurred[row : row + 14, column : column + 14]
        return list(_answers(model, encoded, _embeds(model, encoded.tokens, Image.fromarray(mixed))))
    if replacement == "counterfactual":
        value = _embeds(model, encoded.counterfactual or (), example.counterfactual_image)[places]
    elif replacement == "zero":
        value = torch.zeros(len(places), own.shape[1])
    elif replacement == "mean":
        value = torch.stack([own[places].mean(0)] * len(places))
    else:
        region = example.regions["background"]
        plain = [p for p in range(9) if region[14 * (p // 3) :, 14 * (p % 3) :][:14, :14].mean() >= 0.99]
        value = torch.stack([own[places][plain].mean(0)] * len(places))
    for p in removed:
        embeds[places[p]] = value[p]
    return list(_answers(model, encoded, embeds))


def _grown(top: list[int], ring: int) -> set[int]:
    """Patches of the three by three grid at most ``ring`` rows and columns from one of ``top``."""
    return {
        3 * row + column
        for p in top
        for row, column in itertools.product(range(3), range(3))
        if abs(row - p // 3) <= ring and abs(column - p % 3) <= ring
    }


CASES = [
    *(("seen", "patches", r) for r in ("counterfactual", "zero", "mean", "background", "blur")),
    *(("seen", "tokens", r) for r in ("counterfactual", "zero", "mean")),
    *(("told", "tokens", r) for r in ("counterfactual", "zero", "mean")),
]


@pytest.mark.parametrize(("world", "level_name", "replacement"), CASES)
def test_curves_agree_with_one_plain_call_per_set_and_example(
    request: pytest.FixtureRequest, world: str, level_name: str, replacement: Any
) -> None:
    context: Context = request.getfixturevalue(world)
    level, model = get_level(level_name), context.model
    scores = _scores(context, level)
    found = evaluate(context, scores, level, replacement, [0, 1])
    assert found.rings == ([0, 1] if level_name == "patches" else [0])
    for encoded, given, judged in zip(context.test, scores, found.examples):
        flat = given.flatten().tolist()
        n = len(flat)
        order = sorted(range(n), key=lambda i: (-flat[i], i))
        assert judged.sizes == sorted({max(1, round(f * n + 1e-9)) for f in FRACTIONS})
        close = {"rel": 1e-4, "abs": 1e-4}
        assert judged.full == pytest.approx(_literal(model, encoded, level, replacement, set()), **close)
        assert judged.empty == pytest.approx(_literal(model, encoded, level, replacement, set(range(n))), **close)
        for ring, removal in zip(found.rings, judged.removal):
            for at, k in enumerate(judged.sizes):
                top = _grown(order[:k], ring) if ring else set(order[:k])
                assert removal.positions[at] == len(top)
                deleted = _literal(model, encoded, level, replacement, top)
                inserted = _literal(model, encoded, level, replacement, set(range(n)) - top)
                assert removal.deletion[at] == pytest.approx(deleted, **close)
                assert removal.insertion[at] == pytest.approx(inserted, **close)


def test_aggregates_agree_with_areas_and_means_written_out(seen: Context) -> None:
    found = evaluate(seen, _scores(seen, PATCHES), PATCHES, "zero", [0, 1])
    values = _values(found)
    full = np.mean([e.full[0] for e in found.examples])
    empty = np.mean([e.empty[0] for e in found.examples])
    for at, suffix in ((0, ""), (1, "_ring1")):
        areas: dict[str, list[float]] = {"insertion": [], "deletion": []}
        lost: dict[str, list[float]] = {"insertion": [], "deletion": []}
        for e in found.examples:
            for kind, start in (("insertion", e.empty[0]), ("deletion", e.full[0])):
                rows = getattr(e.removal[at], kind)
                points = [(0.0, start), *((p / 9, row[0]) for p, row in zip(e.removal[at].positions, rows))]
                areas[kind].append(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points)))
                ks = [max(1, int(9 * fraction + 0.5)) for fraction in BINS]
                assert ks == [1, 1, 1, 2, 5]
                ps = [np.exp(rows[e.sizes.index(k)][1]) for k in ks]
                lost[kind].append(np.mean([np.exp(e.full[1]) - p for p in ps]))
        for kind, area, loss in (
            ("insertion", "insertion_auc", "sufficiency_aopc"),
            ("deletion", "deletion_auc", "comprehensiveness_aopc"),
        ):
            assert values[area + suffix] == pytest.approx((np.mean(areas[kind]) - empty) / (full - empty))
            assert values[loss + suffix] == pytest.approx(np.mean(lost[kind]))


# --- a model whose answer depends on one known position ---------------------------------------------------------------


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory, toy: dict) -> Context:
    """The toy task on a model whose blocks are zero: it repeats the last word, and nothing else has any part in it."""
    folder = toys.save_model(tmp_path_factory.mktemp("copying"), noise=0.0)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    model = Model(hf, AutoTokenizer.from_pretrained(folder), name="copying", prove=False)
    tasks.include(toy["task"])
    return Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)


@pytest.mark.parametrize("replacement", ["counterfactual", "zero"])
def test_scoring_the_one_position_that_matters_is_perfect(copying: Context, replacement: Any, toy: dict) -> None:
    methods.include(toy["methods"])
    scores = methods.make("last_token").each(copying.model, copying.test, TOKENS)
    found = evaluate(copying, scores, TOKENS, replacement, [0])
    for e in found.examples:
        assert [row[0] for row in e.removal[0].deletion] == pytest.approx([e.empty[0]] * len(e.sizes), abs=1e-5)
        assert [row[0] for row in e.removal[0].insertion] == pytest.approx([e.full[0]] * len(e.sizes), abs=1e-5)
    values = _values(found)
    for name in ("pointing_game", "precision_at_mark", "iou_best", "iou_half", "mass_evidence"):
        assert values[name] == 1.0
    # f falls on a straight line from none to the first of n positions and stays there
    change = np.array([e.full[0] - e.empty[0] for e in found.examples])
    triangle = np.array([0.5 / len(e.scores) for e in found.examples])
    expected = float((change * triangle).sum() / change.sum())
    assert values["deletion_auc"] == pytest.approx(expected, abs=1e-5)
    assert values["insertion_auc"] == pytest.approx(1 - expected, abs=1e-5)
    assert values["sufficiency_aopc"] == pytest.approx(0.0, abs=1e-5)
    lost = np.mean([np.exp(e.full[1]) - np.exp(e.empty[1]) for e in found.examples])
    assert values["comprehensiveness_aopc"] == pytest.approx(lost, abs=1e-5)


def test_scoring_the_one_position_last_is_the_worst_there_is(copying: Context) -> None:
    scores = [torch.arange(len(e.tokens), 0, -1).float() for e in copying.test]
    found = evaluate(copying, scores, TOKENS, "counterfactual", [0])
    for e in found.examples:
        assert [row[0] for row in e.removal[0].deletion[:-1]] == pytest.approx([e.full[0]] * (len(e.sizes) - 1))
    values = _values(found)
    assert values["pointing_game"] == values["precision_at_mark"] == values["iou_half"] == 0.0
    assert values["iou_best"] == values["evidence_share"]  # nothing is better than marking all
    assert values["deletion_auc"] > 0.6 and values["insertion_auc"] < 0.4


def test_f_is_a_ratio_of_averages_and_resamples_recompute_it(copying: Context) -> None:
    found = evaluate(copying, _scores(copying, TOKENS), TOKENS, "counterfactual", [0])
    statistic = found.statistics()["deletion_auc"]
    index = np.array([[0, 0, 1, 2], [3, 4, 5, 5]])
    areas = np.array([e.area(0, "deletion") for e in found.examples])
    full, empty = (np.array([getattr(e, name)[0] for e in found.examples]) for name in ("full", "empty"))
    expected = [(areas[i].mean() - empty[i].mean()) / (full[i].mean() - empty[i].mean()) for i in index]
    np.testing.assert_allclose(statistic(index), expected)


def test_the_drawn_curve_has_the_ends_and_the_values_of_the_measured_one(seen: Context) -> None:
    found = evaluate(seen, _scores(seen, PATCHES), PATCHES, "zero", [0])
    full, empty = (np.mean([getattr(e, name)[0] for e in found.examples]) for name in ("full", "empty"))
    for kind, ends in (("deletion", (1, 0)), ("insertion", (0, 1))):
        x, y = found.curve(kind)
        assert list(x) == [0, *FRACTIONS]
        assert (y[0], y[-1]) == pytest.approx(ends, abs=1e-6)
        # every picture has nine patches: 0.5 lies half-way between four... and five of nine on a line from 2 to 5
        assert found.examples[0].sizes == [1, 2, 5, 9]
        at = [[row[0] for row in getattr(e.removal[0], kind)] for e in found.examples]
        two, five = np.mean(at, axis=0)[1:3]
        expected = two + (five - two) * (4.5 - 2) / 3
        assert y[list(x).index(0.5)] == pytest.approx((expected - empty) / (full - empty))


# --- equal scores ---------------------------------------------------------------------------------------------------


def test_curves_of_equal_scores_are_means_over_the_seeded_orders(seen: Context) -> None:
    scores = [torch.zeros(3, 3) for _ in seen.test]
    for values in scores:
        values[1, 2] = 1.0
    found = evaluate(seen, scores, PATCHES, "zero", [0, 1])
    judged, (encoded, given) = found.examples[0], (seen.test[0], scores[0])
    orders = [order.tolist() for order in tied_orders(given.flatten())]
    assert judged.orders == len(orders) == ORDERS and all(order[0] == 5 for order in orders)
    for ring, removal in zip((0, 1), judged.removal):
        for at, k in enumerate(judged.sizes):
            tops = [_grown(order[:k], ring) for order in orders]
            assert removal.positions[at] == pytest.approx(np.mean([len(top) for top in tops]))
            for measured, replaced in (
                (removal.deletion[at], tops),
                (removal.insertion[at], [set(range(9)) - top for top in tops]),
            ):
                rows = np.array([_literal(seen.model, encoded, PATCHES, "zero", one) for one in replaced])
                assert measured[0] == pytest.approx(rows[:, 0].mean(), rel=1e-4, abs=1e-4)
                assert np.exp(measured[1]) == pytest.approx(np.exp(rows[:, 1]).mean(), rel=1e-4, abs=1e-6)
    other = evaluate(seen, [torch.rand(3, 3) for _ in seen.test], PATCHES, "zero", [0])
    assert all(example.orders == 1 for example in other.examples)


@pytest.mark.parametrize("scores", [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 1, 1, 1, 0], [1, 0, 1, 0, 1]])
@pytest.mark.parametrize("marked", [[0], [1, 3], [0, 2, 3, 4]])
def test_against_marks_equal_scores_count_as_the_mean_over_their_orders(scores: list[int], marked: list[int]) -> None:
    evidence = np.isin(np.arange(5), marked)
    found = against_marks(np.array(scores, dtype=float), evidence, None)
    orders = [p for p in itertools.permutations(range(5)) if all(scores[a] >= scores[b] for a, b in pairwise(p))]
    apart = [against_marks(np.array([-float(order.index(i)) for i in range(5)]), evidence, None) for order in orders]
    for name in ("pointing_game", "precision_at_mark"):
        assert found[name] == pytest.approx(np.mean([values[name] for values in apart]))


# --- what it must not depend on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", ["zero", "background", "blur"])
def test_results_do_not_depend_on_batch_size_or_on_the_other_examples(seen: Context, replacement: Any) -> None:
    scores = _scores(seen, PATCHES)
    expected = evaluate(seen, scores, PATCHES, replacement, [1])
    for batch_size, side in ((1, "left"), (3, "right")):
        alone: Any = SimpleNamespace(model=tiny_llava(batch_size, side), task=seen.task, test=[seen.test[2]])
        (one,) = evaluate(alone, scores[2:3], PATCHES, replacement, [1]).examples
        for a, b in zip(one.removal, expected.examples[2].removal):
            np.testing.assert_allclose(a.deletion, b.deletion, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(a.insertion, b.insertion, rtol=1e-4, atol=1e-5)


def test_equal_sets_are_run_once(seen: Context) -> None:
    model = tiny_llava()
    masks = torch.tensor([[True] * 3 + [False] * 6, [False] * 9])
    costs = []
    for given in (masks, masks[[0, 1, 1, 0, 0]]):
        before = model.cost.flops
        found = replace_positions(model, seen.test[0], PATCHES, "zero", given)
        costs.append(model.cost.flops - before)
    assert model.vision is not None
    length, first = len(seen.test[0].tokens), seen.test[0].tokens.index(IMAGE_ID)
    # nothing replaced, and that again from its last column; and the first set from its first column
    passes = model.sizes.flops(length) + model.sizes.flops(1, length - 1) + model.sizes.flops(length - first, first)
    assert costs == [passes + model.vision.flops, passes]  # the picture is looked at once
    assert torch.equal(found[0], found[3]) and torch.equal(found[1], found[2])


def test_a_picture_with_nothing_blurred_is_the_picture_and_blur_changes_every_patch(seen: Context) -> None:
    model, encoded = seen.model, seen.test[0]
    assert model.vision is not None and encoded.image is not None and encoded.example.image is not None
    again = model.vision.features(model.vision.inputs("<image>", model.vision.see(encoded.example.image)))
    torch.testing.assert_close(again, encoded.image)
    from attriboard.interventions import _blurred

    corner = torch.zeros(9, dtype=torch.bool)
    corner[0] = True
    changed = (_blurred(model, encoded, corner) - encoded.image).abs().amax(-1)
    assert bool((changed > 1e-4).all())


def test_background_takes_the_patches_it_covers_most_where_none_is_covered_whole(seen: Context) -> None:
    model, encoded = seen.model, seen.test[0]
    half = np.zeros(SIZE[::-1], dtype=bool)
    half[:7, :14] = half[28:32, 28:] = True  # half of patch 0, less of patch 8
    example = replace(encoded, example=replace(encoded.example, regions={"background": half}))
    own = _embeds(model, encoded.tokens, encoded.example.image)
    places = [i for i, t in enumerate(encoded.tokens) if t == IMAGE_ID]
    embeds = own.clone()
    embeds[places[3:5]] = own[places[0]]
    removed = torch.zeros(1, 9, dtype=torch.bool)
    removed[0, 3:5] = True
    found = replace_positions(model, example, PATCHES, "background", removed)[0, :2].tolist()
    assert found == pytest.approx(list(_answers(model, encoded, embeds)), rel=1e-4)


# --- rings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", [0, 1, 2])
def test_a_ring_is_every_patch_so_many_rows_and_columns_away(ring: int) -> None:
    masks = torch.rand(20, 4, 6, generator=torch.Generator().manual_seed(ring)) < 0.1
    for given, found in zip(masks, localization.dilated(masks, ring)):
        for row, column in itertools.product(range(4), range(6)):
            near = given[max(0, row - ring) : row + ring + 1, max(0, column - ring) : column + ring + 1]
            assert bool(found[row, column]) == bool(near.any())


def test_ring_metrics_are_reported_beside_the_others_and_only_if_measured(seen: Context, told: Context) -> None:
    without = _values(evaluate(seen, _scores(seen, PATCHES), PATCHES, "zero", [0]))
    both = _values(evaluate(seen, _scores(seen, PATCHES), PATCHES, "zero", [1]))
    assert {name for name in both if name not in without} == {
        "insertion_auc_ring1",
        "deletion_auc_ring1",
        "comprehensiveness_aopc_ring1",
        "sufficiency_aopc_ring1",
    }
    assert {name: both[name] for name in without} == pytest.approx(without, rel=1e-4, abs=1e-6)
    assert not any("ring" in n for n in _values(evaluate(told, _scores(told, TOKENS), TOKENS, "zero", [0, 1])))


# --- marks ----------------------------------------------------------------------------------------------------------


def test_marks_and_regions_are_judged_where_they_stand(seen: Context) -> None:
    one = torch.zeros(3, 3)
    one[1, 2] = 1.0
    found = evaluate(seen, [one] * len(seen.test), PATCHES, "zero", [0])
    assert found.grid == (3, 3) and (found.evidence, found.distractors) == (["object"], ["other"])
    for encoded, judged in zip(seen.test, found.examples):
        for name, region in encoded.example.regions.items():
            literal = region.reshape(3, 14, 3, 14).mean((1, 3))
            np.testing.assert_allclose(np.array(judged.coverage[name]).reshape(3, 3), literal, atol=1e-4)
    pointed = [encoded.example.regions["object"][14:28, 28:].mean() >= 0.25 for encoded in seen.test]
    assert 0 < np.mean(pointed) < 1
    assert _values(found)["pointing_game"] == pytest.approx(np.mean(pointed))
    text = evaluate(seen, [F.one_hot(torch.tensor(2), 3).float()] * len(seen.test), TOKENS, "zero", [0])
    assert text.evidence == ["asked"] and text.distractors == []
    assert [e.pieces[:2] for e in text.examples] == [["w5", "w17"]] * len(seen.test)
    assert _values(text)["pointing_game"] == _values(text)["mass_evidence"] == 1.0  # the word after w5 and w17


@pytest.mark.parametrize("name", tasks.names())
def test_declared_evidence_exists(name: str) -> None:
    task = tasks.get(name)
    for declared in (*task.evidence, *task.distractors):
        assert declared in (*task.marks, *task.regions)
    if name in ("arithmetic", "color_tqa", "icl_sentiment", "ioi"):
        assert task.evidence
        for example in tasks.make(name).examples("test", 8, 0):
            assert all(example.marks[mark] for mark in task.evidence)


def test_the_picture_that_was_seen_is_kept_for_the_first_examples(
    seen: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localization, "PICTURES", 2)
    found = evaluate(seen, _scores(seen, PATCHES), PATCHES, "zero", [0])
    assert [bool(e.picture) for e in found.examples] == [True, True] + [False] * (len(seen.test) - 2)
    kept = Image.open(io.BytesIO(base64.b64decode(found.examples[0].picture)))
    assert (kept.format, kept.size) == ("JPEG", SIZE)
    assert seen.test[0].example.image is not None
    gray = [np.asarray(image.convert("L"), dtype=float).flatten() for image in (kept, seen.test[0].example.image)]
    assert np.corrcoef(*gray)[0, 1] > 0.95
    assert found.examples[0].probability == pytest.approx(np.exp(found.examples[0].full[1]))


# --- what is refused ------------------------------------------------------------------------------------------------


def _changed(context: Context, **changes: Any) -> Any:
    test = [replace(e, example=replace(e.example, **changes)) for e in context.test]
    return SimpleNamespace(model=context.model, task=context.task, test=test)


def test_an_example_without_the_declared_evidence_skips_the_cell(seen: Context, told: Context) -> None:
    regions = {"background": np.ones((42, 42), dtype=bool)}
    with pytest.raises(SkipCell, match="test example 0 of task 'echo' has no patches marked object to be found"):
        evaluate(_changed(seen, regions=regions), _scores(seen, PATCHES), PATCHES, "zero", [0])
    with pytest.raises(SkipCell, match="test example 0 of task 'repeat' has no tokens marked last to be found"):
        evaluate(_changed(told, marks={}), _scores(told, TOKENS), TOKENS, "zero", [0])


def test_background_without_that_region_skips_the_cell(seen: Context) -> None:
    with pytest.raises(SkipCell, match="task 'echo' has examples without a region called 'background'"):
        evaluate(_changed(seen, regions={}), _scores(seen, PATCHES), PATCHES, "background", [0])


def test_counterfactuals_that_differ_elsewhere_skip_the_cell(seen: Context) -> None:
    test = [replace(e, counterfactual=e.tokens) for e in seen.test]  # only the picture differs
    context: Any = SimpleNamespace(model=seen.model, task=seen.task, test=test)
    with pytest.raises(SkipCell, match="counterfactuals of task 'echo' differ in none of the tokens"):
        evaluate(context, _scores(seen, TOKENS), TOKENS, "counterfactual", [0])
    assert evaluate(context, _scores(seen, PATCHES), PATCHES, "counterfactual", [0])


def test_positions_on_which_nothing_depends_are_an_error(seen: Context) -> None:
    # a model that reads its last token only: no patch can matter
    blind = copy.copy(seen.model)
    blind.shares_prefixes = False
    blind.run = lambda batch, *args, **kwargs: SimpleNamespace(  # type: ignore
        logits=F.one_hot(batch.last, 98).float(), past=()
    )
    context: Any = SimpleNamespace(model=blind, task=seen.task, test=seen.test)
    with pytest.raises(TaskError, match=r"replacing all patches \(zero\) does not change the metric of task 'echo'"):
        evaluate(context, _scores(seen, PATCHES), PATCHES, "zero", [0])


def test_scores_of_another_shape_are_refused(seen: Context) -> None:
    with pytest.raises(MethodError, match=r"the scores of example 0 have shape \(9,\), expected \(3, 3\)"):
        evaluate(seen, [torch.zeros(9)] * len(seen.test), PATCHES, "zero", [0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["heads"]', '["heads"]\nreplacements = ["blur"]', "replacement 'blur' is for patches, not for heads"),
        ('["heads"]', '["tokens"]\nreplacements = ["background"]', "'background' is for patches, not for tokens"),
        ('["heads"]', '["patches"]', "asks for patches on task repeat, which has heads"),
        ('["heads"]', '["tokens"]', "asks head_ablation for level 'tokens', but it scores heads"),
        ('["heads"]', '["heads"]\nreplacements = ["nil"]', "key 'groups.0.replacements.0' is 'nil'"),
        ("max_kept = 6", "max_kept = 6\nlocalization = { rings = [2] }", "key 'settings.localization.rings.0' is 2"),
    ],
)
def test_what_a_level_does_not_have_is_refused_before_anything_runs(
    toy: dict, tmp_path: Path, old: str, new: str, message: str
) -> None:
    tasks.include(toy["task"])
    file = tmp_path / "toy.toml"
    file.write_text(toy["suite"].read_text().replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(file)
    assert message in str(caught.value)


# --- through the runner ---------------------------------------------------------------------------------------------

SETTINGS = Settings.model_validate(
    {
        "train_examples": 12,
        "test_examples": 12,
        "max_kept": 6,
        "min_kept": 4,
        "ablation": {"draws": 2},
        "speed": {"examples": 2},
        "localization": {"rings": (0, 1)},
    }
)


def _record(toy: dict, method: str, **changes: Any) -> Record:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    cell = Cell(task="repeat", method=method, model=str(toy["model"]), level="tokens").model_copy(update=changes)
    return Worker().execute("toy", Planned(cell, SETTINGS))[0]


def test_a_record_holds_all_that_its_aggregates_follow_from(toy: dict, told: Context) -> None:
    record = _record(toy, "last_token")
    assert record.status == "ok", record.reason
    stored = Record.model_validate_json(json.dumps(record.model_dump(mode="json")))
    assert stored == record
    assert set(stored.measurements) == {"localization", "speed"}
    assert aggregates(stored.measurements.values(), stored.items, stored.frames) == record.aggregates
    assert {METRICS[name].measurement for name in record.aggregates} == {"localization", "speed"}
    assert record.scores and record.scores.top == [] and record.model and record.model.n_components == 5
    judged, cost = stored.measured(Localization), stored.measured(Speed)
    assert judged and cost and len(judged.examples) == len(record.items) == 6
    assert record.aggregates["pointing_game"].value == 1.0
    # no pass: the method looks at nothing; two examples were timed, and work is that of all
    assert (cost.examples, cost.scored) == (2, 6) and cost.forward_equivalents == cost.flops == 0
    same = evaluate(told, methods.make("last_token").each(told.model, told.test, TOKENS), TOKENS, "counterfactual", [0])
    for a, b in zip(same.examples, judged.examples):
        assert a.scores == b.scores and a.pieces == b.pieces
        np.testing.assert_allclose(a.removal[0].deletion, b.removal[0].deletion, rtol=1e-4, atol=1e-5)


def test_a_record_that_lacks_the_measurement_of_its_level_is_refused_and_a_lacking_aggregate_derived(
    toy: dict,
) -> None:
    whole = _record(toy, "last_token")
    record = whole.model_dump(mode="json")
    without = {name: value for name, value in record["measurements"].items() if name != "localization"}
    with pytest.raises(ValueError, match="without its measurements"):
        Record.model_validate({**record, "measurements": without})
    del record["aggregates"]["deletion_auc"]
    lacking = Record.model_validate(record)
    assert is_current(whole) and not is_current(lacking)
    assert up_to_date(lacking).aggregates == whole.aggregates


def test_scores_that_are_no_numbers_and_replacements_of_another_level_fail_the_cell(toy: dict) -> None:
    failed = _record(toy, "not_a_number_there")
    assert failed.status == "failed"
    assert "not_a_number_there returned" in failed.reason and "NaN or infinite for example 0" in failed.reason
    blurred = _record(toy, "last_token", replacement="blur")
    assert (blurred.status, "'blur' is for patches" in blurred.reason) == ("failed", True)
    wrong = _record(toy, "last_token", level="heads")
    assert (wrong.status, wrong.reason) == ("failed", "last_token scores tokens, not heads.")


@pytest.fixture(scope="module")
def mixed(toy: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of heads, tokens and patches in one folder."""
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    tasks.add(Echo)
    folder = Folder(tmp_path_factory.mktemp("mixed"))
    folder.claim("toy")
    plan = [
        *(("repeat", str(toy["model"]), "heads", method, "zero") for method in ("random", "attribution_patching")),
        *(("repeat", str(toy["model"]), "tokens", method, "zero") for method in ("last_token", "embedding_sum")),
        *(("echo", "llava", "patches", "embedding_sum", replacement) for replacement in ("zero", "blur")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        real = identity.fingerprint
        patch.setattr(identity, "fingerprint", lambda name: "llava" if name == "llava" else real(name))
        patch.setattr(worker, "load_model", lambda name, *rest: tiny_llava() if name == "llava" else load_model(name))
        at_work = Worker()
        for task, model, level, method, replacement in plan:
            cell = Cell(task=task, method=method, model=model, level=level, replacement=replacement)
            settings = SETTINGS.changed({"keep": "answer"}) if task == "echo" else SETTINGS
            record, _ = at_work.execute("toy", Planned(cell, settings))
            assert record.status == "ok", record.reason
            folder.write(record)
    return folder.path


FAITHFUL = (
    *("log_cmd", "necessity", "performance", "overshoot", "accuracy_area", "within_layers", "stability"),
    *("cpr", "cmd", "ablation_drop_p", "ablation_drop_raw"),
)


def test_every_format_shows_each_level_its_own_columns(mixed: Path) -> None:
    board = Board.read(mixed)
    records = Folder(mixed).read()
    text = render(board)
    for record in records:
        label = f"*{record.cell.method}*" if record.control else record.cell.method
        shown = (*main_columns(record.cell.level), *costs())
        wanted = [number(METRICS[m], record.aggregates[m].value) for m in shown if m in record.aggregates]
        rows = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
        assert any(all(value in row for value in wanted) for row in rows)
    heads = {table.level: table.parts[0].metrics for table in board.tables}
    assert "deletion_auc" in heads["tokens"] and "deletion_auc_ring1" not in heads["tokens"]
    assert "deletion_auc_ring1" in heads["patches"] and "mass_other" in heads["patches"]
    assert heads["heads"] == (*FAITHFUL, *COSTS)
    assert "Evidence (the chance level of pointing, precision and the mass in it): " in text
    for form in ("latex", "html"):
        made = render(board, form)
        assert "insertion" in made and "CPR" in made
    rows = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    parsed = json.loads(render(board, "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    by_name = {r.filename: r for r in records}
    for row in [*rows, *parsed["rows"]]:
        aggregated = by_name[row["record"]].aggregates
        for name in METRICS:
            if name in aggregated:
                assert float(row[name]) == pytest.approx(aggregated[name].value, rel=1e-12)
            else:
                assert row.get(name) in (None, "")


def test_overall_ranks_are_per_level_and_by_its_own_metrics(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "informative", "yes")  # so few examples do not tell methods from random
    board = Board.read(mixed)
    overall = board.overall()
    assert {row.level for row in overall} == {"heads", "tokens"}  # one method alone has no rank
    (best,) = (row for row in overall if (row.level, row.method) == ("tokens", "last_token"))
    for metric in ("mass_evidence", "deletion_auc"):
        assert best.by_metric[metric] == max(row.by_metric[metric] for row in overall if row.level == "tokens") > 0.5
    text = render(board)
    assert "| method | tables | wins | insertion | deletion | mass in evidence |" in text
    titles = " | ".join(METRICS[metric].title for metric in ranking_columns("heads"))
    assert f"| method | tables | wins | {titles} |" in text
    for row in json.loads(render(board, "json"))["overall"]:
        assert ("deletion_auc" in row) == (row["level"] == "tokens")


def test_curves_and_sheets_are_drawn_from_records_alone(mixed: Path, tmp_path: Path) -> None:
    made = draw(Board.read(mixed), tmp_path)
    assert len(made) == 4 + 2 + 1  # a figure for every table, a sheet for both of patches, agreement for that of heads
    sheets = [file for file in made if file.name.endswith(".maps.png")]
    assert len(sheets) == 2 and all("patches" in file.name for file in sheets)
    for file in made:
        with Image.open(file) as drawn:
            assert drawn.format == "PNG" and min(drawn.size) > 300


def test_an_overlay_shows_high_and_low_scores_in_the_scale_s_colors(tmp_path: Path) -> None:
    scores = torch.zeros(2, 2)
    scores[0, 1], scores[1, 0] = 5.0, -5.0
    overlay(Image.new("RGB", (40, 40), "white"), scores, "a title", tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as drawn:
        pixels_drawn = np.asarray(drawn.convert("RGB")).astype(int)
    yellow = np.abs(pixels_drawn - _on_white("high")).sum(-1) < 12
    purple = np.abs(pixels_drawn - _on_white("low")).sum(-1) < 12
    assert yellow.sum() > 2000 and purple.sum() > 2000
    (up, right), (down, left) = np.argwhere(yellow).mean(0), np.argwhere(purple).mean(0)
    assert up < down and left < right


def _on_white(end: str) -> np.ndarray:
    from matplotlib import colormaps

    from attriboard.board.heatmaps import COLORS, OPACITY

    color = np.array(colormaps[COLORS](1.0 if end == "high" else 0.0)[:3])
    return 255 * (OPACITY * color + 1 - OPACITY)


def test_equal_maps_give_the_same_bytes_and_a_map_of_equal_scores_can_be_drawn(tmp_path: Path) -> None:
    rows = [SheetRow("a\np = 0.5", picture(0, SIZE), (torch.zeros(3, 3), torch.eye(3)))]
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        contact_sheet(["one", "two"], rows, "title", file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_whole_run_from_the_command_line(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.bench.cli import call

    suite = tmp_path / "inputs.toml"
    text = (
        toy["suite"].read_text().replace('levels = ["heads"]', 'levels = ["tokens"]\nreplacements = ["zero", "mean"]')
    )
    suite.write_text(re.sub(r"methods = \[.*\]", 'methods = ["last_token", "embedding_sum"]', text))
    include = ["--include", toy["task"], "--include", toy["methods"]]
    code, out, err = call(capsys, "run", suite, "--out", tmp_path / "out", *include)
    assert code == 0, err
    assert "4 cells run, 0 done before, 0 failed" in out
    code, out, err = call(capsys, "run", suite, "--out", tmp_path / "out", *include)
    assert "0 cells run, 4 done before" in out
    code, out, err = call(capsys, "leaderboard", tmp_path / "out", "--figures", tmp_path / "figures")
    assert code == 0 and "| last_token |" in out and "| *embedding_sum* |" in out and "mean replacement" in out
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
