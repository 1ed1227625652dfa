"""What is left of a run: it is claimed before it is run, so that several processes can share one folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

from ..errors import ConfigurationError
from ..files import reason
from ..records.record import Record
from .claims import Claims
from .parts import Pair
from .stored import Stored

Results = Generator[tuple[Record, bytes | None], None, None]
"""Records as they are made, each with the file of its scores; who takes one stores it before asking for the next."""


@dataclass
class Work:
    """Cells to run, those that share scores together.

    Attributes:
        pairs: what nobody has begun, by name; what this process takes leaves it.
        stored: what the folder holds.
        elsewhere: how many cells another process has run meanwhile.
    """

    pairs: dict[str, Pair]
    stored: Stored
    claims: Claims
    elsewhere: int = 0

    def take(self, name: str) -> Pair | None:
        """Claims cells: those of them that are still to be run; None where another process is running them.

        Raises:
            ConfigurationError: the folder cannot be written.
        """
        try:
            if not self.claims.take(name):
                return None
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self.claims.folder}: {reason(error)}; the records made before are safe. Make room and "
                f"run the same command again: it goes on from there."
            ) from error
        pair = self.pairs.pop(name)
        left = [planned for planned in pair if not self.stored.done_since(planned)]
        self.elsewhere += len(pair) - len(left)
        return left

    def give_back(self, name: str) -> None:
        """Ends the claim on cells that are done."""
        self.claims.give_back(name)


class Executor(ABC):
    """Where cells are run."""

    @abstractmethod
    def run(self, work: Work) -> Results:
        """Runs once everything that nobody else has claimed; what others have is left in ``work``."""

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what was started."""
