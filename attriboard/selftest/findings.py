"""Judging a method by the properties that it owes and declares."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from ..errors import SkipCell
from ..method import Method
from .bench import PropertyError, forget_models

# isort: off
# in this order properties are judged, and listed in docs/selftests.md
from . import owed, derivatives, sums, edges, literal, zeros, dependence, controls  # noqa: F401

# isort: on
from .properties import PROPERTIES, Property, check_names

Status = Literal["holds", "fails", "not tested"]


@dataclass(frozen=True)
class Finding:
    """Whether one method has one property.

    Attributes:
        detail: of a failure the sentence with the numbers, of what was not tested the reason.
    """

    method: str
    property: str
    status: Status
    detail: str = ""


def properties_of(method: type[Method]) -> list[Property]:
    """The properties that every method owes, then those that this one declares.

    Raises:
        UnknownNameError: it declares one that does not exist, or that it owes anyway; carries near names.
    """
    check_names(method)
    owed_by_all = [one for one in PROPERTIES.values() if one.universal]
    return [*owed_by_all, *(PROPERTIES[name] for name in method.properties)]


def examine(method: type[Method]) -> list[Finding]:
    """Judges the properties that every method owes, and those that this one declares.

    What a method that changes models has left behind is not what the next one is judged on.

    Raises:
        UnknownNameError: as :func:`properties_of`.
    """
    findings = [judge(method, one) for one in properties_of(method)]
    if any(finding.property == "model_untouched" and finding.status == "fails" for finding in findings):
        forget_models()
    return findings


def judge(method: type[Method], one: Property) -> Finding:
    """Whether a method has one property, at every level and on every tiny model that it speaks of."""
    finding = functools.partial(Finding, method.name, one.name)
    cases = one.cases(method)
    if not cases:
        return finding(
            "fails",
            f"{method.name} declares {one.name}, which speaks of {', '.join(one.levels)}, and scores "
            f"{', '.join(method.levels)}.",
        )
    tested, reasons = 0, []
    for case in cases:
        try:
            one.check(case)
            tested += 1
        except SkipCell as reason:
            reasons.append(str(reason))
        except PropertyError as failure:
            return finding("fails", str(failure))
        except Exception as error:  # whatever a method raises is its failure, not the end of the others' tests
            return finding("fails", f"{case} raised {type(error).__name__}: {error}")
    return finding("holds") if tested else finding("not tested", reasons[0])
