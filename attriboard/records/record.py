"""The typed record of one cell: every setting, version and per-example measurement behind its numbers."""

from __future__ import annotations

import hashlib
import json
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..levels import USUAL_REPLACEMENT, InputReplacement
from ..measurements.base import Kept, Measurement, Statistic, Strict
from ..measurements.speed import VARYING, Speed
from ..roles import ControlKind, Sight
from ..stats.clusters import Clusters
from .settings import Settings, measurement_of

M = TypeVar("M", bound=Measurement)

SCHEMA = 2


class Precomputed(Strict):
    """The file from which a cell's scores come, instead of from a method."""

    file: str
    sha256: str


class Cell(Strict):
    """One thing to run: a method on a task, for a model, at a level.

    ``variant`` tells apart cells that are measured with other options and are else the same. Where ``precomputed`` is
    given, the scores come from that file, and ``method`` is the name under which they stand on the board.
    """

    task: str
    task_options: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_options: dict[str, Any] = Field(default_factory=dict)
    model: str
    level: str
    replacement: InputReplacement = USUAL_REPLACEMENT
    variant: str = ""
    seed: int = 0
    precomputed: Precomputed | None = None

    @property
    def task_label(self) -> str:
        return _label(self.task, self.task_options)

    @property
    def method_label(self) -> str:
        return f"{self.method} (precomputed)" if self.precomputed else _label(self.method, self.method_options)

    def __str__(self) -> str:
        extra = "" if self.replacement == USUAL_REPLACEMENT else f" ({self.replacement})"
        variant = f", {self.variant}" if self.variant else ""
        where = f"on {self.model}, seed {self.seed}{variant}"
        return f"{self.task_label} / {self.level} / {self.method_label}{extra} {where}"


def _label(name: str, options: dict[str, Any]) -> str:
    inside = ", ".join(
        f"{k}={','.join(map(str, v)) if isinstance(v, (list, tuple)) else v}" for k, v in sorted(options.items())
    )
    return f"{name}({inside})" if inside else name


class Planned(NamedTuple):
    """A cell and the settings it is run with."""

    cell: Cell
    settings: Settings


class Provenance(Strict):
    """What produced a record.

    Attributes:
        attriboard_commit: the commit of this package's checkout; None outside one.
        device: the processor or GPU.
        threads: of the processor, that were used.
        workers: how many processes shared the computer: what was timed beside others cannot be compared with what was
            timed alone.
        batch_size: most rows in one forward pass; 0 where that is not known.
    """

    attriboard: str
    attriboard_commit: str | None
    python: str
    torch: str
    transformers: str
    platform: str
    device: str
    threads: int
    created: str
    workers: int = 1
    batch_size: int = 0


class Stage(Strict):
    """One step of a record: its scoring, or one of its evaluations.

    Attributes:
        identity: SHA-256 of what determines its outcome beside the record's own identity; a step is not done again
            while that stays the same.
        seconds: wall time.
        created, attriboard_commit, device: when, by which commit and on what it was done.
        workers: how many processes shared the computer then.
    """

    identity: str
    seconds: float = 0.0
    created: str = ""
    attriboard_commit: str | None = None
    device: str = ""
    workers: int = 1


class Derivation(Strict):
    """What derived a record's aggregates from its measurements."""

    attriboard: str
    attriboard_commit: str | None
    created: str


class ModelFacts(Strict):
    """Which weights were used; the hash is over the parameters as loaded.

    ``n_components`` counts what a method scores; at levels of inputs, the most positions of any test example.
    ``recipe`` is what models that are built from a seed, and differ in it alone, have in common: their name without
    the seed; empty for other models.
    """

    source: str
    weights_sha256: str
    n_layers: int
    n_heads: int
    n_components: int
    recipe: str = ""


