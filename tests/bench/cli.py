"""The command line as tests call it: in this process, or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from attriboard.cli import main

BINARY = [sys.executable, "-m", "attriboard.cli"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["attriboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def environment(**changes: str) -> dict[str, str]:
    """This process' environment without the hub, and with lines that are wide enough for a whole sentence."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **changes}


@contextmanager
def interruptible() -> Iterator[None]:
    """Children started inside obey SIGINT also where this process ignores it, as a background job's does.

    A child inherits an ignored signal; a handled one is set to its default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; ``options`` of :func:`subprocess.run`."""
    command = [*BINARY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **{"env": environment(), **options})
