"""Which process made a file, and whether it still runs: what a dead process left behind can be cleared."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Maker(NamedTuple):
    """A process.

    Attributes:
        host: the computer, and the space of process numbers where there are several (in containers).
        pid: its number.
        started: when it started, in the system's ticks; 0 where that is not known. Numbers are given again.
    """

    host: str
    pid: int
    started: int

    def alive(self) -> bool | None:
        """Whether it still runs; None where that cannot be known, since it is another computer's."""
        if self.host != host():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):  # another user's, or no number of a process
            return self.pid < 2**22 and Path(f"/proc/{self.pid}").exists()
        return not self.started or _started(self.pid) in (0, self.started)


def this_process() -> Maker:
    """The process that asks."""
    return Maker(host(), os.getpid(), _started(os.getpid()))


@cache
def host() -> str:
    """A name of this computer that can stand in file names."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return re.sub(r"[^\w.]+", "_", f"{socket.gethostname()}_{space}").strip("_")[:80]


def _started(pid: int) -> int:
    """When a process started, in ticks since the system did; 0 where that cannot be read, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0
