"""What each level is and can do, without torch: what suites, records and boards need to know of it.

A level is a kind of thing that can be scored: components of the model, or positions of the input. Here stand its name,
the names of its components, what they can be replaced by and what can be done with them. How a level acts in a model
(shapes of scores, activations, weights) stands in :mod:`attriboard.components`, whose classes extend the facts stated
here. To add a level, state it in :data:`LEVELS` and write its class there; to add a replacement, name it below, at the
levels that take it, and write what it does in :mod:`attriboard.interventions`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from .errors import ConfigurationError

Replacement = Literal["counterfactual", "mean", "zero"]
"""What anything can be replaced by, and methods replace activations by."""
InputReplacement = Literal[Replacement, "background", "blur"]
"""What positions of the input can be replaced by; which level takes which stands in its ``replacements``."""
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
USUAL_REPLACEMENT: Replacement = REPLACEMENTS[0]


class Sizes(Protocol):
    """The numbers of a model by which its components are counted and named."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...

    @property
    def d_head(self) -> int: ...

    @property
    def d_mlp(self) -> int: ...


@dataclass(frozen=True)
class LevelFacts:
    """One level.

    Attributes:
        name: as typed on the command line and stored in records.
        axes: the names of the axes of a score tensor.
        description: one phrase.
        naming: of components: the names of one layer's, in order.
        inputs: True for positions of the input, whose scores belong to single examples; False for components.
        image: of inputs: True for positions of the image, whose scores form a grid; False for those of the text.
        replacements: what a scored thing can be replaced by; the first is the usual one.
        editable: whether its components have output weights that can be scaled.
        rewritable: whether its components can carry a rank-one change of the weights.
        prunable: whether its components can be sliced away.
        one_vector: whether a component writes one vector, its activation times a row of the output weights.
        hidden_units: whether its components are the hidden units of FFNs.
        edges: whether its components are edges of the model's graph (:mod:`attriboard.graph`).
        not_mib: why its components are neither nodes nor edges of MIB's graph; empty where they are.
    """

    name: str
    axes: tuple[str, ...]
    description: str
    naming: Callable[[Sizes, int], list[str]] | None = None
    inputs: bool = False
    image: bool = False
    replacements: tuple[InputReplacement, ...] = REPLACEMENTS
    editable: bool = False
    rewritable: bool = False
    prunable: bool = False
    one_vector: bool = False
    hidden_units: bool = False
    edges: bool = False
    not_mib: str = "MIB's nodes are attention heads and whole FFN layers"

    @property
    def mib(self) -> bool:
        """Whether its components are nodes or edges of MIB's graph."""
        return not self.not_mib

    def names(self, model: Sizes) -> list[str]:
        """Component names in row-major order of the scores, in the style of MIB: ``a3.h5``, ``m7``, ``m7.n12``.

        Raises:
            TypeError: a level of inputs, whose names depend on the example.
        """
        if self.naming is None:
            raise TypeError(f"{self.name} have no names without an example.")
        d_mlp = model.d_mlp if self.hidden_units else 0
        return list(_names(self.naming, _Counts(model.n_layers, model.n_heads, model.d_head, d_mlp)))


@dataclass(frozen=True)
class _Counts:
    """The numbers of a model by which its components are named."""

    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int


@functools.lru_cache(maxsize=16)
def _names(naming: Callable[[Sizes, int], list[str]], counts: _Counts) -> tuple[str, ...]:
    """A 7B model has 352,256 neurons, whose names take longer to write than many a method to score them."""
    return tuple(name for layer in range(counts.n_layers) for name in naming(counts, layer))


def _heads(model: Sizes, layer: int) -> list[str]:
    return [f"a{layer}.h{h}" for h in range(model.n_heads)]


def _neurons(model: Sizes, layer: int) -> list[str]:
    return [f"m{layer}.n{j}" for j in range(model.d_mlp)]


def _head_dimensions(model: Sizes, layer: int) -> list[str]:
    return [f"{head}.d{i}" for head in _heads(model, layer) for i in range(model.d_head)]


def _nodes(model: Sizes, layer: int) -> list[str]:
    return [*_heads(model, layer), f"m{layer}"]


_POSITIONS = "MIB's nodes are parts of the model, not positions of the input"

LEVELS: dict[str, LevelFacts] = {
    level.name: level
    for level in (
        LevelFacts(
            "heads",
            ("layer", "head"),
            "attention heads",
            naming=_heads,
            editable=True,
            prunable=True,
            not_mib="",
        ),
        LevelFacts(
            "neurons",
            ("layer", "neuron"),
            "FFN hidden units, the inputs of the down-projection",
            naming=_neurons,
            editable=True,
            rewritable=True,
            prunable=True,
            one_vector=True,
            hidden_units=True,
            not_mib="what MIB calls a neuron is one of the d_model output dimensions of a node, not an FFN hidden unit",
        ),
        LevelFacts(
            "attn_neurons",
            ("layer", "head", "dimension"),
            "single dimensions of a head's output",
            naming=_head_dimensions,
            one_vector=True,
            not_mib="MIB's nodes are whole heads behind their output projection, not dimensions before it",
        ),
        LevelFacts(
            "nodes",
            ("layer", "node"),
            "attention heads and whole FFN layers (the last of each row)",
            naming=_nodes,
            not_mib="",
        ),
        LevelFacts(
            "edges",
            ("edge",),
            "edges from a head, FFN or the embedding to a head's query, key or value, an FFN or the logits",
            replacements=("counterfactual",),
            edges=True,
            not_mib="",
        ),
        LevelFacts(
            "patches",
            ("patch_row", "patch_column"),
            "patches of the image, as the model sees it",
            inputs=True,
            image=True,
            replacements=(*REPLACEMENTS, "background", "blur"),
            not_mib=_POSITIONS,
        ),
        LevelFacts("tokens", ("position",), "text tokens of the prompt", inputs=True, not_mib=_POSITIONS),
    )
}


def names_where(**facts: bool) -> tuple[str, ...]:
    """The names of the levels of which all these facts hold, in order: ``names_where(inputs=False, prunable=True)``."""
    return tuple(
        level.name for level in LEVELS.values() if all(getattr(level, fact) is value for fact, value in facts.items())
    )


COMPONENTS = names_where(inputs=False)
"""The names of the levels of components of the model."""
INPUTS = names_where(inputs=True)
"""The names of the levels of positions of the input."""


def check_replacement(replacement: InputReplacement, level_name: str) -> None:
    """Refuses a replacement that a level does not have.

    Raises:
        ConfigurationError: names both.
    """
    own = LEVELS[level_name].replacements
    if replacement not in own:
        takers = [level.name for level in LEVELS.values() if replacement in level.replacements]
        raise ConfigurationError(
            f"replacement {replacement!r} is for {' and '.join(takers)}, not for {level_name}, which have "
            f"{', '.join(own)}."
        )
