r"""Models whose weights are constructed, so that the mechanism behind every answer is known exactly.

Real ``LlamaForCausalLM`` and ``GPT2LMHeadModel`` of four layers and less than half a million parameters. Nothing is
trained: a :class:`Blueprint` says what every head and neuron reads and writes, and is written into the weights of
either class. The real parts make the answer; **every** other head, head dimension and neuron is a distractor.

(A long file of one thought: the blueprints of four mechanisms, their proofs, and how they become weights.)

Mechanisms (the truth of each, with the proof, is its :attr:`Blueprint.truth`):

- ``planted-copy``: ``the ball red . the cup blue . the box green . the ball`` -> ``red``. A previous-token head writes
  the noun before a value into the value's position; a matching head at the last token finds the position whose noun is
  the one asked for and copies the value to the answer. No neuron matters.
- ``planted-arithmetic``: ``3 + 4 =`` -> ``7``. Two heads move the operands to the last token, where a table of FFN
  neurons, one for each pair of operands, writes the sum.
- ``planted-redundant``: as copy, with a strong and a weak previous-token head. The matching head is saturated by either
  alone, so zeroing one does nothing. With counterfactual activations in the strong one, both disagree and the strong
  wins, so the answer flips; in the weak one nothing happens. Without both, the answer is lost.
- ``planted-suppressor``: as copy; from the copied value three neurons write the answer and one writes against it, and
  a second matching head writes against it too.

Why it is exact:

- The residual stream has an axis for each thing that is said in it: one per word, position and thing written. Every
  vector written is ``w`` on its axis and what makes the sum 0 and the length sqrt(2) on distractor axes, so that
  LayerNorm's centering does nothing.
- **Norms are inert by construction**: epsilon is 2^28 and the norm's weight 2^14, so that a norm divides by exactly
  2^14 (in float32 2^28 plus the mean square is 2^28) and multiplies by it again.
- Attention is saturated: the right position is :data:`MARGIN` = 20 nats above all others, so at most 15 exp(-20) =
  3e-8 of the attention goes elsewhere and the mechanism holds to better than 1e-5. The price is wanted: the gradient
  through such a pattern is about 20 * 3e-8 of the head's effect, nothing in single precision, and methods that rest on
  that gradient cannot see what the pattern rests on. In redundant models the margin is twice that.
- Llama rotates queries and keys. Heads that look a fixed number of tokens back have constant queries and keys in the
  three fastest pairs of dimensions, with phases that peak at that distance; heads that match content use pairs that
  turn by less than 1e-3 over the whole context (``rope_theta`` is 1e12). GPT-2 has one-hot positions instead.
- A neuron reads axes that hold 0 or 1 so that its gate is +20 or at most -20: on or, but for 4e-8, off.

Why distractors do nothing: they write distractor axes alone, and those are read by distractors alone: by no real part
and not by the unembedding. So nothing a distractor writes reaches a logit on any path.

Why they are hard to tell from the real parts: all heads carry every word in two of their dimensions and write
vectors of equal length for each, with attention patterns of the same kinds, some of them exactly those of the real
heads. All FFNs have neurons that read the same things and fire equally often, and as many of them at the last token.
A head's and an FFN's output at the last token, their output weights, and the output weights of single neurons and head
dimensions are equally long. Where the real parts and which kinds the others are is drawn from the seed.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..errors import UnknownNameError
from ..truth import Part, Truth
from .words import word_tokenizer

NOUNS = ("ball", "cup", "box", "hat", "key", "pen", "bell")
COLORS = ("red", "blue", "green", "black", "white", "brown", "gray")
OPERANDS = tuple(range(1, 8))
COPY_WORDS = (*NOUNS, *COLORS, "the", ".")
SUM_WORDS = (*(str(n) for n in range(1, 2 * OPERANDS[-1] + 1)), "+", "=")

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, D_MLP, CONTEXT = 128, 4, 4, 32, 64, 16
MARGIN = 20.0
"""Nats by which a head's position stands above every other."""
ACTIVE = 20.0
"""The gate's size, hence the coefficient of an active neuron."""
THETA = 1e12
FAST, SLOW = range(3), range(6, D_HEAD // 2)
"""Pairs of dimensions of a Llama head for distances, and for content."""
NORM = 2.0**14

MECHANISMS = ("copy", "arithmetic", "redundant", "suppressor")
NAMES = tuple(f"planted-{mechanism}{kind}" for mechanism in MECHANISMS for kind in ("", "-gpt2"))
_NAME = re.compile(rf"planted-({'|'.join(MECHANISMS)})(-gpt2)?(?:-seed(0|[1-9]\d*))?")

Vector = dict[int, float]
"""A vector of the residual stream, by axis."""

SOURCES = tuple(Path(__file__).with_name(name) for name in ("planted.py", "words.py"))
"""The files that a planted model follows from."""


def recipe(name: str) -> str:
    """What models that differ in their seed alone have in common: the name without it; "" of other names."""
    return re.sub(r"-seed\d+$", "", name) if is_planted(name) else ""


def is_planted(name: str) -> bool:
    """Whether a name is one of :data:`NAMES`, with or without ``-seedN``."""
    return _NAME.fullmatch(name) is not None


def written(weight: float, axis: int, spare: Sequence[int]) -> Vector:
    """A vector with ``weight`` (at most 1 in size) on an axis, of length sqrt(2) and sum 0, by two spare axes."""
    x = (math.sqrt(4 - 3 * weight**2) - weight) / 2
    return {a: w for a, w in ((axis, weight), (spare[0], x), (spare[1], -weight - x)) if abs(w) > 1e-12}


@dataclass
class Head:
    """A head: where it looks, and for each of its dimensions the axis it reads there and the vector it writes.

    Attributes:
        distance: it looks this many tokens back; None where it matches content.
        query, key: the axes matched, one by one; empty where it looks at a distance.
        margin: nats between a match and none.
        rows: by dimension, (axis read, vector written).
    """

    rows: list[tuple[int, Vector]]
    distance: int | None = None
    query: Sequence[int] = ()
    key: Sequence[int] = ()
    margin: float = MARGIN


@dataclass
class Neuron:
    """A neuron that is on where at least ``needed`` of the axes it reads hold 1, and the vector it then writes."""

    reads: Sequence[int]
    writes: Vector
    needed: int = 1


@dataclass
class Blueprint:
    """A model before it is written into a class.

    Attributes:
        words: the vocabulary behind the special tokens.
        embed, position: by word and by place, the vector that stands for it.
        unembed: by word, the vector whose product with the last residual is its logit.
        heads, neurons: by layer.
        together: how many neurons of a layer are on at the last token.
        truth: which of the parts are real.
    """

    words: tuple[str, ...]
    embed: dict[str, Vector]
    position: list[Vector]
    unembed: dict[str, Vector]
    heads: list[list[Head]] = field(default_factory=list)
    neurons: list[list[Neuron]] = field(default_factory=list)
    together: int = 1
    truth: Truth = field(default_factory=lambda: Truth(proof="", levels={}))

    @property
    def gain(self) -> float:
        """The length of what one neuron writes, relative to what one dimension of a head writes.

        As many as are on together are then as long as the two dimensions that a head writes at a time.
        """
        return math.sqrt(2 / self.together)

    @property
    def value(self) -> float:
        """What a head's dimension holds where it is on: so that heads and FFNs have equally long output weights."""
        return math.sqrt(D_HEAD / D_MLP) * ACTIVE / self.gain


class _Draft:
    """What all mechanisms draw alike: axes, and heads and neurons with their distractors."""

    def __init__(self, mechanism: str, seed: int, words: tuple[str, ...]) -> None:
        self.rng = random.Random(f"{mechanism}:{seed}")
        self.free = self.rng.sample(range(D_MODEL), D_MODEL)
        self.words = words
        self.word = dict(zip(words, self.take(len(words))))
        self.places = self.take(CONTEXT)

    def take(self, n: int) -> list[int]:
        """Axes that nothing has; what is left in the end are the distractors' own."""
        taken, self.free = self.free[:n], self.free[n:]
        return taken

    def spare(self, n: int = 2) -> list[int]:
        return self.rng.sample(self.free, n)

    def start(self, answers: Mapping[str, Vector], together: int) -> Blueprint:
        """A blueprint without heads and neurons; call it when all axes are taken."""
        return Blueprint(
            words=self.words,
            embed={word: written(1, axis, self.spare()) for word, axis in self.word.items()},
            position=[written(1, axis, self.spare()) for axis in self.places],
            unembed=dict(answers),
            heads=[[Head([]) for _ in range(N_HEADS)] for _ in range(N_LAYERS)],
            neurons=[[] for _ in range(N_LAYERS)],
            together=together,
        )

    def rows(self, real: Mapping[str, tuple[float, int]] | None = None) -> tuple[list[tuple[int, Vector]], list[int]]:
        """A head's dimensions, two for each word, in a random order.

        Args:
            real: by word, weight and axis of what one of its two dimensions writes; distractor axes elsewhere.

        Returns:
            the rows, and the dimensions of the words in ``real``, in their order.
        """
        real = real or {}
        rows: list[tuple[int, Vector]] = []
        kept = []
        for word, axis in self.word.items():
            free = self.spare(6)
            weight, to = real.get(word, (self.rng.choice((-1.0, 1.0)), free[0]))
            rows += [
                (axis, written(weight, to, free[1:3])),
                (axis, written(self.rng.choice((-1.0, 1.0)), free[3], free[4:])),
            ]
        order = self.rng.sample(range(D_HEAD), D_HEAD)  # of the dimensions: where each row goes
        placed = [rows[0]] * D_HEAD
        for at, row in zip(order, rows):
            placed[at] = row
        for word in real:
            kept.append(order[2 * self.words.index(word)])
        return placed, kept

    def shuffled(self, neurons: list[Neuron]) -> tuple[list[Neuron], list[int]]:
        """A layer's neurons in a random order, and where each of the given ones went."""
        order = self.rng.sample(range(len(neurons)), len(neurons))
        placed = [neurons[0]] * len(neurons)
        for at, neuron in zip(order, neurons):
            placed[at] = neuron
        return placed, order

    def seats(self, layers: Sequence[Sequence[int]], taken: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
        """One free (layer, head) for each given choice of layers."""
        places = list(taken)
        for choice in layers:
            free = [(layer, h) for layer in choice for h in range(N_HEADS) if (layer, h) not in places]
            places.append(self.rng.choice(free))
        return places[len(taken) :]


def _head(at: tuple[int, int], dimension: int | None = None) -> str:
    return f"a{at[0]}.h{at[1]}" + ("" if dimension is None else f".d{dimension}")


# --- copy, redundant, suppressor -----------------------------------------------------------------------------------

_ALIKE = 9
"""Neurons that read the same thing, in the FFNs of these three."""
_FIRST_LAYERS, _LAST_LAYERS = range(2), range(2, N_LAYERS)

_COPY_PROOF = (
    "At the last token the matching head {match} asks for the noun that stands there. Its keys are the axes that "
    "{previous} write: the noun one token back. Only the value of the asked noun's demonstration has that noun before "
    "it, so the head looks there and nowhere else (by {margin:.0f} nats or more) and writes that value on the axis "
    "{read}. Without the noun before the value, or without the question, it looks everywhere alike and all values get "
    "the same share. "
)
_REST_PROOF = (
    "Every other head, dimension and neuron writes distractor axes alone, which no real part and no row of the "
    "unembedding reads."
)


def _copy(mechanism: str, seed: int) -> Blueprint:
    draft = _Draft(mechanism, seed, COPY_WORDS)
    rng = draft.rng
    redundant, suppressed = mechanism == "redundant", mechanism == "suppressor"
    previous = dict(zip(NOUNS, draft.take(len(NOUNS))))  # the noun before this token
    copied = dict(zip(COLORS, draft.take(len(COLORS))))
    written_by = (
        dict(zip(COLORS, draft.take(len(COLORS)))) if suppressed else {}
    )  # what neurons and the suppressor write
    logits = {c: {copied[c]: 8.0, written_by[c]: 4.0} if suppressed else {copied[c]: 10.0} for c in COLORS}
    plan = draft.start(logits, together=_ALIKE + 1)
    back = draft.seats([_FIRST_LAYERS] * (2 if redundant else 1))
    match, *against = draft.seats([_LAST_LAYERS] * (2 if suppressed else 1))
    margin = 2 * MARGIN if redundant else MARGIN
    asked, keys = [draft.word[n] for n in NOUNS], [previous[n] for n in NOUNS]
    parts: dict[str, list[Part]] = {"heads": [], "attn_neurons": [], "neurons": []}

    def place(at: tuple[int, int], real: dict[str, tuple[float, int]], mark: str, role: Any = "helps") -> None:
        rows, dimensions = draft.rows(real)
        matching = at[0] in _LAST_LAYERS
        plan.heads[at[0]][at[1]] = Head(rows, query=asked, key=keys, margin=margin) if matching else Head(rows, 1)
        parts["heads"].append(Part(name=_head(at), role=role))
        parts["attn_neurons"] += [
            Part(name=_head(at, d), role=role, when={mark: word}) for word, d in zip(real, dimensions)
        ]

    for at, weight in zip(back, (1.0, 0.5)):
        place(at, {n: (weight, previous[n]) for n in NOUNS}, "noun")
    place(match, {c: (1.0, copied[c]) for c in COLORS}, "value")
    for at in against:
        place(at, {c: (-1.0, written_by[c]) for c in COLORS}, "value", "hurts")
    for layer, h in _others([*back, match, *against]):
        rows, _ = draft.rows()
        if layer > max(at[0] for at in back) and rng.random() < 0.5:  # looks where the matching head looks
            plan.heads[layer][h] = Head(rows, query=asked, key=keys, margin=margin)
        else:
            plan.heads[layer][h] = Head(rows, rng.choice((1, 2, 3)))

    writer = rng.choice([layer for layer in range(N_LAYERS) if layer >= match[0]]) if suppressed else None
    for layer in range(N_LAYERS):
        values = layer == writer or (layer >= match[0] and rng.random() < 0.5)
        classes = [[copied[c]] for c in COLORS] if values else [[draft.word[n]] for n in NOUNS]
        always = draft.spare(3)
        rest = [axis for axis in draft.free if axis not in always]
        neurons = [Neuron(asked, written(1, always[0], always[1:]))]
        for i, reads in enumerate(classes):
            free = rng.sample(rest, 3 * _ALIKE)
            for j in range(_ALIKE):
                sign, axis = rng.choice((-1.0, 1.0)), free[3 * j]
                if layer == writer and j < 4:
                    # three for the answer and one against it write as long a vector as four that write at random
                    sign, axis = (1.0, -1.0)[j // 3], written_by[COLORS[i]]
                neurons.append(Neuron(reads, written(sign, axis, free[3 * j + 1 : 3 * j + 3])))
        plan.neurons[layer], order = draft.shuffled(neurons)
        if layer == writer:
            parts["neurons"] += [
                Part(
                    name=f"m{layer}.n{order[1 + i * _ALIKE + j]}",
                    role="hurts" if j == 3 else "helps",
                    when={"value": color},
                )
                for i, color in enumerate(COLORS)
                for j in range(4)
            ]

    proof = _COPY_PROOF.format(
        match=_head(match),
        previous=" and ".join(_head(at) for at in back),
        margin=MARGIN,
        read="that the unembedding reads" if not suppressed else "that the unembedding and the neurons read",
    )
    if redundant:
        proof += (
            f"{_head(back[0])} writes 1 and {_head(back[1])} writes one half on the same axes, and a match of one half "
            f"is {MARGIN:.0f} nats: each alone is enough. Where they disagree, {_head(back[0])} wins by "
            f"{MARGIN:.0f} nats. Without both, nothing matches. "
        )
    if suppressed:
        proof += (
            f"{_head(against[0])} looks at the same position and takes 4 from the answer's logit; the neurons of "
            f"m{writer} that read the copied value give it three times what the fourth takes. "
        )
    nodes = [*parts["heads"], *([Part(name=f"m{writer}")] if suppressed else [])]
    levels = {"heads": parts["heads"], "neurons": parts["neurons"], "attn_neurons": parts["attn_neurons"]}
    plan.truth = Truth(proof=proof + _REST_PROOF, levels={**levels, "nodes": nodes}, tokens=("value", "noun", "query"))
    return plan


def _others(taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(layer, h) for layer in range(N_LAYERS) for h in range(N_HEADS) if (layer, h) not in taken]


# --- arithmetic ----------------------------------------------------------------------------------------------------

_SUM_PROOF = (
    "At the last token {first} looks three tokens back and {second} one token back (by {margin:.0f} nats or more), "
    "and each writes the number it finds there on an axis of its own for that number. A neuron of {table} that belongs "
    "to a pair of operands reads one axis of each head and is on only where both hold 1; it writes the axis of the "
    "pair's sum, and the unembedding reads these axes alone. Without either operand no such neuron is on, and all sums "
    "get the same logit. "
)


def _arithmetic(mechanism: str, seed: int) -> Blueprint:
    draft = _Draft(mechanism, seed, SUM_WORDS)
    rng = draft.rng
    numbers = [str(n) for n in OPERANDS]
    # by operand, the axes on which heads write it, and those on which two distractors do, for distractor neurons
    real = [dict(zip(numbers, draft.take(len(numbers)))) for _ in range(2)]
    false = [dict(zip(numbers, draft.take(len(numbers)))) for _ in range(2)]
    sums = {str(n): axis for n, axis in zip(range(2, 15), draft.take(13))}
    gain = math.sqrt(2 / 4)
    plan = draft.start({word: {axis: 10.0 / gain} for word, axis in sums.items()}, together=4)
    movers = draft.seats([range(2), range(2)])
    decoys = draft.seats([range(1), range(1)], movers)
    table = rng.choice([layer for layer in range(1, N_LAYERS) if layer >= max(at[0] for at in movers)])
    parts: dict[str, list[Part]] = {"heads": [], "attn_neurons": []}
    for at, axes, distance, mark in zip(movers, real, (3, 1), ("first", "second")):
        rows, dimensions = draft.rows({n: (1.0, axes[n]) for n in numbers})
        plan.heads[at[0]][at[1]] = Head(rows, distance)
        parts["heads"].append(Part(name=_head(at)))
        parts["attn_neurons"] += [Part(name=_head(at, d), when={mark: n}) for n, d in zip(numbers, dimensions)]
    for at, axes, distance in zip(decoys, false, (3, 1)):
        rows, _ = draft.rows({n: (1.0, axes[n]) for n in numbers})
        plan.heads[at[0]][at[1]] = Head(rows, distance)
    for layer, h in _others([*movers, *decoys]):
        plan.heads[layer][h] = Head(draft.rows()[0], rng.choice((1, 2, 3)))

    pairs = [(a, b) for a in numbers for b in numbers]
    neurons_true: list[Part] = []
    for layer in range(N_LAYERS):
        first, second = real if layer == table else false
        pools = [draft.free[i::4] for i in range(4)]  # so that what is on together writes different axes
        neurons: list[Neuron] = []
        for reads, pool in (
            *(([first[a], second[b]], pools[0]) for a, b in pairs),
            *(([first[a]], pools[1]) for a in numbers),
            *(([second[b]], pools[2]) for b in numbers),
            ([draft.word["="]], pools[3]),
        ):
            free = rng.sample(pool, 3)
            sign, axis = rng.choice((-1.0, 1.0)), free[0]
            if layer == table and len(reads) == 2:
                a, b = pairs[len(neurons)]
                sign, axis = 1.0, sums[str(int(a) + int(b))]
            neurons.append(Neuron(reads, written(sign, axis, free[1:]), needed=len(reads)))
        plan.neurons[layer], order = draft.shuffled(neurons)
        if layer == table:
            neurons_true = [
                Part(name=f"m{table}.n{at}", when={"first": a, "second": b}) for (a, b), at in zip(pairs, order)
            ]
    proof = _SUM_PROOF.format(first=_head(movers[0]), second=_head(movers[1]), table=f"m{table}", margin=MARGIN)
    plan.truth = Truth(
        proof=proof + _REST_PROOF,
        levels={
            "heads": parts["heads"],
            "neurons": neurons_true,
            "attn_neurons": parts["attn_neurons"],
            "nodes": [*parts["heads"], Part(name=f"m{table}")],
        },
        tokens=("first", "second"),
    )
    return plan


_BLUEPRINTS: dict[str, Callable[[str, int], Blueprint]] = {
    "copy": _copy,
    "arithmetic": _arithmetic,
    "redundant": _copy,
    "suppressor": _copy,
}


# --- from a blueprint to weights -----------------------------------------------------------------------------------


def _put(weight: torch.Tensor, column: int, vector: Mapping[int, float]) -> None:
    """Writes a vector into a column of ``weight`` ``[in, out]``."""
    for axis, w in vector.items():
        weight[axis, column] = w


def _phases(distance: int) -> tuple[list[float], float]:
    """The angles by which queries are turned, and the size of queries and keys, for a look back by ``distance``."""
    turns = [THETA ** (-2 * pair / D_HEAD) for pair in FAST]
    gap = min(
        sum(1 - math.cos(turn * (back - distance)) for turn in turns) for back in range(CONTEXT) if back != distance
    )
    return [-turn * distance for turn in turns], math.sqrt(MARGIN / gap * math.sqrt(D_HEAD))


def _attention(plan: Blueprint, head: Head, positions: bool) -> tuple[list[Vector], list[Vector], Vector, Vector]:
    """A head's queries and keys: by dimension what is read, and by dimension the constants.

    Args:
        positions: the model has position embeddings; else it turns queries and keys.
    """
    query: list[Vector] = [{} for _ in range(D_HEAD)]
    key: list[Vector] = [{} for _ in range(D_HEAD)]
    constant_q: Vector = {}
    constant_k: Vector = {}
    if head.distance is None:
        size = math.sqrt(head.margin * math.sqrt(D_HEAD))
        for pair, asked, answering in zip(SLOW, head.query, head.key):
            query[pair][asked], key[pair][answering] = size, size
    elif positions:
        size = math.sqrt(MARGIN * math.sqrt(D_HEAD))
        axes = [next(iter(vector)) for vector in plan.position]
        for place, axis in enumerate(axes):
            query[place][axis] = size
            if place >= head.distance:
                key[place][axes[place - head.distance]] = size
    else:
        angles, size = _phases(head.distance)
        for pair, angle in zip(FAST, angles):
            constant_q |= {pair: size * math.cos(angle), pair + D_HEAD // 2: size * math.sin(angle)}
            constant_k[pair] = size
    return query, key, constant_q, constant_k


def _write_llama(plan: Blueprint) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(plan.words) + 3,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=NORM**2,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    hf = _blank(LlamaForCausalLM(config))
    _write_words(plan, hf.model.embed_tokens.weight, hf.lm_head.weight)
    for heads, neurons, block in zip(plan.heads, plan.neurons, hf.model.layers):
        attention, mlp = block.self_attn, block.mlp
        q, k, v = (getattr(attention, f"{name}_proj") for name in "qkv")
        for h, head in enumerate(heads):
            query, key, constant_q, constant_k = _attention(plan, head, positions=False)
            for d, (read, vector) in enumerate(head.rows):
                column = h * D_HEAD + d
                _put(q.weight.T, column, query[d])
                _put(k.weight.T, column, key[d])
                q.bias[column], k.bias[column] = constant_q.get(d, 0.0), constant_k.get(d, 0.0)
                v.weight[column, read] = plan.value
                _put(attention.o_proj.weight, column, _times(vector, 1 / plan.value))
        mlp.up_proj.bias[:] = 1.0
        for j, neuron in enumerate(neurons):
            _put(mlp.gate_proj.weight.T, j, dict.fromkeys(neuron.reads, 2 * ACTIVE))
            mlp.gate_proj.bias[j] = ACTIVE - 2 * ACTIVE * neuron.needed
            _put(mlp.down_proj.weight, j, _times(neuron.writes, plan.gain / ACTIVE))
    for norm in (hf.model.norm, *(n for b in hf.model.layers for n in (b.input_layernorm, b.post_attention_layernorm))):
        norm.weight[:] = NORM
    return hf


def _write_gpt2(plan: Blueprint) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(plan.words) + 3,
        n_embd=D_MODEL,
        n_inner=D_MLP,
        n_layer=N_LAYERS,
        n_head=N_HEADS,
        n_positions=CONTEXT,
        layer_norm_epsilon=NORM**2,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    hf = _blank(GPT2LMHeadModel(config))
    _write_words(plan, hf.transformer.wte.weight, hf.lm_head.weight)
    for place, vector in enumerate(plan.position):
        _put(hf.transformer.wpe.weight.T, place, vector)
    for heads, neurons, block in zip(plan.heads, plan.neurons, hf.transformer.h):
        made, out = block.attn.c_attn.weight, block.attn.c_proj.weight
        for h, head in enumerate(heads):
            query, key, _, _ = _attention(plan, head, positions=True)
            for d, (read, vector) in enumerate(head.rows):
                column = h * D_HEAD + d
                _put(made, column, query[d])
                _put(made, D_MODEL + column, key[d])
                made[read, 2 * D_MODEL + column] = plan.value
                _put(out.T, column, _times(vector, 1 / plan.value))
        for j, neuron in enumerate(neurons):
            _put(block.mlp.c_fc.weight, j, dict.fromkeys(neuron.reads, 2 * ACTIVE))
            block.mlp.c_fc.bias[j] = ACTIVE - 2 * ACTIVE * neuron.needed
            _put(block.mlp.c_proj.weight.T, j, _times(neuron.writes, plan.gain / ACTIVE))
    for norm in (hf.transformer.ln_f, *(n for b in hf.transformer.h for n in (b.ln_1, b.ln_2))):
        norm.weight[:] = NORM
    return hf


def _blank(hf: Any) -> Any:
    """The model with every parameter 0, to be written into."""
    hf.eval().requires_grad_(False)
    for parameter in hf.parameters():
        parameter.zero_()
    return hf


def _write_words(plan: Blueprint, embed: torch.Tensor, unembed: torch.Tensor) -> None:
    for token, word in enumerate(plan.words, start=3):
        _put(embed.T, token, plan.embed[word])
        _put(unembed.T, token, plan.unembed.get(word, {}))


def _times(vector: Vector, factor: float) -> Vector:
    return {axis: w * factor for axis, w in vector.items()}


def blueprint(name: str) -> Blueprint:
    """The blueprint of a planted model; both classes share it.

    Raises:
        UnknownNameError: no planted model is called so.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UnknownNameError("planted model", name, NAMES, "Any of them may end in -seedN.")
    return _BLUEPRINTS[match[1]](match[1], int(match[3] or 0))


def build(name: str) -> tuple[LlamaForCausalLM | GPT2LMHeadModel, PreTrainedTokenizerFast, Truth]:
    """A planted model in float32 with its tokenizer and its truth; the same for the same name.

    Raises:
        UnknownNameError: no planted model is called so.
    """
    plan = blueprint(name)
    hf = _write_gpt2(plan) if "-gpt2" in name else _write_llama(plan)
    return hf, word_tokenizer(plan.words), plan.truth


def save(name: str, folder: Path) -> None:
    """Writes a planted model as a plain Hugging Face folder, its truth beside the weights."""
    hf, tokenizer, truth = build(name)
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    truth.save(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m attriboard.zoo.planted", description=save.__doc__)
    parser.add_argument("name", help=f"{', '.join(NAMES)}; with -seedN for other places")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        save(arguments.name, arguments.folder)
    except UnknownNameError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
