"""What a score explains."""

from __future__ import annotations

import torch

from tests.bench.models import WITHOUT_FOILS, close, hooked, metric, plain_run
from tests.bench.sites import ROUNDING


def test_the_metric_is_a_logit_difference_or_without_a_foil_a_log_probability() -> None:
    model, plain = hooked("llama"), plain_run("llama")
    batch = model.batch(WITHOUT_FOILS)
    found = model.metric(model.run(batch).logits, batch)
    assert close(found, torch.stack([metric(plain.run(e.tokens)[0], e) for e in WITHOUT_FOILS]), ROUNDING)
    assert WITHOUT_FOILS[1].foil is None
