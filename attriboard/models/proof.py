"""What a model proves when it is loaded: that its parts are what the architecture table says.

Nothing in the table is trusted. On one batch of random tokens

- values come from the norm before attention and the value projection,
- the written-out attention, in which patterns are read, gives the same logits,
- head outputs sum to the attention output, and neuron outputs to the FFN output,
- the residual stream adds up,
- the hooked logits are those of the model without hooks,
- the final norm and unembedding reproduce them from the last residual,
- a restart from the middle is bit-identical,
- the FFN sees what attention writes, or does not in parallel blocks,
- zeroing a head of every layer leaves the sum of the others, and what that changes reaches the last residual,
- a row is the same beside a longer one as by itself, up to the longest prompt that the model takes (on the side of
  padding where this is so).

Whether the keys of a prefix depend on what follows is found out, too; where they do, prefixes are not shared. The model
and its modules are left as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import einops
import torch
from PIL.Image import fromarray
from torch import Tensor

from ..errors import ModelError
from ..task import IMAGE, Example
from .batch import Batch, EncodedExample, columns_behind, leading_columns, pad_rows
from .cost import Cost
from .hooks import Edit, Run, forward, keys_and_values, model_inputs
from .names import hook_name
from .vision import Vision
from .weights import UNBOUNDED, Weights

_SITES = ("resid_pre", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")


class Proven(NamedTuple):
    """How rows may be run so that each is as if it were run alone.

    Attributes:
        padding_side: "left" or "right". A model whose user replaced its masks may not mask padding at the left.
        prefixes: whether the keys of a prefix may be computed once; not where they depend on what follows.
    """

    padding_side: str
    prefixes: bool


def prove(weights: Weights, vision: Vision | None = None, padding_side: str = "left") -> Proven:
    """Shows on one batch that the parts are what the table says, and with ``vision``, how a picture enters.

    Args:
        weights: the model.
        vision: of a vision-language model.
        padding_side: which is tried first.

    Raises:
        ModelError: names the first part that fails, or weights that are not in memory.
    """
    for path, tensor in weights.hf.state_dict().items():
        if tensor.is_meta:
            raise ModelError(
                f"{weights.name} is not whole in memory ({path} is offloaded); load it on one device, without a "
                f"device map or offloading."
            )
    layers = range(weights.n_layers)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, weights.d_vocab, (2, min(6, weights.max_length)), generator=generator).tolist()
    examples = [EncodedExample(Example("", ""), tuple(row), 0, None, None) for row in tokens]
    batch = pad_rows(tokens, examples, device=weights.device)
    with torch.no_grad():
        plain = weights.hf(**model_inputs(weights, batch), use_cache=False)
    sites = [site for site in _SITES if site != "post" or weights.has_neurons]
    run = forward(weights, batch, Cost(), [hook_name(site, layer) for site in sites for layer in layers])
    for name in (hook_name(site, layer) for layer in layers for site in sites):
        if name not in run:
            raise ModelError(
                f"self-proof of {weights.name} ({weights.architecture.family}) failed: the module that makes {name} is "
                f"never called; this variant of the family computes it in another way."
            )
    values = forward(weights, batch, Cost(), [hook_name("v", layer) for layer in layers])
    plain_logits = plain.logits[torch.arange(len(batch), device=weights.device), batch.last]
    _prove_logits(weights, batch, run, plain_logits)
    _same(weights, "the logits with attention written out", values.logits, plain_logits)
    for layer in layers:
        at = {site: run[hook_name(site, layer)] for site in sites}
        _prove_layer(weights, layer, at, values[hook_name("v", layer)])
    _prove_restart(weights, batch, run)
    _prove_effect(weights, batch, run)
    _prove_order(weights, batch, run)
    if vision is not None:
        _prove_vision(weights, vision)
    return _prove_rows(weights, tokens, padding_side)


def _same(weights: Weights, part: str, a: Tensor, b: Tensor, exact: bool = False, rounding: float = 0.0) -> None:
    """Raises ModelError unless two ways to compute one thing agree: exactly if asked for, else up to rounding."""
    a, b = a.float(), b.float()
    scale = float(b.abs().max()) + 1e-9
    worst = max(0.0, float((a - b).abs().max()) - rounding) / scale
    if not worst <= (0.0 if exact else weights.tolerance):
        raise ModelError(
            f"self-proof of {weights.name} ({weights.architecture.family}) failed at {part}: off by {worst:.2g} of "
            f"its largest value; its modules do not do what the architecture table says."
        )


def _prove_logits(weights: Weights, batch: Batch, run: Run, plain_logits: Tensor) -> None:
    rows = torch.arange(len(batch), device=weights.device)
    _same(weights, "the hooked logits", run.logits, plain_logits)
    resid = run[hook_name("resid_post", weights.n_layers - 1)][rows, batch.last]
    # a model that was built may have nothing but rounding in its logits after tokens that no task has
    gain = weights.final_norm_weight.abs() / weights.final_norm_scale(resid)
    largest = weights.W_U.float().abs().max() * gain.max()
    rounding = torch.finfo(torch.float32).eps * float(resid.float().abs().sum(-1).max() * largest)
    _same(weights, "the final norm and unembedding", weights.logits(resid), plain_logits, rounding=rounding)


def _prove_layer(weights: Weights, layer: int, at: dict[str, Tensor], value: Tensor) -> None:
    """One layer: its activations ``at`` every site, and its values ``[B, H, T, d_head]``."""
    normed = at["resid_pre"].float()
    normed = normed if weights.architecture.rms else normed - normed.mean(-1, keepdim=True)
    normed = normed / weights.ln1_scale(layer, at["resid_pre"]) * weights.ln1_weight(layer)
    products = einops.einsum(normed, weights.W_V(layer).float(), "b t d_model, h d_model d_head -> b h t d_head")
    value = value.float()
    shift = (value - products).mean((0, 2), keepdim=True)  # the biases of the norm and of the projection
    _same(weights, f"the norm before attention and the values of layer {layer}", products + shift, value)
    _same(weights, f"the head outputs of layer {layer}", _attn_out(weights, layer, at["z"]), at["attn_out"])
    if weights.has_neurons:
        neurons = at["post"] @ weights.W_out(layer)
        bias, gain = weights.b_out(layer), weights.mlp_gain(layer, at["post"])
        neurons = neurons if bias is None else neurons + bias
        neurons = neurons if gain is None else neurons * gain
        _same(weights, f"the neuron outputs of layer {layer}", neurons, at["mlp_out"])
    total = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
    _same(weights, f"the residual stream of layer {layer}", total, at["resid_post"])
    _same(weights, f"the mid residual of layer {layer}", at["resid_mid"], at["resid_pre"] + at["attn_out"])


def _attn_out(weights: Weights, layer: int, z: Tensor) -> Tensor:
    """``[B, T, d_model]``: what head outputs ``z`` and the bias add up to."""
    heads = weights.head_outputs(layer, z).sum(-2)
    bias, gain = weights.b_O(layer), weights.attn_gain(layer, z)
    return heads if bias is None else heads + (bias if gain is None else bias * gain)


def _prove_restart(weights: Weights, batch: Batch, run: Run) -> None:
    middle = weights.n_layers // 2
    again = forward(weights, batch, Cost(), start=(middle, run[hook_name("resid_pre", middle)]))
    _same(weights, f"the restart from layer {middle}", again.logits, run.logits, exact=True)


def _prove_effect(weights: Weights, batch: Batch, run: Run) -> None:
    """Zeroing one head of every layer leaves the sum of the others, and what that changes reaches the last residual.

    Which head does not matter: one that does nothing (of a pruned model, say) changes nothing, and that is right.
    """
    layers = range(weights.n_layers)
    last = hook_name("resid_post", weights.n_layers - 1)

    def without(head: int) -> Edit:
        return lambda z: z * (torch.arange(weights.n_heads, device=z.device) != head)[:, None]

    edits = {hook_name("z", layer): without(layer % weights.n_heads) for layer in layers}
    names = [hook_name(site, layer) for site in ("z", "attn_out") for layer in layers]
    edited = forward(weights, batch, Cost(), [*names, last], edits)
    for layer in layers:
        z, out = (edited[hook_name(site, layer)] for site in ("z", "attn_out"))
        _same(weights, f"the heads of layer {layer} without one of them", _attn_out(weights, layer, z), out)
    first = hook_name("attn_out", 0)
    if not torch.equal(edited[first], run[first]) and torch.equal(edited[last], run[last]):
        raise ModelError(
            f"self-proof of {weights.name} failed: what zeroing a head of layer 0 changes does not reach its last "
            f"residual."
        )


def _prove_order(weights: Weights, batch: Batch, run: Run) -> None:
    """The FFN sees what the heads of its block write, or does not, as the table says."""
    ramp = torch.linspace(-1, 1, weights.d_model, device=weights.device)

    def reacts_to(site: str) -> bool:
        name = hook_name("mlp_out", 0)
        again = forward(weights, batch, Cost(), [name], {hook_name(site, 0): lambda x: x + ramp.to(x.dtype)})
        return not torch.equal(again[name], run[name])

    parallel = weights.architecture.has_parallel_blocks(weights.config)
    # of a model that was built, an FFN may do nothing at all
    if reacts_to("attn_out") if parallel else not reacts_to("attn_out") and reacts_to("resid_pre"):
        raise ModelError(
            f"self-proof of {weights.name} ({weights.architecture.family}) failed: the FFN of layer 0 "
            f"{'sees' if parallel else 'does not see'} what attention writes, and the architecture table says that "
            f"blocks are {'parallel' if parallel else 'sequential'}."
        )


def _prove_rows(weights: Weights, tokens: list[list[int]], padding_side: str) -> Proven:
    """Finds how a row is the same in every batch, and whether what stands in a prompt depends on what follows.

    The long row ends at the last position that the model takes: what a position means may depend on the length.

    Raises:
        ModelError: rows are not the same on either side of padding.
    """
    long, short = tokens[0], tokens[1][: max(1, len(tokens[1]) // 3)]
    end = len(long) if weights.max_length == UNBOUNDED else weights.max_length
    lengths = (end, len(short))
    last = hook_name("resid_post", weights.n_layers - 1)
    single = [_ending(weights, [row], [length]) for row, length in zip((long, short), lengths)]
    alone = [forward(weights, batch, Cost(), [last])[last][0, -1] for batch in single]

    def prove_side(side: str) -> None:
        both = _ending(weights, [long, short], lengths, side)
        together = forward(weights, both, Cost(), [last])[last]
        for row, own in enumerate(alone):
            _same(weights, "a row beside another row", together[row, both.last[row]], own)

    try:
        prove_side(padding_side)
    except ModelError as error:
        padding_side = {"left": "right", "right": "left"}[padding_side]
        try:
            prove_side(padding_side)
        except ModelError:
            raise error from None
    return Proven(padding_side, _prefix_holds(weights, single[0], alone[0]))


def _prefix_holds(weights: Weights, batch: Batch, alone: Tensor) -> bool:
    """Whether the last residual of the one row is the same behind the keys and values of all tokens but the last."""
    last, n = hook_name("resid_post", weights.n_layers - 1), batch.tokens.shape[1] - 1
    if n < 1:
        return False
    try:
        past, _ = keys_and_values(weights, leading_columns(batch, n), logits=False)
        behind = forward(weights, columns_behind(batch, n, past), Cost(), [last])
        _same(weights, "what follows a prefix", behind[last][0, -1], alone)
    except Exception:  # a block whose forward was replaced may take no keys of a prefix at all, in its own way
        return False
    return True


def _ending(weights: Weights, rows: list[list[int]], lengths: Sequence[int], side: str = "left") -> Batch:
    """Rows of tokens, the last one of each where a prompt of this length ends."""
    examples = [EncodedExample(Example("", ""), tuple(row), 0, None, None) for row in rows]
    batch = pad_rows(rows, examples, padding_side=side, device=weights.device)
    positions = batch.positions.clone()
    positions[torch.arange(len(rows)), batch.last] = torch.tensor(lengths, device=weights.device) - 1
    return replace(batch, positions=positions, spans=tuple((length, 0) for length in lengths))


def _prove_vision(weights: Weights, vision: Vision) -> None:
    """Features in place of placeholders are what the whole model does with a picture, each where its patch lies."""
    noise = torch.randint(0, 256, (40, 56, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    picture = fromarray(noise.numpy())
    inputs = vision.inputs(f"{IMAGE}\na", picture)
    with torch.no_grad():
        features = vision.features(inputs)
        plain_logits = weights.hf(**inputs, use_cache=False).logits[:, -1]
    ids = tuple(inputs["input_ids"][0].tolist())
    encoded = EncodedExample(Example("", "", image=picture), ids, 0, None, None, features)
    batch = pad_rows(
        [ids], [encoded], [features], placeholder=vision.placeholder, grid=vision.turned, device=weights.device
    )
    _same(weights, "the image features", forward(weights, batch, Cost()).logits, plain_logits)
    vision.prove()
