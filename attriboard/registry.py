"""Finds tasks and methods: the packages in this repository, entry points, and files named by ``--include``.

A file that cannot be imported never hides the others: its error is kept under its name and raised only
when that name is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from .errors import AttriboardError, ConfigurationError, UnknownNameError, check_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by their ``name`` attribute.

    Args:
        kind: what is registered, in the words of an error message ("task", "method").
        base: every registered class derives from it.
        package: the package (and entry-point group) that is searched.
    """

    def __init__(self, kind: str, base: type[T], package: str) -> None:
        self.kind, self.base, self.package = kind, base, package
        self._classes: dict[str, type[T]] = {}
        self.broken: dict[str, str] = {}
        self.included: list[Path] = []
        self._loaded = False

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            if info.name.startswith("_"):
                continue
            try:
                self._collect(importlib.import_module(f"{self.package}.{info.name}"))
            except Exception as error:  # a broken file must not take the others with it
                self.broken[info.name] = f"{type(error).__name__}: {error}"
        for point in entry_points(group=self.package):
            try:
                loaded = point.load()
                self._collect(loaded) if isinstance(loaded, ModuleType) else self.add(loaded)
            except Exception as error:
                self.broken[point.name] = f"{type(error).__name__}: {error}"

    def _collect(self, module: ModuleType) -> int:
        count = 0
        for _, value in inspect.getmembers(module, inspect.isclass):
            own = value.__module__ == module.__name__
            if not own or not issubclass(value, self.base) or inspect.isabstract(value):
                continue
            if getattr(value, "name", None):
                setattr(value, "defined_in", module)  # noqa: B010 - another file of the same name may take its place among the modules
                self.add(value)
                count += 1
        return count

    def add(self, cls: type[T]) -> type[T]:
        """Registers a class under its ``name``; a second class of that name is an error unless it is the same file."""
        name = getattr(cls, "name", "")
        old = self._classes.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigurationError(
                f"two {self.kind}s are called {name!r}: {old.__module__} and {cls.__module__}; rename one."
            )
        self._classes[name] = cls
        return cls

    def include(self, path: Path) -> int:
        """Registers every class in a Python file or folder outside the packages; returns how many it found."""
        self._load()
        count = sum(map(self._collect, modules_in(path)))
        self.included.append(path.resolve())
        return count

    def names(self) -> list[str]:
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class called ``name``.

        Raises:
            UnknownNameError: nobody registered it; the message carries near names.
            ConfigurationError: its file exists but cannot be imported.
        """
        self._load()
        if name in self._classes:
            return self._classes[name]
        if name in self.broken:
            raise ConfigurationError(f"{self.kind} {name!r} cannot be imported: {self.broken[name]}")
        broken = "; ".join(f"file {file!r} cannot be imported: {why}" for file, why in self.broken.items())
        raise UnknownNameError(self.kind, name, self._classes, f"({broken}.)" if broken else "")

    def make(self, name: str, options: dict[str, Any] | None = None) -> T:
        """An instance of the class called ``name`` with its options set.

        Raises:
            ConfigurationError: an option the class does not have, or a value it refuses.
        """
        cls = self.get(name)
        known = [f for f in getattr(cls, "__dataclass_fields__", {}) if not f.startswith("_")]
        for key in options or {}:
            check_name(f"option of {self.kind} {name!r}:", key, known)
        try:
            return cls(**(options or {}))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{self.kind} {name!r} refuses {options}: {error}") from error

    def __iter__(self) -> Iterator[type[T]]:
        return (self._classes[name] for name in self.names())


_INCLUDED: dict[tuple[Path, str], ModuleType] = {}
"""Files named by ``--include``, by path and content: a file is run once, whatever it registers."""


def modules_in(path: Path) -> list[ModuleType]:
    """The modules of a Python file, or of those in a folder, outside the packages.

    Raises:
        ConfigurationError: it does not exist, is no Python file, or cannot be imported.
    """
    if not path.exists():
        raise ConfigurationError(f"--include {path} does not exist.")
    path = path.resolve()
    return [_module(file) for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]


def _module(file: Path) -> ModuleType:
    """The module of a Python file outside the packages.

    Raises:
        ConfigurationError: it is no Python file, or cannot be imported.
    """
    name = f"attriboard_included_{file.stem}"
    key = (file, hashlib.sha256(file.read_bytes()).hexdigest())
    if key in _INCLUDED and sys.modules.get(name) is _INCLUDED[key]:
        return _INCLUDED[key]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"--include {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except AttriboardError:
        raise
    except Exception as error:
        raise ConfigurationError(f"--include {file} cannot be imported: {type(error).__name__}: {error}") from error
    _INCLUDED[key] = module
    return module
