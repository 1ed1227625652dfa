"""Arithmetic whose every result is moved by about one rounding, to see how far rounding moves what is computed.

Stochastic arithmetic (CESTAC: Vignes 1993, "A stochastic arithmetic for reliable scientific computation", Mathematics
and Computers in Simulation 35): a computation is repeated with the last digit of every result moved up or down at
random, and the spread of its outcomes estimates the error that rounding makes in it. That reaches what no change of the
inputs does, such as ``1 - p`` of a probability that is 1 to single precision.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

# fmt: off
ROUNDED = frozenset((
    "add", "addbmm", "addcdiv", "addcmul", "addmm", "addmv", "baddbmm", "bmm", "convolution", "cos", "cumsum", "div",
    "dot", "erf", "exp", "exp2", "expm1", "_fused_rms_norm", "gelu", "index_add", "lerp", "linalg_vector_norm",
    "linear", "log", "log10", "log1p", "log2", "_log_softmax", "logsumexp", "mean", "mm", "mul", "mv",
    "native_group_norm", "native_layer_norm", "norm", "pow", "prod", "reciprocal", "rms_norm", "rsqrt", "rsub",
    "_safe_softmax", "scatter_add", "sigmoid", "silu", "sin", "_softmax", "softplus", "sqrt", "std", "sub", "sum",
    "tan", "tanh", "var", "var_mean",
))
# fmt: on
"""The operations whose results are rounded, by the names of ATen, beside the backward operations.

Results of the others (copies, choices, comparisons) are exact.
"""
BACKWARD = ("_backward", "_backward_data")
"""How the names of backward operations end."""
EXACT = frozenset(
    ("index_select_backward", "select_backward", "slice_backward", "threshold_backward", "unfold_backward")
)
"""Backward operations that copy or choose."""
BLOCK = 2**20
"""So many directions are drawn at once, of which every result takes a stretch that begins somewhere."""


@contextmanager
def stochastic(seed: int) -> Iterator[None]:
    """While open, every result of arithmetic in floating point is multiplied by ``1 + e`` or ``1 - e``, at random.

    ``e`` is the distance from 1 to the next number of the result's type (2^-23 of float32), so that a result moves by
    one or two units in its last place. Backward passes are moved too. Attention is computed step by step, since what
    happens inside a fused operation cannot be moved. Results beyond the largest number of their type are cut to it.

    Args:
        seed: of the directions; the same computation is moved alike, on every device.
    """
    with sdpa_kernel(SDPBackend.MATH), _Stochastic(seed):
        yield


class _Stochastic(TorchDispatchMode):
    """Sees every operation below autograd, so that passes back are moved like passes forward."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.begin = random.Random(seed)
        self.factors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.rstrip("_") in ROUNDED or (name.endswith(BACKWARD) and name not in EXACT):
            for one in result if isinstance(result, tuple | list) else (result,):
                if isinstance(one, Tensor) and one.is_floating_point():
                    self._move(one)
        return result

    def _move(self, x: Tensor) -> None:
        """Moves a result in place."""
        key = x.device, x.dtype
        if key not in self.factors:
            up = torch.rand(BLOCK, generator=torch.Generator().manual_seed(self.seed)) < 0.5
            self.factors[key] = (1 + torch.finfo(x.dtype).eps * (2 * up.double() - 1)).to(*key)
        factors, n = self.factors[key], x.numel()
        if n > BLOCK // 2:
            factors = factors.repeat(-(-n // BLOCK) + 1)
        at = self.begin.randrange(BLOCK // 2)
        largest = torch.finfo(x.dtype).max
        x.mul_(factors[at : at + n].view(x.shape)).clamp_(-largest, largest)
