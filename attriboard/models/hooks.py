"""Forward passes in which activations are read and replaced, by PyTorch's own hooks on plain Hugging Face modules.

Everything that is put on a model for a pass (hooks, attention written out, blocks that are skipped) is gone when the
pass is over, also when it fails.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from .attention import Between, put, put_between, watch_inline, write_out
from .batch import Batch, Past, sent
from .cost import Cost
from .names import EMBED, hook_name, site_and_layer
from .weights import Weights

Edit = Callable[[Tensor], Tensor]
"""From an activation to its replacement, of the same shape."""


class Run:
    """One forward pass: the logits ``[B, V]`` at each row's last token, and the captured activations by name.

    ``past`` are the keys and values of every position, if they were to be remembered.
    """

    def __init__(
        self,
        weights: Weights,
        batch: Batch,
        logits: Tensor,
        raw: Mapping[str, Tensor],
        cost: Cost,
        flops: int,
        past: Past = (),
    ) -> None:
        self.logits, self.past = logits, past
        self._weights, self._batch, self._raw, self._cost, self._flops = weights, batch, raw, cost, flops

    def __getitem__(self, name: str) -> Tensor:
        return _shaped(self._weights, name, self._raw[name], self._batch)

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def stack(self, site: str, layers: Iterable[int] | None = None) -> Tensor:
        """One site at several layers, stacked on a new second axis: ``[B, L, ...]``."""
        layers = range(self._weights.n_layers) if layers is None else layers
        return torch.stack([self[hook_name(site, layer)] for layer in layers], dim=1)

    def gradients(self, value: Tensor, names: Sequence[str], keep_graph: bool = False) -> dict[str, Tensor]:
        """Gradients of ``value.sum()`` at captured activations, shaped like them.

        Rows do not interact, so the gradient of the sum is each row's own gradient.
        """
        raw = [self._raw[name] for name in names]
        # an activation that cannot reach the value (at a last layer's early positions, say) has gradient zero
        grads = torch.autograd.grad(value.sum(), raw, retain_graph=keep_graph, allow_unused=True)
        self._cost.back(self._flops)
        return {
            name: _shaped(self._weights, name, torch.zeros_like(x) if g is None else g, self._batch)
            for name, x, g in zip(names, raw, grads)
        }


def forward(
    weights: Weights,
    batch: Batch,
    cost: Cost,
    capture: Iterable[str] = (),
    edits: Mapping[str, Edit] | None = None,
    start: tuple[int, Tensor] | None = None,
    gradients: bool = False,
    needed: Sequence[int] | None = None,
    remember: bool = False,
    also: Callable[[ExitStack], None] | None = None,
) -> Run:
    """One forward pass, counted in ``cost``; the other arguments are those of :meth:`attriboard.model.Model.run`.

    Raises:
        KeyError: an activation name that does not exist, or an edit of one that can only be read.
    """
    first = 0 if start is None else start[0]
    tuples = start is not None and weights.tuple_blocks  # found out before any hook is in place
    flops = weights.sizes.rows(batch, first if needed is None else needed)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad() if gradients else torch.no_grad())
        stack.enter_context(images_in(weights, batch, gradients))
        stack.enter_context(_rows_alone(weights, [sum(span) for span in batch.spans]))
        taps = _Taps(weights, batch, capture, edits or {}, stack)
        taps.install()
        if also is not None:
            also(stack)
        if start is not None:
            stack.enter_context(_restart(weights, *start, gradients, tuples))
        inputs: dict[str, Any] = dict(model_inputs(weights, batch), use_cache=remember)
        cache = DynamicCache()
        if batch.past or remember:
            for layer, (key, value) in enumerate(batch.past):
                cache.update(key, value, layer)
            inputs[_cache_argument(weights)] = cache
        logits = _last_logits(weights, batch, inputs)
    cost.forward += flops
    past = tuple((layer.keys, layer.values) for layer in cache.layers) if remember else ()
    return Run(weights, batch, logits, taps.seen, cost, flops, past)


def _last_logits(weights: Weights, batch: Batch, inputs: dict[str, Any]) -> Tensor:
    """``[B, V]`` at each row's last token; which those are is known on the host, so that no device is waited for."""
    ends = sorted(set(batch.ends))
    at_the_end = ends == [batch.tokens.shape[1] - 1]
    rows = torch.arange(len(batch), device=batch.last.device)
    if weights.low_precision:
        resid = _last_residual(weights, inputs)
        return weights.logits(resid[:, -1] if at_the_end else resid[rows, batch.last])
    if at_the_end:
        found: Tensor = weights.hf(**inputs, logits_to_keep=1).logits[:, 0]
        return found
    kept, at = torch.tensor(ends), torch.tensor([ends.index(end) for end in batch.ends])
    found = weights.hf(**inputs, logits_to_keep=sent(kept, rows.device)).logits
    return found[rows, sent(at, rows.device)]


