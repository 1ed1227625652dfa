"""The ablation drop, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from attriboard.measurements.ablation import Ablation, sizes


def test_ablation_drop_is_the_gap_between_random_and_top() -> None:
    measured = Ablation(
        sizes=[1, 2],
        clean=[[np.log(0.9), 1.0]],
        top=[[[np.log(0.2), 0.0]], [[np.log(0.1), 0.0]]],
        random=[[[[np.log(0.8), 1.0]], [[np.log(0.6), 1.0]]], [[[np.log(0.6), 1.0]], [[np.log(0.4), 0.0]]]],
    )
    found = {name: float(f(np.arange(1))) for name, f in measured.statistics().items()}
    assert found["ablation_drop_p"] == pytest.approx(np.mean([0.7 - 0.2, 0.5 - 0.1]))
    assert found["ablation_drop_accuracy"] == pytest.approx(np.mean([1.0, 0.5]))


@pytest.mark.parametrize(("n", "expected"), [(1, [1]), (3, [1]), (4, [1, 2]), (270, [1, 2, 5, 10, 20, 50, 100])])
def test_sizes_go_up_to_half_of_the_level(n: int, expected: list[int]) -> None:
    assert sizes(n) == expected
