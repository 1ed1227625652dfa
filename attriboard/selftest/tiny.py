"""Tiny random models that are built on the spot, and questions to them: what methods are self-tested on.

Two language models that differ in what methods stumble over (GPT-2: biases, LayerNorm, as many keys as queries; Llama:
none of these, a gated FFN, grouped queries) and a LLaVA around the second. Nothing is trained and nothing downloaded.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, CLIPImageProcessorPil, LlavaProcessor

from ..model import EncodedExample, Model
from ..task import IMAGE, Example
from ..zoo.words import word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
LAYERS = {"gpt2": 2, "llama": 3, "llava": 3}
D_MODEL = 16
PATCH, GRID = 14, 3
"""Pixels along a patch, patches along a picture."""


class SmoothRMSNorm(nn.Module):
    """As Llama's norm, which always computes in float32; this one computes in the type of its input."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


class FixedScale(nn.Module):
    """As a LayerNorm without its statistics: an affine map."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def tiny_hf(family: str, seed: int = 0, **changes: Any) -> Any:
    """A Hugging Face model with every weight, norm weight and bias drawn at random, large enough to matter.

    Args:
        family: a key of :data:`LAYERS`.
        seed: of the weights.
        changes: of the configuration.
    """
    tokenizer = _tokenizer(family)
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        **({"n_inner": 12} if family == "gpt2" else {"num_key_value_heads": 2, "intermediate_size": 12}),
        **changes,
    }
    sizes = {"hidden_size": D_MODEL, "num_attention_heads": 4, "max_position_embeddings": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what the draw below adds to
        if family == "gpt2":
            gpt2 = dict(zip(("n_embd", "n_head", "n_positions"), sizes.values()))
            config = transformers.GPT2Config(**{"n_layer": LAYERS[family], **gpt2, **text})
            hf: Any = AutoModelForCausalLM.from_config(config)
        else:
            llama = transformers.LlamaConfig(**{"num_hidden_layers": LAYERS[family], **sizes, **text})
            hf = AutoModelForCausalLM.from_config(llama) if family == "llama" else _around(llama, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    embedding = hf.get_input_embeddings().weight
    with torch.no_grad():
        for weight in hf.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(noise * (0.6 if weight is embedding else 1.3 / weight[0].numel() ** 0.5))
        if family == "llava":
            hf.model.multi_modal_projector.linear_2.weight.mul_(0.2)  # image features as large as token embeddings
    return hf.eval().requires_grad_(False)


def _around(llama: Any, tokenizer: Any) -> Any:
    """A LLaVA of LLaVA-1.5's shape: CLIP's last layer but one without the class token, two-layer projector."""
    tower = transformers.CLIPVisionConfig(
        image_size=PATCH * GRID,
        patch_size=PATCH,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
    )
    config = transformers.LlavaConfig(
        vision_config=tower,
        text_config=llama,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=GRID * GRID,
        tie_word_embeddings=False,
    )
    return AutoModelForImageTextToText.from_config(config)


def in_double(hf: Any) -> Any:
    """The model in float64 throughout, so that finite differences are not lost in rounding."""
    hf = hf.double()
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, SmoothRMSNorm(child.weight, child.variance_epsilon))
    return hf


def linear_gpt2() -> Any:
    """A GPT-2 whose logits are an affine function of its embeddings, and of every activation on the way.

    Query and key weights and biases are zero, so attention is uniform over the positions before; the activation
    function is the identity; norms keep their weights and biases and divide by nothing.
    """
    hf = tiny_hf("gpt2", activation_function="linear")
    for block in hf.transformer.h:
        block.attn.c_attn.weight[:, : 2 * D_MODEL] = 0
        block.attn.c_attn.bias[: 2 * D_MODEL] = 0
        block.ln_1 = FixedScale(block.ln_1.weight, block.ln_1.bias)
        block.ln_2 = FixedScale(block.ln_2.weight, block.ln_2.bias)
    hf.transformer.ln_f = FixedScale(hf.transformer.ln_f.weight, hf.transformer.ln_f.bias)
    return hf.requires_grad_(False)


@functools.cache
def _tokenizer(family: str) -> Any:
    tokenizer = word_tokenizer(WORDS)
    if family == "llava":
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


def hooked(hf: Any, batch_size: int = 16, padding_side: str = "left", prove: bool = False) -> Model:
    """The project's model around one of :func:`tiny_hf`'s."""
    family = str(hf.config.model_type)
    tokenizer = _tokenizer(family)
    processor = None
    if family == "llava":
        side = PATCH * GRID
        pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        processor = LlavaProcessor(
            pictures,
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    return Model(
        hf,
        tokenizer,
        name=f"tiny {family}",
        batch_size=batch_size,
        padding_side=padding_side,
        prove=prove,
        processor=processor,
    )


def tiny_examples(
    model: Model,
    marks: Sequence[str] = ("label",),
    answers: Sequence[str] = ("w3", "w5", "w3", "w5"),
    foils: Sequence[str | None] = ("w8", "w9", "w10", None),
    subsets: Sequence[str] = ("a", "a", "b", "b"),
) -> tuple[EncodedExample, ...]:
    """Four questions of four lengths, with a picture if the model sees.

    Each has a counterfactual that begins as its prompt does, and two marked words. Words are drawn at random, always
    the same.
    """
    rng = random.Random(0)
    examples = []
    for i, (answer, foil, subset) in enumerate(zip(answers, foils, subsets)):
        words = [rng.choice(WORDS) for _ in range(4 + (3 * i) % 5)]
        other = [*words[:2], *(rng.choice(WORDS) for _ in words[2:])]
        first = f"{IMAGE} " if model.vision is not None else ""
        prompt = first + " ".join(words)
        at = [len(first + " ".join([*words[:k], ""])) for k in (1, 3)]
        spans = tuple((start, start + len(words[k])) for start, k in zip(at, (1, 3)))
        example = Example(
            prompt=prompt,
            answer=f" {answer}",
            foil=None if foil is None else f" {foil}",
            counterfactual=first + " ".join(other),
            marks=dict.fromkeys(marks, spans),
            item=str(i),
            subset=subset,
            image=_picture(i) if first else None,
            counterfactual_image=_picture(i + 10) if first else None,
        )
        examples.append(model.encode(example))
    return tuple(examples)


def _picture(seed: int) -> Any:
    noise = np.random.default_rng(seed).integers(0, 256, (PATCH * GRID, PATCH * GRID, 3), dtype=np.uint8)
    return Image.fromarray(noise)
