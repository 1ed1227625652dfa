"""The areas under the curves: published test vectors, and curves by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attriboard.measurements import faithfulness
from attriboard.stats.sets import curve_sizes, mib_sizes

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


@pytest.mark.parametrize(
    ("f", "cpr", "cmd", "clipped"),
    [
        ([1.0] * 10, 0.999, 0.0, 0.999),
        ([1.5] * 10, 1.4985, 0.4995, 0.999),
        ([0, 0, 0.1, 0.3, 0.6, 0.9, 1.2, 1.1, 1, 1], 1.01065, 0.05835, 0.97565),
    ],
)
def test_circuits_that_exceed_the_model_earn_nothing_when_clipped(
    f: list[float], cpr: float, cmd: float, clipped: float
) -> None:
    measured = faithfulness.Faithfulness(
        sizes=mib_sizes(1000),
        examples=[0],
        full=[1.0],
        empty=[0.0],
        mib_sizes=mib_sizes(1000),
        **{name: [[x] for x in f] for name in ("absolute", "signed", "shuffled", "removed")},
        answered=[[float(x > 0.5)] for x in f],
    )
    found = _values(measured)
    assert found["cpr"] == pytest.approx(cpr, abs=1e-12)
    assert found["cmd"] == pytest.approx(cmd, abs=1e-12)
    assert found["clipped_cpr"] == pytest.approx(clipped, abs=1e-12)
    assert found["clipped_cpr"] + found["cpr_overshoot"] == pytest.approx(cpr, abs=1e-12)
    assert found["mib_accuracy"] == pytest.approx(faithfulness.cpr((np.array(f) > 0.5).astype(float)), abs=1e-12)


def test_mib_sizes_are_floors_and_the_published_ones_for_32491_edges() -> None:
    assert mib_sizes(32491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert mib_sizes(270)[:4] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (270, [1, 2, 5, 13, 27, 54, 135, 270]),
        (46080, [46, 92, 230, 460, 921, 2304, 4608, 9216, 23040, 46080]),
        (3, [1, 3]),
        (1, [1]),
    ],
)
def test_sizes_are_the_distinct_ones_of_mib(n: int, expected: list[int]) -> None:
    assert set(expected) - {1} <= set(mib_sizes(n))
    assert curve_sizes(n) == expected


def _curves(f: list[float], sizes: list[int], **others: list[float]) -> faithfulness.Faithfulness:
    """One example whose metric is 1 untouched and 0 with everything replaced; all kept curves are ``f``."""
    own = {name: others.get(name, f) for name in ("absolute", "signed", "shuffled", "answered", "removed")}
    return faithfulness.Faithfulness(
        sizes=sizes,
        examples=[0],
        full=[1.0],
        empty=[0.0],
        mib_sizes=[1] * 10,
        mib_signed=[[0.0]] * 10,
        mib_absolute=[[0.0]] * 10,
        **{name: [[x] for x in values] for name, values in own.items()},
    )


def test_mib_scores_are_points_of_the_curves_and_nothing_kept_is_empty() -> None:
    f = [0.3, 0.5, 0.9, 1.1]
    measured = faithfulness.Faithfulness(
        sizes=[1, 2, 5, 10],
        examples=[0, 0],
        full=[3.0],
        empty=[1.0],
        mib_sizes=[0, 0, 0, 0, 0, 0, 1, 2, 5, 10],
        absolute=[[1 + 2 * x, 1 + 2 * x] for x in f],
        signed=[[1 + 2 * x] * 2 for x in reversed(f)],
        **{name: [[0.0, 0.0]] * 4 for name in ("shuffled", "answered", "removed")},
    )
    expected = {
        "cpr": faithfulness.cpr(np.array([0.0] * 6 + f[::-1])),
        "cmd": faithfulness.cmd(np.array([0.0] * 6 + f)),
    }
    found = measured.statistics()
    for name, value in expected.items():
        assert found[name](np.arange(2)) == pytest.approx(value, abs=1e-12)


def test_sizes_of_mib_that_no_curve_has_are_refused() -> None:
    whole = _curves([0.5, 1.0], [1, 2])
    with pytest.raises(ValueError, match="mib_sizes are not among sizes"):
        faithfulness.Faithfulness(**{**whole.model_dump(), "mib_sizes": [3] * 10, "mib_signed": [], "mib_absolute": []})


def _values(measured: faithfulness.Faithfulness) -> dict[str, float]:
    return {name: float(statistic(np.arange(measured.n))) for name, statistic in measured.statistics().items()}


DECADES = [1, 10, 100]


def test_a_first_component_that_does_it_all_is_perfect() -> None:
    values = _values(_curves([1, 1, 1], DECADES, removed=[0, 0, 0], shuffled=[0, 0, 1]))
    assert values["log_cmd"] == pytest.approx(0.0) and values["performance"] == pytest.approx(1.0)
    assert values["necessity"] == pytest.approx(1.0) and values["accuracy_area"] == pytest.approx(1.0)
    assert values["within_layers"] == pytest.approx(0.75)  # shuffled, it loses a triangle of two decades


def test_every_decade_weighs_alike() -> None:
    values = _values(_curves([0, 0, 1], DECADES, removed=[1, 1, 0]))
    assert values["performance"] == pytest.approx(0.25)  # a triangle over the last of two decades
    assert values["log_cmd"] == pytest.approx(0.75) and values["necessity"] == pytest.approx(0.25)


def test_exceeding_the_model_is_as_far_from_it_as_falling_short_and_earns_nothing() -> None:
    over = _values(_curves([2, 2, 2], DECADES, removed=[-1, -1, -1]))
    short = _values(_curves([0, 0, 0], DECADES))
    assert over["log_cmd"] == short["log_cmd"] == pytest.approx(1.0)
    assert over["performance"] == pytest.approx(1.0) and over["overshoot"] == pytest.approx(1.0)
    assert over["necessity"] == pytest.approx(1.0) and over["necessity_log_area"] == pytest.approx(2.0)
    assert over["sufficiency_log_area"] == pytest.approx(over["performance"] + over["overshoot"])


def test_the_headline_reads_the_ranking_by_absolute_score() -> None:
    values = _values(_curves([1, 1, 1], DECADES, signed=[5, 5, 1]))
    assert values["log_cmd"] == pytest.approx(0.0) and values["overshoot"] == pytest.approx(3.0)


def test_f_is_a_ratio_of_averages_not_an_average_of_ratios() -> None:
    faith = _curves([0.5], [1]).model_copy(
        update={"examples": [0, 1], "full": [1.0, 3.0], "empty": [0.0, 1.0], "absolute": [[1.0, 1.0]]}
    )
    assert float(faith.curve(faith.absolute, np.arange(2))[0]) == pytest.approx((1.0 - 0.5) / (2.0 - 0.5))


def test_rows_of_one_example_share_its_ends() -> None:
    faith = _curves([0.5], [1]).model_copy(
        update={"examples": [1, 0, 1], "full": [1.0, 3.0], "empty": [0.0, 1.0], "absolute": [[1.0, 1.0, 2.0]]}
    )
    full, empty = (3 + 1 + 3) / 3, (1 + 0 + 1) / 3
    assert float(faith.curve(faith.absolute, np.arange(3))[0]) == pytest.approx((4 / 3 - empty) / (full - empty))
