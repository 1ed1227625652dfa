"""Several processes on one folder share its work: who runs what is claimed in the folder, one file for each claim.

A claim is made under its final name at once, with the process and computer that hold it inside; whoever comes second
finds it there. It is given back when the work is done. A claim whose process no longer runs is taken over; whether a
process on another computer runs cannot be seen, so a holder renews its claims every :data:`RENEWED` seconds, and one
that was not renewed for :data:`LEASE` seconds is taken over too.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..files import regular_bytes
from ..records.processes import Maker, this_process

PREFIX = ".claim-"
LEASE = 900.0
"""After how many seconds without renewal a claim of another computer's process is void."""
RENEWED = 60.0
"""How often a claim is renewed, in seconds."""


@dataclass
class Claims:
    """The claims of this process in one folder.

    Attributes:
        folder: where they stand.
        held: what this process has claimed.
    """

    folder: Path
    held: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def take(self, what: str) -> bool:
        """Claims a thing, by a name; False where another process that runs has it.

        Raises:
            OSError: the folder cannot be written.
        """
        if what in self.held:
            return True
        target = self._file(what)
        if not self._make(target):
            with self._alone():  # of those who find a void claim, one takes it over
                if self.holder(what) is not None:
                    return False
                target.unlink(missing_ok=True)
                if not self._make(target):
                    return False
        self.held.add(what)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, daemon=True)
            self._thread.start()
        return True

    def holder(self, what: str) -> Maker | None:
        """Who holds a claim; None where nobody does, or the claim is void."""
        file = self._file(what)
        try:
            since = file.stat().st_mtime
            maker = Maker(**json.loads(regular_bytes(file, 4096)))
            alive = maker.alive()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):  # no claim of ours: not taken over before its time
            maker, alive = Maker("?", 0, 0), None
        if alive is None:
            alive = self._now() - since < LEASE
        return maker if alive else None

    def give_back(self, what: str) -> None:
        """Ends a claim of this process."""
        if what in self.held:
            self.held.discard(what)
            with contextlib.suppress(OSError):
                self._file(what).unlink(missing_ok=True)

    def close(self) -> None:
        """Ends every claim of this process."""
        self._stop.set()
        for what in list(self.held):
            self.give_back(what)

    def clear(self) -> None:
        """Removes the claims of processes that no longer run."""
        for file in self.folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError), self._alone():
                if self.holder(file.name.removeprefix(PREFIX)) is None:
                    file.unlink(missing_ok=True)

    def _file(self, what: str) -> Path:
        return self.folder / f"{PREFIX}{what[:40]}"

    def _make(self, target: Path) -> bool:
        """Makes a claim's file, whole, under its name; False where there is one."""
        maker = this_process()
        handle, draft = tempfile.mkstemp(dir=self.folder, prefix=f".draft-{maker.host}-{maker.pid}-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(maker._asdict(), file)
            try:
                os.link(draft, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links: there the content comes after the name
                with contextlib.suppress(FileExistsError), target.open("x") as file:
                    json.dump(maker._asdict(), file)
                    return True
                return False
            return True
        finally:
            Path(draft).unlink(missing_ok=True)

    def _now(self) -> float:
        """The time as the folder's file system has it, which may be another computer's."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While one process of this computer is inside, no other one is."""
        try:
            import fcntl
        except ImportError:  # a system without this lock
            yield
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without this lock
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _renew(self) -> None:
        while not self._stop.wait(RENEWED):
            for what in list(self.held):
                with contextlib.suppress(OSError):
                    os.utime(self._file(what))
