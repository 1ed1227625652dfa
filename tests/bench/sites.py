"""Names of activations that tests of hooked models read, and how closely two float32 computations must agree."""

from __future__ import annotations

from attriboard.model import hook_name
from tests.bench.models import LAYERS, MIXTURES

LINEAR_SITES = ("resid_pre", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")
ROUNDING = 1e-5
"""Relative to the largest value: float32 sums in another order differ by about 1e-6."""


def linear_sites(family: str) -> tuple[str, ...]:
    """Those of :data:`LINEAR_SITES` that the family has."""
    return tuple(site for site in LINEAR_SITES if site != "post" or family not in MIXTURES)


def names(*sites: str) -> list[str]:
    """The names of some sites at every layer of the tiny models."""
    return [hook_name(site, layer) for site in sites for layer in range(LAYERS)]
