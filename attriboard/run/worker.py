"""Runs cells: draws examples, scores them unless their scores are stored, and measures what is asked for."""

from __future__ import annotations

import functools
import gc
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch

from ..circuits import as_taken
from ..components import Level, get_level
from ..errors import AttriboardError, ModelError, SkipCell
from ..evaluation import capability
from ..evaluation.base import CapabilityMeter, Evaluation, Job, evaluations
from ..evaluation.context import Context
from ..evaluation.crossfit import Trial, seed_of
from ..evaluation.crossfit import trials as cross_fitted
from ..evaluation.sets import Question, SetEvaluation, measure_together
from ..levels import Replacement, check_replacement
from ..loading import load_model
from ..measurements.base import Measurement
from ..measurements.capability import Capability
from ..measurements.registry import MEASUREMENTS, METRICS
from ..measurements.speed import Speed
from ..method import Method, make_method
from ..model import Model
from ..records.aggregate import aggregates
from ..records.record import Aggregate, Cell, ModelFacts, Planned, Provenance, Record, Stage, digest
from ..records.settings import AUTO, Settings
from ..scores import Scores
from ..stats.intervals import VERSION
from ..task import tasks
from ..zoo import planted
from .batch_size import MOST, ON_CPU, SET_ROWS, fitting, out_of_memory
from .identity import context_identity, record_identity, scoring_identity, stage_identity, wanted_stages
from .provenance import provenance
from .scoring import Scored, from_file, score, scored_split, unpacked

PRECOMPUTED = "the scores are precomputed: no method is run."


class Earlier(NamedTuple):
    """What a folder holds already.

    Attributes:
        record: of the same identity, which may lack evaluations; None without one.
        source: a record whose scores are those of the cell, perhaps judged by another replacement; None without one.
        content: the file of ``source``'s scores.
        again: whether what is asked for is to be done again all the same.
    """

    record: Record | None = None
    source: Record | None = None
    content: bytes | None = None
    again: bool = False


NOTHING = Earlier()


class Worker:
    """Models, contexts and scores kept between cells: one model, the examples of one task, the scores of one method.

    Args:
        workers: how many processes run cells on this computer at the same time.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._models: dict[str, Model | AttriboardError] = {}
        self._contexts: dict[str, Context | AttriboardError] = {}
        self._scored: dict[str, tuple[Scored, dict[str, Stage]]] = {}
        self._capabilities: dict[str, Capability] = {}

    def execute(self, suite: str, planned: Planned, earlier: Earlier = NOTHING) -> tuple[Record, bytes | None]:
        """The record of a cell and the file of its scores; whatever goes wrong in it becomes a failed record.

        What an earlier record holds stays, also where what is new fails.
        """
        cell, settings = planned
        base = {
            "suite": suite,
            "identity": record_identity(cell, settings),
            "cell": cell,
            "settings": settings.only((*settings.measured(cell.level), "speed")),
        }
        while True:
            try:
                return _Run(self, planned, earlier).record(base)
            except Exception as error:
                if not self.can_halve(error, settings):
                    outcome = _outcome(error, provenance(torch.device("cpu"), self.workers))
                    if outcome["status"] == "skipped":
                        outcome["stages"] = {name: _stage(wanted) for name, wanted in wanted_stages(planned).items()}
                    elif earlier.record is not None and earlier.record.measurements:
                        return earlier.record.model_copy(update=outcome), None
                    return Record(**base, **outcome), None
            self._halve()  # the error, which holds on to what fills the memory, is gone by now

    def can_halve(self, error: Exception, settings: Settings) -> bool:
        """Whether a cell that failed in this way is to be run again with half as many rows at once."""
        return (
            settings.batch_size == AUTO
            and out_of_memory(error)
            and any(isinstance(model, Model) and model.batch_size > 1 for model in self._models.values())
        )

    def _halve(self) -> None:
        """Halves the rows that go through the model at once, until the next task, and drops what is kept for speed."""
        for model in self._models.values():
            if isinstance(model, Model):
                model.batch_size, model.set_rows = model.batch_size // 2, max(1, model.set_rows // 2)
        for context in self._contexts.values():
            if isinstance(context, Context):
                context.forget()
        gc.collect()
        torch.cuda.empty_cache()

    def provenance(self, model: Model) -> Provenance:
        """What is behind a record made now."""
        return provenance(model.device, self.workers, model.batch_size)

    def model(self, name: str, settings: Settings) -> Model:
        key = digest([name, *settings.numerics(), settings.batch_size])
        size = settings.batch_size if isinstance(settings.batch_size, int) else ON_CPU
        if key not in self._models:
            self._models.clear()
            self._contexts.clear()
            self._scored.clear()
            load = functools.partial(load_model, name, settings.device, settings.dtype, size, settings.allow_tf32)
            self._models[key] = _or_error(load)
        return _value(self._models[key])

    def context(self, cell: Cell, settings: Settings) -> Context:
        model = self.model(cell.model, settings)
        key = context_identity(cell, settings)
        if key not in self._contexts:
            self._contexts.clear()
            self._scored.clear()
            self._contexts[key] = _or_error(
                lambda: Context(
                    model,
                    tasks.make(cell.task, cell.task_options),
                    cell.seed,
                    settings.train_examples,
                    settings.test_examples,
                    settings.max_kept,
                    settings.min_kept,
                    settings.max_train,
                    settings.keep,
                ),
                passing=lambda error: self.can_halve(error, settings),
            )
            context = self._contexts[key]
            if settings.batch_size == AUTO and isinstance(context, Context):
                model.batch_size = fitting(model, max(len(e.tokens) for e in context.both), self.workers)
                if model.device.type == "cuda":
                    model.set_rows = min(MOST, SET_ROWS * model.batch_size)
        return _value(self._contexts[key])

    def scored(
        self, identity: str, make: Callable[[], tuple[Scored, dict[str, Stage]]]
    ) -> tuple[Scored, dict[str, Stage]]:
        """The scores of this identity: the last ones, or what ``make`` gives."""
        if identity not in self._scored:
            self._scored.clear()
            self._scored[identity] = make()
        return self._scored[identity]

    def meter(self, model: Model, settings: Settings) -> CapabilityMeter:
        """Measures general ability; that of the untouched model once, since it does not depend on the cell."""
        options = settings.capability

        def before() -> Capability:
            key = digest([model.name, options.model_dump()])
            if key not in self._capabilities:
                self._capabilities[key] = capability.measure(model, options.tasks, options.limit)
            return self._capabilities[key]

        measure = functools.partial(capability.measure, tasks=options.tasks, limit=options.limit)
        return CapabilityMeter(measure, before, options.limit)


@dataclass
class _Measured:
    """What is known of a cell: by evaluation, what was measured, why it was not, what failed, what was done when."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)


