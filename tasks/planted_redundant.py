"""The questions of ``planted_copy``, for models with two heads that do the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .planted_copy import PlantedCopy


@dataclass
class PlantedRedundant(PlantedCopy):
    """As ``planted_copy``, with examples of its own."""

    name: ClassVar[str] = "planted_redundant"
    description: ClassVar[str] = "Say the color that stood behind a noun; for planted models with a backup."
