"""What a model proves when it is loaded: that its parts are what the architecture table says.

Nothing in the table is trusted. On one batch of random tokens

- values come from the norm before attention and the value projection,
- the written-out attention, in which patterns are read, gives the same logits,
- head outputs sum to the attention output, and neuron outputs to the FFN output,
- the residual stream adds up,
- the hooked logits are those of the model without hooks,
- the final norm and unembedding reproduce them from the last residual,
- a restart from the middle is bit-identical,
- the FFN sees what attention writes, or does not in parallel blocks, and
- zeroing a head changes the last residual (of a model that was built, not every head need change the logits).
"""

from __future__ import annotations

import einops
import torch
from PIL.Image import fromarray
from torch import Tensor

from ..errors import ModelError
from ..task import IMAGE, Example
from .batch import Batch, EncodedExample, pad_rows
from .cost import Cost
from .hooks import Run, forward, model_inputs
from .names import hook_name
from .vision import Vision
from .weights import Weights

_SITES = ("resid_pre", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post")


def prove(weights: Weights, vision: Vision | None = None) -> None:
    """Shows on one batch that the parts are what the table says, and with ``vision``, how a picture enters.

    Raises:
        ModelError: names the first part that fails.
    """
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
    expected = _before_softcap(weights, plain_logits)
    # a model that was built may have nothing but rounding in its logits after tokens that no task has
    gain = weights.final_norm_weight.abs() / weights.final_norm_scale(resid)
    largest = weights.W_U.float().abs().max() * gain.max()
    rounding = torch.finfo(torch.float32).eps * float(resid.float().abs().sum(-1).max() * largest)
    _same(weights, "the final norm and unembedding", weights.unembed(resid), expected, rounding=rounding)


def _before_softcap(weights: Weights, logits: Tensor) -> Tensor:
    cap = getattr(weights.config, "final_logit_softcapping", None)
    return logits.float() if not cap else cap * torch.atanh(logits.float() / cap)


def _prove_layer(weights: Weights, layer: int, at: dict[str, Tensor], value: Tensor) -> None:
    """One layer: its activations ``at`` every site, and its values ``[B, H, T, d_head]``."""
    normed = at["resid_pre"].float()
    normed = normed if weights.architecture.rms else normed - normed.mean(-1, keepdim=True)
    normed = normed / weights.ln1_scale(layer, at["resid_pre"]) * weights.ln1_weight(layer)
    products = einops.einsum(normed, weights.W_V(layer).float(), "b t d_model, h d_model d_head -> b h t d_head")
    value = value.float()
    shift = (value - products).mean((0, 2), keepdim=True)  # the biases of the norm and of the projection
    _same(weights, f"the norm before attention and the values of layer {layer}", products + shift, value)
    heads = weights.head_outputs(layer, at["z"]).sum(-2)
    bias, gain = weights.b_O(layer), weights.attn_gain(layer, at["z"])
    if bias is not None:
        heads = heads + (bias if gain is None else bias * gain)
    _same(weights, f"the head outputs of layer {layer}", heads, at["attn_out"])
    if weights.has_neurons:
        neurons = at["post"] @ weights.W_out(layer)
        bias, gain = weights.b_out(layer), weights.mlp_gain(layer, at["post"])
        neurons = neurons if bias is None else neurons + bias
        neurons = neurons if gain is None else neurons * gain
        _same(weights, f"the neuron outputs of layer {layer}", neurons, at["mlp_out"])
    total = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
    _same(weights, f"the residual stream of layer {layer}", total, at["resid_post"])
    _same(weights, f"the mid residual of layer {layer}", at["resid_mid"], at["resid_pre"] + at["attn_out"])


def _prove_restart(weights: Weights, batch: Batch, run: Run) -> None:
    middle = weights.n_layers // 2
    again = forward(weights, batch, Cost(), start=(middle, run[hook_name("resid_pre", middle)]))
    _same(weights, f"the restart from layer {middle}", again.logits, run.logits, exact=True)


def _prove_effect(weights: Weights, batch: Batch, run: Run) -> None:
    last = hook_name("resid_post", weights.n_layers - 1)
    edits = {hook_name("z", 0): lambda x: x * (torch.arange(weights.n_heads, device=x.device) > 0)[:, None]}
    if torch.equal(forward(weights, batch, Cost(), [last], edits)[last], run[last]):
        raise ModelError(
            f"self-proof of {weights.name} failed: zeroing head 0 of layer 0 does not change its last residual."
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
