"""Edges of planted models: the circuits that the mechanisms describe, by exact effects of every edge."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attriboard.components import get_level
from attriboard.errors import SkipCell
from attriboard.evaluation import ground_truth
from attriboard.evaluation.context import Context
from attriboard.interventions import EdgeIntervention, single_effects
from attriboard.loading import load_model
from attriboard.measurements.ground_truth import GroundTruth
from attriboard.method import make_method
from attriboard.model import Model
from attriboard.records.record import Cell, Planned
from attriboard.records.settings import Settings
from attriboard.run.worker import Worker
from attriboard.task import tasks
from attriboard.truth import ByRole, Part, Truth
from attriboard.wiring import edge_roles
from attriboard.zoo import planted
from attriboard.zoo.planted import NAMES
from tests.zoo.test_planted import EXACT, MATTERS, PLACED, task_of

EDGES = get_level("edges")


@cache
def model_of(name: str) -> Model:
    return load_model(name, batch_size=64)


@cache
def context_of(name: str) -> Context:
    return Context(model_of(name), tasks.make(task_of(name)), 0, 4, 4, 4, 4)


def truth_of(name: str) -> Truth:
    truth = model_of(name).truth
    assert truth is not None
    return truth


@cache
def roles_of(name: str) -> ByRole:
    return edge_roles(model_of(name), truth_of(name), context_of(name).train)


def circuit(name: str) -> tuple[set[str], set[str], set[str]]:
    """The edges that help, that hurt, and that carry nothing else on the counterfactual, as the mechanism says."""
    heads = [part.name for part in truth_of(name).levels["heads"]]
    ffn = next((part.name for part in truth_of(name).levels["nodes"] if part.name.startswith("m")), "")
    # one-hot positions are embedded; rotary ones are in no residual
    at = {h: {f"input->{h}<q>", f"input->{h}<k>"} if "-gpt2" in name else set() for h in heads}
    if "arithmetic" in name:
        first, second = heads
        values = {f"input->{first}<v>", f"input->{second}<v>"}
        return {*values, f"{first}->{ffn}", f"{second}->{ffn}", f"{ffn}->logits"}, set(), at[first] | at[second]
    previous, match = heads[0], heads[2 if "redundant" in name else 1]
    helps = {f"input->{previous}<v>", f"{previous}->{match}<k>", f"{match}->logits"}
    # the question and the values that stand there are the same in the counterfactual
    neutral = {f"input->{match}<q>", f"input->{match}<v>", *at[previous]}
    if "redundant" in name:
        weak = heads[1]
        return helps, set(), {*neutral, *at[weak], f"input->{weak}<v>", f"{weak}->{match}<k>"}
    if "suppressor" in name:
        against = heads[2]
        neutral |= {f"input->{against}<q>", f"input->{against}<v>"}
        hurts = {f"{previous}->{against}<k>", f"{against}->logits"}
        return {*helps, f"{match}->{ffn}", f"{ffn}->logits"}, hurts, neutral
    return helps, set(), neutral


@pytest.mark.parametrize("name", PLACED)
def test_the_edges_of_a_mechanism_are_those_that_its_description_names(name: str) -> None:
    assert tuple(map(set, roles_of(name))) == circuit(name)


@pytest.mark.parametrize("name", PLACED)
def test_every_edge_does_what_the_truth_says(name: str) -> None:
    model, roles = model_of(name), roles_of(name)
    lost = single_effects(EdgeIntervention(model, model.batch(context_of(name).train[:2]), EDGES)).T
    for edge, effects in zip(EDGES.names(model), lost):
        if edge in roles.helps | roles.hurts:
            assert float(((1 if edge in roles.helps else -1) * effects).min()) > MATTERS, edge
        else:
            assert float(effects.abs().max()) < EXACT, edge


def judged(name: str, method: str, **options: Any) -> dict[str, float]:
    context = context_of(name)
    scores = make_method(method, options, 0).attribute(context.model, context.train, EDGES)
    found = ground_truth.evaluate(context, scores, EDGES)
    return {metric: float(statistic(np.arange(found.n))) for metric, statistic in found.statistics().items()}


@pytest.mark.parametrize("name", [*NAMES[::2], "planted-copy-gpt2", "planted-suppressor-gpt2-seed1"])
def test_exact_effects_find_every_edge_of_every_mechanism(name: str) -> None:
    found = judged(name, "exact_edges")
    perfect = ("auroc", "average_precision", "precision_at_size")
    assert all(found[f"truth_{metric}{suffix}"] == 1.0 for metric in perfect for suffix in ("", "_absolute"))
    assert ("suppressor_auroc" in found) == ("suppressor" in name)
    assert found.get("suppressor_auroc", 1.0) == 1.0
    helps, _, neutral = circuit(name)
    assert found["truth_share"] == pytest.approx(len(helps) / (EDGES.size(model_of(name)) - len(neutral)))


@pytest.mark.parametrize("name", ["planted-copy", "planted-redundant-gpt2", "planted-suppressor"])
def test_a_gradient_at_the_prompt_does_not_see_edges_into_a_saturated_pattern_nor_what_leads_there(name: str) -> None:
    context, (helps, _, _) = context_of(name), circuit(name)
    scores = make_method("eap", {}, 0).attribute(context.model, context.train, EDGES)
    by_name = dict(zip(scores.names, scores.values.tolist()))
    blind = {edge for edge in helps if edge.endswith(("<k>", "<v>"))}
    assert len(blind) == 2 and all(abs(by_name[edge]) < EXACT for edge in blind)
    assert all(by_name[edge] > MATTERS for edge in helps - blind)
    assert judged(name, "eap")["truth_auroc"] < 1


def test_a_saved_model_has_the_same_edges(tmp_path: Path) -> None:
    planted.save("planted-suppressor", tmp_path)
    saved = load_model(str(tmp_path), batch_size=64)
    assert saved.truth is not None and "edges" not in saved.truth.levels
    assert edge_roles(saved, saved.truth, context_of("planted-suppressor").train) == roles_of("planted-suppressor")


def test_edges_may_be_listed_and_need_the_parts_they_follow_from_otherwise() -> None:
    context, truth = context_of("planted-copy"), truth_of("planted-copy")
    scores = make_method("random", {}, 0).attribute(context.model, context.train, EDGES)
    try:
        listed = truth.model_copy(update={"levels": {"edges": (Part(name="m0->logits"),)}})
        context.model.truth = listed
        case = ground_truth.evaluate(context, scores, EDGES).cases[0]
        assert case.truth.index(1) == scores.names.index("m0->logits") and sum(case.truth) == 1
        context.model.truth = truth.model_copy(update={"levels": {"heads": truth.levels["heads"]}})
        with pytest.raises(SkipCell, match="says nothing about neurons, from which its edges would follow"):
            ground_truth.evaluate(context, scores, EDGES)
    finally:
        context.model.truth = truth


def test_a_record_of_edges_holds_the_truth_beside_the_scores() -> None:
    settings = Settings.model_validate(
        {
            "evaluations": ("ground_truth",),
            "train_examples": 4,
            "test_examples": 4,
            "min_kept": 4,
            "folds": 0,
            "speed": {"examples": 1, "repeats": 1, "max_seconds": 0.1},
        }
    )
    cell = Cell(task="planted_arithmetic", method="eap_ig", model="planted-arithmetic", level="edges")
    record = Worker().execute("mine", Planned(cell, settings))[0]
    assert record.status == "ok", record.reason
    assert record.aggregates["truth_auroc"].value == record.aggregates["truth_average_precision"].value == 1.0
    measured = record.measured(GroundTruth)
    assert measured is not None and len(measured.cases[0].scores) == 479 and sum(measured.cases[0].truth) == 5
