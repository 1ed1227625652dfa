"""Mutated model folders: each is refused with one sentence or loads; none gives a traceback, hangs or runs code.

A case copies a sound folder of a tiny model, changes one to three things in it (values of the configuration and of the
tokenizer's files, bytes, sizes, kinds of files, names and shapes of weights), and does what a run does: fingerprint,
truth, load, one prompt. Each runs in a process of its own with a time limit, so that what hangs is counted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attriboard.errors import AttriboardError

from .common import SECONDS, Case, HangError

os.environ["HF_HUB_OFFLINE"] = "1"  # a mutated name must not reach the network

MEMORY = 6 << 30
"""Bytes of addresses a case may have beside those of its parent; a tiny model needs none of it."""
FAMILIES = ("llama", "gpt2", "opt", "gemma2")
RAN = "code_ran"
"""The file that code beside a model writes when it is run."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 7, 2**31, 10**9, 10**18, 0.5, -0.5, float("nan"), float("inf"), "", "x", "auto", "a/b",
    [], [1], ["x"], [[[]]], {}, {"a": 1}, {"rope_type": "longrope"}, {"rope_type": "dynamic", "factor": 2.0},
)  # fmt: skip
KEYS = (
    "model_type", "architectures", "num_hidden_layers", "n_layer", "num_labels", "id2label", "quantization_config",
    "auto_map", "dtype", "torch_dtype", "_attn_implementation", "attn_implementation", "rope_parameters",
    "rope_scaling", "layer_types", "tie_word_embeddings", "vision_config", "text_config", "pruned_heads",
    "transformers_version", "num_experts", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
    "head_dim",
)  # fmt: skip


@functools.cache
def _sound(family: str) -> Path:
    """A folder of a tiny model that loads."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {"[UNK]": 0, "[PAD]": 1, **{f"w{i}": i + 2 for i in range(22)}}
    sizes: dict[str, Any] = {"vocab_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16}
    sizes |= {"max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": None}
    if family == "opt":
        sizes |= {"ffn_dim": 24, "word_embed_proj_dim": 16}
    elif family != "gpt2":
        sizes |= {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
    folder = Path(tempfile.mkdtemp(prefix=f"sound_{family}_"))
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(folder)
    return folder


def _files(folder: Path, end: str = "") -> list[Path]:
    """Regular files: an earlier change may have put a fifo or device there, which must not be opened here."""
    return sorted(f for f in folder.iterdir() if f.is_file() and f.name.endswith(end))


# --- one change each; every one says what it did ----------------------------------------------------------------------


def _json_value(rng: random.Random, folder: Path) -> str:
    """Another value, somewhere in a JSON file, or a key that was not there."""
    file = rng.choice(_files(folder, ".json"))
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return f"{file.name} was no JSON any more"
    place: Any = value
    path: list[str] = []
    while isinstance(place, (dict, list)) and place:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        path.append(str(key))
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    new = rng.choice(VALUES)
    if isinstance(value, dict) and rng.random() < 0.4:
        place, path = value, [rng.choice(KEYS)]
    if not path or not isinstance(place, (dict, list)):
        return f"{file.name} is empty"
    if isinstance(place, dict) and rng.random() < 0.15:
        place.pop(path[-1], None)
        new = "nothing"
    else:
        where: Any = path[-1] if isinstance(place, dict) else int(path[-1])
        place[where] = new
    file.write_text(json.dumps(value), encoding="utf-8")
    return f"{file.name}: {'.'.join(path)} = {new!r}"


def _json_text(rng: random.Random, folder: Path) -> str:
    """Text that is no JSON object, or too much of one."""
    file = rng.choice(_files(folder, ".json"))
    deep = rng.choice((50, 500, 100_000))
    texts = {
        "nothing": "", "null": "null", "a list": "[]", "a string": '"x"', "a surrogate": '{"a": "\\ud800"}',
        "5,000 digits": f'{{"num_hidden_layers": {"9" * 5000}}}', f"{deep} deep": '{"a":' * deep + "1" + "}" * deep,
    }  # fmt: skip
    what = rng.choice(sorted(texts))
    file.write_text(texts[what], encoding="utf-8")
    return f"{file.name} is {what}"


def _bytes(rng: random.Random, folder: Path) -> str:
    """A file cut short, emptied, with flipped bytes, or random."""
    file = rng.choice(_files(folder))
    data = bytearray(file.read_bytes())
    how = rng.choice(("cut", "empty", "flip", "random", "header", "pointer"))
    if how == "cut":
        data = data[: rng.randrange(len(data) + 1)]
    elif how == "flip":
        for _ in range(rng.randint(1, 20)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == "header":
        data[:8] = rng.choice((2**63, 2**40, 0, 7)).to_bytes(8, "little")
    else:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        data = bytearray({"empty": b"", "random": rng.randbytes(200), "pointer": pointer}[how])
    file.write_bytes(data)
    return f"{file.name}: {how}"


def _kind(rng: random.Random, folder: Path) -> str:
    """A fifo, folder, link or nothing where a file is, or may be."""
    names = sorted({f.name for f in folder.iterdir()} | {"truth.json", "vocab.txt", "adapter_config.json", "x.bin"})
    name, how = rng.choice(names), rng.choice(("fifo", "folder", "/dev/zero", "nowhere", "gone", "itself"))
    file = folder / name
    if file.is_dir() and not file.is_symlink():
        return f"{name} was a folder"
    file.unlink(missing_ok=True)
    if how == "fifo":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how != "gone":
        file.symlink_to(name if how == "itself" else how)
    return f"{name}: {how}"


def _weights(rng: random.Random, folder: Path) -> str:
    """Weights renamed, left out, of another shape or type, not numbers, or in a file of another kind."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    try:
        state = load_file(file) if file.is_file() else {}
    except Exception:  # an earlier change of the same case has damaged it
        state = {}
    if not state:
        return "the weights cannot be read any more"
    key = rng.choice(sorted(state))
    how = rng.choice(("renamed", "left out", "cut", "int8", "nan", "float16", "prefix", "bin", "pickle", "index"))
    if how == "renamed":
        state[key + "x"] = state.pop(key)
    elif how == "left out":
        del state[key]
    elif how == "cut":
        state[key] = state[key][:-1].clone()
    elif how == "int8":
        state[key] = state[key].to(torch.int8)
    elif how == "nan":
        state[key] = torch.full_like(state[key], float("nan"))
    elif how == "float16":
        state[key] = state[key].half()
    elif how == "prefix":
        prefix = rng.choice(("module.", "_orig_mod.", "mine."))
        state = {prefix + k: v for k, v in state.items()}
    if how in ("bin", "pickle"):
        file.unlink()
        torch.save(state if how == "bin" else {"code": Path}, folder / "pytorch_model.bin")
    elif how == "index":
        maps: tuple[Any, ...] = (
            {},
            [],
            {"a": 1},
            {key: "../x"},
            {key: "x.safetensors"},
            {key: "/dev/zero"},
            {key: "config.json"},
        )
        file.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": rng.choice(maps)}))
    else:
        save_file(state, file, metadata={"format": "pt"})
    return f"weights, {key}: {how}"


