"""How a plan is divided: into cells that share scores, those that share examples, and shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records.record import Planned
from .identity import context_identity, scoring_identity

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