def keys_and_values(weights: Weights, batch: Batch, logits: bool) -> tuple[Past, Tensor]:
    """Per layer what later positions attend to, and the logits ``[B, n, V]`` at the last column; ``n`` is 1 or 0."""
    cache = DynamicCache()
    width = batch.tokens.shape[1]
    inputs = {**model_inputs(weights, batch), _cache_argument(weights): cache, "use_cache": True}
    lengths = [sum(span) for span in batch.spans]
    with torch.no_grad(), images_in(weights, batch), _rows_alone(weights, lengths):
        if logits and weights.low_precision:
            found = weights.logits(_last_residual(weights, inputs)[:, -1:])
        else:
            kept = torch.arange(width - logits, width, device=batch.tokens.device)
            found = weights.hf(**inputs, logits_to_keep=kept).logits
    return tuple((layer.keys, layer.values) for layer in cache.layers), found


@torch.no_grad()
def every_logit(weights: Weights, tokens: Tensor, mask: Tensor) -> Tensor:
    """``[B, T, V]`` float32 (float64 of a model in float64): the logits after every token of rows ``[B, T]``.

    Args:
        tokens: padded at the right.
        mask: 0 at padding.
    """
    inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    with _rows_alone(weights, mask.sum(1).tolist()):
        if weights.low_precision:
            return weights.logits(_last_residual(weights, inputs))
        logits: Tensor = weights.hf(**inputs).logits
        return logits


