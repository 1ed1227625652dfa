"""What a model can still do: lm-eval tasks on the model in memory, before and after something was done to it.

A default set ships in ``capability_tasks/`` and needs no network. Any other lm-eval task can be named; one that does
not exist, or whose data cannot be reached, is skipped with its reason and the others are measured.
"""

from __future__ import annotations

import copy
import difflib
import functools
import io
import logging
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy

from ..capability_tasks.attriboard_documents import read
from ..errors import ConfigurationError, ModelError
from ..instructions import no_retries
from ..measurements.capability import DEFAULT_TASKS, Capability
from ..model import Model
from ..models.hooks import every_logit

FOLDER = Path(__file__).parents[1] / "capability_tasks"
FEWSHOT_SEED = 1234  # lm-eval's own, so that few-shot tasks show the examples they show elsewhere
BATCH_TOKENS = 1024  # the logits of so many tokens stand in memory at once: 200 MB for a vocabulary of 49,152


def measure(model: Model, tasks: Sequence[str] = DEFAULT_TASKS, limit: int | None = None) -> Capability:
    """Runs lm-eval tasks, or the tasks of lm-eval groups, on the model as it is: hooks and edited weights included.

    Nothing else in the process changes: seeds, logging, environment and the tokenizer's settings are as before.

    Args:
        limit: only the first so many documents of every task.

    Raises:
        ConfigurationError: lm-eval is not installed, no task is named, or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"the limit of documents per lm-eval task is {limit}, expected at least 1.")
    if not tasks:
        raise ConfigurationError(f"no lm-eval task is named; the ones that ship are {', '.join(DEFAULT_TASKS)}.")
    capability = Capability()
    with _nothing_left_behind(model.device), no_retries(any(name not in DEFAULT_TASKS for name in tasks)):
        try:
            from lm_eval import evaluate
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise ConfigurationError(
                f"capability is measured by lm-eval, which cannot be imported ({error}): "
                f'pip install "attriboard[capability]".'
            ) from error
        lm = HFLM(
            pretrained=model.hf,
            backend="causal",
            tokenizer=_open_ended(model),
            max_length=model.max_length,
            softmax_dtype="float32",
            batch_size=model.batch_size,
        )
        for name, loaded in _load(dict.fromkeys(tasks), capability.skipped):
            for leaf, task in loaded.items():
                # logits of long documents are large, and a row more saves little there
                whole_texts = task.OUTPUT_TYPE == "loglikelihood_rolling"
                lm.batch_size_per_gpu = 1 if whole_texts else model.batch_size
                # of whole texts lm-eval puts a first token itself, before what the tokenizer puts there
                lm.add_bos_token = False if whole_texts else None
                try:
                    # not simple_evaluate: it seeds every generator, and looks up git and the machine for a second
                    task.set_fewshot_seed(seed=FEWSHOT_SEED)
                    result = evaluate(lm, {"tasks": {leaf: task}}, limit=limit, bootstrap_iters=0, log_samples=True)
                    _store(capability, leaf, result["samples"][leaf])
                except Exception as error:  # one task of someone else's must not take the others with it
                    capability.skipped[name] = f"lm-eval task {leaf!r} could not be evaluated ({_first_line(error)})."
    return capability


def _open_ended(model: Model) -> Any:
    """A copy of the tokenizer, to which lm-eval may add a padding token, that puts nothing behind a text.

    lm-eval takes the last token of a context for the last of its text, as a continuation follows it.
    """
    reader = copy.deepcopy(model.tokenizer)
    whole, kept = reader("a")["input_ids"], model.tokens("a")
    if len(whole) > len(kept):
        before = whole[: len(kept) - len(reader("a", add_special_tokens=False)["input_ids"])]
        names = reader.convert_ids_to_tokens(before)
        reader.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], special_tokens=list(dict(zip(names, before)).items())
        )
    return reader


def _load(names: Iterable[str], skipped: dict[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """``(name, {leaf: task})`` for every name that can be loaded; the others go to ``skipped``."""
    for name in names:
        manager = _manager(name not in DEFAULT_TASKS)
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them all."
            skipped[name] = f"lm-eval has no task {name!r}: {hint}"
            continue
        try:
            loaded = manager.load([name])["tasks"]
        except Exception as error:  # whatever a task's own loader raises
            skipped[name] = f"the data of lm-eval task {name!r} cannot be reached or read ({_first_line(error)})."
            continue
        yield name, loaded


@functools.cache
def _manager(all_tasks: bool) -> Any:
    """lm-eval's index: of our own tasks in an instant, of all 15,000 in ten seconds, once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=all_tasks)


