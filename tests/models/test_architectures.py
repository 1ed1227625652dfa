"""The architecture table: families outside it, and variants it does not fit, are refused with a way out."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from attriboard.errors import ModelError
from attriboard.model import Model
from tests.bench.models import CONFIGS, fresh


def test_families_outside_the_table_are_refused_with_those_inside() -> None:
    hf = fresh("gpt2")
    hf.config.model_type = "bloom"
    with pytest.raises(ModelError, match=r"'bloom'.*llama.*gpt2"):
        Model(hf)


def test_an_opt_model_that_normalizes_its_residual_stream_in_place_is_refused() -> None:
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    with pytest.raises(ModelError, match="in place"):
        Model(AutoModelForCausalLM.from_config(config))
