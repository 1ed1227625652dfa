"""The log-probability increase of Yu and Ananiadou (2024): what adding a vector to the residual stream does to log p.

The final norm's statistic is computed once, from the last layer's output at the last position, and held fixed for
every vector at every layer: ``U(z) = W_U (gamma * z / s)`` with ``s`` frozen, and ``I_t(delta; z) = log p_t(z + delta)
- log p_t(z)`` where ``p = softmax(U(.))``. Norms that centre their input (LayerNorm) centre ``z`` too; the final norm's
bias and the unembedding's bias are added as constants, so that ``log p_t`` of the last residual is the model's own
(the published notebooks leave the bias out; ``published=True`` does as they do). Soft-capping of logits (Gemma 2) is
not part of ``U``.

``log p_t`` is concave in ``z``, so its tangent is an upper bound: ``I_t(delta; z) <= delta . grad log p_t(z)``. The
bound costs one product with the unembedding per base; :func:`exact_top` evaluates exactly only where it could matter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .model import hook_name

if TYPE_CHECKING:
    from .components import Level
    from .model import Batch, Edit, Model

_MAX_CELLS = 48_000_000
"""Most logits held at a time (float32: 192 MB)."""


class FrozenUnembedding:
    """``U`` for a batch: the unembedding behind the final norm with its statistic frozen at each row's last residual.

    Args:
        model: the model.
        resid: ``[B, d_model]``, the last layer's output at each row's last token.
        published: leave out the final norm's bias, as the published notebooks do.
    """

    def __init__(self, model: Model, resid: Tensor, published: bool = False) -> None:
        self.centered, self.model = not model.architecture.rms, model
        self.scale = model.final_norm_scale(resid)
        self.gamma = model.final_norm_weight
        self.W_U = model.W_U.float()
        bias = torch.zeros(model.d_vocab, device=resid.device)
        if model.final_norm_bias is not None and not published:
            bias = bias + model.final_norm_bias.float() @ self.W_U.T
        if model.b_U is not None:
            bias = bias + model.b_U.float()
        self.bias = bias

    def row(self, i: int) -> FrozenUnembedding:
        """The same for one row alone, so that only one row's logits need be in memory."""
        one = copy.copy(self)
        one.scale = self.scale[i : i + 1]
        return one

    def project(self, vectors: Tensor) -> Tensor:
        """``[..., V]``: ``W_U (gamma * vector)`` of vectors ``[..., d_model]``, without scale and bias."""
        vectors = vectors.float()
        if self.centered:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        self._count(vectors)
        return (vectors * self.gamma) @ self.W_U.T

    def _count(self, rows: Tensor) -> None:
        self.model.cost.product(rows[..., 0].numel(), *self.W_U.shape)

    def logits(self, z: Tensor) -> Tensor:
        """``U(z)``: ``[B, ..., V]`` for ``z`` ``[B, ..., d_model]``."""
        return self.project(z / self._scale_like(z)) + self.bias

    def log_prob(self, z: Tensor, target: Tensor) -> Tensor:
        """``log p_t(z)``: ``[B, ...]`` for ``z`` ``[B, ..., d_model]`` and token ids ``target`` ``[B]``."""
        return _log_prob(self.logits(z), target)

    def increase(self, base: Tensor, delta: Tensor, target: Tensor) -> Tensor:
        """``I_t(delta; base)``: ``[B, G, ...]`` for ``delta`` ``[B, G, ..., d_model]``; ``base`` broadcasts to it.

        Groups ``G`` are taken a few at a time, so that the logits in memory stay bounded.
        """
        per_group = delta[:, 0].numel() // delta.shape[-1] * self.W_U.shape[0]
        step = max(1, _MAX_CELLS // max(1, per_group))
        parts = []
        for start in range(0, delta.shape[1], step):
            at, base_at = delta[:, start : start + step], base[:, start : start + step] if base.shape[1] > 1 else base
            # from the change of the logits, not from the difference of two log-probabilities: small increases keep
            # their digits
            before = torch.log_softmax(self.logits(base_at), -1)
            change = self.project(at / self._scale_like(at))
            gained = change.gather(-1, _index(target, change))[..., 0]
            parts.append(gained - change.add_(before).logsumexp(-1))
        return torch.cat(parts, dim=1)

    def tangent(self, z: Tensor, target: Tensor) -> Tensor:
        """``[B, ..., d_model]``: the gradient of ``log p_t`` at ``z``."""
        towards = -torch.softmax(self.logits(z), -1)
        towards.scatter_add_(-1, _index(target, towards), torch.ones_like(towards[..., :1]))
        return self.pull_back(towards)

    def pull_back(self, weights: Tensor) -> Tensor:
        """``[B, ..., d_model]``: the residual direction of a weighting of the vocabulary ``[B, ..., V]``."""
        self._count(weights)
        direction = (weights @ self.W_U) * self.gamma
        if self.centered:
            direction = direction - direction.mean(-1, keepdim=True)
        return direction / self._scale_like(direction)

    def _scale_like(self, z: Tensor) -> Tensor:
        return self.scale.view(-1, *(1,) * (z.dim() - 1))


def _like(target: Tensor, values: Tensor) -> Tensor:
    """``target`` ``[B]`` with as many singleton axes as ``values`` ``[B, ..., V]`` has between batch and vocabulary."""
    return target.view(-1, *(1,) * (values.dim() - 2))


def _index(target: Tensor, values: Tensor) -> Tensor:
    """``[B, ..., 1]``: where ``target`` ``[B]`` stands on the last axis of ``values`` ``[B, ..., V]``."""
    return _like(target, values)[..., None].expand(*values.shape[:-1], 1)


def _log_prob(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(-1, _index(target, logits))[..., 0] - logits.logsumexp(-1)


def last_token(
    model: Model, batch: Batch, sites: tuple[str, ...], edits: dict[str, Edit] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Activations at each row's last token: by site ``[B, L, ...]``, and the last layer's output ``[B, d_model]``."""
    last_resid = hook_name("resid_post", model.n_layers - 1)
    names = [hook_name(site, layer) for site in sites for layer in range(model.n_layers)]
    run = model.run(batch, [*names, last_resid], edits)
    rows = torch.arange(len(batch), device=model.device)
    activations = {
        site: torch.stack([run[hook_name(site, layer)][rows, batch.last] for layer in range(model.n_layers)], dim=1)
        for site in sites
    }
    return activations, run[last_resid][rows, batch.last]


def top_heads(
    model: Model, unembedding: FrozenUnembedding, base: Tensor, z: Tensor, target: Tensor, k: int, skip_layers: int = 0
) -> Tensor:
    """``[B, k]``: the heads with the largest increase (A2), best first, as ``layer * n_heads + head``; provably exact.

    Heads are evaluated in the order of their tangent bound until the next bound is below the ``k``-th best increase,
    which takes a few rows through the unembedding instead of one per head.

    Args:
        base: ``[B, L, d_model]``, each layer's input at the last token.
        z: ``[B, L, H, d_head]``, the heads' outputs there before the output projection.
        target: ``[B]`` token ids.
        k: how many, at most the number of heads outside the skipped layers.
        skip_layers: first layers whose heads are left out.
    """
    layers = range(skip_layers, model.n_layers)
    tops = []
    for b in range(len(target)):
        own, one = unembedding.row(b), slice(b, b + 1)
        delta = torch.stack([model.head_outputs(layer, z[b, layer]) for layer in layers]).float()
        start = base[b, skip_layers:].float()
        slope = own.tangent(start[None], target[one])[0]
        bound, heads = (delta * slope[:, None]).sum(-1).flatten().sort(descending=True)
        slack = 1e-5 * float(bound.abs().max()) + 1e-12
        increase = torch.empty(0, device=bound.device)
        while len(increase) < len(heads):
            done = len(increase)
            if done >= k and float(bound[done]) + slack < float(increase.topk(k).values[-1]):
                break
            index = heads[done : done + max(k, 8)]
            at = start[index // model.n_heads]
            gained = own.increase(at[None], delta.flatten(0, 1)[index][None], target[one])[0]
            increase = torch.cat([increase, gained])
        tops.append(heads[increase.topk(k).indices] + skip_layers * model.n_heads)
    return torch.stack(tops)


def position_outputs(
    model: Model, layer: int, pattern: Tensor, value: Tensor, z: Tensor, heads: Sequence[int] | None = None
) -> Tensor:
    """``[heads, P, d_model]`` float32: what heads of one layer write at the last token from each position they read.

    Args:
        pattern: ``[H, P]``, the last token's attention to the positions.
        value: ``[H, P, d_head]``, the values there.
        z: ``[H, d_head]``, the heads' whole outputs, from which norms after the sub-layer have their scale.
        heads: which ones; all by default.
    """
    chosen = list(range(model.n_heads)) if heads is None else list(heads)
    weighted = pattern[chosen, :, None] * value[chosen]
    output = torch.einsum("hpd,hdm->hpm", weighted, model.W_O(layer)[chosen]).float()
    gain = model.attn_gain(layer, z)
    return output if gain is None else output * gain


@dataclass
class Candidates:
    """Contributions ``coefficient * vector`` to be added to one of several bases, for a batch of ``B`` examples.

    Attributes:
        base: ``[B, G, d_model]``: the residuals that contributions are added to.
        weights: for each of the ``G`` groups, its vectors ``[rows, d_model]``.
        group, row: ``[N]``: which base a candidate is added to, and which of the group's vectors it adds.
        coefficient: ``[B, N]``.
        gain: ``[B, G, d_model]`` or None: factor on the vectors of each group (norms after the sub-layer, scale fixed).
    """

    base: Tensor
    weights: Sequence[Tensor]
    group: Tensor
    row: Tensor
    coefficient: Tensor
    gain: Tensor | None = None

    def vectors(self, index: Tensor) -> Tensor:
        """``[n, d_model]``: the vectors of the candidates ``index`` ``[n]``."""
        group, row = self.group[index], self.row[index]
        out = torch.empty(len(index), self.base.shape[-1], device=self.base.device)
        for g in group.unique().tolist():
            out[group == g] = self.weights[g][row[group == g]].float()
        return out

    def bounds(self, unembedding: FrozenUnembedding, target: Tensor) -> Tensor:
        """``[B, N]``: the tangent bound of every candidate; one product with the unembedding per base."""
        rows = range(len(target))  # one row's logits at a time
        slope = torch.cat([unembedding.row(b).tangent(self.base[b : b + 1], target[b : b + 1]) for b in rows])
        if self.gain is not None:
            slope = slope * self.gain
        out = torch.empty_like(self.coefficient, dtype=torch.float32)
        for g, weight in enumerate(self.weights):
            unembedding.model.cost.product(len(slope), *weight.shape)
            index = torch.nonzero(self.group == g)[:, 0]
            out[:, index] = (slope[:, g] @ weight.float().T)[:, self.row[index]]
        return out * self.coefficient

    def increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
        """``[B, n]``: the exact increase of the candidates ``index`` ``[n]``."""
        n_examples, n_vocab = self.base.shape[0], unembedding.W_U.shape[0]
        size = max(1, _MAX_CELLS // (n_vocab * min(n_examples, 8)))
        return torch.cat([self._increases(unembedding, target, part) for part in index.split(size)], dim=1)

    def _increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
        groups, local = self.group[index].unique(return_inverse=True)
        vectors = self.vectors(index)
        projected = None if self.gain is not None else unembedding.project(vectors)
        out = torch.empty(self.base.shape[0], len(index), device=self.base.device)
        for b in range(self.base.shape[0]):
            one = slice(b, b + 1)
            base = unembedding.project(self.base[b, groups] / unembedding.scale[b]) + unembedding.bias
            if projected is not None:
                step = projected
            else:
                assert self.gain is not None
                step = unembedding.project(vectors * self.gain[b, groups][local])
            factor = (self.coefficient[b, index] / unembedding.scale[b]).float()
            moved = torch.addcmul(base[local], step, factor[:, None])
            start = _log_prob(base[None], target[one])[0]
            out[b] = _log_prob(moved[None], target[one])[0] - start[local]
        return out


def level_candidates(model: Model, level: Level, base: Tensor, activation: Tensor) -> Candidates:
    """Every component's contribution at the last token, in the order of the level.

    Args:
        level: one whose components each write one vector.
        base: ``[B, L, d_model]``, the residual that contributions of each layer are added to, ``level.base``.
        activation: ``[B, L, ...]``, the level's own at the last token.
    """
    layers = range(model.n_layers)
    gains = [level.gain(model, i, activation[:, i].to(model.dtype)) for i in layers]
    weights = [level.output_weights(model, i) for i in layers]
    size = level.size(model)
    return Candidates(
        base=base,
        weights=weights,
        group=level.layer_of(model).to(model.device),
        row=torch.arange(size, device=model.device) % (size // model.n_layers),
        coefficient=activation.float().flatten(1),
        gain=None if gains[0] is None else torch.stack([g for g in gains if g is not None], dim=1),
    )


def exact_top(
    candidates: Candidates, unembedding: FrozenUnembedding, target: Tensor, k: int, chunk: int = 128
) -> tuple[Tensor, Tensor]:
    """The log-probability increase averaged over examples, with a provably exact top ``k``.

    Candidates are evaluated exactly in the order of their tangent bound until the next bound is below the ``k``-th best
    exact value; no candidate left over can then belong to the top ``k``.

    Returns:
        ``[N]`` values (exact where evaluated, the bound elsewhere, which is never smaller than the truth), and ``[N]``
        bool, True where exact.
    """
    values = candidates.bounds(unembedding, target).double().mean(0)
    order = torch.argsort(values, descending=True)
    slack = 1e-5 * float(values.abs().max()) + 1e-12
    exact = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    done, step = 0, max(1, min(k, chunk))
    best = torch.empty(0, dtype=torch.float64, device=values.device)
    while done < len(order):
        if len(best) >= k and float(values[order[done]]) + slack < float(best[k - 1]):
            break
        index = order[done : done + step]
        exactly = candidates.increases(unembedding, target, index).double().mean(0)
        values[index] = exactly
        exact[index] = True
        best = torch.cat([best, exactly]).sort(descending=True).values[: max(k, 1)]
        done, step = done + len(index), min(chunk, max(8, k // 8))
    return values, exact
