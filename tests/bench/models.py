"""Tiny random models of every family in the table, examples for them, and slow literal runs to judge fast code by.

Nothing here uses ``attriboard.model`` to compute a number: parts are found by this file's own list, activations are
read and replaced by hooks written out below, one unpadded row at a time.

Long because it is one world: the tiny models of fifteen architectures and the literal runs that judge them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    DynamicCache,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from attriboard.model import Cost, EncodedExample, Model
from attriboard.task import IMAGE, Example
from tests.bench import seeing as seeing_models

VOCAB = 97
LAYERS = 3
D_MODEL = 32

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": D_MODEL,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NEOX: dict[str, Any] = {**_LLAMA, "rotary_pct": 0.5}
_NEOX.pop("num_key_value_heads")
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_LLAMA),
    "llama_biases_tied": lambda: transformers.LlamaConfig(
        **{**_LLAMA, "tie_word_embeddings": True}, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: transformers.MistralConfig(**_LLAMA, head_dim=8, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**_LLAMA),
    "qwen3": lambda: transformers.Qwen3Config(**_LLAMA, head_dim=12),
    "smollm3": lambda: transformers.SmolLM3Config(**_LLAMA, no_rope_layers=[1, 0, 1]),
    "gemma": lambda: transformers.GemmaConfig(**{**_LLAMA, "num_key_value_heads": 1}, head_dim=12),
    "gemma2": lambda: transformers.Gemma2Config(
        **_LLAMA,
        head_dim=12,
        sliding_window=4,
        layer_types=_WINDOWS,
        query_pre_attn_scalar=10,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=6.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_LLAMA, head_dim=12, sliding_window=4, layer_types=_WINDOWS, query_pre_attn_scalar=10
    ),
    "gpt2": lambda: transformers.GPT2Config(**_GPT),
    "gpt2_untied": lambda: transformers.GPT2Config(
        **_GPT, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True
    ),
    "gptj": lambda: transformers.GPTJConfig(**_GPT, rotary_dim=4, tie_word_embeddings=False),
    "neox_parallel": lambda: transformers.GPTNeoXConfig(**_NEOX, use_parallel_residual=True),
    "neox_sequential": lambda: transformers.GPTNeoXConfig(**_NEOX, use_parallel_residual=False),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=64,
        do_layer_norm_before=True,
    ),
}
FAMILIES = tuple(CONFIGS)

_MIX: dict[str, Any] = {"num_experts_per_tok": 2, "head_dim": 8}
_FALCON: dict[str, Any] = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads", "intermediate_size")}
_FALCON["ffn_hidden_size"] = 40
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
CONFIGS |= {
    "phi": lambda: transformers.PhiConfig(**_LLAMA),
    "phi3": lambda: transformers.Phi3Config(**_LLAMA, sliding_window=5),
    "olmo": lambda: transformers.OlmoConfig(**_LLAMA),
    "olmo2": lambda: transformers.Olmo2Config(**_LLAMA),
    "olmo3": lambda: transformers.Olmo3Config(**_LLAMA, sliding_window=4, layer_types=_WINDOWS),
    "stablelm": lambda: transformers.StableLmConfig(**_LLAMA, use_qkv_bias=True),
    "stablelm_parallel": lambda: transformers.StableLmConfig(**_LLAMA, use_parallel_residual=True, qk_layernorm=True),
    "mixtral": lambda: transformers.MixtralConfig(**_LLAMA, **_MIX, num_local_experts=4),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_LLAMA,
        num_experts_per_tok=2,
        num_experts=4,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
        mlp_only_layers=[1],
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_LLAMA, **_MIX, num_experts=4, moe_intermediate_size=12),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_LLAMA, **_MIX, num_local_experts=4, sliding_window=4, layer_types=_WINDOWS, rope_parameters=_YARN
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **_LLAMA,
        head_dim=8,
        intermediate_size_mlp=24,
        num_local_experts=3,
        num_experts_per_tok=1,
        moe_layers=[0, 2],
        no_rope_layers=[1, 0, 1],
        attention_chunk_size=4,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_layers=LAYERS,
        num_heads=4,
        attention_types=[[["global", "local"], 1], [["global"], 1]],
        max_position_embeddings=64,
        intermediate_size=40,
        window_size=4,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**_GPT),
    "gpt_bigcode_heads": lambda: transformers.GPTBigCodeConfig(**_GPT, multi_query=False),
    "starcoder2": lambda: transformers.Starcoder2Config(**_LLAMA, sliding_window=5),
    "granite": lambda: transformers.GraniteConfig(
        **_LLAMA, residual_multiplier=0.4, embedding_multiplier=2.0, logits_scaling=3.0, attention_multiplier=0.2
    ),
    "cohere": lambda: transformers.CohereConfig(**_LLAMA, logit_scale=0.25, use_qk_norm=True),
    "cohere2": lambda: transformers.Cohere2Config(**_LLAMA, logit_scale=0.25, sliding_window=4, layer_types=_WINDOWS),
    "glm": lambda: transformers.GlmConfig(**_LLAMA, head_dim=8),
    "glm4": lambda: transformers.Glm4Config(**_LLAMA, head_dim=8),
    "exaone4": lambda: transformers.Exaone4Config(**_LLAMA, sliding_window=4, layer_types=_WINDOWS),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=D_MODEL, n_layer=LAYERS, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "falcon": lambda: transformers.FalconConfig(**_FALCON, multi_query=True, parallel_attn=True),
    "falcon_groups": lambda: transformers.FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_heads": lambda: transformers.FalconConfig(**_FALCON, multi_query=False, parallel_attn=False, bias=True),
    "ministral": lambda: transformers.MinistralConfig(**_LLAMA, head_dim=8, sliding_window=4, layer_types=_WINDOWS),
    "ministral3": lambda: transformers.Ministral3Config(
        **_LLAMA,
        head_dim=8,
        rope_parameters={**_YARN, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 4},
    ),
}
EVERY = tuple(CONFIGS)
"""Every kind of block that is known; tests of methods take :data:`FAMILIES`, which differ in what methods see."""
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4")
"""Families without neurons."""
WITH_NEURONS = tuple(family for family in EVERY if family not in MIXTURES)
MULTIPLIED = {"granite": 0.4}
"""What the outputs of attention and FFN are multiplied by before they are added to the residual stream."""
LOGITS_MULTIPLIED = {"granite": 1 / 3, "cohere": 0.25, "cohere2": 0.25}
PARALLEL = ("gptj", "neox_parallel", "phi", "stablelm_parallel", "cohere", "cohere2", "falcon", "falcon_groups")
FOUR = ("llama", "gpt2", "gemma2", "neox_parallel")
"""One family of each kind of block: grouped queries, biases and LayerNorm, norms after the sub-layer, parallel."""


@dataclass(frozen=True)
class Parts:
    """Module paths of one family, written down a second time so that the project's table has a judge."""

    layers: str
    embed: str
    norm: str
    out: str
    down: str
    attn_end: str
    mlp_end: str
    ln1: str | None
    second_norm: str | None


