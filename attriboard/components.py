"""Levels: what can be scored, how it is named, and where it acts in the model.

A component is replaced by replacing its slice of one activation, and its first-order effect is a product summed
over that slice; a level knows both, so that methods and evaluation never handle shapes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .errors import SkipCell, UnknownNameError
from .model import hook_name

if TYPE_CHECKING:
    from .model import Batch, EncodedExample, Model


@dataclass(frozen=True)
class Level:
    """A kind of component.

    Attributes:
        name: "heads", "neurons", "attn_neurons", "nodes", "patches" or "tokens".
        axes: the names of the axes of a score tensor.
        sites: the activations through which the components act.
        description: one sentence.
        inputs: True for positions of the input (see :class:`InputLevel`), False for components of the model.
    """

    name: str
    axes: tuple[str, ...]
    sites: tuple[str, ...]
    description: str
    inputs: ClassVar[bool] = False

    def shape(self, model: Model) -> tuple[int, ...]:
        """The shape of a score tensor."""
        return {
            "heads": (model.n_layers, model.n_heads),
            "neurons": (model.n_layers, model.d_mlp),
            "attn_neurons": (model.n_layers, model.n_heads, model.d_head),
            "nodes": (model.n_layers, model.n_heads + 1),
        }[self.name]

    def size(self, model: Model) -> int:
        """How many components there are."""
        return int(torch.tensor(self.shape(model)).prod())

    def names(self, model: Model) -> list[str]:
        """Component names in row-major order of the scores, in the style of MIB: ``a3.h5``, ``m7``, ``m7.n12``."""
        layers, heads = range(model.n_layers), range(model.n_heads)
        if self.name == "heads":
            return [f"a{layer}.h{h}" for layer in layers for h in heads]
        if self.name == "neurons":
            return [f"m{layer}.n{j}" for layer in layers for j in range(model.d_mlp)]
        if self.name == "attn_neurons":
            return [f"a{layer}.h{h}.d{i}" for layer in layers for h in heads for i in range(model.d_head)]
        return [n for layer in layers for n in (*(f"a{layer}.h{h}" for h in heads), f"m{layer}")]

    def layer_of(self, model: Model) -> Tensor:
        """``[n]``: the layer of each component, in row-major order."""
        return torch.arange(model.n_layers).repeat_interleave(self.size(model) // model.n_layers)

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
        found: dict[str, Tensor] = {}
        for layer in torch.nonzero(per_layer.flatten(2).any(2).any(0)).flatten().tolist():
            mask = per_layer[:, layer]
            if self.name == "heads":
                found[hook_name("z", layer)] = mask[:, None, :, None]
            elif self.name == "neurons":
                found[hook_name("post", layer)] = mask[:, None, :]
            elif self.name == "attn_neurons":
                found[hook_name("z", layer)] = mask[:, None]
            else:
                if bool(mask[:, :-1].any()):
                    found[hook_name("z", layer)] = mask[:, None, :-1, None]
                if bool(mask[:, -1].any()):
                    found[hook_name("mlp_out", layer)] = mask[:, None, -1:]
        return found

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        """``[B, *shape]``: products ``[B, T, ...]`` at every activation, summed over positions and components."""

        def stacked(site: str) -> Tensor:
            return torch.stack([products[hook_name(site, layer)].sum(1) for layer in range(model.n_layers)], dim=1)

        if self.name == "neurons":
            return stacked("post")
        if self.name == "attn_neurons":
            return stacked("z")
        heads = stacked("z").sum(-1)
        if self.name == "heads":
            return heads
        return torch.cat([heads, stacked("mlp_out").sum(-1, keepdim=True)], dim=-1)


@dataclass(frozen=True)
class InputLevel(Level):
    """Positions of the input: image patches, or text tokens.

    What a level's scores look like depends on the example. Positions are counted from the first real token.
    """

    inputs: ClassVar[bool] = True

    def positions(self, model: Model, encoded: EncodedExample) -> list[int]:
        """The positions that are scored: patches in row-major order, or text tokens in order.

        Raises:
            SkipCell: patches of an example without an image.
        """
        placeholder = model.vision.placeholder if model.vision is not None and encoded.image is not None else None
        patches = [i for i, token in enumerate(encoded.tokens) if token == placeholder]
        if self.name == "tokens":
            held = set(patches)
            return [i for i in range(len(encoded.tokens)) if i not in held]
        if not patches:
            raise SkipCell("patches can be scored only where an example has an image.")
        return patches

    def example_shape(self, model: Model, encoded: EncodedExample) -> tuple[int, ...]:
        """The shape of one example's scores: the patch grid, or the number of text tokens."""
        n = len(self.positions(model, encoded))
        return model.vision.grid if self.name == "patches" and model.vision is not None else (n,)

    def example_names(self, model: Model, encoded: EncodedExample) -> list[str]:
        """Names in the order of the scores: ``p3.4`` for the patch in row 3, column 4; ``t7`` for text token 7."""
        if self.name == "tokens":
            return [f"t{i}" for i in range(len(self.positions(model, encoded)))]
        rows, columns = self.example_shape(model, encoded)
        return [f"p{row}.{column}" for row in range(rows) for column in range(columns)]

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

    def columns(self, model: Model, batch: Batch) -> Tensor:
        """``[B, T]`` bool: the batch's columns that are scored."""
        return batch.real & (batch.image_mask if self.name == "patches" else ~batch.image_mask)


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("heads", ("layer", "head"), ("z",), "attention heads"),
        Level("neurons", ("layer", "neuron"), ("post",), "FFN hidden units, the inputs of the down-projection"),
        Level("attn_neurons", ("layer", "head", "dimension"), ("z",), "single dimensions of a head's output"),
        Level(
            "nodes", ("layer", "node"), ("z", "mlp_out"), "attention heads and whole FFN layers (the last of each row)"
        ),
        InputLevel("patches", ("patch_row", "patch_column"), ("embed",), "patches of the image, as the model sees it"),
        InputLevel("tokens", ("position",), ("embed",), "text tokens of the prompt"),
    )
}

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
