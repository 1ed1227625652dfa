"""How time and work are measured: work follows from the examples alone, time from the clock alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from attriboard.evaluation import speed
from attriboard.measurements.speed import Speed
from attriboard.model import EncodedExample
from tests.bench.models import EXAMPLES, hooked


def measured(monkeypatch: pytest.MonkeyPatch, seconds: float, **timing: Any) -> tuple[Speed, list[int]]:
    """Two passes per example, on a machine that takes ``seconds`` for an example; and how many each call was given."""
    model, calls, now = hooked("llama"), [], [0.0]

    def score(examples: Sequence[EncodedExample]) -> int:
        calls.append(len(examples))
        now[0] += seconds * len(examples)
        for _ in range(2):
            model.run(model.batch(examples))
        return len(examples)

    def timed(work: Callable[[], object], device: torch.device) -> float:
        before = now[0]
        work()
        return now[0] - before

    monkeypatch.setattr(speed, "timed", timed)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    options = Speed.Options(**timing)
    found, once = speed.whole(score, model, EXAMPLES)
    assert found == 4
    return speed.measure(score, model, EXAMPLES[: options.examples], once, options), calls


@pytest.mark.parametrize("seconds", [0.001, 1.0, 100.0])
def test_work_does_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    found, _ = measured(monkeypatch, seconds, examples=2, repeats=3, max_seconds=5)
    model = hooked("llama")
    assert found.forward_equivalents == 2 and found.scored == 4
    assert found.flops == 2 * sum(map(model.full_pass, EXAMPLES)) / 4


def test_repeats_score_the_first_examples_until_there_are_enough_or_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = measured(monkeypatch, 1.0, examples=2, repeats=3, max_seconds=5)
    assert found.seconds == [2.0, 2.0, 2.0] and found.examples == 2 and calls == [4, 2, 2, 2]
    found, calls = measured(monkeypatch, 1.0, examples=2, repeats=9, max_seconds=5)
    assert calls == [4, 2, 2, 2]  # six seconds are over five


def test_all_of_a_small_split_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = measured(monkeypatch, 1.0, repeats=2)
    assert Speed.Options().examples == 32
    assert found.examples == 4 and calls == [4, 4, 4] and found.scalars()["seconds_per_example"] == (1.0, 1.0, 1.0)


def test_a_method_too_slow_to_repeat_has_its_whole_run_as_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls = measured(monkeypatch, 3.0, examples=2, repeats=3, max_seconds=5)
    assert calls == [4] and found.seconds == [12.0] and found.examples == 4
    found, calls = measured(monkeypatch, 2.5, examples=2, repeats=3, max_seconds=5)  # not longer than that
    assert calls == [4, 2] and found.seconds == [5.0]


def test_a_method_that_cannot_score_few_examples_is_not_repeated() -> None:
    once = speed.Whole(examples=4, seconds=2.0, flops=7.0, forward_equivalents=1.5, peak_memory_mib=3.0)
    found = speed.measure(lambda examples: pytest.fail("repeated"), hooked("llama"), [], once, Speed.Options())
    assert (found.examples, found.seconds, found.flops, found.forward_equivalents) == (4, [2.0], 7.0, 1.5)


def test_runs_that_are_needed_anyway_are_the_repeats() -> None:
    once = speed.Whole(examples=4, seconds=2.0, flops=7.0, forward_equivalents=1.5, peak_memory_mib=3.0)
    laps = [speed.Lap(2, 1.0), speed.Lap(3, 1.2), speed.Lap(2, 0.6)]
    found = speed.measure(
        lambda examples: pytest.fail("repeated"), hooked("llama"), EXAMPLES, once, Speed.Options(), laps
    )
    assert found.examples == [2, 3, 2] and found.seconds == [1.0, 1.2, 0.6] and found.repeat == 2
    assert found.scalars()["seconds_per_example"] == pytest.approx((0.4, 0.3, 0.5))
    assert (found.scored, found.flops) == (4, 7.0)


@pytest.mark.parametrize("examples", [0, [], [2, 2], [2, 0, 2]])
def test_repeats_without_their_sizes_are_refused(examples: int | list[int]) -> None:
    facts = {"scored": 4, "flops": 1.0, "forward_equivalents": 1.0, "peak_memory_mib": 0.0}
    with pytest.raises(ValueError, match="examples"):
        Speed(examples=examples, seconds=[1.0, 1.0, 1.0], **facts)
