"""A Hugging Face model run literally, to judge methods by: none of the harness' hooks, batches or shortcuts.

Modules are found by this file's own list and touched by the few lines of hooks below. A question is one unpadded row;
what is tried on it (one component replaced, moved a little, ...) are copies of that row.

Activations are keyed by site and layer, ``("z", 2)``: ``z`` ``[T, H * d_head]`` before the output projection, ``post``
``[T, d_mlp]`` before the down-projection, ``mlp_out``, ``resid_pre`` and ``resid_post`` ``[T, d_model]``, ``query``,
``key`` and ``value`` ``[T, heads * d_head]`` as projected (of keys and values as many heads as there are), ``ffn_in``
``[T, d_model]``, the residual as the norm before the FFN reads it (what is added there reaches the FFN alone), and
``("embed", 0)`` ``[T, d_model]``, the input embeddings with image features in place of the placeholders.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..components import LEVELS
from ..interventions import replacement_kind
from ..model import EncodedExample

Site = tuple[str, int]
EMBED: Site = ("embed", 0)
PROJECTED = ("query", "key", "value")


@dataclass(frozen=True)
class Parts:
    """Where a family keeps what is read or changed; all but the first two are paths inside a block."""

    layers: str
    norm: str
    out: str
    down: str
    reads: str
    """The projections that make the coefficients: of a gated FFN the gate."""
    query: str
    key: str
    value: str
    """One and the same where one projection makes all three, in this order."""
    second_norm: str


_LLAMA = (
    *("self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj"),
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "post_attention_layernorm"),
)
_GPT2 = ("attn.c_proj", "mlp.c_proj", "mlp.c_fc", *3 * ("attn.c_attn",), "ln_2")
PARTS = {
    "gpt2": Parts("transformer.h", "transformer.ln_f", *_GPT2),
    "llama": Parts("model.layers", "model.norm", *_LLAMA),
    "llava": Parts("model.language_model.layers", "model.language_model.norm", *_LLAMA),
}


@dataclass(frozen=True)
class Part:
    """What one score is about: some columns of an activation at all positions, or all columns at one position."""

    site: Site
    columns: slice = field(default_factory=lambda: slice(None))
    rows: slice = field(default_factory=lambda: slice(None))


def get(root: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), root)


def in_out(module: Any) -> Tensor:
    """A projection's weight as ``[in, out]``, a view."""
    weight: Tensor = module.weight
    return weight.T if isinstance(module, nn.Linear) else weight


