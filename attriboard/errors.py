"""The errors a user can cause, each one sentence that names the thing, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class AttriboardError(Exception):
    """Base of every error whose message is meant to be read as it is, without a traceback."""


class UnknownNameError(AttriboardError):
    """A task, method, model, level or suite that nobody registered; carries the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], way_out: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = f"did you mean {' or '.join(repr(n) for n in near)}?"
        elif known:
            hint = f"known: {', '.join(known)}."
        else:
            hint = "none is registered."
        super().__init__(f"unknown {kind} {name!r}: {hint}{' ' + way_out if way_out else ''}")


def check_name(kind: str, name: str, known: Collection[str], way_out: str = "") -> None:
    """Refuses a name that is not among those known.

    Raises:
        UnknownNameError: carries near names.
    """
    if name not in known:
        raise UnknownNameError(kind, name, known, way_out)


MAX_SEED = 2**63 - 1
"""The highest seed that a generator of random numbers takes."""


def check_range(what: str, value: int, low: int = 1, high: int = 1_000_000) -> None:
    """Refuses a number that is too small to mean anything, or so large that no run would end with it.

    Raises:
        ConfigurationError: names it and its bounds.
    """
    if value < low:
        raise ConfigurationError(f"{what} is {in_digits(value)}, expected at least {in_digits(low)}.")
    if value > high:
        raise ConfigurationError(f"{what} is {in_digits(value)}, expected at most {in_digits(high)}.")


def in_digits(number: int) -> str:
    """A whole number as messages show it; of a very long one, how long it is."""
    if abs(number) < 10**7:
        return str(number)
    return (
        f"{number:,}" if abs(number) < 10**20 else f"a number of about {int(number.bit_length() * 0.30103) + 1} digits"
    )


class ConfigurationError(AttriboardError):
    """A suite file, option or command line that cannot be carried out as written."""


class ExampleError(AttriboardError):
    """An example a model's tokenizer cannot use: a multi-token answer, a counterfactual of another length, ..."""


class TaskError(AttriboardError):
    """A task that could not supply what was asked of it."""


class ModelError(AttriboardError):
    """A model that cannot be found, loaded, or that failed its self-proof."""


class MethodError(AttriboardError):
    """A method that cannot score what it was asked to, or returned something that is not scores."""


class ScoresError(AttriboardError):
    """A file of precomputed scores that cannot be read, or does not fit the model or suite it is given for."""


class SkipCell(AttriboardError):
    """Raised when a cell does not apply (a task without the marks a method needs): recorded, not a failure."""
