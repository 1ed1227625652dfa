"""The door through which files come in: regular files alone, of bounded size, and one sentence for whatever is wrong.

A pipe, a socket or a device such as ``/dev/zero`` is never read: it may have no end, or wait for ever. Whatever the
operating system refuses (a name that is too long, a folder that may not be entered, links in a circle) is said as it is
in one sentence that names the file.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from .errors import AttriboardError, ConfigurationError

Kind = Literal["file", "folder", "other", "missing"]
MAX_BYTES = 2**30
"""The largest file read whole."""
MAX_LINE = 2**20
"""The longest line of a JSON-lines file, in bytes."""


def kind_of(path: Path | str, what: str = "", error: type[AttriboardError] = ConfigurationError) -> Kind:
    """What stands at a path, links followed: a regular file, a folder, something else, or nothing.

    Args:
        what: what the path was given as, in front of it in messages: ``--scores``.
        error: the kind of error that is raised.

    Raises:
        AttriboardError: the operating system refuses to say; gives its reason.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as refused:  # ValueError: a name with a zero byte
        raise error(f"{named(path, what)} cannot be used: {reason(refused)}.") from refused
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "other"


def is_file(path: Path | str, what: str = "", error: type[AttriboardError] = ConfigurationError) -> bool:
    """Whether a regular file stands at a path; raises as :func:`kind_of`."""
    return kind_of(path, what, error) == "file"


def is_folder(path: Path | str, what: str = "", error: type[AttriboardError] = ConfigurationError) -> bool:
    """Whether a folder stands at a path; raises as :func:`kind_of`."""
    return kind_of(path, what, error) == "folder"


def check_regular(path: Path | str, what: str = "", error: type[AttriboardError] = ConfigurationError) -> None:
    """Refuses what is no regular file, before something else opens it.

    Raises:
        AttriboardError: nothing is there, or a folder, a pipe, a socket or a device; or it may not be looked at.
    """
    kind = kind_of(path, what, error)
    if kind == "missing":
        raise error(f"{named(path, what)} does not exist; check the path.")
    if kind == "folder":
        raise error(f"{named(path, what)} is a folder; name a file in it.")
    if kind == "other":
        raise error(f"{named(path, what)} is no regular file (a pipe, socket or device), and is not read.")


def read_bytes(
    path: Path | str, what: str = "", error: type[AttriboardError] = ConfigurationError, most: int = MAX_BYTES
) -> bytes:
    """A regular file, whole.

    Raises:
        AttriboardError: as :func:`check_regular`; it cannot be read, or is larger than ``most`` bytes.
    """
    try:
        return regular_bytes(path, most)
    except NotRegularError:
        check_regular(path, what, error)
        raise error(f"{named(path, what)} changed while it was read; try again.") from None
    except TooLargeError as large:
        raise error(f"{named(path, what)} has {large} bytes; at most {most:,} are read.") from large
    except FileNotFoundError as missing:
        raise error(f"{named(path, what)} does not exist; check the path.") from missing
    except (OSError, ValueError) as refused:
        raise error(f"{named(path, what)} cannot be read: {reason(refused)}.") from refused


def read_text(
    path: Path | str,
    what: str = "",
    error: type[AttriboardError] = ConfigurationError,
    most: int = MAX_BYTES,
    encoding: str = "utf-8",
) -> str:
    """A regular file of text, whole; raises as :func:`read_bytes`, and where it is no text."""
    try:
        return read_bytes(path, what, error, most).decode(encoding)
    except UnicodeDecodeError as wrong:
        raise error(f"{named(path, what)} is not a text file: {wrong.reason}.") from wrong


class NotRegularError(OSError):
    """What was to be read is no regular file."""


class TooLargeError(OSError):
    """What was to be read is too large; the message is its size."""


def regular_bytes(path: Path | str, most: int = MAX_BYTES) -> bytes:
    """A regular file, whole, opened so that a pipe keeps nobody waiting.

    Raises:
        NotRegularError: it is no regular file. TooLargeError: it is larger than ``most`` bytes. OSError: it cannot be
            read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(handle, "rb") as file:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularError("not a regular file")
        if facts.st_size > most:
            raise TooLargeError(f"{facts.st_size:,}")
        return file.read(most)


def unpacked(content: bytes, most: int = MAX_BYTES) -> bytes:
    """What a gzip file of one member holds.

    Raises:
        TooLargeError: more than ``most`` bytes. OSError: it is cut short, damaged or no gzip file.
    """
    packed = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = packed.decompress(content, most)
    except zlib.error as error:
        raise OSError(f"it is no whole gzip file ({error})") from error
    if packed.unconsumed_tail:
        raise TooLargeError(f"more than {most:,}")
    if not packed.eof or packed.unused_data:
        raise OSError("it is no whole gzip file (cut short, or something follows it)")
    return plain


def parse_json(text: str | bytes) -> Any:
    """What JSON text says.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds a number with too many digits or half a surrogate pair;
            the message is one line.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is a string that no file can hold
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a surrogate pair, which is no character") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text: {error.reason}") from error
    except ValueError as error:
        raise ValueError("it holds a number with too many digits" if "digits" in str(error) else str(error)) from error
    return value


def json_lines(path: Path | str, error: type[AttriboardError]) -> Iterator[tuple[int, Any]]:
    """The values of a JSON-lines file with the numbers of their lines, from 1; empty lines are passed over.

    Raises:
        AttriboardError: as :func:`read_text`; a line is no JSON or longer than :data:`MAX_LINE`; names it.
    """
    name = Path(path).name
    for number, line in enumerate(read_text(path, error=error, encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise error(f"line {number} of {name} has {len(line):,} characters; at most {MAX_LINE:,} are read.")
        try:
            value = parse_json(line)
        except ValueError as wrong:
            raise error(f"line {number} of {name} is not JSON ({_in_line(wrong)}); correct it.") from wrong
        yield number, value


def _in_line(wrong: ValueError) -> str:
    return str(wrong).replace(" at line 1 column ", " at column ")


def reason(error: BaseException) -> str:
    """Why something failed, in one line, whatever kind of error it is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return told(error) or type(error).__name__


def told(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; empty without one, or where asking for it fails."""
    try:
        lines = str(error).strip().splitlines()
        return lines[0][:300] if lines else ""
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:  # the message is made by code that nobody here knows
        return ""


def kind_and_reason(error: BaseException) -> str:
    """``ValueError: what it says``, in one line."""
    text = told(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def named(path: Path | str, what: str) -> str:
    """A path as messages show it: what it was given as before it, shortened if it is very long."""
    text = str(path)
    text = text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
    return f"{what} {text}".strip()
