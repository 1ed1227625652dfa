"""Has a method become worse, or slower? Two sets of records, cell by cell, on the examples that they share.

A cell matches a cell of equal task, method, model, level, replacement, variant and options that was run on examples
drawn alike, in the same precision; first of the same seed, then, for seeds that only one side has, one of another
seed. Its statistics over examples are compared, paired where both sides measured the same examples, unpaired where they
did not: by permutation, or by t tests where scores come from several train groups (:mod:`attriboard.stats.tests`). A
statistic that is no mean is taken apart into its examples' shares (jackknife
pseudo-values). The p-values of the whole check are adjusted together, by Holm's procedure over the tests that could
reject anything at all (Tarone 1990): a test of four examples, whose smallest p-value is 0.125, costs the others
nothing, and is reported as one that could not have detected anything. A quantity without a spread over examples (how
well scores of components agree with a known mechanism) is compared as it is: on the same data any difference is one.

Times are compared by a rule, not by a test, since repeats of one run are not independent: see
:class:`attriboard.board.check_report.Times`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ..errors import ConfigurationError, UnknownNameError
from ..measurements.base import Kept, Statistic
from ..measurements.registry import METRICS
from ..measurements.speed import Speed
from ..records.record import Record, digest
from ..records.store import Folder, newest
from ..stats.clusters import FRAME, ITEM, Clusters, cluster_sums
from ..stats.intervals import (
    ALPHA,
    LEVEL,
    RESAMPLES,
    Array,
    bootstrap_interval,
    defined_examples,
    half_width,
    pseudo_values,
)
from ..stats.tests import FLIPS, at_random, gap_of_means, holm, paired_test, smallest_p, unpaired_test
from .check_report import REPEATS, MetricChange, Report, Times
from .columns import is_cost


def headlines() -> tuple[str, ...]:
    """What is compared unless metrics are named: those by which the board ranks and sorts, if they can be tested.

    Every further test makes all of them weaker, and the others mostly say the same again.
    """
    return tuple(name for name, metric in METRICS.items() if (metric.ranks or metric.sorts) and metric.tested)


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics to compare: those named, or the headlines.

    Raises:
        UnknownNameError: no such metric. ConfigurationError: one without a better and a worse.
    """
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
        if METRICS[name].better == "neither":
            raise ConfigurationError(f"metric {name!r} describes, it has no better or worse; name another.")
    return tuple(dict.fromkeys(names)) or headlines()


def check_folders(new: Path, old: Path, metrics: Sequence[str] = (), speed: bool = True) -> Report:
    """Two results folders compared; see :func:`check_records`.

    Raises:
        ConfigurationError: a folder that does not exist or holds no records.
    """
    (now, left_now), (before, left_before) = records_in(new), records_in(old)
    return check_records(now, before, metrics, speed).model_copy(update={"left_out": left_now + left_before})


def records_in(path: Path) -> tuple[list[Record], list[str]]:
    """A folder's records, and a sentence on every other JSON file in it, which may be a record that is damaged.

    Raises:
        ConfigurationError: there is no such folder, or no record in it.
    """
    folder = Folder(path)
    records = folder.filled()
    return records, [f"{path / name} is not a record ({why})" for name, why in sorted(folder.foreign.items())]


