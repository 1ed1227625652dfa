"""Concepts: do the neurons that a method finds for a word of a caption behave like neurons of that concept?

The properties are those that Pan et al. (2024, arXiv 2311.07470) ask of multi-modal neurons. Their definitions are not
published in code; the ones here are this project's own. Each test example is scored by itself, and ``top K`` are the
neurons with its K highest scores (K is never more than half of the level):

- *sensitivity*: of the top 10 neurons, the share whose vocabulary words name the concept, minus that share among as
  many neurons drawn from the same layers. A neuron's vocabulary words are the 10 tokens with the largest product of
  its output vector and the unembedding, without norms; special and added tokens are left out. A token names the
  concept if, without surrounding spaces and in small letters, it is the example's concept or its answer.
- *region invariance*: overlap of the top 100 with those of the same example whose image features are permuted among
  the patches (the counterfactual's alike); position ids are not.
- *cross-image invariance*: overlap of the top 100 with those of the examples of the same concept on another image.
- *specificity*: overlap of the top 100 with those of the examples of other concepts; low is specific.
- *causal effect*: noise is added to the output vectors of the top 100; log p(answer) lost, minus what is lost with
  the same noise on as many neurons drawn from the same layers. The noise is N(0, sigma^2 I), with sigma the root mean
  square of all entries of all output vectors: each vector is disturbed by about its own length.

The overlap of two sets of K is the number of common neurons divided by K. An example's overlaps with several others are
averaged first, then those of the examples. Examples without an image are told apart by their prompts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..measurements.base import Family, Statistic
from ..method import checked_inputs
from ..model import EncodedExample, hook_name
from ..models.objective import measure
from ..stats.intervals import Array, mean_of_known
from ..task import image_hash
from .ablation import matched_draw

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
_LOGPROB = 1
"""Index of log p(answer) among the measures."""


class Concepts(Family):
    """Per-example measurements behind the properties.

    Attributes:
        naming, top: the two numbers of top neurons, as far as the level allows.
        sigma: standard deviation of the noise.
        concepts: ``[N]``, the concept of each test example.
        sources: ``[N]``, equal for examples about the same image (of examples without one, the same prompt).
        named: ``[N]``, share of the top neurons whose words name the concept.
        named_random: ``[draws][N]``, the same of neurons drawn from the same layers.
        overlap: ``[N][N]``, of the top sets of two examples.
        shuffled: ``[N]``, overlap with the top set under permuted patches; None if it was not measured.
        clean: ``[N]``, log p(answer) of the untouched model; None if the causal effect was not measured.
        noised, noised_random: ``[draws][N]``, the same with noise on the top set and on one drawn from the same layers.
        not_measured: by metric name, why it was not measured.
    """

    naming: int
    top: int
    sigma: float
    concepts: list[str]
    sources: list[str]
    named: list[float]
    named_random: list[list[float]]
    overlap: list[list[float]]
    shuffled: list[float] | None
    clean: list[float] | None
    noised: list[list[float]] | None
    noised_random: list[list[float]] | None
    not_measured: dict[str, str]

    @property
    def n(self) -> int:
        return len(self.concepts)

    def gaps(self) -> dict[str, str]:
        return self.not_measured

    def per_example(self) -> dict[str, Array]:
        """By metric name its value on each example ``[N]``, NaN where an example has none."""
        overlap, concepts = np.asarray(self.overlap), np.asarray(self.concepts)
        same = concepts[:, None] == concepts[None]
        elsewhere = np.asarray(self.sources)[:, None] != np.asarray(self.sources)[None]
        found = {
            "concept_sensitivity": np.asarray(self.named) - np.asarray(self.named_random).mean(0),
            "cross_image_invariance": _row_means(overlap, same & elsewhere),
            "concept_specificity": _row_means(overlap, ~same),
        }
        found["concept_contrast"] = found["cross_image_invariance"] - found["concept_specificity"]
        if self.shuffled is not None:
            found["region_invariance"] = np.asarray(self.shuffled)
        if self.noised is not None and self.noised_random is not None:
            # the drop of the top minus the drop of the random set: the clean value cancels
            found["concept_causal_effect"] = (np.asarray(self.noised_random) - np.asarray(self.noised)).mean(0)
        return found

    def statistics(self) -> dict[str, Statistic]:
        """By metric name, the aggregate as a function of example indices ``[..., N]``.

        Metrics that no example has a value of are left out.
        """

        return {name: mean_of_known(x) for name, x in self.per_example().items() if np.isfinite(x).any()}


def _row_means(values: Array, chosen: NDArray[np.bool_]) -> Array:
    """``[N]``: the mean of each row's chosen entries of ``[N, N]``; NaN where none is."""
    with np.errstate(invalid="ignore"):
        return np.where(chosen, values, 0.0).sum(1) / chosen.sum(1)


def applies(examples: Sequence[EncodedExample], level: Level) -> bool:
    """Whether the properties can be measured: of neurons, on examples that each have a concept."""
    return level.name == "neurons" and all(e.example.concept for e in examples)


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
        again = _rankings(method, model, [permuted(e, i) for i, e in enumerate(examples)], level)
        shuffled = ((tops & _members(again[:, :top], n)).sum(1) / top).tolist()
    else:
        not_measured["region_invariance"] = "the examples have no image."
    naming_sets = _with_random(_members(ranked[:, :naming], n), layer_of, draws)
    named = _named(model, examples, naming_sets)
    sigma = NOISE * value_rms(model)
    clean = noised = None
    if model.architecture.mlp_post_norm is None:
        clean, noised = _noised(model, examples, _with_random(tops, layer_of, draws), sigma)
    else:
        not_measured["concept_causal_effect"] = (
            f"a norm follows the FFN of {model.architecture.family} models, so noise on an output vector does not "
            f"simply add to the residual stream."
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


def _rankings(method: Method, model: Model, examples: Sequence[EncodedExample], level: Level) -> Tensor:
    """``[N, n]``: neurons from the highest to the lowest score of each example; ties in order."""
    scores = torch.stack(checked_inputs(method.each(model, examples, level), method))
    return torch.argsort(scores.flatten(1), dim=1, descending=True, stable=True)


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
    found = []
    for part in neurons.split(256):
        vectors = [model.W_out(i // model.d_mlp)[i % model.d_mlp] for i in part.tolist()]
        products = torch.stack(vectors).float() @ W_U.T
        products[:, special] = -torch.inf
        for row in products.topk(min(WORDS, products.shape[1] - len(special))).indices.tolist():
            found.append(frozenset(_folded(tokenizer.decode([token])) for token in row))
    return found


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
    found: list[Tensor] = []
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
        clean += measure(run.logits, batch)[:, _LOGPROB].tolist()
        rows = torch.arange(len(batch), device=model.device).repeat_interleave(2 * draws)
        repeated = batch.rows(rows)
        noised = model.run(repeated, edits=noise_edits(model, neurons, noise), start=(first, run[start][rows]))
        found.append(measure(noised.logits, repeated)[:, _LOGPROB].cpu().view(-1, draws, 2))
    return clean, torch.cat(found)
