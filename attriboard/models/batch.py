"""Examples in one model's tokens, and rows of them ready to run: plain data, moved to a device and cut in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ExampleError
from ..task import Example

Past = tuple[tuple[Tensor, Tensor], ...]
"""Per layer the keys and values ``[B, H_kv, P, d_head]`` of positions that have been run already."""


def sent(values: Tensor, device: torch.device) -> Tensor:
    """What is on the host, on a device; a GPU is not waited for."""
    return values.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example in one model's tokens; ``counterfactual`` has the length of ``tokens``.

    For an example with an image, ``tokens`` hold the placeholder once per patch, and ``image`` and
    ``counterfactual_image`` ``[n_patches, d_model]`` are what the language model sees there.
    """

    example: Example
    tokens: tuple[int, ...]
    answer: int
    foil: int | None
    counterfactual: tuple[int, ...] | None
    image: Tensor | None = None
    counterfactual_image: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens ready to run.

    Attributes:
        tokens: ``[B, T]``.
        mask: ``[B, P + T]``, 0 at padding; ``P`` positions of a shared prefix may precede the tokens.
        positions: ``[B, T]`` position ids.
        image_mask: ``[B, T]`` bool, True where an image feature stands.
        last: ``[B]`` index into ``T`` of the last real token, the one that predicts the answer.
        ends: the same on the host, so that no device need be waited for.
        answer, foil: ``[B]`` token ids; ``foil`` is -1 where there is none.
        examples: the encoded examples behind the rows.
        counterfactual: the paired prompts as a batch of the same shape, if every row has one.
        past: keys and values of the shared prefix, if there is one.
        images: ``[B, n_patches, d_model]`` the image features; None where no image stands in ``tokens``. Of rows that
            begin inside their images, those that are left, ``[n, d_model]``.
        axes: ``[B, T, 3]`` position ids in time, height and width, of a model that turns them separately (M-RoPE);
            None where ``positions`` are all.
        spans: by row how many positions a pass runs, and how many stand before them whose keys and values are known:
            of the row by itself, without padding, whatever it shares with its neighbors.
        looked: by row the example's own features ``[n_patches, d_model]`` behind ``images``; empty for text.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    image_mask: Tensor
    last: Tensor
    ends: tuple[int, ...]
    answer: Tensor
    foil: Tensor
    examples: tuple[EncodedExample, ...]
    counterfactual: Batch | None = None
    past: Past = ()
    images: Tensor | None = None
    axes: Tensor | None = None
    spans: tuple[tuple[int, int], ...] = ()
    looked: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def real(self) -> Tensor:
        """``[B, T]``: True at real tokens, False at padding."""
        return self.mask[:, -self.tokens.shape[1] :].bool()

    @property
    def first(self) -> Tensor:
        """``[B]``: the column of each row's first real token."""
        return self.real.int().argmax(1)

    def rows(self, index: Tensor) -> Batch:
        """The batch made of the given rows, which may repeat."""
        chosen, index = index.tolist(), sent(index, self.tokens.device)
        return Batch(
            tokens=self.tokens[index],
            mask=self.mask[index],
            positions=self.positions[index],
            image_mask=self.image_mask[index],
            last=self.last[index],
            ends=tuple(self.ends[i] for i in chosen),
            answer=self.answer[index],
            foil=self.foil[index],
            examples=tuple(self.examples[i] for i in chosen),
            counterfactual=None if self.counterfactual is None else self.counterfactual.rows(index),
            past=tuple((k[index], v[index]) for k, v in self.past),
            images=None if self.images is None else self.images[index],
            axes=None if self.axes is None else self.axes[index],
            spans=tuple(self.spans[i] for i in chosen),
            looked=tuple(self.looked[i] for i in chosen) if self.looked else (),
        )


def pad_rows(
    rows: Sequence[Sequence[int]],
    examples: Sequence[EncodedExample],
    images: Sequence[Tensor | None] = (),
    *,
    pad: int = 0,
    padding_side: str = "left",
    placeholder: int = -1,
    grid: tuple[int, int] | None = None,
    device: torch.device,
) -> Batch:
    """Rows of token ids as one batch, padded to the longest.

    Args:
        rows: one per example: its prompt or its counterfactual.
        examples: the examples behind the rows.
        images: by row the image features ``[n_patches, d_model]``; all None (or none given) for text.
        pad: the token id of padding.
        padding_side: "left" or "right".
        placeholder: the token id that stands where image features go; -1 for a model that reads text only.
        grid: (rows, columns) of patches, where positions have three axes (M-RoPE); None where they have one.
        device: where the batch goes.

    Raises:
        ExampleError: some rows have an image and others none.
    """
    width = max(len(r) for r in rows)
    left = padding_side == "left"
    tokens = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, columns] = torch.tensor(row)
        mask[i, columns] = 1
    features = [image for image in images if image is not None]
    if features and len(features) < len(rows):
        raise ExampleError("a batch mixes examples with and without an image; put them into batches of their own.")
    image_mask = (tokens == (placeholder if features else -1)) & mask.bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ends = tuple(width - 1 if left else len(row) - 1 for row in rows)
    return Batch(
        tokens=sent(tokens, device),
        mask=sent(mask, device),
        positions=sent(positions, device),
        image_mask=sent(image_mask, device),
        last=sent(torch.tensor(ends), device),
        ends=ends,
        answer=sent(torch.tensor([e.answer for e in examples]), device),
        foil=sent(torch.tensor([-1 if e.foil is None else e.foil for e in examples]), device),
        examples=tuple(examples),
        images=sent(torch.stack(features), device) if features else None,
        axes=sent(_three_axes(positions, image_mask, grid), device) if features and grid else None,
        spans=tuple((len(row), 0) for row in rows),
        looked=tuple(features),
    )