def check_records(
    new: Sequence[Record], old: Sequence[Record], metrics: Sequence[str] = (), speed: bool = True
) -> Report:
    """What became worse, better, slower or lost between two sets of records.

    Args:
        new, old: records now and before.
        metrics: names of metrics; the :func:`headlines` where none is named.
        speed: whether times are compared too.

    Raises:
        UnknownNameError: no such metric.
        ConfigurationError: the two cannot be compared: no cell matches, or a matched one has other examples under the
            same seed and settings, another version of its task or of a metric, or other weights; or no matched cell
            has a metric that was named.
    """
    wanted = check_metrics(metrics)
    pairs, missing, added = _match(newest(new)[0], newest(old)[0])
    todo: list[_Asked] = []
    times = []
    measured: set[str] = set()
    for now, before in pairs:
        _refuse(now, before)
        measured |= {*now.statistics, *before.statistics}
        changed = _other_options(now, before)
        missing += [f"{now.cell}: {name} was measured with other options before ({what})" for name, what in changed]
        others = {name for name, _ in changed}
        todo += [_Asked(name, now, before) for name in wanted if _comparable(name, now, before, others)]
        missing += _gone(now, before, wanted)
        if speed:
            times += _times(now, before)
    changes: list[MetricChange] = []
    for asked in todo:
        change, lost = _change(asked, *asked.sides(), len(todo))
        changes.append(change)
        if lost:
            missing.append(f"{change.cell}: metric {change.metric} has no value now for {lost} examples that had one")
    able = ", ".join(sorted(m for m in measured if METRICS[m].better != "neither")) or "none"
    for name in metrics:
        if pairs and name not in measured:
            raise ConfigurationError(
                f"no matched cell has metric {name!r} example by example; those that have: {able}."
            )
    if pairs and not changes and not missing:
        raise ConfigurationError(
            f"none of the {len(pairs)} matched cells has a metric that is compared; name one that it has example by "
            f"example with --metric: {able}."
        )
    return Report(changes=_adjusted(changes), missing=missing, times=times, cells=len(pairs), added=added)


# --- matching -------------------------------------------------------------------------------------------------------


def cell_key(record: Record) -> str:
    """Equal for records whose cells match, whatever their seeds."""
    return digest([_cell(record), compared_settings(record)])


def _cell(record: Record) -> list[Any]:
    """The cell without its seed; of scores from a file the name counts, not the file, which may have become worse."""
    cell = record.cell
    return [cell.model_dump(mode="json", exclude={"seed", "precomputed"}), cell.precomputed is not None]


def compared_settings(record: Record) -> dict[str, Any]:
    """The settings in which matching cells agree; others cannot change their scores, or belong to one measurement."""
    return {**record.settings.drawing(), "dtype": record.settings.dtype}


def _match(new: Sequence[Record], old: Sequence[Record]) -> tuple[list[tuple[Record, Record]], list[str], int]:
    """Pairs of records that ran (now, before), sentences on cells that are gone, and how many cells are new."""
    now, before = _by_seed(new), _by_seed(r for r in old if r.status == "ok")
    if not before:
        raise ConfigurationError("none of the records before is of a cell that ran, so there is nothing to compare.")
    if not set(now) & set(before):
        raise ConfigurationError(f"no cell of the new records matches one of the records before{_near(new, before)}.")
    pairs, missing = [], []
    for key, seeds in before.items():
        here = now.get(key, {})
        alike = [(seed, seed) for seed in seeds if seed in here]
        left_before, left_now = (sorted(set(a) - set(b)) for a, b in ((seeds, here), (here, seeds)))
        for seed, other in [*alike, *zip(left_before, left_now)]:
            record = here[other]
            if record.status == "ok":
                pairs.append((record, seeds[seed]))
            else:
                missing.append(f"{record.cell}: {record.status} now: {record.reason}")
        for seed in left_before[len(left_now) :]:
            missing.append(f"{seeds[seed].cell}: there before, and no record now{_near(new, {key: seeds})}")
    added = sum(
        max(0, sum(r.status == "ok" for r in seeds.values()) - len(before.get(key, {}))) for key, seeds in now.items()
    )
    return pairs, missing, added


def _by_seed(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """By key and seed; of records that differ only in what is not compared, the last made."""
    groups: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: r.provenance.created if r.provenance else ""):
        groups[cell_key(record)][record.cell.seed] = record
    return groups


def _near(new: Sequence[Record], before: dict[str, dict[int, Record]]) -> str:
    """How the settings differ of a cell that is else the same, if there is one."""
    for seeds in before.values():
        for old in seeds.values():
            for record in new:
                if record.cell == old.cell:
                    changes = _changes(compared_settings(old), compared_settings(record))
                    return f": other settings ({changes})" if changes else ""
    return ""


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{name} {before[name]} -> {now[name]}" for name in before if before[name] != now[name])


def _other_options(now: Record, before: Record) -> list[tuple[str, str]]:
    """The measurements that both records hold with other options, and what differs; costs have a rule of their own."""
    both = [name for name in before.measurements if name in now.measurements and name != Speed.name]
    asked = [(name, before.settings.asked(name), now.settings.asked(name)) for name in both]
    return [(name, _changes(had, has)) for name, had, has in asked if had != has]


