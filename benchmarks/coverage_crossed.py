"""The part of ``coverage.py`` on rows that share items, frames and train groups: coverage, false alarms, bold, power.

96 examples of two halves, 64 items, 24 or 48 frames; a cross-fitted measurement judges each half by scores found on
four groups of the other, twice, so that there are 192 rows and 8 train groups. A share of the variance (0, 0.3 or 0.6)
of the value comes from the draw of the train groups. Frames have an intra-class correlation of 0.3, items of 0.15, as
far as tasks were measured. Without train groups there are 96 rows of 96 examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from attriboard.measurements.base import Statistic
from attriboard.stats.clusters import Clusters, effective_n, spread_of_mean, train_share
from attriboard.stats.intervals import ALPHA, LEVEL, Array, bootstrap_interval, half_width, pseudo_values
from attriboard.stats.tests import holm, paired_test

EXAMPLES, ITEMS, FOLDS, REPETITIONS = 96, 64, 4, 2
FRAMES = (24, 48)
SHARES = (None, 0.0, 0.3, 0.6)
"""Of the variance that comes from the train side; None without cross-fitting."""
ICC_ITEM, ICC_FRAME = 0.15, 0.3
"""Shares of the variance of one example."""
ROW = 0.2
"""Share of the variance that two repetitions of one example do not have in common."""
BELOW = (0.15, 0.42, 0.5, 0.74, 0.76, 0.8, 0.85, 1.0)
"""A true f that stays below 1, at the sizes of a curve over 270 components."""
AROUND = (0.3, 0.7, 0.95, 1.05, 1.1, 1.05, 1.02, 1.0)
"""One that goes through 1, where the distance from 1 has a kink."""
SIZES = (1, 3, 5, 14, 27, 54, 135, 270)
FULL, EMPTY = (5.0, 2.4), (-3.6, 4.4)
"""Mean and standard deviation of the simulated logit difference, untouched and with everything replaced."""
METHODS = (6, 12)
TABLES = ("mean", "log-CMD, f below 1")
"""The kinds of which tables of equal methods are made."""
POWER = 200
"""Data sets by which power is told."""
GAP = 3.0
"""The true difference of which power is told, in standard errors of the difference."""


class Design:
    """Which item, frame and train group each row has; drawn anew for every data set."""

    def __init__(self, frames: int, crossed: bool, rng: np.random.Generator) -> None:
        self.rng = rng
        half = EXAMPLES // 2
        item, frame, train = [], [], []
        for side in range(2):
            more = rng.integers(0, ITEMS // 2, half - ITEMS // 2)
            item.append(rng.permutation(np.r_[np.arange(ITEMS // 2), more]) + side * ITEMS)
            frame.append(rng.integers(0, frames // 2, half) + side * frames)
            group, judge = rng.permutation(np.arange(half) % FOLDS), rng.permutation(FOLDS)
            train.append([judge[(group + r) % FOLDS] + (1 - side) * FOLDS for r in range(REPETITIONS)])
        times = REPETITIONS if crossed else 1
        self.item, self.frame = np.tile(np.concatenate(item), times), np.tile(np.concatenate(frame), times)
        self.example = np.tile(np.arange(EXAMPLES), times)
        self.train = np.concatenate([t[r] for r in range(REPETITIONS) for t in train])[: times * EXAMPLES]
        ways = {"item": self.item.tolist(), "frame": self.frame.tolist()}
        if crossed:
            ways["train"] = self.train.tolist()
        self.crossed, self.n = crossed, len(self.example)
        self.clusters = Clusters(self.n, ways)

    def effect(self, labels: np.ndarray) -> Array:
        """A standard normal value of each cluster ``[n]``, shared by its rows."""
        return self.rng.normal(size=int(labels.max()) + 1)[labels]

    def normal(self, row: float = ROW) -> Array:
        """Standard normal values of rows, correlated by item, frame and example; ``row`` is what is each row's own."""
        rest = 1 - ICC_ITEM - ICC_FRAME - row
        shared = np.sqrt(ICC_ITEM) * self.effect(self.item) + np.sqrt(ICC_FRAME) * self.effect(self.frame)
        return shared + np.sqrt(rest) * self.effect(self.example) + np.sqrt(row) * self.rng.normal(size=self.n)

    def skewed(self, shape: float, row: float = ROW) -> Array:
        """Values with mean 1 and skewness ``2 / sqrt(shape)``, correlated in the same way."""
        return scipy.stats.gamma.ppf(scipy.stats.norm.cdf(self.normal(row)), shape) / shape

    def of_train(self) -> Array:
        """A standard normal effect of each train group, for its rows; 0 without cross-fitting."""
        return self.effect(self.train) if self.crossed else np.zeros(self.n)


class Kind(NamedTuple):
    """One kind of data.

    Attributes:
        draw: from a design, common values of all methods of a data set, and the size of the train effect, one method's
            statistic of row indices.
        common: what all methods share, of a design.
        truth: the true value.
    """

    draw: Callable[[Design, Any, float], Statistic]
    common: Callable[[Design], Any]
    truth: float


