"""How often `attriboard check` cries wolf, and how many examples it needs to see a method that became 20 % worse.

Heads found by attribution patching on sums are judged on a pool of test examples, three times: with scores from some
train examples, with scores from others, and with the first scores mixed with noise until they keep about 20 % less of
what they are worth, 1 - log-CMD (the headline). All three are measured, example by example; then samples of the pool
become records, and pairs of records go through the very function behind the command. Every rerun's pair is drawn at
random, 100 of each kind and size:

- ``false_alarms_other_examples``: the same scores on two samples of base items (unpaired);
- ``false_alarms_other_train``: the same with scores from other train examples, which really differ a little (unpaired);
- ``false_alarms_exchanged``: the same examples, good and degraded exchanged by a coin for each base item (paired);
- ``caught_paired``: good before, degraded now, on the same examples;
- ``caught_unpaired``: the same on two samples of base items.

Two samples are drawn independently and with replacement, so that the pool stands for all examples there could be:
samples without a common base item would lie further apart than two runs do.

    python benchmarks/check_power.py --out results/check_power.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attriboard.board.check import check_records, headlines
from attriboard.components import get_level
from attriboard.evaluation.context import Context
from attriboard.evaluation.crossfit import trials
from attriboard.evaluation.faithfulness import FaithfulnessEvaluation
from attriboard.evaluation.sets import Question
from attriboard.loading import load_model
from attriboard.measurements.base import Kept, Strict
from attriboard.measurements.faithfulness import Faithfulness
from attriboard.measurements.registry import METRICS
from attriboard.measurements.speed import Speed
from attriboard.method import methods
from attriboard.model import Cost
from attriboard.records.record import Aggregate, Cell, ModelFacts, Record, Stage, StoredScores, digest
from attriboard.records.settings import Settings
from attriboard.run.provenance import provenance
from attriboard.scores import Scores
from attriboard.stats.intervals import clusters_of
from attriboard.task import tasks

MODEL, TASK, METHOD, LEVEL = "smollm2-135m", "arithmetic", "attribution_patching", "heads"
OPTIONS = {"subsets": ["addition"]}
HEADLINE = "log_cmd"
CURVES = ("absolute", "signed", "answered", "removed", "shuffled")
DROP = 0.2
PAIRS = 100
Index = NDArray[np.intp]


class Pool(Strict):
    """The three measurements over the same examples, and what a record says besides."""

    good: Faithfulness
    other_train: Faithfulness
    degraded: Faithfulness
    items: list[str]
    subsets: list[str]
    facts: ModelFacts
    task_version: int
    speed: Speed
    planted: dict[str, Any]


def some(measured: Faithfulness, index: Index) -> Faithfulness:
    """The measurements of some examples; each example is one row."""
    rows = {name: [[row[i] for i in index] for row in getattr(measured, name)] for name in CURVES}
    columns = {name: [getattr(measured, name)[i] for i in index] for name in ("full", "empty", "base_items")}
    # of curves of MIB's own sizes, MIB's points are theirs
    points = {"mib_signed": [], "mib_absolute": [], "mib_sizes": [0] * len(measured.mib_sizes)}
    return measured.model_copy(update={**rows, **columns, **points, "examples": list(range(len(index)))})


def exchanged(a: Faithfulness, b: Faithfulness, swap: NDArray[np.bool_]) -> Faithfulness:
    """``a``, with the examples of ``b`` where ``swap`` ``[N]`` says so; both are of the same examples."""
    rows = {name: np.where(swap, getattr(b, name), getattr(a, name)).tolist() for name in CURVES}
    return a.model_copy(update=rows)


def value(measured: Faithfulness, metric: str = HEADLINE) -> float:
    return float(measured.statistics()[metric](np.arange(measured.n)))


def record(pool: Pool, measured: Faithfulness, index: Index, seed: int, items: Sequence[str] = ()) -> Record:
    """What a run with these examples would have stored; one seed stands for one sample of examples.

    Args:
        items: the base item of each example, where one that was drawn twice counts as two.
    """
    items = list(items) or [pool.items[i] for i in index]
    measured = measured.model_copy(update={"base_items": items})
    values = {name: float(statistic(np.arange(measured.n))) for name, statistic in measured.statistics().items()}
    values |= {
        "seconds_per_example": pool.speed.per_example[0],
        "forward_equivalents": pool.speed.forward_equivalents,
        "flops_per_example": pool.speed.flops / 1e9,
        "peak_memory_mib": pool.speed.peak_memory_mib,
    }
    return Record(
        suite="check_power",
        identity=digest([seed, values]),
        cell=Cell(task=TASK, task_options=OPTIONS, method=METHOD, model=MODEL, level=LEVEL, seed=seed),
        settings=Settings(evaluations=("faithfulness",)),
        status="ok",
        task_version=pool.task_version,
        model=pool.facts,
        data_sha256=digest([seed, index.tolist()]),
        kept={"test": Kept(seen=len(index), correct=len(index), passing=len(index), kept=len(index), by_subset={})},
        items=items,
        subsets=[pool.subsets[i] for i in index],
        scores=StoredScores(identity="", file="", sha256="", values_sha256=""),
        measurements={"faithfulness": measured, "speed": pool.speed},
        stages={name: Stage(identity="") for name in ("scores", "faithfulness", "speed")},
        aggregates={name: Aggregate(value=v, version=METRICS[name].version) for name, v in values.items()},
        provenance=provenance(torch.device("cpu")),
    )


def degraded(scores: Scores, share: float) -> Scores:
    """Scores mixed with noise of equal spread."""
    noise = torch.randn(scores.values.shape, generator=torch.Generator().manual_seed(0))
    mixed = (1 - share) * scores.values / scores.values.std() + share * noise / noise.std()
    return replace(scores, values=mixed)


def judged(context: Context, scores: Scores) -> Faithfulness:
    """The test half judged by scores from elsewhere."""
    whole = trials(context, scores.values, None, 0, 1, (TASK, MODEL, LEVEL))
    measured = FaithfulnessEvaluation().ask(Question(context, get_level(LEVEL), whole))
    assert isinstance(measured, Faithfulness)
    return measured


def share_of_noise(context: Context, scores: Scores, steps: int = 6) -> float:
    """The share of noise at which 1 - log-CMD is lower by :data:`DROP`, by bisection."""
    aim = (1 - DROP) * (1 - value(judged(context, scores)))
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        reached = 1 - value(judged(context, degraded(scores, middle)))
        print(f"noise {middle:.3f}: {reached:.3f}, wanted {aim:.3f}", flush=True)
        low, high = (middle, high) if reached > aim else (low, middle)
    return (low + high) / 2


def measure_pool(size: int, train: int, calibration: int) -> Pool:
    """The pool, measured."""
    start = time.perf_counter()
    model, level, task = load_model(MODEL, batch_size=32), get_level(LEVEL), tasks.make(TASK, OPTIONS)
    small = Context(model, task, 0, 4 * train, 2 * calibration, calibration, calibration, 2 * train)
    method = methods.make(METHOD)
    began = time.perf_counter()
    model.cost = Cost()
    good = method.attribute(model, small.train[::2], level)
    speed = Speed(
        examples=len(small.train[::2]),
        seconds=[time.perf_counter() - began],
        scored=len(small.train[::2]),
        flops=model.cost.flops / len(small.train[::2]),
        forward_equivalents=model.forward_equivalents(small.train[::2]),
        peak_memory_mib=0.0,
    )
    other = method.attribute(model, small.train[1::2], level)
    share = share_of_noise(small, good)
    context = Context(model, task, 0, 4 * train, 3 * size // 2, size, size, 2 * train)
    measurements = []
    for scores in (good, other, degraded(good, share)):
        measurements.append(judged(context, scores))
        print(f"pool measured after {time.perf_counter() - start:.0f} s: {value(measurements[-1]):.3f}", flush=True)
    good_values, *_, bad_values = ({m: value(f, m) for m in f.statistics()} for f in measurements)
    return Pool(
        good=measurements[0],
        other_train=measurements[1],
        degraded=measurements[2],
        items=[e.example.item for e in context.test],
        subsets=[e.example.subset for e in context.test],
        facts=ModelFacts(
            source=model.source,
            weights_sha256=model.weights_sha256,
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            n_components=level.size(model),
        ),
        task_version=task.version,
        speed=speed,
        planted={
            "examples": len(context.test),
            "base_items": len({e.example.item for e in context.test}),
            "train_examples": len(small.train[::2]),
            "share_of_noise": share,
            "good": good_values,
            "other_train": {m: value(measurements[1], m) for m in measurements[1].statistics()},
            "degraded": bad_values,
            "drop": {m: 1 - bad_values[m] / good_values[m] for m in good_values if good_values[m]},
            "seconds": time.perf_counter() - start,
        },
    )


Pair = Callable[[np.random.Generator, int], tuple[Record, Record]]


def kinds(pool: Pool) -> dict[str, Pair]:
    """By name, how a pair (now, before) is drawn."""
    everyone = len(pool.items)
    clusters = clusters_of(pool.items, everyone)

    def apart(before: Faithfulness, now: Faithfulness) -> Pair:
        def sample(rng: np.random.Generator, n: int) -> tuple[Index, list[str]]:
            drawn = rng.integers(len(clusters), size=n)  # each has an example at least
            at = np.concatenate([clusters[c] for c in drawn])[:n]
            return at, [f"{i}" for i, c in enumerate(drawn) for _ in clusters[c]][:n]

        def draw(rng: np.random.Generator, n: int) -> tuple[Record, Record]:
            (first, first_items), (second, second_items) = sample(rng, n), sample(rng, n)
            return (
                record(pool, some(now, second), second, 1, second_items),
                record(pool, some(before, first), first, 0, first_items),
            )

        return draw

    def together(rng: np.random.Generator, n: int) -> tuple[Record, Record]:
        at = np.sort(rng.permutation(everyone)[:n])
        return record(pool, some(pool.degraded, at), at, 0), record(pool, some(pool.good, at), at, 0)

    def coin(rng: np.random.Generator, n: int) -> tuple[Record, Record]:
        at = np.sort(rng.permutation(everyone)[:n])
        swap = np.zeros(n, dtype=bool)
        for cluster in clusters_of([pool.items[i] for i in at], n):
            swap[cluster] = rng.random() < 0.5
        good, bad = some(pool.good, at), some(pool.degraded, at)
        return record(pool, exchanged(good, bad, swap), at, 0), record(pool, exchanged(bad, good, swap), at, 0)

    return {
        "false_alarms_other_examples": apart(pool.good, pool.good),
        "false_alarms_other_train": apart(pool.good, pool.other_train),
        "false_alarms_exchanged": coin,
        "caught_paired": together,
        "caught_unpaired": apart(pool.good, pool.degraded),
    }


def counted(pool: Pool, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Of :data:`PAIRS` pairs of each kind and size, how many make the check fail."""
    rows = []
    for kind, pair in kinds(pool).items():
        for n in sizes:
            if n > len(pool.items):
                continue
            rng = np.random.default_rng(n)
            reports = [
                check_records([now], [before], speed=False) for now, before in (pair(rng, n) for _ in range(PAIRS))
            ]
            failed = sum(report.failed for report in reports)
            improved = sum(bool(report.judged("better")) for report in reports)
            rows.append({"kind": kind, "n": n, "pairs": PAIRS, "failed": failed, "improved": improved})
            print(f"{kind}, n = {n}: {failed} of {PAIRS} fail, {improved} improve", flush=True)
    return rows