def _comparable(metric: str, now: Record, before: Record, others: set[str]) -> bool:
    """Whether both records have a metric example by example, of the same options and version."""
    if metric not in now.statistics or metric not in before.statistics or METRICS[metric].measurement in others:
        return False
    versions = [_version(r, metric) for r in (now, before)]
    if versions[0] != versions[1]:
        raise ConfigurationError(
            f"{now.cell} has version {versions[0]} of metric {metric} and had version {versions[1]} before, which is "
            "another quantity; run the suite again for the folder it is held against."
        )
    return True


def _version(record: Record, metric: str) -> int:
    """Of a metric; this version's own where the record is older than the metric, which follows from what it holds."""
    aggregate = record.aggregates.get(metric)
    return METRICS[metric].version if aggregate is None else aggregate.version


def _gone(now: Record, before: Record, wanted: Sequence[str]) -> Iterator[str]:
    """Sentences on the metrics that were measured and are not now, those that are compared standing first."""
    costs = {name for name in before.aggregates if name in METRICS and is_cost(name)}
    gone = set(before.aggregates) - set(now.aggregates) - costs
    gone |= set(wanted) & set(before.statistics) - set(now.statistics)
    for name in sorted(gone, key=lambda name: (name not in wanted, name)):
        measurement = METRICS[name].measurement if name in METRICS else ""
        why = now.not_measured.get(name) or now.not_measured.get(measurement, "")
        yield f"{now.cell}: metric {name} was measured before and is not now{why and f': {why}'}"


def _refuse(now: Record, before: Record) -> None:
    """Raises ConfigurationError where a matched cell was not asked the same question."""
    assert now.model is not None and before.model is not None
    cell = now.cell
    if now.task_version != before.task_version:
        raise ConfigurationError(
            f"{cell} has version {now.task_version} of its task and had version {before.task_version} before, so the "
            f"numbers are of other questions; run the suite again for the folder it is held against."
        )
    if now.model.weights_sha256 != before.model.weights_sha256:
        raise ConfigurationError(
            f"{cell} was run with other weights than before ({now.model.weights_sha256[:12]} against "
            f"{before.model.weights_sha256[:12]}), so a difference would not be the method's; use the same weights."
        )
    if cell.seed == before.cell.seed and now.data_sha256 != before.data_sha256:
        raise ConfigurationError(
            f"{cell} was run on other data than before with the same seed and settings ({now.data_sha256[:12]} against "
            f"{before.data_sha256[:12]}): its task or tokenizer has changed; run the suite again for the folder it is "
            f"held against."
        )


# --- tests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """A statistic over ``n`` rows, and how these depend on each other."""

    statistic: Statistic
    n: int
    clusters: Clusters

    @classmethod
    def of(cls, record: Record, metric: str) -> _Side:
        measurement, statistic = record.statistics[metric]
        return cls(statistic, measurement.n, record.clusters(metric))

    @property
    def items(self) -> list[Hashable]:
        """The base item of each row; none where they are not known."""
        return list(self.clusters.ways.get(ITEM, ()))

    @property
    def frames(self) -> list[Hashable]:
        """The frame of each row; none where they are not known."""
        return list(self.clusters.ways.get(FRAME, ()))

    def at(self, index: NDArray[np.intp]) -> _Side:
        """Over some of the rows alone."""
        return _Side(lambda chosen: self.statistic(index[chosen]), len(index), self.clusters.subset(index))

    def value(self) -> float:
        return float(self.statistic(np.arange(self.n)))


@dataclass(frozen=True)
class _Asked:
    """One metric of a matched cell."""

    metric: str
    now: Record
    before: Record

    def sides(self) -> tuple[_Side, _Side]:
        """Now, and before."""
        now, before = (_Side.of(record, self.metric) for record in (self.now, self.before))
        return now, before


