"""Suites: a TOML file that says which methods run on which tasks, models and levels, and how."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..components import get_level
from ..errors import MAX_SEED, ConfigurationError, ScoresError, UnknownNameError, check_range
from ..evaluation.base import evaluations
from ..exchange.precomputed import ScoreFile, shape_of
from ..files import is_file, kind_of, read_text, told
from ..levels import LEVELS, USUAL_REPLACEMENT, InputReplacement, check_replacement
from ..loading import check_model_name
from ..measurements.registry import MEASUREMENTS
from ..method import methods
from ..records.record import Cell, Planned, Precomputed
from ..records.settings import HARDWARE, MAX_COUNT, MAX_EXAMPLES, Settings
from ..shipped import shipped
from ..task import Task, tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


SUITE_BYTES = 2**24
"""The largest suite file read."""
MAX_CELLS = 1_000_000
"""The most cells that a suite asks for."""


class Spec(BaseModel):
    """A task or method with options: ``"name"``, or ``{name = "...", option = value}``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Group(BaseModel):
    """Every listed method on every listed task at every listed level.

    Attributes:
        tasks, methods: by name, or as tables of a name and options.
        levels: what is scored.
        replacements: by what components are replaced when they are judged, one after the other.
        models, seeds: the suite's if empty.
        variant: tells its cells apart from those of another group that are measured with other options.
        settings: what differs from the suite's settings.
    """

    model_config = ConfigDict(extra="forbid")

    tasks: list[Spec] = Field(min_length=1)
    methods: list[Spec] = Field(min_length=1)
    levels: list[str] = Field(min_length=1)
    replacements: tuple[InputReplacement, ...] = (USUAL_REPLACEMENT,)
    models: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    variant: str = Field("", max_length=60)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tasks", "methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