def _code(rng: random.Random, folder: Path) -> str:
    """Code beside the model, named by its files."""
    (folder / "own.py").write_text(f"open({str(folder / RAN)!r}, 'w').close()\n")
    name = rng.choice(("config.json", "tokenizer_config.json"))
    maps = {"AutoConfig": "own.X", "AutoModelForCausalLM": "own.X", "AutoTokenizer": ["own.X", "own.X"]}
    if not (folder / name).is_file():
        return f"{name} was gone"
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        value |= {"auto_map": maps, **rng.choice(({}, {"model_type": "own"}, {"tokenizer_class": "X"}))}
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    except (ValueError, OSError, TypeError, RecursionError):
        return f"{name} was no JSON any more"
    return f"{name}: code of its own"


CHANGES = (_json_value, _json_value, _json_value, _json_text, _bytes, _kind, _weights, _weights, _code)
"""Values three times: there are most of them."""


# --- cases ------------------------------------------------------------------------------------------------------------


def cases(seed: int) -> Iterator[Case]:
    """Endlessly: what was changed, and a function that tries the folder in a process of its own."""
    import torch
    import transformers

    import attriboard.loading  # noqa: F401 - imported once, before the processes fork

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    number = 0
    while True:
        rng = random.Random(f"{seed}:{number}")
        family = FAMILIES[number % len(FAMILIES)]
        folder = Path(tempfile.mkdtemp(prefix="case_"))
        shutil.copytree(_sound(family), folder, dirs_exist_ok=True)
        done = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            change = rng.choice(CHANGES)
            try:
                done.append(change(rng, folder))
            except (OSError, IndexError) as error:  # an earlier change left nothing to change
                done.append(f"nothing ({error})")
        yield f"{number} {family}: {'; '.join(done)}", functools.partial(apart, folder)
        number += 1


def attempt(folder: Path) -> None:
    """Does what a run does with a model's folder, and removes it.

    Raises:
        AttriboardError: the folder is refused. RuntimeError: code from it ran, memory ran out, or the refusal is more
            than a sentence.
    """
    from attriboard.interventions import measure_all
    from attriboard.loading import check_model_name, fingerprint, has_truth, load_model, outline
    from attriboard.task import Example

    name = str(folder)
    refusal: AttriboardError | None = None
    try:
        for door in (check_model_name, fingerprint, has_truth, outline):
            with contextlib.suppress(AttriboardError):  # what refuses a folder for good is its load
                door(name)
        try:
            model = load_model(name)
            measure_all(model, [model.encode(Example("w1 w2 w3", " w4", " w5"))])
        except AttriboardError as error:
            refusal = error
        said = str(refusal)
        if (folder / RAN).exists():
            raise RuntimeError("code that came with the model ran")
        if "MemoryError" in said or "can't allocate memory" in said:
            raise RuntimeError(f"the limit of memory was met: {said}")
        if "\n" in said or len(said) > 1500:
            raise RuntimeError(f"not one sentence: {said!r}")
        if refusal is not None:
            raise refusal
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def apart(folder: Path) -> None:
    """:func:`attempt` in a process of its own, with a limit of memory.

    Raises:
        AttriboardError, RuntimeError: as there. HangError: it took longer than a case may.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(folder, there))
    child.start()
    there.close()
    try:
        outcome, said = here.recv() if here.poll(SECONDS - 1) else ("hang", "")
    except EOFError:
        child.join()
        outcome, said = "died", f"exit code {child.exitcode}"
    child.kill()
    child.join()
    shutil.rmtree(folder, ignore_errors=True)
    if outcome == "refused":
        raise AttriboardError(said)
    if outcome == "hang":
        raise HangError
    if outcome != "accepted":
        raise RuntimeError(f"{outcome}: {said}")


def _in_child(folder: Path, results: Any) -> None:
    with open("/proc/self/statm", encoding="ascii") as statm:
        inherited = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (inherited + MEMORY, inherited + MEMORY))
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    signal.setitimer(signal.ITIMER_REAL, 0)  # the parent's
    try:
        attempt(folder)
        results.send(("accepted", ""))
    except AttriboardError as error:
        results.send(("refused", str(error)))
    except BaseException:
        results.send(("traceback", traceback.format_exc()))
