"""Attention written out, for modules that ask transformers' attention interface: a pattern can be read and replaced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
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
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention whose pattern passes through what :func:`put_between` gave the module."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
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
