"""Passes in which every destination of a model's graph reads a residual stream of its own.

In an ordinary pass all queries, keys and values of a layer, its FFN and the logits read the one residual stream. Here
each may read another sum of what stands before it, so that any set of edges can be replaced, and the gradient at each
one's own reading can be taken. What the model is made of stays its own: norms, projections, rotary embeddings and masks
are run by the model's modules. Where query heads share keys and values, attention is run once for each head of a group,
with the keys and values which that head reads; where the queries of all heads are normed together (OLMo 2), once for
every head, as if all read what it reads.

Sources write what they add to the residual stream: the embedding what enters the first block (position embeddings
included, which do not differ between prompts), heads their part of attention's output, FFNs theirs. Behind a norm after
the sub-layer (Gemma 2 and 3, OLMo 2) heads are joined before that norm: replacing some changes the layer's output by
``norm(sum with replaced) - norm(sum)``.

Shapes: ``R`` rows, ``S`` sources, ``D`` destinations, ``T`` positions, ``H`` query heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..graph import LOGITS, PARTS
from .attention import put
from .batch import Batch
from .cost import Cost
from .weights import Qkv, Weights

_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class Written:
    """What the sources of a pass write, from which the rest follows.

    Attributes:
        embed: ``[B, T, d_model]``: what enters the first block.
        z: ``[L, B, T, H, d_head]``: heads before the output projection.
        mlp: ``[L, B, T, d_model]``: what FFNs add to the residual stream.
    """

    embed: Tensor
    z: Tensor
    mlp: Tensor

    @property
    def nbytes(self) -> int:
        return self.embed.nbytes + self.z.nbytes + self.mlp.nbytes

    def rows(self, index: Tensor) -> Written:
        """Of the given rows, which may repeat."""
        return Written(self.embed[index], self.z[:, index], self.mlp[:, index])


class Reading(ABC):
    """What one pass does at the places where sources write and destinations read.

    A subclass says what attention, FFN and logits read of a layer; attention's own course, head by head, stands here.

    Args:
        weights: the model.
        batch: the rows.

    Attributes:
        together: ``[n, m]``: the heads, by the run of attention that makes them.
        apart: whether each run makes one head, since all heads are normed together.
        resid: ``[R, T, d_model]``: the residual entering the block that runs.
        mid: the residual behind its attention.
    """

    def __init__(self, weights: Weights, batch: Batch) -> None:
        self.weights, self.batch, self.graph = weights, batch, weights.graph
        heads = torch.arange(weights.n_heads)
        self.apart = _normed_together(weights)
        self.together = heads[:, None] if self.apart else heads.view(weights.n_kv_heads, -1).T
        self.resid = self.mid = torch.empty(0)
        self._attention: list[_Attention] = []

    def install(self, stack: ExitStack) -> None:
        """Puts everything on the model until ``stack`` closes."""
        parts = self.weights.parts
        for layer, block in enumerate(parts.blocks):
            hook = block.register_forward_pre_hook(partial(self._enters, layer), with_kwargs=True)
            stack.callback(hook.remove)
            self._install_attention(stack, layer)
            for module in parts.mlp_reads[layer]:
                hook = module.register_forward_pre_hook(partial(self._into_ffn, layer), with_kwargs=True)
                stack.callback(hook.remove)
            stack.callback(parts.attn_end[layer].register_forward_hook(partial(self._attention_adds, layer)).remove)
            stack.callback(parts.mlp_end[layer].register_forward_hook(partial(self._ffn_adds, layer)).remove)
        stack.callback(parts.final_norm.register_forward_pre_hook(self._into_logits).remove)

    # --- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def enters(self, layer: int, resid: Tensor) -> None:
        """A block begins, at ``resid`` ``[R, T, d_model]``."""

    @abstractmethod
    def projected(self, layer: int, run: int, role: str, make: Callable[[], Tensor]) -> Tensor:
        """What a projection passes on in one of the runs of attention.

        Args:
            run: which, as a row of :attr:`together`.
            role: "query", "key" or "value", which makes all three where they are packed.
            make: the projection of what the block gives it.
        """

    @abstractmethod
    def heads_write(self, layer: int, z: Tensor) -> None:
        """Heads' outputs ``[R, T, H, d_head]``, before the output projection."""

    @abstractmethod
    def ffn_reads(self, layer: int, given: Tensor) -> Tensor:
        """What a module of the FFN reads in the place of what is given to it, behind the norm before the FFN."""

    @abstractmethod
    def ffn_writes(self, layer: int, out: Tensor) -> None:
        """What the FFN adds to the residual stream, ``[R, T, d_model]``."""

    @abstractmethod
    def logits_read(self, resid: Tensor) -> Tensor:
        """What the final norm reads in the place of the last residual."""

    def in_order(self, by_run: Sequence[Tensor], dim: int) -> Tensor:
        """What each run of attention gave of its heads, as heads are ordered."""
        return torch.cat(list(by_run), dim).index_select(dim, self.together.flatten().argsort().to(by_run[0].device))

    # --- attention, head by head ------------------------------------------------------------------------------------

    def _install_attention(self, stack: ExitStack, layer: int) -> None:
        parts = self.weights.parts
        attention, out = parts.attention[layer], parts.attn_out[layer]
        run = _Attention(self, layer, attention.forward, out.forward)
        self._attention.append(run)
        put(stack, attention, "forward", run.attend)
        put(stack, out, "forward", run.project_out)
        for role in _ROLES:
            module = getattr(parts, role)[layer]
            if module is not None:
                put(stack, module, "forward", partial(run.project, role, module.forward))

    def _enters(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.resid = args[0] if args else kwargs["hidden_states"]
        self.enters(layer, self.resid)

    def _attention_adds(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._attention[layer].whole:
            scale = self.weights.residual_scale
            self.mid = self.resid + (output if scale == 1 else output * scale)

    def _into_ffn(self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        own = self.ffn_reads(layer, given).reshape(given.shape)
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": own})

    def _ffn_adds(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        scale = self.weights.residual_scale
        self.ffn_writes(layer, (out if scale == 1 else out * scale).view(self.resid.shape))

    def _into_logits(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (self.logits_read(args[0]), *args[1:])


def _normed_together(weights: Weights) -> bool:
    """Whether one norm takes the queries, or keys, of all heads at once."""
    norms = [x for x in weights.parts.attention[0].modules() if type(x).__name__.endswith("Norm")]
    scales = [scale for norm in norms if isinstance(scale := getattr(norm, "weight", None), Tensor)]
    return any(scale.dim() == 1 and len(scale) > weights.d_head for scale in scales)


class _Attention:
    """One layer's attention module, run as often as :attr:`Reading.together` says."""

    def __init__(
        self, reading: Reading, layer: int, forward: Callable[..., Any], project_out: Callable[[Tensor], Tensor]
    ) -> None:
        self.reading, self.layer, self.forward, self._project_out = reading, layer, forward, project_out
        self._run = 0
        self._z: list[Tensor] = []
        self._made: dict[str, Tensor] = {}

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward: the last run's result, with all heads' outputs."""
        self._z, self._made = [], {}
        cache = _layer_cache(self.layer, [*args, *kwargs.values()])
        before = None if cache is None else (cache.keys, cache.values)
        for run in range(len(self.reading.together)):
            self._run = run
            if cache is not None and before is not None:
                cache.keys, cache.values = before  # each run appends its own
            result = self.forward(*args, **kwargs)
        return result

    @property
    def whole(self) -> bool:
        """Whether every head has been run."""
        return len(self._z) == len(self.reading.together)

    def project(self, role: str, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The forward of a projection."""

        def make() -> Tensor:
            if role not in self._made:
                self._made[role] = forward(x)
            return self._made[role]

        return self.reading.projected(self.layer, self._run, role, make)

    def project_out(self, x: Tensor) -> Tensor:
        """The forward of the output projection, which only the last run needs."""
        weights, reading = self.reading.weights, self.reading
        z = x.reshape(*reading.batch.tokens.shape, weights.n_heads, weights.d_head)
        self._z.append(z.index_select(-2, reading.together[self._run].to(z.device)))
        if not self.whole:
            return x.new_zeros(*x.shape[:-1], weights.d_model)
        heads = reading.in_order(self._z, 2)
        reading.heads_write(self.layer, heads)
        return self._project_out(heads.flatten(-2).reshape(x.shape))


def _layer_cache(layer: int, arguments: Sequence[Any]) -> Any:
    """Where keys and values of earlier positions stand, if there are any."""
    cache = next((x for x in arguments if isinstance(x, DynamicCache)), None)
    return None if cache is None or layer >= len(cache.layers) else cache.layers[layer]


# --- replaced edges ---------------------------------------------------------------------------------------------------


def head_changes(weights: Weights, layer: int, difference: Tensor) -> Tensor:
    """``[R, H, T, d_model]``: differences of heads' outputs ``[R, T, H, d_head]`` behind the output projection.

    Before a norm after the sub-layer, and before the factor of the residual stream.
    """
    return torch.einsum("rthe,hed->rhtd", difference, weights.W_O(layer).to(difference.dtype))


def attention_sum(weights: Weights, layer: int, z: Tensor) -> Tensor:
    """``[R, T, d_model]``: what the output projection makes of heads' outputs ``[R, T, H, d_head]``."""
    total = torch.einsum("rthe,hed->rtd", z, weights.W_O(layer))
    bias = weights.b_O(layer)
    return total if bias is None else total + bias


class ReplacedEdges(Reading):
    """A pass in which a set of edges of each row carries what other sources write.

    A destination reads the residual stream of this pass, and for each replaced edge the difference between what the
    other source writes and what the source writes in this pass (not in the clean one: a clean value is right only for
    the first destination that is replaced).

    Args:
        weights: the model.
        batch: the rows.
        replaced: ``[R, E]`` bool: the edges that are replaced in each row, in the graph's order.
        other: what stands in their place, of each row.
        start: the layer at which the pass begins.
        before: what sources of earlier layers write in this pass, of each row, where it begins behind the first.
        cost, needed: where work is counted, of each row from the layer that it would begin at by itself.
    """

    def __init__(
        self,
        weights: Weights,
        batch: Batch,
        replaced: Tensor,
        other: Written,
        start: int = 0,
        before: Written | None = None,
        cost: Cost | None = None,
        needed: Sequence[int] | None = None,
    ) -> None:
        super().__init__(weights, batch)
        self.replaced, self.other = replaced, other
        rows, positions = batch.tokens.shape
        n = self.graph.sources_before(weights.n_layers)
        dtype, device = other.embed.dtype, other.embed.device
        self._changes = torch.zeros(rows, n, positions, weights.d_model, dtype=dtype, device=device)
        self._sums: dict[int, Tensor] = {}
        self._ffn: Tensor | None = None
        self._normed = self._heads = Qkv(*[torch.empty(0)] * 3)
        self._start = start
        if before is not None:
            self._changes[:, 0] = other.embed - before.embed
            for layer in range(start):
                self._heads_changed(layer, before.z[layer])
                self._changes[:, self._ffn_source(layer)] = other.mlp[layer] - before.mlp[layer]
        if cost is not None:
            cost.forward += self._flops(needed or [start] * rows)

    def _flops(self, needed: Sequence[int]) -> int:
        """Of the sums that destinations read, beyond the ordinary pass."""
        layers = torch.tensor([*(block.edges.stop for block in self.graph.blocks())])
        total = 0
        for (positions, _), layer in zip(self.batch.spans, needed):
            first = 0 if layer == 0 else int(layers[2 * layer - 1])
            total += 2 * (self.graph.n_edges - first) * positions * self.weights.d_model
        return total

    def _ffn_source(self, layer: int) -> int:
        return self.graph.sources_before(layer + 1) - 1

    def _heads_changed(self, layer: int, z: Tensor) -> None:
        first = self.graph.sources_before(layer)
        changes = head_changes(self.weights, layer, self.other.z[layer] - z)
        if self.weights.parts.attn_post_norm[layer] is not None:
            # what the norm after attention divides by depends on the sum of all heads
            self._sums[layer] = attention_sum(self.weights, layer, z)
        elif self.weights.residual_scale != 1:
            changes = changes * self.weights.residual_scale
        self._changes[:, first : first + self.weights.n_heads] = changes

    def _shift(self, edges: Tensor, n_sources: int) -> Tensor:
        """``[R, D, T, d_model]``: what replaced edges ``[R, D, S]`` add to the residual that destinations read."""
        changes, chosen = self._changes[:, :n_sources], edges.to(self._changes.dtype)
        rows, _, positions, width = changes.shape
        if not self._sums:
            return (chosen @ changes.flatten(2)).view(rows, -1, positions, width)
        linear = chosen.clone()
        total = torch.zeros(rows, chosen.shape[1], positions, width, dtype=changes.dtype, device=changes.device)
        for layer, sums in self._sums.items():
            first = self.graph.sources_before(layer)
            own = slice(first, first + self.weights.n_heads)
            if first + self.weights.n_heads > n_sources:
                continue
            linear[:, :, own] = 0
            norm = self.weights.parts.attn_post_norm[layer].forward  # without the hooks of this pass
            changed = (chosen[:, :, own] @ changes[:, own].flatten(2)).view_as(total)
            scale = self.weights.residual_scale
            total += scale * (norm(sums[:, None] + changed) - norm(sums)[:, None])
        return total + (linear @ changes.flatten(2)).view_as(total)

    def _edges(self, first: int, n: int, n_sources: int) -> Tensor:
        return self.replaced[:, first : first + n * n_sources].view(-1, n, n_sources)

    def enters(self, layer: int, resid: Tensor) -> None:
        if layer < self._start:
            return
        if layer == 0:
            self._changes[:, 0] = self.other.embed - resid
        block = self.graph.into_heads(layer)
        shift = self._shift(self._edges(*block), block.n_sources)
        own = resid[:, None] + shift
        norm = self.weights.parts.ln1[layer]
        normed = own if norm is None else norm.forward(own)
        self._normed = Qkv(*normed.chunk(len(PARTS), dim=1))
        if not self.apart:
            self._heads = self._projected(layer)
        self._ffn = None

    def _projected(self, layer: int) -> Qkv:
        """``[R, T, H, d_head]`` each, of every head's own reading."""
        weights, biases = self.weights.qkv_weights(layer), self.weights.qkv_biases(layer)
        made = []
        for i, (part, weight) in enumerate(zip(self._normed, weights)):
            groups = part.unflatten(1, (weight.shape[1], -1))  # heads by the projection that they share
            heads = torch.einsum("rgmtd,dge->rtgme", groups, weight).flatten(2, 3)
            if biases is not None:
                heads = heads + biases[i].repeat_interleave(groups.shape[2], dim=0)
            made.append(heads)
        return Qkv(*made)

    def projected(self, layer: int, run: int, role: str, make: Callable[[], Tensor]) -> Tensor:
        if self.apart:
            weights, biases = self.weights.qkv_weights(layer), self.weights.qkv_biases(layer)
            made = [torch.einsum("rtd,dge->rtge", part[:, run], w) for part, w in zip(self._normed, weights)]
            heads = Qkv(*(x if biases is None else x + biases[i] for i, x in enumerate(made)))
        else:
            own = self.together[run].to(self.resid.device)
            heads = Qkv(self._heads.q, *(part.index_select(2, own) for part in self._heads[1:]))
        joined = self.weights.join_qkv(heads)
        return joined[_ROLES.index(role)] if len(joined) > 1 else joined[0]

    def heads_write(self, layer: int, z: Tensor) -> None:
        self._heads_changed(layer, z)

    def ffn_reads(self, layer: int, given: Tensor) -> Tensor:
        if self._ffn is None:
            block = self.graph.into_ffn(layer)
            resid = self.resid if self.graph.parallel_attn_mlp else self.mid
            own = resid + self._shift(self._edges(*block), block.n_sources)[:, 0]
            norm = self.weights.parts.ln2[layer]
            self._ffn = own if norm is None else norm.forward(own)
        return self._ffn

    def ffn_writes(self, layer: int, out: Tensor) -> None:
        self._changes[:, self._ffn_source(layer)] = self.other.mlp[layer] - out

    def logits_read(self, resid: Tensor) -> Tensor:
        block = self.graph.into_logits
        return resid + self._shift(self._edges(*block), block.n_sources)[:, 0]


# --- gradients at destinations ----------------------------------------------------------------------------------------


class OwnGradients(Reading):
    """An ordinary pass that remembers what every destination reads, so that its own gradient can be taken.

    The gradient at the residual that one destination reads is found from that at its projection, without a copy of the
    residual for each: through the projection, and back through the norm before it.

    Attributes:
        resids, mids: by layer ``[B, T, d_model]``: what attention and FFN read, before their norms.
        final: the last residual.
        z, mlp: by layer, as :class:`Written` has them.
    """

    def __init__(self, weights: Weights, batch: Batch) -> None:
        super().__init__(weights, batch)
        self.resids: list[Tensor] = []
        self.mids: list[Tensor] = []
        self.z: list[Tensor] = []
        self.mlp: list[Tensor] = []
        self.final = torch.empty(0)
        self._projections: dict[tuple[int, int, str], Tensor] = {}
        self._ffn: list[list[Tensor]] = []

    def enters(self, layer: int, resid: Tensor) -> None:
        self.resids.append(resid)
        self._ffn.append([])

    def projected(self, layer: int, run: int, role: str, make: Callable[[], Tensor]) -> Tensor:
        made = make().clone()
        self._projections[layer, run, role] = made
        return made

    def heads_write(self, layer: int, z: Tensor) -> None:
        self.z.append(z.detach())

    def ffn_reads(self, layer: int, given: Tensor) -> Tensor:
        own = given.clone()
        self._ffn[layer].append(own)
        if len(self.mids) == layer:
            self.mids.append(self.resid if self.graph.parallel_attn_mlp else self.mid)
        return own

    def ffn_writes(self, layer: int, out: Tensor) -> None:
        self.mlp.append(out.detach().clone())  # a block may write over it (Falcon)

    def logits_read(self, resid: Tensor) -> Tensor:
        self.final = resid.clone()
        return self.final

    @property
    def written(self) -> Written:
        """What the sources of the pass write."""
        return Written(self.resids[0].detach(), torch.stack(self.z), torch.stack(self.mlp))

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        """The gradients of ``value.sum()`` at what destinations read, before their norms.

        Returns:
            by layer and kind: ``"heads.3"`` ``[B, 3 H, T, d_model]`` (queries, keys, values), ``"ffn.3"`` and
            ``"logits"`` ``[B, 1, T, d_model]``.
        """
        at = [*self._projections.values(), *(x for own in self._ffn for x in own), self.final]
        found = torch.autograd.grad(value.sum(), at, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for x, g in zip(at, found)]
        projections = dict(zip(self._projections, filled))
        rest = iter(filled[len(projections) :])
        by_name = {}
        for layer in range(self.weights.n_layers):
            norms = self.weights.parts.ln1[layer], self.weights.parts.ln2[layer]
            heads = self._at_heads(layer, projections)
            by_name[f"heads.{layer}"] = through_norm(norms[0], self.resids[layer], heads)
            ffn = torch.stack([next(rest).view(self.resids[layer].shape) for _ in self._ffn[layer]]).sum(0)
            by_name[f"ffn.{layer}"] = through_norm(norms[1], self.mids[layer], ffn[:, None])
        by_name[LOGITS] = next(rest)[:, None]
        return by_name

    def _at_heads(self, layer: int, projections: Mapping[tuple[int, int, str], Tensor]) -> Tensor:
        """``[B, 3 H, T, d_model]``: gradients behind the norm before attention, by what reads there."""
        roles = [role for role in _ROLES if (layer, 0, role) in projections]
        weights = self.weights.qkv_weights(layer)
        by_run: list[list[Tensor]] = []
        for run, heads in enumerate(self.together):
            own = heads.to(self.final.device)
            split = self.weights.split_qkv(*(projections[layer, run, role] for role in roles))
            if self.apart:  # all that the projections make belongs to this run's one head
                made = [torch.einsum("btge,dge->btd", x, weight)[:, None] for x, weight in zip(split, weights)]
            else:
                mine = Qkv(split.q.index_select(2, own), split.k, split.v)
                through = Qkv(weights.q.index_select(1, own), weights.k, weights.v)
                made = [torch.einsum("btge,dge->bgtd", x, weight) for x, weight in zip(mine, through)]
            by_run.append(made)
        return torch.cat([self.in_order(parts, 1) for parts in zip(*by_run)], dim=1)


def through_norm(norm: Any, at: Tensor, gradients: Tensor) -> Tensor:
    """Gradients ``[B, D, T, d_model]`` behind a norm, taken back to what it reads at ``at`` ``[B, T, d_model]``."""
    if norm is None:
        return gradients
    with torch.enable_grad():
        read = at.detach()[:, None].expand_as(gradients).detach().requires_grad_()
        (found,) = torch.autograd.grad(norm.forward(read), read, gradients)
    return found
