"""Which rows say much the same, and how sure a mean over such rows is.

A row is one measurement: an example, or one of several repetitions of it. Rows can depend on each other in more than
one *way*: they share a base item, a frame (the wording around the item), or the train group on which the scores were
found by which they are judged. The ways cross each other: two rows of one item may stand in different frames.

The variance of a mean over such rows is that of Cameron, Gelbach and Miller (2011, *Robust inference with multiway
clustering*, equation 2.13): the sum of the one-way variances, minus those of the intersections of two ways, plus those
of three. What two rows share in two ways would else be counted twice. Each of these is the jackknife variance over the
``G`` clusters ``c`` of ``m_c`` rows (CR3; MacKinnon, Nielsen and Webb 2023, *Fast and reliable jackknife and bootstrap
methods for cluster-robust inference*), which is made for clusters of unequal size:
``(G - 1) / G * sum over c of (sum of c's deviations from the mean / (n - m_c))^2``.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigurationError

Array = NDArray[np.float64]
Labels = NDArray[np.intp]

ITEM, FRAME, TRAIN, OTHER_TRAIN = WAYS = ("item", "frame", "train", "other_train")
"""The ways in which rows can depend on each other; the last is for differences (:meth:`Clusters.merged_train`)."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """How ``n`` rows depend on each other.

    Args:
        n: number of rows.
        ways: by name in :data:`WAYS`, the cluster of each row; a way that is missing or empty is no
            dependence of that kind. A row with an empty name stands alone. Frames that are all empty or all the same
            are no way, since one wording is a constant and no sample; nor is a single train group.

    Attributes:
        labels: by way, whole numbers ``[n]`` from 0, in the order of WAYS and of first appearance.

    Raises:
        ConfigurationError: an unknown way, or one that does not have ``n`` entries.
    """

    n: int
    ways: Mapping[str, Sequence[Hashable]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for way, names in self.ways.items():
            if way not in WAYS:
                raise ConfigurationError(
                    f"rows cannot depend on each other by {way!r}; the ways are {', '.join(WAYS)}."
                )
            if len(names) not in (0, self.n):
                raise ConfigurationError(f"{self.n} rows have {len(names)} names of their {way}.")

    @classmethod
    def of(cls, clusters: Clusters | Sequence[Hashable], n: int) -> Clusters:
        """Clusters as they are; a list of base items as clusters of one way, none where it has no ``n`` entries.

        Raises:
            ConfigurationError: clusters of another number of rows.
        """
        if not isinstance(clusters, Clusters):
            return cls(n, {ITEM: clusters} if len(clusters) == n else {})
        if clusters.n != n:
            raise ConfigurationError(f"{n} values have clusters of {clusters.n} rows.")
        return clusters

    @cached_property
    def labels(self) -> dict[str, Labels]:
        found = {way: _numbered(self.ways[way]) for way in WAYS if len(self.ways.get(way, ()))}
        for way in (FRAME, TRAIN, OTHER_TRAIN):
            if way in found and (number_of(found[way]) < 2 or not any(name != "" for name in self.ways[way])):
                del found[way]
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many clusters each way has."""
        return {way: number_of(labels) for way, labels in self.labels.items()}

    @property
    def number(self) -> int:
        """Of base items; of rows where these are not known."""
        return self.counts.get(ITEM, self.n)

    @property
    def has_train(self) -> bool:
        """Whether rows were judged by the scores of several train groups."""
        return TRAIN in self.labels or OTHER_TRAIN in self.labels

    def test_side(self) -> Clusters:
        """The same rows, without their train groups."""
        return self._test_side

    @cached_property
    def _test_side(self) -> Clusters:
        return Clusters(self.n, {way: names for way, names in self.ways.items() if way in (ITEM, FRAME)})

    @cached_property
    def independent(self) -> dict[str, Labels]:
        """The ways that matter: of item and frame, one that is nested in the other says nothing beyond it.

        Rows that depend on nothing are the clusters of the way "item".
        """
        labels = dict(self.labels)
        if FRAME not in labels and ITEM not in labels:
            return {ITEM: np.arange(self.n), **labels}
        if FRAME in labels and ITEM in labels:
            both = number_of(crossed([labels[ITEM], labels[FRAME]]))
            if both == number_of(labels[ITEM]):  # every item stands in one frame alone
                del labels[ITEM]
            elif both == number_of(labels[FRAME]):
                del labels[FRAME]
        return labels

    @cached_property
    def intersections(self) -> list[tuple[int, Labels]]:
        """Every set of independent ways, with the sign of its term in the variance, and the clusters of rows that are
        together in all of them."""
        ways = list(self.independent.values())
        sets = [some for size in range(1, len(ways) + 1) for some in itertools.combinations(ways, size)]
        return [((-1) ** (len(some) + 1), some[0] if len(some) == 1 else crossed(some)) for some in sets]

    @cached_property
    def single(self) -> Labels | None:
        """The clusters where rows depend on each other in one way alone, which is not by train group; else None."""
        return next(iter(self.independent.values())) if len(self.independent) == 1 else None

    def groups(self, way: str) -> list[Labels]:
        """The row indices of each cluster of a way; each row alone where there is no such way."""
        labels = self.labels.get(way, np.arange(self.n))
        return members(labels)

    def subset(self, index: Sequence[int] | NDArray[np.intp]) -> Clusters:
        """Of some of the rows, in the order given."""
        at = np.asarray(index, dtype=int).tolist()
        return Clusters(len(at), {way: [names[i] for i in at] for way, names in self.ways.items() if len(names)})

    def merged_train(self, other: Clusters) -> Clusters:
        """For the difference of two measurements of the same rows, ``other``'s being the second.

        Where they were judged by other train groups, the difference varies with both sides' draws: rows that share a
        group on the second side depend on each other too, in a way of its own. That groups of the two sides may have
        train examples in common is not heeded; it makes the difference surer than it is taken to be.

        Raises:
            ConfigurationError: ``other`` has another number of rows.
        """
        if other.n != self.n:
            raise ConfigurationError(f"{self.n} rows cannot be compared with {other.n} one by one.")
        mine, theirs = self.labels.get(TRAIN), other.labels.get(TRAIN)
        if theirs is None or (mine is not None and (mine == theirs).all()):
            return self
        return Clusters(self.n, {**self.ways, (OTHER_TRAIN if mine is not None else TRAIN): other.ways[TRAIN]})

    def __eq__(self, other: object) -> bool:
        """Whether the same rows depend on each other, whatever the clusters are called."""
        return (
            isinstance(other, Clusters)
            and self.n == other.n
            and self.labels.keys() == other.labels.keys()
            and all((labels == other.labels[way]).all() for way, labels in self.labels.items())
        )

    def __hash__(self) -> int:
        return hash((self.n, tuple(self.counts.items())))


