"""Matrix products with all digits of float32, whatever the type of the weights.

A float32 copy of a weight in bfloat16 costs three times the memory traffic of the product itself. On a GPU it is not
needed: a float32 number is the sum of three bfloat16 numbers of eight digits each, products of two bfloat16 numbers are
exact in float32, and that is what the matrix units add them up in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SUMS_IN_FLOAT32 = "dtype" in torch.ops.aten.mm.overloads()
"""Whether this PyTorch multiplies matrices in bfloat16 and returns the sums as they are, in float32."""


def factor(weight: Tensor) -> Tensor:
    """What :func:`product` multiplies by without a copy each time: the weight itself or, once, its float32 copy."""
    return weight if _takes_parts(weight) else weight.float()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``[..., m]`` float32: ``x`` ``[..., n]`` times ``weight`` ``[n, m]``."""
    if not _takes_parts(weight) or (torch.is_grad_enabled() and x.requires_grad):
        return x.float() @ weight.float()
    return products(x.reshape(1, -1, x.shape[-1]), [weight])[0].view(*x.shape[:-1], weight.shape[1])


def products(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """``[G, r, m]`` float32: each of ``x`` ``[G, r, n]`` times its own of ``G`` weights ``[n, m]``."""
    if not all(map(_takes_parts, weights)):
        return torch.stack([one.float() @ weight.float() for one, weight in zip(x, weights, strict=True)])
    n_groups, n_rows, _ = x.shape
    stacked = parts(x).flatten(1, 2)
    out = torch.empty(n_groups, n_rows, weights[0].shape[1], device=x.device)
    for to, rows, weight in zip(out, stacked, weights, strict=True):
        torch.sum(_sums_in_float32(rows, weight).view(3, n_rows, -1), 0, out=to)
    return out


def parts(x: Tensor) -> Tensor:
    """``[G, 3, ...]`` bfloat16: ``x`` ``[G, ...]`` as a sum over the second axis, to the last digit of float32."""
    rest, found = x.float(), []
    for _ in range(3):
        found.append(rest.bfloat16())
        rest = rest - found[-1]
    return torch.stack(found, dim=1)


def _takes_parts(weight: Tensor) -> bool:
    return _SUMS_IN_FLOAT32 and torch.version.hip is None and weight.is_cuda and weight.dtype == torch.bfloat16


def _sums_in_float32(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight, out_dtype=torch.float32)