def _three_axes(positions: Tensor, image_mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """``[B, T, 3]``: positions in time, height and width, of rows with one image each.

    Text before the image counts all three up by one. The image starts where text would go on: time stands still there,
    and height and width count its rows and columns. Text behind it goes on after the largest of them.
    """
    rows, columns = grid
    nth = image_mask.cumsum(1) - 1
    first = positions.gather(1, image_mask.int().argmax(1, keepdim=True))
    behind = (nth == rows * columns - 1) & ~image_mask
    text = torch.where(behind, positions - rows * columns + max(rows, columns), positions)
    inside = torch.stack([first.expand_as(nth), first + nth // columns, first + nth % columns], -1)
    return torch.where(image_mask[..., None], inside, text[..., None])


def shared_columns(batch: Batch, other: Batch, before_image: bool = True) -> int:
    """How many leading columns two batches of one shape have in common.

    At most those before the first row's last token, and never a part of an image. Without ``before_image``, nothing
    where an image would follow.
    """
    differs = _differences(batch, other).any(0)
    n = int(differs.int().argmax()) if bool(differs.any()) else batch.tokens.shape[1] - 1
    n = min(n, int(batch.last.min()))
    if batch.images is not None and bool(batch.image_mask[:, n:].any()):
        n = min(n, int(batch.image_mask.any(0).int().argmax())) if before_image else 0  # never cut through an image
    return n


def own_prefixes(batch: Batch, other: Batch, before_image: bool = True) -> list[int]:
    """By row how many leading positions it would share with its counterfactual if it were run by itself.

    At most those before its last token, and never a part of an image; without ``before_image``, none where an image
    would follow.
    """
    differs = _differences(batch, other)
    n = torch.where(differs.any(1), differs.int().argmax(1), batch.tokens.shape[1])
    n = torch.minimum(n, batch.last)
    if batch.images is not None:
        columns = torch.arange(batch.tokens.shape[1], device=n.device)
        cut = (batch.image_mask & (columns >= n[:, None])).any(1)
        image = batch.image_mask.int().argmax(1)
        n = torch.where(cut, torch.minimum(n, image) if before_image else torch.zeros_like(n), n)
    own: list[int] = (n - batch.first).clamp(min=0).tolist()
    return own


def _differences(batch: Batch, other: Batch) -> Tensor:
    """``[B, T]`` bool: the columns in which two batches of one shape differ, in tokens or image features."""
    differs = batch.tokens != other.tokens
    if batch.images is not None and other.images is not None:
        changed = torch.zeros_like(batch.image_mask)
        changed[batch.image_mask] = (batch.images != other.images).any(-1).flatten()
        differs = differs | changed
    return differs


def leading_columns(batch: Batch, n: int) -> Batch:
    """The first ``n`` columns, to be run for their keys and values; ``last`` and the counterfactual stay whole."""
    return replace(
        batch,
        tokens=batch.tokens[:, :n],
        mask=batch.mask[:, :n],
        positions=batch.positions[:, :n],
        axes=None if batch.axes is None else batch.axes[:, :n],
        image_mask=batch.image_mask[:, :n],
        images=batch.images if bool(batch.image_mask[:, :n].any()) else None,
    )


def columns_behind(batch: Batch, n: int, past: Past) -> Batch:
    """The columns that follow the first ``n``, whose keys and values are ``past``."""
    image_mask = batch.image_mask[:, n:]
    return replace(
        batch,
        tokens=batch.tokens[:, n:],
        positions=batch.positions[:, n:],
        axes=None if batch.axes is None else batch.axes[:, n:],
        image_mask=image_mask,
        images=batch.images if bool(image_mask.any()) else None,
        last=batch.last - n,
        ends=tuple(end - n for end in batch.ends),
        past=past,
    )


def path_behind(batch: Batch, path: Sequence[int], past: Past) -> Batch:
    """The tokens of ``path`` behind every row of a batch without padding, whose keys and values are ``past``."""
    tokens = torch.tensor([list(path)] * len(batch), device=batch.tokens.device)
    mask = torch.cat([batch.mask, torch.ones_like(tokens)], 1)
    further = torch.arange(1, len(path) + 1, device=tokens.device)[:, None]
    return replace(
        batch,
        tokens=tokens,
        mask=mask,
        positions=mask.cumsum(1)[:, -len(path) :] - 1,
        axes=None if batch.axes is None else batch.axes[:, -1:] + further,
        spans=tuple((len(path), n + before) for n, before in batch.spans),
        looked=(),
        image_mask=torch.zeros_like(tokens, dtype=torch.bool),
        last=torch.full_like(batch.last, len(path) - 1),
        ends=(len(path) - 1,) * len(batch),
        counterfactual=None,
        past=past,
        images=None,
    )