def _parts(family: str) -> Parts:
    if family.startswith("gpt2"):
        return Parts(
            "transformer.h",
            "transformer.wte",
            "transformer.ln_f",
            "attn.c_proj",
            "mlp.c_proj",
            "attn.c_proj",
            "mlp.c_proj",
            "ln_1",
            "ln_2",
        )
    if family == "gptj":
        out, down = "attn.out_proj", "mlp.fc_out"
        return Parts("transformer.h", "transformer.wte", "transformer.ln_f", out, down, out, down, "ln_1", None)
    if family.startswith("neox"):
        out, down = "attention.dense", "mlp.dense_4h_to_h"
        second = None if family == "neox_parallel" else "post_attention_layernorm"
        return Parts(
            "gpt_neox.layers",
            "gpt_neox.embed_in",
            "gpt_neox.final_layer_norm",
            out,
            down,
            out,
            down,
            "input_layernorm",
            second,
        )
    if family == "opt":
        d = "model.decoder."
        return Parts(
            f"{d}layers",
            f"{d}embed_tokens",
            f"{d}final_layer_norm",
            "self_attn.out_proj",
            "fc2",
            "self_attn.out_proj",
            "fc2",
            "self_attn_layer_norm",
            "final_layer_norm",
        )
    if family.startswith(("gpt_neo", "gpt_bigcode")):
        out, down = "attn.attention.out_proj" if family == "gpt_neo" else "attn.c_proj", "mlp.c_proj"
        names = ("transformer.h", "transformer.wte", "transformer.ln_f")
        return Parts(*names, out, down, out, down, "ln_1", "ln_2")
    if family.startswith(("bloom", "falcon")):
        out, down = "self_attention.dense", "mlp.dense_4h_to_h"
        names = ("transformer.h", "transformer.word_embeddings", "transformer.ln_f")
        first = "ln_attn" if family == "falcon_groups" else "input_layernorm"
        return Parts(*names, out, down, out, down, first, None if family in PARALLEL else "post_attention_layernorm")
    if family == "phi":
        out, down = "self_attn.dense", "mlp.fc2"
        names = ("model.layers", "model.embed_tokens", "model.final_layernorm")
        return Parts(*names, out, down, out, down, "input_layernorm", None)
    out, down = "self_attn.o_proj", "mlp.c_proj" if family == "starcoder2" else "mlp.down_proj"
    if family in MIXTURES:
        down = "feed_forward" if family == "llama4" else "mlp"
    second = None if family in PARALLEL else "post_attention_layernorm"
    if family in ("olmo2", "olmo3", "exaone4"):
        ends = ("post_attention_layernorm", "post_feedforward_layernorm", None, "mlp")
        return Parts("model.layers", "model.embed_tokens", "model.norm", out, down, *ends)
    if family == "glm4":
        ends = ("post_self_attn_layernorm", "post_mlp_layernorm", "input_layernorm", second)
        return Parts("model.layers", "model.embed_tokens", "model.norm", out, down, *ends)
    ends = (out, down, "input_layernorm", second)
    if family in ("gemma2", "gemma3"):
        ends = (
            "post_attention_layernorm",
            "post_feedforward_layernorm",
            "input_layernorm",
            "pre_feedforward_layernorm",
        )
    return Parts("model.layers", "model.embed_tokens", "model.norm", out, down, *ends)


