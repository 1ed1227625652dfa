"""TF32 is off unless a run asks for it, and what is measured with it is never taken for what is measured without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError

from attriboard.errors import ConfigurationError, ModelError
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.records.settings import Settings
from attriboard.records.store import cell_key
from attriboard.run.identity import record_identity
from attriboard.run.provenance import provenance
from attriboard.run.suite import Suite
from attriboard.task import tasks

FLAGS = (torch.backends.cuda.matmul, torch.backends.cudnn)


@pytest.fixture
def _put_back() -> Iterator[None]:
    before = [flags.allow_tf32 for flags in FLAGS]
    yield
    for flags, value in zip(FLAGS, before):
        flags.allow_tf32 = value


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize("asked", [False, True])
def test_a_model_on_a_gpu_is_run_with_tf32_only_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setattr("attriboard.loading.check_device", lambda device: None)
    for flags in FLAGS:
        flags.allow_tf32 = not asked
    with contextlib.suppress(ModelError):  # without a GPU it goes no further
        load_model("planted-copy", "cuda", allow_tf32=asked)
    assert [flags.allow_tf32 for flags in FLAGS] == [asked, asked]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert provenance(torch.device("cuda")).tf32 == asked and not provenance(torch.device("cpu")).tf32


def test_what_is_measured_with_tf32_is_another_result(toy: dict) -> None:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    suite = Suite.load(toy["suite"])
    without, explicit, with_it = (suite.plan(changes=c) for c in ({}, {"allow_tf32": False}, {"allow_tf32": True}))
    for a, b, c in zip(without, explicit, with_it, strict=True):
        assert record_identity(*a) == record_identity(*b) != record_identity(*c)
        assert cell_key("toy", *a) == cell_key("toy", *b) != cell_key("toy", *c)


def test_records_without_it_keep_what_they_are_known_by() -> None:
    old = Settings().model_dump(mode="json")
    del old["allow_tf32"]
    assert Settings.model_validate(old) == Settings()
    assert Settings().numerics() == ["float32", "cpu"]
    assert Settings(device="cuda", allow_tf32=True).numerics() == ["float32", "cuda", "tf32"]
    with pytest.raises(ValidationError):
        Settings.model_validate({"allow_tf32": "sometimes"})


def test_a_group_cannot_change_it(toy: dict) -> None:
    suite = Suite.load(toy["suite"])
    suite.groups[0].settings["allow_tf32"] = True
    with pytest.raises(ConfigurationError, match="sets allow_tf32 in a group; it holds for a whole run"):
        suite.check()
