"""Rows of which some positions are replaced, run behind the columns before the first of them.

Attention is causal: what stands before the first replaced position is as in the pass in which nothing is replaced, and
its keys and values are taken from there. Exact, and about half of the work where any position may be the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .batch import Batch, Past, columns_behind, sent

if TYPE_CHECKING:
    from .model import Model

_BYTES = 2**29
"""The most keys and values that :func:`in_parts` lets be remembered; a single long prompt may need more."""


def in_parts(model: Model, batch: Batch) -> list[Batch]:
    """The batch cut into rows few enough for their keys and values to be remembered."""
    per_position = 2 * model.n_layers * model.n_kv_heads * model.d_head * model.dtype.itemsize
    size = max(1, _BYTES // (per_position * batch.tokens.shape[1]))
    return [batch] if size >= len(batch) else [batch.rows(part) for part in torch.arange(len(batch)).split(size)]


def columns_from(value: Tensor, n: int) -> Tensor:
    """``[B, T, ...]`` without its first ``n`` columns; as it is where one column stands for all."""
    return value[:, n:] if value.shape[1] > 1 else value


class CleanPass:
    """A pass in which nothing is replaced, whose keys and values later passes begin with.

    Where a prefix does not stay the same (prompts read in both directions, blocks that take no keys from before),
    later passes run every column.

    Args:
        model: the model.
        batch: the rows, without a shared prefix of their own.

    Attributes:
        logits: ``[B, V]`` at each row's last token.
    """

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self._holds = model.shares_prefixes and not batch.past and model.architecture.bidirectional != "prompt"
        run = model.run(batch, remember=self._holds)
        self.logits, self._past = run.logits, run.past
        self._first, self._image = batch.first.tolist(), batch.image_mask.cpu()

    def behind(self, rows: Tensor, replaced: Tensor) -> Iterator[tuple[Tensor, Batch, int]]:
        """The rows in batches, each behind the leading columns in which none of its own rows is replaced.

        Work is counted as if each row were run by itself, behind its own first replaced column.

        Args:
            rows: ``[R]``, on the host: which row of the batch each one is.
            replaced: ``[R, T]`` bool, on the host: the columns that will be replaced.

        Yields:
            ``[r]`` which of the ``R`` they are, at most ``batch_size``; the batch of them; and the number ``n`` of
            columns that it leaves out, so that column ``n`` is its first.
        """
        free = self._free_columns(rows, replaced)
        own = [max(0, n - self._first[row]) for n, row in zip(free.tolist(), rows.tolist())]
        for part in free.argsort(stable=True).split(self.model.batch_size):
            batch, n = self.batch.rows(rows[part]), int(free[part].min())
            if self._holds:
                spans = tuple((full - own[i], own[i]) for (full, _), i in zip(batch.spans, part.tolist()))
                batch = replace(batch, spans=spans, counterfactual=None)
            yield part, self._cut(batch, rows[part], n) if n > 0 else batch, n

    def _free_columns(self, rows: Tensor, replaced: Tensor) -> Tensor:
        """``[R]``: how many leading columns each row may leave out: at most those before its last token."""
        if not self._holds:
            return torch.zeros_like(rows)
        ends = torch.tensor(self.batch.ends)[rows]
        n = torch.where(replaced.any(1), torch.minimum(replaced.int().argmax(1), ends), ends)
        if self.model.architecture.bidirectional == "images":  # a picture is run with all that stands before it
            columns = torch.arange(replaced.shape[1])
            n = torch.where((self._image[rows] & (columns >= n[:, None])).any(1), 0, n)
        return n

    def _cut(self, batch: Batch, rows: Tensor, n: int) -> Batch:
        index = sent(rows, batch.tokens.device)
        past: Past = tuple((keys[:, :, :n][index], values[:, :, :n][index]) for keys, values in self._past)
        behind = columns_behind(batch, n, past)
        before = self._image[rows, :n].sum(1).tolist()
        if behind.images is None or not any(before):
            return behind
        # the features of the rows, one after the other, without those that stand before the cut
        each = behind.images.shape[1]
        kept = [row * each + i for row, gone in enumerate(before) for i in range(gone, each)]
        return replace(behind, images=behind.images.flatten(0, 1)[sent(torch.tensor(kept), index.device)])
