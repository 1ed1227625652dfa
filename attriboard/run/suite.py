"""Suites: a TOML file that says which methods run on which tasks, models and levels, and how."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..components import COMPONENTS, LEVELS, get_level
from ..errors import ConfigurationError, ScoresError, UnknownNameError
from ..exchange.mib import Graph
from ..exchange.precomputed import ScoreFile, shape_of
from ..levels import InputReplacement, check_replacement
from ..loading import check_model_name, has_truth
from ..method import methods
from ..records.record import Cell, Entered, Settings
from ..task import Task, tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
        models, seeds: the suite's if empty.
        settings: what differs from the suite's settings, but for :data:`WHOLE_RUN`.
    """

    model_config = ConfigDict(extra="forbid")

    tasks: list[Spec] = Field(min_length=1)
    methods: list[Spec] = Field(min_length=1)
    levels: list[str] = Field(min_length=1)
    replacements: tuple[InputReplacement, ...] = ("counterfactual",)
    models: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("tasks", "methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


WHOLE_RUN = ("batch_size", "dtype", "device")
"""Settings that a group cannot change."""


class Suite(BaseModel):
    """A suite file.

    Attributes:
        name: also the name of its results folder.
        description, expected: what it is for, and how long it takes on what.
        models: names for :func:`attriboard.loading.load_model`.
        seeds: of examples and random choices.
        settings: see :class:`attriboard.records.record.Settings`.
        groups: what is run.
        not_run: what was left out on purpose and why; printed below the board.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    expected: str = ""
    models: list[str] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    settings: Settings = Settings()
    groups: list[Group] = Field(min_length=1)
    not_run: list[str] = Field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Suite:
        """Reads a suite file.

        Raises:
            ConfigurationError: no such file, not TOML, a wrong key or a wrong type; names file, key and expectation.
        """
        path = find_suite(path)
        try:
            suite = cls.model_validate(tomllib.loads(path.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is not a text file: {error.reason}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {_complaint(key, first)}") from error
        suite.check()
        return suite

    def check(self) -> None:
        """Checks every name and option the suite uses, running nothing.

        Raises:
            UnknownNameError, ConfigurationError: the first that is wrong.
        """
        for model in [*self.models, *(name for group in self.groups for name in group.models)]:
            check_model_name(model)
        for group in self.groups:
            self._check_settings(group)
            for level in group.levels:
                get_level(level)
                for replacement in group.replacements:
                    check_replacement(replacement, level)
            families = self.settings.changed(group.settings).families
            for model in group.models or self.models:
                if "ground_truth" in families and not has_truth(model):
                    raise ConfigurationError(
                        f"suite {self.name!r} asks for ground_truth of {model}, of which no mechanism is known; choose "
                        f"a planted model, or take ground_truth out of the families."
                    )
            for spec in group.tasks:
                task = tasks.make(spec.name, spec.options)
                for level in group.levels:
                    if level not in task.levels:
                        raise ConfigurationError(
                            f"suite {self.name!r} asks for {level} on task {spec.name}, which has "
                            f"{', '.join(task.levels)}."
                        )
                    check_families(families, task, level)
            for spec in group.methods:
                method = methods.make(spec.name, spec.options)
                for level in group.levels:
                    if level not in method.levels:
                        raise ConfigurationError(
                            f"suite {self.name!r} asks {spec.name} for level {level!r}, but it scores "
                            f"{', '.join(method.levels)}; move it to a group without {level!r}."
                        )

    def _check_settings(self, group: Group) -> None:
        for key in WHOLE_RUN:
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

    def cells(
        self,
        task: Sequence[str] = (),
        method: Sequence[str] = (),
        level: Sequence[str] = (),
        model: str | None = None,
        seed: int | None = None,
    ) -> list[Cell]:
        """The cells, narrowed to the given names.

        A registered task or method that the suite does not list is added to it: a new method on every task and level
        of the suite that it can score, a new task with every method of the suite.

        Raises:
            UnknownNameError: a name nobody registered.
            ConfigurationError: the combination leaves nothing to run.
        """
        for name in task:
            tasks.get(name)
        for name in method:
            methods.get(name)
        for name in level:
            get_level(name)
        for name in [model] if model else []:
            check_model_name(name)

        found = [
            Cell(
                task=spec_task.name,
                task_options=spec_task.options,
                method=spec_method.name,
                method_options=spec_method.options,
                model=on,
                level=at,
                replacement=replacement,
                seed=s,
                settings=group.settings,
            )
            for group in [*self.groups, *self._added(task, method)]
            for spec_task in group.tasks
            for spec_method in group.methods
            for at in group.levels
            for replacement in group.replacements
            for on in ([model] if model else group.models or self.models)
            for s in self._seeds(group, seed)
            if (not task or spec_task.name in task)
            and (not method or spec_method.name in method)
            and (not level or at in level)
        ]
        if not found:
            raise ConfigurationError(self._nothing(task, method, level))
        return _in_order(found)

    def _seeds(self, group: Group, asked: int | None) -> list[int]:
        return [asked] if asked is not None else group.seeds or self.seeds

    def entered(
        self,
        files: Sequence[ScoreFile],
        task: Sequence[str] = (),
        level: Sequence[str] = (),
        model: str | None = None,
        seed: int | None = None,
    ) -> list[Cell]:
        """A cell for every score file on every task of the suite that is run at its level, for its model.

        Narrowed to the given names, and to the task and seed that a file is for. A file that these names leave out is
        passed over as long as another one is not.

        Raises:
            UnknownNameError: a name nobody registered.
            ScoresError: a file does not fit its model, two files would stand in one row, or a file has no place here.
        """
        for name in task:
            tasks.get(name)
        for name in level:
            get_level(name)
        found: list[Cell] = []
        unplaced: list[str] = []
        for file in files:
            on = self._model_of(file, model)
            placed = [
                Cell(
                    task=spec.name,
                    task_options=spec.options,
                    method=file.name,
                    model=on,
                    level=file.level,
                    replacement=replacement,
                    seed=s,
                    settings=group.settings,
                    entered=Entered(file=str(file.path), sha256=file.sha256),
                )
                for group in [*self.groups, *self._added(task, ())]
                if file.level in group.levels and on in ([model] if model else group.models or self.models)
                for spec in group.tasks
                for replacement in group.replacements
                for s in self._seeds(group, seed)
                if file.seed in (None, s)
                if (not task or spec.name in task)
                and (not level or file.level in level)
                and file.task in ("", spec.name)
                and file.level in tasks.get(spec.name).levels
            ]
            if placed:
                file.fitting(shape_of(on))
            else:
                unplaced.append(self._no_place(file, on))
            found += placed
        if unplaced and not (found and (task or level or model or seed is not None)):
            raise ScoresError(unplaced[0])
        self._check_rows(found)
        return _in_order(found)

    def _model_of(self, file: ScoreFile, asked: str | None) -> str:
        """The model a file's scores are of: the one it names, else the only one of the run that has its shape."""
        if file.model:
            return file.model
        names = list(dict.fromkeys([asked] if asked else [m for g in self.groups for m in g.models or self.models]))
        shapes = {name: Graph.of(shape_of(name)) for name in names}
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
            file = cell.entered.file if cell.entered else ""
            other = rows.setdefault(repr(cell.model_copy(update={"entered": None})), file)
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


def _in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, by model, seed, task, then level, so that what cells share is in memory when they come."""
    once = list({repr(cell): cell for cell in cells}.values())
    models = list(dict.fromkeys(cell.model for cell in once))
    seeds = list(dict.fromkeys(cell.seed for cell in once))
    tasks_asked = list(dict.fromkeys(_task_of(cell) for cell in once))
    levels = list(LEVELS)
    return sorted(
        once,
        key=lambda c: (
            models.index(c.model),
            seeds.index(c.seed),
            tasks_asked.index(_task_of(c)),
            levels.index(c.level),
            c.replacement,
        ),
    )


ACTED_ON = {"pruning": ("heads", "neurons"), "editing": ("heads", "neurons"), "preference": ("neurons",)}
"""By family, the levels at which it can change a model's weights."""


def check_families(families: Iterable[str], task: Task, level: str) -> None:
    """Refuses families that a level of components or a task does not have.

    Raises:
        ConfigurationError: names family, level or task, and what would do.
    """
    for family in families:
        able = ACTED_ON.get(family)
        if able is not None and level in COMPONENTS and level not in able:
            raise ConfigurationError(
                f"{family} is measured of {' and '.join(able)}, not of {level}; move {level} to a group without it."
            )
        if family == "preference" and task.preference is None:
            raise ConfigurationError(
                f"preference cannot be measured on task {task.name!r}, which measures none between two continuations; "
                f"take it out of the families of its group."
            )


def limited(limit: int) -> dict[str, Any]:
    """The settings that a trial run with ``limit`` examples per split changes.

    Raises:
        ConfigurationError: fewer than one example.
    """
    if limit < 1:
        raise ConfigurationError(f"--limit is {limit}, expected at least 1.")
    return {"train_examples": limit, "test_examples": limit, "min_kept": 1}


def without_settings(cells: Iterable[Cell], names: Iterable[str]) -> list[Cell]:
    """The cells, whose groups no longer change the settings of these names: what is asked of a whole run goes first."""
    held = set(names)
    return [c.model_copy(update={"settings": {k: v for k, v in c.settings.items() if k not in held}}) for c in cells]


def _task_of(cell: Cell) -> str:
    return repr((cell.task, cell.task_options))


def find_suite(path: Path) -> Path:
    """A suite by path, or by the bare name of a file in ``benchmarks/``.

    Raises:
        UnknownNameError: there is no such file; carries the names of the suites that there are.
    """
    if path.is_file():
        return path
    known = suites()
    if path.parent == Path() and path.stem in known and path.suffix in ("", ".toml"):
        return known[path.stem]
    raise UnknownNameError("suite", str(path), known, "A path to a .toml file works too.")


def suites() -> dict[str, Path]:
    """The suites by name: those in ``benchmarks/`` of this checkout and of the current folder."""
    folders = (Path(__file__).resolve().parents[2] / "benchmarks", Path.cwd() / "benchmarks")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.toml"))}


def _complaint(key: str, error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"key {key!r} is not known here; remove or rename it."
    if error["type"] == "missing":
        return f"key {key!r} is missing."
    return f"key {key!r} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}."