def _last_residual(weights: Weights, inputs: dict[str, Any]) -> Tensor:
    """``[B, T, d_model]``: what enters the final norm in a pass that makes no logits."""
    seen: list[Tensor] = []
    handle = weights.parts.final_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        weights.hf(**inputs, logits_to_keep=torch.arange(0, device=weights.device))
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _rows_alone(weights: Weights, lengths: Sequence[int]) -> Iterator[None]:
    """While open, rotary embeddings that depend on a prompt's length (longrope) take every row's own.

    The module takes them from the longest row of the batch, and for a shared prefix from the prefix alone.

    Args:
        lengths: by row, of the whole prompt, without padding.
    """

    def by_row(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> tuple[Tensor, ...]:
        call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        x, positions = call.pop("x"), call.pop("position_ids").expand(len(lengths), -1)
        rows = []
        for row, length in enumerate(lengths):
            end = positions.new_full((1, 1), length - 1)  # as if the row's last token were there
            rows.append(module.forward(x[row : row + 1], torch.cat([positions[row : row + 1], end], 1), **call))
        return tuple(torch.cat([part[:, :-1] for part in parts]) for parts in zip(*rows))

    with ExitStack() as stack:
        for rotary in weights.length_dependent if lengths else ():
            stack.callback(rotary.register_forward_hook(by_row, with_kwargs=True).remove)
        yield


def model_inputs(weights: Weights, batch: Batch) -> dict[str, Tensor]:
    """A batch as the Hugging Face model takes it."""
    inputs = {"input_ids": batch.tokens, "attention_mask": batch.mask}
    if "position_ids" in _arguments(type(weights.hf).forward):
        inputs["position_ids"] = batch.positions if batch.axes is None else batch.axes.permute(2, 0, 1)
    if weights.architecture.bidirectional == "images" and batch.images is not None:
        inputs["token_type_ids"] = batch.image_mask.long()
    if weights.architecture.bidirectional == "prompt" and not batch.past:
        inputs["token_type_ids"] = torch.zeros_like(batch.tokens)
    return inputs


def _cache_argument(weights: Weights) -> str:
    """What the model calls the keys and values of earlier positions: ``cache`` since transformers 5.24."""
    return "cache" if "cache" in _arguments(type(weights.hf).forward) else "past_key_values"


@functools.cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def images_in(weights: Weights, batch: Batch, gradients: bool = False) -> Iterator[None]:
    """While open, image features stand in place of the placeholders' embeddings.

    With gradients, the embeddings become leaves that need them, so that every later activation is in the graph.
    """
    if not gradients and batch.images is None:
        yield
        return

    def put(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.detach().requires_grad_() if gradients else output
        if batch.images is None:
            return output
        return output.masked_scatter(batch.image_mask[..., None], batch.images.to(output.dtype))

    handle = weights.parts.embed.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _shaped(weights: Weights, name: str, raw: Tensor, batch: Batch) -> Tensor:
    """An activation as the modules pass it on, in the shape that its name promises."""
    site, _ = site_and_layer(name)
    if site in ("pattern", "v"):
        return raw
    shape = batch.tokens.shape
    return raw.view(*shape, weights.n_heads, weights.d_head) if site == "z" else raw.view(*shape, -1)


class _Taps:
    """Where one pass is read and changed.

    Args:
        weights: the model.
        batch: the rows.
        capture: names of activations to keep.
        edits: by name what replaces an activation, before it is kept.
        stack: removes everything that :meth:`install` puts on the model.

    Attributes:
        seen: the activations kept, by name, as the modules pass them on.
    """

    def __init__(
        self, weights: Weights, batch: Batch, capture: Iterable[str], edits: Mapping[str, Edit], stack: ExitStack
    ) -> None:
        self.weights, self.batch, self.stack = weights, batch, stack
        self.capture, self.edits = set(capture), edits
        self.seen: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Registers the hooks that the pass needs."""
        self.stack.callback(self._remove)
        wanted = {*self.capture, *self.edits}
        by_layer: dict[int, set[str]] = {}
        for name in wanted:
            site, layer = site_and_layer(name)
            if layer >= self.weights.n_layers:
                raise KeyError(f"{name!r}: {self.weights.name} has layers 0 to {self.weights.n_layers - 1}.")
            by_layer.setdefault(layer, set()).add(site)
        if EMBED in wanted:
            self._on_output(self.weights.parts.embed, EMBED)
        for layer, sites in by_layer.items():
            self._install_layer(layer, sites)
        self._install_attention({layer: sites & {"pattern", "v"} for layer, sites in by_layer.items()})

    def _install_layer(self, layer: int, sites: set[str]) -> None:
        parts = self.weights.parts
        attn_end, scale = parts.attn_end[layer], self.weights.residual_scale
        if sites & {"act", "post"} and not self.weights.has_neurons:
            raise KeyError(f"{self.weights.name} has no FFN coefficients, since its FFNs are mixtures of experts.")
        down = parts.mlp_down[layer]
        if "resid_pre" in sites:
            self._on_input(parts.blocks[layer], hook_name("resid_pre", layer))
        if "z" in sites:
            self._on_input(parts.attn_out[layer], hook_name("z", layer))
        if "act" in sites:
            name = hook_name("act", layer)
            if name in self.edits:
                raise KeyError(f"{name!r} can be read and not replaced.")
            if parts.mlp_act[layer] is None:
                self._on_input(down, name)
            else:
                self._on_output(parts.mlp_act[layer], name)
        if "post" in sites:
            self._on_input(down, hook_name("post", layer))
        if "attn_out" in sites:
            self._on_output(attn_end, hook_name("attn_out", layer), scale)
        if "resid_mid" in sites:
            self._on_sum(parts.blocks[layer], attn_end, hook_name("resid_mid", layer), scale)
        if "mlp_out" in sites:
            self._on_output(parts.mlp_end[layer], hook_name("mlp_out", layer), scale)
        if "resid_post" in sites:
            self._on_output(parts.blocks[layer], hook_name("resid_post", layer))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _pass_through(self, name: str, x: Tensor) -> Tensor:
        """An activation after its edit, kept if it is to be captured."""
        if name in self.edits:
            edited = self.edits[name](_shaped(self.weights, name, x, self.batch))
            x = edited.to(x.dtype).reshape(x.shape)
        if name in self.capture:
            self.seen[name] = x
        return x

    def _before(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_pre_hook(function, with_kwargs=True))

    def _after(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_hook(function))

    def _on_input(self, module: nn.Module, name: str) -> None:
        seen = self.seen

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        def pre_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._pass_through(name, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._pass_through(name, kwargs["hidden_states"])}

        self._before(module, pre_hook if name in self.edits else look)

    def _on_output(self, module: nn.Module, name: str, scale: float = 1.0) -> None:
        """What a module returns, times ``scale`` where the model multiplies by it only later."""

        def through(x: Tensor) -> Tensor:
            if scale == 1:
                after = self._pass_through(name, x)
                return after.clone() if self.weights.architecture.adds_in_place else after
            scaled = x * scale
            after = self._pass_through(name, scaled)
            return after / scale if after is not scaled or after.requires_grad else x

        def post_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (through(output[0]), *output[1:])
            return through(output)

        seen, only_seen = self.seen, scale == 1 and not self.weights.architecture.adds_in_place

        def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        self._after(module, look if only_seen and name not in self.edits else post_hook)

    def _on_sum(self, block: nn.Module, attn_end: nn.Module, name: str, scale: float) -> None:
        """The residual after attention, which is no module's output: what enters the block and what attention adds.

        Attention adds ``scale`` times the output of its last module.
        """
        entered: list[Tensor] = []

        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])

        def replace_sum(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            pre = entered.pop()
            before = pre + (output if scale == 1 else output * scale)
            after = self._pass_through(name, before)
            # with gradients on, the captured sum itself must lie on the way to the output
            if after is before and not after.requires_grad:
                return None
            return after - pre if scale == 1 else (after - pre) / scale

        self._before(block, remember)
        self._after(attn_end, replace_sum)

    def _install_attention(self, sites: Mapping[int, set[str]]) -> None:
        """Switches attention to the written-out form where any layer's pattern or values are wanted."""
        if not any(sites.values()):
            return

        def between(layer: int) -> Between:
            def inner(pattern: Tensor, value: Tensor) -> Tensor:
                wanted = sites.get(layer, set())
                if "v" in wanted:
                    self._pass_through(hook_name("v", layer), value)
                return self._pass_through(hook_name("pattern", layer), pattern) if "pattern" in wanted else pattern

            return inner

        for layer, attention in enumerate(self.weights.parts.attention):
            put_between(self.stack, attention, between(layer))
        if self.weights.architecture.inline_attention:
            watch_inline(self.stack, self.weights.parts.attention)
        else:
            write_out(self.stack, self.weights.config)


@contextmanager
def _restart(weights: Weights, layer: int, resid: Tensor, gradients: bool, tuples: bool) -> Iterator[None]:
    """Blocks before ``layer`` do nothing and the last of them returns ``resid``."""
    resid = resid.detach().requires_grad_() if gradients else resid
    blocks = weights.parts.blocks

    def output(x: Tensor) -> Any:
        return (x, None) if tuples else x

    def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return output(hidden_states)

    def resume(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return output(resid)

    with ExitStack() as stack:
        if layer == 0:
            handle = blocks[0].register_forward_pre_hook(
                lambda module, args, kwargs: (
                    ((resid, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": resid})
                ),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        for i in range(layer):
            put(stack, blocks[i], "forward", resume if i == layer - 1 else skip)
        yield