def _shared(now: Record, before: Record, a: _Side, b: _Side) -> tuple[_Side, _Side] | None:
    """Both sides over the examples that they share, in the same order; None where none can be identified.

    The same data with the same examples kept is the same examples. Where other examples were kept, a base item that
    each side holds once identifies one.
    """
    if now.data_sha256 != before.data_sha256:
        return None
    if _kept(now) == _kept(before) and (a.n, a.items, a.frames) == (b.n, b.items, b.frames):
        return a, b
    places = [{item: i for i, item in enumerate(side.items) if item} for side in (a, b)]
    if any(len(place) != side.n or not place for place, side in zip(places, (a, b))):
        return None
    both = [item for item in places[0] if item in places[1]]
    if not both:
        return None
    first, second = (np.array([place[item] for item in both]) for place in places)
    return a.at(first), b.at(second)


def _kept(record: Record) -> tuple[list[str], list[Kept]]:
    """The items of the test examples kept, and the counts of the halves that are judged; n_eff is no count."""
    halves = [half for name, half in sorted(record.kept.items()) if name == "test" or record.cross_fitted]
    return record.items, [half.model_copy(update={"n_eff": None}) for half in halves]


def _change(asked: _Asked, whole_now: _Side, whole_before: _Side, tests: int) -> tuple[MetricChange, int]:
    """One metric of a matched cell among so many tests, not yet adjusted, and how many examples lost their value."""
    now, before = asked.now, asked.before
    shared = _shared(now, before, whole_now, whole_before)
    a, b = shared or (whole_now, whole_before)
    now_known, before_known = known = [set(defined_examples(side.n, side.statistic).tolist()) for side in (a, b)]
    if shared:  # an example without a value on either side is no evidence that nothing changed
        known = [now_known & before_known] * 2
    a, b = (s if len(k) in (0, s.n) else s.at(np.array(sorted(k))) for s, k in zip((a, b), known))
    lost = max(0, len(before_known) - len(now_known)) if shared else 0
    x, y = (pseudo_values(side.n, side.statistic) for side in (a, b))
    if shared:
        differences = x - y
        of = a.clusters.merged_train(b.clusters)
        p = _finer(lambda seed: paired_test(differences, of, seed), tests, at_random(of))
        smallest = _smallest_paired(differences, of, tests)
        gap = a.value() - b.value()
        interval = bootstrap_interval(a.n, lambda i: a.statistic(i) - b.statistic(i), items=of)
        same = bool(np.isfinite(differences).all()) and not differences.any()
    elif a.clusters.single is None or b.clusters.single is None:
        p = unpaired_test(x, y, a.clusters, b.clusters)
        smallest = max(smallest_p(a.clusters), smallest_p(b.clusters))
        gap, interval = _gap_of_rows(x, y, a.clusters, b.clusters)
        same = False
    else:
        x, y = _of_items(x, a.clusters), _of_items(y, b.clusters)
        p = _finer(lambda seed: unpaired_test(x, y, seed=seed), tests)
        smallest = _smallest_unpaired(x, y, tests)
        gap = float(x.mean() - y.mean()) if len(x) and len(y) else math.nan
        interval = _interval_of_gap(x, y)
        same = False
    low, high = interval or (None, None)
    change = MetricChange(
        cell=now.cell,
        seed_before=before.cell.seed,
        metric=asked.metric,
        old=b.value(),
        new=a.value(),
        difference=gap,
        low=low,
        high=high,
        paired=shared is not None,
        same=same,
        n_old=_examples(before, asked.metric, b.n),
        n_new=_examples(now, asked.metric, a.n),
        p=p,
        smallest_p=smallest,
    )
    return change, _examples(now, asked.metric, lost)


def _examples(record: Record, metric: str, rows: int) -> int:
    """How many examples so many rows of a metric are; a cross-fitted one has a row for each repetition."""
    measurement = record.measurements.get(METRICS[metric].measurement)
    repeated = measurement is not None and bool(measurement.train_groups)
    return math.ceil(rows / record.settings.repetitions) if repeated else rows


def _finer(p_value: Callable[[int], float], tests: int, random: bool = True) -> float:
    """A p-value from as many random permutations as it takes among so many tests.

    :data:`FLIPS` permutations give no p-value below 1e-4, which Holm's correction over more than 500 tests puts above
    0.05; a p-value that could be smaller is made of several times as many.
    """
    p = p_value(0)
    rounds = _rounds(tests)
    if rounds == 1 or not random or p > 20 / (1 + FLIPS):
        return p
    as_extreme = sum(round(each * (1 + FLIPS)) - 1 for each in (p, *map(p_value, range(1, rounds))))
    return (1 + as_extreme) / (1 + rounds * FLIPS)


