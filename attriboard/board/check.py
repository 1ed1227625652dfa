"""Has a method become worse, or slower? Two sets of records, cell by cell, on the examples that they share.

A cell matches a cell of equal task, method, model, level, replacement, options and settings, but for the settings that
cannot change its scores (:data:`ASIDE`); first of the same seed, then, for seeds that only one side has, one of another
seed. Its statistics over examples are compared by permutation: paired where both sides measured the same examples,
unpaired where they did not. A statistic that is no mean is taken apart into its examples' shares (jackknife
pseudo-values). The p-values of the whole check are adjusted together, by Holm's procedure over the tests that could
reject anything at all (Tarone 1990): a test of four examples, whose smallest p-value is 0.125, costs the others
nothing, and is reported as one that could not have detected anything. A quantity without a spread over examples (how
well scores of components agree with a known mechanism) is compared as it is: on the same data any difference is one.

Times are compared by a rule, not by a test, since repeats of one run are not independent: see :class:`Times`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray
from pydantic import Field

from ..errors import ConfigurationError, UnknownNameError
from ..measurements.base import Statistic
from ..measurements.metrics import METRICS
from ..records.record import Cell, Folder, Record, Strict, digest, newest
from ..stats.intervals import (
    ALPHA,
    LEVEL,
    RESAMPLES,
    Array,
    bootstrap_interval,
    clusters_of,
    defined_examples,
    pseudo_values,
)
from ..stats.tests import FLIPS, holm, paired_test, unpaired_test
from .board import INPUT_RANKED, RANKED, SPEED, STANDING

UNTESTED = ("reliability",)
"""Metrics by which the board sorts that are no statistics over examples."""
HEADLINES = tuple(
    name
    for name in dict.fromkeys((*RANKED, *INPUT_RANKED, *itertools.chain.from_iterable(STANDING)))
    if name not in UNTESTED
)
"""What is compared unless metrics are named: those by which the board ranks and sorts. Every further test makes all
of them weaker, and the others mostly say the same again."""
ASIDE = ("batch_size", "device", "speed_examples", "speed_repeats", "speed_max_seconds")
"""Settings in which matching cells may differ."""
SLOWER = 1.5
"""The least ratio of medians that counts as slower. Repeats made within a second differ less than runs do, so their
spread alone would call too many cells slower."""
REPEATS = 3
"""The fewest repeats of which a spread is taken."""
SHORTEST = 0.01
"""Seconds; a repeat below it is never called slow, since a clock and a scheduler make up much of it."""

Verdict = Literal["worse", "better", "not different", "unchanged", "cannot detect"]


class Comparison(Strict):
    """One metric of one cell, before and now.

    Attributes:
        cell: the cell now; ``seed_before`` is the other side's seed.
        metric: its name in :data:`METRICS`.
        old, new: its values, over the shared examples where the test is paired.
        difference: what was tested: ``new - old``; where other examples are compared, of the means over base items,
            each of which counts alike.
        low, high: its 95 % bootstrap interval; None for fewer than two base items.
        paired: whether the same examples were compared with each other.
        n_old, n_new: examples.
        p: of the permutation test.
        smallest_p: the smallest that so many base items could give.
        adjusted: p after Holm; 1 for a test that could not reject.
        verdict: "unchanged" where no example differs; "cannot detect" where no difference could have been significant.
    """

    cell: Cell
    seed_before: int
    metric: str
    old: float
    new: float
    difference: float
    low: float | None
    high: float | None
    paired: bool
    n_old: int
    n_new: int
    p: float
    smallest_p: float
    adjusted: float = 1.0
    verdict: Verdict = "not different"

    @property
    def worse(self) -> bool:
        """Whether the new side is the worse one, significant or not."""
        return self.difference < 0 if METRICS[self.metric].better == "higher" else self.difference > 0

    def __str__(self) -> str:
        metric = METRICS[self.metric]
        d = metric.digits
        interval = "" if self.low is None else f" [{self.low:+.{d}f}, {self.high:+.{d}f}]"
        seed = "" if self.cell.seed == self.seed_before else f" (seed {self.seed_before} before)"
        n = f"n = {self.n_new}" if self.n_new == self.n_old else f"n = {self.n_old} -> {self.n_new}"
        said = f"{self.cell}{seed}: {metric.title} ({self.metric}) {self.old:.{d}f} -> {self.new:.{d}f}, difference"
        if self.exact:
            return f"{said} {self.difference:+.{d}f} (one value, no test)"
        how = "paired" if self.paired else "unpaired, base items alike"
        return f"{said} {self.difference:+.{d}f}{interval}, p = {self.adjusted:.2g} after Holm ({how}, {n})"

    @property
    def exact(self) -> bool:
        """Whether there is one value by definition on either side, which the same data make comparable as it is."""
        return self.paired and self.n_old == self.n_new == 1 and METRICS[self.metric].family == "ground_truth"


class Times(Strict):
    """Seconds per example of one cell, before and now: those of every warm repeat.

    Slower means all of: the fastest repeat now is slower than the slowest before, the ratio of the medians is at least
    :data:`SLOWER`, there are at least :data:`REPEATS` repeats on both sides, and the median repeat now takes at least
    :data:`SHORTEST`.

    Attributes:
        examples: how many examples a repeat scored.
        not_compared: why the times cannot be held against each other; empty where they are.
    """

    cell: Cell
    old: list[float]
    new: list[float]
    examples: int
    not_compared: str = ""

    @property
    def ratio(self) -> float:
        """Of the medians, new over old."""
        return float(np.median(self.new) / np.median(self.old))

    @property
    def slower(self) -> bool:
        return (
            not self.not_compared
            and min(self.new) > max(self.old)
            and self.ratio >= SLOWER
            and float(np.median(self.new)) * self.examples >= SHORTEST
        )

    def __str__(self) -> str:
        old, new = (f"{np.median(side):.2g} [{min(side):.2g}, {max(side):.2g}]" for side in (self.old, self.new))
        return f"{self.cell}: {old} -> {new} seconds per example, {self.ratio:.2f} times as long"


class Report(Strict):
    """What a check found.

    Attributes:
        comparisons: every test.
        missing: sentences on cells, and metrics of cells, that were measured before and are not now.
        times: of every matched cell; empty where speed was not asked for.
        cells: how many matched cells were compared.
        added: how many cells there are now that were not there before.
        left_out: sentences on files that are no records.
    """

    comparisons: list[Comparison]
    missing: list[str] = Field(default_factory=list)
    times: list[Times] = Field(default_factory=list)
    cells: int
    added: int = 0
    left_out: list[str] = Field(default_factory=list)

    def found(self, verdict: Verdict) -> list[Comparison]:
        return [c for c in self.comparisons if c.verdict == verdict]

    @property
    def slower(self) -> list[Times]:
        return [t for t in self.times if t.slower]

    @property
    def failed(self) -> bool:
        return bool(self.found("worse") or self.missing or self.slower)

    def failures(self) -> list[str]:
        """One line for everything that makes the check fail."""
        return [
            *(f"worse: {c}" for c in self.found("worse")),
            *(f"missing: {m}" for m in self.missing),
            *(f"slower: {t}" for t in self.slower),
        ]

    def lines(self) -> list[str]:
        """The whole report: what fails, what improved, what could not be detected, and what was compared."""
        return [
            *self.failures(),
            *(f"better: {c}" for c in self.found("better")),
            *self._blind(),
            *(f"left out: {sentence}" for sentence in self.left_out),
            self.summary(),
        ]

    def _blind(self) -> list[str]:
        blind = self.found("cannot detect")
        if not blind:
            return []
        tested = len(self.comparisons) - len(self.found("unchanged"))
        fewest, most = _range(c.n_new for c in blind), _range(c.smallest_p for c in blind)
        return [
            f"cannot detect: {len(blind)} of {tested} tests could not have found any difference, however large: of "
            f"n = {_span(*fewest)} examples so few differ that the smallest p possible is {_span(*most)}, too large "
            f"among {tested} tests; measure more examples, or compare fewer metrics or cells."
        ]

    def summary(self) -> str:
        """One line of what was compared."""
        c = self.comparisons
        paired = sum(x.paired for x in c)
        n = _span(*_range(x.n_new for x in c)) if c else "0"
        said = [
            f"compared {self.cells} cells, {len(c)} tests ({paired} paired, {len(c) - paired} unpaired), n = {n}: "
            + ", ".join(f"{len(self.found(v))} {v}" for v in ("worse", "better", "not different", "unchanged"))
            + f", {len(self.found('cannot detect'))} not detectable"
        ]
        if self.missing:
            said.append(f"{len(self.missing)} missing")
        if self.added:
            said.append(f"{self.added} new cells without a counterpart")
        if self.times:
            why = Counter(t.not_compared for t in self.times if t.not_compared)
            compared = len(self.times) - why.total()
            reasons = "".join(f", {count} not compared ({reason})" for reason, count in sorted(why.items()))
            said.append(f"times of {compared} cells: {len(self.slower)} slower{reasons}")
        return "; ".join(said) + "."


def _range(values: Iterable[float]) -> tuple[float, float]:
    held = list(values)
    return min(held), max(held)


def _span(low: float, high: float) -> str:
    return f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"


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
    return tuple(dict.fromkeys(names)) or HEADLINES


def check_folders(new: Path, old: Path, metrics: Sequence[str] = (), speed: bool = True) -> Report:
    """Two results folders compared; see :func:`compare`.

    Raises:
        ConfigurationError: a folder that does not exist or holds no records.
    """
    (now, left_now), (before, left_before) = records_in(new), records_in(old)
    return compare(now, before, metrics, speed).model_copy(update={"left_out": left_now + left_before})


def records_in(path: Path) -> tuple[list[Record], list[str]]:
    """A folder's records, and a sentence on every other JSON file in it, which may be a record that is damaged.

    Raises:
        ConfigurationError: there is no such folder, or no record in it.
    """
    folder = Folder(path)
    records = folder.read()
    left_out = [f"{path / name} is not a record ({why})" for name, why in sorted(folder.foreign.items())]
    if not records:
        others = f" ({left_out[0]})" if left_out else ""
        raise ConfigurationError(f"{path} holds no records{others}; run a suite with --out {path} first.")
    return records, left_out


def compare(new: Sequence[Record], old: Sequence[Record], metrics: Sequence[str] = (), speed: bool = True) -> Report:
    """What became worse, better, slower or lost between two sets of records.

    Args:
        new, old: records now and before.
        metrics: names of metrics; the :data:`HEADLINES` where none is named.
        speed: whether times are compared too.

    Raises:
        UnknownNameError: no such metric.
        ConfigurationError: the two cannot be compared: no cell matches, or a matched one has other examples under the
            same seed and settings, another version of its task or of a metric, or other weights; or no matched cell
            has a metric that was named.
    """
    wanted = check_metrics(metrics)
    pairs, missing, added = _match(newest(new)[0], newest(old)[0])
    todo = []
    tests: list[Comparison] = []
    times = []
    seen: set[str] = set()
    for now, before in pairs:
        _refuse(now, before)
        held, had = _measured(now), _measured(before)
        seen |= {*held, *had}
        for name in wanted:
            if name in held and name in had:
                versions = [_version(r, name) for r in (now, before)]
                if versions[0] != versions[1]:
                    raise ConfigurationError(
                        f"{now.cell} has version {versions[0]} of metric {name} and had version {versions[1]} before, "
                        f"which is another quantity; run the suite again for the folder it is held against."
                    )
                todo.append((name, now, before, held[name], had[name]))
        gone = (set(before.aggregates) - set(now.aggregates) - set(SPEED)) | (set(wanted) & set(had) - set(held))
        for name in sorted(gone, key=lambda name: (name not in wanted, name)):
            why = "; ".join(now.not_measured.values())
            missing.append(f"{now.cell}: metric {name} was measured before and is not now{why and f': {why}'}")
        if speed:
            times += _times(now, before)
    for asked in todo:
        test, lost = _test(*asked, len(todo))
        tests.append(test)
        if lost:
            missing.append(f"{test.cell}: metric {test.metric} has no value now for {lost} examples that had one")
    able = ", ".join(sorted(m for m in seen if METRICS[m].better != "neither")) or "none"
    for name in metrics:
        if pairs and name not in seen:
            raise ConfigurationError(
                f"no matched cell has metric {name!r} example by example; those that have: {able}."
            )
    if pairs and not tests and not missing:
        raise ConfigurationError(
            f"none of the {len(pairs)} matched cells has a metric that is compared; name one that it has example by "
            f"example with --metric: {able}."
        )
    return Report(comparisons=_judged(tests), missing=missing, times=times, cells=len(pairs), added=added)


def cell_key(record: Record) -> str:
    """Equal for records whose cells match, whatever their seeds."""
    cell = record.cell  # of scores from a file the name counts, not the file, which is what may have become worse
    asked = cell.model_dump(exclude={"settings", "seed", "entered"})
    return digest([asked, cell.entered is not None, compared_settings(record)])


def compared_settings(record: Record) -> dict[str, object]:
    """The settings in which matching cells agree."""
    return record.settings.model_dump(mode="json", exclude=set(ASIDE))


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
    """By key and seed; of records that differ only in what is set aside, the last made."""
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda r: r.provenance.created if r.provenance else ""):
        found[cell_key(record)][record.cell.seed] = record
    return found


def _near(new: Sequence[Record], before: dict[str, dict[int, Record]]) -> str:
    """How the settings differ of a cell that is else the same, if there is one."""
    for seeds in before.values():
        for old in seeds.values():
            for record in new:
                if record.cell.model_dump(exclude={"settings"}) == old.cell.model_dump(exclude={"settings"}):
                    was, now = compared_settings(old), compared_settings(record)
                    changes = [f"{name} {was[name]} -> {now[name]}" for name in was if was[name] != now[name]]
                    return f": other settings ({', '.join(changes)})" if changes else ""
    return ""


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


@dataclass(frozen=True)
class _Side:
    """A statistic over ``n`` examples, and the base item of each (none where they are not known)."""

    statistic: Statistic
    n: int
    items: Sequence[str]

    def at(self, index: NDArray[np.intp]) -> _Side:
        """Over some of the examples alone."""
        items = [self.items[i] for i in index] if len(self.items) == self.n else []
        return _Side(lambda chosen: self.statistic(index[chosen]), len(index), items)

    def value(self) -> float:
        return float(self.statistic(np.arange(self.n)))


def _measured(record: Record) -> dict[str, _Side]:
    return {
        name: _Side(statistic, family.n, family.clusters(record.items))
        for family in record.families.values()
        for name, statistic in family.statistics().items()
    }


def _version(record: Record, name: str) -> int:
    """Of a metric; this version's own where the record is older than the metric, which follows from what it holds."""
    held = record.aggregates.get(name)
    return METRICS[name].version if held is None else held.version


