"""Removes neurons or heads for good: a smaller plain Hugging Face model that computes what the masked one does.

A removed component's rows and columns leave the weight matrices, and the configuration says the new width. Every layer
of a plain model is equally wide, so layers that keep fewer components than the widest one are filled up with
components whose weights are zero: they add exactly nothing, and cost what they cost.

**Neurons.** The projections into the FFN lose the neurons' outputs, the down-projection their inputs; its bias stays.

**Heads.** With grouped-query attention each of the ``n_kv`` key/value heads serves ``g`` query heads, the same number
in every layer. The kept query heads are laid out anew: a key/value head may stand in several places, each serving at
most ``g'`` of the query heads that read it. Of all ``g'`` the one with the fewest parameters is chosen,
``n_kv' (2 + 2 g')`` being proportional to their number, with as many places ``n_kv'`` as the neediest layer has to
have. Some configurations want the number of heads to divide ``d_model``; then ``n_kv'`` grows until it does, so a
slice may have as many heads as before.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ModelError, SkipCell
from .levels import names_where
from .model import Model
from .models.quiet import quiet

if TYPE_CHECKING:
    from .components import Level


def check_prunable(level: Level) -> None:
    """Refuses a level whose components cannot be removed from the weights.

    Raises:
        SkipCell: names the level and those that can.
    """
    if not level.prunable:
        able = " and ".join(names_where(prunable=True))
        raise SkipCell(f"{level.name} cannot be pruned; the levels that can are {able}.")


def slice_model(model: Model, keep: Tensor, level: Level) -> nn.Module:
    """A new model of the same class without the components that are not kept; the original stays as it is.

    Args:
        model: the model, of any family in :mod:`attriboard.models.architectures`.
        keep: ``[n]`` bool, in the order of the level.
        level: one that is prunable.

    Returns:
        a Hugging Face model in evaluation mode on the same device, in the same precision; what it computes is what
        the original computes with the removed components' activations set to zero.

    Raises:
        SkipCell: another level.
        ModelError: heads of a family whose head width is tied to ``d_model``.
    """
    check_prunable(level)
    kept = [torch.nonzero(row)[:, 0].tolist() for row in keep.view(model.n_layers, -1)]
    config = copy.deepcopy(model.hf.config)
    state = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    (site,) = level.sites
    {"post": _slice_neurons, "z": _slice_heads}[site](model, kept, config, state)
    with quiet():
        sliced: Any = type(model.hf).from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    sliced.generation_config = copy.deepcopy(model.hf.generation_config)
    return sliced.to(model.device).eval()


def around(model: Model, hf: nn.Module) -> Model:
    """The project's model around a slice of ``model``, with the tokenizer and settings of ``model``.

    It is not proven here: :meth:`Model.prove` asks whether the first head matters, which a head of zeros does not.
    """
    return Model(
        hf,
        model.tokenizer,
        name=f"{model.name} (sliced)",
        source=model.source,
        batch_size=model.batch_size,
        padding_side=model.padding_side,
        prove=False,
        processor=None if model.vision is None else model.vision.processor,
    )


def parameters(hf: nn.Module) -> int:
    """How many parameters a model has; tied ones count once."""
    return sum(weight.numel() for weight in hf.parameters())


def _slice_neurons(model: Model, kept: list[list[int]], config: Any, state: dict[str, Tensor]) -> None:
    a = model.architecture
    if a.mlp_down is None or a.mlp_width is None:
        raise ModelError(
            f"a plain {a.family} model with fewer neurons does not exist, since its configuration does not say how "
            f"many each FFN has; prune by masks alone."
        )
    width = max(1, *map(len, kept))
    for layer, neurons in enumerate(kept):
        padded = [*neurons, *[None] * (width - len(neurons))]
        for path in a.mlp_in:
            halves = [*padded, *[None if i is None else i + model.d_mlp for i in padded]] if a.fused_gate else padded
            _take(model, state, layer, path, halves, len(halves), outputs=True)
        _take(model, state, layer, a.mlp_down, neurons, width, outputs=False)
    setattr(config.get_text_config(), a.mlp_width, width)


def _slice_heads(model: Model, kept: list[list[int]], config: Any, state: dict[str, Tensor]) -> None:
    a = model.architecture
    if not a.free_heads or a.query is None or a.key is None:
        raise ModelError(
            f"a plain {a.family} model with fewer heads does not exist, since the family ties the width of a head to "
            f"the width of the model; prune neurons, or heads by masks alone."
        )
    text = config.get_text_config()
    text.head_dim = model.d_head

    def accepts(n_kv: int, n_heads: int) -> bool:
        text.num_key_value_heads, text.num_attention_heads = n_kv, n_heads
        try:
            text.validate_architecture()
        except ValueError:
            return False
        return True

    arranged = arrange(kept, model.n_heads, model.n_heads // model.n_kv_heads, accepts)
    text.num_key_value_heads, text.num_attention_heads = arranged.n_kv, arranged.n_kv * arranged.group
    for layer, places in enumerate(arranged.places):
        queries = [head for place in places for head in (*place.heads, *[None] * (arranged.group - len(place.heads)))]
        for path, outputs in ((a.query, True), (a.attn_out, False)):
            _take(model, state, layer, path, queries, text.num_attention_heads, outputs, model.d_head)
        for path in (a.key, a.value):
            _take(model, state, layer, path, [place.kv for place in places], arranged.n_kv, True, model.d_head)


@dataclass(frozen=True)
class Place:
    """One key/value head of the sliced model: the old one it copies, and the old query heads that read it there."""

    kv: int
    heads: tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """Where the kept query heads stand in the sliced model.

    Attributes:
        group: query heads per key/value head.
        n_kv: key/value heads of every layer; layers with fewer places are filled up with zeros.
        places: by layer, its places in use.
    """

    group: int
    n_kv: int
    places: tuple[tuple[Place, ...], ...]

    @property
    def cost(self) -> int:
        """Proportional to attention's weights: a key, a value and ``group`` queries and outputs for each place."""
        return self.n_kv * (2 + 2 * self.group)


