"""Where each family of Hugging Face models keeps its parts: the one table that knows architectures.

Every entry names modules by their role, relative to the model or to one block. Nothing here is trusted: a
loaded model proves on a batch that the parts found really add up (see ``Model.prove``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigurationError, ModelError
from ..registry import modules_in


@dataclass(frozen=True)
class Architecture:
    """Module paths of one family, and what its blocks do with them.

    A property that varies within a family is given as the name of the configuration's entry that says it.

    Attributes:
        family: name for messages.
        model_types: ``config.model_type`` values.
        embed, layers, final_norm: paths from the causal language model.
        attention: the attention module of a block.
        attn_out: attention's output projection; its input is ``hook_z``.
        value: the projection that makes values; ``fused`` says how it is packed with queries and keys.
        ln1: the norm before attention; of several, the first that the blocks have. None where attention reads the
            residual stream as it is (OLMo 2, EXAONE 4).
        ln2: the norm before the FFN, likewise; in parallel blocks it may be that before attention.
        mlp_down: the FFN's output projection; its input is ``mlp.hook_post``. None in mixtures of experts, whose
            neurons are not the same at every position.
        mlp_in: the projections that make ``mlp.hook_post``, the gate included.
        mlp_width: the configuration's name for the number of FFN hidden units; None where it says none (Bloom).
        mlp: the whole FFN, where ``mlp_down`` is None.
        query, key: the projections that make queries and keys; None where ``value`` makes them too.
        free_heads: the number of heads and their width are set independently of ``d_model``, so that a model of the
            family may have fewer heads of the same width.
        fused: "in_turn" where the columns of ``value`` are all queries, then all keys, then all values; "by_group"
            where every key/value head's queries, key and value stand together.
        fused_gate: the one projection of ``mlp_in`` makes the gate and then what it multiplies.
        attn_post_norm, mlp_post_norm: norms after the sub-layer, before the residual add (Gemma 2 and 3, OLMo 2).
        rms: root-mean-square norms (no centering, no bias); ``unit_offset``: they multiply by ``1 + weight``.
        norm_epsilon: of norms whose modules do not say it.
        mlp_act: the activation function of a gated FFN, whose output is multiplied before the down-projection; None
            where there is no gate.
        parallel: attention and FFN of a block read the same residual, so that the FFN does not see its heads; or the
            entries of the configuration any of which says so.
        inline_attention: attention modules compute their pattern themselves, by one softmax and a product with the
            values or by PyTorch's attention in one, and do not ask transformers' attention interface.
        adds_in_place: a block writes its sums over the outputs of its FFN.
        residual_multiplier: the entry that the outputs of attention and FFN are multiplied by before they are added to
            the residual stream (Granite).
        logit_multiplier, logit_divisor: the entries that the unembedding's output is multiplied or divided by.
        experts: the module that holds the experts' matrices, stacked; only layers that have it mix experts.
        experts_per_token: the entry that says how many experts work at a position; None where all do.
        bidirectional: which positions also see what follows them where a picture is shown: those of the picture each
            other (Gemma 3), or the whole prompt (PaliGemma); None where attention is causal throughout.
    """

    family: str
    model_types: tuple[str, ...]
    embed: str
    layers: str
    final_norm: str
    attention: str
    attn_out: str
    value: str
    ln1: str | tuple[str, ...] | None
    ln2: str | tuple[str, ...] | None
    mlp_down: str | None = None
    mlp_in: tuple[str, ...] = ()
    mlp_width: str | None = None
    mlp: str | None = None
    query: str | None = None
    key: str | None = None
    free_heads: bool = False
    fused: Literal["in_turn", "by_group"] | None = None
    fused_gate: bool = False
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    rms: bool = True
    unit_offset: bool = False
    norm_epsilon: float = 0.0
    mlp_act: str | None = None
    parallel: bool | tuple[str, ...] = False
    inline_attention: bool = False
    adds_in_place: bool = False
    residual_multiplier: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    experts: str | None = None
    experts_per_token: str | None = None
    bidirectional: Literal["images", "prompt"] | None = None

    def has_parallel_blocks(self, config: Any) -> bool:
        """Whether the FFN of a block does not see what its heads write, in a model of this configuration."""
        if isinstance(self.parallel, bool):
            return self.parallel
        return any(bool(getattr(config, entry)) for entry in self.parallel)

    def residual_scale(self, config: Any) -> float:
        """What the outputs of attention and FFN are multiplied by on their way into the residual stream."""
        return float(getattr(config, self.residual_multiplier)) if self.residual_multiplier else 1.0

    def logit_scale(self, config: Any) -> float:
        """What the unembedding's output is multiplied by to become logits."""
        scale = float(getattr(config, self.logit_multiplier)) if self.logit_multiplier else 1.0
        return scale / float(getattr(config, self.logit_divisor)) if self.logit_divisor else scale


