"""Aggregates follow from stored measurements alone, so they can be derived again whenever their definition changes."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

import numpy as np

from ..errors import ConfigurationError
from ..measurements.base import Measurement, Metric
from ..measurements.registry import MEASUREMENTS, METRICS
from ..stats.intervals import VERSION, bootstrap_interval
from .checkout import commit
from .record import Aggregate, Derivation, Record


def aggregates(
    measurements: Iterable[Measurement], items: Sequence[str] = (), frames: Sequence[str] = ()
) -> dict[str, Aggregate]:
    """Every metric with its interval, from measurements and the base items and frames of the test examples kept.

    Raises:
        ConfigurationError: a measurement has a value of a metric that it does not declare, or lacks one it must have.
    """
    derived: dict[str, Aggregate] = {}
    for measurement in measurements:
        own: dict[str, Aggregate] = {}
        declared = {metric.name: metric for metric in measurement.metrics}

        def version(name: str, declared: dict = declared, owner: str = measurement.name) -> int:
            if name not in declared:
                raise ConfigurationError(f"{owner} has a value of metric {name!r}, which it does not declare.")
            return declared[name].version

        for name, statistic in measurement.statistics().items():
            clusters = measurement.clusters(items, frames)
            low, high = bootstrap_interval(measurement.n, statistic, items=clusters) or (None, None)
            value = float(statistic(np.arange(measurement.n)))
            aggregate = Aggregate(value=value, low=low, high=high, version=version(name))
            own[name] = _within(aggregate, declared[name])
        for name, (value, low, high) in measurement.scalars().items():
            own[name] = Aggregate(value=value, low=low, high=high, version=version(name))
        if missing := [name for name, metric in declared.items() if not metric.optional and name not in own]:
            raise ConfigurationError(f"{measurement.name} lacks {', '.join(missing)}, which it declares.")
        derived |= own
    return derived


def _within(aggregate: Aggregate, metric: Metric) -> Aggregate:
    """The aggregate with an interval that ends where the metric does."""
    if aggregate.low is None or aggregate.high is None:
        return aggregate
    least, most = metric.bounds
    low = aggregate.low if least is None else max(aggregate.low, least)
    high = aggregate.high if most is None else min(aggregate.high, most)
    return aggregate.model_copy(update={"low": low, "high": high})


def is_current(record: Record) -> bool:
    """Whether the aggregates are of today's metrics and statistics."""
    needed = {
        metric.name for name in record.measurements for metric in MEASUREMENTS[name].metrics if not metric.optional
    }
    return (
        (record.statistics_version == VERSION or not record.measurements)
        and needed <= set(record.aggregates)
        and all(name in METRICS and METRICS[name].version == a.version for name, a in record.aggregates.items())
    )


def derived_again(record: Record) -> Record:
    """The record with its aggregates derived anew from its measurements, and what derived them."""
    now = Derivation(
        attriboard=importlib.metadata.version("attriboard"),
        attriboard_commit=commit(),
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    )
    new = aggregates(record.measurements.values(), record.items, record.frames)
    return record.model_copy(update={"aggregates": new, "statistics_version": VERSION, "derived": now})


def up_to_date(record: Record) -> Record:
    """The record itself where its aggregates are current; else with aggregates derived anew."""
    return record if is_current(record) else derived_again(record)
