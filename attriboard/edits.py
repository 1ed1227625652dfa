"""Edits of a model's weights: the output vectors of neurons, and the blocks of the output projection of heads.

An edit is described once and carried out in two ways. :func:`edited` changes the weights in place and puts them back
bit for bit. :func:`activation_edits` leaves the weights alone and gives a pass what the changed weights would give it,
with another edit in every row; it is how many edits are tried cheaply. :func:`randomized` takes from whole layers what
they have learned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import ConfigurationError, MethodError, ModelError
from .interventions import watched
from .levels import names_where
from .model import hook_name

if TYPE_CHECKING:
    from .components import Level
    from .model import Batch, Edit, EncodedExample, Model

STRENGTHS = tuple(2.0**i for i in range(-4, 5))
"""The strengths tried for a rewrite, 1/16 to 16, in units of the Frobenius norm of the selected output vectors."""


@dataclass(frozen=True, eq=False)
class WeightEdit(ABC):
    """A change of the output weights of some components.

    Attributes:
        level: one whose components have output weights of their own.
        components: ``[k]`` flat indices, each once.
    """

    level: Level
    components: Tensor

    @abstractmethod
    def changed(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """What the output weights ``[m, ...]`` of the components at the places ``chosen`` ``[m]`` become."""

    def layers(self, model: Model) -> Tensor:
        """``[k]``: the layer of each component."""
        return self.level.layer_of(model)[self.components]


@dataclass(frozen=True, eq=False)
class Scaling(WeightEdit):
    """Multiplies the output weights by ``factor``: 0 removes the components, below 1 suppresses, above 1 boosts."""

    factor: float

    def changed(self, weights: Tensor, chosen: Tensor) -> Tensor:
        return weights * self.factor


@dataclass(frozen=True, eq=False)
class Rewrite(WeightEdit):
    """Adds ``strength * u d^T``, a matrix of rank one, to the output vectors of neurons, stacked ``[k, d_model]``.

    Attributes:
        share: ``u``, ``[k]`` float32 of length 1 (0 if no selected neuron is active): how much of it each neuron takes.
        direction: ``d``, ``[d_model]`` float32 of length 1.
        strength: the length of the change.
    """

    share: Tensor
    direction: Tensor
    strength: float

    def changed(self, weights: Tensor, chosen: Tensor) -> Tensor:
        return weights + self.strength * self.share[chosen, None] * self.direction


def scale(model: Model, level: Level, components: Tensor, factor: float) -> Scaling:
    """The edit that multiplies the output weights of ``components`` ``[k]`` (flat indices) by ``factor``.

    Raises:
        MethodError: the level has no output weights of its own.
        ConfigurationError: no component, more than the level has, one that does not exist or stands there twice; or a
            factor that is not finite.
    """
    if not math.isfinite(factor):
        raise ConfigurationError(f"weights cannot be scaled by {factor}; give a finite factor, 0 to remove.")
    return Scaling(level, _checked(model, level, components), factor)


def rewrite(model: Model, examples: Sequence[EncodedExample], level: Level, neurons: Tensor) -> list[Rewrite]:
    """For each example an edit of ``neurons`` ``[k]`` (flat indices) that moves its answer to its foil.

    The change is ``strength * u d^T``: ``u = c / |c|`` with ``c`` the neurons' coefficients (``hook_post``) at the
    prompt's last token, and ``d`` of length 1 along ``gamma_F * (W_U[foil] - W_U[answer])``, centered if the final
    norm centers: the direction in which the last residual gains logit(foil) - logit(answer) fastest, the norm's divisor
    held fixed. There, the neurons' outputs then move by ``strength * |c| * d`` in total. The strength is the smallest
    of :data:`STRENGTHS`, times the Frobenius norm of the selected output vectors, that makes the foil the top token
    of this very prompt (of a choice, likelier than the answer); the largest if none does.

    Raises:
        MethodError: the level's components have no output vector each, or a norm follows the model's FFN.
        ConfigurationError: an example without a foil, or as :func:`scale`.
    """
    why_not = why_no_rewrite(model, level)
    if why_not:
        raise MethodError(why_not)
    neurons = _checked(model, level, neurons)
    for encoded in examples:
        if encoded.foil is None:
            raise ConfigurationError(
                f"a rewrite moves the answer to the foil, and the example {encoded.example.prompt!r} has none; give it "
                f"a foil."
            )
    return [edit for batch in model.batches(examples) for edit in _rewrite_batch(model, batch, level, neurons)]


def why_no_rewrite(model: Model, level: Level) -> str | None:
    """None where the level's components can be rewritten, else the reason."""
    if not level.rewritable:
        able = " and ".join(names_where(rewritable=True))
        return f"only {able} have one output vector each that can be rewritten, {level.name} have not."
    if model.follows_ffn is not None:
        return (
            f"{model.follows_ffn} follows the FFN of {model.architecture.family} models, so what is added to an output "
            f"vector does not simply add to the residual stream."
        )
    return None


