"""The modules of a Hugging Face model by their role, found through :mod:`attriboard.models.architectures`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ModelError
from .architectures import Architecture


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that are read and changed; all but the first and last of one block each, first to last.

    Attributes:
        embed: the token embedding.
        blocks: the blocks themselves.
        attention: their attention modules.
        attn_out, mlp_down: the output projections; the latter None in mixtures of experts.
        mlp_act: the activation function of a gated FFN, or None.
        value: the projection that makes values, alone or packed with queries and keys.
        query, key: the projections that make these, or None where ``value`` makes them too.
        ln1, ln2: the norm before attention, and before the FFN, or None.
        mlp_reads: the modules of the FFN that read the residual stream, behind that norm.
        attn_post_norm, mlp_post_norm: the norm after the sub-layer, or None.
        final_norm: the norm before the unembedding.
        attn_end, mlp_end: the last module of the sub-layer before the residual add.
    """

    embed: Any
    blocks: list[Any]
    attention: list[Any]
    attn_out: list[Any]
    mlp_down: list[Any]
    mlp_act: list[Any]
    value: list[Any]
    query: list[Any]
    key: list[Any]
    ln1: list[Any]
    ln2: list[Any]
    mlp_reads: list[list[Any]]
    attn_post_norm: list[Any]
    mlp_post_norm: list[Any]
    final_norm: Any
    attn_end: list[Any]
    mlp_end: list[Any]


def find_parts(hf: nn.Module, architecture: Architecture, name: str) -> Parts:
    """The parts of a model called ``name``.

    Raises:
        ModelError: it has no module where the architecture table looks for one.
    """
    try:
        blocks = list(submodule(hf, architecture.layers))

        def by_block(path: str | None) -> list[Any]:
            return [submodule(block, path) if path else None for block in blocks]

        attn_out, mlp_down = by_block(architecture.attn_out), by_block(architecture.mlp_down)
        attn_post_norm, mlp_post_norm = by_block(architecture.attn_post_norm), by_block(architecture.mlp_post_norm)
        mlp = mlp_down if architecture.mlp is None else by_block(architecture.mlp)
        return Parts(
            embed=submodule(hf, architecture.embed),
            blocks=blocks,
            attention=by_block(architecture.attention),
            attn_out=attn_out,
            mlp_down=mlp_down,
            mlp_act=by_block(architecture.mlp_act),
            value=by_block(architecture.value),
            query=by_block(architecture.query),
            key=by_block(architecture.key),
            ln1=by_block(_first_path(blocks[0], architecture.ln1)),
            ln2=by_block(_first_path(blocks[0], architecture.ln2)),
            mlp_reads=list(map(list, zip(*map(by_block, architecture.mlp_in or (architecture.mlp,))))),
            attn_post_norm=attn_post_norm,
            mlp_post_norm=mlp_post_norm,
            final_norm=submodule(hf, architecture.final_norm),
            attn_end=[norm or out for norm, out in zip(attn_post_norm, attn_out)],
            mlp_end=[norm or out for norm, out in zip(mlp_post_norm, mlp)],
        )
    except AttributeError as error:
        raise ModelError(f"{name} says it is a {architecture.family} model, but {error}.") from error


def _first_path(block: nn.Module, paths: str | tuple[str, ...] | None) -> str | None:
    """Of several paths the first that a block has, or else the last."""
    if paths is None or isinstance(paths, str):
        return paths
    return next((path for path in paths if getattr(block, path, None) is not None), paths[-1])


def submodule(root: nn.Module, path: str) -> Any:
    """What stands at a dotted path below a module; AttributeError where nothing does."""
    return functools.reduce(getattr, path.split("."), root)


def in_out(module: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``, whether a Linear or GPT-2's Conv1D holds it.

    Raises:
        ModelError: the module is neither.
    """
    if isinstance(module, nn.Linear):
        return module.weight.T
    if isinstance(module, Conv1D):
        return module.weight
    raise ModelError(f"a projection is a {type(module).__name__}, and only Linear and GPT-2's Conv1D are known.")
