"""Seconds and peak memory of the forward-only methods on a vision-language model of full size, with random weights.

Speed does not depend on what the weights hold, so the shape of LLaVA-1.5-7B (336 px, 576 patches, 32 layers of 32
heads) tells what a method costs on the real one. ``tiny`` is the same program on a toy shape, to see that it runs.

    python benchmarks/speed_vision.py --shape llava-1.5-7b --device cuda --dtype bfloat16 --out results/speed-llava.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from attriboard.components import get_level
from attriboard.errors import SkipCell
from attriboard.evaluation.speed import PeakMemory
from attriboard.evaluation.timing import timed
from attriboard.loading import DTYPES, check_device
from attriboard.method import methods
from attriboard.model import Cost, EncodedExample, Model
from attriboard.run.provenance import provenance
from attriboard.task import IMAGE, Example

LEVELS = ("patches", "heads", "neurons")
WORDS = ("USER:", "What", "is", "the", "color", "of", "dog", "?", "ASSISTANT:", "The", "brown", "black")
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "llava-1.5-7b": {
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        "text": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32064,
        },
    },
    "tiny": {
        "vision": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "text": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": 64,
        },
    },
}


def build(shape: str, device: str, dtype: str) -> tuple[Model, EncodedExample]:
    """A model of that shape and one example: a question about a picture of noise."""
    sizes = SHAPES[shape]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes["vision"]),
        text_config=LlamaConfig(**sizes["text"], max_position_embeddings=4096),
        image_token_index=1,
    )
    torch.manual_seed(0)
    with torch.device(device):
        hf = LlavaForConditionalGeneration._from_config(config, dtype=DTYPES[dtype])
    vocabulary = {"<pad>": 0, IMAGE: 1, **{word: i + 2 for i, word in enumerate(WORDS)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", additional_special_tokens=[IMAGE])
    side, patch = sizes["vision"]["image_size"], sizes["vision"]["patch_size"]
    resizing = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        image_processor=resizing,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = Model(hf, tokenizer, name=f"{shape} shape, random weights", processor=processor)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    prompt = f"USER: {IMAGE} What is the color of the dog ? ASSISTANT: The color of the dog is"
    return model, model.encode(Example(prompt, " brown", " black", image=Image.fromarray(noise)))


def measure(model: Model, example: EncodedExample, repeats: int) -> list[dict[str, Any]]:
    """One row for every method that needs no gradient, at every level it scores."""
    rows: list[dict[str, Any]] = []
    for level in map(get_level, LEVELS):
        for cls in methods:
            if level.name not in cls.levels or cls.needs - {"forward", "weights"}:
                continue
            method = methods.make(cls.name)
            score = method.each if level.inputs else method.attribute
            try:
                method.check_examples([example])
            except SkipCell:
                continue
            model.cost = Cost()
            score(model, [example], level)  # warm
            work = model.forward_equivalents([example])
            with PeakMemory(model.device) as memory:
                seconds = [timed(lambda: score(model, [example], level), model.device) for _ in range(repeats)]  # noqa: B023
            row = {
                "level": level.name,
                "method": cls.name,
                "median_seconds": statistics.median(seconds),
                "seconds": seconds,
                "forward_equivalents": work,
                "peak_memory_mib": memory.mib,
            }
            rows.append(row)
            print(f"{level.name} {cls.name}: {row['median_seconds']:.3f} s, {memory.mib:.0f} MiB", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-1.5-7b", choices=sorted(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    check_device(options.device)
    model, example = build(options.shape, options.device, options.dtype)
    result = {
        "shape": options.shape,
        "dtype": options.dtype,
        "prompt_tokens": len(example.tokens),
        "provenance": provenance(model.device).model_dump(),
        "methods": measure(model, example, options.repeats),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
