"""Sketches of scores: the same components for every method of a level, kept in the record, and none of inputs."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from attriboard.records.record import Planned, Record
from attriboard.records.store import Folder
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.scores import ORDERS, SKETCH, Scores, tied_orders, ties, top_chances
from attriboard.task import tasks


def scores(values: torch.Tensor, level: str = "neurons") -> Scores:
    return Scores(values, level, [str(i) for i in range(values.numel())])


def test_few_scores_are_all_kept_in_order() -> None:
    values = torch.randn(4, SKETCH // 4)
    assert scores(values).sketch() == pytest.approx(values.flatten().tolist(), rel=5e-6)


def test_of_many_scores_the_same_components_are_kept_of_every_method() -> None:
    places = torch.arange(3000.0).view(30, 100)
    first, second = scores(places).sketch(), scores(1e-3 * places).sketch()
    assert len(first) == len(set(first)) == SKETCH
    assert first == sorted(first)  # row-major order
    assert second == pytest.approx([1e-3 * x for x in first], rel=1e-5)
    assert first == scores(places.view(100, 30)).sketch()
    assert first != scores(places, "attn_neurons").sketch()
    share = np.histogram(first, bins=10, range=(0, 3000))[0] / SKETCH
    assert np.abs(share - 0.1).max() < 0.04  # drawn from everywhere


def test_six_digits_are_kept() -> None:
    assert scores(torch.tensor([1.23456789e-7, -98765.4321, 0.0])).sketch() == [1.23457e-07, -98765.4, 0.0]


def test_the_runner_keeps_a_sketch_of_components_and_none_of_inputs(toy: dict, tmp_path: Path) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    outcome = run_cells("toy", suite.plan(method=["random", "attribution_patching"]), Folder(tmp_path))
    for record in outcome.made:
        assert record.status == "ok", record.reason
        assert record.scores is not None and len(record.scores.sketch) == 3 * 4
        best = dict(record.scores.top)
        for i, value in enumerate(record.scores.sketch):
            assert value == pytest.approx(best[f"a{i // 4}.h{i % 4}"], rel=1e-5)
    ((cell, _),) = suite.plan(method=["random"])
    inputs = Planned(cell.model_copy(update={"level": "tokens"}), suite.settings)
    (record,) = run_cells("toy", [inputs], Folder(tmp_path / "tokens")).made
    assert record.status == "ok", record.reason
    assert record.status == "ok" and record.scores is not None and record.scores.sketch == []


def test_records_without_a_sketch_still_load(toy: dict, tmp_path: Path) -> None:
    tasks.include(toy["task"])
    suite = Suite.load(toy["suite"])
    (record,) = run_cells("toy", suite.plan(method=["random"]), Folder(tmp_path)).made
    older = json.loads((tmp_path / record.filename).read_text())
    del older["scores"]["sketch"]
    loaded = Record.model_validate(older)
    assert loaded.scores is not None and loaded.scores.sketch == []


def test_a_group_may_have_seeds_of_its_own(toy: dict, tmp_path: Path) -> None:
    tasks.include(toy["task"])
    file = tmp_path / "toy.toml"
    more = '\n[[groups]]\ntasks = ["repeat"]\nmethods = ["weight_norm"]\nlevels = ["heads"]\nseeds = [3, 1]\n'
    file.write_text(toy["suite"].read_text() + more)
    suite = Suite.load(file)
    assert [c.seed for c, _ in suite.plan() if c.method == "weight_norm"] == [3, 1]
    assert {c.seed for c, _ in suite.plan() if c.method != "weight_norm"} == {0}
    assert {c.seed for c, _ in suite.plan(seed=7)} == {7}


# --- equal scores -----------------------------------------------------------------------------------------------------


def test_a_seed_orders_equal_scores_at_random_and_others_as_they_are() -> None:
    given = scores(torch.tensor([[2.0, 0.0, 0.0], [0.0, -3.0, 0.0]]))
    assert given.ranking().tolist() == [0, 1, 2, 3, 5, 4]
    seen = [given.ranking(seed=seed).tolist() for seed in range(2400)]
    assert seen[:50] == [given.ranking(seed=seed).tolist() for seed in range(50)]
    assert all(order[0] == 0 and order[-1] == 4 for order in seen)
    counts = Counter(tuple(order[1:-1]) for order in seen)
    assert len(counts) == 24 and max(abs(count - 100) for count in counts.values()) < 45  # 4.5 standard deviations
    absolute = [given.ranking(absolute=True, seed=seed).tolist() for seed in range(20)]
    assert all(order[:2] == [4, 0] for order in absolute) and len({tuple(order) for order in absolute}) > 5


def test_the_share_of_ties_counts_every_score_that_another_one_equals() -> None:
    given = scores(torch.tensor([1.0, 1.0, -1.0, 0.0, 2.0]))
    assert (given.ties(), given.ties(absolute=True)) == (0.4, 0.6)
    assert scores(torch.randn(100)).ties() == 0 and scores(torch.zeros(7)).ties() == 1 and ties(torch.zeros(0)) == 0
    assert scores(torch.tensor([0.0, -0.0])).ties() == 1


def test_there_is_one_order_without_ties_and_one_for_each_seed_with_them() -> None:
    values = torch.tensor([1.0, -1.0, 3.0])
    assert [order.tolist() for order in tied_orders(values)] == [[2, 0, 1]]
    orders = tied_orders(values, absolute=True)
    assert len(orders) == ORDERS and all(order[0] == 2 for order in orders)
    assert {tuple(order.tolist()) for order in orders} == {(2, 0, 1), (2, 1, 0)}
    assert len(tied_orders(values, absolute=True, seeds=(3, 4))) == 2


@pytest.mark.parametrize("values", [[0, 0, 0, 0], [1, 0, 1, 1], [3, 2, 1, 0], [1, 1, 0, 0]])
def test_the_chance_to_be_at_the_top_is_the_share_of_the_orders_in_which_one_is(values: list[int]) -> None:
    n = len(values)
    orders = [p for p in itertools.permutations(range(n)) if all(values[a] >= values[b] for a, b in pairwise(p))]
    for k in range(1, n + 1):
        expected = [sum(i in order[:k] for order in orders) / len(orders) for i in range(n)]
        assert top_chances(torch.tensor(values), k).tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="k must be from 1"):
        top_chances(torch.zeros(3), 4)
