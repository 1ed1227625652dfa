"""The time left of a run, learned from what is finished.

Before a cell runs, the work of each of its stages is estimated (:mod:`.estimate`). How long work takes follows from the
stages that are finished: a rate and an overhead for all, and a factor of each model and level, of each kind of stage
and of each method in it, as far as they have been seen. There is no clock here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

DOUBT = 0.5
"""How many average pieces a factor of 1 counts for, beside what is known of a trait."""
ROUNDS = 4
"""How often the factors of all traits are found, each beside the others."""
RELEARN = 1.01
"""By which factor the finished pieces must have grown for rates to be learned again."""


class Piece(NamedTuple):
    """One stage of one cell ahead.

    Attributes:
        traits: what it has in common with others that may be quicker or slower than the rest, each with a factor of its
            own: the model and level, the stage, the method in that stage.
        weight: its estimated work, in any unit; None where it is not known: it then counts as the mean of the others.
        first: whether the model is loaded in it.
    """

    traits: tuple[Hashable, ...]
    weight: float | None
    first: bool = False


class TimeLeft:
    """How long what is left of a run will take.

    Args:
        pieces: what is ahead, by any key; how pieces make cells is the caller's business.
    """

    def __init__(self, pieces: Mapping[Any, Piece]) -> None:
        known = [piece.weight for piece in pieces.values() if piece.weight is not None]
        mean = sum(known) / len(known) if known and sum(known) > 0 else 1.0
        self._pieces: dict[Hashable, Piece] = {
            key: piece._replace(weight=1.0 if piece.weight is None else piece.weight / mean)
            for key, piece in pieces.items()
        }
        self._seconds: dict[Hashable, float] = {}
        self._gone: set[Hashable] = set()
        self._rates = _Rates()
        self._taught = 0

    def finished(self, key: Hashable, seconds: float) -> None:
        """A piece is done and took so long; one that was not ahead teaches nothing."""
        if key in self._pieces:
            self._seconds[key] = max(0.0, seconds)

    def gone(self, key: Hashable) -> None:
        """A piece need not be run any more, and nothing is known of how long it took."""
        if key in self._pieces and key not in self._seconds:
            self._gone.add(key)

    @property
    def done(self) -> int:
        """How many pieces need not be run any more."""
        return len(self._seconds) + len(self._gone)

    @property
    def share(self) -> float:
        """The share of the whole work that is done, between 0 and 1; in seconds as the rates now say."""
        rates = self._learned()
        work = {key: rates.seconds(piece) for key, piece in self._pieces.items()}
        total = sum(work.values())
        open_work = sum(work[key] for key in self._open())
        return 1 - open_work / total if total > 0 else 1.0

    def left(self, workers: int = 1, running: Mapping[Any, float] | None = None) -> float | None:
        """Seconds until everything is done; None before anything is known.

        Args:
            workers: how many run at a time.
            running: of pieces that run now, for how many seconds they have.
        """
        if not self._seconds:
            return None if self._open() else 0.0
        rates = self._learned()
        now = running or {}
        ahead = [max(0.0, rates.seconds(self._pieces[key]) - now.get(key, 0.0)) for key in self._open()]
        # a piece is not divided among workers
        return max(sum(ahead) / max(1, workers), max(ahead, default=0.0))

    def _open(self) -> list[Hashable]:
        return [key for key in self._pieces if key not in self._seconds and key not in self._gone]

    def _learned(self) -> _Rates:
        # of many thousand pieces, one more changes nothing
        if len(self._seconds) > RELEARN * self._taught or not self._taught:
            self._rates = _Rates.of([(self._pieces[key], seconds) for key, seconds in self._seconds.items()])
            self._taught = len(self._seconds)
        return self._rates


class _Rates(NamedTuple):
    """Seconds of a piece: ``overhead + rate * weight``, times the factors of its traits, and ``loading`` if first."""

    overhead: float = 0.0
    rate: float = 1.0
    loading: float = 0.0
    factors: Mapping[Hashable, float] = {}

    def seconds(self, piece: Piece) -> float:
        return self.plain(piece) * self.factor(piece) + (self.loading if piece.first else 0.0)

    def plain(self, piece: Piece) -> float:
        return self.overhead + self.rate * (piece.weight or 0.0)

    def factor(self, piece: Piece, without: int | None = None) -> float:
        """Of all its traits, or of all but one."""
        return math.prod(self.factors.get(trait, 1.0) for i, trait in enumerate(piece.traits) if i != without)

    @classmethod
    def of(cls, seen: list[tuple[Piece, float]]) -> _Rates:
        """What finished pieces teach."""
        if not seen:
            return cls()
        later = [(piece, seconds) for piece, seconds in seen if not piece.first] or seen
        rates = cls(*_line([(piece.weight or 0.0, seconds) for piece, seconds in later]))
        for _ in range(ROUNDS):
            for place in range(max(len(piece.traits) for piece, _ in later)):
                of_trait = [
                    (piece.traits[place], rates.plain(piece) * rates.factor(piece, without=place), seconds)
                    for piece, seconds in later
                    if place < len(piece.traits)
                ]
                rates = rates._replace(factors={**rates.factors, **_factors(of_trait)})
        extra = [seconds - rates.seconds(piece) for piece, seconds in seen if piece.first]
        return rates._replace(loading=max(0.0, sum(extra) / len(extra)) if extra else 0.0)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Overhead and rate, neither below 0, by least squares; errors count the less, the more work they are in."""
    total_x, total_y = (sum(values) for values in zip(*points))
    n = len(points)
    if total_x <= 0:
        return total_y / n, 0.0
    ratio, mean = total_y / total_x, total_x / n
    weights = [1 / (x + mean) for x, _ in points]
    w = sum(weights)
    x0 = sum(c * x for c, (x, _) in zip(weights, points)) / w
    y0 = sum(c * y for c, (_, y) in zip(weights, points)) / w
    spread = sum(c * (x - x0) ** 2 for c, (x, _) in zip(weights, points))
    if n < 3 or spread <= 1e-12 * w:
        return 0.0, ratio
    rate = sum(c * (x - x0) * (y - y0) for c, (x, y) in zip(weights, points)) / spread
    overhead = y0 - rate * x0
    if overhead < 0:
        return 0.0, ratio
    return (overhead, rate) if rate > 0 else (total_y / n, 0.0)


def _factors(cells: Iterable[tuple[Hashable, float, float]]) -> dict[Hashable, float]:
    """By name, seconds taken over seconds expected, drawn towards 1 by :data:`DOUBT` average cells."""
    expected: dict[Hashable, float] = defaultdict(float)
    taken: dict[Hashable, float] = defaultdict(float)
    n = 0
    for name, e, s in cells:
        expected[name] += e
        taken[name] += s
        n += 1
    doubt = DOUBT * sum(expected.values()) / max(1, n)
    return {name: (taken[name] + doubt) / (e + doubt) if e + doubt > 0 else 1.0 for name, e in expected.items()}
