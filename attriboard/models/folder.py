"""A model's folder, looked through before transformers opens anything in it.

Only regular files are read, JSON has to be what it says it is, and counts in the configuration are bounded by what the
weights hold: a configuration of a billion layers would otherwise be built before anyone notices. What transformers,
safetensors and tokenizers still refuse becomes one sentence (:func:`one_sentence`).
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import AttriboardError, ModelError

CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them; in shards, with ``.index.json`` behind."""
_LARGE = ("tokenizer.json", "vocab.json")
"""JSON that may be large."""
_OWN_READERS = (*_LARGE, "truth.json")
"""JSON that is left to what reads it, the tokenizer or :mod:`attriboard.truth`."""
_LARGEST_JSON, _LARGEST_LARGE = 64 << 20, 1 << 30
"""Bytes of a JSON file; of one of :data:`_LARGE`."""
_DEEPEST = 64
"""Most lists and objects inside each other."""
_LAYERS = re.compile(r"(num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers|num_hidden_groups)")
_PARTS = re.compile(r"(num|n)_.*(head|expert|group|label|block).*")
_MOST_LAYERS, _MOST_PARTS, _MOST_POSITIONS = 10_000, 1 << 16, 1 << 24
_FLOATING = ("F64", "F32", "BF16", "F16")
"""What safetensors calls the types of weights that are numbers as they stand."""
BUFFERS = re.compile(r"(.*\.)?((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)")
"""What older versions of transformers saved beside the weights; it is made from the configuration."""
_UNUSED = (".md", ".txt.license", ".png", ".jpg", ".pdf", ".py", ".h5", ".msgpack", ".ot", ".onnx", ".tflite", ".log")
"""Ends of names of files beside a model that its results do not depend on; code is never run."""


def folder_of(name: str) -> Path | None:
    """The folder that a model's name stands for, ``~`` being the home folder; None where it is no folder.

    Raises:
        ModelError: it cannot be looked at.
    """
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"the model folder {name[:200]!r} cannot be looked at ({reason}); check the path.") from error


@contextmanager
def one_sentence(name: str, way_out: str) -> Iterator[None]:
    """What goes wrong while a model of that name is read or built becomes one sentence with its reason.

    Raises:
        ModelError: names the model, the reason and ``way_out``.
    """
    try:
        yield
    except (AttriboardError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the tokenizers' Rust code is no Exception
        raise ModelError(f"model {name!r} cannot be loaded ({_reason(error)}); {way_out}.") from error


def _reason(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it, which is never run"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = re.sub(r"\s+", " ", lines[0])[:300].rstrip(".:") if lines else ""
    if isinstance(error, (OSError, ValueError)) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def deciding_files(folder: Path) -> list[Path]:
    """The regular files of a model's folder that its results depend on, sorted by name.

    Everything beside the weights counts but what is known not to be read: which files a tokenizer or processor opens
    is its own business (``vocab.txt``, ``merges.txt``, ``*.model``, ``*.jinja``, ...). Shards are counted where their
    index says that they are.
    """
    files = {f for f in folder.iterdir() if not f.name.startswith(".") and not f.name.lower().endswith(_UNUSED)}
    for index in [f for f in files if f.name.endswith(".index.json") and f.is_file()]:
        try:
            files.update(folder / name for name in _shards(index))
        except ModelError:  # its own bytes count; loading says what is wrong with it
            continue
    return sorted(f for f in files if f.is_file())


def check_folder(folder: Path) -> None:
    """Refuses a folder that transformers should not be given.

    Raises:
        ModelError: a file is no regular file, is a Git LFS pointer or is no JSON, the configuration is missing or
            counts more than there is, the weights are cut short or quantized, or there is an adapter.
    """
    check_files(folder)
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{folder} holds an adapter ({_ADAPTER}) that is not merged; merge it into its base model's weights with "
            f"PEFT's merge_and_unload(), and save the result with its tokenizer."
        )
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"model {str(folder)!r} cannot be loaded: it has no {CONFIG}; name a folder written by save_pretrained."
        )
    sizes = _weight_sizes(folder)
    check_config(read_json(folder / CONFIG), str(folder / CONFIG), None if sizes is None else len(sizes))


def check_files(folder: Path) -> None:
    """Refuses files in a folder that are no files, are elsewhere, or are no JSON though they say so.

    Raises:
        ModelError: names the first.
    """
    for file in _entries(folder):
        _check_file(file)


def check_size(folder: Path, outline: torch.nn.Module) -> None:
    """Refuses a model far larger than the weights in its folder, before memory is taken for it.

    Args:
        outline: the model on the meta device.

    Raises:
        ModelError: says both sizes.
    """
    sizes = _weight_sizes(folder)
    if sizes is None:
        return  # transformers says which files it expects
    held, told = sum(sizes.values()), sum(p.numel() for p in outline.parameters())
    if told > 2 * held + (1 << 20) or sum(b.numel() for b in outline.buffers()) > (1 << 31):
        raise ModelError(
            f"{folder / CONFIG} tells of a model of {told:,} weights, and the files hold {held:,}; they do not belong "
            f"together."
        )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    except OSError as error:
        raise ModelError(f"the model folder {folder} cannot be read ({error.strerror}); check its rights.") from error


