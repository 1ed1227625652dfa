"""A pytest plugin: the fixture ``attriboard_check`` holds a method against a stored baseline.

    def test_mine(attriboard_check):
        attriboard_check("methods/mine.py", suite="quick")

``pytest --attriboard-update`` writes the baseline. Every pytest loads this file, so it imports the library only when
the fixture is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .board.check_report import Report
    from .records.record import Planned, Record
    from .records.store import Folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("attriboard").addoption(
        "--attriboard-update", action="store_true", help="write the baselines of attriboard_check instead of comparing"
    )
    parser.addini(
        "attriboard_baseline",
        "folder, from the root directory, with a folder of records for every suite that attriboard_check runs",
        default="attriboard-baseline",
    )


@pytest.fixture(scope="session")
def attriboard_check(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AttriboardCheck:
    """Runs a method on a suite and fails where it became worse than its baseline; see :class:`AttriboardCheck`."""
    return AttriboardCheck(request.config, tmp_path_factory.mktemp("attriboard"))


class AttriboardCheck:
    """What the fixture gives: call it with a method's file or name.

    Cells that one session has run are not run again.
    """

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.root = config.rootpath
        self.update: bool = config.getoption("--attriboard-update")
        self.baselines = self.root / str(config.getini("attriboard_baseline"))
        self._folder = folder

    def __call__(
        self,
        method: str,
        suite: str = "quick",
        against: str | Path | None = None,
        limit: int | None = None,
        task: str | Sequence[str] = (),
        level: str | Sequence[str] = (),
        model: str | None = None,
        metric: str | Sequence[str] = (),
        include: str | Sequence[str] = (),
        speed: bool = False,
    ) -> Report:
        """Runs the suite's cells of a method and compares them with the baseline; the test fails with sentences.

        Paths are taken from pytest's root directory.

        Args:
            method: a Python file, for every method in it, or a method's name.
            suite: a suite's name or file.
            against: the folder of records before; by default the suite's folder in the ini option
                ``attriboard_baseline``.
            limit: draw only this many examples per split.
            task, level, model: narrow the suite's cells, as the options of ``attriboard run`` do.
            metric: compare these metrics instead of the headlines.
            include: files or folders with tasks and methods of one's own that the suite names.
            speed: also compare times, where both were measured on the same machine.
        """
        from .errors import AttriboardError

        try:
            return self._checked(
                method,
                suite,
                None if against is None else self.root / against,
                limit,
                _several(task),
                _several(level),
                model,
                _several(metric),
                _several(include),
                speed,
            )
        except AttriboardError as error:
            pytest.fail(str(error), pytrace=False)

    def _checked(
        self,
        method: str,
        suite: str,
        against: Path | None,
        limit: int | None,
        task: Sequence[str],
        level: Sequence[str],
        model: str | None,
        metric: Sequence[str],
        include: Sequence[str],
        speed: bool,
    ) -> Report:
        from .board.check import check_metrics, check_records, compared_settings, records_in
        from .method import methods
        from .models.architectures import architectures
        from .records.store import Folder
        from .run.suite import Suite, limited
        from .task import tasks

        check_metrics(metric)
        for path in include:
            if (file := self._here(path).resolve()) not in tasks.included:
                tasks.include(file)
                methods.include(file)
                architectures.include(file)
        names = self._names(method)
        loaded = Suite.load(self._here(suite))
        plan = loaded.plan(task, names, level, model, changes={} if limit is None else limited(limit))
        baseline = Folder(against or self.baselines / loaded.name)
        if not self.update and not baseline.path.is_dir():
            pytest.fail(
                f"there is no baseline {baseline.path} to hold {', '.join(names)} against; type pytest "
                f"--attriboard-update once, and keep that folder under version control.",
                pytrace=False,
            )
        new = self._run(loaded.name, plan)
        if self.update:
            _replace(baseline, loaded.name, new)
            return check_records(new, new, metric, speed=False)
        before, left_out = records_in(baseline.path)
        asked = {"method": names, "task": task, "level": level, "model": [model] if model else ()}
        old = [r for r in before if all(getattr(r.cell, k) in v for k, v in asked.items() if v)]
        if not old:
            pytest.fail(
                f"the baseline {baseline.path} holds no record of {', '.join(names)}; type pytest --attriboard-update "
                f"to add them.",
                pytrace=False,
            )
        alike = [compared_settings(r) for r in new]  # other tests may keep baselines with other limits
        old = [r for r in old if compared_settings(r) in alike] or old
        report = check_records(new, old, metric, speed).model_copy(update={"left_out": left_out})
        if report.failed:
            pytest.fail("\n".join(report.lines()), pytrace=False)
        return report

    def _here(self, path: str) -> Path:
        return self.root / path if (self.root / path).exists() else Path(path)

    def _names(self, method: str) -> list[str]:
        """The methods in a file, which is included unless it has been; or the one name."""
        from .errors import ConfigurationError
        from .method import methods

        if not method.endswith(".py"):
            return [method]
        file = self._here(method).resolve()
        if not file.is_file():
            raise ConfigurationError(f"there is no file {file} with a method.")

        def inside() -> list[str]:
            return [cls.name for cls in methods if Path(inspect.getfile(cls)).resolve() == file]

        if not inside() and not methods.include(file):
            raise ConfigurationError(f"{method} defines no method (a subclass of Method with a name).")
        return inside()

    def _run(self, suite: str, plan: Sequence[Planned]) -> list[Record]:
        """The records of the planned cells; the test fails where one failed, or none could be run."""
        from .records.store import Folder
        from .run.identity import record_identity
        from .run.runner import run_cells

        folder = Folder(self._folder / suite)
        run_cells(suite, plan, folder)
        wanted = {record_identity(cell, settings) for cell, settings in plan}
        records = [record for record in folder.read() if record.identity in wanted]
        wrong = [f"failed: {r.cell}: {r.reason}" for r in records if r.status == "failed"]
        if not wrong and all(r.status == "skipped" for r in records):
            wrong = [f"skipped: {r.cell}: {r.reason}" for r in records]
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)
        return records


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _replace(folder: Folder, suite: str, records: Sequence[Record]) -> None:
    """Writes records in place of those of the same cells."""
    from .board.check import cell_key

    folder.claim(suite)
    new = {(cell_key(r), r.cell.seed) for r in records}
    for old in folder.read():
        if (cell_key(old), old.cell.seed) in new:
            folder.file_of(old.filename).unlink(missing_ok=True)
    for record in records:
        folder.write(record)
