"""Cross-fitting: every kept example is judged with scores that were found on others.

The kept examples stand in two halves that share no base item and no frame. Each half is divided into groups; the
examples of a group are judged with the scores that were found on a group of the other half, and in each further
repetition with those of another group. So every example is judged once per repetition, by scores that never saw its
item or, where the task declares frames, its wording, and how far scores depend on the examples they are found on is
part of what is measured (after the two-way cross-fitting of Chiang, Kato, Ma & Sasaki 2022).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..scores import ORDERS, tied_orders
from ..task import SPLITS

if TYPE_CHECKING:
    from .context import Context

RANDOM_DRAWS = 16
"""A control at random is the mean over at least so many draws."""


def draws_of_group(groups: int) -> int:
    """How many draws of a control at random each of so many groups of either half has."""
    return math.ceil(RANDOM_DRAWS / (2 * groups))


@dataclass(frozen=True)
class Found:
    """The scores found on the groups of both halves.

    Attributes:
        values: ``[2, groups, draws, *shape]`` float32: by half and group, and of controls at random by draw.
    """

    values: Tensor

    @property
    def groups(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True)
class Trial:
    """Examples, and the scores with which they are judged.

    Attributes:
        members: the examples, as places in :attr:`attriboard.evaluation.context.Context.both`; all of one half.
        train: names the group on which the scores were found; empty where there is no such side.
        values: ``[draws, n]``: the scores, one row but for controls at random.
        seed: of what is drawn at random in judging them.
        trials: how many there are, among which draws are divided.
        taken: from a ranking ``[n]`` of components to the order in which sets take them, where that is another one.
    """

    members: tuple[int, ...]
    train: str
    values: Tensor
    seed: int
    trials: int
    taken: Callable[[Tensor], Tensor] | None = None

    def in_sets(self, ranking: Tensor) -> Tensor:
        """The order in which sets take the components of a ranking ``[n]``: the first ``k`` are the set of size k."""
        return ranking if self.taken is None else self.taken(ranking)

    def draws(self, wanted: int) -> int:
        """How many draws this trial makes, so that all together make at least ``wanted``."""
        return math.ceil(wanted / self.trials)

    def orders(self, absolute: bool = False) -> Iterator[Tensor]:
        """Orders ``[n]`` in which sets take components, by their (absolute, if asked) scores from the highest on.

        One for each draw of a control at random; where scores tie, so many seeded random orders of the tied ones that
        all trials together have at least :data:`attriboard.scores.ORDERS`.
        """
        for draw, values in enumerate(self.values):
            again = self.draws(ORDERS) if len(self.values) == 1 else 1
            for ranking in tied_orders(values, absolute, [seed_of(self.seed, "ties", draw, i) for i in range(again)]):
                yield self.in_sets(ranking)


def seed_of(*key: object) -> int:
    """A seed that what names a draw determines."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def trials(
    context: Context,
    scores: Tensor,
    found: Found | None,
    folds: int,
    repetitions: int,
    key: tuple[object, ...],
    taken: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Trial, ...]:
    """Which examples are judged with which scores.

    Args:
        scores: ``[n]``: of all train examples, or precomputed.
        found: those of the groups; None where there are none: the test half is then judged by ``scores``, as without
            cross-fitting. Precomputed scores may have been found on the train half.
        folds: into how many groups each half is divided; 0 for none.
        repetitions: how often every example is judged.
        key: names the cell; what is drawn at random follows from it.
        taken: as of :class:`Trial`.

    Returns:
        By repetition, half and group.
    """
    if not folds or found is None:
        members = tuple(context.test_half)
        return (Trial(members, "", scores.reshape(1, -1), seed_of(*key), 1, taken),)
    made = []
    for repetition in range(repetitions):
        for half, name in enumerate(SPLITS):
            start = 0 if name == SPLITS[0] else len(context.train)
            for place, group in enumerate(context.groups(name, folds)):
                index = (place + repetition) % found.groups
                own = found.values[1 - half, index].flatten(1)
                # a control at random has other draws in every repetition
                values = own[repetition % len(own) :: repetitions] if len(own) > 1 else own
                members = tuple(start + i for i in group)
                train = f"{SPLITS[1 - half]} {index}"
                made.append((members, train, values, seed_of(*key, repetition, half, place)))
    return tuple(Trial(*trial, len(made), taken) for trial in made)


@dataclass(frozen=True)
class Rows:
    """What :func:`judged` measured, in rows of one example in one trial.

    Attributes:
        examples: ``[rows]``: places in :attr:`attriboard.evaluation.context.Context.both`, counted from ``first``.
        items, frames, train: ``[rows]``: the base item and frame of each, and the group its scores were found on.
        values: by name, ``[..., rows]``.
    """

    examples: list[int]
    items: list[str]
    frames: list[str]
    train: list[str]
    values: dict[str, Tensor]


def judged(context: Context, chosen: Sequence[Trial], measured: Sequence[Mapping[str, Tensor]]) -> Rows:
    """What was measured of every trial, put together.

    Args:
        measured: by trial and name, tensors whose last axis is the trial's members.
    """
    members = [i for trial in chosen for i in trial.members]
    everyone = context.both
    first = min(members)
    return Rows(
        examples=[i - first for i in members],
        items=[everyone[i].example.item or f"example {i}" for i in members],
        frames=[everyone[i].example.frame for i in members],
        train=[trial.train for trial in chosen for _ in trial.members],
        values={name: torch.cat([m[name] for m in measured], dim=-1) for name in measured[0]},
    )
