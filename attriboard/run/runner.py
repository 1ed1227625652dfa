"""Cells to records: what is done is skipped, what fails is recorded, and nothing finished is lost."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ..board.agreement import TOP
from ..components import InputLevel, Level, get_level
from ..errors import AttriboardError, ConfigurationError, ModelError, ScoresError, SkipCell
from ..evaluation import (
    ablation,
    capability,
    concepts,
    editing,
    faithfulness,
    ground_truth,
    localization,
    pruning,
    reliability,
    sanity,
    speed,
)
from ..evaluation import (
    bias as preference,
)
from ..evaluation.capability import Capability
from ..evaluation.context import Context
from ..exchange import mib
from ..exchange import precomputed as entered
from ..levels import Replacement, check_replacement
from ..loading import fingerprint, hash_file, load_model
from ..measurements.base import Family
from ..measurements.metrics import METRICS
from ..method import Method, checked, checked_inputs, make_method, methods
from ..model import Cost, EncodedExample, Model
from ..records.record import Aggregate, Cell, Folder, ModelFacts, Provenance, Record, Settings, digest
from ..scores import Scores
from ..stats.intervals import bootstrap_interval
from ..task import tasks


def identity(cell: Cell, settings: Settings) -> str:
    """SHA-256 of everything that determines a cell's result.

    The cell, the settings but for the batch size, the weights, the code of the task, of the method and of the harness,
    and the metric versions.

    Raises:
        AttriboardError: a name in the cell does not exist.
    """
    return digest(
        {
            "cell": cell.model_dump(exclude={"settings", "entered"}),
            "settings": settings.model_dump(exclude={"batch_size"}),
            "weights": fingerprint(cell.model),
            "task": [_source_hash(tasks.get(cell.task)), _data_hash(tasks.get(cell.task), cell.task_options)],
            "method": _method_hashes(cell),
            "harness": _harness_hash(),
            "metrics": {name: metric.version for name, metric in METRICS.items()},
        }
    )


def _method_hashes(cell: Cell) -> list[str]:
    """Of the method's files and those it uses; of entered scores, of their file and of the code that reads it."""
    if cell.entered is not None:
        return [cell.entered.sha256, *(hash_file(Path(str(module.__file__))) for module in (entered, mib))]
    return [_source_hash(methods.get(name)) for name in (cell.method, *methods.get(cell.method).uses)]