class Suite(BaseModel):
    """A suite file.

    Attributes:
        name: also the name of its results folder.
        description: what it is for.
        expected: how long it takes, and on what.
        smoke: whether it only shows that everything runs: no verdict follows from so few examples, as its board says.
        models: whatever ``--model`` takes: short names, Hugging Face ids, folders.
        seeds: of examples and random choices.
        settings: how cells are run.
        groups: what is run.
        not_run: what was left out on purpose and why; printed below the board.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    expected: str = ""
    smoke: bool = False
    models: list[str] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    settings: Settings = Field(default_factory=Settings)
    groups: list[Group] = Field(min_length=1)
    not_run: list[str] = Field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Suite:
        """Reads a suite file.

        Raises:
            ConfigurationError: no such file, not TOML, a wrong key or a wrong type; names file, key and expectation.
        """
        path = find_suite(path)
        evaluations.names()  # those of other packages have settings of their own
        text = read_text(path, most=SUITE_BYTES)
        try:
            suite = cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {_complaint(key, first)}") from error
        except RecursionError as error:
            raise ConfigurationError(f"{path} is not valid TOML: it is nested too deeply.") from error
        except (ValueError, OverflowError) as error:  # TOML that is none, numbers with thousands of digits
            raise ConfigurationError(f"{path} is not valid TOML: {told(error)}.") from error
        suite.check()
        return suite

    def check(self) -> None:
        """Checks every name and option the suite uses, running nothing.

        Raises:
            UnknownNameError, ConfigurationError: the first that is wrong.
        """
        for model in [*self.models, *(name for group in self.groups for name in group.models)]:
            check_model_name(model)
        self._check_size()
        for group in self.groups:
            self._check_settings(group)
            for level in group.levels:
                get_level(level)
                for replacement in group.replacements:
                    check_replacement(replacement, level)
            settings = self.settings.changed(group.settings)
            for level in group.levels:
                self._check_level(settings, level)
            for spec in group.tasks:
                check_options(f"task {spec.name!r}", spec.options)
                task = tasks.make(spec.name, spec.options)
                for level in group.levels:
                    if level not in task.levels:
                        raise ConfigurationError(
                            f"suite {self.name!r} asks for {level} on task {spec.name}, which has "
                            f"{', '.join(task.levels)}."
                        )
                    for model in group.models or self.models:
                        self._check_evaluations(settings, task, level, model)
            for spec in group.methods:
                check_options(f"method {spec.name!r}", spec.options)
                method = methods.make(spec.name, spec.options)
                for level in group.levels:
                    if level not in method.levels:
                        raise ConfigurationError(
                            f"suite {self.name!r} asks {spec.name} for level {level!r}, but it scores "
                            f"{', '.join(method.levels)}; move it to a group without {level!r}."
                        )

    def _check_size(self) -> None:
        """Refuses more cells than any folder can hold, and seeds that no generator takes."""
        cells = sum(
            len(g.tasks) * len(g.methods) * len(g.levels) * len(g.replacements) * len(g.models or self.models)
            * len(g.seeds or self.seeds)
            for g in self.groups
        )  # fmt: skip
        if cells > MAX_CELLS:
            raise ConfigurationError(f"suite {self.name!r} asks for {cells:,} cells; at most {MAX_CELLS:,} are run.")
        for seed in [*self.seeds, *(seed for group in self.groups for seed in group.seeds)]:
            check_seed(seed, f"a seed of suite {self.name!r}")

    def _check_level(self, settings: Settings, level: str) -> None:
        """Refuses a level at which nothing is measured, or not all that is asked of levels of its kind."""
        for name in settings.evaluations:
            able = MEASUREMENTS[name].levels
            of_kind = [other for other in able if LEVELS[other].inputs == LEVELS[level].inputs]
            if of_kind and level not in able and not MEASUREMENTS[name].default:
                raise ConfigurationError(
                    f"{name} is measured of {' and '.join(of_kind)}, not of {level}; move {level} to a group without "
                    f"it."
                )
        if not settings.measured(level):
            known = ", ".join(name for name, m in MEASUREMENTS.items() if level in m.levels and name != "speed")
            raise ConfigurationError(
                f"suite {self.name!r} asks for {' and '.join(settings.evaluations)}, which {level} do not have; they "
                f"have {known}."
            )

    def _check_evaluations(self, settings: Settings, task: Task, level: str, model: str) -> None:
        for name in settings.measured(level):
            if why := evaluations.make(name).refuses(task, level, model):
                raise ConfigurationError(why)

    def _check_settings(self, group: Group) -> None:
        for key in HARDWARE:
            if key in group.settings:
                raise ConfigurationError(
                    f"suite {self.name!r} sets {key} in a group; it holds for a whole run: move it to [settings]."
                )
        try:
            self.settings.changed(group.settings)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"suite {self.name!r}, settings of a group: {_complaint(key, first)}") from error

    def plan(
        self,
        task: Sequence[str] = (),
        method: Sequence[str] = (),
        level: Sequence[str] = (),
        model: str | None = None,
        seed: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> list[Planned]:
        """The cells and their settings, narrowed to the given names.

        A registered task or method that the suite does not list is added to it: a new method on every task and level
        of the suite that it can score, a new task with every method of the suite. Cells that groups measure in several
        ways are one.

        Args:
            changes: of settings, for the whole run; they go before those of groups.

        Raises:
            UnknownNameError: a name nobody registered.
            ConfigurationError: the combination leaves nothing to run, or asks one thing of a cell in two ways.
        """
        self._check_names(task, level, model)
        for name in method:
            methods.get(name)
        plan = [
            Planned(
                Cell(
                    task=spec_task.name,
                    task_options=spec_task.options,
                    method=spec_method.name,
                    method_options=spec_method.options,
                    model=on,
                    level=at,
                    replacement=replacement,
                    variant=group.variant,
                    seed=s,
                ),
                asked,
            )
            for group in [*self.groups, *self._added(task, method)]
            for settings in [self._settings(group, changes)]
            for spec_task in group.tasks
            for spec_method in group.methods
            for at in group.levels
            for replacement in group.replacements
            for on in ([model] if model else group.models or self.models)
            for s in self._seeds(group, seed)
            for asked in [settings if replacement == group.replacements[0] else _replacing(settings)]
            if (not task or spec_task.name in task)
            and (not method or spec_method.name in method)
            and (not level or at in level)
            and asked.measured(at)
        ]
        if not plan:
            raise ConfigurationError(self._nothing(task, method, level))
        return _in_order(self._merged(plan))

    def _check_names(self, task: Sequence[str], level: Sequence[str], model: str | None) -> None:
        for name in task:
            tasks.get(name)
        for name in level:
            get_level(name)
        if model:
            check_model_name(model)

    def _settings(self, group: Group, changes: Mapping[str, Any] | None) -> Settings:
        return self.settings.changed(group.settings).changed(changes or {})

    def _merged(self, plan: Iterable[Planned]) -> list[Planned]:
        """Each cell once for each way to draw its examples, with everything that is asked of it.

        Raises:
            ConfigurationError: one evaluation of a cell is asked for with different options.
        """
        once: dict[str, Planned] = {}
        for cell, settings in plan:
            own = settings.only(tuple(dict.fromkeys([*settings.measured(cell.level), "speed"])))
            key = repr((cell, own.drawing()))
            other = once.get(key)
            once[key] = Planned(cell, own if other is None else self._both(cell, other.settings, own))
        return list(once.values())

    def _both(self, cell: Cell, a: Settings, b: Settings) -> Settings:
        """Settings that ask for everything that either asks for."""
        for name in b.evaluations:
            if name in a.evaluations and a.asked(name) != b.asked(name):
                raise ConfigurationError(
                    f"suite {self.name!r} asks for {name} of {cell} in two ways; give one of the groups a variant, "
                    f'such as variant = "other {name} options".'
                )
        names = tuple(dict.fromkeys([*a.evaluations, *b.evaluations]))
        changing = [s for s in (a, b) if any(MEASUREMENTS[name].uses_capability for name in s.evaluations)]
        if len(changing) > 1 and a.capability != b.capability:
            raise ConfigurationError(
                f"suite {self.name!r} measures the capability of models changed by {cell} in two ways; give one of the "
                f"groups a variant."
            )
        options = {**a.options, **b.options}
        capability = (changing or [a])[0].capability
        return a.model_copy(update={"evaluations": names, "options": options, "capability": capability})

    def _seeds(self, group: Group, asked: int | None) -> list[int]:
        return [asked] if asked is not None else group.seeds or self.seeds

    def precomputed(
        self,
        files: Sequence[ScoreFile],
        task: Sequence[str] = (),
        level: Sequence[str] = (),
        model: str | None = None,
        seed: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> list[Planned]:
        """A cell for every score file on every task of the suite that is run at its level, for its model.

        Narrowed to the given names, and to the task and seed that a file is for. A file that these names leave out is
        passed over as long as another one is not.

        Raises:
            UnknownNameError: a name nobody registered.
            ScoresError: a file does not fit its model, two files would stand in one row, or a file has no place here.
        """
        self._check_names(task, level, None)
        plan: list[Planned] = []
        unplaced: list[str] = []
        for file in files:
            on = self._model_of(file, model)
            placed = [
                Planned(
                    Cell(
                        task=spec.name,
                        task_options=spec.options,
                        method=file.name,
                        model=on,
                        level=file.level,
                        replacement=replacement,
                        variant=group.variant,
                        seed=s,
                        precomputed=Precomputed(file=str(file.path), sha256=file.sha256),
                    ),
                    asked,
                )
                for group in [*self.groups, *self._added(task, ())]
                for settings in [self._settings(group, changes)]
                if file.level in group.levels and on in ([model] if model else group.models or self.models)
                for spec in group.tasks
                for replacement in group.replacements
                for s in self._seeds(group, seed)
                for asked in [settings if replacement == group.replacements[0] else _replacing(settings)]
                if file.seed in (None, s) and asked.measured(file.level)
                if (not task or spec.name in task)
                and (not level or file.level in level)
                and file.task in ("", spec.name)
                and file.level in tasks.get(spec.name).levels
            ]
            if placed:
                file.fitting(shape_of(on))
            else:
                unplaced.append(self._no_place(file, on))
            plan += placed
        if unplaced and not (plan and (task or level or model or seed is not None)):
            raise ScoresError(unplaced[0])
        self._check_rows([planned.cell for planned in plan])
        return _in_order(self._merged(plan))

    def _model_of(self, file: ScoreFile, asked: str | None) -> str:
        """The model a file's scores are of: the one it names, else the only one of the run that has its shape."""
        if file.model:
            return file.model
        names = list(dict.fromkeys([asked] if asked else [m for g in self.groups for m in g.models or self.models]))
        shapes = {name: shape_of(name).graph for name in names}
        fitting = [name for name, graph in shapes.items() if graph == file.graph]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ScoresError(f"{file.path} fits {' and '.join(fitting)} alike; say with --model which one it is of.")
        has = "; ".join(f"{name} has {graph}" for name, graph in shapes.items())
        raise ScoresError(f"{file.path} is for {file.graph}, but {has}; choose its model with --model.")

    def _no_place(self, file: ScoreFile, model: str) -> str:
        facts = {"task": file.task, "level": file.level, "model": model}
        if file.seed is not None:
            facts["seed"] = str(file.seed)
        what = ", ".join(f"{key} {value}" for key, value in facts.items() if value)
        run = sorted({level for group in self.groups for level in group.levels})
        on = sorted({name for group in self.groups for name in group.models or self.models})
        return (
            f"{file.path} holds scores of {what}, which this run of suite {self.name!r} does not ask for; the suite "
            f"has {', '.join(run)} on {', '.join(on)}: change the file's metadata, or add --task, --model or --seed."
        )

    def _check_rows(self, cells: Sequence[Cell]) -> None:
        """Refuses two files that would stand under one name in one table."""
        rows: dict[str, str] = {}
        for cell in cells:
            file = cell.precomputed.file if cell.precomputed else ""
            other = rows.setdefault(repr(cell.model_copy(update={"precomputed": None})), file)
            if other != file:
                raise ScoresError(
                    f"{other} and {file} would both stand on the board as {cell.method!r} ({cell.task_label}, "
                    f"{cell.level}); give one of them another name, by metadata 'method' or as a file."
                )

    def _added(self, task: Sequence[str], method: Sequence[str]) -> list[Group]:
        known_tasks = {s.name for g in self.groups for s in g.tasks}
        known_methods = {s.name for g in self.groups for s in g.methods}
        groups = [
            group.model_copy(update={"methods": [Spec(name=name)], "levels": levels})
            for name in method
            if name not in known_methods
            for group in self.groups
            if (levels := [at for at in group.levels if at in methods.get(name).levels])
        ]
        new_tasks = [Spec(name=name) for name in task if name not in known_tasks]
        if new_tasks:
            groups += [g.model_copy(update={"tasks": new_tasks}) for g in self.groups]
        return groups

    def _nothing(self, task: Sequence[str], method: Sequence[str], level: Sequence[str]) -> str:
        for name in method:
            able = methods.get(name).levels
            if level and not set(level) & set(able):
                return f"{name} scores {', '.join(able)}, not {', '.join(level)}."
        asked = ", ".join(f"{k} {'/'.join(v)}" for k, v in (("task", task), ("method", method), ("level", level)) if v)
        return f"suite {self.name!r} has no cell with {asked}."