PARTS = {family: _parts(family) for family in EVERY}
PARTS["llava"] = Parts(
    "model.language_model.layers",
    "model.language_model.embed_tokens",
    "model.language_model.norm",
    "self_attn.o_proj",
    "mlp.down_proj",
    "self_attn.o_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
)


# --- models -----------------------------------------------------------------------------------------------------------


def fresh(family: str, seed: int = 0) -> Any:
    """A new model of the family with every weight, norm weight and bias drawn at random, large enough to matter."""
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    return drawn(hf, PARTS[family].embed, 0.12 if "gemma" in family else 0.6, seed)


def drawn(hf: Any, embed: str, embed_scale: float = 0.6, seed: int = 0) -> Any:
    """The model with every weight redrawn, its token embeddings (the parameter names that start with ``embed``) too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(0.3 * noise)
            elif name.startswith(embed):
                weight.copy_(embed_scale * noise)
            else:
                fan_in = weight.shape[-1] if weight.dim() == 3 else weight[0].numel()  # of experts, stacked matrices
                weight.copy_(1.3 * noise / fan_in**0.5)
    return hf.requires_grad_(False)


tiny = functools.cache(fresh)
"""As :func:`fresh`, one for all tests; never change its weights."""


@functools.cache
def _proven(family: str) -> Model:
    return Model(tiny(family), tokenizer(), name=family)


def hooked(family: str, batch_size: int = 16, padding_side: str = "left") -> Model:
    """The project's model around :func:`tiny`, proven once, its costs counted from zero."""
    model = copy.copy(_proven(family))
    model.cost, model.batch_size, model.padding_side = Cost(), batch_size, padding_side
    return model


def in_double(hf: Any) -> Any:
    """A float64 copy, smooth and with root-mean-square norms that also compute in float64, for finite differences."""
    double = copy.deepcopy(hf).double()
    if hasattr(double, "set_experts_implementation"):
        double.set_experts_implementation("eager")  # grouped products know no float64
    for module in double.modules():
        if type(module).__name__.endswith("RMSNorm"):
            offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
            module.forward = functools.partial(_rms_norm, module, offset)
        if type(module).__name__ in ("CohereLayerNorm", "Cohere2LayerNorm", "OlmoLayerNorm"):
            module.forward = functools.partial(_layer_norm, module)
        if hasattr(module, "activation_fn") and type(module).__name__.startswith("OPT"):
            module.activation_fn = nn.GELU()  # OPT's ReLU has kinks that finite differences would step over
    return double


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    epsilon = getattr(module, "variance_epsilon", 1e-5)
    centered = x - x.mean(-1, keepdim=True)
    normed = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + epsilon)
    return normed * module.weight if hasattr(module, "weight") else normed


