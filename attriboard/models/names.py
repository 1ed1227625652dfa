"""The names of activations, in the style of TransformerLens (``blocks.3.attn.hook_z``), and what they stand for.

Shapes: ``B`` rows, ``T`` positions, ``H`` query heads, ``d_head``, ``d_model``, ``d_mlp`` FFN hidden units.

| name                            | shape                 | what                                                   |
|---------------------------------|-----------------------|--------------------------------------------------------|
| ``hook_embed``                  | ``[B, T, d_model]``   | token embeddings, before any position embedding, with  |
|                                 |                       | image features in place of the placeholders            |
| ``blocks.l.hook_resid_pre``     | ``[B, T, d_model]``   | residual stream entering block ``l``                   |
| ``blocks.l.attn.hook_pattern``  | ``[B, H, T, T_keys]`` | attention weights after the softmax                    |
| ``blocks.l.attn.hook_v``        | ``[B, H, T_keys, d_head]`` | values, expanded to query heads (read only)       |
| ``blocks.l.attn.hook_z``        | ``[B, T, H, d_head]`` | head outputs before the output projection              |
| ``blocks.l.hook_attn_out``      | ``[B, T, d_model]``   | what attention adds to the residual stream             |
| ``blocks.l.hook_resid_mid``     | ``[B, T, d_model]``   | ``resid_pre + attn_out``                               |
| ``blocks.l.mlp.hook_act``       | ``[B, T, d_mlp]``     | output of the activation function, before a gated FFN  |
|                                 |                       | multiplies it (without a gate: ``hook_post``)          |
| ``blocks.l.mlp.hook_post``      | ``[B, T, d_mlp]``     | FFN coefficients, the input of the down-projection     |
| ``blocks.l.hook_mlp_out``       | ``[B, T, d_model]``   | what the FFN adds to the residual stream               |
| ``blocks.l.hook_resid_post``    | ``[B, T, d_model]``   | residual stream leaving block ``l``                    |

In blocks that run attention and FFN in parallel (GPT-J, Falcon), ``hook_resid_mid`` is a sum that the model itself
never forms. What is added to the residual stream is after any norm or factor behind the sub-layer (Gemma 2, Granite).
Rows of a pattern sum to 1, but for attention with sinks (gpt-oss), which take the rest. Mixtures of experts have
neither ``hook_act`` nor ``hook_post``.
"""

from __future__ import annotations

import functools

EMBED = "hook_embed"
"""The one activation that belongs to no layer."""

_SITES = {
    "resid_pre": "hook_resid_pre",
    "pattern": "attn.hook_pattern",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "act": "mlp.hook_act",
    "post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_SITE_OF = {suffix: site for site, suffix in _SITES.items()}


def hook_name(site: str, layer: int) -> str:
    """The full activation name of a site: ``hook_name("z", 3) == "blocks.3.attn.hook_z"``."""
    return f"blocks.{layer}.{_SITES[site]}"


@functools.cache
def site_and_layer(name: str) -> tuple[str, int]:
    """Undoes :func:`hook_name`: ``site_and_layer("blocks.3.attn.hook_z") == ("z", 3)``.

    The site of :data:`EMBED` is "embed", its layer 0.

    Raises:
        KeyError: no activation has that name.
    """
    if name == EMBED:
        return "embed", 0
    prefix, _, rest = name.partition(".")
    layer, _, suffix = rest.partition(".")
    if prefix != "blocks" or not layer.isdigit() or suffix not in _SITE_OF:
        raise KeyError(f"no activation is called {name!r}; names look like 'blocks.0.attn.hook_z'.")
    return _SITE_OF[suffix], int(layer)
