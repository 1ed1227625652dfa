"""How concepts' neurons are examined; what is asked of them stands in :mod:`attriboard.measurements.concepts`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..measurements.base import Measure
from ..measurements.concepts import Concepts
from ..method import checked_inputs
from ..model import EncodedExample, hook_name
from ..models.objective import measure
from ..scores import ordered
from ..task import image_hash
from .base import Evaluation, Job
from .controls import matched_draw

if TYPE_CHECKING:
    from ..components import Level
    from ..method import Method
    from ..model import Edit, Model
    from .context import Context

NAMING = 10
"""How many of an example's top neurons are asked for their vocabulary words."""
WORDS = 10
"""How many vocabulary words a neuron has."""
TOP = 100
"""How many of an example's top neurons are compared and disturbed."""
NOISE = 1.0
"""Standard deviation of the noise, in units of the root mean square of the output vectors' entries."""


class ConceptsEvaluation(Evaluation):
    """All properties, of neurons that the method scores for single test examples; no replacement plays a part."""

    name = "concepts"
    measurement = Concepts
    version = 2

    def applies(self, context: Context, level: Level) -> bool:
        return applies(context.test, level)

    def measure(self, job: Job) -> Concepts:
        assert job.method is not None
        return evaluate(job.context, job.method, job.level, job.options.draws)


def applies(examples: Sequence[EncodedExample], level: Level) -> bool:
    """Whether the properties can be measured: of neurons, on examples that each have a concept."""
    return level.hidden_units and all(e.example.concept for e in examples)


