"""Runs bad input through the doors of the package, and says what came of each case.

A driver has ``cases(seed) -> iterator of (name, callable)``, endless or long. A callable makes its input in a scratch
folder and gives it to the package. What is right is a result, or one sentence of :mod:`attriboard.errors`; anything
else that comes out is a traceback a user would see, and a case that takes longer than :data:`SECONDS` is a hang.
"""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from attriboard.errors import AttriboardError

SECONDS = 20
"""How long a case may take."""
Case = tuple[str, Callable[[], Any]]
Cases = Callable[[int], Iterator[Case]]


class Fault(BaseModel):
    """A case that went wrong: its name, and the last lines of what came out."""

    name: str
    what: str


class Outcomes(BaseModel):
    """What came of the cases of one driver.

    Attributes:
        cases: how many there were.
        refused: in how many a sentence said what is wrong; in the others the input was taken.
        tracebacks, hangs: those that went wrong.
        seconds: wall time of all.
    """

    cases: int = 0
    refused: int = 0
    tracebacks: list[Fault] = []
    hangs: list[Fault] = []
    seconds: float = 0.0


class HangError(BaseException):
    """A case took too long."""


def run(cases: Iterator[Case], n: int) -> Outcomes:
    """The first ``n`` cases, one after the other."""
    outcomes = Outcomes()
    start = time.perf_counter()
    for name, case in cases:
        if outcomes.cases == n:
            break
        outcomes.cases += 1
        try:
            with time_limit(SECONDS):
                case()
        except AttriboardError as error:
            outcomes.refused += 1
            if "\n" in str(error).strip():
                outcomes.tracebacks.append(Fault(name=name, what=f"several lines: {str(error)[:300]}"))
        except HangError:
            outcomes.hangs.append(Fault(name=name, what=f"longer than {SECONDS} s"))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            last = "".join(traceback.format_exception(error)[-2:])[-600:]
            outcomes.tracebacks.append(Fault(name=name, what=last))
    outcomes.seconds = round(time.perf_counter() - start, 1)
    return outcomes


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises HangError inside after so many seconds."""

    def over(signum: int, frame: object) -> NoReturn:
        raise HangError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        yield Path(folder)


# --- changes of JSON-like values and of bytes -------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 10**30, -(10**400), 0.5, float("nan"), float("inf"), -float("inf"), 1e308, "", "x",
    "\ud800", "\x00", "a" * 300, "../../x", [], [[]], [1, 2], {}, {"": None},
)  # fmt: skip


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON-like value; of long lists of their ends."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for at in sorted({*range(min(2, len(value))), max(0, len(value) - 1)} & set(range(len(value)))):
            yield from places(value[at], (*path, at))


def changed(value: Any, path: tuple[Any, ...], rng: random.Random) -> str:
    """Changes what stands at a path, in place; returns how, in words."""
    *outer, last = path
    for key in outer:
        value = value[key]
    old = value[last]
    if isinstance(old, list) and old and rng.random() < 0.6:
        how = rng.choice(("shorter", "longer", "empty", "nested"))
        value[last] = {"shorter": old[:-1], "longer": [*old, old[-1]], "empty": [], "nested": [old]}[how]
    elif isinstance(value, dict) and rng.random() < 0.15:
        del value[last]
        how = "missing"
    elif isinstance(value, dict) and rng.random() < 0.1:
        value[f"{last}x"] = value.pop(last)
        how = "renamed"
    else:
        new = rng.choice(ODD)
        value[last] = new
        how = repr(new)[:20]
    return f"{'.'.join(map(str, path))} {how}"


def mangled(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Bytes with something wrong with them, and what."""
    how = rng.choice(("cut", "flipped", "zeros", "twice", "inserted", "empty", "random"))
    at = rng.randrange(len(content)) if content else 0
    if how == "cut":
        return f"cut at {at}", content[:at]
    if how == "flipped":
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 32))):
            if flipped:
                flipped[rng.randrange(min(len(flipped), rng.choice((64, 10**9))))] ^= 1 << rng.randrange(8)
        return "flipped bits", bytes(flipped)
    if how == "zeros":
        return f"zeros from {at}", content[:at] + bytes(len(content) - at)
    if how == "twice":
        return "twice", content + content
    if how == "inserted":
        return f"inserted at {at}", content[:at] + rng.randbytes(rng.randrange(1, 40)) + content[at:]
    return (how, b"") if how == "empty" else (how, rng.randbytes(rng.randrange(1, 400)))
