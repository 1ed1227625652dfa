"""What is said of a method's cost."""

from __future__ import annotations

from attriboard.measurements.speed import Speed


def test_the_time_is_the_median_of_repeats_between_the_fastest_and_the_slowest() -> None:
    work = {"scored": 8, "flops": 2.5e9, "forward_equivalents": 1.5}
    speed = Speed(examples=2, seconds=[3.0, 1.0, 2.0, 8.0], peak_memory_mib=7.0, **work)
    assert speed.scalars() == {
        "seconds_per_example": (1.25, 0.5, 4.0),
        "forward_equivalents": (1.5, None, None),
        "flops_per_example": (2.5, None, None),
        "peak_memory_mib": (7.0, None, None),
    }
    assert set(speed.scalars()) == {metric.name for metric in Speed.metrics}
    assert (speed.n, speed.statistics(), speed.gaps()) == (1, {}, {})


def test_one_run_has_no_spread() -> None:
    speed = Speed(examples=4, seconds=[2.0], scored=4, flops=0.0, forward_equivalents=1.0, peak_memory_mib=0.0)
    assert speed.scalars()["seconds_per_example"] == (0.5, None, None)
