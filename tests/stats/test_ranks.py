"""Rank correlation against ranks counted by hand; shares of wins against likelihoods written out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.optimize
import torch

from attriboard.stats.ranks import TIES, rank_correlation, win_shares, wins_of


def counted_ranks(values: Sequence[float]) -> list[float]:
    return [sum(x < y for x in values) + (sum(x == y for x in values) + 1) / 2 for y in values]


def literal_rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.correlation(counted_ranks(a), counted_ranks(b))


def test_rank_correlation_is_that_of_counted_ranks_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(0, 6, (2, 30), generator=generator).double()
        assert rank_correlation(a, b) == pytest.approx(literal_rank_correlation(a.tolist(), b.tolist()), abs=1e-12)
        assert rank_correlation(a, a) == pytest.approx(1, abs=1e-12)
    assert math.isnan(rank_correlation(torch.ones(4), torch.arange(4.0)))


# --- paired comparisons over tables -----------------------------------------------------------------------------------


def beats(k: int, *pairs: tuple[int, int]) -> np.ndarray:
    """One table ``[k, k]`` on which the first of each pair beat the second, and no others met."""
    outcome = np.full((k, k), np.nan)
    for winner, loser in pairs:
        outcome[winner, loser], outcome[loser, winner] = 1.0, 0.0
    return outcome


def test_the_lower_value_wins_equal_ones_halve_and_unknown_ones_did_not_meet() -> None:
    won = wins_of(np.array([1.0, 3.0, 1.0, np.nan]))
    expected = [[np.nan, 1, 0.5, np.nan], [0, np.nan, 0, np.nan], [0.5, 1, np.nan, np.nan], [np.nan] * 4]
    np.testing.assert_array_equal(won, np.array(expected))


def test_of_two_methods_the_share_is_that_of_the_tables_and_one_tie() -> None:
    tables = [beats(2, (0, 1))] * 3 + [beats(2, (1, 0))]
    found = win_shares(np.array(tables), "abcd")
    assert found.wins == pytest.approx([3.5 / 5, 1.5 / 5], abs=1e-6)


def test_shares_are_those_of_maximum_likelihood_written_out() -> None:
    rng = np.random.default_rng(0)
    outcomes = np.array([wins_of(rng.normal(size=5) + np.arange(5) / 2) for _ in range(12)])
    outcomes[:6, 4], outcomes[:6, :, 4] = np.nan, np.nan  # one of them stands in half of the tables
    won = np.nan_to_num(outcomes).sum(0) + TIES * (1 - np.eye(5))

    def against(s: np.ndarray) -> float:
        return float((won * np.log1p(np.exp(s[None, :] - s[:, None]))).sum())

    s = scipy.optimize.minimize(against, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    expected = [np.mean([1 / (1 + np.exp(s[j] - s[i])) for j in range(5) if j != i]) for i in range(5)]
    assert win_shares(outcomes, range(12)).wins == pytest.approx(expected, abs=1e-4)


def test_methods_that_never_met_are_compared_through_a_third_one() -> None:
    tables = [beats(3, (0, 1))] * 3 + [beats(3, (1, 2))] * 3
    first, between, last = win_shares(np.array(tables), range(6)).wins
    assert first > between > last and 0.5 < first < 1  # finite, though none of them lost to a weaker one


def test_tables_of_one_block_count_once() -> None:
    once = [beats(2, (0, 1)), beats(2, (1, 0)), beats(2, (0, 1))]
    repeated = [once[0]] * 10 + once[1:]
    assert win_shares(np.array(once), "abc").wins == pytest.approx(
        win_shares(np.array(repeated), "a" * 10 + "bc").wins, abs=1e-6
    )
    assert win_shares(np.array(repeated), range(12)).wins[0] > 0.8


def test_intervals_resample_blocks_else_tables_else_nothing() -> None:
    tables = np.array([beats(2, (0, 1)), beats(2, (1, 0)), *[beats(2, (0, 1))] * 4])
    blocks = win_shares(tables, range(6))
    assert blocks.resampled == "blocks" and blocks.low[0] < blocks.wins[0] < blocks.high[0]
    few = win_shares(tables, "aabbcc")
    assert few.resampled == "tables" and few.low[0] < few.wins[0] < few.high[0]
    none = win_shares(tables[:4], "abcd")
    assert none.resampled == "nothing" and np.isnan(none.low).all() and np.isnan(none.high).all()
    same = win_shares(tables[2:].repeat(2, axis=0), range(8))
    assert same.low == pytest.approx(same.wins, abs=1e-4) and same.high == pytest.approx(same.wins, abs=1e-4)


def test_one_method_or_no_table_cannot_be_compared() -> None:
    for shape in ((0, 2, 2), (3, 1, 1)):
        with pytest.raises(ValueError, match="a table and 2 methods"):
            win_shares(np.zeros(shape), range(shape[0]))
