"""Query neurons: the shallow FFN neurons that activate the attention neurons which write the answer (A8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.log_prob import Candidates, FrozenUnembedding, exact_top
from attriboard.method import Method, positive
from attriboard.model import Batch, Model, Run, hook_name
from attriboard.shape import Shape


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
        return super().passes(shape, level) + tangents + values + shape.exactly(self.top_k, 1)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        sites = ("resid_pre", "pattern", "v", "z", "post")
        last_resid = hook_name("resid_post", model.n_layers - 1)
        layers = range(model.n_layers)
        run = model.run(batch, [*(hook_name(site, layer) for site in sites for layer in layers), last_resid])
        rows = torch.arange(len(batch), device=model.device)
        unembedding = FrozenUnembedding(model, run[last_resid][rows, batch.last])
        return torch.stack([self._example(model, run, batch, b, unembedding.row(b)) for b in range(len(batch))])

    def _example(self, model: Model, run: Run, batch: Batch, b: int, unembedding: FrozenUnembedding) -> Tensor:
        layers = range(model.n_layers)
        q = int(batch.last[b])
        resid = torch.stack([run[hook_name("resid_pre", layer)][b].float() for layer in layers])  # [L, T, d_model]
        weighted = torch.stack(
            [
                run[hook_name("pattern", layer)][b, :, q, :, None].float() * run[hook_name("v", layer)][b].float()
                for layer in layers
            ]
        )  # [L, H, T, d_head]: attention weight times value
        shape = weighted.shape
        gains = [model.attn_gain(layer, run[hook_name("z", layer)][b, q]) for layer in layers]

        def unravel(index: Tensor) -> tuple[Tensor, ...]:
            return torch.unravel_index(index, shape)

        index = torch.arange(weighted.numel(), device=model.device)
        layer, head, _, dimension = unravel(index)
        candidates = Candidates(
            base=resid[None, :, q],
            weights=[model.W_O(at).flatten(0, 1) for at in layers],
            group=layer,
            coefficient=weighted.reshape(1, -1),
            row=head * model.d_head + dimension,
            gain=None if gains[0] is None else torch.stack([g for g in gains if g is not None])[None],
        )
        increase, exact = exact_top(candidates, unembedding, batch.answer[b : b + 1], self.top_k)
        top = torch.argsort(torch.where(exact, increase, -torch.inf), descending=True)[: self.top_k]
        layer, head, position, dimension = unravel(top)
        keys = torch.stack(
            [
                model.ln1_weight(at) * model.W_V(at)[h, :, i].float()
                for at, h, i in zip(layer.tolist(), head.tolist(), dimension.tolist())
            ]
        )  # [K, d_model]
        activation = (resid[layer, position] * keys).sum(-1)
        # a value-neuron that nothing activates adds nothing, and there is nothing to share
        share = torch.where(activation == 0, 0.0, increase[top].float() / activation)
        scores = torch.zeros(model.n_layers, model.d_mlp, device=model.device)
        for source in layers:
            reached = layer > source
            if not bool(reached.any()):
                continue
            post = run[hook_name("post", source)][b, position[reached]]
            gain = model.mlp_gain(source, post)
            towards = keys[reached] if gain is None else keys[reached] * gain
            scores[source] = (post.float() * (towards @ model.W_out(source).float().T) * share[reached, None]).sum(0)
        return scores