def _replacing(settings: Settings) -> Settings:
    """What is measured by every replacement of a group; the rest is measured with its first one alone."""
    names = tuple(name for name in settings.evaluations if MEASUREMENTS[name].replaces)
    return settings.model_copy(update={"evaluations": names})


def _in_order(plan: Sequence[Planned]) -> list[Planned]:
    """By model, seed, task, examples, then level, so that what cells share is in memory when they come."""
    models = list(dict.fromkeys(p.cell.model for p in plan))
    seeds = list(dict.fromkeys(p.cell.seed for p in plan))
    drawn = list(dict.fromkeys(_examples_of(p) for p in plan))
    levels = list(LEVELS)
    return sorted(
        plan,
        key=lambda p: (
            models.index(p.cell.model),
            seeds.index(p.cell.seed),
            drawn.index(_examples_of(p)),
            levels.index(p.cell.level),
            p.cell.replacement,
        ),
    )


def _examples_of(planned: Planned) -> str:
    return repr((planned.cell.task, planned.cell.task_options, planned.settings.drawing()))


def limited(limit: int) -> dict[str, Any]:
    """The settings that a trial run with ``limit`` examples per split changes.

    Raises:
        ConfigurationError: fewer than one example.
    """
    check_range("--limit", limit, 1, MAX_EXAMPLES)
    return {"train_examples": limit, "test_examples": limit, "min_kept": 1}


