"""The questions of ``planted_copy``, for models in which parts work against the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .planted_copy import PlantedCopy


@dataclass
class PlantedSuppressor(PlantedCopy):
    """As ``planted_copy``, with examples of its own."""

    name: ClassVar[str] = "planted_suppressor"
    description: ClassVar[str] = "Say the color that stood behind a noun; for planted models that suppress it."
