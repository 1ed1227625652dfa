"""Rows of tokens as data."""

from __future__ import annotations

import torch

from tests.bench.models import EXAMPLES, close, hooked
from tests.bench.sites import ROUNDING


def test_batch_rows_may_repeat() -> None:
    model = hooked("gemma3")
    batch = model.share_prefix(model.batch(EXAMPLES))
    logits = model.run(batch).logits
    index = torch.tensor([2, 0, 0, 3])
    picked = batch.rows(index)
    assert close(model.run(picked).logits, logits[index], ROUNDING)
    assert picked.answer.tolist() == [EXAMPLES[i].answer for i in index.tolist()]
    assert picked.counterfactual is not None
