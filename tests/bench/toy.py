"""A toy world for tests of the harness: a saved model that repeats the last word, a task about it, and a suite."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from attriboard.evaluation.context import Context
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.task import tasks

WORDS = [f"w{i}" for i in range(24)]

TASK = '''
"""Repeat the last word."""
from dataclasses import dataclass

from attriboard.task import Example, Task

WORDS = [f"w{i}" for i in range(24)]


@dataclass
class Repeat(Task):
    name = "repeat"
    description = "Repeat the last word."
    labels = tuple(WORDS)
    all_subsets = ("short", "long")
    marks = ("last",)
    evidence = ("last",)

    def candidates(self, subset, rng):
        while True:
            words = rng.sample(WORDS, 4 if subset == "short" else 6)
            prompt = " ".join(words[:-1])
            other = " ".join([*words[:-2], words[-1]])
            start = len(prompt) - len(words[-2])
            yield Example(prompt, words[-2], words[-1], other, {"last": ((start, len(prompt)),)}, prompt, subset=subset)


@dataclass
class Hopeless(Repeat):
    """Asks for a word that the model never gives."""

    name = "hopeless"

    def candidates(self, subset, rng):
        for e in super().candidates(subset, rng):
            yield Example(e.prompt, e.foil, e.answer, None, e.marks, e.item, subset=subset)
'''

METHODS = '''
"""Methods that go wrong, each in its own way, and two that score tokens."""
from dataclasses import dataclass

import torch

from attriboard.method import Method


@dataclass
class WrongShape(Method):
    name = "wrong_shape"
    paper = "none"
    description = "goes wrong"
    levels = ("heads", "neurons")

    def score_batch(self, model, batch, level):
        return torch.zeros(len(batch), 7)


@dataclass
class NotANumber(Method):
    name = "not_a_number"
    paper = "none"
    description = "goes wrong"
    levels = ("heads",)

    def score_batch(self, model, batch, level):
        scores = torch.zeros(len(batch), *level.shape(model))
        scores[:, 1, 2] = float("nan")
        return scores


@dataclass
class Raises(Method):
    name = "raises"
    paper = "none"
    description = "goes wrong"
    levels = ("heads",)

    def attribute(self, model, examples, level):
        raise ZeroDivisionError("its own mistake")


@dataclass
class LastToken(Method):
    """Scores the last token 1 and every other 0."""

    name = "last_token"
    paper = "none"
    description = "knows the answer to the toy task"
    levels = ("tokens",)

    def score_batch(self, model, batch, level):
        return torch.nn.functional.one_hot(batch.last, batch.tokens.shape[1]).float()


@dataclass
class EmbeddingSum(Method):
    """Scores a position by the sum of its embedding, which says nothing and depends on that position alone."""

    name = "embedding_sum"
    paper = "none"
    description = "the sum of the embedding"
    levels = ("tokens", "patches")
    control = True

    def score_batch(self, model, batch, level):
        return model.embeddings(batch).sum(-1)


@dataclass
class NotANumberThere(Method):
    name = "not_a_number_there"
    paper = "none"
    description = "goes wrong"
    levels = ("tokens",)

    def score_batch(self, model, batch, level):
        return torch.full(batch.tokens.shape, float("nan"))


@dataclass
class NeedsAMark(Method):
    name = "needs_a_mark"
    paper = "none"
    description = "goes wrong"
    levels = ("heads",)
    needs = frozenset({"marks:object"})
'''

SUITE = """
name = "toy"
description = "A toy."
models = ["{model}"]
not_run = ["nothing else exists here"]

[settings]
train_examples = 12
test_examples = 12
max_kept = 6
min_kept = 4
ablation = {{ draws = 2 }}
speed = {{ examples = 2, repeats = 2 }}
batch_size = 4

[[groups]]
tasks = ["repeat"]
methods = ["head_ablation", "attribution_patching", "random"]
levels = ["heads"]
"""


def save_model(folder: Path, seed: int = 0, noise: float = 0.12) -> Path:
    """A three-layer Llama whose tied embeddings make it repeat the last word, disturbed by random blocks."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, **{w: i + 1 for i, w in enumerate(WORDS)}}, unk_token="<pad>"))
    # "w1w2" is two words too, so that an answer without a space is the text that follows a prompt
    word = pre_tokenizers.Split(Regex(r"w\d+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), word])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=25,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, noise) if parameter.dim() > 1 else parameter.fill_(1.0)
        model.get_input_embeddings().weight.normal_(0.0, 0.4)
    model.save_pretrained(folder)
    return folder


def build(folder: Path) -> dict[str, Path]:
    """The whole toy world in a folder: its parts by name."""
    parts = {
        "model": save_model(folder / "model"),
        "task": folder / "toy_task.py",
        "methods": folder / "toy_methods.py",
        "suite": folder / "toy.toml",
    }
    parts["task"].write_text(TASK)
    parts["methods"].write_text(METHODS)
    parts["suite"].write_text(SUITE.format(model=parts["model"]))
    return parts


def toy_context(toy: dict[str, Path], batch_size: int = 4, padding_side: str = "left") -> Context:
    """The toy model on its task: 16 train and 12 test examples drawn, at most 8 of each kept."""
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    model = load_model(str(toy["model"]), batch_size=batch_size)
    model.padding_side = padding_side
    return Context(model, tasks.make("repeat"), 0, 16, 12, 8, 4)