class StoredScores(Strict):
    """The scores of a cell, which stand in a file beside the records.

    Attributes:
        identity: SHA-256 of what determines them; cells that differ in what is measured alone share it.
        file: the safetensors file, from the folder of records: ``scores/HASH.safetensors``, and
            ``scores/large/HASH.safetensors`` for what git does not keep.
        sha256: of that file.
        values_sha256: of all scores as float32, one test example after the other at levels of inputs.
        metadata: what the method says of its scores, without long lists.
        top: the twenty highest components with their scores; empty at levels of inputs.
        sketch: the scores of some or all components, by which records are compared; see
            :meth:`attriboard.scores.Scores.sketch`. Empty at levels of inputs.
        ties: the share of components whose score equals another's.
        noise: the share of components whose score was set to zero because it lay below what rounding can make.
    """

    identity: str
    file: str
    sha256: str
    values_sha256: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    top: list[tuple[str, float]] = Field(default_factory=list)
    sketch: list[float] = Field(default_factory=list)
    ties: float = 0.0
    noise: float = 0.0


class Aggregate(Strict):
    """A metric's value with its 95 % interval over examples and train draws (None where undefined)."""

    value: float
    low: float | None = None
    high: float | None = None
    version: int


class Record(Strict):
    """The outcome of one cell.

    Attributes:
        identity: SHA-256 of everything that determines the scores, and of what they are judged by replacing.
        status: "ok"; "failed" (``reason`` says why; what could be measured is there all the same); "skipped" (the cell
            does not apply).
        data_sha256: of the tokens of every example drawn.
        kept: by split, what was seen, answered and kept.
        items, frames: the base item and the frame of each test example, in the order of the per-example measurements.
        n_eff: to how many independent examples those kept in both halves amount; None for fewer than two.
        control: whether the method is a floor, and no published one.
        control_kind: which kind of floor; empty for methods that are none.
        sees: what the method saw of the examples beside their prompts; None where that is not known.
        scores: what the method gave; None where it gave nothing.
        measurements: by name.
        not_measured: by evaluation or metric, why it was not measured.
        stages: what was done when, by "scores" and the names of evaluations.
        aggregates: by metric name; they follow from the measurements.
        statistics_version: of the statistics that they were derived with.
        derived: what derived them, where that was not the run itself.
        seconds: wall time of the cell's parts.
        provenance: of the last run that added to it.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")  # numbers that are none stay what they are

    schema_version: int = SCHEMA
    suite: str
    identity: str
    cell: Cell
    settings: Settings
    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    traceback: str = ""
    task_version: int = 0
    model: ModelFacts | None = None
    data_sha256: str = ""
    kept: dict[str, Kept] = Field(default_factory=dict)
    chance: float | None = None
    items: list[str] = Field(default_factory=list)
    frames: list[str] = Field(default_factory=list)
    n_eff: float | None = None
    subsets: list[str] = Field(default_factory=list)
    control: bool = False
    control_kind: ControlKind | Literal[""] = ""
    sees: list[Sight] | None = None
    scores: StoredScores | None = None
    measurements: dict[str, SerializeAsAny[Measurement]] = Field(default_factory=dict)
    not_measured: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, Stage] = Field(default_factory=dict)
    aggregates: dict[str, Aggregate] = Field(default_factory=dict)
    statistics_version: int = 0
    derived: Derivation | None = None
    provenance: Provenance | None = None

    @field_validator("measurements", mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: _measured(name, value) for name, value in values.items()}

    @field_serializer("measurements")
    def _plain(self, values: dict[str, Measurement]) -> dict[str, Any]:
        return {name: value.model_dump(mode="json") for name, value in values.items()}

    @model_validator(mode="after")
    def _whole(self) -> Record:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema version {self.schema_version}, this version reads {SCHEMA}")
        for name in ("frames", "subsets"):
            named = getattr(self, name)
            if named and len(named) != len(self.items):
                raise ValueError(f"{name} has {len(named)} entries where items has {len(self.items)}")
        if len({frozenset(half.by_subset) for half in self.kept.values()}) > 1:
            raise ValueError("kept has other subsets in one half than in the other")
        if self.measurements and not all(half.seen > 0 for half in self.kept.values()):
            raise ValueError("kept says that no example was seen")
        if self.status != "ok":
            return self
        wanted = set(self.settings.measured(self.cell.level)) & set(self.stages)
        uncosted = Speed.name in self.not_measured and self.cell.precomputed is None  # a method that ran was timed
        if uncosted or wanted - set(self.measurements) - set(self.not_measured):
            raise ValueError("an 'ok' record without its measurements")
        if not self.measurements or self.scores is None or "test" not in self.kept:
            raise ValueError("an 'ok' record without scores, measurements or examples")
        return self

    def clusters(self, metric: str) -> Clusters:
        """How the rows depend on each other that a statistic of :attr:`statistics` ranges over."""
        return self.statistics[metric][0].clusters(self.items, self.frames)

    def measured(self, kind: type[M]) -> M | None:
        """What one evaluation measured; None where it did not."""
        value = self.measurements.get(kind.name)
        return value if isinstance(value, kind) else None

    @cached_property
    def statistics(self) -> dict[str, tuple[Measurement, Statistic]]:
        """By metric name, the aggregate as a function of examples, and the measurement it is one of."""
        return {
            name: (measurement, statistic)
            for measurement in self.measurements.values()
            for name, statistic in measurement.statistics().items()
        }

    @property
    def cross_fitted(self) -> bool:
        """Whether examples of both halves were judged."""
        divided = self.settings.folds > 0 and self.cell.precomputed is None
        return divided and any(m.cross_fitted for m in self.measurements.values())

    @property
    def passing_share(self) -> float:
        """Of the examples drawn in the halves that are judged, the share that passes."""
        halves = [half for split, half in self.kept.items() if self.cross_fitted or split == "test"]
        return sum(half.passing for half in halves) / sum(half.seen for half in halves)

    @property
    def train_groups(self) -> int:
        """On how many groups of examples scores were found by which others are judged; 0 where none are."""
        return max((len(set(m.train_groups)) for m in self.measurements.values() if m.train_groups), default=0)

    @property
    def judged(self) -> tuple[int, float | None]:
        """How many examples its measurements judge, and to how many independent ones they amount (None: not known)."""
        if self.cross_fitted:
            return sum(kept.kept for kept in self.kept.values()), self.n_eff
        return len(self.items), self.kept["test"].n_eff if "test" in self.kept else None

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by stage."""
        return {name: stage.seconds for name, stage in self.stages.items()}

    @property
    def filename(self) -> str:
        return filename(self.cell, self.identity)

    def without_timings(self) -> dict[str, Any]:
        """Everything but times, memory and provenance, to compare two runs of one cell."""
        content = self.model_dump(mode="json", exclude={"provenance", "traceback", "derived"})
        content["measurements"].pop(Speed.name, None)
        content["aggregates"] = {name: value for name, value in content["aggregates"].items() if name not in VARYING}
        content["stages"] = {name: stage["identity"] for name, stage in content["stages"].items()}
        return content


def filename(cell: Cell, identity: str) -> str:
    """The name of a record's file."""
    return f"{_plain(cell.task)}.{cell.level}.{_plain(cell.method)}.{identity[:12]}.json"


@cache
def _plain(name: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in name)


def _measured(name: str, value: Any) -> Measurement:
    """A measurement from what a record stores of it.

    Raises:
        PydanticCustomError: it is not whole; names the field.
        UnknownNameError: there is no such evaluation here.
    """
    if isinstance(value, Measurement):
        return value
    try:
        return measurement_of(name).model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        text = f"{where}: {first['msg'].removeprefix('Value error, ')}"
        raise PydanticCustomError("measurement", "{text}", {"text": text}) from error


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()