def _store(capability: Capability, task: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Keeps what every document measured; of a task that filters answers in several ways, by the first."""
    rows = [row for row in samples if row["filter"] == samples[0]["filter"]]
    metrics = rows[0]["metrics"]
    if "word_perplexity" in metrics:
        capability.prose[task] = [(float(nats), int(words)) for nats, words in (row["word_perplexity"] for row in rows)]
        return
    metric = next((m for m in ("acc", "exact_match") if m in metrics), None)
    if metric is None:
        raise ConfigurationError(f"it measures {', '.join(metrics)}, not acc, exact_match or word_perplexity")
    capability.accuracy[task] = [float(row[metric]) for row in rows]


def _first_line(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return first if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {first}"


@contextmanager
def _nothing_left_behind(device: torch.device) -> Iterator[None]:
    """Silence from lm-eval and what it uses, and every global state it changes put back."""
    environment, level = dict(os.environ), logging.root.manager.disable
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    output = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            warnings.catch_warnings(),
            redirect_stdout(output),
            redirect_stderr(output),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        os.environ.clear()
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@torch.no_grad()
def document_log_likelihoods(model: Model, texts: Sequence[str]) -> list[float]:
    """log p of every text in nats: the sum over its tokens, each given those before it, as lm-eval's rolling does.

    The first token is predicted from the tokenizer's beginning-of-sequence token (end-of-sequence where it has none).
    A text longer than the context is cut into windows that predict as many tokens as fit; the last window, shorter
    than that, is given all the context that fits before it. No token is predicted twice. A text without tokens has 0.

    Raises:
        ModelError: the tokenizer has neither of the two.
    """
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    if bos is None and eos is None:
        raise ModelError(
            f"{model.name}'s tokenizer has neither a beginning-of-sequence nor an end-of-sequence token, from one of "
            f"which the first token of a text is predicted; set one."
        )
    windows: list[tuple[int, list[int], list[int]]] = []
    for i, text in enumerate(texts):
        start = eos if bos is None else bos
        own = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = own if own[:1] == [start] else [start, *own]  # it may be typed
        for start in range(1, len(tokens), model.max_length):
            end = min(start + model.max_length, len(tokens))
            windows.append((i, tokens[max(0, end - 1 - model.max_length) : end - 1], tokens[start:end]))
    total = [0.0] * len(texts)
    windows.sort(key=lambda window: len(window[1]))
    for rows in _groups(windows):
        width = len(rows[-1][1])
        inputs = torch.zeros((len(rows), width), dtype=torch.long)
        mask, targets = torch.zeros_like(inputs), torch.full_like(inputs, -100)  # -100: not predicted
        for row, (_, given, predicted) in enumerate(rows):
            inputs[row, : len(given)] = torch.tensor(given)
            mask[row, : len(given)] = 1
            targets[row, len(given) - len(predicted) : len(given)] = torch.tensor(predicted)
        inputs, mask, targets = (x.to(model.device) for x in (inputs, mask, targets))
        logits = every_logit(model, inputs, mask)
        losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        for (i, _, _), loss in zip(rows, losses.double().sum(1).tolist()):
            total[i] -= loss
    return total


def _groups(windows: Sequence[tuple[int, list[int], list[int]]]) -> Iterator[list[tuple[int, list[int], list[int]]]]:
    """Windows sorted by length, in batches of at most :data:`BATCH_TOKENS` tokens with their padding."""
    batch: list[tuple[int, list[int], list[int]]] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window[1]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def neutral_prompts(limit: int | None = None) -> list[str]:
    """Prompts of the next-word task that ships, which have nothing to do with any other task."""
    return [row["prompt"] for row in read(FOLDER / "next_word.jsonl")[:limit]]


def own_prose(limit: int | None = None) -> list[tuple[str, int]]:
    """``(text, words)`` of the prose that ships; words are counted as lm-eval does."""
    texts = [row["text"] for row in read(FOLDER / "prose.jsonl")[:limit]]
    return [(text, len(re.split(r"\s+", text))) for text in texts]
