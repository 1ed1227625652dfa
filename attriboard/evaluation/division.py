"""Groups of examples that share as little as can be, for cross-fitting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..model import EncodedExample


def divided(examples: Sequence[EncodedExample], n: int) -> list[list[int]]:
    """Up to ``n`` groups of the examples of one half, as even as may be, that share as little as can be.

    Groups share neither items nor frames if the examples fall apart so; else no frame; else no item. A division counts
    as even where no group has more than half again as many as it would have.
    """
    n = max(1, min(n, len(examples)))
    frames, items = ([getattr(e.example, name) or i for i, e in enumerate(examples)] for name in ("frame", "item"))
    for labels in (_components(frames, items), frames, items, list(range(len(examples)))):
        groups = _packed(labels, n)
        if max(map(len, groups)) <= 1.5 * math.ceil(len(examples) / n) and min(map(len, groups)):
            break
    return sorted(sorted(group) for group in groups)


def _components(a: Sequence[object], b: Sequence[object]) -> list[object]:
    """Labels of the connected parts of examples that share a label in ``a`` or in ``b``."""
    part = list(range(len(a)))

    def root(i: int) -> int:
        while part[i] != i:
            i = part[i]
        return i

    for labels in (a, b):
        first: dict[object, int] = {}
        for i, label in enumerate(labels):
            part[root(i)] = root(first.setdefault(label, i))
    return [root(i) for i in range(len(a))]


def _packed(labels: Sequence[object], n: int) -> list[list[int]]:
    """Examples of one label together, each label into the smallest group, the most frequent labels first."""
    groups: list[list[int]] = [[] for _ in range(n)]
    for label, _ in Counter(labels).most_common():
        min(groups, key=len).extend(i for i, other in enumerate(labels) if other == label)
    return groups


def merged(groups: Sequence[Sequence[int]], n: int) -> list[list[int]]:
    """The same groups put together to ``n``, which divides their number or is smaller."""
    return [sorted(i for group in groups[k::n] for i in group) for k in range(n)]