def _shared(now: Record, before: Record, a: _Side, b: _Side) -> tuple[_Side, _Side] | None:
    """Both sides over the examples that they share, in the same order; None where none can be identified.

    The same data with the same examples kept is the same examples. Where other examples were kept, a base item that
    each side holds once identifies one.
    """
    if now.data_sha256 != before.data_sha256:
        return None
    kept_alike = (now.items, now.kept["test"]) == (before.items, before.kept["test"])
    if kept_alike and a.n == b.n and list(a.items) == list(b.items):
        return a, b
    places = [{item: i for i, item in enumerate(side.items) if item} for side in (a, b)]
    if any(len(place) != side.n for place, side in zip(places, (a, b))):
        return None
    both = [item for item in places[0] if item in places[1]]
    if not both:
        return None
    first, second = (np.array([place[item] for item in both]) for place in places)
    return a.at(first), b.at(second)


def _test(name: str, now: Record, before: Record, held: _Side, had: _Side, tests: int) -> tuple[Comparison, int]:
    """One metric of a matched cell among so many tests, not yet adjusted, and how many examples lost their value."""
    shared = _shared(now, before, held, had)
    a, b = shared or (held, had)
    now_known, before_known = known = [set(defined_examples(side.n, side.statistic).tolist()) for side in (a, b)]
    if shared:  # an example without a value on either side is no evidence that nothing changed
        known = [now_known & before_known] * 2
    a, b = (s if len(k) in (0, s.n) else s.at(np.array(sorted(k))) for s, k in zip((a, b), known))
    lost = max(0, len(before_known) - len(now_known)) if shared else 0
    x, y = (pseudo_values(side.n, side.statistic) for side in (a, b))
    if shared:
        differences = x - y
        sums = np.array([differences[c].sum() for c in clusters_of(a.items, a.n)])
        p = _finer(lambda seed: paired_test(differences, a.items, seed), tests, 2 ** len(sums) > FLIPS)
        smallest = _smallest_paired(sums, tests)
        gap = a.value() - b.value()
        interval = bootstrap_interval(a.n, lambda i: a.statistic(i) - b.statistic(i), items=a.items)
        unchanged = bool(np.isfinite(sums).all()) and not differences.any()
    else:
        x, y = _of_items(x, a.items), _of_items(y, b.items)
        p = _finer(lambda seed: unpaired_test(x, y, seed=seed), tests)
        smallest = _smallest_unpaired(x, y, tests)
        gap = float(x.mean() - y.mean()) if len(x) and len(y) else math.nan
        interval = _interval_of_gap(x, y)
        unchanged = False
    low, high = interval or (None, None)
    found = Comparison(
        cell=now.cell,
        seed_before=before.cell.seed,
        metric=name,
        old=b.value(),
        new=a.value(),
        difference=gap,
        low=low,
        high=high,
        paired=shared is not None,
        n_old=b.n,
        n_new=a.n,
        p=p,
        smallest_p=smallest,
        verdict="unchanged" if unchanged else "not different",
    )
    return found, lost


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