def smallest(rows: Sequence[dict[str, Any]], kind: str) -> int | None:
    """The smallest size from which on at least 95 of 100 are caught."""
    least = None
    for row in sorted((r for r in rows if r["kind"] == kind), key=lambda r: -r["n"]):
        if row["failed"] < 0.95 * row["pairs"]:
            break
        least = row["n"]
    return least


def table(rows: Sequence[dict[str, Any]]) -> str:
    """How many of the pairs failed, by kind and n, as it stands in ``docs/check.md``."""
    sizes = sorted({row["n"] for row in rows})
    by_kind: dict[str, dict[int, int]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], {})[row["n"]] = row["failed"]
    lines = [f"| of {PAIRS} pairs, n = | {' | '.join(map(str, sizes))} |", "| --- |" + " ---: |" * len(sizes)]
    for kind, failed in by_kind.items():
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(str(failed.get(n, '')) for n in sizes)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pool", type=int, default=200, help="test examples measured")
    parser.add_argument("--train", type=int, default=8, help="train examples behind each set of scores")
    parser.add_argument("--calibration", type=int, default=48, help="test examples on which the noise is chosen")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 24, 48, 96])
    parser.add_argument("--measured", type=Path, help="keep the pool's measurements in this file, or take them from it")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if arguments.measured is not None and arguments.measured.exists():
        pool = Pool.model_validate_json(arguments.measured.read_text(encoding="utf-8"))
    else:
        pool = measure_pool(arguments.pool, arguments.train, arguments.calibration)
        if arguments.measured is not None:
            arguments.measured.write_text(pool.model_dump_json() + "\n", encoding="utf-8")
    rows = counted(pool, arguments.sizes)
    content = {
        "metrics": [m for m in headlines() if m in pool.good.statistics()],
        "planted": pool.planted,
        "rows": rows,
        "smallest_n_caught": {kind: smallest(rows, kind) for kind in ("caught_paired", "caught_unpaired")},
        "seconds": time.perf_counter() - start,
        "provenance": provenance(torch.device("cpu")).model_dump(),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
