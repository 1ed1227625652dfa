"""How a plan is divided: into cells that share scores, those that share examples, and shards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigurationError, in_digits
from ..records.record import Planned
from .identity import context_identity, scoring_identity

MAX_SHARDS = 10_000
"""The most parts that a plan is divided into."""

Pair = list[Planned]
"""Cells that share their scores; they are run one after the other in one place."""


def pairs_of(plan: Sequence[Planned]) -> dict[str, Pair]:
    """The cells that share their scores together, by these scores' identity, in the order of the first of each."""
    pairs: dict[str, Pair] = {}
    for planned in plan:
        pairs.setdefault(scoring_identity(*planned), []).append(planned)
    return pairs


def groups_of(pairs: Mapping[str, Pair]) -> dict[str, list[str]]:
    """Names of pairs by what they share beside: one model and the examples of one task, in the order of the first."""
    groups: dict[str, list[str]] = {}
    for name, pair in pairs.items():
        groups.setdefault(context_identity(*pair[0]), []).append(name)
    return groups


@dataclass(frozen=True)
class Shard:
    """The ``part``-th (from 1) of ``of`` parts of a plan, which together are the whole, each cell once.

    Raises:
        ConfigurationError: there is no such part.
    """

    part: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.of <= MAX_SHARDS:
            raise _no_shard(f"{in_digits(self.part)}/{in_digits(self.of)}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard from ``I/N``.

        Raises:
            ConfigurationError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None:
            raise _no_shard(text)
        return cls(int(found[1]), int(found[2]))

    def __call__(self, plan: Sequence[Planned]) -> list[Planned]:
        """Its cells, in the order of the plan; none where there are fewer cells that share scores than shards.

        It follows from the plan alone, whatever is stored. Cells that share a model and a task's examples stay
        together, as far as there are enough of these groups for every shard; those that share scores always do. The
        shards have about equally many cells: groups are handed out from the largest on, each to the shard that has the
        fewest cells.
        """
        pairs = pairs_of(plan)

        def cells(names: Sequence[str]) -> int:
            return sum(len(pairs[name]) for name in names)

        groups = list(groups_of(pairs).values())
        while len(groups) < self.of and (largest := max(groups, key=len, default=[]))[1:]:
            at, half = groups.index(largest), len(largest) // 2
            groups[at : at + 1] = [largest[:half], largest[half:]]
        shards: list[list[str]] = [[] for _ in range(self.of)]
        for group in sorted(groups, key=cells, reverse=True):
            min(shards, key=cells).extend(group)
        mine = {id(planned) for name in shards[self.part - 1] for planned in pairs[name]}
        return [planned for planned in plan if id(planned) in mine]


def _no_shard(given: str) -> ConfigurationError:
    return ConfigurationError(
        f"--shard is {given[:60]!r}, expected I/N, the I-th of N parts: 1/3, 2/3 and 3/3 are a whole run (at most "
        f"{MAX_SHARDS:,} parts)."
    )
