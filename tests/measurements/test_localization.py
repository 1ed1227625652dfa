"""Scores of positions against marks and regions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attriboard.measurements.localization import Localization, LocalizedExample, against_marks, covered


def test_agreement_with_marks_by_hand() -> None:
    scores = np.array([4.0, -2.0, 3.0, 1.0, 0.0, 2.0])
    evidence = np.array([False, True, True, False, False, True])
    other = np.array([True, False, False, False, False, False])
    found = against_marks(scores, evidence, other)
    assert found == pytest.approx(
        {
            "pointing_game": 0.0,
            "precision_at_mark": 2 / 3,  # 4, 3, 2: the first is none
            "iou_best": 0.5,  # at 2: {0, 2, 5} and {1, 2, 5} share two of four; marking all six gives three of six
            "iou_half": 0.5,  # above 1, the middle of -2 and 4: the same three
            "mass_evidence": 0.5,
            "mass_other": 0.4,
            "mass_background": 0.1,
            "evidence_share": 0.5,
            "other_share": 1 / 6,
            "background_share": 1 / 3,
        }
    )
    assert "mass_other" not in against_marks(scores, evidence, None)
    assert against_marks(scores, evidence, None)["mass_background"] == pytest.approx(0.5)


def test_iou_at_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, evidence = rng.integers(-3, 4, 12).astype(float), rng.random(12) < 0.4
        evidence[0] = True
        found = []
        for threshold in set(scores):
            chosen = {i for i in range(12) if scores[i] >= threshold}
            marked = set(np.flatnonzero(evidence).tolist())
            found.append(len(chosen & marked) / len(chosen | marked))
        assert against_marks(scores, evidence, None)["iou_best"] == pytest.approx(max(found))


def test_ties_have_no_order_and_scores_without_a_positive_part_count_as_equal() -> None:
    evidence = np.array([False, True, False, True])
    tied = against_marks(np.array([0.0, 1.0, 1.0, 1.0]), evidence, None)
    assert tied["pointing_game"] == tied["precision_at_mark"] == pytest.approx(2 / 3)
    assert against_marks(np.array([1.0, 1.0, 0.0, 0.0]), evidence, None)["pointing_game"] == 0.5
    nothing = against_marks(np.array([-1.0, -1.0, -3.0, 0.0]), evidence, None)
    assert nothing["mass_evidence"] == nothing["evidence_share"] == 0.5
    assert against_marks(np.full(4, 7.0), evidence, None)["iou_half"] == 0.0


def _localized(coverage: dict[str, list[float]], scores: list[float]) -> LocalizedExample:
    return LocalizedExample(
        answer=" a",
        scores=scores,
        pieces=[],
        coverage=coverage,
        picture="",
        full=[0, 0],
        empty=[0, 0],
        sizes=[],
        removal=[],
    )


def test_a_patch_belongs_to_a_region_from_a_quarter_on_or_if_it_is_covered_most() -> None:
    coverage = {"object": [0.24, 0.25, 0.9], "hand": [0.01, 0.0, 0.0], "far": [0.0, 0.2, 0.1]}
    assert covered(coverage, ["object"], 3).tolist() == [False, True, True]
    assert covered(coverage, ["object", "hand"], 3).tolist() == [True, True, True]  # together they cover a quarter
    assert covered(coverage, ["far"], 3).tolist() == [False, True, False]
    assert not covered(coverage, ["nowhere"], 3).any()
    # what is evidence is no distractor
    judged = _localized(coverage, [0.0, 1.0, 2.0])
    found = Localization(grid=(1, 3), evidence=["object"], distractors=["far"], rings=[], examples=[judged])
    every = np.arange(1)
    values = {name: float(statistic(every)) for name, statistic in found.statistics().items()}
    assert values["evidence_share"] == pytest.approx(2 / 3) and values["other_share"] == 0.0
    assert values["mass_evidence"] == 1.0


def test_a_map_is_the_grid_of_patches_or_one_row_of_tokens() -> None:
    judged = _localized({}, [0.1, 1.0, 2.0, 3.0, 4.0, 5.0])
    found = Localization(grid=(2, 3), evidence=[], distractors=[], rings=[], examples=[judged])
    assert found.score_map(judged).tolist() == np.float32([[0.1, 1, 2], [3, 4, 5]]).tolist()
    assert found.model_copy(update={"grid": None}).score_map(judged).shape == (1, 6)
