"""The weights of a model under TransformerLens' names, and the sizes that follow from them.

Shapes: ``H`` query heads, ``d_head``, ``d_model``, ``d_mlp`` FFN hidden units, ``V`` vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import einops
import torch
from torch import Tensor, nn

from ..errors import ModelError, SkipCell
from ..graph import Graph
from .architectures import Architecture, architecture_of
from .cost import Sizes, sizes_of
from .parts import Parts, find_parts, in_out, submodule
from .products import product

UNBOUNDED = 10**9
"""Longer than any prompt."""
_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _check_plain(hf: nn.Module, name: str) -> None:
    """Refuses weights that are not what their modules multiply by.

    Raises:
        ModelError: they are quantized, or have adapters beside them.
    """
    for path, parameter in hf.named_parameters():
        if parameter.dtype not in _FLOATING or type(parameter.data) is not Tensor:
            raise ModelError(
                f"{name} has quantized weights ({path} is {_kind(parameter)}), which are not supported; load the "
                f"original ones, or dequantize them."
            )
    for path, module in hf.named_modules():
        if hasattr(module, "base_layer"):
            raise ModelError(
                f"{name} has an adapter that is not merged ({path} is {type(module).__name__}); merge it into the "
                f"weights with PEFT's merge_and_unload()."
            )


def _kind(parameter: Tensor) -> str:
    return str(parameter.dtype).removeprefix("torch.") + (
        "" if type(parameter.data) is Tensor else f", {type(parameter.data).__name__}"
    )


class Qkv(NamedTuple):
    """Of queries, keys and values; the latter two may have fewer heads than the first."""

    q: Tensor
    k: Tensor
    v: Tensor


class Weights:
    """A model as far as its weights go.

    Args:
        hf: a Hugging Face causal language model, or vision-language model, of a family in
            :mod:`attriboard.models.architectures`.
        name: for messages.

    Attributes:
        config: of the language model.
        architecture: the entry of the table that says where its parts are.
        parts: the modules by role.
        n_layers, n_heads, n_kv_heads, d_model, d_head, d_vocab: sizes.
        residual_scale: what the outputs of attention and FFN are multiplied by before they are added.
        logit_scale: what the unembedding's output is multiplied by.

    Raises:
        ModelError: the family is unknown, or has no module where the table looks for one; the weights are quantized, or
            have adapters that are not merged.
    """

    def __init__(self, hf: nn.Module, name: str) -> None:
        _check_plain(hf, name)
        self.hf: Any = hf.eval().requires_grad_(False)
        self.name = name
        whole: Any = self.hf.config
        self.config: Any = whole.get_text_config()
        self.architecture: Architecture = architecture_of(whole)
        self.parts: Parts = find_parts(hf, self.architecture, name)
        for projection in (*self.parts.attn_out, *self.parts.value, *(self.parts.mlp_down if self.has_neurons else ())):
            in_out(projection)
        self.n_layers = len(self.parts.blocks)
        self.n_heads: int = self.config.num_attention_heads
        self.d_model: int = self.parts.embed.weight.shape[1]
        self.d_head: int = in_out(self.parts.attn_out[0]).shape[0] // self.n_heads
        columns = in_out(self.parts.value[0]).shape[1] // self.d_head
        self.n_kv_heads: int = columns if self.architecture.fused is None else (columns - self.n_heads) // 2
        self.residual_scale: float = self.architecture.residual_scale(self.config)
        self.logit_scale: float = self.architecture.logit_scale(self.config)
        self.d_vocab: int = self.W_U.shape[0]

    @property
    def blocks(self) -> list[Any]:
        """The modules of the blocks, first to last."""
        return self.parts.blocks

    @property
    def has_neurons(self) -> bool:
        """Whether every FFN is one layer of hidden units, and no mixture of experts."""
        return self.architecture.mlp_down is not None

    @property
    def follows_ffn(self) -> str | None:
        """What stands between neurons' output vectors and the residual stream; None where nothing does."""
        if self.architecture.mlp_post_norm is not None:
            return "a norm"
        return None if self.residual_scale == 1 else "a factor"

    @property
    def d_mlp(self) -> int:
        """FFN hidden units.

        Raises:
            SkipCell: the FFNs are mixtures of experts.
        """
        return in_out(self._mlp_down(0)).shape[0]

    def _mlp_down(self, layer: int) -> Any:
        if not self.has_neurons:
            raise SkipCell(
                f"{self.name} ({self.architecture.family}) has no neurons that are the same at every position, since "
                f"its FFNs are mixtures of experts; choose heads, attn_neurons, nodes or tokens."
            )
        return self.parts.mlp_down[layer]

    @property
    def device(self) -> torch.device:
        return self.parts.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.embed.weight.dtype

    @property
    def low_precision(self) -> bool:
        """Whether numbers have fewer digits than float32, so that logits are computed apart (see :meth:`logits`)."""
        return self.dtype not in (torch.float32, torch.float64)

    @functools.cached_property
    def length_dependent(self) -> list[Any]:
        """The modules of rotary embeddings whose frequencies depend on how long a prompt is (longrope, dynamic)."""

        def depends(module: nn.Module) -> bool:
            kinds = getattr(module, "rope_type", "")
            kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
            return any(kind == "longrope" or "dynamic" in str(kind) for kind in kinds)

        return [module for module in self.hf.modules() if depends(module)]

    @functools.cached_property
    def tuple_blocks(self) -> bool:
        """Whether a block returns a tuple whose first part is the residual, which versions of transformers change."""
        seen: list[bool] = []
        handle = self.blocks[0].register_forward_hook(lambda module, args, out: seen.append(isinstance(out, tuple)))
        try:
            with torch.no_grad():
                self.hf(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    @property
    def tolerance(self) -> float:
        """Two ways to compute one thing may differ by this share of its largest value; more is a mistake."""
        return 0.1 if self.low_precision else 1e-3

    @property
    def max_length(self) -> int:
        """The longest prompt the model takes, in tokens; :data:`UNBOUNDED` where its configuration does not say."""
        return int(getattr(self.config, "max_position_embeddings", 0) or UNBOUNDED)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """SHA-256 over every parameter's name, type, shape and bytes, as loaded (so it differs between precisions)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.hf.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def sizes(self) -> Sizes:
        """What a forward pass multiplies, for counting work."""
        unembedding = self.hf.get_output_embeddings().weight
        return sizes_of(self.blocks, self.n_heads * self.d_head, unembedding, self._expert_entries())

    def _expert_entries(self) -> list[int]:
        """By layer, the entries of the experts' matrices that are multiplied at one position."""
        path, used = self.architecture.experts, self.architecture.experts_per_token
        entries = []
        for block in self.blocks:
            try:
                experts = submodule(block, path) if path else nn.Module()
            except AttributeError:  # a layer with one FFN for all positions
                experts = nn.Module()
            matrices = [weight for weight in experts.parameters() if weight.dim() == 3]
            share = getattr(self.config, used) if used else None
            entries.append(sum(weight[0].numel() * (share or len(weight)) for weight in matrices))
        return entries

    @functools.cached_property
    def has_position_embeddings(self) -> bool:
        """Whether something beside the token's embedding is added before the first block (GPT-2, OPT)."""
        path = self.architecture.layers.rpartition(".")[0]
        around = submodule(self.hf, path) if path else self.hf
        return any(isinstance(x, nn.Embedding) and x is not self.parts.embed for x in around.children())

    @functools.cached_property
    def graph(self) -> Graph:
        """What writes into the residual stream and what reads it."""
        parallel = self.architecture.has_parallel_blocks(self.config)
        return Graph(self.n_layers, self.n_heads, parallel, self.d_model)

    # --- projections ------------------------------------------------------------------------------------------------

    def W_O(self, layer: int) -> Tensor:
        """``[H, d_head, d_model]``: each head's block of the output projection."""
        return einops.rearrange(
            in_out(self.parts.attn_out[layer]), "(head d_head) d_model -> head d_head d_model", head=self.n_heads
        )

    def b_O(self, layer: int) -> Tensor | None:
        return self.parts.attn_out[layer].bias

    def W_in(self, layer: int) -> Tensor:
        """``[d_model, n]``: what the FFN reads by: of a gated one the gate and what it multiplies, side by side.

        SkipCell in mixtures of experts, as :attr:`d_mlp`.
        """
        self._mlp_down(layer)
        return torch.cat([in_out(module) for module in self.parts.mlp_reads[layer]], dim=1)

    def W_out(self, layer: int) -> Tensor:
        """``[d_mlp, d_model]``: each neuron's output vector; SkipCell in mixtures of experts, as :attr:`d_mlp`."""
        return in_out(self._mlp_down(layer))

    def b_out(self, layer: int) -> Tensor | None:
        bias: Tensor | None = self._mlp_down(layer).bias
        return bias

    def W_Q(self, layer: int) -> Tensor:
        """``[H, d_model, d_head]``: query projections."""
        return self._per_head(self.qkv_weights(layer).q)

    def W_K(self, layer: int) -> Tensor:
        """``[H, d_model, d_head]``: key projections, expanded so that every query head has its own."""
        return self._per_head(self.qkv_weights(layer).k)

    def W_V(self, layer: int) -> Tensor:
        """``[H, d_model, d_head]``: value projections, expanded so that every query head has its own."""
        return self._per_head(self.qkv_weights(layer).v)

    def _per_head(self, weight: Tensor) -> Tensor:
        heads = einops.rearrange(weight, "d_model head d_head -> head d_model d_head")
        return heads.repeat_interleave(self.n_heads // heads.shape[0], dim=0)

    def qkv_weights(self, layer: int) -> Qkv:
        """``[d_model, n, d_head]`` each: the projections of the ``n`` heads that there are of each kind."""
        return self._of_modules(layer, in_out)

    def qkv_biases(self, layer: int) -> Qkv | None:
        """``[n, d_head]`` each; None where projections have no bias."""
        if self.parts.value[layer].bias is None:
            return None
        return self._of_modules(layer, lambda module: module.bias)

    def _of_modules(self, layer: int, read: Callable[[Any], Tensor]) -> Qkv:
        query, key, value = (getattr(self.parts, name)[layer] for name in ("query", "key", "value"))
        return self.split_qkv(*(read(module) for module in (query, key, value) if module is not None))

    def split_qkv(self, *made: Tensor) -> Qkv:
        """``[..., n, d_head]`` each, of what the projections make.

        Args:
            made: ``[..., columns]``: of the one projection that makes all, or of those for queries, keys and values.
        """
        if self.architecture.fused is None:
            return Qkv(*(columns.unflatten(-1, (-1, self.d_head)) for columns in made))
        (all_columns,) = made
        heads = all_columns.unflatten(-1, (-1, self.d_head))
        if self.architecture.fused == "in_turn":
            return Qkv(*heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=-2))
        groups = heads.unflatten(-2, (self.n_kv_heads, -1))
        return Qkv(groups[..., :-2, :].flatten(-3, -2), groups[..., -2, :], groups[..., -1, :])

    def join_qkv(self, heads: Qkv) -> tuple[Tensor, ...]:
        """What :meth:`split_qkv` divides: what the one projection makes, or each of the three."""
        if self.architecture.fused is None:
            return tuple(part.flatten(-2) for part in heads)
        if self.architecture.fused == "in_turn":
            return (torch.cat(heads, dim=-2).flatten(-2),)
        queries = heads.q.unflatten(-2, (self.n_kv_heads, -1))
        return (torch.cat([queries, heads.k.unsqueeze(-2), heads.v.unsqueeze(-2)], dim=-2).flatten(-3),)

    @property
    def W_E(self) -> Tensor:
        """``[V, d_model]``: the token embedding, before what the model multiplies it by (Gemma)."""
        weight: Tensor = self.parts.embed.weight
        return weight

    @property
    def W_U(self) -> Tensor:
        """``[V, d_model]``: the unembedding, with what its output is multiplied by."""
        weight: Tensor = self.hf.get_output_embeddings().weight
        return weight if self.logit_scale == 1 else weight * self.logit_scale

    @property
    def b_U(self) -> Tensor | None:
        bias: Tensor | None = self.hf.get_output_embeddings().bias
        return bias if bias is None or self.logit_scale == 1 else bias * self.logit_scale

    # --- norms ------------------------------------------------------------------------------------------------------

    def ln1_weight(self, layer: int) -> Tensor:
        """``[d_model]``: what the norm before attention multiplies by; ones where there is none."""
        return self._norm_weight(self.parts.ln1[layer])

    def ln2_weight(self, layer: int) -> Tensor:
        """``[d_model]``: what the norm before the FFN multiplies by; ones where there is none."""
        return self._norm_weight(self.parts.ln2[layer])

    def attn_post_norm_weight(self, layer: int) -> Tensor:
        """``[d_model]``: what the norm after attention multiplies by; ones where there is none."""
        return self._norm_weight(self.parts.attn_post_norm[layer])

    def mlp_post_norm_weight(self, layer: int) -> Tensor:
        """``[d_model]``: what the norm after the FFN multiplies by; ones where there is none."""
        return self._norm_weight(self.parts.mlp_post_norm[layer])

    def ln1_scale(self, layer: int, resid: Tensor) -> Tensor:
        """``[..., 1]``: the divisor of the norm before attention at ``resid`` ``[..., d_model]``; 1 without a norm."""
        norm = self.parts.ln1[layer]
        return torch.ones_like(resid[..., :1], dtype=torch.float32) if norm is None else self._norm_scale(norm, resid)

    @property
    def final_norm_weight(self) -> Tensor:
        return self._norm_weight(self.parts.final_norm)

    @property
    def final_norm_bias(self) -> Tensor | None:
        return getattr(self.parts.final_norm, "bias", None)

    def final_norm_scale(self, resid: Tensor) -> Tensor:
        """``[..., 1]``: the final norm's divisor at ``resid`` ``[..., d_model]``, with the checkpoint's own epsilon."""
        return self._norm_scale(self.parts.final_norm, resid)

    def _norm_weight(self, norm: Any) -> Tensor:
        weight: Tensor | None = getattr(norm, "weight", None)
        if weight is None:  # no norm, or one that only divides
            return torch.ones(self.d_model, device=self.device)
        weight = weight.float()
        return 1.0 + weight if self.architecture.unit_offset else weight

    def _norm_scale(self, norm: Any, x: Tensor) -> Tensor:
        x = x.float()
        epsilon: float = (
            getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or self.architecture.norm_epsilon
        )
        if not self.architecture.rms:
            x = x - x.mean(-1, keepdim=True)
        return (x.square().mean(-1, keepdim=True) + epsilon).sqrt()

    # --- from activations to the residual stream and the logits -----------------------------------------------------

    def attn_gain(self, layer: int, z: Tensor) -> Tensor | None:
        """``[..., d_model]``: the factor by which attention's output reaches the residual stream.

        None but for models that multiply what is added to the residual stream by a number (Granite), and for those
        with a norm after the sub-layer (Gemma 2 and 3): there the norm's scale is computed from the head outputs ``z``
        ``[..., H, d_head]`` and held fixed, which makes the norm linear.
        """
        if self.parts.attn_post_norm[layer] is None:
            return self._plain_gain(z.shape[:-2])
        raw = einops.einsum(z, self.W_O(layer), "... head d_head, head d_head d_model -> ... d_model")
        return self._gain(self.parts.attn_post_norm[layer], raw, self.b_O(layer))

    def mlp_gain(self, layer: int, post: Tensor) -> Tensor | None:
        """``[..., d_model]``: as :meth:`attn_gain`, for the FFN with coefficients ``post`` ``[..., d_mlp]``."""
        if self.parts.mlp_post_norm[layer] is None:
            return self._plain_gain(post.shape[:-1])
        return self._gain(self.parts.mlp_post_norm[layer], post @ self.W_out(layer), self.b_out(layer))

    def _plain_gain(self, leading: Sequence[int]) -> Tensor | None:
        if self.residual_scale == 1:
            return None
        return torch.full((*leading, self.d_model), self.residual_scale, device=self.device)

    def _gain(self, norm: Any, raw: Tensor, bias: Tensor | None) -> Tensor:
        raw = raw if bias is None else raw + bias
        gain = self._norm_weight(norm) / self._norm_scale(norm, raw)
        return gain if self.residual_scale == 1 else gain * self.residual_scale

    def head_outputs(self, layer: int, z: Tensor) -> Tensor:
        """``[..., H, d_model]``: what each head adds to the residual stream, from ``z`` ``[..., H, d_head]``.

        The output projection's bias belongs to no head.
        """
        out = einops.einsum(z, self.W_O(layer), "... head d_head, head d_head d_model -> ... head d_model")
        gain = self.attn_gain(layer, z)
        return out if gain is None else out * gain.unsqueeze(-2).to(out.dtype)

    def unembed(self, resid: Tensor) -> Tensor:
        """``[..., V]`` float32: final norm and unembedding of ``resid`` ``[..., d_model]``, before any soft cap."""
        x = resid.float()
        if not self.architecture.rms:
            x = x - x.mean(-1, keepdim=True)
        x = x / self.final_norm_scale(resid) * self.final_norm_weight
        x = x if self.final_norm_bias is None else x + self.final_norm_bias.float()
        logits = product(x, self.W_U.T)
        return logits if self.b_U is None else logits + self.b_U.float()

    def logits(self, resid: Tensor) -> Tensor:
        """``[..., V]`` float32: the model's logits after the last residual ``[..., d_model]``.

        Differences of logits in bfloat16 have three digits; most effects of one head are smaller.
        """
        logits = self.unembed(resid)
        cap: float | None = getattr(self.config, "final_logit_softcapping", None)
        return logits if not cap else cap * torch.tanh(logits / cap)