def number_of(labels: Labels) -> int:
    """How many clusters there are of labels that are numbered from 0."""
    return int(labels.max()) + 1 if len(labels) else 0


def _numbered(names: Sequence[Hashable]) -> Labels:
    """Whole numbers in order of first appearance; an empty name is another one every time."""
    seen: dict[Any, int] = {}
    found = [seen.setdefault(("", i) if name == "" else (name,), len(seen)) for i, name in enumerate(names)]
    return np.array(found, dtype=np.intp)


def crossed(ways: Sequence[Labels]) -> Labels:
    """The clusters of rows that are together in every way, numbered in order of first appearance."""
    return _numbered(list(zip(*(labels.tolist() for labels in ways))))


def members(labels: Labels) -> list[Labels]:
    """The row indices of each cluster."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels))[:-1]) if len(labels) else []


def clusters_of(items: Sequence[Hashable], n: int) -> list[Labels]:
    """The example indices of each base item, in order of first appearance.

    An example without an item (an empty name), or all where ``items`` does not have ``n`` entries, stand alone.
    """
    return Clusters.of(items, n).groups(ITEM)


# --- the variance of a mean -----------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """How sure a mean over rows is.

    Attributes:
        variance: of the mean, ``[...]``; NaN where a way has a single cluster.
        df: degrees of freedom of the t distribution to read it by, ``[...]``.
    """

    variance: Array
    df: Array


def spread_of_mean(values: Array, clusters: Clusters) -> Spread:
    """The variance of the mean of ``values`` ``[..., n]`` over rows that depend on each other, and how sure that is.

    *Variance*: that of the module's docstring, and never below the largest one-way variance, since the sum of positive
    and negative terms can be too small or negative by chance. What the train groups add to it is then divided by
    ``(1 - 1 / K)`` of items and of frames. Deviations are taken from a mean over the same train groups, so that in the
    rows of one item their effects nearly cancel, while the intersections are subtracted in full; in a layout in which
    every item meets every train group the loss is exactly this factor.

    *Degrees of freedom*: Satterthwaite's (1946), ``V^2 / sum(T^2 / d)`` over the one-way variances ``T`` of ``d``
    degrees of freedom each, and at least the smallest ``d``. What two ways share stands in both ``T``, so that the
    formula errs to the low side. ``d`` is ``K - 1``, where ``K = n^2 / sum of m_c^2`` is the number of equal clusters
    that would be as uneven, or less where few clusters make up most of ``T``: that of a chi-squared variable whose
    squared mean and variance are those of the clusters' squared sums.
    """
    x = np.asarray(values, dtype=float)
    ways = clusters.independent
    if clusters.n == 0 or min(map(number_of, ways.values())) < 2:
        nothing = np.full(x.shape[:-1], np.nan)
        return Spread(nothing, nothing)
    with np.errstate(invalid="ignore"):
        d = x - x.mean(-1, keepdims=True)
    ones = np.array([_term(d, labels) for labels in ways.values()])
    whole = np.sum([sign * _term(d, labels) for sign, labels in clusters.intersections], axis=0)
    variance = np.maximum(whole, ones.max(0))
    freedom = np.array([_freedom(d, labels) for labels in ways.values()])
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.fmax(variance**2 / (ones**2 / freedom).sum(0), freedom.min(0))
    if clusters.has_train:
        test = clusters.test_side()
        held = np.prod([1 - 1 / _equal_clusters(labels) for labels in test.independent.values()])
        added = np.maximum(variance - spread_of_mean(x, test).variance, 0.0)
        variance = variance + added * (1 / held - 1)
    return Spread(variance, df)


def _equal_clusters(labels: Labels) -> float:
    """How many clusters of equal size would be as uneven as these (Kish)."""
    return float(len(labels) ** 2 / (np.bincount(labels) ** 2).sum())


def _freedom(deviations: Array, labels: Labels) -> Array:
    """The degrees of freedom of the one-way variance, at least 1."""
    squares = (cluster_sums(deviations, labels) / (len(labels) - np.bincount(labels))) ** 2
    total, spread = squares.sum(-1), squares.var(-1) * squares.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = 2 * total**2 / spread - 1
    return np.clip(np.fmin(shown, _equal_clusters(labels) - 1), 1.0, None)


def cluster_sums(values: Array, labels: Labels) -> Array:
    """``[..., G]``: the sum of ``values`` ``[..., n]`` over each cluster."""
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(np.bincount(labels))[:-1]
    return np.add.reduceat(values[..., order], np.r_[0, starts], axis=-1)


def _term(deviations: Array, labels: Labels) -> Array:
    """The jackknife variance over the clusters of one way or intersection, of deviations from the mean."""
    sizes = np.bincount(labels)
    groups = len(sizes)
    without = cluster_sums(deviations, labels) / (len(labels) - sizes)
    return (groups - 1) / groups * (without**2).sum(-1)


def effective_n(values: Array, clusters: Clusters, examples: Sequence[int] = ()) -> float:
    """How many independent examples would make the mean of ``values`` ``[n]`` as sure as it is on the test side.

    The variance of the mean of independent examples, ``s^2 / n``, over the variance with items and frames heeded,
    times ``n``; at most ``n`` (Kish's effective sample size). Train groups are left out: they are no matter of the
    examples.

    Args:
        values: of each row; the values themselves, or :func:`attriboard.stats.intervals.pseudo_values`.
        clusters: of the rows.
        examples: which example each row is of, where examples are measured several times: ``n`` is then the number of
            examples, and their values are averaged first. Each row is an example where it is empty.

    Returns:
        NaN where nothing varies, for fewer than two clusters, and where a value is not finite.
    """
    x, of = np.asarray(values, dtype=float), clusters.test_side()
    if len(examples):
        labels = _numbered(list(examples))
        first = np.array([rows[0] for rows in members(labels)], dtype=int)
        x, of = cluster_sums(x, labels) / np.bincount(labels), of.subset(first)
    n = len(x)
    if n < 2 or not np.isfinite(x).all():
        return float("nan")
    variance = float(spread_of_mean(x, of).variance)
    return min(float(x.var(ddof=1)) / variance, float(n)) if variance > 0 else float("nan")


def train_share(values: Array, clusters: Clusters) -> float:
    """The share in [0, 1] of the variance of the mean of ``values`` ``[n]`` that comes from the draw of train examples.

    The multiway variance, minus that without the train groups, over the multiway variance; by chance the difference
    can be negative, which counts as 0.

    Returns:
        NaN where rows were not judged by several train groups, nothing varies, or a value is not finite.
    """
    x = np.asarray(values, dtype=float)
    if not clusters.has_train or not np.isfinite(x).all():
        return float("nan")
    total, test = (float(spread_of_mean(x, of).variance) for of in (clusters, clusters.test_side()))
    return float(np.clip((total - test) / total, 0.0, 1.0)) if total > 0 and np.isfinite(test) else float("nan")
