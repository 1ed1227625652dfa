"""Query neurons: the shallow FFN neurons that activate the attention neurons which write the answer (A8)."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.interventions import watched
from attriboard.log_prob import Candidates, FrozenUnembedding, top_candidates
from attriboard.method import Method, positive
from attriboard.model import Batch, Model, Run, hook_name, product
from attriboard.shape import Shape

_BYTES = 2**29
"""The most activations held at a time; a single long prompt may need more."""


@dataclass
class QueryNeurons(Method):
    """Each neuron's share in activating the ``top_k`` attention value-neurons, weighted by what those add to log p.

    The value-neurons ``a = (layer, head, dimension, position)`` are the provably best by log-probability increase
    ``I_a`` of ``alpha v_i w_i`` added to the layer's input (A5). With key ``k_a = gamma_1 * W_V[:, i]``, a neuron of an
    earlier layer scores ``sum_a I_a c (w . k_a) / (x . k_a)`` at the value-neuron's position, ``x`` the layer's input
    there. Every query head uses the value projection of its own group. Norm centring and biases are ignored, as
    published. Small denominators make large shares; they are left as they come.

    Options:
        top_k: how many attention value-neurons are followed, per example.
    """

    name = "query_neurons"
    paper = "Yu & Ananiadou 2024, arXiv 2312.12141"
    description = "share in activating the attention value-neurons that write the answer"
    levels = ("neurons",)
    needs = frozenset({"forward", "weights"})
    reads = ("answer",)
    properties = ("zero_for_idle", "zero_for_dead", "uses_answer", "ignores_foil")
    rounding = 1e-3  # x . k_a can be small beside its terms, which magnifies their rounding

    top_k: int = 30

    def __post_init__(self) -> None:
        positive(self, "top_k")

    def passes(self, shape: Shape, level: Level) -> float:
        # every dimension of every head is a candidate at every position, with one tangent for its layer
        tangents = shape.unembedded(2 * shape.n_layers)
        values = shape.n_layers * shape.product(1, shape.d_model, shape.n_heads * shape.d_head)
        exactly = shape.exactly(2 * self.top_k, 1)  # half of them looked ahead
        return super().passes(shape, level) + tangents + values + exactly

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        per_position = model.n_layers * (model.d_model + model.d_mlp + model.n_heads * model.d_head)  # of what is kept
        per_row = per_position * batch.tokens.shape[1] * model.dtype.itemsize
        parts = torch.arange(len(batch)).split(max(1, _BYTES // per_row))
        return torch.cat([self._scores(model, batch.rows(part)) for part in parts])

    def _scores(self, model: Model, batch: Batch) -> Tensor:
        last_resid = hook_name("resid_post", model.n_layers - 1)
        names = [hook_name(site, layer) for site in ("resid_pre", "v", "post") for layer in range(model.n_layers)]
        rows = torch.arange(len(batch), device=model.device)
        read: dict[str, Tensor] = {}  # only what the last token reads and writes
        edits = {}
        for layer in range(model.n_layers):
            pattern, z = hook_name("pattern", layer), hook_name("z", layer)
            edits[pattern] = watched(read, pattern, lambda x: x[rows, :, batch.last])
            edits[z] = watched(read, z, lambda x: x[rows, batch.last])
        run = model.run(batch, [*names, last_resid], edits)
        unembedding = FrozenUnembedding(model, run[last_resid][rows, batch.last])
        return torch.stack([self._example(model, run, batch, b, read, unembedding.row(b)) for b in range(len(batch))])

    def _example(
        self, model: Model, run: Run, batch: Batch, b: int, read: dict[str, Tensor], unembedding: FrozenUnembedding
    ) -> Tensor:
        layers, last = range(model.n_layers), batch.last[b]
        gains = [model.attn_gain(layer, read[hook_name("z", layer)][b]) for layer in layers]
        shape = run[hook_name("v", 0)].shape[1:]  # [H, T, d_head] in every layer

        def weighted(layer: int) -> Tensor:
            """``[1, H * T * d_head]``: attention weight times value."""
            pattern, value = read[hook_name("pattern", layer)][b], run[hook_name("v", layer)][b]
            return (pattern[..., None].float() * value.float()).reshape(1, -1)

        head, _, dimension = _unravel(torch.arange(math.prod(shape), device=model.device), shape)
        candidates = Candidates(
            base=torch.stack([run[hook_name("resid_pre", layer)][b, last].float() for layer in layers])[None],
            weights=[model.W_O(at).flatten(0, 1) for at in layers],
            coefficient=weighted,
            row=head * model.d_head + dimension,
            gain=None if gains[0] is None else torch.stack([g for g in gains if g is not None])[None],
        )
        k = min(self.top_k, model.n_layers * math.prod(shape))
        top, increase = top_candidates(candidates, unembedding, batch.answer[b : b + 1], k)
        order = top.argsort()  # by layer, so that those which a layer reaches come last
        gained = increase[order].float()
        layer, head, position, dimension = _unravel(top[order], (model.n_layers, *shape))
        at: list[int] = layer.tolist()
        keys, there = [], []
        for reader in sorted(set(at)):
            own = slice(bisect.bisect_left(at, reader), bisect.bisect_right(at, reader))
            keys.append(model.ln1_weight(reader) * model.W_V(reader)[head[own], :, dimension[own]].float())
            there.append(run[hook_name("resid_pre", reader)][b, position[own]].float())
        key = torch.cat(keys)  # [K, d_model]
        activation = (torch.cat(there) * key).sum(-1)
        # a value-neuron that nothing activates adds nothing, and there is nothing to share
        share = torch.where(activation == 0, 0.0, gained / activation)
        scores = torch.zeros(model.n_layers, model.d_mlp, device=model.device)
        for source in range(max(at)):
            reached = slice(bisect.bisect_right(at, source), None)
            post = run[hook_name("post", source)][b, position[reached]]
            gain = model.mlp_gain(source, post)
            towards = key[reached] if gain is None else key[reached] * gain
            along = product(towards, model.W_out(source).T)
            scores[source] = (post.float() * along * share[reached, None]).sum(0)
        return scores


def _unravel(index: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.unravel_index(index, tuple(shape))
