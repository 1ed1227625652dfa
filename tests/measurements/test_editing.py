"""What is judged of an edit, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from attriboard.measurements.capability import Capability
from attriboard.measurements.editing import Editing, EditResult


def right(n: int) -> Capability:
    """So many of twelve facts are known."""
    return Capability(accuracy={"facts": [1.0] * n + [0.0] * (12 - n)})


def a_kind(**changes: Any) -> EditResult:
    values: dict[str, Any] = {
        "factor": None,
        "k": 10,
        "train": [],
        "argmax": [1.0, 0.0, 1.0, None],
        "probability": [1.0, 1.0, 1.0, None],
        "generality": [0.5, None, 1.0, None],
        "stays": [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], []],
        "kl": [[0.0, 0.2], [1.0, 1.0], [2.0, 0.0], []],
        "strengths": [1.0, 2.0, 3.0, None],
        "capability": [right(9), right(7)],
    }
    return EditResult(**{**values, **changes})


def of(kind: str, **changes: Any) -> Editing:
    """Of an untouched model that knows 10 of 12 facts; under the edits it knows 9 and 7 of them: 0.8 is kept."""
    return Editing(kept=3, wrong=1, kinds={kind: a_kind(**changes)}, capability=right(10), not_measured={})


def values(found: Editing, index: Sequence[int] = (0, 1, 2, 3)) -> dict[str, float]:
    return {name: float(f(np.array(index))) for name, f in found.statistics().items()}


def test_aggregates_of_rewrites_are_means_over_the_examples_that_have_a_value() -> None:
    found = of("rewrite")
    assert found.n == 4
    assert values(found) == pytest.approx(
        {
            "edit_rewrite_efficacy": 2 / 3,
            "edit_rewrite_efficacy_probability": 1.0,
            "edit_rewrite_generality": 0.75,
            "edit_rewrite_locality": 0.5,
            "edit_rewrite_locality_kl": (0.1 + 1.0 + 1.0) / 3,
            "edit_rewrite_score": scipy.stats.hmean([2 / 3, 0.75, 0.5, 0.8]),
        }
    )
    again = values(found, (0, 0, 1, 3))
    assert again["edit_rewrite_efficacy"] == pytest.approx(2 / 3)
    assert again["edit_rewrite_score"] == pytest.approx(scipy.stats.hmean([2 / 3, 0.5, (1 + 1 + 0.5) / 3, 0.8]))
    samples = np.array([[0, 1, 2, 3], [0, 0, 1, 3]])
    scores = found.statistics()["edit_rewrite_score"](samples)
    np.testing.assert_allclose(scores, [values(found, row)["edit_rewrite_score"] for row in samples])


def test_locality_of_one_edit_for_the_task_ranges_over_prompts() -> None:
    stays, kl = [1.0, 1.0, 0.0, 1.0], [0.0, 0.1, 0.5, 0.2]
    found = of("suppress", factor=0.0, stays=[stays], kl=[kl], strengths=None)
    assert "edit_suppress_locality" not in found.statistics()
    value, low, high = found.scalars()["edit_suppress_locality"]
    assert value == 0.75
    assert low is not None and high is not None and low < value <= high
    assert found.scalars()["edit_suppress_locality_kl"][0] == pytest.approx(0.2)
    assert values(found)["edit_suppress_score"] == pytest.approx(scipy.stats.hmean([2 / 3, 0.75, 0.75, 0.8]))


def test_the_score_is_high_only_if_everything_is() -> None:
    assert values(of("rewrite", argmax=[0.0, 0.0, 0.0, None]))["edit_rewrite_score"] == 0.0
    assert values(of("rewrite", capability=[right(0)]))["edit_rewrite_score"] == 0.0
    perfect = {"argmax": [1.0] * 4, "generality": [1.0] * 4, "stays": [[1.0]] * 4, "kl": [[0.0]] * 4}
    perfect |= {"capability": [right(10)]}
    assert values(of("rewrite", **perfect), (0, 1, 2))["edit_rewrite_score"] == pytest.approx(1.0)
    half = values(of("rewrite", **{**perfect, "capability": [right(1)]}), (0, 1, 2))["edit_rewrite_score"]
    assert half < 0.35, "an arithmetic mean would be 0.78"


def test_what_was_not_measured_is_absent_and_no_part_of_the_score() -> None:
    bare = of("rewrite", generality=[None] * 4, capability=[])
    assert "edit_rewrite_generality" not in bare.statistics()
    assert "edit_rewrite_capability_kept" not in bare.scalars()
    assert values(bare)["edit_rewrite_score"] == pytest.approx(scipy.stats.hmean([2 / 3, 0.5]))
    unknown = of("rewrite", capability=[Capability(skipped={"facts": "there is none."})])
    assert unknown.capability_kept("rewrite") is None and "edit_rewrite_capability_kept" not in unknown.scalars()
    assert values(unknown)["edit_rewrite_score"] == pytest.approx(scipy.stats.hmean([2 / 3, 0.75, 0.5]))
    nothing = of("boost", factor=2.0, argmax=[None] * 4, stays=[[1.0]], kl=[[0.0]])
    assert not {"edit_boost_efficacy", "edit_boost_score"} & set(nothing.statistics())


def test_gaps_are_the_edits_own_and_those_of_capability() -> None:
    one = of("rewrite").model_copy(update={"not_measured": {"edit_boost_score": "no reason."}})
    assert one.gaps() == {"edit_boost_score": "no reason."}
    skipped = right(10).model_copy(update={"skipped": {"zzz": "there is none."}})
    both = one.model_copy(update={"capability": skipped})
    assert both.gaps() == {"edit_boost_score": "no reason.", "lm-eval task zzz": "there is none."}
    assert one.model_copy(update={"capability": None, "not_measured": {}}).gaps() == {}