def _rewrite_batch(model: Model, batch: Batch, level: Level, neurons: Tensor) -> list[Rewrite]:
    layer_of, unit_of = neurons // model.d_mlp, neurons % model.d_mlp
    rows = torch.arange(len(batch), device=model.device)
    first = int(layer_of.min())
    start = hook_name("resid_pre", first)
    units: dict[str, Tensor] = {}
    watch = {
        name: watched(units, name, lambda x: x[rows, batch.last].float())
        for name in (hook_name("post", layer) for layer in layer_of.unique().tolist())
    }
    resid = model.run(batch, [start], watch)[start]
    places = list(zip(layer_of.tolist(), unit_of.tolist()))
    coefficients = torch.stack([units[hook_name("post", layer)][:, unit] for layer, unit in places], dim=1)
    shares = coefficients / coefficients.norm(dim=1, keepdim=True).clamp(min=1e-30)
    towards = model.final_norm_weight * (model.W_U[batch.foil] - model.W_U[batch.answer]).float()
    if not model.architecture.rms:
        towards = towards - towards.mean(1, keepdim=True)
    directions = towards / towards.norm(dim=1, keepdim=True).clamp(min=1e-30)
    size = float(torch.stack([model.W_out(layer)[unit] for layer, unit in places]).float().norm())

    edits = [Rewrite(level, neurons, u, d, 0.0) for u, d in zip(shares, directions)]
    pending = list(range(len(batch)))
    for strength in STRENGTHS:
        if not pending:
            break
        for i in pending:
            edits[i] = dataclasses.replace(edits[i], strength=strength * size)
        chosen = torch.tensor(pending, device=model.device)
        part, changes = batch.rows(chosen), activation_edits(model, [edits[i] for i in pending])
        logits = model.run(part, edits=changes, start=(first, resid[chosen])).logits
        pending = [i for i, done in zip(pending, foil_wins(model, logits, part).tolist()) if not done]
    return edits


def foil_wins(model: Model, logits: Tensor, batch: Batch) -> Tensor:
    """``[B]`` bool: what :meth:`Model.correct` would say if the foil were the answer; False without a foil."""
    swapped = dataclasses.replace(batch, answer=batch.foil, foil=batch.answer)
    return model.correct(logits, swapped) & (batch.foil >= 0)


def _checked(model: Model, level: Level, components: Tensor) -> Tensor:
    if not level.editable:
        able = " and ".join(names_where(editable=True))
        raise MethodError(f"{level.name} cannot be edited; the levels that can are {able}.")
    n = level.size(model)
    if not 1 <= len(components) <= n:
        raise ConfigurationError(
            f"{len(components)} {level.name} cannot be edited in {model.name}, which has {n}; choose 1 to {n}."
        )
    if len(components.unique()) < len(components) or int(components.min()) < 0 or int(components.max()) >= n:
        raise ConfigurationError(
            f"the {level.name} to edit in {model.name} are distinct whole numbers from 0 to {n - 1}."
        )
    return components.cpu()


# --- as activations ---------------------------------------------------------------------------------------------------


def first_layer(model: Model, edits: Iterable[WeightEdit]) -> int:
    """The first layer that any of the edits changes; what enters it is what enters it without them."""
    return _touched(model, edits)[0]


def activation_edits(model: Model, edits: Sequence[WeightEdit]) -> dict[str, Edit]:
    """Edits for :meth:`Model.run` under which each row is what it would be with its own edit of the weights.

    Args:
        edits: for each row its edit; all of one level, and all scalings or all rewrites.
    """
    scalings = [edit for edit in edits if isinstance(edit, Scaling)]
    rewrites = [edit for edit in edits if isinstance(edit, Rewrite)]
    if scalings and rewrites:
        raise TypeError("the rows of one pass are all scaled or all rewritten.")
    return _scaled(model, scalings) if scalings else _rewritten(model, rewrites)


def _scaled(model: Model, edits: Sequence[Scaling]) -> dict[str, Edit]:
    level = edits[0].level
    factors = torch.ones(len(edits), level.size(model), device=model.device)
    for row, edit in zip(factors, edits):
        row[edit.components] = edit.factor
    # [R, T, H, d_head] of heads, [R, T, d_mlp] of neurons: as many axes for a component as its output weights have rows
    own_axes = level.output_weights(model, 0).dim() - 2
    per_layer = factors.view(len(edits), model.n_layers, 1, -1, *[1] * own_axes)

    def multiply(factor: Tensor) -> Edit:
        return lambda x: x * factor.to(x.dtype)

    return {hook_name(level.sites[0], layer): multiply(per_layer[:, layer]) for layer in _touched(model, edits)}