def arrange(
    kept: Sequence[Sequence[int]],
    n_heads: int,
    group: int,
    accepts: Callable[[int, int], bool] = lambda n_kv, n_heads: True,
) -> Arrangement:
    """The arrangement with the smallest cost, of equal ones that with the fewest key/value heads (and biases).

    Args:
        kept: by layer the kept query heads, ascending.
        n_heads, group: query heads, and query heads per key/value head, of the original.
        accepts: whether a model may have so many key/value heads and query heads.
    """
    arrangements = []
    for new in range(1, group + 1):
        layers = tuple(_places(heads, group, new) for heads in kept)
        needed = max(1, *map(len, layers))
        n_kv = next((n for n in range(needed, n_heads + 1) if accepts(n, n * new)), None)
        if n_kv is not None:
            arrangements.append(Arrangement(new, n_kv, layers))
    return min(arrangements, key=lambda arranged: (arranged.cost, arranged.n_kv))


def _places(heads: Sequence[int], group: int, new_group: int) -> tuple[Place, ...]:
    places = []
    for kv in sorted({head // group for head in heads}):
        own = tuple(head for head in heads if head // group == kv)
        places += [Place(kv, own[i : i + new_group]) for i in range(0, len(own), new_group)]
    return tuple(places)


def _take(
    model: Model,
    state: dict[str, Tensor],
    layer: int,
    path: str,
    chosen: Sequence[int | None],
    width: int,
    outputs: bool,
    block: int = 1,
) -> None:
    """Makes a projection's outputs (or inputs) the chosen ones, zeros in place of None and up to ``width``.

    Outputs and inputs are counted in blocks of ``block`` numbers, which stay together.
    """
    linear = isinstance(model.blocks[layer].get_submodule(path), nn.Linear)  # GPT-2's Conv1D is the other way round
    index = torch.tensor([-1 if i is None else i for i in (*chosen, *[None] * (width - len(chosen)))])
    prefix = f"{model.architecture.layers}.{layer}.{path}"
    axes = {f"{prefix}.weight": 0 if outputs == linear else 1}
    if outputs:
        axes[f"{prefix}.bias"] = 0
    for name, axis in axes.items():
        if name in state:
            at = index.to(state[name].device)
            blocks = state[name].unflatten(axis, (-1, block)).index_select(axis, at.clamp(min=0))
            state[name] = blocks.index_fill(axis, torch.nonzero(at < 0)[:, 0], 0).flatten(axis, axis + 1)