def _rms_norm(module: Any, offset: float, x: Tensor) -> Tensor:
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * (offset + module.weight)


# --- a tokenizer and examples -----------------------------------------------------------------------------------------


@functools.cache
def tokenizer(bos: bool = False) -> Any:
    """Words ``w1`` to ``w95`` are tokens 1 to 95; 0 is unknown and 96 pads."""
    vocab = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 96)}, "[PAD]": 96}
    fast = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    # "w1w2" is two words too, so that an answer without a space is the text that follows a prompt
    word = pre_tokenizers.Split(Regex(r"w\d+"), behavior="isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), word])
    if bos:
        fast.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]")


def words(tokens: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in tokens)


def example(
    tokens: Sequence[int],
    counterfactual: Sequence[int] | None = None,
    answer: int = 7,
    foil: int | None = 11,
    label: Sequence[int] = (),
) -> EncodedExample:
    """An encoded example that :func:`tokenizer` would encode to the same; ``label`` are the marked token positions."""
    spans = tuple((len(words(tokens[:i])) + (i > 0), len(words(tokens[: i + 1]))) for i in label)
    text = Example(
        prompt=words(tokens),
        answer=f" w{answer}",
        foil=None if foil is None else f" w{foil}",
        counterfactual=None if counterfactual is None else words(counterfactual),
        marks={"label": spans},
    )
    return EncodedExample(text, tuple(tokens), answer, foil, None if counterfactual is None else tuple(counterfactual))


EXAMPLES = (
    example([5, 17, 33, 21, 60, 9, 44], [5, 17, 33, 21, 71, 9, 44], answer=12, foil=30, label=[1, 3]),
    example([80, 3, 14, 25], [80, 3, 90, 25], answer=7, foil=64, label=[0, 2]),
    example([8, 50, 2, 77, 41, 19, 66, 31, 4], [8, 50, 2, 77, 41, 19, 23, 31, 88], answer=55, foil=20, label=[5]),
    example([61, 10, 36, 52, 93, 4], [61, 10, 36, 22, 93, 85], answer=40, foil=13, label=[1, 2, 4]),
)
"""Four lengths; every counterfactual shares a beginning with its prompt, two also end in the same token."""

WITHOUT_FOILS = tuple(
    EncodedExample(e.example, e.tokens, e.answer, None if i % 2 else e.foil, e.counterfactual)
    for i, e in enumerate(EXAMPLES)
)
"""The same examples, every other one without a foil."""


# --- a model that sees ------------------------------------------------------------------------------------------------

IMAGE_ID = VOCAB
PATCH = 14
GRID = 3


def seeing_tokenizer() -> Any:
    """As :func:`tokenizer`, and token 97 is the place of an image patch."""
    fast = copy.deepcopy(tokenizer())
    fast.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return fast


def tiny_processor(side: int = PATCH * GRID, tokenizer: Any = None, **kwargs: Any) -> LlavaProcessor:
    """As LLaVA-1.5's, for ``side`` pixels: shortest edge to ``side``, centre crop, one token per patch."""
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    settings = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(pictures, tokenizer or seeing_tokenizer(), **{**settings, **kwargs})


def fresh_llava(seed: int = 0, side: int = PATCH * GRID, positions: int = 64) -> Any:
    """A random LLaVA of LLaVA-1.5's shape: CLIP's last layer but one without the class token, two-layer projector."""
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            image_size=side,
            patch_size=PATCH,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=16,
        ),
        text_config=transformers.LlamaConfig(
            **{**_LLAMA, "vocab_size": VOCAB + 1, "max_position_embeddings": positions}
        ),
        image_token_id=IMAGE_ID,
        image_seq_length=(side // PATCH) ** 2,
    )
    hf = drawn(transformers.LlavaForConditionalGeneration(config).eval(), PARTS["llava"].embed, seed=seed)
    hf.model.multi_modal_projector.linear_2.weight.mul_(0.2)  # image features as large as token embeddings
    return hf


@functools.cache
def _proven_llava(seed: int) -> Model:
    processor = tiny_processor()
    return Model(fresh_llava(seed), processor.tokenizer, name="llava", processor=processor)


