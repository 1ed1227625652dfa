"""The areas under the curves: published test vectors, and curves by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attriboard.measurements import faithfulness

MIB_F = np.array(
    [
        0.023235465441,
        0.239347123232,
        0.498787047064,
        0.802994846828,
        0.881251360233,
        0.920282182087,
        0.935665904451,
        0.967238759677,
        0.978127967780,
        1.0,
    ]
)


def test_cpr_and_cmd_reproduce_the_published_test_vector() -> None:
    assert faithfulness.cpr(MIB_F) == pytest.approx(0.967818, abs=5e-7)
    assert faithfulness.cmd(MIB_F) == pytest.approx(0.031182, abs=5e-7)


def test_mib_sizes_are_floors_and_the_published_ones_for_32491_edges() -> None:
    assert faithfulness.mib_sizes(32491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert faithfulness.mib_sizes(270)[:4] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (270, [1, 3, 5, 14, 27, 54, 135, 270]),
        (46080, [46, 92, 230, 461, 922, 2304, 4608, 9216, 23040, 46080]),
        (3, [1, 2, 3]),
        (1, [1]),
    ],
)
def test_sizes_are_the_distinct_nearest_whole_numbers(n: int, expected: list[int]) -> None:
    assert faithfulness.sizes(n) == expected


def _curves(suff: list[float], need: list[float], sizes: list[int]) -> faithfulness.Faithfulness:
    flat = [[0.0]] * 10
    return faithfulness.Faithfulness(
        sizes=sizes,
        full=[1.0],
        empty=[0.0],
        sufficiency=[[x] for x in suff],
        necessity=[[x] for x in need],
        mib_sizes=[1] * 10,
        mib_signed=flat,
        mib_absolute=flat,
    )


def test_log_areas_are_one_for_a_perfect_ranking_and_weigh_each_decade_alike() -> None:
    at = np.arange(1)
    perfect = _curves([1, 1, 1], [0, 0, 0], [1, 10, 100]).statistics()
    assert float(perfect["sufficiency_log_area"](at)) == pytest.approx(1.0)
    assert float(perfect["necessity_log_area"](at)) == pytest.approx(1.0)
    half = _curves([0, 0, 1], [1, 1, 0], [1, 10, 100]).statistics()
    assert float(half["sufficiency_log_area"](at)) == pytest.approx(0.25)  # a triangle over the last of two decades
    over = _curves([2, 2, 2], [-1, -1, -1], [1, 10, 100]).statistics()
    assert float(over["sufficiency_log_area"](at)) == pytest.approx(2.0)  # never clipped
    assert float(over["necessity_log_area"](at)) == pytest.approx(2.0)


def test_f_is_a_ratio_of_averages_not_an_average_of_ratios() -> None:
    faith = _curves([0.5], [0.5], [1]).model_copy(
        update={"full": [1.0, 3.0], "empty": [0.0, 1.0], "sufficiency": [[1.0, 1.0]], "sizes": [1]}
    )
    assert float(faith.curve(faith.sufficiency, np.arange(2))[0]) == pytest.approx((1.0 - 0.5) / (2.0 - 0.5))