@dataclass
class _Run:
    """One cell on a worker."""

    worker: Worker
    planned: Planned
    earlier: Earlier

    @functools.cached_property
    def wanted(self) -> dict[str, str]:
        """By evaluation that is asked for, its identity."""
        return wanted_stages(self.planned)

    def record(self, base: dict[str, Any]) -> tuple[Record, bytes]:
        """The record of the cell, and the file of its scores; ``base`` has the fields that are known before."""
        cell, settings = self.planned
        context = self.worker.context(cell, settings)
        level = get_level(cell.level)
        check_replacement(cell.replacement, level.name)
        method = None
        if cell.precomputed is None:
            # what is drawn at random is another draw for every task, model and level
            seed = seed_of(cell.task_label, cell.model, cell.level, cell.seed) % 2**31
            method = make_method(cell.method, cell.method_options, seed)
            method.check_level(level)
            method.check_examples(scored_split(context, level))
        identity = scoring_identity(cell, settings)
        # the same scores, but for cells that ask for other repeats
        key = digest([identity, self.wanted["speed"]])
        scored, done = self.worker.scored(key, lambda: self._scores(identity, method, context, level))
        scores = scored.stored(identity)
        known = self._kept(scores.values_sha256)
        known.stages |= done
        if scored.speed is None:
            known.reasons["speed"] = PRECOMPUTED
            known.stages["speed"] = _stage(self.wanted["speed"])
        else:
            known.measurements["speed"] = scored.speed
        now = self.worker.provenance(context.model)
        self._measure(known, context, level, method, scored, now)
        derived, gaps = _derived(known, _items(context), _frames(context))
        if not known.failures and not set(known.measurements) - {"speed"}:
            raise SkipCell(" ".join(why for name, why in known.reasons.items() if name != "speed"))
        outcome: dict[str, Any] = {"status": "ok", "provenance": now}
        if known.failures:
            outcome = _outcome(next(iter(known.failures.values())), now)
            outcome["reason"] = "; ".join(f"{name}: {_reason(error)}" for name, error in known.failures.items())
        facts = {**base, **self._facts(context, method, scored), **self._fields(known, derived, gaps), **outcome}
        return Record(**facts, scores=scores), scored.content

    def _measure(
        self,
        known: _Measured,
        context: Context,
        level: Level,
        method: Method | None,
        scored: Scored,
        now: Provenance,
    ) -> None:
        """Makes every measurement that is asked for and not known yet."""
        cell, settings = self.planned
        trials: tuple[Trial, ...] = ()
        if isinstance(scored.scores, Scores):
            trials = cross_fitted(
                context,
                scored.scores.values,
                scored.found,
                settings.folds,
                settings.repetitions,
                # without the method: equal scores are measured alike, wherever they come from
                (cell.task_label, cell.model, cell.level, cell.seed),
                functools.partial(as_taken, context.model.graph) if _greedy(method, level) else None,
            )
        together: dict[str, tuple[SetEvaluation, Any]] = {}
        for name in self.wanted:
            if name in known.stages:
                continue
            start = time.perf_counter()
            evaluation = evaluations.make(name)
            if not evaluation.applies(context, level):
                known.stages[name] = _stage(self.wanted[name], 0.0, now)
                continue
            if isinstance(evaluation, SetEvaluation):
                together[name] = evaluation, settings.of(name)
                continue
            job = Job(
                context=context,
                level=level,
                scores=scored.scores,
                options=settings.of(name),
                replacement=cell.replacement,
                method=method,
                seed=cell.seed,
                trials=trials,
                capability=self.worker.meter(context.model, settings),
                speed_repeats=_timing(settings).repeats,
            )
            outcome = _tried(evaluation, job)
            self._note(known, name, outcome, time.perf_counter() - start, now)
        question = Question(context, level, trials, cast(Replacement, cell.replacement))
        for name, (outcome, seconds) in measure_together(question, together).items():
            self._note(known, name, outcome, seconds, now)

    def _note(
        self, known: _Measured, name: str, outcome: Measurement | Exception, seconds: float, now: Provenance
    ) -> None:
        """Takes in what an evaluation measured, or why it did not."""
        if isinstance(outcome, Measurement):
            known.measurements[name] = outcome
        elif isinstance(outcome, SkipCell):
            known.reasons[name] = str(outcome)
        elif self.worker.can_halve(outcome, self.planned.settings):
            raise outcome
        else:
            known.failures[name] = outcome
            return
        known.stages[name] = _stage(self.wanted[name], seconds, now)

    def _facts(self, context: Context, method: Method | None, scored: Scored) -> dict[str, Any]:
        """What a record says of the model, the examples and the method."""
        model = context.model
        return {
            "task_version": context.task.version,
            "model": ModelFacts(
                source=model.source,
                recipe=planted.recipe(self.planned.cell.model),
                weights_sha256=model.weights_sha256,
                n_layers=model.n_layers,
                n_heads=model.n_heads,
                n_components=max(v.numel() for v in scored.values),
            ),
            "data_sha256": context.data_sha256,
            "kept": context.kept,
            "chance": context.task.chance,
            "items": _items(context),
            "frames": _frames(context),
            "n_eff": context.n_eff,
            "subsets": [e.example.subset for e in context.test],
            "control": method is not None and method.control,
            "control_kind": method.control_kind if method is not None and method.control else "",
            "sees": None if method is None else method.seen(context.both),
        }

    def _fields(self, known: _Measured, derived: Mapping[str, Aggregate], gaps: Mapping[str, str]) -> dict[str, Any]:
        """The fields of a record that follow from what was measured, in the order of measurements."""
        settings, before = self.planned.settings, self.earlier.record
        asked = {**known.measurements, **known.reasons, **known.failures}
        names = tuple(name for name in MEASUREMENTS if name in asked)
        ordered = {name: known.measurements[name] for name in MEASUREMENTS if name in known.measurements}
        if before is not None:  # what stays keeps the options it was measured with
            unasked = {name: before.settings.of(name) for name in names if name not in self.wanted}
            settings = settings.model_copy(update={"options": {**settings.options, **unasked}})
        return {
            "settings": settings.only(names),
            "measurements": ordered,
            "not_measured": {**known.reasons, **gaps},
            "stages": known.stages,
            "aggregates": {name: derived[name] for name in METRICS if name in derived},
            "statistics_version": VERSION,
        }

    def _kept(self, values_sha256: str) -> _Measured:
        """What an earlier record measured of the same scores in the way that is wanted now."""
        record = self.earlier.record
        if record is None or record.scores is None or record.scores.values_sha256 != values_sha256:
            return _Measured()
        before = record.settings
        # what is not asked for now stays, if it would come out the same
        current = {name: stage_identity(name, before) for name in before.evaluations if name not in self.wanted}
        if before.capability != self.planned.settings.capability:
            current = {name: same for name, same in current.items() if not MEASUREMENTS[name].uses_capability}
        if before.repetitions != self.planned.settings.repetitions:
            current = {name: same for name, same in current.items() if not MEASUREMENTS[name].cross_fitted}
        same = current if self.earlier.again else {**self.wanted, **current}
        names = [
            name
            for name, identity in same.items()
            if name != "speed" and name in record.stages and record.stages[name].identity == identity
        ]
        return _Measured(
            measurements={name: record.measurements[name] for name in names if name in record.measurements},
            reasons={name: record.not_measured[name] for name in names if name in record.not_measured},
            stages={name: record.stages[name] for name in names},
        )

    def _scores(
        self, identity: str, method: Method | None, context: Context, level: Level
    ) -> tuple[Scored, dict[str, Stage]]:
        """The stored scores of this identity, else new ones; with what was done when."""
        cell, settings = self.planned
        wanted = self.wanted["speed"]
        source, content = self.earlier.source, self.earlier.content
        if source is not None and content is not None and source.scores is not None:
            timed = source.measured(Speed)
            if method is None or (timed is not None and source.stages["speed"].identity == wanted):
                scores, found = unpacked(content, context, level)
                done = {name: stage for name, stage in source.stages.items() if name in ("scores", "speed")}
                return Scored(scores, timed, {}, content, found, source.scores.noise), done
        now = self.worker.provenance(context.model)
        if method is None:
            scored = from_file(cell, context, level)
        else:
            scored = score(method, context, level, _timing(settings), settings.folds)
        stages = {"scores": _stage(identity, scored.seconds["scores"], now)}
        if scored.speed is not None:
            stages["speed"] = _stage(wanted, scored.seconds["speed"], now)
        return scored, stages