def find_suite(path: Path) -> Path:
    """A suite by path, or by its bare name among :func:`suites`.

    Raises:
        UnknownNameError: there is no such file; carries the names of the suites that there are.
    """
    kind = kind_of(path, "the suite")
    if kind == "file":
        return path
    if kind == "other":
        raise ConfigurationError(f"the suite {path} is no regular file (a pipe, socket or device), and is not read.")
    known = suites()
    if path.parent == Path() and path.stem in known and path.suffix in ("", ".toml"):
        return known[path.stem]
    raise UnknownNameError("suite", str(path), known, "A path to a .toml file works too.")


def suites() -> dict[str, Path]:
    """The suites by name: those that ship, and those in ``benchmarks/`` of the current folder, which come first."""
    folders = (*shipped("suites"), Path.cwd() / "benchmarks")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml")) if is_file(file)}


def lacking(plan: Iterable[Planned]) -> list[str]:
    """What cells need that is not installed, one sentence for each extra of this package."""
    needs: dict[tuple[str, str], set[str]] = {}
    for _, settings in plan:
        for name in settings.evaluations:
            if MEASUREMENTS[name].uses_capability:
                needs.setdefault(("lm_eval", "capability"), set()).add(name)
            if getattr(settings.of(name), "recovery_steps", 0):
                needs.setdefault(("peft", "recovery"), set()).add(name)
    return [
        f"{' and '.join(sorted(names))} need{'s' if len(names) == 1 else ''} {module.replace('_', '-')}, which is not "
        f'installed: pip install "attriboard[{extra}]".'
        for (module, extra), names in needs.items()
        if importlib.util.find_spec(module) is None
    ]


