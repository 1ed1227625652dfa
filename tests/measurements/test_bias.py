"""The choice of k and what is left of a bias, on hand-made measurements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from attriboard.errors import ConfigurationError
from attriboard.measurements.bias import Bias, paired_difference
from attriboard.stats.intervals import bootstrap_interval


def made(**changes: Any) -> Bias:
    """Two words of one document each; perplexity rises by 1 %, 2 % (just not more) and 50 %."""
    values: dict[str, Any] = {
        "factor": 0.0,
        "items": ["a", "b", "c"],
        "sizes": [8, 16, 32],
        "test": [2.0, -1.0, 3.0],
        "test_removed": [[0.1, 0.1, 0.1], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]],
        "train": [2.0, -2.0],
        "train_removed": [[1.9, -1.9], [1.0, 1.0], [0.0, 0.0]],
        "control": [0.5, -1.5],
        "control_removed": [[0.5, 0.5], [-0.2, 0.8], [0.0, 0.0]],
        "words": [1, 1],
        "documents": [-4.0, -6.0],
        "documents_removed": [[-4.0 - 2 * math.log(x), -6.0] for x in (1.01, 1.01999, 1.5)],
    }
    return Bias(**{**values, **changes})


def test_k_is_chosen_on_train_among_those_that_leave_perplexity_alone() -> None:
    found = made()
    assert found.perplexity_rises() == pytest.approx([0.01, 0.01999, 0.5])
    assert found.chosen() == 1, "on the test examples 8 would look best, and 32 costs too much"
    everything = {name: float(f(np.arange(3))) for name, f in found.statistics().items()}
    assert everything == pytest.approx({"bias": 2.0, "bias_signed": 4 / 3, "bias_removed": 1 - 1.0 / 2.0})
    value, low, high = found.scalars()["bias_control"]
    assert value == 1.0
    assert low is not None and high is not None and 0.5 <= low <= high <= 1.5
    assert found.scalars()["perplexity_rise"] == (pytest.approx(0.01999), None, None)
    value, low, high = found.scalars()["bias_control_left"]
    assert value == pytest.approx((0.2 + 0.8) / 2), "16 neurons are removed, not 8 or 32"
    assert low is not None and high is not None and 0.2 <= low <= high <= 0.8
    index = np.array([[0, 0, 1], [2, 2, 2]])
    np.testing.assert_allclose(found.statistics()["bias_removed"](index), [1 - 1 / (5 / 3), 1 - 1 / 3])


def test_a_perplexity_that_is_not_a_number_is_no_small_rise() -> None:
    broken = [[math.nan, 0.0]] * 3
    assert made(documents_removed=broken).chosen() is None


def test_nothing_is_removed_where_no_k_lowers_the_train_bias() -> None:
    worse = made(train_removed=[[2.0, 2.0], [3.0, -3.0], [0.0, 0.0]])
    assert worse.chosen() is None
    assert float(worse.bias_removed(np.arange(3))) == 0.0
    assert worse.bias_removed(np.zeros((5, 3), dtype=np.intp)).tolist() == [0.0] * 5
    assert set(worse.scalars()) == {"bias_control"}, "nothing was done to the model"


def test_without_control_examples_their_bias_is_absent() -> None:
    assert set(made(control=[], control_removed=[[], [], []]).scalars()) == {"perplexity_rise"}


def test_the_paired_difference_is_between_equal_examples() -> None:
    a, b = made(), made(test_removed=[[0.0] * 3, [2.0, 0.0, 2.5], [0.0] * 3])
    value, interval = paired_difference(a, b)
    assert value == pytest.approx((1 - 1 / 2) - (1 - 1.5 / 2))
    assert interval is not None and interval[0] < value < interval[1]
    assert paired_difference(a, a) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize("changes", [{"items": ["a", "b", "d"]}, {"test": [2.0, -1.0, 3.5]}])
def test_other_examples_cannot_be_compared(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="only on the same examples of the same model"):
        paired_difference(made(), made(**changes))


def test_intervals_of_control_examples_are_over_base_items() -> None:
    """Six control examples of three items, two alike each: three independent values."""
    values, edited = [0.5, -0.5, 1.5, -1.5, 4.0, 4.0], [0.2, 0.2, -1.0, 1.0, 3.0, -3.0]
    control = {"control": values, "control_removed": [[0.0] * 6, edited, [0.0] * 6]}
    alone = made(**control).scalars()
    together = made(**control, control_items=["a", "a", "b", "b", "c", "c"]).scalars()
    for name, sizes in (("bias_control", [0.5, 1.5, 4.0]), ("bias_control_left", [0.2, 1.0, 3.0])):
        of_items = np.array(sizes)
        interval = bootstrap_interval(3, lambda index, of_items=of_items: of_items[index].mean(-1))
        assert interval is not None
        assert together[name] == (pytest.approx(np.mean(sizes)), *(pytest.approx(end) for end in interval))
        assert alone[name][0] == together[name][0]
        low, high = alone[name][1:]
        assert low is not None and high is not None
        assert high - low < 0.9 * (interval[1] - interval[0]), "independent examples would promise too much"


def test_the_interval_of_a_paired_difference_is_over_base_items() -> None:
    """Eighteen test examples of six items, three alike each: six independent pairs."""
    test = [2.0, -1.0, 3.0, 1.5, -2.5, 2.0]
    left = [[1.0, 1.0, 1.0, 0.5, -1.0, 1.5], [2.0, 0.0, 2.5, 1.5, -2.0, 1.0]]

    def difference(copies: int, **known: Any) -> tuple[float, tuple[float, float] | None]:
        records = []
        for removed in left:
            values = {"test": np.repeat(test, copies).tolist()}
            at_chosen = np.repeat(removed, copies).tolist()
            everything = [[0.0] * 6 * copies, at_chosen, [0.0] * 6 * copies]
            prompts = [str(i) for i in range(6 * copies)]
            records.append(made(**values, items=prompts, test_removed=everything, **known))
        return paired_difference(*records)

    value, expected = difference(1)
    alone, together = difference(3), difference(3, base_items=[item for item in "abcdef" for _ in range(3)])
    assert alone[0] == together[0] == pytest.approx(value)
    assert expected is not None and alone[1] is not None and together[1] is not None
    assert together[1] == pytest.approx(expected)
    assert alone[1][1] - alone[1][0] < 0.8 * (expected[1] - expected[0]), "independent examples would promise too much"
