"""What each level is and can do, without torch: what suites, records and boards need to know of it.

A level is a kind of thing that can be scored. The names of scored things, the shapes of scores and the places where a
level acts in a model stand in :mod:`attriboard.components`, which extends the facts stated here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Replacement = Literal["counterfactual", "mean", "zero"]
"""What components are replaced by."""
InputReplacement = Literal["counterfactual", "mean", "zero", "background", "blur"]
"""What positions of the input are replaced by; the last two are for patches."""


@dataclass(frozen=True)
class LevelFacts:
    """One level.

    Attributes:
        name: as typed on the command line and stored in records.
        axes: the names of the axes of a score tensor.
        description: one phrase.
        inputs: True for positions of the input, whose scores belong to single examples; False for components.
        replacements: what a scored thing can be replaced by; the first is the usual one.
        editable: whether its components have output weights that can be scaled.
        rewritable: whether its components can carry a rank-one change of the weights.
        prunable: whether its components can be sliced away.
        mib: whether its components are nodes of MIB's graph.
    """

    name: str
    axes: tuple[str, ...]
    description: str
    inputs: bool = False
    replacements: tuple[str, ...] = ("counterfactual", "mean", "zero")
    editable: bool = False
    rewritable: bool = False
    prunable: bool = False
    mib: bool = False


LEVELS: dict[str, LevelFacts] = {
    level.name: level
    for level in (
        LevelFacts("heads", ("layer", "head"), "attention heads", editable=True, prunable=True, mib=True),
        LevelFacts(
            "neurons",
            ("layer", "neuron"),
            "FFN hidden units, the inputs of the down-projection",
            editable=True,
            rewritable=True,
            prunable=True,
        ),
        LevelFacts("attn_neurons", ("layer", "head", "dimension"), "single dimensions of a head's output"),
        LevelFacts("nodes", ("layer", "node"), "attention heads and whole FFN layers (the last of each row)", mib=True),
        LevelFacts(
            "patches",
            ("patch_row", "patch_column"),
            "patches of the image, as the model sees it",
            inputs=True,
            replacements=("counterfactual", "mean", "zero", "background", "blur"),
        ),
        LevelFacts("tokens", ("position",), "text tokens of the prompt", inputs=True),
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