def tiny_llava(batch_size: int = 16, padding_side: str = "left", seed: int = 0) -> Model:
    """The project's model around a random LLaVA that sees 42 × 42 pixels as 3 × 3 patches, proven once."""
    model = copy.copy(_proven_llava(seed))
    model.cost, model.batch_size, model.padding_side = Cost(), batch_size, padding_side
    return model


SEEING = ("llava", "vipllava", "idefics3", "smolvlm", *seeing_models.TYPED)


def fresh_seeing(family: str) -> tuple[Any, Any]:
    """A random vision-language model of the family, and its processor.

    Of the last two, whose processor stretches a picture to 32 × 32 pixels, 2 × 2 patches become one of 2 × 2 tokens.
    """
    if family == "llava":
        return fresh_llava(), tiny_processor()
    torch.manual_seed(0)
    if family in seeing_models.TYPED:
        hf, processor = seeing_models.fresh(family, _LLAMA, tokenizer())
        hf = drawn(hf, "model.language_model.embed_tokens", 0.12 if "gemma" in family else 0.6)
        unembedding = hf.get_output_embeddings().weight
        if family != "paligemma":  # whose embedding it is, too
            unembedding[:3], unembedding[96:] = 0, 0  # it writes words alone
        return hf, processor
    # Idefics3 assumes this epsilon of a saved configuration that does not say another than Llama's
    text = transformers.LlamaConfig(**{**_LLAMA, "vocab_size": VOCAB + 5, "rms_norm_eps": 1e-5})
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    if family == "vipllava":
        vision = transformers.CLIPVisionConfig(image_size=42, patch_size=PATCH, projection_dim=16, **tower)
        config = transformers.VipLlavaConfig(
            vision_config=vision, text_config=text, image_token_id=IMAGE_ID, vision_feature_layers=[-2, -1]
        )
        hf: Any = transformers.VipLlavaForConditionalGeneration(config)
        return drawn(hf.eval(), "model.language_model.embed_tokens"), tiny_processor()
    words_and_tags = seeing_tokenizer()
    words_and_tags.add_special_tokens(
        {"additional_special_tokens": ["<fake_token_around_image>", "<global-img>"]}, replace_extra_special_tokens=False
    )
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = transformers.Idefics3Processor(pictures, words_and_tags, image_seq_len=4)
    named = "Idefics3" if family == "idefics3" else "SmolVLM"
    vision = getattr(transformers, f"{named}VisionConfig")(image_size=32, patch_size=8, **tower)
    config = getattr(transformers, f"{named}Config")(
        vision_config=vision, text_config=text, image_token_id=IMAGE_ID, scale_factor=2
    )
    hf = getattr(transformers, f"{named}ForConditionalGeneration")(config)
    return drawn(hf.eval(), "model.text_model.embed_tokens"), processor


@functools.cache
def seeing(family: str) -> Model:
    """The project's model around :func:`fresh_seeing`, one for all tests; never change its weights."""
    hf, processor = fresh_seeing(family)
    return Model(hf, processor.tokenizer, name=family, processor=processor)