@cache
def _harness_hash() -> str:
    folder = Path(__file__).parents[1]
    files = [*sorted(folder.rglob("*.py")), *sorted(capability.FOLDER.glob("*.jsonl"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _source_hash(cls: type) -> str:
    """Of the file of a task or method, and of what it imports from other tasks, methods and the zoo."""
    return digest([hash_file(Path(file)) for file in sorted(_files_behind(sys.modules[cls.__module__]))])


_EXTENSIONS = ("attriboard.tasks", "attriboard.methods", "attriboard.zoo")


def _files_behind(module: ModuleType, seen: set[str] | None = None) -> set[str]:
    seen = set() if seen is None else seen
    if module.__file__ is None or module.__file__ in seen:
        return seen
    seen.add(module.__file__)
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.startswith(_EXTENSIONS) and name in sys.modules:
            _files_behind(sys.modules[name], seen)
    return seen


def _data_hash(cls: type, options: dict[str, Any]) -> str:
    """Of the files in ``data`` beside a task's file, and of files and folders that its options name."""
    file = inspect.getsourcefile(cls)
    places = [Path(file).parent / "data"] if file else []
    places += [path for v in options.values() if isinstance(v, str) and v and (path := Path(v).expanduser()).exists()]
    files = [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("*"))) if f.is_file()]
    return digest([(f.name, hash_file(f)) for f in files if f.suffix != ".pyc"])


@cache
def _commit() -> str | None:
    """The commit of this package's own checkout; None when it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "attriboard", "tasks", "methods")
    commit = git("rev-parse", "HEAD")
    return (commit + ("+changes" if changed else "")) or None


def provenance(device: torch.device) -> Provenance:
    """The versions and the machine behind a record made now."""
    cuda = device.type == "cuda"
    return Provenance(
        attriboard=importlib.metadata.version("attriboard"),
        attriboard_commit=_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if cuda else _processor(),
        threads=torch.get_num_threads(),
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    )


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Workshop:
    """Models and contexts kept between cells: one model, and the contexts of its current task."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[str, Model | AttriboardError] = {}
        self._contexts: dict[str, Context | AttriboardError] = {}
        self._scored: dict[str, _Scored] = {}
        self._capabilities: dict[str, Capability] = {}

    def model(self, name: str) -> Model:
        if name not in self._models:
            self._models.clear()
            self._contexts.clear()
            s = self.settings
            self._models[name] = _or_error(lambda: load_model(name, s.device, s.dtype, s.batch_size))
        return _value(self._models[name])

    def context(self, cell: Cell) -> Context:
        model = self.model(cell.model)
        key = digest([cell.model, cell.task, cell.task_options, cell.seed, cell.settings])
        if key not in self._contexts:
            self._contexts.clear()
            self._scored.clear()
            s = self.settings.of(cell)
            self._contexts[key] = _or_error(
                lambda: Context(
                    model,
                    tasks.make(cell.task, cell.task_options),
                    cell.seed,
                    s.train_examples,
                    s.test_examples,
                    s.max_kept,
                    s.min_kept,
                    s.max_train,
                )
            )
        return _value(self._contexts[key])

    def execute(self, suite: str, cell: Cell) -> Record:
        """The record of a cell; whatever goes wrong in it becomes a failed record."""
        base: dict[str, Any] = {
            "suite": suite,
            "identity": identity(cell, self.settings.of(cell)),
            "cell": cell,
            "settings": self.settings.of(cell),
        }
        try:
            return Record(**base, **self._run(cell))
        except SkipCell as error:
            return Record(**base, status="skipped", reason=str(error), provenance=provenance(torch.device("cpu")))
        except Exception as error:
            reason = str(error) if isinstance(error, AttriboardError) else f"{type(error).__name__}: {error}"
            return Record(
                **base,
                status="failed",
                reason=reason,
                traceback="" if isinstance(error, AttriboardError) else traceback.format_exc(limit=-4),
                provenance=provenance(torch.device("cpu")),
            )

    def _run(self, cell: Cell) -> dict[str, Any]:
        s = self.settings.of(cell)
        context = self.context(cell)
        model, task, level = context.model, context.task, get_level(cell.level)
        check_replacement(cell.replacement, level.name)
        method = None if cell.entered else make_method(cell.method, cell.method_options, cell.seed)
        if method is not None:
            method.check_level(level)
            method.check_examples(_scored_split(context, level))
        # cells that differ in the replacement of the evaluation alone have the same scores
        key = digest([cell.method, cell.method_options, cell.level, cell.entered and cell.entered.sha256])
        if key not in self._scored:
            if method is None:
                self._scored[key] = _from_file(cell, context, level)
            else:
                self._scored[key] = self._score(method, context, level, s)
        scored = self._scored[key]
        scores = scored.scores
        clock = _Clock(dict(scored.laps))
        families: dict[str, Family] = {}
        not_measured = dict(scored.not_measured)
        if isinstance(scores, Scores):
            for name in s.families:
                try:
                    families[name] = self._family(name, context, method, scores, level, cell)
                except SkipCell as error:
                    not_measured[name] = str(error)
                clock.lap(name)
            if not families:
                raise SkipCell(" ".join(not_measured.values()))
            if scored.concepts is not None:
                families["concepts"] = scored.concepts
            values = [scores.values]
        else:
            found = localization.evaluate(context, scores, cast(InputLevel, level), cell.replacement, s.rings)
            families["localization"] = found
            clock.lap("localization")
            if "sanity" in s.families and method is not None:  # scores from files are of components
                try:
                    families["sanity"] = sanity.evaluate(context, method, scores, level, s.sanity_stages)
                except SkipCell as error:
                    not_measured["sanity"] = str(error)
                clock.lap("sanity")
            if model.truth is not None:
                try:
                    families["ground_truth"] = ground_truth.evaluate(context, scores, level)
                except SkipCell as error:
                    not_measured["ground_truth"] = str(error)
            values = scores
        for family in families.values():
            not_measured |= family.gaps()
        return {
            "status": "ok",
            "task_version": task.version,
            "model": ModelFacts(
                source=model.source,
                weights_sha256=model.weights_sha256,
                n_layers=model.n_layers,
                n_heads=model.n_heads,
                n_components=max(v.numel() for v in values),
            ),
            "data_sha256": context.data_sha256,
            "kept": context.kept,
            "chance": task.chance,
            "items": [e.example.item for e in context.test],
            "subsets": [e.example.subset for e in context.test],
            "control": method is not None and method.control,
            "top": scores.top(TOP) if isinstance(scores, Scores) else [],
            "sketch": scores.sketch() if isinstance(scores, Scores) else [],
            "scores_sha256": hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest(),
            "scores_metadata": _brief(scores.metadata) if isinstance(scores, Scores) else {},
            **families,
            "speed": scored.speed,
            "not_measured": not_measured,
            "aggregates": aggregates(families.values(), scored.speed, [e.example.item for e in context.test]),
            "seconds": clock.laps,
            "provenance": provenance(model.device),
        }

    def _family(
        self, name: str, context: Context, method: Method | None, scores: Scores, level: Level, cell: Cell
    ) -> Family:
        """One of the families that the settings can ask for.

        Raises:
            SkipCell: it cannot be measured of these components or on this task.
        """
        s, model = self.settings.of(cell), context.model
        replacement = cast(Replacement, cell.replacement)
        if name == "faithfulness":
            return faithfulness.evaluate(context, scores, level, replacement)
        if name == "ablation":
            return ablation.evaluate(context, scores, level, replacement, s.ablation_draws)
        if name in ("reliability", "sanity"):
            if method is None:
                raise SkipCell("the scores were entered from a file, and no method is run.")
            if name == "reliability":
                return reliability.evaluate(context, method, scores, level, s.reliability_halvings)
            return sanity.evaluate(context, method, scores, level, s.sanity_stages)
        if name == "ground_truth":
            return ground_truth.evaluate(context, scores, level)
        if name == "preference":
            documents = capability.own_prose(s.capability_limit)
            likelihoods = capability.document_log_likelihoods
            sizes, factor = s.preference_sizes, s.suppress_factor
            return preference.evaluate(context, scores, level, documents, likelihoods, sizes, factor)
        able = functools.partial(capability.measure, tasks=s.capability, limit=s.capability_limit)
        before = self._capability(model, s)
        if name == "pruning":
            return pruning.evaluate(
                context,
                scores,
                level,
                s.pruning_allocation,
                s.pruning_sparsities,
                s.pruning_slice,
                speed_repeats=s.speed_repeats,
                capability=able,
                capability_before=before,
                recovery_steps=s.recovery_steps,
                seed=cell.seed,
            )
        neutral = capability.neutral_prompts(s.capability_limit)
        return editing.evaluate(
            context,
            scores,
            level,
            neutral,
            s.edit_sizes,
            suppress_factor=s.suppress_factor,
            boost_factor=s.boost_factor,
            capability=able,
            capability_before=before,
        )

    def _capability(self, model: Model, s: Settings) -> Capability:
        """Of the untouched model, measured once: it does not depend on the cell."""
        key = digest([model.name, s.capability, s.capability_limit])
        if key not in self._capabilities:
            self._capabilities[key] = capability.measure(model, s.capability, s.capability_limit)
        return self._capabilities[key]

    def _score(self, method: Method, context: Context, level: Level, s: Settings) -> _Scored:
        """Scores and what they cost: one set from the train split, or of inputs one for each test example."""
        model, examples = context.model, _scored_split(context, level)

        def score(chosen: Sequence[EncodedExample]) -> Scores | list[Tensor]:
            if level.inputs:
                return checked_inputs(method.each(model, chosen, level), method)
            found = checked(method.attribute(model, chosen, level), method, model, level)
            # scores are kept from cell to cell; those of single examples only where they are used
            return found if "reliability" in s.families else replace(found, each=None)

        model.cost = Cost()
        clock = _Clock()
        with speed.PeakMemory(model.device) as memory:
            scores = score(examples)
        seconds = clock.lap("attribute")
        n = len(examples)
        some = examples[: s.speed_examples]
        if seconds > 10 * s.speed_max_seconds or not _can_score(method, some):
            # too slow to repeat, or made for more examples than these: this run is the measurement
            fast = speed.once(n, seconds, model.cost.total / n, memory.mib)
        else:
            fast = speed.measure(score, model, some, s.speed_repeats, s.speed_max_seconds, memory.mib)
        clock.lap("speed")
        if not concepts.applies(context.test, level):
            return _Scored(scores, fast, clock.laps)
        try:
            properties = concepts.evaluate(context, method, level, s.ablation_draws)
        except SkipCell as error:
            return _Scored(scores, fast, clock.laps, not_measured={"concepts": str(error)})
        clock.lap("concepts")
        return _Scored(scores, fast, clock.laps, properties)


def _from_file(cell: Cell, context: Context, level: Level) -> _Scored:
    """Entered scores, for which no method is run.

    Raises:
        ScoresError: the file has changed since the run began, or does not fit the model.
    """
    assert cell.entered is not None
    clock = _Clock()
    file = entered.read(Path(cell.entered.file))
    if file.sha256 != cell.entered.sha256:
        raise ScoresError(f"{file.path} has changed since the run began; run the same command again.")
    scores = file.fitting(context.model)
    clock.lap("read")
    gaps = {"speed": "the scores were entered from a file, so what they cost is not known."}
    if concepts.applies(context.test, level):
        gaps["concepts"] = "the scores were entered from a file, and there are none of single examples."
    return _Scored(scores, None, clock.laps, not_measured=gaps)


def _can_score(method: Method, examples: Sequence[EncodedExample]) -> bool:
    """Whether these are examples enough: some methods compare subsets or answers."""
    try:
        method.check_examples(examples)
    except SkipCell:
        return False
    return True


def _scored_split(context: Context, level: Level) -> list[EncodedExample]:
    """Components are scored on the train split; scores of inputs belong to the test examples they are judged on."""
    return context.test if level.inputs else context.train


def aggregates(families: Iterable[Family], fast: speed.Speed | None, items: Sequence[str] = ()) -> dict[str, Aggregate]:
    """Every metric with its interval, from the families' measurements and the examples' base items alone."""
    found: dict[str, Aggregate] = {}
    for family in families:
        for name, statistic in family.statistics().items():
            low, high = bootstrap_interval(family.n, statistic, items=family.clusters(items)) or (None, None)
            value = float(statistic(np.arange(family.n)))
            found[name] = Aggregate(value=value, low=low, high=high, version=METRICS[name].version)
        for name, (value, low, high) in family.scalars().items():
            found[name] = Aggregate(value=value, low=low, high=high, version=METRICS[name].version)
    if fast is None:
        return found
    per_example = [s / fast.examples for s in fast.seconds]
    several = len(per_example) > 1
    found["seconds_per_example"] = Aggregate(
        value=float(np.median(per_example)),
        low=min(per_example) if several else None,
        high=max(per_example) if several else None,
        version=METRICS["seconds_per_example"].version,
    )
    for name, value in (("forward_equivalents", fast.forward_equivalents), ("peak_memory_mib", fast.peak_memory_mib)):
        found[name] = Aggregate(value=value, version=METRICS[name].version)
    return found


def _brief(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without its long lists, which belong to the score file."""
    return {k: v for k, v in metadata.items() if not (isinstance(v, list) and len(v) > 20)}


class _Clock:
    def __init__(self, laps: dict[str, float] | None = None) -> None:
        self.laps: dict[str, float] = laps or {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
        return self.laps[name]


@dataclass(frozen=True)
class _Scored:
    """Scores (of inputs: one tensor per test example), what they cost (if known), and the seconds both took.

    The properties of concepts' neurons are here too, since no replacement plays a part in them.
    """

    scores: Scores | list[Tensor]
    speed: speed.Speed | None
    laps: dict[str, float]
    concepts: concepts.Concepts | None = None
    not_measured: dict[str, str] = field(default_factory=dict)


def _or_error(make: Callable[[], Any]) -> Any:
    """The value, or the error itself, so that cells that share it fail alike and it is not tried again."""
    try:
        return make()
    except AttriboardError as error:
        return error
    except Exception as error:
        return ModelError(f"{type(error).__name__}: {error}")


def _value(found: Any) -> Any:
    if isinstance(found, AttriboardError):
        raise found
    return found


@dataclass
class Outcome:
    """What became of a run: records made now, cells done before, and the cells that failed."""

    made: list[Record] = field(default_factory=list)
    done_before: int = 0

    @property
    def failed(self) -> list[Record]:
        return [r for r in self.made if r.status == "failed"]


def pending(folder: Folder, cells: Sequence[Cell], settings: Settings, force: bool) -> list[Cell]:
    """The cells without a finished record in the folder."""
    if force:
        return list(cells)
    finished = {r.identity for r in folder.read() if r.status != "failed"}
    return [cell for cell in cells if identity(cell, settings.of(cell)) not in finished]


def run_cells(
    suite: str,
    cells: Sequence[Cell],
    settings: Settings,
    folder: Folder,
    force: bool = False,
    executor: str = "local",
    planned: Callable[[int], None] = lambda n: None,
    started: Callable[[Cell], None] = lambda cell: None,
    finished: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Runs what is not done and stores each record as soon as it exists.

    Args:
        executor: "local" (this process) or "ray" (cells become Ray tasks).
        planned: called once with the number of cells to run; started, finished: called around each.

    Raises:
        ConfigurationError: the folder belongs to another suite, or a record cannot be written.
    """
    folder.claim(suite)
    todo = pending(folder, cells, settings, force)
    planned(len(todo))
    outcome = Outcome(done_before=len(cells) - len(todo))
    stream = {"local": _local, "ray": _ray}[executor](suite, todo, settings, started)
    for record in stream:
        try:
            folder.write(record)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {folder.path / record.filename}: {error.strerror}; {len(outcome.made)} records made "
                f"before it are safe. Make room and run the same command again: it goes on from there."
            ) from error
        outcome.made.append(record)
        finished(record)
    return outcome


def _local(suite: str, cells: Sequence[Cell], settings: Settings, started: Callable[[Cell], None]) -> Iterator[Record]:
    workshop = Workshop(settings)
    for cell in cells:
        started(cell)
        yield workshop.execute(suite, cell)


def _ray(suite: str, cells: Sequence[Cell], settings: Settings, started: Callable[[Cell], None]) -> Iterator[Record]:
    """Cells as Ray tasks; every worker process keeps its model and context from one cell to the next."""
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("--executor ray needs Ray; type: pip install 'attriboard[ray]'") from error
    if not ray.is_initialized():
        ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    gpus = 1 if settings.device.startswith("cuda") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_ray_cell)
    included = [str(path) for path in {*tasks.included, *methods.included}]
    waiting = {}
    for cell in cells:
        started(cell)
        task = remote.remote(suite, cell.model_dump(), settings.model_dump(), torch.get_num_threads(), included)
        waiting[task] = cell
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        cell = waiting.pop(ready)
        try:
            yield Record.model_validate_json(ray.get(ready))
        except (ray.exceptions.RayError, ValidationError) as error:
            yield Record(
                suite=suite,
                identity=identity(cell, settings.of(cell)),
                cell=cell,
                settings=settings.of(cell),
                status="failed",
                reason=f"its Ray worker gave no record: {str(error).strip().splitlines()[-1]}",
                provenance=provenance(torch.device("cpu")),
            )


_WORKSHOPS: dict[str, Workshop] = {}
"""In a Ray worker: the workshop of the settings it last ran with."""


def _ray_cell(suite: str, cell: dict[str, Any], settings: dict[str, Any], threads: int, included: list[str]) -> str:
    torch.set_num_threads(threads)
    for path in included:
        tasks.include(Path(path))
        methods.include(Path(path))
    key = digest(settings)
    if key not in _WORKSHOPS:
        _WORKSHOPS.clear()
        _WORKSHOPS[key] = Workshop(Settings.model_validate(settings))
    record = _WORKSHOPS[key].execute(suite, Cell.model_validate(cell))
    return json.dumps(record.model_dump(mode="json"))  # as records are stored: numbers that are none stay what they are
