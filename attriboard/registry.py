"""Finds tasks and methods: the packages in this repository, entry points, and files named by ``--include``.

A file that cannot be imported never hides the others: its error is kept under its name and raised only
when that name is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, NoReturn, TypeVar

from .errors import AttriboardError, ConfigurationError, UnknownNameError, check_name
from .files import check_regular, kind_and_reason, kind_of, read_bytes, reason

T = TypeVar("T")

IMPORT_SECONDS = 120.0
"""How long a file named by ``--include`` may take to be imported."""
NAME = re.compile(r"\w[\w .+-]{0,79}")
"""What a task, method or evaluation can be called: its name stands in tables and file names."""


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
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a broken file must not take the others with it
                self.broken[info.name] = kind_and_reason(error)
        for point in entry_points(group=self.package):
            try:
                loaded = point.load()
                self._collect(loaded) if isinstance(loaded, ModuleType) else self.add(loaded)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.broken[point.name] = kind_and_reason(error)

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
        """Registers a class under its ``name``; a second class of that name is an error unless it is the same file.

        Raises:
            ConfigurationError: the name is taken, or is none that can stand in tables and file names.
        """
        name = getattr(cls, "name", "")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigurationError(
                f"the {self.kind} {cls.__qualname__} in {cls.__module__} is called {name!r}; a name is a text of at "
                f"most 80 letters, digits, spaces and .+-_, which begins with a letter or digit."
            )
        old = self._classes.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigurationError(
                f"two {self.kind}s are called {name!r}: {old.__module__} and {cls.__module__}; rename one."
            )
        self._classes[name] = cls
        return cls

    def include(self, path: Path) -> int:
        """Registers every class in a Python file or folder outside the packages; returns how many it found.

        Raises:
            ConfigurationError: there is no such file or folder; a file is no regular one, cannot be imported, ends the
                program, takes longer than :data:`IMPORT_SECONDS`, or defines a name that is taken or is none.
        """
        self._load()
        count = 0
        for module in modules_in(path):
            try:
                count += self._collect(module)
            except (AttriboardError, KeyboardInterrupt):
                raise
            except BaseException as error:  # a class may answer every question with an error
                raise ConfigurationError(
                    f"--include {module.__file__} cannot be used: {kind_and_reason(error)}"
                ) from error
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
    kind = kind_of(path, "--include")
    if kind == "missing":
        raise ConfigurationError(f"--include {path} does not exist.")
    try:
        path = path.resolve()
        files = sorted(path.glob("*.py")) if kind == "folder" else [path]
    except OSError as error:
        raise ConfigurationError(f"--include {path} cannot be read: {reason(error)}.") from error
    return [_module(file) for file in files]


def _module(file: Path) -> ModuleType:
    """The module of a Python file outside the packages.

    Raises:
        ConfigurationError: it is no Python file, or cannot be imported.
    """
    name = f"attriboard_included_{file.stem}"
    check_regular(file, "--include")
    key = (file, hashlib.sha256(read_bytes(file, "--include")).hexdigest())
    if key in _INCLUDED and sys.modules.get(name) is _INCLUDED[key]:
        return _INCLUDED[key]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"--include {file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with _contained(file):
            spec.loader.exec_module(module)
    except BaseException as error:
        _put_back(name, before)
        if isinstance(error, (AttriboardError, KeyboardInterrupt)):
            raise
        if isinstance(error, SystemExit):
            raise ConfigurationError(
                f"--include {file} ends the program while it is imported (exit code {error.code!r}); put what it runs "
                f'under if __name__ == "__main__".'
            ) from error
        raise ConfigurationError(f"--include {file} cannot be imported: {kind_and_reason(error)}") from error
    _INCLUDED[key] = module
    return module


def _put_back(name: str, module: ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


@contextmanager
def _contained(file: Path) -> Iterator[None]:
    """While a file is imported, ``os._exit`` raises SystemExit, and the import ends after :data:`IMPORT_SECONDS`.

    The time is kept where signals can be handled: in the main thread, on systems that have the timer, and between two
    steps of Python; what never returns from a library's own code ends with the process alone.

    Raises:
        ConfigurationError: the time is over.
    """
    own, leave = os.getpid(), os._exit

    def refused(status: int) -> NoReturn:
        if os.getpid() != own:  # a child process that the file started ends as it should
            leave(status)
        raise SystemExit(status)

    def over(signum: int, frame: object) -> NoReturn:
        raise _OvertimeError

    timed = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    handler = signal.signal(signal.SIGALRM, over) if timed else None
    os._exit = refused
    try:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS, 1.0)  # again, if the file catches the first
        yield
    except _OvertimeError:
        raise ConfigurationError(
            f"--include {file} takes longer than {IMPORT_SECONDS:g} seconds to import; is there an endless loop in it? "
            f"Put long work into the functions that need it."
        ) from None
    finally:
        os._exit = leave
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


class _OvertimeError(BaseException):
    """An import took too long; no Exception, so that the file does not take it for one of its own."""
