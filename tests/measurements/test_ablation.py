"""The ablation drop, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attriboard.measurements.ablation import Ablation, sizes
from attriboard.stats.sets import curve_sizes


def measured() -> Ablation:
    """Two examples, of which the second loses half as much as the first."""
    return Ablation(
        sizes=[1, 2],
        clean=[[0.9, 0.8], [-0.1, -0.2], [1.0, 1.0]],
        top=[[[0.2, 0.5], [0.1, 0.4]], [[-1.6, -0.7], [-2.3, -0.9]], [[0.0, 1.0], [0.0, 0.0]]],
        random=[[[0.7, 0.75], [0.5, 0.6]], [[-0.3, -0.3], [-0.7, -0.5]], [[1.0, 1.0], [0.5, 1.0]]],
    )


def test_ablation_drop_is_the_gap_between_random_and_top() -> None:
    # by example, averaged over the two sizes
    by_hand = {
        "ablation_drop_p": [(0.5 + 0.4) / 2, (0.25 + 0.2) / 2],
        "ablation_drop_raw": [(0.7 + 0.8) / 2, (0.3 + 0.4) / 2],
        "ablation_drop_logprob": [(1.3 + 1.6) / 2, (0.4 + 0.4) / 2],
        "ablation_drop_accuracy": [(1.0 + 0.5) / 2, (0.0 + 1.0) / 2],
    }
    statistics = measured().statistics()
    assert statistics.keys() == by_hand.keys() and measured().n == 2
    for name, each in by_hand.items():
        found = [float(statistics[name](np.array(rows))) for rows in ([0], [1], [0, 1])]
        assert found == pytest.approx([*each, sum(each) / 2]), name


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [1]),
        (9, [1]),
        (30, [1, 3]),
        (270, [1, 2, 5, 13, 27]),
        (46080, [46, 92, 230, 460, 921, 2304, 4608]),
    ],
)
def test_sizes_are_those_of_faithfulness_up_to_a_tenth(n: int, expected: list[int]) -> None:
    assert set(sizes(n)) <= set(curve_sizes(n))
    assert sizes(n) == expected