def picture(seed: int, size: tuple[int, int] = (56, 42), square: tuple[int, int, int, int] | None = None) -> Any:
    """Noise of ``size`` (width, height); one colored ``square`` (left, top, right, bottom) on it."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if square is not None:
        left, top, right, bottom = square
        noise[top:bottom, left:right] = np.random.default_rng(seed + 1000).integers(0, 256, 3, dtype=np.uint8)
    return Image.fromarray(noise)


def mask(size: tuple[int, int], square: tuple[int, int, int, int]) -> np.ndarray:
    """``[height, width]`` bool, True in ``square``."""
    left, top, right, bottom = square
    found = np.zeros((size[1], size[0]), dtype=bool)
    found[top:bottom, left:right] = True
    return found


@functools.cache
def vision_examples(seed: int = 0) -> tuple[EncodedExample, ...]:
    """Four questions about pictures in :func:`tiny_llava`'s tokens: texts of 4 to 8 tokens around nine patches.

    Each has a foil and a counterfactual: another picture, another text, or both. The mark "label" covers words
    before and after the picture; the regions are a square called "object" and the rest, "background".
    """
    size = (56, 42)
    # before the picture, after it, other picture?, text of the counterfactual after it, answer, foil, square
    plans = (
        ([5], [17, 33, 21, 60], True, None, 12, 30, (14, 0, 42, 14)),
        ([80, 3], [14, 25], False, [90, 25], 7, 64, (21, 14, 35, 28)),
        ([8], [50, 2, 77, 41, 19, 66, 31], True, [50, 2, 23, 41, 19, 66, 88], 55, 20, (7, 14, 35, 42)),
        ([61, 10, 36], [52], True, None, 40, 13, (35, 28, 49, 42)),
    )
    model, found = _proven_llava(0), []
    for i, (before, after, other_picture, other_after, answer, foil, square) in enumerate(plans):
        start, prompt = words(before), f"{words(before)} {IMAGE} {words(after)}"
        question = len(start) + len(IMAGE) + 2
        example = Example(
            prompt=prompt,
            answer=f" w{answer}",
            foil=f" w{foil}",
            counterfactual=None if other_after is None else f"{start} {IMAGE} {words(other_after)}",
            marks={"label": ((0, len(f"w{before[0]}")), (question, question + len(f"w{after[0]}")))},
            item=str(i),
            image=picture(10 * seed + i, size, square),
            counterfactual_image=picture(10 * seed + i + 100, size, square) if other_picture else None,
            regions={"object": mask(size, square), "background": ~mask(size, square)},
        )
        found.append(model.encode(example))
    return tuple(found)


def pixels(image: Any) -> Tensor:
    """``[1, 3, 42, 42]``: the pixel values that :func:`tiny_processor` makes of a picture."""
    return tiny_processor().image_processor(images=image, return_tensors="pt")["pixel_values"]


# --- plain runs -------------------------------------------------------------------------------------------------------


def get(root: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), root)


def in_out(module: Any) -> Tensor:
    """A projection's weight as ``[in, out]``."""
    return module.weight.T if isinstance(module, nn.Linear) else module.weight


Site = tuple[str, int]


