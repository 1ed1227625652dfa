"""Modules by role."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attriboard.errors import ModelError
from attriboard.model import Model
from tests.bench.models import hooked, tiny


def test_a_path_that_does_not_exist_names_the_family_and_the_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hooked("llama").architecture
    wrong = replace(right, mlp_down="mlp.c_proj")
    monkeypatch.setattr("attriboard.models.weights.architecture_of", lambda config: wrong)
    with pytest.raises(ModelError, match=r"Llama.*c_proj"):
        Model(tiny("llama"))
