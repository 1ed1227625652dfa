"""Where commands print, and files that cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..errors import ConfigurationError
from ..files import kind_of, reason

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


@contextmanager
def writing(file: Path, *errors: type[Exception]) -> Iterator[None]:
    """What keeps a file from being written becomes one sentence.

    Args:
        errors: kinds that count beside OSError.

    Raises:
        ConfigurationError: names the file and the reason.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        if kind_of(file, "--out") == "other" and not str(file).startswith("/dev/"):  # /dev/stdout is a pipe at times
            raise ConfigurationError(f"cannot write {file}: it is a pipe, socket or device.")
        yield
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"cannot write {file}: its name or content is no UTF-8 text.") from error
    except kinds as error:
        raise ConfigurationError(f"cannot write {file}: {reason(error)}.") from error


def make_folder_of(file: Path) -> None:
    """Makes the folder that a file will stand in; called before the work, not after it.

    Raises:
        ConfigurationError: as :func:`writing`.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)


def note_foreign_file(path: Path, why: str) -> None:
    """Says that a file among the records is none of theirs."""
    err.print(f"note: {escape(str(path))} is not a record of this suite ({escape(why)}); left alone.", highlight=False)


def about(seconds: float) -> str:
    """A length of time as one says it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size, below in (("s", 1.0, 90.0), ("min", 60.0, 5400.0), ("h", 3600.0, 172_800.0)):
        if seconds < below:
            digits = 1 if unit == "h" else 0
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
