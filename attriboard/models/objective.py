"""What a score explains: numbers per row of a batch, from the logits at its last token. No model is needed here."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch


def metric(logits: Tensor, batch: Batch) -> Tensor:
    """``[B]``: logit(answer) - logit(foil), or log p(answer) for rows without a foil, from logits ``[B, V]``."""
    logits = logits.float()
    rows = torch.arange(len(batch), device=logits.device)
    answer = logits[rows, batch.answer]
    if bool((batch.foil >= 0).all()):
        return answer - logits[rows, batch.foil]
    difference = answer - logits[rows, batch.foil.clamp(min=0)]
    return torch.where(batch.foil >= 0, difference, answer - logits.logsumexp(-1))


def correct(logits: Tensor, batch: Batch) -> Tensor:
    """``[B]`` bool: the answer is the top token of logits ``[B, V]``; of a choice, likelier than the foil."""
    rows = torch.arange(len(batch), device=logits.device)
    wins = logits[rows, batch.answer] > logits[rows, batch.foil.clamp(min=0)]
    choice = torch.tensor([e.example.choice for e in batch.examples], device=logits.device)
    return torch.where(choice, wins, logits.argmax(-1) == batch.answer)


def measure(logits: Tensor, batch: Batch) -> Tensor:
    """``[B, 3]`` float32: of each row the :func:`metric`, log p(answer), and 1 where it is :func:`correct`, else 0."""
    logits = logits.float()
    rows = torch.arange(len(batch), device=logits.device)
    logprob = logits[rows, batch.answer] - logits.logsumexp(-1)
    return torch.stack([metric(logits, batch), logprob, correct(logits, batch).float()], dim=1)
