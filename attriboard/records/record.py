"""The typed record of one cell, and the folder that holds records.

A record carries every setting, version and per-example measurement behind its numbers. Its file name ends in a hash
of everything that determines the result, so a rerun skips exactly what is done. Files are written to a temporary name
and renamed; files that are not records are named and left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..components import INPUTS
from ..errors import ConfigurationError
from ..evaluation.ablation import Ablation
from ..evaluation.bias import SIZES as PREFERENCE_SIZES
from ..evaluation.bias import Preference
from ..evaluation.capability import DEFAULT as DEFAULT_TASKS
from ..evaluation.concepts import Concepts
from ..evaluation.context import Kept
from ..evaluation.editing import SIZES as EDIT_SIZES
from ..evaluation.editing import Editing
from ..evaluation.faithfulness import Faithfulness
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.localization import Localization
from ..evaluation.pruning import SPARSITIES, Allocation, Pruning
from ..evaluation.reliability import Reliability
from ..evaluation.sanity import STAGES, Sanity
from ..evaluation.speed import Speed
from ..interventions import InputReplacement
from ..measurements.base import Family
from ..measurements.metrics import METRICS

FamilyName = Literal[
    "faithfulness", "ablation", "pruning", "editing", "preference", "reliability", "sanity", "ground_truth"
]
SCHEMA = 1
MARKER = "suite.json"


class Strict(BaseModel):
    """Base of everything stored: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Entered(Strict):
    """The file from which a cell's scores come, instead of from a method."""

    file: str
    sha256: str


class Cell(Strict):
    """One thing to run: a method on a task, for a model, at a level.

    ``settings`` holds what differs from the settings of the run. Where ``entered`` is given, the scores come from that
    file, and ``method`` is the name under which they stand on the board.
    """

    task: str
    task_options: dict[str, Any] = Field(default_factory=dict)
    method: str
    method_options: dict[str, Any] = Field(default_factory=dict)
    model: str
    level: str
    replacement: InputReplacement = "counterfactual"
    seed: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)
    entered: Entered | None = None

    @property
    def task_label(self) -> str:
        return _label(self.task, self.task_options)

    @property
    def method_label(self) -> str:
        return f"{self.method} (entered)" if self.entered else _label(self.method, self.method_options)

    def __str__(self) -> str:
        extra = "" if self.replacement == "counterfactual" else f" ({self.replacement})"
        return f"{self.task_label} / {self.level} / {self.method_label}{extra} on {self.model}, seed {self.seed}"


def _label(name: str, options: dict[str, Any]) -> str:
    inside = ", ".join(f"{k}={','.join(v) if isinstance(v, (list, tuple)) else v}" for k, v in sorted(options.items()))
    return f"{name}({inside})" if inside else name