def _rewritten(model: Model, edits: Sequence[Rewrite]) -> dict[str, Edit]:
    shares = torch.zeros(len(edits), model.n_layers * model.d_mlp, device=model.device)
    for row, edit in zip(shares, edits):
        row[edit.components] = edit.share
    per_layer = shares.view(len(edits), model.n_layers, model.d_mlp)
    change = torch.stack([edit.strength * edit.direction for edit in edits])[:, None]

    def shift(layer: int) -> dict[str, Edit]:
        noise: dict[str, Tensor] = {}
        post = hook_name("post", layer)
        share = per_layer[:, layer, :, None]
        return {
            post: watched(noise, post, lambda x: x.float() @ share),
            hook_name("mlp_out", layer): lambda out: out + (noise.pop(post) * change).to(out.dtype),
        }

    return {name: edit for layer in _touched(model, edits) for name, edit in shift(layer).items()}


def _touched(model: Model, edits: Iterable[WeightEdit]) -> list[int]:
    return torch.cat([edit.layers(model) for edit in edits]).unique().tolist()


# --- in the weights ---------------------------------------------------------------------------------------------------

_being_edited: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def edited(model: Model, edit: WeightEdit) -> Iterator[None]:
    """While open, the model's weights are changed in place; they are put back bit for bit, also after an error.

    Raises:
        ModelError: the model is being edited already; or, at the end, a weight that was touched is not what it was
            (by the SHA-256 of every touched tensor).
    """
    layer_of = edit.layers(model)
    within = edit.components % (edit.level.size(model) // model.n_layers)
    layers = layer_of.unique().tolist()
    saved: dict[int, Tensor] = {}

    def put_back() -> None:
        for layer, values in saved.items():
            edit.level.output_weights(model, layer)[within[layer_of == layer]] = values

    with _restored(model, lambda: [edit.level.output_weights(model, layer) for layer in layers], put_back):
        for layer in layers:
            chosen = (layer_of == layer).nonzero()[:, 0]
            weights = edit.level.output_weights(model, layer)
            saved[layer] = weights[within[chosen]].clone()
            weights[within[chosen]] = edit.changed(saved[layer].float(), chosen).to(weights.dtype)
        yield


@contextmanager
def randomized(model: Model, layers: Sequence[int], seed: int) -> Iterator[None]:
    """While open, attention and FFN of ``layers`` are noise; then they are put back bit for bit, also after an error.

    Every weight and bias of their projections is redrawn from a normal distribution with its own mean and standard
    deviation. Norms, embeddings and the unembedding stay. What a tensor becomes depends on the seed, its name and its
    layer, not on the other layers. What they were is kept in main memory meanwhile.

    Raises:
        ModelError: as :func:`edited`.
    """
    saved: list[tuple[Tensor, Tensor]] = []

    def put_back() -> None:
        for tensor, values in saved:
            tensor.copy_(values)

    with _restored(model, lambda: [t for layer in layers for t in _projections(model, layer).values()], put_back):
        for layer in layers:
            for name, tensor in _projections(model, layer).items():
                saved.append((tensor, tensor.to("cpu", copy=True)))
                key = hashlib.sha256(f"{seed}:{layer}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
                noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
                values = tensor.float()
                tensor.copy_(values.mean() + noise * values.std(correction=0))
        yield


def _projections(model: Model, layer: int) -> dict[str, Tensor]:
    """By name, the weights and biases of a layer's linear maps: the parts with a matrix, so no norms."""
    return {
        f"{path}.{name}": parameter.detach()
        for path, module in model.blocks[layer].named_modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() > 1
        for name, parameter in module.named_parameters(recurse=False)
    }


@contextmanager
def _restored(model: Model, touched: Callable[[], list[Tensor]], put_back: Callable[[], None]) -> Iterator[None]:
    """Calls ``put_back`` at the end, and proves that the tensors ``touched`` are then what they were."""
    if model.hf in _being_edited:
        raise ModelError(f"the weights of {model.name} are being edited already; end that edit before the next.")
    before = _digest(touched())
    _being_edited.add(model.hf)
    try:
        yield
    finally:
        put_back()
        _being_edited.discard(model.hf)
        if _digest(touched()) != before:
            raise ModelError(
                f"the edited weights of {model.name} are not what they were before the edit, because something else "
                f"changed them meanwhile; load the model again."
            )


def _digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
