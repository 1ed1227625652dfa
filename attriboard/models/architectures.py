"""Where each family of Hugging Face models keeps its parts: the one table that knows architectures.

Every entry names modules by their role, relative to the model or to one block. Nothing here is trusted: a
loaded model proves on a batch that the parts found really add up (see ``Model.prove``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family.

    Attributes:
        family: name for messages.
        model_types: ``config.model_type`` values.
        embed, layers, final_norm: paths from the causal language model.
        attention: the attention module of a block (it carries ``layer_idx``).
        attn_out, mlp_down: the output projections; their inputs are ``hook_z`` and ``mlp.hook_post``.
        ln1: the norm before attention.
        value: the projection that makes values; ``fused`` says how it is packed with queries and keys.
        attn_post_norm, mlp_post_norm: norms after the sub-layer, before the residual add (Gemma 2 and 3).
        rms: root-mean-square norms (no centering, no bias); ``unit_offset``: they multiply by ``1 + weight``.
        tuple_blocks: a block returns a pair whose first part is the residual.
        mlp_act: the activation function of a gated FFN, whose output is multiplied before the down-projection; None
            where there is no gate.
        mlp_in: the projections that make ``mlp.hook_post``, the gate included.
        mlp_width: the configuration's name for the number of FFN hidden units.
        query, key: the projections that make queries and keys; None where ``value`` makes them too.
        free_heads: the number of heads and their width are set independently of ``d_model``, so that a model of the
            family may have fewer heads of the same width.
    """

    family: str
    model_types: tuple[str, ...]
    embed: str
    layers: str
    final_norm: str
    attention: str
    attn_out: str
    mlp_down: str
    ln1: str
    value: str
    mlp_in: tuple[str, ...]
    mlp_width: str
    query: str | None = None
    key: str | None = None
    free_heads: bool = False
    fused: str | None = None
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    rms: bool = True
    unit_offset: bool = False
    tuple_blocks: bool = False
    mlp_act: str | None = None


_LLAMA: dict[str, Any] = {
    "embed": "model.embed_tokens",
    "layers": "model.layers",
    "final_norm": "model.norm",
    "attention": "self_attn",
    "attn_out": "self_attn.o_proj",
    "mlp_down": "mlp.down_proj",
    "ln1": "input_layernorm",
    "value": "self_attn.v_proj",
    "mlp_act": "mlp.act_fn",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_width": "intermediate_size",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "free_heads": True,
}

VISION = {
    "llava": "model.language_model",
    "vipllava": "model.language_model",
    "idefics3": "model.text_model",
    "smolvlm": "model.text_model",
}
"""By ``config.model_type``: where vision-language models keep their text model; those whose patches stand in one
row-major grid."""

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("Llama", ("llama", "mistral", "qwen2", "qwen3", "smollm3"), **_LLAMA),
    Architecture("Gemma", ("gemma",), **_LLAMA, unit_offset=True),
    Architecture(
        "Gemma 2 and 3",
        ("gemma2", "gemma3_text"),
        **_LLAMA,
        attn_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        unit_offset=True,
    ),
    Architecture(
        "GPT-2",
        ("gpt2",),
        embed="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        attn_out="attn.c_proj",
        mlp_down="mlp.c_proj",
        ln1="ln_1",
        value="attn.c_attn",
        mlp_in=("mlp.c_fc",),
        mlp_width="n_inner",
        fused="thirds",
        rms=False,
    ),
    Architecture(
        "GPT-J",
        ("gptj",),
        embed="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        attn_out="attn.out_proj",
        mlp_down="mlp.fc_out",
        ln1="ln_1",
        value="attn.v_proj",
        mlp_in=("mlp.fc_in",),
        mlp_width="n_inner",
        query="attn.q_proj",
        key="attn.k_proj",
        rms=False,
        tuple_blocks=True,
    ),
    Architecture(
        "GPT-NeoX",
        ("gpt_neox",),
        embed="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        attn_out="attention.dense",
        mlp_down="mlp.dense_4h_to_h",
        ln1="input_layernorm",
        value="attention.query_key_value",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_width="intermediate_size",
        fused="per_head",
        rms=False,
    ),
    Architecture(
        "OPT",
        ("opt",),
        embed="model.decoder.embed_tokens",
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        attention="self_attn",
        attn_out="self_attn.out_proj",
        mlp_down="fc2",
        ln1="self_attn_layer_norm",
        value="self_attn.v_proj",
        mlp_in=("fc1",),
        mlp_width="ffn_dim",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        rms=False,
    ),
)


def architecture_of(config: Any) -> Architecture:
    """The table's entry for a configuration; for a vision-language model, of its language model.

    Raises:
        ModelError: the family is not in the table, or is a variant whose residual stream is normalized in place.
    """
    kind = getattr(config, "model_type", "?")
    if kind in VISION:
        entry = architecture_of(config.text_config)
        if not entry.layers.startswith("model."):
            raise ModelError(f"a {kind!r} model whose language model is of family {entry.family} is not supported.")
        path = VISION[kind]
        paths = {f: path + getattr(entry, f).removeprefix("model") for f in ("embed", "layers", "final_norm")}
        return replace(entry, family=f"{kind} on {entry.family}", **paths)
    if getattr(config, "vision_config", None) is not None:
        raise ModelError(
            f"vision-language models of type {kind!r} are not supported, since their patches are not known to form one "
            f"grid (known: {', '.join(VISION)})."
        )
    if kind == "opt" and not (config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size):
        raise ModelError(
            "this OPT model normalizes its residual stream in place (as opt-350m does), so heads and neurons do not "
            "add up in it; choose an OPT model with do_layer_norm_before and no embedding projection."
        )
    for entry in ARCHITECTURES:
        if kind in entry.model_types:
            return entry
    known = ", ".join(t for entry in ARCHITECTURES for t in entry.model_types)
    raise ModelError(f"models of type {kind!r} are not in the architecture table (known: {known}).")


def has_parallel_blocks(config: Any) -> bool:
    """Whether attention and FFN of a block read the same residual, so that the FFN does not see its heads."""
    return config.model_type == "gptj" or (config.model_type == "gpt_neox" and bool(config.use_parallel_residual))