def _greedy(method: Method | None, level: Level) -> bool:
    """Whether circuits are taken from the logits back."""
    return level.edges and method is not None and method.circuits == "greedy"


def _tried(evaluation: Evaluation, job: Job) -> Measurement | Exception:
    """What an evaluation measures, or what it raises."""
    try:
        if MEASUREMENTS[evaluation.name].needs_method and job.method is None:
            raise SkipCell(PRECOMPUTED)
        return evaluation.measure(job)
    except Exception as error:
        return error


def _derived(
    known: _Measured, items: Sequence[str], frames: Sequence[str]
) -> tuple[dict[str, Aggregate], dict[str, str]]:
    """The aggregates of every measurement, and what it lacks and why; one that gives none has failed, and no other."""
    derived: dict[str, Aggregate] = {}
    gaps: dict[str, str] = {}
    for name, measurement in list(known.measurements.items()):
        try:
            own, lacking = aggregates([measurement], items, frames), measurement.gaps()
        except Exception as error:
            known.failures[name] = error
            del known.measurements[name]
            known.stages.pop(name, None)
        else:
            derived |= own
            gaps |= lacking
    return derived, gaps


def _items(context: Context) -> list[str]:
    return [e.example.item for e in context.test]


def _frames(context: Context) -> list[str]:
    return [e.example.frame for e in context.test]


