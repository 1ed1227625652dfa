"""What every measurement has in common: what is stored of a cell, its metrics, and the aggregates that follow.

A measurement declares its metrics where they are computed; board columns, ``docs/metrics.md`` and ``attriboard check``
read them from there. When a metric turns out wrong, its version is raised and the old one kept under another name.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from ..errors import ConfigurationError
from ..levels import COMPONENTS
from ..stats.clusters import FRAME, ITEM, TRAIN, Clusters
from ..stats.intervals import Array

Statistic = Callable[[NDArray[np.intp]], Array]
"""An aggregate as a function of row indices ``[..., n]``; a row is an example, or one of its repetitions."""
Scalar = tuple[float, float | None, float | None]
"""A value with the ends of its interval or spread, where it has them."""


class Measure(IntEnum):
    """What is measured of every row that is run: the last axis of stored per-example measurements."""

    METRIC = 0
    """The task's metric, by default logit(answer) - logit(foil)."""
    LOGPROB = 1
    """log p(answer), in nats."""
    CORRECT = 2
    """1 where the answer is right, else 0."""


class Strict(BaseModel):
    """Base of everything stored: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shaped(BaseModel):
    """Base of what holds lists that belong together: their lengths are checked against each other when it is made.

    Class attributes:
        shapes: by field, its axes, outermost first: ``"sizes rows"``. Axes of one name have one length, a number is a
            length itself, and a field with a question mark behind its axes may be empty or None. At most three axes.
    """

    shapes: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        lengths: dict[str, int] = {}
        for name, axes in self.shapes.items():
            value = getattr(self, name)
            if axes.endswith("?"):
                axes = axes[:-1]
                if not value:
                    continue
            if value is not None:
                check_axes(name, value, axes.split(), lengths)
        self.check_values()
        return self

    def check_values(self) -> None:
        """Checks what lengths alone do not say.

        Raises:
            ValueError: says which field cannot be right.
        """


def check_axes(name: str, value: Sequence[Any], axes: Sequence[str], lengths: dict[str, int]) -> None:
    """Checks the lengths of nested lists against those known, and notes those that are new.

    Raises:
        ValueError: a list is shorter or longer than another one of its axis; names the field.
    """
    axis, *inner = axes
    expected = int(axis) if axis.isdigit() else lengths.setdefault(axis, len(value))
    if len(value) != expected:
        of = "" if axis.isdigit() else f" {axis}"
        raise ValueError(f"{name} has {len(value)} entries where there are {expected}{of}")
    if inner:
        for each in value:
            check_axes(name, each, inner, lengths)


class Kept(Strict):
    """How many examples of a split were seen, answered, and kept.

    Attributes:
        seen: drawn.
        correct: those whose prompt is answered by the answer.
        passing: those of these whose counterfactual is answered by the foil, where that is asked for.
        kept: used.
        by_subset: by subset: (passing, correct, seen).
        n_eff: to how many independent examples those kept amount, by the untouched model's metric; see
            :func:`attriboard.stats.clusters.effective_n`. None for fewer than two.
    """

    seen: int
    correct: int
    passing: int
    kept: int
    by_subset: dict[str, tuple[int, int, int]]
    n_eff: float | None = None

    @property
    def share(self) -> float:
        """Of those seen, the share that passes."""
        return self.passing / self.seen


@dataclass(frozen=True)
class Metric:
    """One aggregate.

    Attributes:
        name: key in records.
        title: column head.
        unit: of the value.
        better: "higher", "lower", or "neither" for descriptions.
        text: what it is, in a sentence or two.
        version: raised when the definition changes.
        digits: decimals shown on the board.
        optional: True if a record with the measurement may lack it.
        shown: whether it is a column of the board.
        shown_at: at the tables of which levels; of all that its measurement has if none are named.
        block: metrics of a measurement with the same block stand side by side.
        ranks: whether the overall table ranks methods by it.
        headline: whether methods are compared with the controls by it: whether any is better than random, and which
            are no better than what is trivial. A table is judged by the first such metric that it shows.
        sorts: whether a table's rows are sorted by it (by the mean over those of a measurement that do).
        tested: whether a paired test over examples can compare two methods by it.
        exact: one value by definition, which equal data make comparable without a test.
        perfect: what the untouched model has, where a value can go beyond that. More is not better attribution then,
            so a column whose best value goes beyond it has no best.
        bounds: what a value cannot be below and above, where there is such a thing; intervals end there.
        line: what is said before its value above the table, for metrics that describe the examples.
        measurement: the name of the measurement that declares it; filled in there.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    text: str
    version: int = 1
    digits: int = 3
    optional: bool = False
    shown: bool = True
    shown_at: tuple[str, ...] = ()
    block: str = ""
    ranks: bool = False
    headline: bool = False
    sorts: bool = False
    tested: bool = True
    exact: bool = False
    perfect: float | None = None
    bounds: tuple[float | None, float | None] = (None, None)
    line: str = ""
    measurement: str = ""


class Options(Strict):
    """The options of a measurement: a table of a suite's settings under the measurement's name."""


