"""How many rows go through a model at once where ``batch_size = "auto"``: as many as the memory holds."""

from __future__ import annotations

import re

import torch

from ..errors import ConfigurationError
from ..model import Model
from ..records.settings import AUTO, MAX_COUNT

ON_CPU = 32
"""Rows on a CPU, where more are not faster; and on a GPU until the first examples are drawn."""
MOST = 1024
"""The most rows: more are not faster."""
SET_ROWS = 8
"""How many times as many rows a GPU takes in a pass that keeps nothing: of all layers it holds one at a time."""
USED = 0.8
"""The share of the memory that is counted on; the rest is lost between blocks, or taken by libraries."""
_SAID = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say that are of no kind of their own."""


def parsed(text: str) -> int | str:
    """A batch size as it is typed.

    Raises:
        ConfigurationError: neither a whole number of rows nor "auto".
    """
    if text == AUTO:
        return AUTO
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= MAX_COUNT:
        raise ConfigurationError(
            f"--batch-size is {text[:60]!r}, expected a whole number from 1 to {MAX_COUNT:,}, or {AUTO}."
        )
    return int(text)


def fitting(model: Model, tokens: int, workers: int = 1) -> int:
    """The rows of ``tokens`` tokens that a pass with gradients has room for: a power of two up to :data:`MOST`.

    Args:
        workers: how many processes share a GPU.
    """
    if model.device.type != "cuda":
        return ON_CPU
    room = int(USED * free_bytes(model.device, workers)) // bytes_per_row(model, tokens)
    return 2 ** (min(max(room, 1), MOST).bit_length() - 1)


def bytes_per_row(model: Model, tokens: int) -> int:
    """An estimate of what one row takes in a pass with gradients, which keeps every activation.

    For each of ``n_layers`` layers and ``tokens`` positions 4 d_mlp numbers (gate, up, their product, its gradient), 10
    d_model (residuals, norms, queries, keys, values, outputs), and 3 ``n_heads tokens`` (attention scores, pattern, its
    gradient). Of a mixture of experts, whose hidden units are not one layer, d_mlp is taken for 4 d_model.
    """
    d_mlp = model.d_mlp if model.has_neurons else 4 * model.d_model
    numbers = 4 * d_mlp + 10 * model.d_model + 3 * model.n_heads * tokens
    return model.n_layers * tokens * numbers * model.dtype.itemsize


def free_bytes(device: torch.device, workers: int) -> int:
    """What one of several processes may still take of a GPU's memory.

    That is its share of the whole without what it holds already, as far as so much is free. What it has reserved and
    does not use is free for it.
    """
    free, total = torch.cuda.mem_get_info(device)
    held, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return max(0, min(free + reserved - held, total // workers - held))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory, of the computer or a GPU, is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)
