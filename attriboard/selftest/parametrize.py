"""Properties as tests in the suite of whoever wrote a method: one pytest test for every property."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..method import Method
from .bench import PropertyError, forget_models
from .findings import judge, properties_of
from .properties import Property

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class PropertyCheck:
    """What a parametrized test calls with the method."""

    property: Property
    _last: ClassVar[type[Method] | None] = None
    """The method judged last: what one has done to the tiny models is not what another is judged on."""

    def __call__(self, method: type[Method]) -> None:
        """Judges the method.

        Raises:
            PropertyError: it does not have the property; the message has the numbers. pytest's skip: it cannot be
                tested, with the reason.
        """
        import pytest

        if PropertyCheck._last is not method:
            forget_models()
            PropertyCheck._last = method
        finding = judge(method, self.property)
        if finding.status == "fails":
            raise PropertyError(finding.detail)
        if finding.status == "not tested":
            pytest.skip(finding.detail)


def parametrize_with_properties(methods: Iterable[type[Method]]) -> pytest.MarkDecorator:
    """A decorator that makes one test of every property of every method.

    ::

        @parametrize_with_properties([MyMethod])
        def test_my_method(method, check):
            check(method)

    Raises:
        UnknownNameError: a method declares a property that does not exist; carries near names.
    """
    import pytest

    return pytest.mark.parametrize(
        ("method", "check"),
        [
            pytest.param(method, PropertyCheck(one), id=f"{method.name}-{one.name}")
            for method in methods
            for one in properties_of(method)
        ],
    )
