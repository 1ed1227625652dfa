"""Tiny random vision-language models whose pictures enter in other ways than LLaVA's, with their processors."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = 24
"""Pixels along a picture that is stretched to a square."""
TYPED = {
    "gemma3": "<boi>",
    "paligemma": "<image>",
    "mistral3": "[IMG]",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
}
"""What stands for a picture in a text, as the model cards write it."""
STRETCHED = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


class Processor:
    """What Qwen2-VL's and Pixtral's processors do, which transformers offers only beside torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, breaks: tuple[str, str] | None = None) -> None:
        self.image_processor, self.tokenizer, self.breaks = image_processor, tokenizer, breaks
        self.image_token = tokenizer.image_token

    def __call__(self, images: Any, text: str, return_tensors: str) -> dict[str, Any]:
        pictures = self.image_processor(images=images, return_tensors=return_tensors)
        if self.breaks is None:
            rows, columns = (int(n) // 2 for n in pictures["image_grid_thw"][0, 1:])
            expanded = self.image_token * (rows * columns)
        else:
            rows, columns = (int(n) // 8 for n in pictures["image_sizes"][0])
            line, end = self.breaks
            expanded = line.join([self.image_token * columns] * rows) + end
        made = self.tokenizer(text.replace(self.image_token, expanded), return_tensors=return_tensors)
        if self.breaks is None:
            placed = made["input_ids"] == self.tokenizer.convert_tokens_to_ids(self.image_token)
            made["mm_token_type_ids"] = placed.long()
        return {**made, **pictures}


def _tokenizer(words: Any, **roles: str) -> Any:
    """A tokenizer of ``words`` with more tokens, by the names under which processors ask for them."""
    fast = copy.deepcopy(words)
    fast.add_special_tokens({"additional_special_tokens": ["<bos>", *roles.values()]})
    return PreTrainedTokenizerFast(
        tokenizer_object=fast.backend_tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="<bos>",
        extra_special_tokens=roles,
    )


def fresh(family: str, text: dict[str, Any], words: Any) -> tuple[Any, Any]:
    """A model of one of the families in :data:`TYPED` that sees 3 × 3 patches, and its processor.

    Args:
        family: which.
        text: sizes of its Llama-like language model; ``vocab_size`` is that of ``words``.
        words: a tokenizer.
    """
    return {"gemma3": _gemma3, "paligemma": _paligemma, "mistral3": _mistral3}.get(family, _qwen)(family, text, words)


def _gemma3(family: str, text: dict[str, Any], words: Any) -> tuple[Any, Any]:
    """Of 6 × 6 patches, 2 × 2 are averaged."""
    tokenizer = _tokenizer(words, image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>")
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            **{**text, "vocab_size": len(tokenizer)},
            head_dim=12,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=10,
        ),
        vision_config=transformers.SiglipVisionConfig(image_size=48, patch_size=8, **_TOWER),
        mm_tokens_per_image=9,
        image_token_index=tokenizer.convert_tokens_to_ids("<soft>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<boi>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<eoi>"),
    )
    pictures = Gemma3ImageProcessorPil(size={"height": 48, "width": 48}, image_seq_length=9)
    processor = transformers.Gemma3Processor(pictures, tokenizer, image_seq_length=9)
    return transformers.Gemma3ForConditionalGeneration(config).eval(), processor


def _paligemma(family: str, text: dict[str, Any], words: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(words, image_token="<image>")
    pictures = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    pictures.image_seq_length = 9
    processor = transformers.PaliGemmaProcessor(pictures, tokenizer)  # it adds 1,152 tokens for places and segments
    config = transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**{**text, "vocab_size": len(tokenizer)}, head_dim=12),
        vision_config=transformers.SiglipVisionConfig(image_size=SIDE, patch_size=8, projection_dim=32, **_TOWER),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return transformers.PaliGemmaForConditionalGeneration(config).eval(), processor


def _mistral3(family: str, text: dict[str, Any], words: Any) -> tuple[Any, Any]:
    tokenizer = _tokenizer(words, image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(
            **{**text, "vocab_size": len(tokenizer)}, head_dim=8, sliding_window=None
        ),
        vision_config=transformers.PixtralVisionConfig(image_size=32, patch_size=4, head_dim=8, **_TOWER),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    pictures = PixtralImageProcessorPil(size={"longest_edge": SIDE}, patch_size={"height": 8, "width": 8})
    processor = Processor(pictures, tokenizer, ("[IMG_BREAK]", "[IMG_END]"))
    return transformers.Mistral3ForConditionalGeneration(config).eval(), processor


def _qwen(family: str, text: dict[str, Any], words: Any) -> tuple[Any, Any]:
    """Qwen2.5-VL's tower attends within windows of 2 × 2 tokens in its first block."""
    roles = {role: f"<|{role}|>" for role in ("image_pad", "video_pad", "vision_start", "vision_end")}
    tokenizer = _tokenizer(words, image_token=roles.pop("image_pad"), **roles)
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    more: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
    own = {
        "qwen2_vl": ("Qwen2VL", {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}, {}),
        "qwen2_5_vl": ("Qwen2_5_VL", {**more, "window_size": 16, "fullatt_block_indexes": [1]}, {}),
        "qwen3_vl": (
            "Qwen3VL",
            {**more, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
            {"head_dim": 8},
        ),
    }
    named, seen, read = own[family]
    config = getattr(transformers, f"{named}Config")(
        text_config={**text, "vocab_size": len(tokenizer), "rope_parameters": rope, **read},
        vision_config={**vision, **seen},
        **ids,
    )
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": SIDE * SIDE}, patch_size=4, merge_size=2, temporal_patch_size=2
    )
    hf = getattr(transformers, f"{named}ForConditionalGeneration")(config)
    return hf.eval(), Processor(pictures, tokenizer)
