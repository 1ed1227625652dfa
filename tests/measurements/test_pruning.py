"""What a pruning curve and a sliced model say, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attriboard.errors import ConfigurationError
from attriboard.measurements.capability import Capability
from attriboard.measurements.pruning import Pruning, Slice, paired_difference
from attriboard.measurements.recovery import Coefficients
from attriboard.stats.intervals import bootstrap_interval


def record(clean: list[int], masked: list[list[int]], sparsities: list[float], **fields: Any) -> Pruning:
    """A record of right (1) and wrong (0) answers."""

    def rows(right: list[int]) -> list[list[float]]:
        return [[0.0, -1.0, float(x)] for x in right]

    return Pruning(
        allocation="layerwise",
        sparsities=sparsities,
        examples_sha256=fields.pop("examples_sha256", "same"),
        clean=rows(clean),
        masked=[rows(m) for m in masked],
        masked_absolute=[rows(m) for m in fields.pop("masked_absolute", masked)],
        slice_sparsity=0.5,
        **fields,
    )


def values(of: Pruning, index: Any = None) -> dict[str, Any]:
    every = np.arange(len(of.clean)) if index is None else np.asarray(index)
    return {name: statistic(every) for name, statistic in of.statistics().items()}


def test_aggregates_are_those_computed_by_hand() -> None:
    one = record([1, 1, 1, 0], [[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]], [0.2, 0.4, 0.8])
    found = values(one)
    # accuracies 3/4, 3/4, 1, 1/4 at 0, 0.2, 0.4, 0.8
    assert found["pruning_accuracy_area"] == pytest.approx((0.2 * 0.75 + 0.2 * 0.875 + 0.4 * 0.625) / 0.8)
    assert found["pruning_kept_sparsity"] == 0.4
    assert found["pruning_accuracy_half"] == 1.0
    resampled = values(one, [[0, 0, 0, 0], [3, 3, 3, 3], [1, 1, 1, 3]])
    # the first loses everything at 0.8, the second had nothing to keep, the third keeps everything
    assert resampled["pruning_kept_sparsity"].tolist() == [0.4, 0.0, 0.8]
    assert resampled["pruning_accuracy_half"].tolist() == [1.0, 1.0, 1.0]
    assert resampled["pruning_accuracy_area"][0] == pytest.approx((0.2 + 0.2 + 0.4 * 0.5) / 0.8)


def test_the_absolute_aggregates_are_those_of_the_absolute_curve() -> None:
    right, other = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]]
    both = values(record([1, 1, 1, 1], right, [0.2, 0.5, 0.8], masked_absolute=other))
    alone = values(record([1, 1, 1, 1], other, [0.2, 0.5, 0.8]))
    for name in ("pruning_accuracy_area", "pruning_kept_sparsity", "pruning_accuracy_half"):
        assert both[f"{name}_absolute"] == alone[name] != both[name]


def test_capability_that_no_task_measured_in_both_is_absent() -> None:
    one = record([1], [[1]], [0.5], capability=Capability(skipped={"zzz": "there is none."}))
    times = {"timed_examples": 1, "seconds_before": [1.0], "seconds_after": [0.5]}
    one.sliced = Slice(
        difference=0.0, parameters_before=4, parameters_after=3, capability=Capability(accuracy={"a": [1.0]}), **times
    )
    assert set(one.scalars()) == {"parameters_removed", "speed_up"}
    one.capability = Capability(accuracy={"a": [1.0]})
    assert one.scalars()["capability_kept"] == (1.0, None, None)


def test_gaps_name_what_was_not_measured_and_why() -> None:
    assert record([1], [[1]], [0.5]).gaps() == {}
    skipped = Capability(skipped={"zzz": "there is none."})
    found = record([1], [[1]], [0.5], not_sliced="cannot be sliced.", capability=skipped)
    assert found.gaps() == {"slice": "cannot be sliced.", "lm-eval task zzz": "there is none."}


def test_a_sparsity_counts_as_kept_only_if_all_smaller_ones_do() -> None:
    dip = record([1, 1], [[1, 0], [1, 1]], [0.3, 0.6])
    assert values(dip)["pruning_kept_sparsity"] == 0.0
    # 19 of 20 is exactly 95 %
    exact = record([1] * 20, [[1] * 19 + [0], [1] * 18 + [0] * 2], [0.3, 0.6])
    assert values(exact)["pruning_kept_sparsity"] == 0.3


def test_the_paired_difference_is_that_of_accuracies_on_the_same_examples() -> None:
    a = record([1] * 6, [[1, 1, 1, 1, 0, 0]], [0.5])
    b = record([1] * 6, [[1, 0, 0, 1, 0, 1]], [0.5])
    value, low, high = paired_difference(a, b, 0.5)
    assert value == pytest.approx(1 / 6)
    assert low is not None and high is not None and -1 <= low < 1 / 6 < high <= 1
    assert paired_difference(b, a, 0.5)[0] == -value
    assert paired_difference(a, a, 0.5) == (0.0, 0.0, 0.0)


def test_the_paired_difference_can_be_that_of_the_absolute_curves() -> None:
    a = record([1] * 4, [[0, 0, 0, 0]], [0.5], masked_absolute=[[1, 1, 1, 0]])
    b = record([1] * 4, [[1, 1, 1, 1]], [0.5], masked_absolute=[[1, 0, 0, 0]])
    assert paired_difference(a, b, 0.5)[0] == -1.0
    assert paired_difference(a, b, 0.5, absolute=True)[0] == 0.5


def test_records_of_other_examples_or_sparsities_are_not_compared() -> None:
    a = record([1, 1], [[1, 1]], [0.5])
    with pytest.raises(ConfigurationError, match="different test examples"):
        paired_difference(a, record([1, 1], [[1, 1]], [0.5], examples_sha256="other"), 0.5)
    with pytest.raises(ConfigurationError, match=r"not measured at sparsity 0\.4, only at 0\.5"):
        paired_difference(a, a, 0.4)


def test_the_interval_of_a_paired_difference_is_over_base_items() -> None:
    """Twelve examples of four items: those of one item all differ alike, so there are four independent differences."""
    right, wrong = [[1] * 12], [[1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]]
    items = [item for item in "abcd" for _ in range(3)]
    alone = paired_difference(record([1] * 12, right, [0.5]), record([1] * 12, wrong, [0.5]), 0.5)
    together = paired_difference(
        record([1] * 12, right, [0.5], base_items=items), record([1] * 12, wrong, [0.5], base_items=items), 0.5
    )
    item_differences = np.array([0.0, 1.0, 0.0, 1.0])
    expected = bootstrap_interval(4, lambda index: item_differences[index].mean(-1))
    assert expected is not None
    assert together == (0.5, *expected)
    assert alone[0] == 0.5 and alone[1] is not None and alone[2] is not None
    assert expected[0] < alone[1] and alone[2] < expected[1], "independent examples would promise too much"


def test_the_ratio_of_coefficients_is_that_of_their_means() -> None:
    coefficients = Coefficients(
        names=["a", "b"], before=[1.0, 3.0], after=[4.0, 6.0], increase_before=[0, 0], increase_after=[0, 0]
    )
    value, low, high = coefficients.ratio()
    assert value == 2.5  # (4 + 6) / (1 + 3), not the mean of 4 and 2
    assert low is not None and high is not None and low <= value <= high
