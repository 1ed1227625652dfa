"""What is known of a model whose mechanism was built: which parts matter, for which examples, and why.

A folder that holds ``truth.json`` beside its weights is a ground-truth model: attribution methods can be judged there
by what is so, and not by what an intervention shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ModelError
from .levels import names_where

if TYPE_CHECKING:
    from .task import Example

FILE = "truth.json"


class Part(BaseModel):
    """A component of the mechanism.

    Attributes:
        name: as levels name it: ``a1.h2``, ``m2``, ``m2.n17``, ``a1.h2.d5``.
        role: "helps" or "hurts" the answer.
        when: by mark, the word that must stand there in an example for the part to matter; empty: in every example.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Literal["helps", "hurts"] = "helps"
    when: Mapping[str, str] = Field(default_factory=dict)

    def matters(self, example: Example) -> bool:
        """Whether the answer to an example depends on the part."""
        return all(word in _words(example, mark) for mark, word in self.when.items())


def _words(example: Example, mark: str) -> set[str]:
    return {example.prompt[start:end] for start, end in example.marks.get(mark, ())}


class ByRole(NamedTuple):
    """Component names by what they do to the answers of some examples."""

    helps: frozenset[str]
    hurts: frozenset[str]
    left_out: frozenset[str]


class Truth(BaseModel):
    """The mechanism of a model.

    Attributes:
        proof: in words, why these parts matter and nothing else does.
        levels: by level of components, the parts; an empty tuple says that nothing there matters. Of a level that is
            absent nothing is known, but for edges, which follow from head dimensions and neurons
            (:mod:`attriboard.wiring`).
        tokens: the marks whose positions the answer depends on; empty where that is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    proof: str
    levels: Mapping[str, tuple[Part, ...]]
    tokens: tuple[str, ...] = ()

    @field_validator("levels")
    @classmethod
    def _one_role(cls, levels: Mapping[str, tuple[Part, ...]]) -> Mapping[str, tuple[Part, ...]]:
        for level, parts in levels.items():
            if level not in names_where(inputs=False):
                known = ", ".join(names_where(inputs=False))
                raise ValueError(f"there is no level {level!r} of components, but {known}")
            helps, hurts = ({p.name for p in parts if p.role == role} for role in ("helps", "hurts"))
            if both := sorted(helps & hurts):
                raise ValueError(f"{both[0]} both helps and hurts")
        return levels

    def at(self, level: str, examples: Sequence[Example]) -> ByRole:
        """The parts at a level of :attr:`levels` that any of the examples needs, by role.

        Left out are those that none of them needs: they belong to the mechanism, so they are not false, and the
        examples cannot show it, so they are not true.
        """
        parts = self.levels[level]
        needed = [part for part in parts if any(part.matters(example) for example in examples)]
        helps, hurts = (frozenset(p.name for p in needed if p.role == role) for role in ("helps", "hurts"))
        return ByRole(helps, hurts, frozenset(p.name for p in parts) - helps - hurts)

    def save(self, folder: Path) -> None:
        """Writes :data:`FILE` into a model's folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_truth(folder: Path) -> Truth | None:
    """The truth beside a model's weights; None where the folder has none.

    Raises:
        ModelError: the file cannot be read, or is not a truth.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Truth.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise ModelError(f"{file} is not a truth: {place}: {reason}; mend or remove it.") from error