def _check_file(file: Path) -> None:
    try:
        mode, size = file.stat().st_mode, file.stat().st_size
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ModelError(f"{file} is no regular file; remove it or put the file itself there.")
        if stat.S_ISDIR(mode):
            return
        with file.open("rb") as stream:
            start = stream.read(len(_POINTER))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); mend or remove it.") from error
    if start == _POINTER:
        raise ModelError(f"{file} is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`.")
    if file.suffix == ".json":
        if size > (_LARGEST_LARGE if file.name in _LARGE else _LARGEST_JSON):
            raise ModelError(f"{file} has {size:,} bytes, which is no {file.name} of a model; mend or remove it.")
        if file.name not in _OWN_READERS:
            read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of bounded depth.

    Raises:
        ModelError: it cannot be read, is no JSON, no object, or too deep.
    """
    try:
        value = json.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror}); mend or remove it.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON ({_reason(error)}); mend or replace it.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds a {type(value).__name__}, expected a JSON object; mend or replace it.")
    if _depth(value) > _DEEPEST:
        raise ModelError(f"{file} is nested more than {_DEEPEST} deep; mend or replace it.")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:  # level by level: a recursion could be too deep itself
        depth += 1
        inner = [x for x in level if isinstance(x, (dict, list))]
        level = [y for x in inner for y in (x.values() if isinstance(x, dict) else x)]
    return depth


def check_config(config: Mapping[str, Any], place: str, tensors: int | None = None) -> None:
    """Refuses a configuration that is not taken, or that says more than there is.

    Args:
        config: as it stands in JSON.
        place: for messages.
        tensors: how many weights there are; every layer has at least one.

    Raises:
        ModelError: names the key, its value and what is expected.
    """
    if config.get("quantization_config"):
        raise ModelError(
            f"{place} says that the weights are quantized, which is not supported; take the original weights, or "
            f"dequantize them."
        )
    for name, value in config.items():
        key = str(name)  # of a configuration in memory some are numbers
        if isinstance(value, Mapping):
            check_config(value, f"{place}, {key}", tensors)
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise ModelError(f"{place}: {key} is {value!r}, code from elsewhere, which is never run; remove the key.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if _LAYERS.fullmatch(key) and value is not None:
                raise ModelError(f"{place}: {key} is {value!r:.60}, expected a whole number.")
            continue
        most: float = math.inf
        if _LAYERS.fullmatch(key):
            most = _MOST_LAYERS if tensors is None else tensors
        elif _PARTS.fullmatch(key):
            most = _MOST_PARTS
        elif "position" in key or key == "n_ctx":
            most = _MOST_POSITIONS
        if value > most:
            held = f", and the files hold {tensors:,} weights" if most == tensors else ""
            raise ModelError(f"{place}: {key} is {value:,}, expected at most {most:,}{held}; mend the configuration.")


def _weight_sizes(folder: Path) -> dict[str, int] | None:
    """By name the number of elements of every weight in the files; None where there are none that are known."""
    for name in _WEIGHTS:
        files = [folder / name]
        if not files[0].is_file():
            index = folder / f"{name}.index.json"
            if not index.is_file():
                continue
            files = [folder / shard for shard in _shards(index)]
        sizes: dict[str, int] = {}
        for file in files:
            with one_sentence(str(folder), f"{file} is missing, damaged or cut short: copy it again"):
                sizes |= _sizes_in(file)
        return sizes
    return None


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of them inside its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} has no weight_map from weights to files; mend or replace it.")
    shards = sorted(set(names.values()))
    for name in shards:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{index} names {name!r:.100}, which is not in its folder; mend or replace it.")
        _check_file(index.parent / name)
    return shards


def _sizes_in(file: Path) -> dict[str, int]:
    """By name the number of elements of every weight in one file.

    Raises:
        ModelError: one is of a type that needs a scale beside it.
    """
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            found = {key: stored.get_slice(key) for key in stored.keys()}  # noqa: SIM118 - it is no dictionary
            kinds = {key: weight.get_dtype() for key, weight in found.items()}
            sizes = {key: math.prod(weight.get_shape()) for key, weight in found.items()}
    else:
        tensors = torch.load(file, map_location="meta", weights_only=True)
        tensors = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
        floating = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        kinds = {key: "F32" if value.dtype in floating else str(value.dtype) for key, value in tensors.items()}
        sizes = {key: value.numel() for key, value in tensors.items()}
    for key, kind in kinds.items():
        if kind not in _FLOATING and not BUFFERS.fullmatch(key):
            raise ModelError(
                f"{file} holds quantized weights ({key} is {kind.removeprefix('torch.')}), which are not supported; "
                f"take the original weights, or dequantize them."
            )
    return sizes