def _of_items(values: Array, items: Sequence[str]) -> Array:
    """The mean of each base item's values."""
    return np.array([values[c].mean() for c in clusters_of(items, len(values))])


def _smallest_paired(sums: Array, tests: int) -> float:
    """The smallest p-value that a paired test can give for such sizes of differences, whatever their signs."""
    if not np.isfinite(sums).all():
        return 1.0
    return min(1.0, max(2.0 ** (1 - np.count_nonzero(sums)), 1 / (1 + _rounds(tests) * FLIPS)))


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
    found = scipy.stats.bootstrap(
        (x, y),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _judged(tests: Sequence[Comparison]) -> list[Comparison]:
    """The same tests with adjusted p-values and verdicts."""
    counted = _able([1.0 if t.exact else t.smallest_p for t in tests])
    adjusted = dict(zip(counted, holm([tests[i].p for i in counted])))
    found = []
    for i, test in enumerate(tests):
        p = adjusted.get(i, 1.0)
        verdict: Verdict = test.verdict
        if test.exact:
            if verdict != "unchanged" and not math.isclose(test.new, test.old, rel_tol=1e-6, abs_tol=1e-9):
                verdict = "worse" if test.worse else "better"
        elif p <= ALPHA:
            verdict = "worse" if test.worse else "better"
        elif i not in adjusted and verdict != "unchanged":
            verdict = "cannot detect"
        found.append(test.model_copy(update={"adjusted": p, "verdict": verdict}))
    return found


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


def _times(now: Record, before: Record) -> list[Times]:
    """The times of a matched cell, where both were timed."""
    a, b = now.speed, before.speed
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
            old=[s / b.examples for s in b.seconds],
            new=[s / a.examples for s in a.seconds],
            examples=a.examples,
            not_compared=differs[0] if differs else "",
        )
    ]
