"""Levels: what can be scored, and where it acts in the model.

A component is replaced by replacing its slice of one activation, and its first-order effect is a product summed
over that slice; a level knows both, so that methods and evaluation never handle shapes of their own. What a level is
called and can do is stated in :mod:`attriboard.levels`; its class here adds what needs a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from . import levels
from .errors import SkipCell, UnknownNameError
from .model import hook_name

if TYPE_CHECKING:
    from .model import Batch, EncodedExample, Model
    from .task import Task


@dataclass(frozen=True)
class Level(levels.LevelFacts):
    """A kind of component.

    A new one states ``sites``, ``shape``, ``masks`` and ``reduce``; the rest follows, or goes with a fact, as output
    weights go with ``editable`` and ``one_vector``.

    Attributes:
        sites: the activations through which the components act; none where they are no parts of activations.
        base: the residual that what the components write is added to.
    """

    sites: ClassVar[tuple[str, ...]] = ()
    base: ClassVar[str] = ""

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of a score tensor; the first axis is the layer."""
        raise NotImplementedError(f"{self.name} have no shape of scores.")

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        """One layer's component masks as activation masks: what is to be replaced, by site.

        Args:
            chosen: ``[R, *shape[1:]]`` bool.

        Returns:
            masks that broadcast against the activation of ``R`` rows; sites with nothing to replace may be left out.
        """
        raise NotImplementedError(f"{self.name} say no activations.")

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        """``[B, *shape]``: products ``[B, T, ...]`` at every activation, summed over positions and components."""
        raise NotImplementedError(f"{self.name} sum up no activations.")

    def output_weights(self, model: Model, layer: int) -> Tensor:
        """A view of the weights through which a layer's components write, by component: ``[n, ..., d_model]``."""
        raise NotImplementedError(f"{self.name} have no output weights of their own.")

    def gain(self, model: Model, layer: int, activation: Tensor) -> Tensor | None:
        """The factor of a norm after the sub-layer, its scale fixed by the activation; None where there is none."""
        raise NotImplementedError(f"{self.name} have no output of their own.")

    def columns_of(self, sizes: levels.Sizes) -> list[tuple[str, slice]]:
        """The definition that self-tests judge by: of each of a layer's components, its activation and columns there.

        Activations are rows of numbers here, the heads' outputs one after the other.

        Raises:
            SkipCell: a component of this level acts through more than one activation.
        """
        raise SkipCell(f"there is no literal judge of {self.name}.")

    def size(self, model: Model) -> int:
        """How many components there are."""
        return int(torch.tensor(self.shape(model)).prod())

    def layer_of(self, model: Model) -> Tensor:
        """``[n]``: the layer of each component, in row-major order."""
        return torch.arange(model.n_layers).repeat_interleave(self.size(model) // model.n_layers)

    def touched(self, model: Model, masks: Tensor) -> Tensor:
        """``[R, L]`` bool: the layers of which any component is chosen by ``masks`` ``[R, n]``."""
        return masks.view(len(masks), model.n_layers, -1).any(2)

    def hooks(self, model: Model) -> list[str]:
        """The names of every activation through which the components act."""
        return [hook_name(site, layer) for layer in range(model.n_layers) for site in self.sites]

    def slices(self, model: Model, masks: Tensor) -> dict[str, Tensor]:
        """Component masks as activation masks.

        Args:
            masks: ``[R, n]`` bool, True where the component is to be replaced.

        Returns:
            by activation name a bool mask that broadcasts against the activation of ``R`` rows; activations with
            nothing to replace are left out.
        """
        per_layer = masks.view(len(masks), *self.shape(model))
        touched = masks.view(len(masks), model.n_layers, -1).any(2).any(0)
        return {
            hook_name(site, layer): mask
            for layer in torch.nonzero(touched).flatten().tolist()
            for site, mask in self.masks(per_layer[:, layer]).items()
        }


def summed(model: Model, products: Mapping[str, Tensor], site: str) -> Tensor:
    """``[B, L, ...]``: products ``[B, T, ...]`` at one site of every layer, summed over positions."""
    return torch.stack([products[hook_name(site, layer)].sum(1) for layer in range(model.n_layers)], dim=1)


class Heads(Level):
    """Attention heads, before the output projection."""

    sites = ("z",)
    base = "resid_pre"

    def shape(self, model: Model) -> tuple[int, ...]:
        return (model.n_layers, model.n_heads)

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        return {"z": chosen[:, None, :, None]}

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        return summed(model, products, "z").sum(-1)

    def output_weights(self, model: Model, layer: int) -> Tensor:
        """``[H, d_head, d_model]``."""
        return model.W_O(layer)

    def gain(self, model: Model, layer: int, activation: Tensor) -> Tensor | None:
        return model.attn_gain(layer, activation)

    def columns_of(self, sizes: levels.Sizes) -> list[tuple[str, slice]]:
        return [("z", slice(h * sizes.d_head, (h + 1) * sizes.d_head)) for h in range(sizes.n_heads)]


class Neurons(Level):
    """Hidden units of FFNs, before the down-projection."""

    sites = ("post",)
    base = "resid_mid"

    def shape(self, model: Model) -> tuple[int, ...]:
        return (model.n_layers, model.d_mlp)

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        return {"post": chosen[:, None, :]}

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        return summed(model, products, "post")

    def output_weights(self, model: Model, layer: int) -> Tensor:
        """``[d_mlp, d_model]``."""
        return model.W_out(layer)

    def gain(self, model: Model, layer: int, activation: Tensor) -> Tensor | None:
        return model.mlp_gain(layer, activation)

    def columns_of(self, sizes: levels.Sizes) -> list[tuple[str, slice]]:
        return [("post", slice(j, j + 1)) for j in range(sizes.d_mlp)]


class HeadDimensions(Level):
    """Single dimensions of heads, before the output projection."""

    sites = ("z",)
    base = "resid_pre"

    def shape(self, model: Model) -> tuple[int, ...]:
        return (model.n_layers, model.n_heads, model.d_head)

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        return {"z": chosen[:, None]}

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        return summed(model, products, "z")

    def output_weights(self, model: Model, layer: int) -> Tensor:
        """``[H * d_head, d_model]``."""
        return model.W_O(layer).flatten(0, 1)

    def gain(self, model: Model, layer: int, activation: Tensor) -> Tensor | None:
        return model.attn_gain(layer, activation)

    def columns_of(self, sizes: levels.Sizes) -> list[tuple[str, slice]]:
        return [("z", slice(i, i + 1)) for i in range(sizes.n_heads * sizes.d_head)]


class Nodes(Level):
    """Attention heads, and the outputs of whole FFN layers."""

    sites = ("z", "mlp_out")

    def shape(self, model: Model) -> tuple[int, ...]:
        return (model.n_layers, model.n_heads + 1)

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        by_site = {}
        if bool(chosen[:, :-1].any()):
            by_site["z"] = chosen[:, None, :-1, None]
        if bool(chosen[:, -1].any()):
            by_site["mlp_out"] = chosen[:, None, -1:]
        return by_site

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        heads = summed(model, products, "z").sum(-1)
        return torch.cat([heads, summed(model, products, "mlp_out").sum(-1, keepdim=True)], dim=-1)

    def columns_of(self, sizes: levels.Sizes) -> list[tuple[str, slice]]:
        heads = [("z", slice(h * sizes.d_head, (h + 1) * sizes.d_head)) for h in range(sizes.n_heads)]
        return [*heads, ("mlp_out", slice(None))]


class Edges(Level):
    """Edges of the model's graph: what one source writes, as one destination reads it (:mod:`attriboard.graph`).

    They are no slices of activations, so that they say no sites; they are replaced by
    :class:`attriboard.models.edges.ReplacedEdges`.
    """

    def shape(self, model: Model) -> tuple[int, ...]:
        """``[E]``, by destination, those of one destination by source."""
        return (model.graph.n_edges,)

    def names(self, model: levels.Sizes) -> list[str]:
        """As MIB writes them: ``input->a0.h1<q>``, ``a3.h5->m4``, ``m7->logits``."""
        return list(cast("Model", model).graph.edge_names)

    def layer_of(self, model: Model) -> Tensor:
        """``[E]``: the layer that reads; the logits count as read by the last."""
        return torch.tensor(model.graph.edge_layers)

    def touched(self, model: Model, masks: Tensor) -> Tensor:
        graph, layers = model.graph, range(model.n_layers)
        ends = [graph.into_ffn(layer).edges.stop for layer in layers[:-1]]
        return torch.stack([part.any(1) for part in masks.tensor_split(ends, dim=1)], dim=1)


class InputLevel(Level, ABC):
    """Positions of the input: image patches, or text tokens.

    What a level's scores look like depends on the example. Positions are counted from the first real token.
    """

    sites = ("embed",)

    @abstractmethod
    def positions(self, model: Model, encoded: EncodedExample) -> list[int]:
        """The positions that are scored: patches in row-major order, or text tokens in order.

        Raises:
            SkipCell: patches of an example without an image.
        """

    @abstractmethod
    def example_names(self, model: Model, encoded: EncodedExample) -> list[str]:
        """Names in the order of the scores: ``p3.4`` for the patch in row 3, column 4; ``t7`` for text token 7."""

    @abstractmethod
    def columns(self, model: Model, batch: Batch) -> Tensor:
        """``[B, T]`` bool: the batch's columns that are scored."""

    @abstractmethod
    def labels(self, task: Task) -> tuple[str, ...]:
        """The names of what a task marks on these positions: its marks, or its regions."""

    @abstractmethod
    def coverage(self, model: Model, encoded: EncodedExample) -> dict[str, list[float]]:
        """By mark or region of an example, ``[n]``: the share of each position that it covers."""

    def grid(self, model: Model) -> tuple[int, int] | None:
        """(rows, columns) of the positions; None where they stand in a row."""
        return None

    def pieces(self, model: Model, encoded: EncodedExample) -> list[str]:
        """The positions' tokens as text; empty where they are none."""
        return []

    def example_shape(self, model: Model, encoded: EncodedExample) -> tuple[int, ...]:
        """The shape of one example's scores: the patch grid, or the number of text tokens."""
        n = len(self.positions(model, encoded))
        return self.grid(model) or (n,)

    def take(self, model: Model, batch: Batch, values: Tensor) -> list[Tensor]:
        """Each example's scores from one value per column: ``[B, T]`` to a list of ``example_shape``."""
        first = model.first_position(batch).tolist()
        taken = []
        for row, start, encoded in zip(values, first, batch.examples):
            at = torch.tensor(self.positions(model, encoded), device=row.device) + start
            taken.append(row[at].view(self.example_shape(model, encoded)))
        return taken

    def place(self, model: Model, batch: Batch, values: Sequence[Tensor]) -> Tensor:
        """``[B, T]`` float32: each example's values, one per position of the level, in their columns; 0 elsewhere.

        What :meth:`take` undoes.
        """
        placed = torch.zeros(batch.tokens.shape, device=batch.tokens.device)
        first = model.first_position(batch).tolist()
        for row, start, encoded, own in zip(placed, first, batch.examples, values):
            row[torch.tensor(self.positions(model, encoded)) + start] = own.flatten().to(row)
        return placed


def _placeholders(model: Model, encoded: EncodedExample) -> list[int]:
    """The positions at which image features stand."""
    placeholder = model.vision.placeholder if model.vision is not None and encoded.image is not None else None
    return [i for i, token in enumerate(encoded.tokens) if token == placeholder]


class Patches(InputLevel):
    """Patches of the image: the positions at which its features stand."""

    def positions(self, model: Model, encoded: EncodedExample) -> list[int]:
        patches = _placeholders(model, encoded)
        if not patches:
            raise SkipCell("patches can be scored only where an example has an image.")
        return patches

    def example_names(self, model: Model, encoded: EncodedExample) -> list[str]:
        rows, columns = self.example_shape(model, encoded)
        return [f"p{row}.{column}" for row in range(rows) for column in range(columns)]

    def columns(self, model: Model, batch: Batch) -> Tensor:
        return batch.real & batch.image_mask

    def labels(self, task: Task) -> tuple[str, ...]:
        return task.regions

    def coverage(self, model: Model, encoded: EncodedExample) -> dict[str, list[float]]:
        return {name: model.patch_coverage(encoded, name).flatten().tolist() for name in encoded.example.regions}

    def grid(self, model: Model) -> tuple[int, int] | None:
        return None if model.vision is None else model.vision.grid


class Tokens(InputLevel):
    """Tokens of the text."""

    def positions(self, model: Model, encoded: EncodedExample) -> list[int]:
        patches = set(_placeholders(model, encoded))
        return [i for i in range(len(encoded.tokens)) if i not in patches]

    def example_names(self, model: Model, encoded: EncodedExample) -> list[str]:
        return [f"t{i}" for i in range(len(self.positions(model, encoded)))]

    def columns(self, model: Model, batch: Batch) -> Tensor:
        return batch.real & ~batch.image_mask

    def labels(self, task: Task) -> tuple[str, ...]:
        return task.marks

    def coverage(self, model: Model, encoded: EncodedExample) -> dict[str, list[float]]:
        marked = {name: set(model.mark_positions(encoded, name)) for name in encoded.example.marks}
        positions = self.positions(model, encoded)
        return {name: [float(i in inside) for i in positions] for name, inside in marked.items()}

    def pieces(self, model: Model, encoded: EncodedExample) -> list[str]:
        return [model.tokenizer.decode([encoded.tokens[i]]) for i in self.positions(model, encoded)]


_CLASSES: dict[str, type[Level]] = {
    "heads": Heads,
    "neurons": Neurons,
    "attn_neurons": HeadDimensions,
    "nodes": Nodes,
    "edges": Edges,
    "patches": Patches,
    "tokens": Tokens,
}

LEVELS: dict[str, Level] = {name: _CLASSES[name](**vars(facts)) for name, facts in levels.LEVELS.items()}
"""By name, in the order in which they are stated."""
COMPONENTS = {name: level for name, level in LEVELS.items() if not level.inputs}
"""The levels of components of the model."""
INPUTS = {name: level for name, level in LEVELS.items() if level.inputs}
"""The levels of positions of the input."""


def get_level(name: str) -> Level:
    """The level of that name.

    Raises:
        UnknownNameError: there is none; the message carries near names.
    """
    if name not in LEVELS:
        raise UnknownNameError("level", name, LEVELS)
    return LEVELS[name]