class _SoftmaxInDouble(TorchFunctionMode):
    """Keeps attention weights in float64, which eager attention would round to float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.softmax and args[0].dtype == torch.float64:
            kwargs["dtype"] = None
        return func(*args, **kwargs)


def in_single_products(hf: Any) -> Any:
    """The model with attention and experts in products that can be counted, and patterns that can be read."""
    hf.set_attn_implementation("eager")
    hf.config._attn_implementation = "eager"  # Falcon follows its configuration, and refuses to be asked
    if hasattr(hf, "set_experts_implementation"):
        hf.set_experts_implementation("eager")
    return hf


class Plain:
    """A Hugging Face model run literally: one unpadded row, eager attention, a hook for every activation touched.

    Activations are keyed by site and layer, ``("z", 2)``, and have no batch axis; ``z`` is ``[T, H, d_head]``.
    """

    def __init__(self, family: str, hf: Any = None) -> None:
        self.family, self.parts = family, PARTS[family]
        source = tiny(family) if hf is None else hf
        self.hf = in_single_products(copy.deepcopy(source))
        self.scale = MULTIPLIED.get(family, 1.0)
        self.blocks = list(get(self.hf, self.parts.layers))
        self.n_heads = self.hf.config.get_text_config().num_attention_heads
        self.n_layers = len(self.blocks)

    def part(self, role: str, layer: int) -> Any:
        return get(self.blocks[layer], getattr(self.parts, role))

    def run(
        self,
        tokens: Sequence[int],
        edits: dict[Site, Callable[[Tensor], Tensor]] | None = None,
        read: Sequence[Site] = (),
        **kwargs: Any,
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits ``[V]`` at the last token, and the activations read, as they stand after their edit."""
        edits = edits or {}
        seen: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in {*edits, *read}:
                stack.callback(self._hook(site, edits.get(site), seen).remove)
            inputs = {} if "inputs_embeds" in kwargs else {"input_ids": torch.tensor([list(tokens)])}
            if self.hf.dtype == torch.float64:
                stack.enter_context(_SoftmaxInDouble())
            logits = self.hf(**inputs, use_cache=False, **kwargs).logits[0, -1]
        return logits, seen

    def _hook(self, site: Site, edit: Callable[[Tensor], Tensor] | None, seen: dict[Site, Tensor]) -> Any:
        name, layer = site
        scale = self.scale if name in ("attn_out", "mlp_out") else 1.0

        def touch(x: Tensor) -> Tensor:
            row = x[0] if x.dim() == 3 else x  # OPT's FFN drops the batch axis
            row = row.view(len(row), self.n_heads, -1) if name == "z" else row
            row = row * scale
            row = row if edit is None else edit(row)
            seen[site] = row
            return (row / scale).reshape(x.shape).clone()  # Falcon adds to it in place

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (touch(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": touch(kwargs["hidden_states"])}

        def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            return (touch(output[0]), *output[1:]) if isinstance(output, tuple) else touch(output)

        if name in ("z", "post", "resid_pre"):
            module = self.blocks[layer] if name == "resid_pre" else self.part("out" if name == "z" else "down", layer)
            return module.register_forward_pre_hook(before, with_kwargs=True)
        if name == "embed":
            return get(self.hf, self.parts.embed).register_forward_hook(after)
        if name == "resid_post":
            return self.blocks[layer].register_forward_hook(after)
        return self.part("attn_end" if name == "attn_out" else "mlp_end", layer).register_forward_hook(after)

    def values(self, tokens: Sequence[int]) -> list[Tensor]:
        """By layer the values ``[H, T, d_head]``, read from the key-value cache and expanded to query heads."""
        cache = DynamicCache()  # without a config it keeps every position, also of sliding windows
        self.hf(input_ids=torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
        expanded = []
        for layer in cache.layers:
            kv = layer.values[0]
            expanded.append(torch.stack([kv[h * len(kv) // self.n_heads] for h in range(self.n_heads)]))
        return expanded

    def patterns(self, tokens: Sequence[int]) -> list[Tensor]:
        """By layer the attention weights ``[H, T, T]``."""
        output = self.hf(input_ids=torch.tensor([list(tokens)]), output_attentions=True, use_cache=False)
        return [a[0] for a in output.attentions]


@functools.cache
def plain_run(family: str) -> Plain:
    """One :class:`Plain` of :func:`tiny` for all tests; never change its weights."""
    return Plain(family)


def metric(logits: Tensor, encoded: EncodedExample) -> Tensor:
    """logit(answer) - logit(foil), or log p(answer) without a foil, of logits ``[V]``."""
    if encoded.foil is None:
        return torch.log_softmax(logits, -1)[encoded.answer]
    return logits[encoded.answer] - logits[encoded.foil]


# --- replacing components, literally ----------------------------------------------------------------------------------

SITES = {"heads": ("z",), "neurons": ("post",), "attn_neurons": ("z",), "nodes": ("z", "mlp_out")}


def level_sites(plain: Plain, level: str) -> list[Site]:
    return [(site, layer) for layer in range(plain.n_layers) for site in SITES[level]]


def literal_means(plain: Plain, examples: Sequence[EncodedExample], level: str) -> dict[Site, Tensor]:
    """Each activation's mean over every token of every example."""
    rows: dict[Site, list[Tensor]] = {site: [] for site in level_sites(plain, level)}
    for e in examples:
        _, seen = plain.run(e.tokens, read=list(rows))
        for site, x in seen.items():
            rows[site].extend(x)
    return {site: torch.stack(x).mean(0) for site, x in rows.items()}


def literal_replacements(
    plain: Plain, encoded: EncodedExample, level: str, replacement: str, means: dict[Site, Tensor] | None = None
) -> dict[Site, Tensor]:
    """By site what its activation is replaced by, shaped like the activation."""
    sites = level_sites(plain, level)
    if replacement == "counterfactual":
        return plain.run(encoded.counterfactual or (), read=sites)[1]
    _, clean = plain.run(encoded.tokens, read=sites)
    if replacement == "zero":
        return {site: torch.zeros_like(x) for site, x in clean.items()}
    assert means is not None
    return {site: means[site].expand_as(x) for site, x in clean.items()}


def component_edits(level: str, mask: Tensor, values: dict[Site, Tensor]) -> dict[Site, Callable[[Tensor], Tensor]]:
    """Edits that replace the components where ``mask``, shaped like the level's scores, is True."""

    def edit(site: Site) -> Callable[[Tensor], Tensor]:
        name, layer = site

        def apply(x: Tensor) -> Tensor:
            x = x.clone()
            value, chosen = values[site], mask[layer]
            if level in ("neurons", "attn_neurons"):
                x[:, chosen] = value[:, chosen]
            elif name == "z":
                for h in range(x.shape[1]):
                    if chosen[h]:
                        x[:, h] = value[:, h]
            elif chosen[-1]:
                x = value.clone()
            return x

        return apply

    return {site: edit(site) for site in values}


def literal_intervention(
    plain: Plain, encoded: EncodedExample, level: str, mask: Tensor, values: dict[Site, Tensor]
) -> Tensor:
    """Logits ``[V]`` with the masked components replaced: a whole run from the start, nothing shared."""
    return plain.run(encoded.tokens, component_edits(level, mask, values))[0]


def literal_single_effects(
    plain: Plain, encoded: EncodedExample, level: str, shape: tuple[int, ...], replacement: str, means: Any = None
) -> Tensor:
    """Metric lost when each component alone is replaced, one whole run each."""
    values = literal_replacements(plain, encoded, level, replacement, means)
    clean = metric(plain.run(encoded.tokens)[0], encoded)
    lost = torch.zeros(shape).flatten()
    for i in range(len(lost)):
        mask = torch.zeros(len(lost), dtype=torch.bool)
        mask[i] = True
        lost[i] = clean - metric(literal_intervention(plain, encoded, level, mask.view(shape), values), encoded)
    return lost.view(shape)


# --- what components write, and the frozen unembedding, literally -----------------------------------------------------


def literal_outputs(plain: Plain, level: str, activation: Tensor, layer: int) -> Tensor:
    """``[n, d_model]``: what each component of a layer adds to the residual stream, from ``hook_post`` or ``hook_z``.

    Norms after the sub-layer keep the scale that the whole output gives them.
    """
    role, end = ("down", "mlp_end") if level == "neurons" else ("out", "attn_end")
    projection = plain.part(role, layer)
    outputs = activation.reshape(-1, 1) * in_out(projection)
    if getattr(plain.parts, end) != getattr(plain.parts, role):
        norm = plain.part(end, layer)
        whole = outputs.sum(0) if projection.bias is None else outputs.sum(0) + projection.bias
        epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        weight = norm.weight + float(type(norm).__name__.startswith("Gemma"))
        outputs = outputs / (whole.square().mean() + epsilon).sqrt() * weight
    outputs = outputs * plain.scale
    return outputs.view(plain.n_heads, -1, outputs.shape[-1]).sum(1) if level == "heads" else outputs


class Literal:
    """``U`` and ``log p_t`` of one prompt by their definition, in float64, from plain Hugging Face weights."""

    def __init__(self, plain: Plain, last_resid: Tensor, published: bool = False) -> None:
        norm, head = get(plain.hf, plain.parts.norm), plain.hf.get_output_embeddings()
        x = last_resid.double()
        self.centered = type(norm).__name__.endswith("LayerNorm")
        epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        if self.centered:
            self.scale = (x.var(correction=0) + epsilon).sqrt()
        else:
            self.scale = (x.square().mean() + epsilon).sqrt()
        self.gamma = norm.weight.double() + float(type(norm).__name__.startswith("Gemma"))
        self.W_U = head.weight.double() * LOGITS_MULTIPLIED.get(plain.family, 1.0)
        self.bias = torch.zeros(len(self.W_U), dtype=torch.float64)
        if self.centered and not published and hasattr(norm, "bias"):
            self.bias += self.W_U @ norm.bias.double()
        if getattr(head, "bias", None) is not None:
            self.bias += head.bias.double()

    def logits(self, z: Tensor) -> Tensor:
        z = z.double()
        z = z - z.mean() if self.centered else z
        return self.W_U @ (self.gamma * z / self.scale) + self.bias

    def log_prob(self, z: Tensor, target: int) -> Tensor:
        return torch.log_softmax(self.logits(z), -1)[target]

    def increase(self, delta: Tensor, base: Tensor, target: int) -> Tensor:
        return self.log_prob(base.double() + delta.double(), target) - self.log_prob(base, target)


def close(actual: Tensor, expected: Tensor, rel: float = 1e-5) -> bool:
    """Whether the largest difference is at most ``rel`` of the largest expected value."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
    scale = float(expected.detach().abs().max())
    return float((actual - expected).detach().abs().max()) <= rel * scale


def slope(f: Callable[[float], Tensor], h: float = 1e-3) -> Tensor:
    """The derivative of ``f`` at 0 by a five-point difference: its error is of order ``h`` to the fourth."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)
