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

import bisect
import copy
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .model import hook_name
from .models.batch import sent
from .models.products import factor, product, products

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
        self.W_U = factor(model.W_U)
        bias = torch.zeros(model.d_vocab, device=resid.device)
        if model.final_norm_bias is not None and not published:
            bias = bias + product(model.final_norm_bias.float(), self.W_U.T)
        if model.b_U is not None:
            bias = bias + model.b_U.float()
        self.bias = bias

    def row(self, i: int) -> FrozenUnembedding:
        """The same for one row alone, so that only one row's logits need be in memory."""
        return self.rows(slice(i, i + 1))

    def rows(self, part: slice) -> FrozenUnembedding:
        """The same for some of the rows."""
        some = copy.copy(self)
        some.scale = self.scale[part]
        return some

    def project(self, vectors: Tensor) -> Tensor:
        """``[..., V]``: ``W_U (gamma * vector)`` of vectors ``[..., d_model]``, without scale and bias."""
        vectors = vectors.float()
        if self.centered:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        self._count(vectors)
        return product(vectors * self.gamma, self.W_U.T)

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
        direction = product(weights, self.W_U) * self.gamma
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
        bounds, heads = (delta * slope[:, None]).sum(-1).flatten().sort(descending=True)

        def evaluate(
            first: int,
            last: int,
            own: FrozenUnembedding = own,
            heads: Tensor = heads,
            start: Tensor = start,
            delta: Tensor = delta,
            one: slice = one,
        ) -> Tensor:
            index = heads[first:last]
            at = start[index // model.n_heads]
            return own.increase(at[None], delta.flatten(0, 1)[index][None], target[one])[0]

        increase, _ = _first_exactly(bounds.cpu().numpy(), evaluate, k, max(k, 8), max(k, 8))
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

    There are ``n`` to each of the ``G`` bases: candidate ``g * n + i`` adds the ``i``-th of base ``g``.

    Attributes:
        base: ``[B, G, d_model]``: the residuals that contributions are added to.
        weights: for each of the ``G`` bases, its vectors ``[rows, d_model]``.
        coefficient: from one of the ``G`` bases to its ``[B, n]``.
        row: ``[n]``: which of the vectors a candidate adds; None where each adds its own.
        gain: ``[B, G, d_model]`` or None: factor on the vectors of each base (norms after the sub-layer, scale fixed).
    """

    base: Tensor
    weights: Sequence[Tensor]
    coefficient: Callable[[int], Tensor]
    row: Tensor | None = None
    gain: Tensor | None = None

    @property
    def per_base(self) -> int:
        """``n``."""
        return len(self.weights[0]) if self.row is None else len(self.row)

    def bounds(self, unembedding: FrozenUnembedding, target: Tensor) -> Tensor:
        """``[B, N]``: the tangent bound of every candidate; one product with the unembedding per base."""
        return torch.cat(list(self._bounds(unembedding, target)), dim=1)

    def _bounds(self, unembedding: FrozenUnembedding, target: Tensor) -> Iterator[Tensor]:
        """The same base by base, ``[B, n]`` each."""
        n_examples, n_bases, _ = self.base.shape
        size = max(1, _MAX_CELLS // (4 * n_bases * unembedding.W_U.shape[0]))
        parts = [slice(start, start + size) for start in range(0, n_examples, size)]
        slope = torch.cat([unembedding.rows(part).tangent(self.base[part], target[part]) for part in parts])
        if self.gain is not None:
            slope = slope * self.gain
        for weight in self.weights:
            unembedding.model.cost.product(n_examples, *weight.shape)
        along = products(slope.transpose(0, 1), [weight.T for weight in self.weights])  # [G, B, rows]
        for g, one in enumerate(along):
            yield (one if self.row is None else one[:, self.row]) * self.coefficient(g)

    def largest(self, unembedding: FrozenUnembedding, target: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
        """The largest bounds, averaged over the examples, without all of them in memory.

        Returns:
            ``[m]`` float64, largest first, of the ``keep`` largest of each base; ``[m]`` their candidates; and
            ``[2]``: what the bounds of all others do not exceed, and the size of the largest bound of all.
        """
        values, index, others, sizes = [], [], [], []
        for g, bounds in enumerate(self._bounds(unembedding, target)):
            mean = bounds.double().mean(0) if len(bounds) > 1 else bounds[0]
            top = mean.topk(min(keep, len(mean)))
            values.append(top.values.double())
            index.append(top.indices + g * self.per_base)
            others.append(values[-1][-1] if keep < len(mean) else torch.full_like(values[-1][-1], -torch.inf))
            sizes.append(torch.linalg.vector_norm(mean, torch.inf).double())
        order = torch.cat(values).argsort(descending=True)
        limits = torch.stack([torch.stack(others).max(), torch.stack(sizes).max()])
        return torch.cat(values)[order], torch.cat(index)[order], limits

    def increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
        """``[B, m]``: the exact increase of the candidates ``index`` ``[m]``."""
        n_examples, n_vocab = self.base.shape[0], unembedding.W_U.shape[0]
        size = max(1, _MAX_CELLS // (n_vocab * min(n_examples, 8)))
        return torch.cat([self._increases(unembedding, target, part) for part in index.split(size)], dim=1)

    def _increases(self, unembedding: FrozenUnembedding, target: Tensor, index: Tensor) -> Tensor:
        # sorted on the host, so that the device is waited for once and not once per base
        chosen = index.tolist()
        order = sorted(range(len(chosen)), key=chosen.__getitem__)
        members: dict[int, list[int]] = {}
        for at in order:
            members.setdefault(chosen[at] // self.per_base, []).append(chosen[at] % self.per_base)
        groups, counts = list(members), torch.tensor([len(own) for own in members.values()])
        device = self.base.device
        each = [torch.tensor([i for own in members.values() for i in own])]  # on the host
        each += [torch.arange(len(groups)).repeat_interleave(counts), torch.tensor(order).argsort()]
        within, local, back = sent(torch.stack(each), device)
        used, rows = sent(torch.tensor(groups), device), within if self.row is None else self.row[within]
        by_group = list(zip(groups, rows.split(counts.tolist()), within.split(counts.tolist())))
        vectors = torch.cat([self.weights[g].index_select(0, r) for g, r, _ in by_group]).float()
        coefficient = torch.cat([self.coefficient(g)[:, i] for g, _, i in by_group], dim=1)
        projected = None if self.gain is not None else unembedding.project(vectors)
        out = torch.empty(self.base.shape[0], len(chosen), device=device)
        for b in range(self.base.shape[0]):
            one = slice(b, b + 1)
            base = unembedding.project(self.base[b, used] / unembedding.scale[b]) + unembedding.bias
            if projected is not None:
                step = projected
            else:
                assert self.gain is not None
                step = unembedding.project(vectors * self.gain[b, used][local])
            scaled = (coefficient[b] / unembedding.scale[b]).float()
            moved = torch.addcmul(base[local], step, scaled[:, None])
            start = _log_prob(base[None], target[one])[0]
            out[b] = _log_prob(moved[None], target[one])[0] - start[local]
        return out[:, back]


def level_candidates(model: Model, level: Level, base: Tensor, activation: Tensor) -> Candidates:
    """Every component's contribution at the last token, in the order of the level.

    Args:
        level: one whose components each write one vector.
        base: ``[B, L, d_model]``, the residual that contributions of each layer are added to, ``level.base``.
        activation: ``[B, L, ...]``, the level's own at the last token.
    """
    layers = range(model.n_layers)
    gains = [level.gain(model, i, activation[:, i].to(model.dtype)) for i in layers]
    return Candidates(
        base=base,
        weights=[level.output_weights(model, i).flatten(0, -2) for i in layers],
        coefficient=lambda layer: activation[:, layer].float().flatten(1),
        gain=None if gains[0] is None else torch.stack([g for g in gains if g is not None], dim=1),
    )


def exact_top(
    candidates: Candidates, unembedding: FrozenUnembedding, target: Tensor, k: int, chunk: int = 128
) -> tuple[Tensor, Tensor]:
    """The log-probability increase averaged over examples, with a provably exact top ``k``.

    Candidates are evaluated exactly in the order of their tangent bound until the next bound is below the ``k``-th best
    exact value; no candidate left over can then belong to the top ``k``.

    Args:
        chunk: whether to go on is asked after every ``k / 8`` candidates, or every ``chunk`` if that is less.

    Returns:
        ``[N]`` values (exact where evaluated, the bound elsewhere, which is never smaller than the truth), and ``[N]``
        bool, True where exact.
    """
    values = candidates.bounds(unembedding, target).double().mean(0)
    bounds, order = values.sort(descending=True)

    def evaluate(start: int, stop: int) -> Tensor:
        return candidates.increases(unembedding, target, order[start:stop]).double().mean(0)

    exactly, _ = _first_exactly(bounds.cpu().numpy(), evaluate, k, *_steps(k, chunk))
    done = order[: len(exactly)]
    values[done] = exactly
    exact = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    exact[done] = True
    return values, exact


def top_candidates(
    candidates: Candidates, unembedding: FrozenUnembedding, target: Tensor, k: int, chunk: int = 128, keep: int = 1024
) -> tuple[Tensor, Tensor]:
    """``[k]`` the best candidates and ``[k]`` float64 their increases, best first: the exact top of :func:`exact_top`.

    For candidates so many that all their bounds should not be in memory at once.

    Args:
        k: at most as many as there are.
        keep: how many bounds of each base are looked at first; eight times as many, where they do not suffice.
    """
    while True:
        bounds, order, limits = candidates.largest(unembedding, target, keep)
        found = torch.cat([bounds, limits]).cpu().numpy()
        others, largest = map(float, found[-2:])
        known = found[:-2][~(found[:-2] < others)]

        def evaluate(start: int, stop: int, order: Tensor = order) -> Tensor:
            return candidates.increases(unembedding, target, order[start:stop]).double().mean(0)

        exactly, sure = _first_exactly(known, evaluate, k, *_steps(k, chunk), largest=largest, others=others)
        if sure:
            best = exactly.sort(descending=True)
            return order[best.indices[:k]], best.values[:k]
        keep *= 8


def _steps(k: int, chunk: int) -> tuple[int, int]:
    return max(1, min(k, chunk)), min(chunk, max(8, k // 8))


def _first_exactly(
    bounds: np.ndarray,
    evaluate: Callable[[int, int], Tensor],
    k: int,
    first: int,
    step: int,
    largest: float | None = None,
    others: float = -math.inf,
) -> tuple[Tensor, bool]:
    """The exact values of the first ``m`` candidates, as many as make sure that the best ``k`` are among them.

    Whether to go on is asked after ``first`` candidates and then after every ``step``, so that ``m`` depends on the
    numbers alone. They are evaluated many at a time, since each time the device has to be waited for.

    Args:
        bounds: ``[n]``, what the values do not exceed, largest first.
        evaluate: from the first and the last (exclusive) of a range of candidates to their values.
        largest: the size of the largest bound, if it is not among those given.
        others: what the values of further candidates, without bounds of their own, do not exceed.

    Returns:
        ``[m]``, and whether the best are sure to be among them: where there are others, all with bounds may not do.
    """
    largest = float(max(abs(bounds[0]), abs(bounds[-1]))) if largest is None else largest
    slack = 1e-5 * largest + 1e-12  # the rounding of bounds and values
    parts: list[Tensor] = []
    values: list[float] = []
    best: list[float] = []  # a heap of the k best, the least of them first
    done = 0

    def enough(bound: float) -> bool:
        return len(best) >= k and bound + slack < best[0]

    while done < len(bounds) and not enough(bounds[done]):
        stop = min(done + (step if done else first), len(bounds))
        if stop > len(values):
            start = len(values)
            # half of those that could be among the best by what is known: the more are known, the fewer they are
            could = bisect.bisect_left(bounds, True, key=enough)
            end = max(stop, (start + could) // 2 if len(best) >= k else min(k, len(bounds)))
            parts.append(evaluate(start, end))
            values += parts[-1].tolist()
        for value in values[done:stop]:
            if len(best) < k:
                heapq.heappush(best, value)
            else:
                heapq.heappushpop(best, value)
        done = stop
    return torch.cat(parts)[:done], done < len(bounds) or others == -math.inf or enough(others)
