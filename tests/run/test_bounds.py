"""Counts that no run would end with are refused when a suite is read, and streams that repeat themselves end."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from attriboard.errors import ConfigurationError, TaskError
from attriboard.evaluation import pruning
from attriboard.run.suite import Suite, lacking
from attriboard.task import Example, Task, split_of

SUITE = """
name = "small"
models = ["planted-copy"]
seeds = [{seed}]
[settings]
{settings}
[[groups]]
tasks = ["planted_copy"]
methods = [{method}]
levels = ["heads"]
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": "train_examples = 2147483648"},
            "key 'settings.train_examples' is 2147483648: input should be less",
        ),
        (
            {"settings": f"ablation = {{ draws = 1{'0' * 30} }}"},
            "'settings.ablation.draws' is a number of about 31",
        ),
        (
            {"settings": f"capability = {{ limit = 1{'0' * 30} }}"},
            "'settings.capability.limit' is a number of",
        ),
        ({"settings": f"max_kept = 1{'0' * 5000}"}, "is not valid TOML: Exceeds the limit"),
        ({"settings": "x = " + "[" * 5000}, "is not valid TOML: it is nested too deeply"),
        (
            {"method": '{name = "integrated_gradients", steps = 10000000}'},
            "'steps' of method 'integrated_gradients' is",
        ),
        ({"method": '{name = "random", seed = -1}'}, "'seed' of method 'random' is -1, expected at least 0"),
        ({"seed": "-3"}, "a seed of suite 'small' is -3, expected at least 0"),
    ],
)
def test_what_no_run_would_end_with_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SUITE.format(**{"seed": "0", "settings": "", "method": '"random"', **change}))
    with pytest.raises(ConfigurationError) as caught:
        Suite.load(file)
    assert message in str(caught.value) and len(str(caught.value)) < 500


@dataclass
class Plain(Task):
    """A task without parts that knows five questions of a split, over and over."""

    name: ClassVar[str] = "plain"

    def candidates(self, subset, rng):
        assert subset == ""
        items = [item for i in range(100) if split_of(item := f"item {i}") == "train"][:5]
        return (Example(item, " a", " b", item=item) for item in itertools.cycle(items))


def test_a_task_without_subsets_is_one_part() -> None:
    assert Plain().subsets == ("",)
    assert len(Plain().examples("train", 5, 0)) == 5


def test_a_stream_that_repeats_itself_for_ever_ends_with_a_sentence() -> None:
    with pytest.raises(TaskError, match=r"gave only 5 train examples .* none of its last \d+ candidates was a new one"):
        Plain().examples("train", 4000, 0)


def test_a_task_whose_files_cannot_be_read_says_so() -> None:
    @dataclass
    class Broken(Plain):
        def candidates(self, subset, rng):
            raise PermissionError(13, "Permission denied", "data")
            yield

    with pytest.raises(TaskError, match=r"cannot make its examples of subset '' \(PermissionError: .*denied"):
        Broken().examples("train", 1, 0)


def test_a_slice_without_any_logit_left_is_no_division_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """A model whose logits are a constant."""

        name, tolerance = "silent", 1e-4

        def __init__(self, logit: float) -> None:
            self.logits = torch.full((1, 2), logit)

        def batches(self, examples):
            return [examples]

        def run(self, batch, edits=None):
            return self

    monkeypatch.setattr(pruning, "removing", lambda *args: {})
    level = type("Level", (), {"name": "heads"})
    mask = torch.ones(2, dtype=torch.bool)
    assert pruning.check_slice(Silent(0.0), Silent(0.0), level, mask, [0]) == 0.0  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"gives other logits .*: off by inf of the largest logit"):
        pruning.check_slice(Silent(0.0), Silent(1.0), level, mask, [0])  # type: ignore[arg-type]


def test_what_a_suite_needs_and_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = 'evaluations = ["pruning"]\npruning = { recovery_steps = 3 }'
    file = tmp_path / "small.toml"
    file.write_text(SUITE.format(seed="0", settings=settings, method='"random"'))
    plan = Suite.load(file).plan()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert lacking(plan) == [
        'pruning needs lm-eval, which is not installed: pip install "attriboard[capability]".',
        'pruning needs peft, which is not installed: pip install "attriboard[recovery]".',
    ]
