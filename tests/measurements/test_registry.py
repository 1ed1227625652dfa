"""The page of metrics is made from what measurements declare."""

from __future__ import annotations

from pathlib import Path

from attriboard.measurements import registry

ROOT = Path(__file__).parents[2]


def test_the_metrics_page_says_what_measurements_declare() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == registry.page()