def _mean(values: Array) -> Statistic:
    return lambda index: values[index].mean(-1)


def _skewed_mean(design: Design, common: Array, train: float) -> Statistic:
    return _mean(0.5 * common + 0.5 * design.skewed(2.0) + train * design.of_train())


def _curves(design: Design) -> tuple[Array, Array]:
    """The metric of the untouched model and of everything replaced, of each row: equal in repetitions of an example."""
    low = -(design.skewed(8.0, row=0.0) - 1) * np.sqrt(8.0)
    full = FULL[0] + FULL[1] * low
    return full, EMPTY[0] + EMPTY[1] * (np.sqrt(0.75) * design.normal(row=0.0) - 0.5 * low)


def _distance(curve: tuple[float, ...]) -> Callable[[Design, Any, float], Statistic]:
    """The area between f and 1 over log k, where f is a ratio of differences of means."""

    def draw(design: Design, common: tuple[Array, Array], train: float) -> Statistic:
        full, empty = common
        gap = (full - empty) * design.skewed(4.0)
        moved = train * design.of_train()
        kept = np.array([empty + (f + w * moved) * gap + 0.6 * design.normal() for f, w in zip(curve, _moved(curve))])
        kept[-1] = full

        def statistic(index: np.ndarray) -> Array:
            whole, none = full[index].mean(-1), empty[index].mean(-1)
            return area(np.abs(1 - (kept[:, index].mean(-1) - none) / (whole - none)))

        return statistic

    return draw


def area(heights: Array) -> Array:
    """Of ``[sizes, ...]`` over log k, divided by the axis' length."""
    x = np.log(np.array(SIZES))
    return np.trapezoid(heights, x, axis=0) / (x[-1] - x[0])


def _moved(curve: tuple[float, ...]) -> Array:
    """How far a train group moves f at each size: less towards the whole model."""
    return np.linspace(1.0, 0.0, len(curve))


KINDS: dict[str, Kind] = {
    "mean": Kind(_skewed_mean, lambda design: design.skewed(2.0), 1.0),
    "log-CMD, f below 1": Kind(_distance(BELOW), _curves, float(area(1 - np.array(BELOW)))),
    "log-CMD, f around 1": Kind(_distance(AROUND), _curves, float(area(np.abs(1 - np.array(AROUND))))),
}


def data(
    kind: str, frames: int, share: float | None, methods: int, rng: np.random.Generator
) -> tuple[Design, list[Statistic]]:
    """One data set of methods whose true value is the same."""
    design = Design(frames, share is not None, rng)
    common = KINDS[kind].common(design)
    train = _train_effect(kind, frames, share) if share else 0.0
    return design, [KINDS[kind].draw(design, common, train) for _ in range(methods)]


@cache
def _train_effect(kind: str, frames: int, share: float, pilots: int = 800) -> float:
    """The size of the train effect that makes up this share of the variance of a value, found by pilot data."""

    def variance(train: float) -> float:
        rng = np.random.default_rng([9, list(KINDS).index(kind), frames])
        values = []
        for _ in range(pilots):
            design = Design(frames, True, rng)
            statistic = KINDS[kind].draw(design, KINDS[kind].common(design), train)
            values.append(float(statistic(np.arange(design.n))))
        return float(np.var(values))

    without = variance(0.0)
    train, wanted = 0.3, without * share / (1 - share)
    for _ in range(4):
        train *= float(np.sqrt(wanted / max(variance(train) - without, 0.1 * wanted)))
    return train


