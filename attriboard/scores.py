"""Scores: one number per component, with names, and their file format (safetensors with JSON metadata)."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import MethodError

SKETCH = 1024
"""The most scores that a sketch holds."""
ORDERS = 8
"""Over how many random orders of equal scores is averaged."""


@dataclass(frozen=True)
class Scores:
    """What a method says of every component; higher = more responsible for the answer.

    Attributes:
        values: float32, shaped as the level (for example ``(layer, head)``).
        level: the level's name.
        names: component names in row-major order.
        metadata: whatever the method wants to say of its scores, as JSON (for example which entries are exact).
        each: the scores of each example that ``values`` is the mean of, shaped as it; None where there are none, or
            more than should be kept in memory. Not part of the file.
    """

    values: Tensor
    level: str
    names: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)
    each: list[Tensor] | None = field(default=None, repr=False, compare=False)

    def ranking(self, absolute: bool = False, seed: int | None = None) -> Tensor:
        """``[n]``: component indices from the highest (absolute, if asked) score to the lowest.

        Args:
            absolute: by the size of scores.
            seed: of the random order of equal scores. None leaves them in row-major order, which favours early
                layers: good for lists, not for judging.
        """
        return ordered(self.values.flatten(), absolute, seed)

    def ties(self, absolute: bool = False) -> float:
        """The share of components whose score (or its size) equals another component's."""
        return ties(self.values.flatten(), absolute)

    def top(self, k: int) -> list[tuple[str, float]]:
        """The ``k`` best components with their scores."""
        flat = self.values.flatten()
        return [(self.names[i], float(flat[i])) for i in self.ranking()[:k].tolist()]

    def sketch(self) -> list[float]:
        """The scores of every component where there are at most :data:`SKETCH`, else of so many, in row-major order.

        Which ones depends on the level and its size alone, so sketches of one model and level are comparable. Rounded
        to 6 significant digits.
        """
        flat = self.values.flatten()
        if len(flat) > SKETCH:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.level} {len(flat)}".encode()))
            flat = flat[torch.randperm(len(flat), generator=generator)[:SKETCH].sort().values]
        return [float(f"{value:.6g}") for value in flat.tolist()]

    def save(self, path: Path, **metadata: str) -> None:
        """Writes one tensor named ``scores`` and metadata ``names`` (JSON), ``level`` and whatever is given.

        Raises:
            OSError: the file cannot be written.
        """
        texts = {"names": json.dumps(self.names), "level": self.level, "details": json.dumps(self.metadata), **metadata}
        save_file({"scores": self.values.contiguous()}, path, metadata=texts)
        os.chmod(path, 0o644)  # the library's temporary file is readable by its owner alone

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads what :meth:`save` wrote.

        Raises:
            MethodError: the file has no tensor ``scores`` or no names.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "scores" not in file.keys() or "names" not in metadata:  # noqa: SIM118
                raise MethodError(f"{path} is not a score file: it needs a tensor 'scores' and metadata 'names'.")
            values = file.get_tensor("scores")
        details = json.loads(metadata.get("details", "{}"))
        return cls(values, metadata.get("level", ""), json.loads(metadata["names"]), details)


def ordered(values: Tensor, absolute: bool = False, seed: int | None = None) -> Tensor:
    """``[n]``: indices of values ``[n]`` from the highest (absolute, if asked) to the lowest.

    Args:
        seed: of the random order in which equal values stand, all of whose orders are equally likely; None leaves them
            in the order they have. Values that differ stand in one order whatever the seed.
    """
    if absolute:
        values = values.abs()
    if seed is None:
        return torch.argsort(values, descending=True, stable=True)
    shuffled = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed)).to(values.device)
    return shuffled[torch.argsort(values[shuffled], descending=True, stable=True)]


def tied_orders(values: Tensor, absolute: bool = False, seeds: Iterable[int] = range(ORDERS)) -> list[Tensor]:
    """The orders of values ``[n]`` to average over, each ``[n]``: one for each seed, or a single one without ties."""
    if ties(values, absolute) == 0:
        return [ordered(values, absolute)]
    return [ordered(values, absolute, seed) for seed in seeds]


def ties(values: Tensor, absolute: bool = False) -> float:
    """The share of values ``[n]`` (or of their sizes) that equal another one; 0 of none."""
    _, counts = (values.abs() if absolute else values).unique(return_counts=True)
    return int(counts[counts > 1].sum()) / max(1, len(values))


def top_chances(values: Tensor, k: int) -> Tensor:
    """``[n]`` float64: how likely each of values ``[n]`` is among the ``k`` highest, equal ones in random order."""
    if not 0 < k <= len(values):
        raise ValueError(f"the {k} highest of {len(values)} values: k must be from 1 to their number.")
    border = values.sort(descending=True).values[k - 1]
    above, level = values > border, values == border
    return above.double() + level.double() * (k - int(above.sum())) / int(level.sum())


def top_mask(ranking: Tensor, k: int) -> Tensor:
    """``[n]`` bool: True for the first ``k`` of a ranking ``[n]`` of indices."""
    mask = torch.zeros(len(ranking), dtype=torch.bool)
    mask[ranking[:k]] = True
    return mask
