"""Every measurement and metric that ships: importing this module imports them all.

``python -m attriboard.measurements.registry`` prints ``docs/metrics.md``.
"""

from __future__ import annotations

import importlib
import pkgutil
import textwrap

from .. import measurements as package
from .base import MEASUREMENTS, METRICS, Measurement, Metric

for _module in pkgutil.iter_modules(package.__path__):
    if _module.name not in ("base", "registry"):
        importlib.import_module(f"{package.__name__}.{_module.name}")

__all__ = ["MEASUREMENTS", "METRICS", "Measurement", "Metric", "page"]


def page() -> str:
    """``docs/metrics.md``: every metric in words."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from what measurements declare (`attriboard/measurements/`); every record stores the",
        "version of each metric.",
    ]
    for measurement in MEASUREMENTS.values():
        paragraph = textwrap.wrap(measurement.text, 120, break_long_words=False, break_on_hyphens=False)
        lines += ["", f"## {measurement.name}", *([""] if paragraph else []), *paragraph]
        for metric in measurement.metrics:
            facts = f"`{metric.name}`, version {metric.version}. Unit: {metric.unit}. Better: {metric.better}."
            lines += ["", f"### {metric.title}", "", facts, "", metric.text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
