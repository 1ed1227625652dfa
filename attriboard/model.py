"""The model as methods and tasks see it; the code stands in :mod:`attriboard.models`."""

from __future__ import annotations

from .models.batch import Batch, EncodedExample
from .models.cost import Cost
from .models.hooks import Edit, Run
from .models.model import Model
from .models.names import hook_name
from .models.prefix import CleanPass, columns_from, in_parts
from .models.products import product

__all__ = [
    "Batch",
    "CleanPass",
    "Cost",
    "Edit",
    "EncodedExample",
    "Model",
    "Run",
    "columns_from",
    "hook_name",
    "in_parts",
    "product",
]
