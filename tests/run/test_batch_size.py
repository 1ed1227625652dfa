"""The batch size that follows the memory: what it is, what a full memory does to it, and that results stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from attriboard.errors import ConfigurationError
from attriboard.interventions import Intervention
from attriboard.measurements.registry import MEASUREMENTS
from attriboard.method import methods
from attriboard.model import Model
from attriboard.records.record import Record
from attriboard.records.settings import MAX_COUNT, Settings
from attriboard.records.store import Folder
from attriboard.run import batch_size
from attriboard.run.batch_size import MOST, ON_CPU, USED, bytes_per_row, fitting, free_bytes, out_of_memory, parsed
from attriboard.run.estimate import estimate
from attriboard.run.identity import record_identity, wanted_stages
from attriboard.run.runner import run_cells
from attriboard.run.suite import Suite
from attriboard.task import tasks
from tests.bench.cli import call
from tests.bench.models import hooked

CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9"
FULL: list[Callable[[], Exception]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    lambda: MemoryError("Unable to allocate 9. GiB"),
    lambda: RuntimeError(CPU_FULL),
]


@pytest.fixture
def suite(toy: dict) -> Suite:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    return Suite.load(toy["suite"])


def _run(suite: Suite, path: Path, size: int | str, method: str) -> Record:
    plan = suite.plan(method=[method], changes={"batch_size": size})
    (record,) = run_cells(suite.name, plan, Folder(path)).made
    return record


def _only_up_to(most: int, full: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch, where: str) -> list[int]:
    """Fills the memory where more rows than ``most`` are scored, or judged; returns how many came each time."""
    came = []
    cls: Any = methods.get("attribution_patching") if where == "scored" else Intervention
    name = "score_batch" if where == "scored" else "rows"
    whole = getattr(cls, name)

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        model = args[0] if where == "scored" else self.model
        came.append(model.batch_size)
        if model.batch_size > most:
            raise full()
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(cls, name, limited)
    return came


@pytest.mark.parametrize(("where", "full"), [("scored", FULL[0]), ("judged", FULL[2])], ids=["scored", "judged"])
def test_a_full_memory_halves_an_automatic_batch_size_and_changes_no_result(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, full: Callable[[], Exception]
) -> None:
    # scores by weights are the same bits, though they are found before the judging halves the batch
    method = "attribution_patching" if where == "scored" else "weight_norm"
    expected = _run(suite, tmp_path / "four", 4, method)
    came = _only_up_to(4, full, monkeypatch, where)
    record = _run(suite, tmp_path / "auto", "auto", method)
    assert sorted(set(came), reverse=True) == [32, 16, 8, 4]
    assert record.status == "ok" and record.settings.batch_size == "auto"
    assert record.provenance is not None and record.provenance.batch_size == 4
    found, sought = record.without_timings(), expected.without_timings()
    assert found.pop("settings") != sought.pop("settings") and found == sought


def test_a_memory_too_small_for_one_row_is_the_cells_error(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = _only_up_to(0, FULL[0], monkeypatch, "scored")
    record = _run(suite, tmp_path, "auto", "attribution_patching")
    assert came == [32, 16, 8, 4, 2, 1]
    assert record.status == "failed" and "CUDA out of memory" in record.reason


def test_a_batch_size_that_was_asked_for_stays(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    came = _only_up_to(4, FULL[0], monkeypatch, "scored")
    record = _run(suite, tmp_path, 8, "attribution_patching")
    assert came == [8] and record.status == "failed" and "CUDA out of memory" in record.reason


def test_other_errors_are_not_taken_for_a_full_memory(suite: Suite, tmp_path: Path) -> None:
    assert all(out_of_memory(full()) for full in FULL)
    assert not out_of_memory(RuntimeError("shape mismatch")) and not out_of_memory(ValueError("out of memory"))
    record = _run(suite, tmp_path, "auto", "raises")
    assert record.status == "failed" and "its own mistake" in record.reason


def test_the_batch_size_is_no_part_of_what_a_result_is_known_by(suite: Suite) -> None:
    planned = [suite.plan(changes={"batch_size": size}) for size in (1, 16, "auto")]
    assert len({tuple((record_identity(*p), *wanted_stages(p).values()) for p in plan) for plan in planned}) == 1


def test_what_every_evaluation_will_cost_is_known_without_a_number(suite: Suite) -> None:
    def cost(name: str, size: int | str) -> Any:
        changes: dict[str, Any] = {"evaluations": [name], "batch_size": size}
        (planned,) = suite.plan(method=["head_ablation"], changes=changes)
        return estimate(planned)

    names = [name for name, measurement in MEASUREMENTS.items() if "heads" in measurement.levels]
    assert "pruning" in names and all(cost(name, "auto") == cost(name, ON_CPU) for name in names)


@pytest.mark.parametrize("value", [0, -1, MAX_COUNT + 1, "automatic", "16", True, 1.5, None])
def test_a_batch_size_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match='Expected a whole number from 1 to 1,000,000, or "auto"'):
        Settings.model_validate({"batch_size": value})


def test_a_wrong_batch_size_in_a_suite_is_one_sentence(toy: dict, suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "suite.toml"
    file.write_text(toy["suite"].read_text().replace("batch_size = 4", "batch_size = 0"))
    with pytest.raises(ConfigurationError, match=r"key 'settings.batch_size' is 0: expected a whole number from 1"):
        Suite.load(file)


@pytest.mark.parametrize("text", ["0", "-4", "1000001", "lots", "1e3", "9" * 5000, "²", ""])
def test_a_wrong_batch_size_on_the_command_line_is_one_sentence(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    code, _, err = call(capsys, "run", toy["suite"], "--include", toy["task"], "--out", tmp_path, "--batch-size", text)
    assert code == 2 and "expected a whole number from 1 to 1,000,000, or auto" in " ".join(err.split())
    assert (parsed("7"), parsed("auto")) == (7, "auto")


# --- how many rows fit --------------------------------------------------------------------------------------------


class _Gpu:
    """A model that says it is on a GPU."""

    def __init__(self, model: Model) -> None:
        self._model, self.device = model, torch.device("cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _memory(monkeypatch: pytest.MonkeyPatch, free: int, total: int, reserved: int = 0, held: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held)


def test_a_cpu_gets_a_constant() -> None:
    assert fitting(hooked("llama"), 500, workers=4) == ON_CPU


@pytest.mark.parametrize(
    ("rows", "size"), [(0.0, 1), (0.99, 1), (1.01, 1), (1.99, 1), (2.01, 2), (100.5, 64), (1024.5, MOST), (1e6, MOST)]
)
def test_as_many_rows_as_fit_rounded_down_to_a_power_of_two(
    monkeypatch: pytest.MonkeyPatch, rows: float, size: int
) -> None:
    model: Any = _Gpu(hooked("llama"))
    _memory(monkeypatch, free=int(rows * bytes_per_row(model, 50) / USED) + 1, total=2**60)
    assert fitting(model, 50) == size


def test_a_row_is_counted_by_the_shape_and_the_prompt() -> None:
    model = hooked("llama")
    by_hand = model.n_layers * 7 * (4 * model.d_mlp + 10 * model.d_model + 3 * model.n_heads * 7) * 4
    assert bytes_per_row(model, 7) == by_hand


def test_workers_divide_a_gpu_and_each_one_counts_what_it_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    _memory(monkeypatch, free=1000, total=1000)
    assert [free_bytes(device, n) for n in (1, 4)] == [1000, 250]
    _memory(monkeypatch, free=0, total=1000, reserved=250, held=50)  # four workers have filled the GPU
    assert free_bytes(device, 4) == 200
    _memory(monkeypatch, free=100, total=1000, reserved=250, held=50)  # others have, too
    assert [free_bytes(device, n) for n in (1, 2)] == [300, 300]
    _memory(monkeypatch, free=0, total=1000, reserved=300, held=300)
    assert free_bytes(device, 4) == 0 and batch_size.fitting(_Gpu(hooked("llama")), 9, 4) == 1  # type: ignore[arg-type]
