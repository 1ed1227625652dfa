"""Information flow routes: how close each part of a sum is to the sum, followed back from the prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.errors import ConfigurationError
from attriboard.interventions import watched
from attriboard.method import Method
from attriboard.model import Batch, Edit, Model, Run, hook_name
from attriboard.shape import Shape

PART_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""The most that parts take at a time; one part of each row may need more. What fits a CPU's cache is ten times faster.
"""


@dataclass
class Ifr(Method):
    """How close a part ``z_j`` of a sum ``y = sum_j z_j`` is to it, as a share of all parts' closeness.

    ``importance_j = close_j / sum_k close_k`` with ``close_j = max(|y|_1 - |y - z_j|_1, epsilon)``. All parts are those
    of the model's own weights, as they are loaded and as the residual stream holds them: nothing is centred or folded,
    which would change the l1 norm. Behind a norm after the sub-layer a head's part is that with the norm's scale
    frozen. An importance is never negative: a part that writes against the answer counts as one for it.

    **edges**: ``y`` is what the destination reads, before its norm; the parts are the outputs of all sources before it.
    Averaged over positions. All queries, keys and values of a layer read one residual and get the same scores.
    ``input`` is the token embedding; position embeddings and the biases of attention's output, which no source writes,
    are together a part of their own, so that the edges into a destination add up to 1 less its share (MIB's code leaves
    that part out).

    **tokens, patches**: the flow that reaches the embedding at each position. It starts with 1 at the last token's last
    residual. At each position attention's sum has as parts the residual before it, ``attention weight * value * W_O``
    of every head and key position, and the bias; the flow into a part is the flow into the sum times the importance.
    What flows to a head's key position goes on there, what flows to a bias ends. Both parts of an FFN's sum come from
    one residual, to which all their flow returns; where attention and FFN work in parallel there is one sum of all.

    **heads**: the importance of all of a head's parts, times the flow into the sum, over all query positions; with
    ``at="last"`` that at the last token alone, whatever the flow.

    One forward pass. For each row, edges hold eight numbers for each layer, position and coordinate of the residual,
    ``2 n_layers n_sources T`` shares, and one layer's heads ``[n_heads, T, d_model]``; the rest ``[n_layers, T, T]``
    shares, one layer's projected values ``[n_heads, T, d_model]`` and a few times its pattern ``[n_heads, T, T]``. The
    parts themselves, at heads and key positions ``n_heads T T d_model`` numbers, are made few at a time
    (:data:`PART_BYTES`).

    Options:
        epsilon: the least closeness: 1e-5 in the authors' tool, 0 in MIB's code. With 0, nothing flows where no part is
            close.
        threshold: parts of less importance are dropped, and what is left is divided by its sum; below 1.
        at: of heads, "routes" (weighted by the flow) or "last".
    """

    name = "ifr"
    paper = "Ferrando & Voita 2024, arXiv 2403.00824 (information flow routes)"
    description = "how close a part of the residual stream is to the sum, followed back from the prediction"
    levels = ("heads", "edges", "patches", "tokens")
    needs = frozenset({"forward", "weights"})
    circuits = "greedy"
    properties = ("parts_sum_to_one", "ignores_answer")

    epsilon: float = 1e-5
    threshold: float = 0.0
    at: str = "routes"

    def __post_init__(self) -> None:
        for name, most in (("epsilon", math.inf), ("threshold", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < most:
                expected = "a number of at least 0" + ("" if most == math.inf else f" and less than {most:g}")
                raise ConfigurationError(f"{name} of {self.name} is {value!r}, expected {expected}.")
        if self.at not in ("routes", "last"):
            raise ConfigurationError(f"at of {self.name} is {self.at!r}, expected 'routes' or 'last'.")

    def passes(self, shape: Shape, level: Level) -> float:
        projected = shape.product(shape.positions, shape.n_heads * shape.d_head, shape.d_model)
        return super().passes(shape, level) + shape.n_layers * projected

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        if level.edges:
            return self._edges(model, batch).float()
        steps = self._steps(model, batch, only_last=not level.inputs and self.at == "last")
        if not level.inputs and self.at == "last":
            return torch.stack([step.heads[..., 0] for step in steps], dim=1).float()
        flow = torch.nn.functional.one_hot(batch.last, batch.tokens.shape[1]).to(steps[0].heads.dtype)
        through = []
        for step in reversed(steps):
            through.append(torch.einsum("bq,bhq->bh", flow, step.heads))
            flow = flow * step.own + torch.einsum("bq,bqk->bk", flow, step.keys)
        return (flow if level.inputs else torch.stack(through[::-1], dim=1)).float()

    # --- edges ------------------------------------------------------------------------------------------------------

    def _edges(self, model: Model, batch: Batch) -> Tensor:
        """``[B, E]``."""
        layers, blocks, n_sources = range(model.n_layers), list(model.graph.blocks()), len(model.graph.src_nodes)
        mid = "resid_pre" if model.graph.parallel_attn_mlp else "resid_mid"
        read = [hook_name(site, layer) for layer in layers for site in ("resid_pre", mid)]
        read.append(hook_name("resid_post", model.n_layers - 1))
        written = [hook_name(site, layer) for layer in layers for site in ("z", "mlp_out")]
        run = model.run(batch, ["hook_embed", *read, *written])
        wholes = [_Whole.of(_precise(run[name])[:, None]) for name in read]  # with an axis for sources
        # behind the sources, what none of them writes
        close = wholes[0].twice.new_zeros(len(batch), len(blocks), n_sources + 1, batch.tokens.shape[1])

        def put(first: int, parts: Tensor) -> None:
            """Parts ``[B, n, T, d_model]`` of the sources from ``first`` on, at every destination behind them."""
            after, few = first + parts.shape[1], _at_a_time(parts[:, 0])
            for i, block in enumerate(blocks):
                if block.n_sources >= after:
                    by_part = [self._close(wholes[i], part) for part in parts.split(few, dim=1)]
                    close[:, i, first:after] = torch.cat(by_part, dim=1)

        embed = run["hook_embed"] if model.has_position_embeddings else run[read[0]]
        put(0, _precise(embed)[:, None])
        for layer in layers:
            first = model.graph.sources_before(layer)
            heads = model.head_outputs(layer, run[hook_name("z", layer)])
            put(first, _precise(heads).transpose(1, 2))
            put(first + model.n_heads, _precise(run[hook_name("mlp_out", layer)])[:, None])
        for i, rest in enumerate(_unwritten(model, run)):
            if rest is not None:
                close[:, i, -1:] = self._close(wholes[i], rest[:, None])
        _count(model, batch)
        shares = _shares(close.transpose(2, 3), self.threshold)  # [B, D, T, S + 1]
        real = batch.real.to(shares.dtype)
        mean = torch.einsum("bdts,bt->bds", shares, real / real.sum(1, keepdim=True))
        found = [
            mean[:, i, None, : block.n_sources].expand(-1, block.n_destinations, -1).flatten(1)
            for i, block in enumerate(blocks)
        ]
        return torch.cat(found, dim=1)

    def _close(self, whole: Tensor | _Whole, parts: Tensor) -> Tensor:
        """``[...]``: of parts ``[..., d_model]`` to their sum, which may have axes of length 1 in their place."""
        whole = _Whole.of(whole) if isinstance(whole, Tensor) else whole
        return whole.less(parts).clamp(min=self.epsilon)

    # --- routes -----------------------------------------------------------------------------------------------------

    def _steps(self, model: Model, batch: Batch, only_last: bool) -> list[_Step]:
        """The importances in every layer's sum, first to last.

        Args:
            only_last: at the last token alone, as the one query.
        """
        rows = torch.arange(len(batch), device=model.device)
        seen: dict[str, Tensor] = {}
        steps: list[_Step] = []

        def queries(x: Tensor) -> Tensor:
            """``[B, Q, ...]`` of an activation ``[B, T, ...]``."""
            return x[rows, batch.last][:, None] if only_last else x

        def finish(layer: int) -> Edit:
            def apply(resid_post: Tensor) -> Tensor:
                seen["resid_post"] = queries(resid_post)
                steps.append(self._step(model, layer, seen))
                seen.clear()
                return resid_post

            return apply

        edits: dict[str, Edit] = {}
        for layer in range(model.n_layers):
            for site in ("resid_pre", "z", "attn_out", "mlp_out"):
                edits[hook_name(site, layer)] = watched(seen, site, queries)
            edits[hook_name("v", layer)] = watched(seen, "v", lambda x: x)
            edits[hook_name("pattern", layer)] = watched(seen, "pattern", lambda x: queries(x.transpose(1, 2)))
            edits[hook_name("resid_post", layer)] = finish(layer)
        model.run(batch, edits=edits)
        _count(model, batch)
        return steps

    def _step(self, model: Model, layer: int, seen: dict[str, Tensor]) -> _Step:
        """The importances in one layer's sum.

        Args:
            seen: by site, at the queries, the pattern ``[B, Q, H, T]``; of all positions ``v`` ``[B, H, T, d_head]``.
        """
        stays = ["resid_pre", "mlp_out"] if model.graph.parallel_attn_mlp else ["resid_pre"]
        whole = _precise(seen["resid_post"] if len(stays) == 2 else seen["resid_pre"] + seen["attn_out"])
        own = torch.stack([self._close(whole, _precise(seen[site])) for site in stays], dim=-1)
        bias = _written_bias(model, layer, seen["z"])
        ends = own[..., :0] if bias is None else self._close(whole, bias)[..., None]
        values = torch.einsum("bhke,hed->bhkd", _precise(seen["v"]), _precise(model.W_O(layer)))
        pattern = _precise(seen["pattern"]).transpose(1, 2)
        keys = self._of_keys(whole, pattern, values, model.attn_gain(layer, seen["z"]))
        return _Step.of(own, keys, ends, lambda close: _shares(close, self.threshold))

    def _of_keys(self, whole: Tensor, pattern: Tensor, values: Tensor, gain: Tensor | None) -> Tensor:
        """``[B, H, Q, T]``: the closeness of what each head reads at each key position; 0 where it sees nothing.

        Args:
            whole: ``[B, Q, d_model]``.
            pattern: ``[B, H, Q, T]``.
            values: ``[B, H, T, d_model]``, behind the output projection.
            gain: ``[B, Q, d_model]``, by which that reaches the residual stream.
        """
        close = torch.empty_like(pattern)
        few = _at_a_time(values[:, 0])
        for at in torch.arange(pattern.shape[2], device=pattern.device).split(few):
            here, own = _Whole.of(whole[:, at, None]), None if gain is None else gain[:, at, None].to(whole.dtype)
            for h in range(pattern.shape[1]):
                parts = pattern[:, h, at, :, None] * values[:, h, None]
                close[:, h, at] = here.less(parts if own is None else parts.mul_(own))
        return close.clamp(min=self.epsilon) * (pattern > 0)


@dataclass(frozen=True)
class _Whole:
    """A sum ``y``, of which parts are taken.

    Attributes:
        sign: -1 where ``y`` is negative, 1 elsewhere.
        twice: ``2 |y|``.
    """

    sign: Tensor
    twice: Tensor

    @classmethod
    def of(cls, whole: Tensor) -> _Whole:
        return cls(torch.where(whole < 0, -1.0, 1.0).to(whole.dtype), 2 * whole.abs())

    def less(self, parts: Tensor) -> Tensor:
        """``[...]``: by how much ``|y|_1`` falls when a part of ``[..., d_model]`` is taken from it.

        In a coordinate, ``|y| - |y - z|`` is the less of ``u = z sign(y)`` and ``2 |y| - u``. A difference of two norms
        would be lost in rounding, since a few coordinates of a residual stream are very large.
        """
        along = parts * self.sign
        beyond = self.twice - along
        return torch.minimum(along, beyond, out=along).sum(-1)


@dataclass(frozen=True)
class _Step:
    """Importances in one layer's sum at queries ``Q``.

    Attributes:
        own: ``[B, Q]``: of the residual at the same position, and the FFN's output in a parallel block.
        keys: ``[B, Q, T]``: of what is read at other positions, of all heads.
        heads: ``[B, H, Q]``: of each head.
    """

    own: Tensor
    keys: Tensor
    heads: Tensor

    @classmethod
    def of(cls, own: Tensor, keys: Tensor, ends: Tensor, share: Callable[[Tensor], Tensor]) -> _Step:
        """From the closeness of parts.

        Args:
            own: ``[B, Q, n]``, of what stays at the position.
            keys: ``[B, H, Q, T]``.
            ends: ``[B, Q, m]``, of what comes from nowhere.
            share: from closeness to importance, over the last axis.
        """
        by_query = keys.transpose(1, 2)
        shares = share(torch.cat([own, by_query.flatten(2), ends], dim=-1))
        own_part, key_part, _ = shares.split([own.shape[-1], by_query[0, 0].numel(), ends.shape[-1]], dim=-1)
        keys = key_part.view(by_query.shape)
        return cls(own_part.sum(-1), keys.sum(2), keys.sum(3).transpose(1, 2))


def _unwritten(model: Model, run: Run) -> list[Tensor | None]:
    """By block of edges ``[B, T, d_model]``: what no source has written before it reads; None where that is nothing."""
    rest: Tensor | None = None
    if model.has_position_embeddings:
        rest = _precise(run[hook_name("resid_pre", 0)]) - _precise(run["hook_embed"])
    found = []
    for layer in range(model.n_layers):
        before, bias = rest, _written_bias(model, layer, run[hook_name("z", layer)])
        if bias is not None:
            rest = bias if rest is None else rest + bias
        found += [before, before if model.graph.parallel_attn_mlp else rest]
    return [*found, rest]


def _shares(close: Tensor, threshold: float) -> Tensor:
    """``[..., n]``: closeness as shares of its sum over the last axis, without those below ``threshold``."""
    shares = _normalized(close)
    return _normalized(torch.where(shares < threshold, 0.0, shares)) if threshold else shares


def _normalized(x: Tensor) -> Tensor:
    """Divided by the sum over the last axis, where that is not zero."""
    total = x.sum(-1, keepdim=True)
    return x / torch.where(total == 0, 1.0, total)


def _at_a_time(one: Tensor) -> int:
    """How many parts fit into :data:`PART_BYTES`, each of the size of ``one``; three are made of each."""
    return max(1, PART_BYTES.get(one.device.type, PART_BYTES["cuda"]) // (3 * one.nbytes))


def _precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _written_bias(model: Model, layer: int, z: Tensor) -> Tensor | None:
    """``[B, T, d_model]``: what the bias of attention's output projection adds to the residual stream, if it has one.

    Args:
        z: ``[B, T, H, d_head]``, on which the scale of a norm after attention depends.
    """
    bias, gain = model.b_O(layer), model.attn_gain(layer, z)
    if bias is None:
        return None
    bias = _precise(bias).expand(*z.shape[:2], -1)
    return bias if gain is None else bias * gain


def _count(model: Model, batch: Batch) -> None:
    """Counts the output projection, head by head, in every layer."""
    for positions, _ in batch.spans:
        model.cost.product(model.n_layers * positions, model.n_heads * model.d_head, model.d_model)
