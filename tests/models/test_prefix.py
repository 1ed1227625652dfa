"""Rows run behind what no longer changes, against the same rows run whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from attriboard.interventions import replacing
from attriboard.model import Batch, CleanPass, Cost, Model, in_parts
from attriboard.models import prefix
from tests.bench import models as m

EMBED = "hook_embed"


def masks_of(batch: Batch, per_row: int = 4) -> tuple[Tensor, Tensor]:
    """Rows of a batch, each several times, and the columns to replace in them: early, late, several and none."""
    rows = torch.arange(len(batch)).repeat_interleave(per_row)
    masks = torch.zeros(len(rows), batch.tokens.shape[1], dtype=torch.bool)
    random = torch.Generator().manual_seed(0)
    for i, row in enumerate(rows.tolist()):
        real = batch.real[row].nonzero()[:, 0].tolist()
        chosen = [real[0]] if i % per_row == 0 else [real[-1]] if i % per_row == 1 else []
        if i % per_row == 2:
            chosen = [column for column in real if float(torch.rand((), generator=random)) < 0.3 and column != real[0]]
        masks[i, chosen] = True
    return rows, masks


def single_columns(batch: Batch) -> tuple[Tensor, Tensor]:
    """Every real column of every row alone."""
    at = batch.real.nonzero()
    masks = torch.zeros(len(at), batch.tokens.shape[1], dtype=torch.bool)
    masks[torch.arange(len(at)), at[:, 1]] = True
    return at[:, 0], masks


def behind(model: Model, batch: Batch, rows: Tensor, masks: Tensor) -> tuple[Tensor, list[int]]:
    """Logits of all rows with zeros in place of the embeddings, and how many columns each batch left out."""
    clean, out, cuts = CleanPass(model, batch), torch.zeros(len(rows), model.d_vocab), []
    seen: list[int] = []
    for part, some, n in clean.behind(rows, masks):
        edits = replacing({EMBED: torch.zeros(())}, {EMBED: masks[part, n:, None]})
        out[part] = model.run(some, edits=edits).logits
        cuts.append(n)
        seen += part.tolist()
        assert len(part) <= model.batch_size
    assert sorted(seen) == list(range(len(rows)))
    return out, cuts


def whole(model: Model, batch: Batch, rows: Tensor, masks: Tensor) -> Tensor:
    edits = replacing({EMBED: torch.zeros(())}, {EMBED: masks[..., None]})
    return model.run(batch.rows(rows), edits=edits).logits


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", [*m.FAMILIES, "opt", "qwen3", "olmo2"])
def test_rows_behind_their_prefix_are_the_rows_run_whole(family: str, padding_side: str) -> None:
    for size in (1, 3, 64):
        model = m.hooked(family, batch_size=size, padding_side=padding_side)
        batch = model.batch(m.EXAMPLES)
        for rows, masks in (masks_of(batch), single_columns(batch)):
            found, cuts = behind(model, batch, rows, masks)
            assert m.close(found, whole(model, batch, rows, masks), 2e-5)
            if size == 1:
                assert max(cuts) >= min(len(e.tokens) for e in m.EXAMPLES) - 1
        assert m.close(CleanPass(model, batch).logits, model.run(batch).logits, 2e-5)


def seeing(family: str, padding_side: str) -> Model:
    model = copy.copy(m.seeing(family))
    model.padding_side, model.cost = padding_side, Cost()
    return model


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", m.SEEING)
def test_a_causal_picture_is_cut_through_and_no_other(family: str, padding_side: str) -> None:
    """Every column of pictures and text, in rows whose pictures begin in different columns."""
    model = seeing(family, padding_side)
    encoded = [model.encode(e.example) for e in m.vision_examples()]
    for size in (1, 5):
        model.batch_size = size
        batch = model.batch(encoded)
        rows, masks = single_columns(batch)
        found, cuts = behind(model, batch, rows, masks)
        assert m.close(found, whole(model, batch, rows, masks), 2e-5)
        if size == 1:
            image = batch.image_mask[rows]
            inside = image & masks & image.roll(1, 1)  # behind another patch
            if model.architecture.bidirectional is None:
                assert sum(n > 0 for n in cuts) >= int(inside.any(1).sum()) > 0
            if model.architecture.bidirectional == "prompt":
                assert set(cuts) == {0}
            if model.architecture.bidirectional == "images":
                after = int((masks & (image.int().cumsum(1) == image.sum(1, keepdim=True)) & ~image).any(1).sum())
                assert 0 < sum(n > 0 for n in cuts) <= after


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_work_is_each_rows_own_whatever_stands_beside_it(family: str) -> None:
    counted = set()
    for size, side in ((1, "left"), (3, "left"), (64, "right")):
        model = m.hooked(family, batch_size=size, padding_side=side)
        batch = model.batch(m.EXAMPLES)
        rows, masks = masks_of(batch)
        behind(model, batch, rows, masks)
        counted.add(model.cost.flops)
    model = m.hooked(family)
    expected = sum(model.full_pass(e) for e in m.EXAMPLES)
    for row, mask in zip(rows.tolist(), masks):
        length = len(m.EXAMPLES[row].tokens)
        own = int(mask[:length].int().argmax()) if bool(mask.any()) else length - 1  # padded at the right
        expected += model.sizes.flops(length - own, own)
    assert counted == {expected}


def test_where_a_prefix_does_not_hold_everything_is_run() -> None:
    model = m.hooked("llama")
    model.shares_prefixes = False
    batch = model.batch(m.EXAMPLES)
    rows, masks = masks_of(batch)
    found, cuts = behind(model, batch, rows, masks)
    assert set(cuts) == {0}
    assert m.close(found, whole(model, batch, rows, masks))
    passes = 1 + 4 + 4  # the clean one, the rows, and the rows run whole
    assert model.cost.flops == passes * sum(map(model.full_pass, m.EXAMPLES))


def test_long_prompts_are_remembered_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = m.hooked("llama")
    batch = model.batch(m.EXAMPLES)
    assert in_parts(model, batch) == [batch]
    monkeypatch.setattr(prefix, "_BYTES", 1)
    parts = in_parts(model, batch)
    assert [len(part) for part in parts] == [1] * len(m.EXAMPLES)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)


def test_what_ends_a_row_is_known_on_the_host() -> None:
    for side in ("left", "right"):
        model = m.hooked("llama", padding_side=side)
        batch = model.batch(m.EXAMPLES)
        for one in (batch, batch.rows(torch.tensor([2, 0, 0])), model.share_prefix(batch)):
            assert list(one.ends) == one.last.tolist()