def _rounds(tests: int) -> int:
    """How many times :data:`FLIPS` permutations can tell among so many tests."""
    return max(1, math.ceil(2 * tests / (ALPHA * FLIPS)))


def _of_items(values: Array, clusters: Clusters) -> Array:
    """The mean of each cluster's values, of rows that depend on each other in one way."""
    labels = clusters.single
    assert labels is not None
    return cluster_sums(values, labels) / np.bincount(labels) if len(labels) else values


def _smallest_paired(differences: Array, clusters: Clusters, tests: int) -> float:
    """The smallest p-value that a paired test can give for such sizes of differences, whatever their signs."""
    if not np.isfinite(differences).all() or not differences.any():
        return 1.0
    finest = 1 / (1 + _rounds(tests) * FLIPS)
    if clusters.single is not None:
        differing = np.count_nonzero(cluster_sums(differences, clusters.single))
        return min(1.0, max(2.0 ** (1 - differing), finest))
    return smallest_p(clusters)


def _gap_of_rows(x: Array, y: Array, of_x: Clusters, of_y: Clusters) -> tuple[float, tuple[float, float] | None]:
    """``mean(x) - mean(y)`` of rows that depend on each other in several ways, and its 95 % t interval."""
    if min(len(x), len(y)) == 0:
        return math.nan, None
    gap, spread = gap_of_means(x, y, of_x, of_y)
    if not np.isfinite(spread.variance):
        return gap, None
    half = half_width(spread)
    return gap, (gap - half, gap + half)


def _smallest_unpaired(x: Array, y: Array, tests: int) -> float:
    """The smallest p-value that an unpaired test can give for so many base items."""
    m, n = len(x), len(y)
    if min(m, n) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return 1.0
    # of two samples of equal size, the two exchanged as wholes are as far apart
    return max((2 if m == n else 1) / math.comb(m + n, m), 1 / (1 + _rounds(tests) * FLIPS))


def _interval_of_gap(x: Array, y: Array) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of ``mean(x) - mean(y)``, the means of two samples' base items."""
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    interval = scipy.stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _adjusted(changes: Sequence[MetricChange]) -> list[MetricChange]:
    """The same changes, adjusted p-values in those whose tests could reject."""
    counted = _able([1.0 if c.exact else c.smallest_p for c in changes])
    adjusted = dict(zip(counted, holm([changes[i].p for i in counted])))
    return [change.model_copy(update={"adjusted": adjusted.get(i)}) for i, change in enumerate(changes)]


def _able(smallest: Sequence[float]) -> list[int]:
    """Which tests can reject (Tarone 1990): k of them at most that reach ALPHA / k, for the smallest such k.

    The choice depends on how small a p-value can become, not on how small it is, so Holm's procedure over the chosen
    keeps the family-wise error over all.
    """
    floor = np.asarray(smallest)
    for k in range(1, len(floor) + 1):
        able = floor <= ALPHA / k
        if able.sum() <= k:
            return np.nonzero(able)[0].tolist()
    return []


# --- times ----------------------------------------------------------------------------------------------------------


def _times(now: Record, before: Record) -> list[Times]:
    """The times of a matched cell, where both were timed."""
    a, b = now.measured(Speed), before.measured(Speed)
    if a is None or b is None or now.provenance is None or before.provenance is None:
        return []
    repeats = min(len(a.seconds), len(b.seconds))
    differs = [
        what
        for what, x, y in (
            ("another device", now.provenance.device, before.provenance.device),
            ("another number of threads", now.provenance.threads, before.provenance.threads),
            ("another number of examples", a.examples, b.examples),
            (f"fewer than {REPEATS} repeats", repeats >= REPEATS, True),
        )
        if x != y
    ]
    return [
        Times(
            cell=now.cell,
            old=b.per_example,
            new=a.per_example,
            examples=a.repeat,
            not_compared=differs[0] if differs else "",
        )
    ]
