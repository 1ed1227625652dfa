"""What a property is, and the registry of properties.

A property is one function of a :class:`~attriboard.selftest.bench.Case` whose docstring states the mathematics and the
tolerance. Some are owed by every method; the others are declared by the methods whose definition implies them
(:attr:`Method.properties <attriboard.method.Method.properties>`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..components import LEVELS
from ..errors import check_name
from ..method import Method
from .bench import SEEING, TEXT, Case

Check = Callable[[Case], None]


@dataclass(frozen=True)
class Property:
    """What a definition can imply.

    Attributes:
        check: raises :class:`PropertyError` where the property does not hold.
        levels: at which it can be judged, each by itself; empty if the method is judged as a whole.
        families: the tiny models it is judged on; empty for those that fit the method and the level.
        universal: owed by every method.
    """

    check: Check
    levels: tuple[str, ...]
    families: tuple[str, ...]
    universal: bool

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def meaning(self) -> str:
        """The docstring in one line."""
        return " ".join((self.check.__doc__ or "").split())

    def cases(self, method: type[Method]) -> list[Case]:
        levels = [level for level in method.levels if level in self.levels] if self.levels else method.levels[:1]
        cases = []
        for level in levels:
            fitting = SEEING if method.modality == "vision" or LEVELS[level].image else TEXT
            cases += [Case(method, level, family) for family in self.families or fitting]
        return cases


PROPERTIES: dict[str, Property] = {}
"""By name, in the order in which they are judged and listed."""


def register(
    *levels: str, whole: bool = False, families: tuple[str, ...] = (), universal: bool = False
) -> Callable[[Check], Check]:
    """Registers a property under the name of its function; without levels it is judged at all, or once if ``whole``."""

    def add(check: Check) -> Check:
        judged = () if whole else levels or tuple(LEVELS)
        PROPERTIES[check.__name__] = Property(check, judged, families, universal)
        return check

    return add


def check_names(method: type[Method]) -> None:
    """Refuses a method that declares a property that does not exist, or one that it has anyway.

    Raises:
        UnknownNameError: carries near names.
    """
    declarable = [name for name, one in PROPERTIES.items() if not one.universal]
    for name in method.properties:
        way_out = "Every method has that one without declaring it." if name in PROPERTIES else ""
        check_name(f"property of method {method.name!r}:", name, declarable, way_out)
