"""What is kept of a capability, by hand."""

from __future__ import annotations

import math

import pytest

from attriboard.errors import ConfigurationError
from attriboard.measurements.capability import Capability, kept


def test_aggregates_by_hand() -> None:
    found = Capability(accuracy={"a": [1, 0, 1, 1], "b": [0, 1]}, prose={"p": [(-6.0, 2), (-2.0, 2)], "q": [(-4.0, 4)]})
    assert found.mean_accuracy() == pytest.approx((0.75 + 0.5) / 2)
    assert found.word_perplexity() == pytest.approx(math.exp(12 / 8))
    assert Capability.model_validate_json(found.model_dump_json()) == found
    assert math.isnan(Capability().mean_accuracy()) and math.isnan(Capability().word_perplexity())
    assert Capability(prose={"p": [(-1e6, 2)]}).word_perplexity() == math.inf


def test_kept_by_hand() -> None:
    before = Capability(accuracy={"a": [1, 1, 0, 0], "b": [1, 0], "only": [1]}, prose={"p": [(-4.0, 2)]})
    after = Capability(accuracy={"a": [1, 0, 0, 0], "b": [1, 1], "new": [1]}, prose={"p": [(-5.0, 2)]})
    assert kept(before, after) == pytest.approx((0.5 + 1 + math.exp(2.0 - 2.5)) / 3)
    assert kept(before, before) == 1
    assert kept(after, before) == pytest.approx((1 + 0.5 + 1) / 3)
    assert kept(before, Capability(prose={"p": [(-1e6, 2)]})) == 0
    nothing_right = Capability(accuracy={"a": [0, 0]})
    assert math.isnan(kept(nothing_right, Capability(accuracy={"a": [1, 0]})))
    assert math.isnan(kept(before, Capability()))


def test_kept_refuses_other_documents() -> None:
    with pytest.raises(ConfigurationError, match="'a' was measured on 2 documents before and 1 after; use one limit"):
        kept(Capability(accuracy={"a": [1, 0]}), Capability(accuracy={"a": [1]}))
