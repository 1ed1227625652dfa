"""Attention patterns read and replaced, whether a module asks transformers' attention interface or computes its own.

Modules that ask the interface are given attention written out. In the others, the pattern is what their one softmax
gives, and the values are what it is then multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

Between = Callable[[Tensor, Tensor], Tensor]
"""From the pattern ``[B, H, T, T_keys]`` and the values ``[B, H, T_keys, d_head]`` to the pattern that is used."""

_NAME = "attriboard_pattern"


def pattern_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention whose pattern passes through what :func:`put_between` gave the module.

    ``s_aux`` ``[H]`` are attention sinks (gpt-oss): one more score in every row, whose weight reads no value, so that
    the rows of the pattern sum to less than 1.
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    if s_aux is not None:
        sinks = s_aux.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., : key.shape[-2]].to(value.dtype)
    pattern = module._attriboard_pattern(pattern, value)  # type: ignore[operator]
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register(_NAME, pattern_attention)
AttentionMaskInterface.register(_NAME, eager_mask)


def put(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets an attribute until ``stack`` closes; then the owner is as before, with what its user had put there."""
    own = vars(owner)
    if name in own:
        stack.callback(setattr, owner, name, own[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)


def put_between(stack: ExitStack, module: Any, between: Between) -> None:
    """Gives an attention module what :func:`pattern_attention` calls, until ``stack`` closes."""
    put(stack, module, "_attriboard_pattern", between)


def write_out(stack: ExitStack, config: Any) -> None:
    """Switches every attention module that reads ``config`` to :func:`pattern_attention`, until ``stack`` closes."""
    stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = _NAME


_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)
_PRODUCT = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)


class _WatchedAttention(TorchFunctionMode):
    """While a module is ``watched``, what it multiplies its softmax by are values, and the softmax is its pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: Any = None
        self.shape: torch.Size | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.watched is not None and func is nn.functional.scaled_dot_product_attention:
            return _in_one(self.watched, *args, **(kwargs or {}))
        if self.watched is not None and self.shape is not None and func in _PRODUCT:
            weights, value = args
            pattern = weights.reshape(self.shape)
            heads = value.reshape(len(pattern), -1, *value.shape[-2:])
            heads = heads.repeat_interleave(pattern.shape[1] // heads.shape[1], dim=1)
            weights = self.watched._attriboard_pattern(pattern, heads).reshape(weights.shape)
            args, self.shape = (weights, value), None
        output = func(*args, **(kwargs or {}))
        if self.watched is not None and func in _SOFTMAX:
            self.shape = output.shape
        return output


def _in_one(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """PyTorch's attention, written out."""
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, torch.finfo(query.dtype).min)
    return pattern_attention(module, query, key, value, attn_mask, scale)[0].transpose(1, 2)


def watch_inline(stack: ExitStack, modules: Sequence[nn.Module]) -> None:
    """Leads the patterns of modules that compute their own through :func:`put_between`'s, until ``stack`` closes."""
    mode = stack.enter_context(_WatchedAttention())

    def enter(module: nn.Module, args: Any) -> None:
        mode.watched, mode.shape = module, None

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode.watched = None

    for module in modules:
        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)
