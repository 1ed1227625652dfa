"""How often our 95 % intervals hold the true value, and how often our paired test cries wolf, on simulated data.

The data look like what records hold: means of skewed differences, shares of right answers, f(k) at one size and its
area, of 24, 48 or 96 examples that stand alone or share a base item by twos and threes, with correlated values. The
truth is known because the data are drawn; intervals and p-values come from :mod:`attriboard.stats`, statistics of f
from the measurement that records store. Data that share items, frames and train groups are drawn by
``coverage_crossed.py``, which stands beside this file.

    python benchmarks/coverage.py --out results/coverage.json
    python benchmarks/coverage.py --out results/coverage.json --only crossed
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from attriboard.measurements.base import Statistic
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.stats.intervals import ALPHA, LEVEL, RESAMPLES, Array, bootstrap_interval, pseudo_values
from attriboard.stats.sets import curve_sizes, mib_sizes
from attriboard.stats.tests import paired_test

COMPONENTS = 270
"""Heads of the simulated model."""
CURVE = (0.15, 0.42, 0.5, 0.74, 0.76, 0.8, 0.85, 1.0)
"""The true f at the sizes of a curve over so many components."""
FULL, EMPTY = (5.0, 2.4), (-3.6, 4.4)
"""Mean and standard deviation of the simulated logit difference, untouched and with everything replaced."""
SHARED = 0.5
"""Correlation of the latent values of examples with one base item."""
LIMITS = (0.93, 0.97)
"""Where the coverage of a 95 % interval should be."""


class Pair(NamedTuple):
    """Two simulated methods on the same examples, as statistics of example indices with one true value."""

    first: Statistic
    second: Statistic
    truth: float


class Latent:
    """Draws standard normal values of examples, correlated within base items."""

    def __init__(self, n: int, clustered: bool, rng: np.random.Generator) -> None:
        self.rng = rng
        self.items = np.arange(n)
        if clustered:
            self.items = np.repeat(np.arange(n), rng.integers(2, 4, size=n))[:n]

    def __call__(self) -> Array:
        between, within = self.rng.normal(size=(2, len(self.items)))
        return np.sqrt(SHARED) * between[self.items] + np.sqrt(1 - SHARED) * within

    def gamma(self, shape: float) -> Array:
        """Values with mean 1 and skewness ``2 / sqrt(shape)``."""
        return scipy.stats.gamma.ppf(scipy.stats.norm.cdf(self()), shape) / shape


def _mean(values: Array) -> Statistic:
    return lambda index: values[index].mean(-1)


def skewed_mean(latent: Latent) -> Pair:
    """Means of values with skewness 1.4 and 0.7 (a drop in p, seconds, a share of mass)."""
    return Pair(_mean(latent.gamma(2.0)), _mean(latent.gamma(8.0)), 1.0)


def very_skewed_mean(latent: Latent) -> Pair:
    """The same with skewness 2.8 (a drop that a few examples make)."""
    return Pair(_mean(latent.gamma(0.5)), _mean(latent.gamma(8.0)), 1.0)


def share(latent: Latent) -> Pair:
    """Shares of right answers of two methods that are right four times of five."""
    easy = latent()
    first, second = ((0.6 * easy + 0.8 * latent() < scipy.stats.norm.ppf(0.8)).astype(float) for _ in range(2))
    return Pair(_mean(first), _mean(second), 0.8)


def _faithfulness(latent: Latent, spread: float, full: Array, empty: Array) -> Faithfulness:
    """A method whose true curve is :data:`CURVE`; examples scatter around it, more so with more ``spread``."""
    gap = (full - empty) * latent.gamma(1 / spread**2)
    kept = [(empty + f * gap + spread * latent()).tolist() for f in CURVE]
    kept[-1] = full.tolist()
    unused = [full.tolist()] * len(kept)
    return Faithfulness(
        sizes=curve_sizes(COMPONENTS),
        examples=list(range(len(full))),
        full=full.tolist(),
        empty=empty.tolist(),
        absolute=kept,
        signed=kept,
        answered=unused,
        removed=unused,
        shuffled=unused,
        mib_sizes=mib_sizes(COMPONENTS),
    )


def _two_curves(latent: Latent) -> tuple[Faithfulness, Faithfulness]:
    low = -(latent.gamma(8.0) - 1) * np.sqrt(8.0)  # standardized, with a tail of examples answered barely
    full = FULL[0] + FULL[1] * low
    empty = EMPTY[0] + EMPTY[1] * (np.sqrt(0.75) * latent() - 0.5 * low)
    first, second = (_faithfulness(latent, spread, full, empty) for spread in (0.8, 0.4))
    return first, second


def ratio(latent: Latent) -> Pair:
    """f at one size: a ratio of differences of means."""
    at = 2
    first, second = ((lambda index, m=m: m.curve([m.signed[at]], index)[0]) for m in _two_curves(latent))
    return Pair(first, second, CURVE[at])


def area(latent: Latent) -> Pair:
    """The area under f over log k."""
    first, second = (m.statistics()["sufficiency_log_area"] for m in _two_curves(latent))
    x = np.log(np.array(curve_sizes(COMPONENTS)))
    return Pair(first, second, float(np.trapezoid(np.array(CURVE), x) / (x[-1] - x[0])))


CASES: dict[str, Callable[[Latent], Pair]] = {
    "mean, skewness 1.4": skewed_mean,
    "mean, skewness 2.8": very_skewed_mean,
    "share of 0.8": share,
    "f at one size": ratio,
    "area under f": area,
}
EXAMPLES = (24, 48, 96)


def simulate(case: str, n: int, clustered: bool, simulations: int, seed: int = 0) -> dict[str, Any]:
    """Coverage and false alarms of one kind of data.

    Returns:
        ``coverage``: share of data sets whose interval holds the truth; ``too_low`` and ``too_high``: share in which
        the whole interval lies below or above it; ``independent``: coverage where shared items are not heeded (None
        where there are none); ``false_alarms``: share in which the paired test tells equal methods apart.
    """
    rng = np.random.default_rng([seed, list(CASES).index(case), n, clustered])
    low, high, independent, alarms, items = 0, 0, 0, 0, []
    for i in range(simulations):
        latent = Latent(n, clustered, rng)
        names = latent.items.tolist()
        pair = CASES[case](latent)
        items.append(len(set(names)))
        interval = bootstrap_interval(n, pair.first, seed=i, items=names)
        assert interval is not None
        low += interval[1] < pair.truth
        high += interval[0] > pair.truth
        if clustered:
            naive = bootstrap_interval(n, pair.first, seed=i)
            assert naive is not None
            independent += naive[0] <= pair.truth <= naive[1]
        gap = pseudo_values(n, pair.first) - pseudo_values(n, pair.second)
        alarms += paired_test(gap, names) <= ALPHA
    covered = (simulations - low - high) / simulations
    return {
        "data": case,
        "examples": n,
        "base_items": float(np.mean(items)),
        "coverage": covered,
        "too_low": low / simulations,
        "too_high": high / simulations,
        "independent": independent / simulations if clustered else None,
        "false_alarms": alarms / simulations,
        "within": LIMITS[0] <= covered <= LIMITS[1],
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as they stand in ``docs/statistics.md``."""
    lines = [
        "| data | examples | base items | coverage | in 93..97 % | coverage, taken as independent | false alarms |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in cases:
        independent = "" if row["independent"] is None else f"{100 * row['independent']:.1f} %"
        lines.append(
            f"| {row['data']} | {row['examples']} | {row['base_items']:.0f} | {100 * row['coverage']:.1f} % | "
            f"{'yes' if row['within'] else 'no'} | {independent} | {100 * row['false_alarms']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--crossed", type=int, default=400, help="data sets of each kind that shares train groups")
    parser.add_argument("--tables", type=int, default=200, help="tables of equal methods")
    parser.add_argument("--only", choices=["one_way", "crossed"], help="leave the other part of --out as it is")
    args = parser.parse_args()
    stored = json.loads(args.out.read_text(encoding="utf-8")) if args.only else {}
    if args.only != "crossed":
        stored |= one_way(args.simulations)
    if args.only != "one_way":
        start, crossed = time.perf_counter(), runpy.run_path(str(Path(__file__).with_name("coverage_crossed.py")))
        stored["crossed"] = crossed["measured"](args.crossed, args.tables)
        stored["crossed"]["seconds"] = round(time.perf_counter() - start, 1)
        print(crossed["table"](stored["crossed"]), crossed["bold_table"](stored["crossed"]), sep="\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


def one_way(simulations: int) -> dict[str, Any]:
    """Examples that stand alone or share base items, as it is stored."""
    start = time.perf_counter()
    rows = []
    for clustered in (False, True):
        for case in CASES:
            for n in EXAMPLES:
                rows.append(simulate(case, n, clustered, simulations))
                row = rows[-1]
                print(
                    f"{case}, n = {n} of {row['base_items']:.1f} items: coverage {row['coverage']:.4f}, "
                    f"false alarms {row['false_alarms']:.4f}",
                    flush=True,
                )
    print(table(rows))
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "simulations": simulations,
        "standard_error_at_level": float(np.sqrt(LEVEL * (1 - LEVEL) / simulations)),
        "limits": LIMITS,
        "seconds": round(time.perf_counter() - start, 1),
        "cases": rows,
    }


if __name__ == "__main__":
    main()
