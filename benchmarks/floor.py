"""The least time that a piece of work can take: its matrix products, at rates measured in the same run.

A product takes at least as long as its floating-point operations at the rate of a large product, and at least as long
as its weights take to be read from memory. Everything else is left out (elementwise work, Python, and activations,
which may stay in the cache), so no program that does these products is faster. ``speed.py`` and ``peers.py`` run this
file with :mod:`runpy`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from attriboard.evaluation.timing import timed

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product is timed."""
READ_SIDE = 8192
"""Rows and columns of the matrix that is read: too large for any cache."""
TRIES = 20
"""Of which the fastest counts, so that a busy computer does not raise the floor."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second.

    Attributes:
        flops: floating-point operations of a large product of matrices.
        bytes: of a large matrix that is read to be multiplied by one vector.
    """

    flops: float
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Rates:
        """Of this device, with the threads that PyTorch may use now."""
        side = SIDE[device.type]
        square, large = (torch.ones(n, n, dtype=dtype, device=device) for n in (side, READ_SIDE))
        vector = torch.ones(READ_SIDE, dtype=dtype, device=device)
        return cls(
            2 * side**3 / _fastest(lambda: square @ square, device),
            large.numel() * large.element_size() / _fastest(lambda: large @ vector, device),
        )

    def best(self, other: Rates) -> Rates:
        """The higher of each."""
        return Rates(max(self.flops, other.flops), max(self.bytes, other.bytes))

    def json(self) -> dict[str, float]:
        return {f"{name}_per_second": value for name, value in asdict(self).items()}


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of :data:`TRIES`."""
    timed(work, device)  # the first one also sets up threads and memory
    return min(timed(work, device) for _ in range(TRIES))


class Products(TorchDispatchMode):
    """Context: counts the matrix products that are run while it is open, backward passes included.

    Args:
        modules: whose parameters are weights.

    Attributes:
        found: how often each ``(floating-point operations, bytes of weights)`` was met.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        parameters = (parameter for module in modules for parameter in module.parameters())
        self._weights = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.found: Counter[tuple[int, int]] = Counter()

    @property
    def flops(self) -> int:
        return sum(flops * times for (flops, _), times in self.found.items())

    @property
    def bytes(self) -> int:
        return sum(read * times for (_, read), times in self.found.items())

    def seconds(self, rates: Rates) -> float:
        """The floor: each product at the slower of its two rates."""
        return sum(max(f / rates.flops, b / rates.bytes) * times for (f, b), times in self.found.items())

    def json(self, rates: Rates) -> dict[str, float]:
        return {"seconds": self.seconds(rates), "flops": self.flops, "weight_bytes": self.bytes}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and packet not in _ATTENTION:
            with self:  # in inference mode, nn.Linear and others arrive whole
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        if packet in _ATTENTION:
            first, times = _ATTENTION[packet]
            flops = times * _attention(*args[first : first + 3])
        else:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
        read = sum(
            leaf.numel() * leaf.element_size()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() in self._weights
        )
        self.found[int(flops), read] += 1
        return out


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (0, 1.0),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 2.5),
}
"""Attention on a processor, which PyTorch's own counter does not know: where the queries stand, before keys and values,
among the arguments, and how many times the forward products it makes. Backward forms the pattern again, and each of the
two products has two gradients."""


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Operations of attention's two products: queries with keys, and the pattern with values."""
    rows, heads, positions, d_head = query.shape
    return 2 * rows * heads * positions * key.shape[-2] * (d_head + value.shape[-1])