_LLAMA: dict[str, Any] = {
    "embed": "model.embed_tokens",
    "layers": "model.layers",
    "final_norm": "model.norm",
    "attention": "self_attn",
    "attn_out": "self_attn.o_proj",
    "mlp_down": "mlp.down_proj",
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "value": "self_attn.v_proj",
    "mlp_act": "mlp.act_fn",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp_width": "intermediate_size",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "free_heads": True,
}

_TIED = {**_LLAMA, "free_heads": False}
_NORMS_BEHIND: dict[str, Any] = {
    "ln1": None,
    "ln2": None,
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_QKV: dict[str, Any] = {"value": "self_attn.qkv_proj", "query": None, "key": None, "fused": "in_turn"}
_GATE_UP: dict[str, Any] = {"mlp_in": ("mlp.gate_up_proj",), "mlp_act": "mlp.activation_fn", "fused_gate": True}
_MIXTURE: dict[str, Any] = {
    **_LLAMA,
    "mlp_down": None,
    "mlp_act": None,
    "mlp_in": (),
    "mlp_width": None,
    "mlp": "mlp",
    "experts": "mlp.experts",
    "experts_per_token": "num_experts_per_tok",
}
_BLOOM: dict[str, Any] = {
    "embed": "transformer.word_embeddings",
    "layers": "transformer.h",
    "final_norm": "transformer.ln_f",
    "attention": "self_attention",
    "attn_out": "self_attention.dense",
    "value": "self_attention.query_key_value",
    "mlp_down": "mlp.dense_4h_to_h",
    "mlp_in": ("mlp.dense_h_to_4h",),
    "fused": "by_group",
    "rms": False,
    "inline_attention": True,
}

VISION = {
    "llava": "model.language_model",
    "vipllava": "model.language_model",
    "idefics3": "model.text_model",
    "smolvlm": "model.text_model",
    "gemma3": "model.language_model",
    "paligemma": "model.language_model",
    "mistral3": "model.language_model",
    "qwen2_vl": "model.language_model",
    "qwen2_5_vl": "model.language_model",
    "qwen3_vl": "model.language_model",
}
"""By ``config.model_type``: where vision-language models keep their text model. That patches stand in one row-major
grid is proven at load (:meth:`.Vision.prove`)."""

_BIDIRECTIONAL: dict[str, Literal["images", "prompt"]] = {"gemma3": "images", "paligemma": "prompt"}

_NO_GRID = {
    "llava_next": "it cuts a picture into crops and shows it as a whole beside them, so that a part of the picture "
    "stands in more than one place",
    "mllama": "its pictures are read by cross-attention from every layer and stand at no position of the prompt",
    "idefics2": "its connector mixes all patches into a fixed number of queries",
    "blip-2": "its connector mixes all patches into a fixed number of queries",
    "instructblip": "its connector mixes all patches into a fixed number of queries",
}
"""Why the patches of some vision-language models form no grid of positions."""

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "Llama",
        (
            "llama",
            "mistral",
            "ministral",
            "ministral3",
            "qwen2",
            "qwen3",
            "qwen3_vl_text",
            "smollm3",
        ),
        **_LLAMA,
    ),
    Architecture("Qwen2-VL", ("qwen2_vl_text", "qwen2_5_vl_text"), **{**_LLAMA, "free_heads": False}),
    Architecture("Gemma", ("gemma",), **_LLAMA, unit_offset=True),
    Architecture(
        "Gemma 2 and 3",
        ("gemma2", "gemma3_text"),
        **{**_LLAMA, "ln2": "pre_feedforward_layernorm"},
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
        ln2="ln_2",
        value="attn.c_attn",
        mlp_in=("mlp.c_fc",),
        mlp_width="n_inner",
        fused="in_turn",
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
        ln2="ln_1",
        value="attn.v_proj",
        mlp_in=("mlp.fc_in",),
        mlp_width="n_inner",
        query="attn.q_proj",
        key="attn.k_proj",
        rms=False,
        parallel=True,
        inline_attention=True,
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
        ln2="post_attention_layernorm",
        value="attention.query_key_value",
        mlp_in=("mlp.dense_h_to_4h",),
        mlp_width="intermediate_size",
        fused="by_group",
        rms=False,
        parallel=("use_parallel_residual",),
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
        ln2="final_layer_norm",
        value="self_attn.v_proj",
        mlp_in=("fc1",),
        mlp_width="ffn_dim",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        rms=False,
    ),
    Architecture(
        "Granite", ("granite",), **_LLAMA, residual_multiplier="residual_multiplier", logit_divisor="logits_scaling"
    ),
    Architecture("OLMo", ("olmo",), **_LLAMA, rms=False, norm_epsilon=1e-5),
    Architecture("EXAONE 4", ("exaone4",), **{**_LLAMA, **_NORMS_BEHIND}),
    Architecture("OLMo 2 and 3", ("olmo2", "olmo3"), **{**_LLAMA, **_NORMS_BEHIND, "free_heads": False}),
    Architecture(
        "Cohere",
        ("cohere", "cohere2"),
        **{**_TIED, "ln2": "input_layernorm"},
        rms=False,
        parallel=True,
        logit_multiplier="logit_scale",
    ),
    Architecture(
        "StableLM",
        ("stablelm",),
        **{**_TIED, "ln2": ("post_attention_layernorm", "input_layernorm")},
        rms=False,
        parallel=("use_parallel_residual",),
    ),
    Architecture("Phi-3", ("phi3",), **{**_TIED, **_GATE_UP, **_QKV}),
    Architecture("GLM", ("glm",), **{**_LLAMA, **_GATE_UP}),
    Architecture(
        "GLM-4",
        ("glm4",),
        **{**_LLAMA, **_GATE_UP},
        attn_post_norm="post_self_attn_layernorm",
        mlp_post_norm="post_mlp_layernorm",
    ),
    Architecture("Mixtral and Qwen MoE", ("mixtral", "qwen2_moe", "qwen3_moe"), **_MIXTURE),
    Architecture("gpt-oss", ("gpt_oss",), **{**_MIXTURE, "free_heads": False}),
    Architecture(
        "Llama 4",
        ("llama4_text",),
        **{**_MIXTURE, "mlp": "feed_forward", "experts": "feed_forward.experts", "experts_per_token": None},
    ),
    Architecture(
        "StarCoder 2",
        ("starcoder2",),
        **{**_TIED, "mlp_act": None, "mlp_in": ("mlp.c_fc",), "mlp_down": "mlp.c_proj"},
        rms=False,
    ),
    Architecture(
        "Phi",
        ("phi",),
        **{
            **_TIED,
            "final_norm": "model.final_layernorm",
            "ln2": "input_layernorm",
            "attn_out": "self_attn.dense",
            "mlp_act": None,
            "mlp_in": ("mlp.fc1",),
            "mlp_down": "mlp.fc2",
        },
        rms=False,
        parallel=True,
    ),
    Architecture(
        "GPT-Neo",
        ("gpt_neo",),
        embed="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn.attention",
        attn_out="attn.attention.out_proj",
        mlp_down="mlp.c_proj",
        ln1="ln_1",
        ln2="ln_2",
        value="attn.attention.v_proj",
        mlp_in=("mlp.c_fc",),
        mlp_width="intermediate_size",
        query="attn.attention.q_proj",
        key="attn.attention.k_proj",
        rms=False,
        inline_attention=True,
    ),
    Architecture(
        "GPT-BigCode",
        ("gpt_bigcode",),
        embed="transformer.wte",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        attn_out="attn.c_proj",
        mlp_down="mlp.c_proj",
        ln1="ln_1",
        ln2="ln_2",
        value="attn.c_attn",
        mlp_in=("mlp.c_fc",),
        mlp_width="n_inner",
        fused="by_group",
        rms=False,
    ),
    Architecture("Bloom", ("bloom",), **_BLOOM, ln1="input_layernorm", ln2="post_attention_layernorm"),
    Architecture(
        "Falcon",
        ("falcon",),
        **_BLOOM,
        ln1=("ln_attn", "input_layernorm"),
        ln2=("ln_mlp", "post_attention_layernorm", "input_layernorm"),
        mlp_width="ffn_hidden_size",
        parallel=("new_decoder_architecture", "parallel_attn"),
        adds_in_place=True,
    ),
)


