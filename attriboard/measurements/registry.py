"""Every measurement and metric that ships: importing this module imports them all.

``python -m attriboard.measurements.registry`` prints ``docs/metrics.md``.
"""

from __future__ import annotations

import importlib
import pkgutil

from .. import measurements as package
from .base import MEASUREMENTS, METRICS, Measurement, Metric

for _module in pkgutil.iter_modules(package.__path__):
    if _module.name not in ("base", "registry"):
        importlib.import_module(f"{package.__name__}.{_module.name}")

__all__ = ["MEASUREMENTS", "METRICS", "Measurement", "Metric"]
