"""What every test shares: quiet libraries and a fixed number of threads."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import transformers

from tests.bench.toy import build

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module="transformers")
torch.set_num_threads(1)  # tiny models: a second thread costs more than it gives, above all on a busy machine


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved toy model, a task it can do, methods that go wrong, and a suite; see :mod:`tests.toy`."""
    return build(tmp_path_factory.mktemp("toy"))