def _timing(settings: Settings) -> Speed.Options:
    options = settings.of("speed")
    assert isinstance(options, Speed.Options)
    return options


def _stage(identity: str, seconds: float = 0.0, now: Provenance | None = None) -> Stage:
    if now is None:
        return Stage(identity=identity, seconds=seconds)
    return Stage(
        identity=identity,
        seconds=seconds,
        created=now.created,
        attriboard_commit=now.attriboard_commit,
        device=now.device,
        workers=now.workers,
    )


def _outcome(error: Exception, now: Provenance) -> dict[str, Any]:
    """The fields of a record that say why a cell was skipped or failed."""
    if isinstance(error, SkipCell):
        return {"status": "skipped", "reason": str(error), "provenance": now}
    lines = "" if isinstance(error, AttriboardError) else "".join(traceback.format_exception(error)[-4:])
    return {"status": "failed", "reason": _reason(error), "traceback": lines, "provenance": now}


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, AttriboardError) else f"{type(error).__name__}: {error}"


def _or_error(make: Callable[[], Any], passing: Callable[[Exception], bool] = lambda error: False) -> Any:
    """The value, or the error itself, so that cells that share it fail alike and it is not tried again.

    Args:
        passing: which errors are raised all the same.
    """
    try:
        return make()
    except AttriboardError as error:
        return error
    except Exception as error:
        if passing(error):
            raise
        return ModelError(f"{type(error).__name__}: {error}")


def _value(value: Any) -> Any:
    if isinstance(value, AttriboardError):
        raise value
    return value
