"""The versions and the machine behind what is made now."""

from __future__ import annotations

import importlib.metadata
import platform
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

from ..records.checkout import commit
from ..records.record import Provenance


def provenance(device: torch.device, workers: int = 1, batch_size: int = 0) -> Provenance:
    """The versions and the machine behind a record made now, and how it was used (see :class:`Provenance`)."""
    cuda = device.type == "cuda"
    return Provenance(
        attriboard=importlib.metadata.version("attriboard"),
        attriboard_commit=commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=importlib.metadata.version("transformers"),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if cuda else _processor(),
        threads=torch.get_num_threads(),
        workers=workers,
        batch_size=batch_size,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    )


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