def evaluate(context: Context, method: Method, level: Level, draws: int) -> Concepts:
    """All properties, on the test split; every example is scored twice, as it is and with its patches permuted.

    Args:
        draws: random sets and noises for each example.

    Raises:
        SkipCell: the method gives no scores of single examples.
    """
    model, examples = context.model, context.test
    n, layer_of = level.size(model), level.layer_of(model)
    naming, top = (min(k, max(1, n // 2)) for k in (NAMING, TOP))
    not_measured: dict[str, str] = {}
    ranked = _rankings(method, model, examples, level)
    tops = _members(ranked[:, :top], n)
    shuffled = None
    if all(e.image is not None for e in examples):
        shuffled_examples = [permuted(e, i) for i, e in enumerate(examples)]
        again = _rankings(method, model, shuffled_examples, level, first_seed=len(examples))
        shuffled = ((tops & _members(again[:, :top], n)).sum(1) / top).tolist()
    else:
        not_measured["region_invariance"] = "the examples have no image."
    naming_sets = _with_random(_members(ranked[:, :naming], n), layer_of, draws)
    named = _named(model, examples, naming_sets)
    sigma = NOISE * value_rms(model)
    clean = noised = None
    if model.follows_ffn is None:
        clean, noised = _noised(model, examples, _with_random(tops, layer_of, draws), sigma)
    else:
        not_measured["concept_causal_effect"] = (
            f"{model.follows_ffn} follows the FFN of {model.architecture.family} models, so noise on an output vector "
            f"does not simply add to the residual stream."
        )
    return Concepts(
        naming=naming,
        top=top,
        sigma=sigma,
        concepts=[e.example.concept for e in examples],
        sources=[_source(e) for e in examples],
        named=named[:, 0, 0].tolist(),
        named_random=named[:, :, 1].T.tolist(),
        overlap=(tops.float() @ tops.float().T / top).tolist(),
        shuffled=shuffled,
        clean=clean,
        noised=None if noised is None else noised[:, :, 0].T.tolist(),
        noised_random=None if noised is None else noised[:, :, 1].T.tolist(),
        not_measured=not_measured,
    )


# --- sets of neurons --------------------------------------------------------------------------------------------------


def _rankings(
    method: Method, model: Model, examples: Sequence[EncodedExample], level: Level, first_seed: int = 0
) -> Tensor:
    """``[N, n]``: neurons from the highest to the lowest score of each example.

    Equal scores stand in a random order, another one for every example: what two rankings have in common must not come
    from the order of neurons.
    """
    each = checked_inputs(method.each(model, examples, level), method)
    return torch.stack([ordered(scores.flatten(), seed=first_seed + i) for i, scores in enumerate(each)])


def _members(index: Tensor, n: int) -> Tensor:
    """``[N, n]`` bool: sets given by the neurons ``[N, K]`` in them."""
    return torch.zeros(len(index), n, dtype=torch.bool).scatter_(1, index, True)


def _with_random(sets: Tensor, layer_of: Tensor, draws: int) -> Tensor:
    """``[N, draws, 2, n]`` bool: each set of ``[N, n]`` beside one drawn from the same layers, other ones each draw."""
    pairs = [
        torch.stack([chosen, matched_draw(chosen, layer_of, _seed(i, draw))])
        for i, chosen in enumerate(sets)
        for draw in range(draws)
    ]
    return torch.stack(pairs).view(len(sets), draws, 2, -1)


def _seed(example: int, draw: int) -> int:
    """The same for every method, another for every example and draw."""
    return 1000 * example + draw


# --- images -----------------------------------------------------------------------------------------------------------


def permuted(encoded: EncodedExample, seed: int) -> EncodedExample:
    """The example with its image features in another order, and the counterfactual's in the same; the text stays."""
    if encoded.image is None:
        return encoded
    order = torch.randperm(len(encoded.image), generator=torch.Generator().manual_seed(seed))
    other = encoded.counterfactual_image
    return dataclasses.replace(
        encoded, image=encoded.image[order], counterfactual_image=None if other is None else other[order]
    )


def _source(encoded: EncodedExample) -> str:
    example = encoded.example
    if example.image is not None:
        return image_hash(example.image)[:12]
    return hashlib.sha256(example.prompt.encode()).hexdigest()[:12]


# --- vocabulary words -------------------------------------------------------------------------------------------------


def vocabulary_words(model: Model, neurons: Tensor) -> list[frozenset[str]]:
    """The words of each neuron ``[m]`` (flat indices), without surrounding spaces and in small letters.

    They are its :data:`WORDS` tokens with the largest product of output vector and unembedding, each decoded by itself.
    """
    tokenizer = model.tokenizer
    W_U = model.W_U[: tokenizer.vocab_size].float()
    special = [i for i in tokenizer.all_special_ids if i < len(W_U)]
    words_of = []
    for part in neurons.split(256):
        vectors = [model.W_out(i // model.d_mlp)[i % model.d_mlp] for i in part.tolist()]
        products = torch.stack(vectors).float() @ W_U.T
        products[:, special] = -torch.inf
        for row in products.topk(min(WORDS, products.shape[1] - len(special))).indices.tolist():
            words_of.append(frozenset(_folded(tokenizer.decode([token])) for token in row))
    return words_of


def _folded(text: str) -> str:
    return text.strip().casefold()


def _named(model: Model, examples: Sequence[EncodedExample], sets: Tensor) -> Tensor:
    """``[N, draws, 2]``: the share of each set ``[N, draws, 2, n]`` whose words name the example's concept."""
    asked = sets.flatten(0, 2).any(0).nonzero()[:, 0]
    words = dict(zip(asked.tolist(), vocabulary_words(model, asked)))
    share = torch.zeros(sets.shape[:-1])
    for i, encoded in enumerate(examples):
        names = {_folded(encoded.example.concept), _folded(encoded.example.answer)}
        for at in np.ndindex(*sets.shape[1:3]):
            members = sets[i][at].nonzero()[:, 0].tolist()
            share[i][at] = sum(bool(words[j] & names) for j in members) / len(members)
    return share


# --- noise on output vectors ------------------------------------------------------------------------------------------


def value_rms(model: Model) -> float:
    """The root mean square of all entries of the output vectors of all neurons."""
    squares = [float(model.W_out(layer).float().square().mean()) for layer in range(model.n_layers)]
    return float(np.sqrt(np.mean(squares)))


def noise_edits(model: Model, neurons: Sequence[Tensor], noise: Sequence[Tensor]) -> dict[str, Edit]:
    """Edits under which a pass gives what it would with noise added to output vectors, other ones in every row.

    The noise on a neuron's output vector reaches the residual stream times the neuron's coefficient. Only for models
    without a norm after the FFN.

    Args:
        neurons: for each row, the flat indices ``[K]`` of its disturbed neurons.
        noise: for each row, what is added to their output vectors, ``[K, d_model]``.
    """
    edits: dict[str, Edit] = {}
    layers = torch.cat(list(neurons)).div(model.d_mlp, rounding_mode="floor").unique().tolist()

    def disturb(layer: int) -> None:
        post: dict[str, Tensor] = {}
        parts = []
        for index, vectors in zip(neurons, noise):
            here = index // model.d_mlp == layer
            parts.append((index[here] % model.d_mlp, vectors[here]))

        def remember(x: Tensor) -> Tensor:
            post["x"] = x
            return x

        def add(out: Tensor) -> Tensor:
            x = post.pop("x").float()
            return out + torch.stack([row[:, units] @ vectors for row, (units, vectors) in zip(x, parts)])

        edits[hook_name("post", layer)] = remember
        edits[hook_name("mlp_out", layer)] = add

    for layer in layers:
        disturb(layer)
    return edits


def _noised(model: Model, examples: Sequence[EncodedExample], sets: Tensor, sigma: float) -> tuple[list[float], Tensor]:
    """log p(answer) of each example untouched, and ``[N, draws, 2]`` with noise on each set ``[N, draws, 2, n]``.

    The two sets of a draw have as many neurons in every layer, and the same noise.
    """
    draws = sets.shape[1]
    clean: list[float] = []
    log_probs: list[Tensor] = []
    for batch in model.batches(examples, max(1, model.batch_size // (2 * draws))):
        neurons, noise = [], []
        for i in range(len(clean), len(clean) + len(batch)):
            for draw in range(draws):
                generator = torch.Generator().manual_seed(_seed(i, draw))
                shape = (int(sets[i, draw, 0].sum()), model.d_model)
                vectors = (sigma * torch.randn(shape, generator=generator)).to(model.device)
                noise += [vectors, vectors]
                neurons += [chosen.nonzero()[:, 0].to(model.device) for chosen in sets[i, draw]]
        first = min(int(index[0]) // model.d_mlp for index in neurons)
        start = hook_name("resid_pre", first)
        run = model.run(batch, [start])
        clean += measure(run.logits, batch)[:, Measure.LOGPROB].tolist()
        rows = torch.arange(len(batch), device=model.device).repeat_interleave(2 * draws)
        repeated = batch.rows(rows)
        noised = model.run(repeated, edits=noise_edits(model, neurons, noise), start=(first, run[start][rows]))
        log_probs.append(measure(noised.logits, repeated)[:, Measure.LOGPROB].cpu().view(-1, draws, 2))
    return clean, torch.cat(log_probs)