class Measurement(Shaped):
    """What one evaluation measured in one cell; a subclass holds it, example by example.

    A subclass with a ``name`` is registered when it is defined.

    Class attributes:
        name: as suites ask for it and records store it.
        text: what is said once of all its metrics, on the page of metrics.
        levels: the levels at which it is measured.
        metrics: every aggregate that :meth:`statistics` or :meth:`scalars` may name, in the order of columns.
        default: whether suites that name no evaluations ask for it.
        replaces: whether what is measured depends on what scored things are replaced by.
        needs_method: whether a method must be run, so that precomputed scores cannot be measured.
        uses_capability: whether the settings of general ability (``settings.capability``) are among its options.
        main: whether its metrics stand in the board's first table of a cell; else they stand in tables of their own.
        position: measurements are ordered by it.
        cross_fitted: whether every kept example is judged, by scores that were found on others; its rows are then
            examples in repetitions.
        over_kept: whether its examples are the test examples kept, in the record's order.
        Options: its options; every field has a default.

    Attributes:
        base_items, base_frames: the base item and the frame of each row, where they are not those of the test
            examples kept; empty where they are, or are not known.
        train_groups: for each row, the group of train examples on which the scores were found by which it is judged;
            empty where all rows are judged by the same scores.
    """

    model_config = ConfigDict(extra="forbid")

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    levels: ClassVar[tuple[str, ...]] = COMPONENTS
    metrics: ClassVar[tuple[Metric, ...]] = ()
    default: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    needs_method: ClassVar[bool] = False
    uses_capability: ClassVar[bool] = False
    main: ClassVar[bool] = False
    position: ClassVar[int] = 500
    cross_fitted: ClassVar[bool] = False
    over_kept: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = Options

    base_items: list[str] = Field(default_factory=list)
    base_frames: list[str] = Field(default_factory=list)
    train_groups: list[str] = Field(default_factory=list)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" in vars(cls) and cls.name:
            _register(cls)

    @model_validator(mode="after")
    def _names_of_rows(self) -> Self:
        for name in ("base_items", "base_frames", "train_groups"):
            named = getattr(self, name)
            if named and len(named) != self.n:
                raise ValueError(f"{name} has {len(named)} entries where there are {self.n} rows")
        return self

    def emptied(self) -> Measurement:
        """The measurement without what was measured: only what it is, and how many train groups there were."""
        return _empty(self.__class__).model_copy(update={"train_groups": sorted(set(self.train_groups))})

    def clusters(self, items: Sequence[str] = (), frames: Sequence[str] = ()) -> Clusters:
        """How the rows depend on each other, given the base items and frames of the test examples kept.

        Rows of a measurement over kept examples are those examples, in the record's order, once or several times over
        (all of the first repetition, then all of the second); an example without an item is the same one in every
        repetition. Ways that are not known are left out.

        Raises:
            ConfigurationError: ``base_items``, ``base_frames`` or ``train_groups`` do not have one entry for each row.
        """
        own = {ITEM: self.base_items, FRAME: self.base_frames, TRAIN: self.train_groups}
        for name, kept in ((ITEM, items), (FRAME, frames)):
            if self.over_kept and kept and not own[name] and self.n % len(kept) == 0:
                named = [each or f"\0{i}" for i, each in enumerate(kept)] if any(kept) and self.n > len(kept) else kept
                own[name] = [*named] * (self.n // len(kept))
        return Clusters(self.n, own)

    @property
    @abstractmethod
    def n(self) -> int:
        """How many examples the statistics range over."""

    @abstractmethod
    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., n]``."""

    def scalars(self) -> dict[str, Scalar]:
        """By metric name, aggregates that do not range over examples."""
        return {}

    def gaps(self) -> dict[str, str]:
        """What was not measured, by metric or part, and why."""
        return {}


@functools.cache
def _empty(cls: type[Measurement]) -> Measurement:
    return cls.model_construct()


MEASUREMENTS: dict[str, type[Measurement]] = {}
"""Every measurement by name, in order of position; :mod:`attriboard.measurements.registry` fills it."""
METRICS: dict[str, Metric] = {}
"""Every metric by name, in the order of measurements and of their columns."""


def _register(cls: type[Measurement]) -> None:
    old = MEASUREMENTS.get(cls.name)
    if old is not None and old.__module__ != cls.__module__:
        raise ConfigurationError(
            f"two measurements are called {cls.name!r}: {old.__module__} and {cls.__module__}; rename one."
        )
    for metric in cls.metrics:
        other = METRICS.get(metric.name)
        if other is not None and other.measurement != cls.name:
            raise ConfigurationError(
                f"two measurements have a metric {metric.name!r}: {other.measurement} and {cls.name}; rename one."
            )
    MEASUREMENTS[cls.name] = cls
    ordered = sorted(MEASUREMENTS.values(), key=lambda m: m.position)
    MEASUREMENTS.clear()
    METRICS.clear()
    for measurement in ordered:
        MEASUREMENTS[measurement.name] = measurement
        for metric in measurement.metrics:
            METRICS[metric.name] = dataclasses.replace(metric, measurement=measurement.name)