def check_options(of: str, options: Mapping[str, Any]) -> None:
    """Refuses options of a task or method that no run would end with, or that cannot be computed with.

    Raises:
        ConfigurationError: a whole number beyond :data:`MAX_COUNT` (of a seed: beyond 2**63), a number that is not
            finite, or a value that is nested; names the option.
    """
    for key, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, (list, Mapping)):
                raise ConfigurationError(f"option {key!r} of {of} is nested; give a value or a list of values.")
            if isinstance(each, float) and not math.isfinite(each):
                raise ConfigurationError(f"option {key!r} of {of} is {each}, expected a finite number.")
            if isinstance(each, int) and key == "seed":
                check_seed(each, f"option 'seed' of {of}")
            elif isinstance(each, int):
                check_range(f"option {key!r} of {of}", each, -MAX_COUNT, MAX_COUNT)


def check_seed(seed: int, what: str) -> None:
    """Raises ConfigurationError for a seed that a generator of random numbers does not take."""
    check_range(what, seed, 0, MAX_SEED)


def _complaint(key: str, error: Any) -> str:
    if error["type"] == "option":
        key = ".".join(part for part in (key.removesuffix("options").strip("."), error["ctx"]["key"]) if part)
        error = {"type": error["ctx"]["kind"], "input": error["ctx"]["value"], "msg": error["ctx"]["text"]}
        if error["type"] not in ("extra_forbidden", "missing"):
            return f"key {key!r} is {error['input']}: {error['msg'][0].lower()}{error['msg'][1:]}."
    if error["type"] == "unknown_evaluation":
        return f"key {key!r}: {error['msg']}"
    if error["type"] == "extra_forbidden":
        return f"key {key!r} is not known here; remove or rename it."
    if error["type"] == "missing":
        return f"key {key!r} is missing."
    return f"key {key!r} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}."
