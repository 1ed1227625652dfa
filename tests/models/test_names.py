"""Activation names and back."""

from __future__ import annotations

import pytest

from attriboard.models.names import EMBED, hook_name, site_and_layer


@pytest.mark.parametrize("site", ["resid_pre", "pattern", "v", "z", "attn_out", "resid_mid", "act", "post", "mlp_out"])
def test_a_name_gives_its_site_and_layer_back(site: str) -> None:
    assert site_and_layer(hook_name(site, 12)) == (site, 12)


def test_names_are_those_of_transformer_lens() -> None:
    assert hook_name("z", 3) == "blocks.3.attn.hook_z"
    assert site_and_layer(EMBED) == ("embed", 0)


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.hook_zz", "blocks.x.attn.hook_z", "layers.0.attn.hook_z", "hook_z", ""]
)
def test_what_is_no_name_is_a_key_error_that_shows_one(name: str) -> None:
    with pytest.raises(KeyError, match=r"no activation is called .*blocks\.0\.attn\.hook_z"):
        site_and_layer(name)
