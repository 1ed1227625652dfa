"""Properties of concepts' neurons: aggregates of hand-made measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from attriboard.measurements.concepts import Concepts


def measured(**changes: Any) -> Concepts:
    base: dict[str, Any] = {
        "naming": 2,
        "top": 4,
        "sigma": 0.1,
        "concepts": ["cat", "dog", "cat", "cat", "owl"],
        "sources": ["p", "q", "r", "p", "s"],
        "named": [1.0, 0.5, 0.0, 0.5, 0.0],
        "named_random": [[0.5, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0, 0.0]],
        "overlap": [
            [1.00, 0.25, 0.75, 1.00, 0.00],
            [0.25, 1.00, 0.50, 0.25, 0.25],
            [0.75, 0.50, 1.00, 0.50, 0.00],
            [1.00, 0.25, 0.50, 1.00, 0.25],
            [0.00, 0.25, 0.00, 0.25, 1.00],
        ],
        "shuffled": [0.5, 0.75, 1.0, 0.25, 0.0],
        "clean": [-1.0, -2.0, -0.5, -1.5, -1.0],
        "noised": [[-2.0, -3.0, -0.5, -2.5, -4.0], [-3.0, -2.0, -1.5, -1.5, -2.0]],
        "noised_random": [[-1.0, -2.5, -0.5, -1.5, -1.0], [-1.5, -2.0, -0.5, -2.0, -1.0]],
        "not_measured": {},
    }
    return Concepts(**{**base, **changes})


def values(found: Concepts, index: Sequence[int] | None = None) -> dict[str, float]:
    at = np.arange(len(found.concepts)) if index is None else np.array(index)
    return {name: float(statistic(at)) for name, statistic in found.statistics().items()}


def test_properties_are_averages_over_examples_of_averages_over_partners() -> None:
    found = values(measured())
    cross = {0: [0.75], 2: [0.75, 0.5], 3: [0.5]}  # examples 0 and 3 are about one picture
    specific = {0: [0.25, 0.0], 1: [0.25, 0.5, 0.25, 0.25], 2: [0.5, 0.0], 3: [0.25, 0.25], 4: [0.0, 0.25, 0.0, 0.25]}
    assert found["concept_sensitivity"] == pytest.approx(np.mean([0.75, 0.5, -0.25, 0.5, 0.0]))
    assert found["region_invariance"] == pytest.approx(0.5)
    assert found["cross_image_invariance"] == pytest.approx(np.mean([np.mean(x) for x in cross.values()]))
    assert found["concept_specificity"] == pytest.approx(np.mean([np.mean(x) for x in specific.values()]))
    contrast = [np.mean(cross[i]) - np.mean(specific[i]) for i in cross]
    assert found["concept_contrast"] == pytest.approx(np.mean(contrast))
    drops = [(1.0 + 1.5) / 2, (0.5 + 0.0) / 2, (0.0 + 1.0) / 2, (1.0 - 0.5) / 2, (3.0 + 1.0) / 2]
    assert found["concept_causal_effect"] == pytest.approx(np.mean(drops))


def test_a_resample_weighs_examples_by_how_often_they_were_drawn() -> None:
    found = values(measured(), [0, 0, 1, 4, 4])
    assert found["cross_image_invariance"] == pytest.approx(0.75)
    assert found["region_invariance"] == pytest.approx((0.5 + 0.5 + 0.75) / 5)


def test_what_was_not_measured_has_no_aggregate() -> None:
    assert set(values(measured())) == {metric.name for metric in Concepts.metrics}
    found = values(measured(shuffled=None, clean=None, noised=None, noised_random=None))
    assert not {"region_invariance", "concept_causal_effect"} & set(found)
    alone = values(measured(concepts=["a", "b", "c", "d", "e"]))
    assert not {"cross_image_invariance", "concept_contrast"} & set(alone) and "concept_specificity" in alone
    assert "concept_specificity" not in values(measured(concepts=["cat"] * 5))
