"""A vision-language model around a language model: built, and loaded with the weights shipped here.

It is a plain ``transformers`` LLaVA: a CLIP vision tower, LLaVA's own projector, the language model as it is. The
picture's placeholder is an entry of the vocabulary that no text uses, so nothing is resized. The language model's
tensors are shared with the one that was passed in, which is never changed: tuned layers get tensors of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .language import IMAGE
from .scenes import SIZE

NAME = "llava-smollm2-135m"
LANGUAGE_MODEL = "smollm2-135m"
WEIGHTS = Path(__file__).parent / "llava_smollm2_135m.safetensors"
RECORD = WEIGHTS.with_suffix(".json")

IMAGE_TOKEN = "<jupyter_start>"
PATCH = 16
GRID = SIZE // PATCH
PATCHES = GRID * GRID

TUNED = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The attention projections that have a low-rank part, in every layer."""


class LoraLinear(nn.Module):
    """A frozen linear layer W and a low-rank part: ``W x + scale * B A x``; B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, generator: torch.Generator | None = None):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = scale
        self.enabled = True
        start = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
        self.A = nn.Parameter(start.to(base.weight.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] to [..., d_out]."""
        out = self.base(x)
        if self.enabled:
            low = nn.functional.linear(nn.functional.linear(x, self.A), self.B)
            out = out + (self.scale * low).to(out.dtype)
        return out


def add_lora(model: Any, rank: int, scale: float, generator: torch.Generator | None = None) -> list[LoraLinear]:
    """Puts a low-rank part on every layer of :data:`TUNED` in a model's language model."""
    added = []
    for layer in model.model.language_model.layers:
        for name in TUNED:
            tuned = LoraLinear(getattr(layer.self_attn, name), rank, scale, generator)
            setattr(layer.self_attn, name, tuned)
            added.append(tuned)
    return added


@contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """The untouched language model, for as long as the block lasts."""
    parts = [module for module in model.modules() if isinstance(module, LoraLinear)]
    for part in parts:
        part.enabled = False
    try:
        yield
    finally:
        for part in parts:
            part.enabled = True


def build_llava(lm: Any, tokenizer: Any) -> Any:
    """A LLaVA with a fresh vision tower and projector (float32) around a language model, whose tensors it shares.

    Chance comes from torch's global generator.
    """
    model = _around(lm, tokenizer, lm.get_input_embeddings().weight.dtype)
    parts = model.model
    parts.vision_tower = AutoModel.from_config(model.config.vision_config, dtype=torch.float32)
    parts.multi_modal_projector.to_empty(device="cpu").float()
    for module in parts.multi_modal_projector.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


def load_llava(
    lm: Any, tokenizer: Any, tuned: bool = True, dtype: torch.dtype | None = None, weights: Path = WEIGHTS
) -> tuple[Any, Any]:
    """The trained model and its processor.

    Args:
        lm: the causal language model the weights were trained on; it stays as it is.
        tokenizer: of that model.
        tuned: with the low-rank parts merged into the attention projections; without them the language model inside is
            ``lm`` bit for bit, under the same vision tower and projector.
        dtype: of the whole model; that of ``lm`` if not given.
        weights: a file written by :func:`save_weights`.
    """
    dtype = dtype or lm.get_input_embeddings().weight.dtype
    model = _around(lm, tokenizer, dtype)
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        scale = float(file.metadata()["lora_scale"])
    parts = model.model
    parts.vision_tower.to_empty(device="cpu")
    embeddings = parts.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # the one tensor that is not a weight
    parts.multi_modal_projector.to_empty(device="cpu")
    for name in ("vision_tower", "multi_modal_projector"):
        part = getattr(parts, name)
        part.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
        part.to(dtype)
    if tuned:
        merge_lora(model, tensors, scale)
    return model.eval().requires_grad_(False), build_processor(tokenizer)


def merge_lora(model: Any, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Replaces each tuned weight by ``W + scale * B A``, a new tensor, computed in float32."""
    for number, layer in enumerate(model.model.language_model.layers):
        for name in TUNED:
            linear = getattr(layer.self_attn, name)
            low = tensors[f"lora.{number}.{name}.B"].float() @ tensors[f"lora.{number}.{name}.A"].float()
            merged = linear.weight.detach().float() + scale * low.to(linear.weight.device)
            linear.weight = nn.Parameter(merged.to(linear.weight.dtype), requires_grad=False)


def save_weights(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """What training made, in float16: vision tower, projector and low-rank parts of a model after :func:`add_lora`."""
    tensors: dict[str, Tensor] = {}
    for name in ("vision_tower", "multi_modal_projector"):
        tensors |= {f"{name}.{k}": v for k, v in getattr(model.model, name).state_dict().items()}
    scales = set()
    for number, layer in enumerate(model.model.language_model.layers):
        for name in TUNED:
            tuned = getattr(layer.self_attn, name)
            tensors |= {f"lora.{number}.{name}.A": tuned.A, f"lora.{number}.{name}.B": tuned.B}
            scales.add(tuned.scale)
    (scale,) = scales
    half = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    save_file(half, path, metadata={**metadata, "lora_scale": repr(scale)})


def build_processor(tokenizer: Any) -> Any:
    """Pictures and text to inputs; text has ``processor.image_token`` where a prompt has :data:`IMAGE`."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,  # the class token, which "default" drops again
    )


def pixel_values(pictures: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """What the processor makes of pictures that have the right size: [B, SIZE, SIZE, 3] uint8 to [B, 3, SIZE, SIZE]."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def with_placeholders(prompt: str) -> str:
    """A prompt with one placeholder token per patch, as the processor expands it."""
    return prompt.replace(IMAGE, IMAGE_TOKEN * PATCHES)


def _around(lm: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    """A LLaVA whose vision tower and projector are still empty (on the meta device)."""
    # modules of its own, so that hooks on one model are not hooks on the other, over the same tensors
    own: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in lm.parameters()}
    inner = copy.deepcopy(lm.get_decoder(), own)
    head = copy.deepcopy(lm.get_output_embeddings(), own)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SIZE,
            patch_size=PATCH,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=3,
            projection_dim=192,
        ),
        text_config=inner.config,  # the object its layers read, so that settings made on the model reach them
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=lm.config.tie_word_embeddings,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = inner
    model.lm_head = head
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(lm.generation_config, key, None))
    return model