def simulate(kind: str, frames: int, share: float | None, simulations: int, seed: int = 0) -> dict[str, Any]:
    """Coverage, false alarms and power of one kind of data.

    Returns:
        ``coverage``, ``too_low``, ``too_high``: of the interval of one method; ``width``: the mean width of the
        intervals over that of an interval of 3.92 true standard deviations; ``test_side_only``: coverage where the draw
        of train examples is not heeded (None without cross-fitting); ``false_alarms``: of the paired test of two
        methods with the same true value, at 0.05; ``power``: how often it finds a true difference of :data:`GAP`
        standard deviations of the difference; ``n_eff``: median effective number of examples; ``found_share``: mean
        estimated share of the train side.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind), frames, SHARES.index(share)])
    truth = KINDS[kind].truth
    low = high = alone = alarms = 0
    values, widths, n_eff, shares, gaps = [], [], [], [], []
    for i in range(simulations):
        design, (first, second) = data(kind, frames, share, 2, rng)
        interval = bootstrap_interval(design.n, first, seed=i, items=design.clusters)
        assert interval is not None
        low += interval[1] < truth
        high += interval[0] > truth
        widths.append(interval[1] - interval[0])
        a, b = pseudo_values(design.n, first), pseudo_values(design.n, second)
        values.append(a.mean())
        if design.crossed:
            spread = spread_of_mean(a, design.clusters.test_side())
            alone += int(abs(a.mean() - truth) <= half_width(spread))
        n_eff.append(effective_n(a, design.clusters, design.example.tolist()))
        shares.append(train_share(a, design.clusters))
        gaps.append((a - b, design.clusters))
        alarms += paired_test(a - b, design.clusters) <= ALPHA
    shift = GAP * float(np.std([gap.mean() for gap, _ in gaps]))
    found = sum(paired_test(gap + shift, clusters) <= ALPHA for gap, clusters in gaps[:POWER])
    covered = (simulations - low - high) / simulations
    return {
        "data": kind,
        "frames": frames,
        "share": share,
        "coverage": covered,
        "too_low": low / simulations,
        "too_high": high / simulations,
        "width": float(np.mean(widths) / (2 * scipy.stats.norm.ppf((1 + LEVEL) / 2) * np.std(values))),
        "test_side_only": None if share is None else alone / simulations,
        "false_alarms": alarms / simulations,
        "power": found / len(gaps[:POWER]),
        "n_eff": float(np.median(n_eff)),
        "found_share": None if share is None else float(np.mean(shares)),
    }


def tables(kind: str, frames: int, share: float, simulations: int, seed: int = 0) -> list[dict[str, Any]]:
    """How often a table of equal methods has one that is not bold, for each number of methods.

    Returns:
        ``unmarked``: share of tables in which some method is told apart from the best one after Holm's correction over
        all pairs; ``any``: share in which any pair is told apart.
    """
    rng = np.random.default_rng([seed, 7, list(KINDS).index(kind), frames, SHARES.index(share)])
    unmarked, anything = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0)
    for _ in range(simulations):
        design, statistics = data(kind, frames, share, max(METHODS), rng)
        shares = [pseudo_values(design.n, statistic) for statistic in statistics]
        p = {
            (i, j): paired_test(shares[i] - shares[j], design.clusters)
            for i, j in itertools.combinations(range(max(METHODS)), 2)
        }
        for methods in METHODS:
            pairs = [pair for pair in p if max(pair) < methods]
            told = [pair for pair, q in zip(pairs, holm([p[pair] for pair in pairs])) if q <= ALPHA]
            best = int(np.argmax([s.mean() for s in shares[:methods]]))
            unmarked[methods] += any(best in pair for pair in told)
            anything[methods] += bool(told)
    return [
        {
            "data": kind,
            "frames": frames,
            "share": share,
            "methods": methods,
            "unmarked": unmarked[methods] / simulations,
            "any": anything[methods] / simulations,
        }
        for methods in METHODS
    ]


def cells() -> list[tuple[str, int, float | None]]:
    """Kind, frames and share of every case; the distance with a kink, whose intervals are wide, with few frames."""
    every = itertools.product(KINDS, FRAMES, SHARES)
    return [case for case in every if case[0] != "log-CMD, f around 1" or case[1] == min(FRAMES)]


def measured(simulations: int, of_tables: int) -> dict[str, Any]:
    """Everything, as it is stored."""
    cases = []
    for kind, frames, share in cells():
        cases.append(simulate(kind, frames, share, simulations))
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in cases[-1].items()}, flush=True)
    bold = []
    for kind in TABLES:
        bold += tables(kind, min(FRAMES), 0.6, of_tables)
        print(bold[-2:], flush=True)
    return {
        "examples": EXAMPLES,
        "items": ITEMS,
        "train_groups": 2 * FOLDS,
        "repetitions": REPETITIONS,
        "simulations": simulations,
        "tables": of_tables,
        "standard_error_at_level": float(np.sqrt(LEVEL * (1 - LEVEL) / simulations)),
        "cases": cases,
        "bold": bold,
    }


def table(found: dict[str, Any]) -> str:
    """Coverage as it stands in ``docs/statistics.md``."""
    lines = [
        "| data | frames | train side | coverage | test side alone | width | false alarms | power | n_eff | share |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["cases"]:
        crossed = row["share"] is not None
        lines.append(
            f"| {row['data']} | {row['frames']} | {percent(row['share'], 0) if crossed else 'none'} | "
            f"{percent(row['coverage'])} | {percent(row['test_side_only']) if crossed else ''} | {row['width']:.2f} | "
            f"{percent(row['false_alarms'])} | {percent(row['power'], 0)} | {row['n_eff']:.0f} | "
            f"{percent(row['found_share'], 0) if crossed else ''} |"
        )
    return "\n".join(lines) + "\n"


def bold_table(found: dict[str, Any]) -> str:
    """Tables of equal methods as they stand in ``docs/statistics.md``."""
    lines = ["| data | train side | methods | one is not bold | any pair |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['data']} | {percent(row['share'], 0)} | {row['methods']} | {percent(row['unmarked'])} | "
        f"{percent(row['any'])} |"
        for row in found["bold"]
    ]
    return "\n".join(lines) + "\n"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"