class Settings(Strict):
    """How cells are run.

    Attributes:
        train_examples, test_examples: drawn per split (before those answered wrongly are dropped).
        max_kept, min_kept: most and fewest correctly answered examples used per split.
        max_train: most of them scored by the method, if fewer than max_kept.
        families: what is measured at levels of components; positions of the input are always judged by localization,
            and by sanity where it is asked for.
        ablation_draws: random sets per size; of concept properties, random sets and noises per example.
        rings: see :func:`attriboard.evaluation.localization.evaluate`; 0 is measured in any case.
        pruning_sparsities: the shares of components removed, for the curve.
        pruning_slice: the share that is sliced away for real.
        pruning_allocation: "layerwise" removes the same share of every layer, "global" the lowest scores of all.
        recovery_steps: of LoRA training after slicing; 0 for none.
        edit_sizes: among these numbers of components the train split chooses, one for each kind of edit.
        suppress_factor, boost_factor: what edits scale output weights by; the first also for preferences.
        preference_sizes: numbers of suppressed neurons at which a preference and perplexity are measured.
        reliability_halvings: most random halvings of the train examples.
        sanity_stages: the shares of layers that are randomized, from the last one down.
        capability: lm-eval tasks by which pruned and edited models are judged, besides the task itself.
        capability_limit: most documents of each.
        speed_examples, speed_repeats, speed_max_seconds: see :func:`attriboard.evaluation.speed.measure`.
        batch_size: most rows in one forward pass; does not change results.
        dtype, device: of the model.
    """

    train_examples: int = Field(64, ge=1)
    test_examples: int = Field(64, ge=1)
    max_kept: int = Field(64, ge=1)
    min_kept: int = Field(8, ge=1)
    max_train: int | None = Field(None, ge=1)
    families: tuple[FamilyName, ...] = Field(("faithfulness", "ablation"), min_length=1)
    ablation_draws: int = Field(5, ge=1)
    rings: tuple[Literal[0, 1], ...] = (0,)
    pruning_sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(SPARSITIES, min_length=1)
    pruning_slice: float = Field(0.5, gt=0, lt=1)
    pruning_allocation: Allocation = "layerwise"
    recovery_steps: int = Field(0, ge=0)
    edit_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(EDIT_SIZES, min_length=1)
    suppress_factor: float = Field(0.0, ge=0, lt=1)
    boost_factor: float = Field(2.0, gt=1)
    preference_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(PREFERENCE_SIZES, min_length=1)
    reliability_halvings: int = Field(100, ge=1)
    sanity_stages: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(STAGES, min_length=1)
    capability: tuple[str, ...] = DEFAULT_TASKS
    capability_limit: int | None = Field(None, ge=1)
    speed_examples: int = Field(4, ge=1)
    speed_repeats: int = Field(3, ge=1)
    speed_max_seconds: float = Field(30.0, gt=0)
    batch_size: int = Field(16, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with some changed.

        Raises:
            ValidationError: a change to what is no setting, or to a value it cannot have.
        """
        return Settings(**{**self.model_dump(), **changes})

    def of(self, cell: Cell) -> Settings:
        """The settings of one cell, whose group may have settings of its own."""
        return self.changed(cell.settings)


class Provenance(Strict):
    """What produced a record. ``attriboard_commit`` is the commit of this package's checkout, None outside one."""

    attriboard: str
    attriboard_commit: str | None
    python: str
    torch: str
    transformers: str
    platform: str
    device: str
    threads: int
    created: str


class ModelFacts(Strict):
    """Which weights were used; the hash is over the parameters as loaded.

    ``n_components`` counts what a method scores; at levels of inputs, the most positions of any test example.
    """

    source: str
    weights_sha256: str
    n_layers: int
    n_heads: int
    n_components: int


class Aggregate(Strict):
    """A metric's value with its 95 % bootstrap interval over examples (None where undefined)."""

    value: float
    low: float | None = None
    high: float | None = None
    version: int


class Record(Strict):
    """The outcome of one cell.

    Attributes:
        identity: SHA-256 of everything that determines the result.
        status: "ok"; "failed" (``reason`` says why); "skipped" (the cell does not apply).
        data_sha256: of the tokens of every example drawn.
        kept: by split, what was seen, answered and kept.
        items: the base item of each test example, in the order of the per-example measurements.
        top: the twenty highest components with their scores; empty at levels of inputs, where scores belong to examples
            and stand in ``localization``.
        sketch: the scores of some or all components, by which records are compared; see
            :meth:`attriboard.scores.Scores.sketch`. Empty at levels of inputs and in older records.
        scores_sha256: of all scores as float32, one test example after the other at levels of inputs.
        scores_metadata: what the method says of its scores.
        faithfulness, ablation, pruning, editing, preference: measured at levels of components, as the settings ask.
        reliability: measured at levels of components, where the settings ask; sanity: at all levels, where they ask.
        localization: measured at levels of inputs.
        concepts: measured of neurons, where every example carries a concept.
        ground_truth: measured of models with a known mechanism: of components as the settings ask, of tokens always.
        not_measured: by family of metrics, why a family that the task and level have was not measured.
        aggregates: by metric name.
        seconds: wall time of the cell's parts.
    """

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
    subsets: list[str] = Field(default_factory=list)
    control: bool = False
    top: list[tuple[str, float]] = Field(default_factory=list)
    sketch: list[float] = Field(default_factory=list)
    scores_sha256: str = ""
    scores_metadata: dict[str, Any] = Field(default_factory=dict)
    faithfulness: Faithfulness | None = None
    ablation: Ablation | None = None
    localization: Localization | None = None
    concepts: Concepts | None = None
    pruning: Pruning | None = None
    editing: Editing | None = None
    preference: Preference | None = None
    reliability: Reliability | None = None
    sanity: Sanity | None = None
    ground_truth: GroundTruth | None = None
    speed: Speed | None = None
    not_measured: dict[str, str] = Field(default_factory=dict)
    aggregates: dict[str, Aggregate] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _whole(self) -> Record:
        if self.schema_version != SCHEMA:
            raise ValueError(f"schema version {self.schema_version}, this version reads {SCHEMA}")
        if self.status != "ok":
            return self
        wanted = {"localization"} if self.cell.level in INPUTS else set(self.settings.families)
        missing = wanted - set(self.families) - set(self.not_measured)
        timed = self.cell.entered is None or "speed" not in self.not_measured  # no method ran for entered scores
        if missing or not self.families or (timed and not self.speed) or "test" not in self.kept:
            raise ValueError("an 'ok' record without its measurements")
        families = {*self.families, "speed"} if timed else set(self.families)
        expected = {name for name, m in METRICS.items() if m.family in families and not m.optional}
        if missing := expected - set(self.aggregates):
            raise ValueError(f"an 'ok' record without {', '.join(sorted(missing))}")
        return self

    @property
    def families(self) -> dict[str, Family]:
        """What was measured of the test examples, by the family of its metrics."""
        return {name: value for name, value in self if isinstance(value, Family)}

    @property
    def filename(self) -> str:
        cell = self.cell
        method = "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in cell.method)
        return f"{cell.task}.{cell.level}.{method}.{self.identity[:12]}.json"

    def without_timings(self) -> dict[str, Any]:
        """Everything but times, memory and provenance, to compare two runs of one cell."""
        dropped = {"seconds", "provenance", "speed", "traceback"}
        kept = self.model_dump(mode="json", exclude=dropped)
        kept["aggregates"] = {
            k: v for k, v in kept["aggregates"].items() if k not in ("seconds_per_example", "peak_memory_mib")
        }
        return kept


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


@dataclass
class Folder:
    """Records on disk.

    Attributes:
        path: the folder.
        foreign: by file name, why a JSON file in it is not a record.
    """

    path: Path
    foreign: dict[str, str] = field(default_factory=dict)

    def claim(self, suite: str, **about: Any) -> None:
        """Makes the folder a suite's own; ``about`` is kept beside its name, for the board.

        Raises:
            ConfigurationError: it belongs to another suite, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot make the folder {self.path}: {error.strerror}; choose another --out."
            ) from error
        marker = self.path / MARKER
        owners = {self.about().get("suite")} if marker.exists() else {r.suite for r in self.read()}
        for owner in owners - {suite}:
            raise ConfigurationError(
                f"{self.path} holds the records of suite {owner!r}, not {suite!r}; choose another --out."
            )
        if about or not marker.exists():
            try:
                self._write(marker, json.dumps({"suite": suite, **about}, indent=1) + "\n")
            except OSError as error:
                raise ConfigurationError(
                    f"cannot write into {self.path}: {error.strerror}; choose another --out."
                ) from error

    def about(self) -> dict[str, Any]:
        """What :meth:`claim` kept; empty where there is nothing readable."""
        try:
            found = json.loads((self.path / MARKER).read_text())
        except (ValueError, OSError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, record: Record) -> Path:
        """Stores a record under its name, whole or not at all.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        target = self.path / record.filename
        self._write(target, json.dumps(record.model_dump(mode="json"), indent=None, separators=(",", ":")) + "\n")
        return target

    def _write(self, target: Path, text: str) -> None:
        handle, draft = tempfile.mkstemp(dir=self.path, prefix=".draft-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)
            os.replace(draft, target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def read(self) -> list[Record]:
        """Every record in the folder, by file name; what is not one is noted in ``foreign``.

        Raises:
            ConfigurationError: there is no such folder.
        """
        if not self.path.is_dir():
            raise ConfigurationError(
                f"there is no results folder {self.path}; run a suite with --out {self.path} first."
            )
        records = []
        owner = self.about().get("suite")
        for file in sorted(self.path.glob("*.json")):
            if file.name == MARKER:
                continue
            try:
                record = Record.model_validate_json(file.read_text())
                if owner is None or record.suite == owner:
                    records.append(record)
                else:
                    self.foreign[file.name] = f"a record of suite {record.suite!r}"
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "the file"
                self.foreign[file.name] = f"{where}: {first['msg']}"
            except (ValueError, OSError) as error:
                self.foreign[file.name] = str(error).splitlines()[0]
        return records


def newest(records: Iterable[Record]) -> tuple[list[Record], int]:
    """One record per cell and settings, the last made, and how many older ones were passed over."""
    best: dict[str, Record] = {}
    passed_over = 0
    for record in records:
        key = digest(
            [
                record.suite,
                record.cell.model_dump(exclude={"settings", "entered"}),
                record.cell.entered is not None,  # of two files entered under one name, the later is shown
                record.settings.model_dump(exclude={"batch_size"}),
            ]
        )
        created = record.provenance.created if record.provenance else ""
        held = best.get(key)
        if held is not None:
            passed_over += 1
            if created <= (held.provenance.created if held.provenance else ""):
                continue
        best[key] = record
    return sorted(best.values(), key=lambda r: r.filename), passed_over
