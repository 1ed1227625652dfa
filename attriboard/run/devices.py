"""Devices by name: how fast they multiply matrices and how much memory they have, for what a run will cost.

Figures are of the vendor, for dense matrices: NVIDIA's data sheets "H100 Tensor Core GPU" (SXM: 67 TFLOPS in float32,
989 in bfloat16 and float16, 80 GB), "H200 Tensor Core GPU" (the same rates, 141 GB) and "A100 Tensor Core GPU" (SXM,
80 GB: 19.5 and 312 TFLOPS). Float32 is without TF32, which is off unless asked for. A forward pass of a model of 7
billion weights in bfloat16 over 592 positions takes 16.8 ms on an H200, which is 0.48 of its rate: :data:`SUSTAINED`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from ..errors import UnknownNameError
from ..loading import DTYPES

SUSTAINED = 0.48
"""The share of a GPU's stated rate that passes reach; see above."""
SUSTAINED_HERE = 0.75
"""The share of this computer's measured rate of matrix products that passes reach: what is left goes into norms,
softmax and copies. Three quarters of a cell's time are matrix products at about that rate."""
LAUNCH = 2e-4
"""Seconds in which a GPU is given one layer's work: some 20 kernels at 10 microseconds, the usual cost of a launch from
PyTorch. A pass never takes less, so small models are far from a GPU's rate."""
MEASURE_SECONDS = 1.0
"""For how long this computer's rate is measured."""
SIDE = 1024
"""Rows and columns of the matrices by which it is."""


@dataclass(frozen=True)
class Device:
    """What a device does.

    Attributes:
        name: as typed.
        rate: floating-point operations per second that forward passes reach.
        memory: in bytes.
        launch: seconds for a layer of a pass, however small.
    """

    name: str
    rate: float
    memory: float
    launch: float = 0.0

    def seconds(self, flops: float, layers: float) -> float:
        """The time of passes that do ``flops`` operations and run ``layers`` layers, one batch after the other."""
        return max(flops / self.rate, layers * self.launch)


_GPUS: dict[str, tuple[dict[str, float], float]] = {
    "h100": ({"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}, 80e9),
    "h200": ({"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}, 141e9),
    "a100": ({"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}, 80e9),
}
NAMES = (*_GPUS, "cpu")


def get_device(name: str, dtype: str) -> Device:
    """The device of that name, at the rate of a dtype; "cpu" is this computer, whose rate is measured.

    Raises:
        UnknownNameError: there is none; carries near names.
    """
    if name == "cpu":
        return Device(name, SUSTAINED_HERE * measured_rate(dtype), _memory_here())
    if name not in _GPUS:
        raise UnknownNameError("device", name, NAMES)
    rates, memory = _GPUS[name]
    return Device(name, SUSTAINED * rates[dtype], memory, LAUNCH)


def measured_rate(dtype: str, seconds: float = MEASURE_SECONDS) -> float:
    """Floating-point operations per second of products of square matrices on this computer."""
    a = torch.ones(SIDE, SIDE, dtype=DTYPES[dtype])
    a @ a  # the first one also sets up threads and memory
    done = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not done:
        a @ a
        done += 1
    return done * 2 * SIDE**3 / passed


def _memory_here() -> float:
    """This computer's memory; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
