"""The model as methods and tasks see it; the code stands in :mod:`attriboard.models`."""

from __future__ import annotations

from .models.model import Batch, Cost, Edit, EncodedExample, Model, Run, hook_name

__all__ = ["Batch", "Cost", "Edit", "EncodedExample", "Model", "Run", "hook_name"]