class Table:
    """The architectures that are known: those above, and those of files named by ``--include``.

    Attributes:
        included: the files and folders that were taken in.
    """

    def __init__(self) -> None:
        self.included: list[Path] = []
        self._entries = list(ARCHITECTURES)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self._entries)

    def add(self, entry: Architecture) -> Architecture:
        """Takes in an architecture of one's own; the same one twice is taken once.

        Raises:
            ConfigurationError: one of its model types is in the table already.
        """
        if entry in self._entries:
            return entry
        for kind in entry.model_types:
            if (old := self.find(kind)) is not None:
                raise ConfigurationError(
                    f"architecture {entry.family!r} is for models of type {kind!r}, which {old.family!r} is for "
                    f"already; give your model class a type of its own."
                )
        self._entries.append(entry)
        return entry

    def include(self, path: Path) -> int:
        """Takes in every :class:`Architecture` that a Python file or folder has by a name; returns how many.

        Raises:
            ConfigurationError: a file that cannot be imported, or as :meth:`add`.
        """
        found = [x for module in modules_in(path) for x in vars(module).values() if isinstance(x, Architecture)]
        own = [entry for entry in found if entry not in ARCHITECTURES]
        for entry in own:
            self.add(entry)
        self.included.append(path.resolve())
        return len(own)

    def find(self, kind: str) -> Architecture | None:
        """The architecture for a ``config.model_type``; None where there is none."""
        return next((entry for entry in self._entries if kind in entry.model_types), None)


