"""The Hugging Face hub, where it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PROBE_SECONDS = 5.0


@contextmanager
def no_retries(hub: bool) -> Iterator[None]:
    """Where the hub cannot be reached, its clients work from their caches instead of retrying for half a minute."""
    if not hub or hub_answers():
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def hub_answers() -> bool:
    """Whether the hub can be reached."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # no name service, no route, a proxy that refuses, offline mode
        return False
    return True
