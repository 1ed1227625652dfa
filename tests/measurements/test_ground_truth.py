"""Agreement with a known mechanism, against scikit-learn and by hand."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from attriboard.measurements.ground_truth import TIED, GroundTruth, JudgedScores, judge, tied


def test_metrics_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for n in (5, 40, 300):
        for decimals in (0, 1, None):  # many ties, some, and none
            scores = generator.permutation(n) - n / 3 if decimals is None else generator.normal(size=n).round(decimals)
            truth = generator.choice([-1, 0, 0, 1], size=n)
            truth[:3] = (1, -1, 0)
            found = judge(scores, truth)
            for suffix, used, positive in (("", scores, truth > 0), ("_absolute", abs(scores), truth != 0)):
                assert found[f"truth_auroc{suffix}"] == pytest.approx(roc_auc_score(positive, used))
                precision = found[f"truth_average_precision{suffix}"]
                keys = generator.random((400, n))
                broken = [average_precision_score(positive, n - np.argsort(np.lexsort((key, -used)))) for key in keys]
                assert precision == pytest.approx(np.mean(broken), abs=0.03 if len(set(used)) < n else 1e-12)
                k = int(positive.sum())
                draws = [positive[np.lexsort((generator.random(n), -used))[:k]].mean() for _ in range(2000)]
                precision = found[f"truth_precision_at_size{suffix}"]
                assert precision == pytest.approx(np.mean(draws), abs=0.02 if decimals is not None else 1e-12)
            assert found["suppressor_auroc"] == pytest.approx(roc_auc_score(truth < 0, -scores))
            assert found["truth_share"] == (truth > 0).mean()


@pytest.mark.parametrize("scores", [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 1, 1, 1, 0], [1, 0, 1, 0, 1]])
@pytest.mark.parametrize("truth", [[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 0, 1, 1], [0, 0, -1, 1, 1]])
def test_with_ties_every_metric_is_the_mean_over_all_orders_of_them(scores: list[int], truth: list[int]) -> None:
    n = len(scores)
    orders = [p for p in permutations(range(n)) if all(scores[a] >= scores[b] for a, b in pairwise(p))]
    found = judge(np.array(scores, dtype=float), np.array(truth))
    apart = [judge(np.array([-float(order.index(i)) for i in range(n)]), np.array(truth)) for order in orders]
    for name in ("truth_auroc", "truth_average_precision", "truth_precision_at_size"):
        assert found[name] == pytest.approx(np.mean([values[name] for values in apart]))


def test_scores_that_rounding_makes_different_are_ties() -> None:
    places = tied(np.array([1.0, 0.3 * TIED, -0.3 * TIED, 0.0, 2 * TIED, 1.0 - 0.5 * TIED]))
    assert places.tolist() == [2, 0, 0, 0, 1, 2]
    assert tied(np.zeros(3)).tolist() == [0, 0, 0]
    found = judge(np.array([5.0, 1e-9, -1e-9]), np.array([0, 1, 0]))
    assert found["truth_auroc"] == 0.25


def test_what_is_undefined_is_absent_and_said() -> None:
    assert judge(np.arange(3.0), np.zeros(3, dtype=int)) == {}
    assert "suppressor_auroc" not in judge(np.arange(3.0), np.array([1, 0, 0]))
    only_hurts = GroundTruth(cases=[JudgedScores(scores=[1, 2], truth=[-1, 0])], each_example=False)
    assert "truth_auroc" not in only_hurts.statistics() and "suppressor_auroc" in only_hurts.statistics()
    assert "nothing that was scored helps" in only_hurts.gaps()["truth_auroc"]