architectures = Table()
"""The one table."""


def architecture_of(config: Any) -> Architecture:
    """The table's entry for a configuration; for a vision-language model, of its language model.

    Raises:
        ModelError: the family is not in the table, or is a variant whose residual stream is normalized in place.
    """
    kind = getattr(config, "model_type", "?")
    if kind in VISION:
        if getattr(config.vision_config, "deepstack_visual_indexes", None):
            raise ModelError(
                f"this {kind!r} model adds features of the picture to the residual stream between its first blocks "
                f"(deepstack_visual_indexes), so what blocks write does not add up to it; choose another model."
            )
        entry = architecture_of(config.text_config)
        if not entry.layers.startswith("model."):
            raise ModelError(f"a {kind!r} model whose language model is of family {entry.family} is not supported.")
        path = VISION[kind]
        paths = {f: path + getattr(entry, f).removeprefix("model") for f in ("embed", "layers", "final_norm")}
        return replace(entry, family=f"{kind} on {entry.family}", bidirectional=_BIDIRECTIONAL.get(kind), **paths)
    if getattr(config, "vision_config", None) is not None:
        why = _NO_GRID.get(kind, "its patches are not known to form one grid of positions")
        raise ModelError(
            f"vision-language models of type {kind!r} are not supported: {why} (supported: {', '.join(VISION)})."
        )
    if kind == "opt" and not (config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size):
        raise ModelError(
            "this OPT model normalizes its residual stream in place (as opt-350m does), so heads and neurons do not "
            "add up in it; choose an OPT model with do_layer_norm_before and no embedding projection."
        )
    found = architectures.find(kind)
    if found is None:
        known = ", ".join(t for entry in architectures for t in entry.model_types)
        raise ModelError(
            f"models of type {kind!r} are not in the architecture table (known: {known}); describe yours in a file and "
            f"name it by --include (docs/adding.md)."
        )
    # models without norms (attriboard.zoo.interpbench), whose norms neither center nor scale
    return replace(found, rms=True) if getattr(config, "inert_norms", False) else found


def has_parallel_blocks(config: Any) -> bool:
    """Whether attention and FFN of a block read the same residual, so that the FFN does not see its heads."""
    return architecture_of(config).has_parallel_blocks(config.get_text_config())