class Reference:
    """A copy of a model of a family in :data:`PARTS`, one whose weights may be changed.

    Args:
        hf: the Hugging Face model.
        processor: of one that sees.
    """

    def __init__(self, hf: Any, processor: Any = None) -> None:
        self.hf, self.processor = copy.deepcopy(hf), processor
        self.parts = PARTS[hf.config.model_type]
        self.config: Any = self.hf.config.get_text_config()
        self.blocks: list[Any] = list(get(self.hf, self.parts.layers))
        self.n_layers, self.n_heads = len(self.blocks), int(self.config.num_attention_heads)
        self.d_head = len(in_out(self.part("out", 0))) // self.n_heads
        self.d_mlp = len(in_out(self.part("down", 0)))

    def part(self, role: str, layer: int) -> Any:
        """A module of a block by the name of its field in :class:`Parts`."""
        return get(self.blocks[layer], getattr(self.parts, role))

    def list_parts(self, level: str, encoded: EncodedExample) -> list[Part]:
        """What a level's scores are about, in their order."""
        if LEVELS[level].inputs:
            return [Part(EMBED, rows=slice(i, i + 1)) for i in self.positions(level, encoded)]
        columns = LEVELS[level].columns_of(self)
        return [Part((site, layer), own) for layer in range(self.n_layers) for site, own in columns]

    def positions(self, level: str, encoded: EncodedExample) -> list[int]:
        """Where the level's tokens (or patches) stand in a prompt."""
        placeholder = getattr(self.hf.config, "image_token_id", None)
        return [i for i, token in enumerate(encoded.tokens) if (token == placeholder) == LEVELS[level].image]

    def embeddings(self, encoded: EncodedExample, counterfactual: bool = False) -> Tensor:
        """``[T, d_model]``: the input embeddings of an example, or of its counterfactual."""
        example, tokens = encoded.example, encoded.tokens
        picture = example.image
        if counterfactual:
            tokens = encoded.counterfactual or ()
            picture = example.counterfactual_image or picture
        with torch.no_grad():
            embeddings: Tensor = self.hf.get_input_embeddings()(torch.tensor(tokens)).clone()
            if picture is not None:
                pixels = self.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
                (features,) = self.hf.get_image_features(pixels.to(embeddings.dtype)).pooler_output
                embeddings[torch.tensor(tokens) == self.hf.config.image_token_id] = features
        return embeddings

    def run(
        self, embeddings: Tensor, add: Mapping[Site, Tensor] | None = None, read: Sequence[Site] = ()
    ) -> tuple[Tensor, dict[Site, Tensor]]:
        """Logits ``[N, V]`` at the last token and the activations read ``[N, T, width]``, as they stand after ``add``.

        Args:
            embeddings: ``[T, d_model]``, or ``[N, T, d_model]`` of copies.
            add: by site what is added there, ``[N, T, width]`` or ``[T, width]``.
            read: sites to return.
        """
        add = dict(add or {})
        embeddings = embeddings + add.pop(EMBED, torch.zeros((), dtype=embeddings.dtype))
        if embeddings.dim() == 2:
            copies = max((len(x) for x in add.values() if x.dim() == 3), default=1)
            embeddings = embeddings.expand(copies, -1, -1)
        seen = {EMBED: embeddings}
        with ExitStack() as stack, torch.no_grad():
            for site in {*add, *read} - {EMBED}:
                stack.callback(self._hook(site, add.get(site), seen).remove)
            logits: Tensor = self.hf(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
        return logits, {site: seen[site] for site in read}

    def _hook(self, site: Site, added: Tensor | None, seen: dict[Site, Tensor]) -> Any:
        name, layer = site
        columns = self._columns(name, layer)

        def touch(x: Tensor) -> Tensor:
            seen[site] = x if added is None else x + added
            return seen[site]

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (touch(args[0]), *args[1:]), kwargs

        def after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            return (touch(output[0]), *output[1:]) if isinstance(output, tuple) else touch(output)

        def projected(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            whole = output.clone()
            whole[..., columns] = touch(output[..., columns])
            return whole

        if name in PROJECTED:
            return self.part(name, layer).register_forward_hook(projected)
        if name == "ffn_in":
            return self.part("second_norm", layer).register_forward_pre_hook(before, with_kwargs=True)
        if name == "resid_pre":
            return self.blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
        if name == "resid_post":
            return self.blocks[layer].register_forward_hook(after)
        module = self.part("out" if name == "z" else "down", layer)
        if name == "mlp_out":
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before, with_kwargs=True)

    def _columns(self, name: str, layer: int) -> slice:
        """Where queries, keys or values stand among what their projection makes."""
        if name not in PROJECTED or self.parts.query != self.parts.key:
            return slice(None)
        width, place = self.n_heads * self.d_head, PROJECTED.index(name)
        return slice(place * width, (place + 1) * width)

    def replacements(
        self, encoded: EncodedExample, level: str, kind: str, examples: Sequence[EncodedExample]
    ) -> dict[Site, Tensor]:
        """By site what its activation (``[T, width]``) is replaced by, ``kind`` being the replacement's name.

        The mean of components is over every token of ``examples``, that of inputs over the example's own positions of
        the level.
        """
        sites = list({part.site: None for part in self.list_parts(level, encoded)})
        own = self.read(self.embeddings(encoded), sites)

        def counterfactual() -> dict[Site, Tensor]:
            return self.read(self.embeddings(encoded, counterfactual=True), sites)

        def mean() -> dict[Site, Tensor]:
            if sites == [EMBED]:
                return {EMBED: own[EMBED][self.positions(level, encoded)].mean(0).expand_as(own[EMBED])}
            every = [self.read(self.embeddings(e), sites) for e in examples]
            return {site: torch.cat([x[site] for x in every]).mean(0).expand_as(own[site]) for site in sites}

        return replacement_kind(kind).literally(own, counterfactual, mean)

    def read(self, embeddings: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Activations ``[T, width]`` of one row."""
        return {site: x[0] for site, x in self.run(embeddings, read=sites)[1].items()}

    def directions(
        self, encoded: EncodedExample, level: str, kind: str, examples: Sequence[EncodedExample]
    ) -> dict[Site, Tensor]:
        """By site its replacement minus its activation, ``[T, width]``."""
        towards = self.replacements(encoded, level, kind, examples)
        own = self.read(self.embeddings(encoded), list(towards))
        return {site: towards[site] - own[site] for site in towards}

    def one_at_a_time(
        self,
        encoded: EncodedExample,
        parts: Sequence[Part],
        directions: Mapping[Site, Tensor],
        explained: Callable[[Tensor], Tensor],
        share: float = 1.0,
        embeddings: Tensor | None = None,
    ) -> Tensor:
        """``[parts]``: ``explained`` of the logits ``[V]`` with each part alone moved a share of its direction.

        Args:
            embeddings: in place of the example's own.
        """
        start = self.embeddings(encoded) if embeddings is None else embeddings
        outcomes: list[Tensor] = []
        for site in {part.site: None for part in parts}:
            here = [part for part in parts if part.site == site]
            moves = torch.zeros(len(here), *directions[site].shape, dtype=start.dtype)
            for move, part in zip(moves, here):
                move[part.rows, part.columns] = share * directions[site][part.rows, part.columns]
            logits, _ = self.run(start, {site: moves})
            outcomes += [explained(row) for row in logits]
        return torch.stack(outcomes)

    # --- the final norm with its scale held fixed -------------------------------------------------------------------

    def frozen_logits(self, z: Tensor, last: Tensor) -> Tensor:
        """``[V]``: final norm and unembedding of ``z`` ``[d_model]``, the norm's statistic taken from ``last``."""
        norm, head = get(self.hf, self.parts.norm), self.hf.get_output_embeddings()
        if isinstance(norm, nn.LayerNorm):
            scale = (last.var(correction=0) + norm.eps).sqrt()
            return head(norm.weight * (z - z.mean()) / scale + norm.bias)
        return head(norm.weight * z / (last.square().mean() + norm.variance_epsilon).sqrt())


def metric(logits: Tensor, encoded: EncodedExample) -> Tensor:
    """logit(answer) - logit(foil), or log p(answer) without a foil, of logits ``[V]``."""
    if encoded.foil is None:
        return torch.log_softmax(logits, -1)[encoded.answer]
    return logits[encoded.answer] - logits[encoded.foil]


def slope(f: Callable[[float], Tensor], step: float = 1e-3) -> Tensor:
    """The derivative of ``f`` at 0 by a central five-point difference: its error is of order ``step`` to the fourth."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)
