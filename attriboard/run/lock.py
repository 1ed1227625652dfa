"""``identity.lock``: which code was behind each version of the core, of the evaluations and of the statistics.

The versions in records are raised by hand, so something must notice when code that measures changes and its version
does not. The lock holds, for the measuring core, for every evaluation, for what reads precomputed scores and for the
statistics, the version and a hash of its code (without comments, docstrings, imports, and without what is derived from
stored measurements). A test compares. The code of tasks and methods is no part of it: it is hashed in every record.

    python -m attriboard.run.lock                          says what differs; exit 1 if anything does
    python -m attriboard.run.lock --write                  takes up versions that were raised
    python -m attriboard.run.lock --same-results NAME ...  takes up code whose results are the same ("core" or an
                                                           evaluation); say in the commit how that is known
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

from ..codetext import code_hash
from ..errors import ConfigurationError, UnknownNameError
from ..evaluation.base import evaluations
from ..stats.intervals import VERSION as STATISTICS_VERSION
from .identity import CORE_VERSION, READER_VERSION

PACKAGE = Path(__file__).resolve().parents[1]
LOCK = PACKAGE.parent / "identity.lock"
CORE, READER, STATISTICS = "core", "precomputed", "statistics"
"""What has a version and is no evaluation."""
_CORE = "run/worker.py"
_READER = ("exchange/precomputed.py", "exchange/mib.py")
_STATISTICS = ("stats/intervals.py", "stats/clusters.py")
_CAPABILITY = ("evaluation/capability.py", "measurements/capability.py")
"""Handed on by the core to the evaluations that use it."""
_APART = (
    "board",
    "commands",
    "records",
    "run/identity.py",
    "run/provenance.py",
    "run/lock.py",
    "codetext.py",
    "shape.py",
)
"""What decides no measurement: boards, records and what names them, forecasts of cost."""
_DATA = {"evaluation/capability.py": "capability_tasks"}
"""Code that reads data of the package: the folder of the data."""

Lock = dict[str, dict[str, str | int]]


def current() -> Lock:
    """Versions and hashes of the code as it stands."""
    return {name: {"version": version, "code": _hash(files)} for name, (version, files) in parts().items()}


def parts() -> dict[str, tuple[int, set[Path]]]:
    """By name, the version, and the files behind it; of the evaluations of this package those that the core lacks."""
    roots: dict[str, set[Path]] = {}
    versions: dict[str, int] = {}
    for cls in evaluations:
        own = _files(f"evaluation/{cls.name}.py", f"measurements/{cls.name}.py")
        if own:  # those of other packages have locks of their own
            roots[cls.name] = own | (_files(*_CAPABILITY) if cls.measurement.uses_capability else set())
            versions[cls.name] = cls.version
    reader, statistics = _files(*_READER), _files(*_STATISTICS)
    other = set().union(*roots.values(), _files(*_CAPABILITY), reader, statistics)
    core = _closure(_files(_CORE) | _imported_by_extensions(), without=other)
    return {
        CORE: (CORE_VERSION, core),
        READER: (READER_VERSION, _closure(reader) - core),
        STATISTICS: (STATISTICS_VERSION, statistics),
        **{name: (versions[name], _closure(files) - core) for name, files in roots.items()},
    }


def stored() -> Lock:
    """The lock file.

    Raises:
        ConfigurationError: there is none, or it is not JSON.
    """
    try:
        return json.loads(LOCK.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{LOCK} cannot be read ({error}); restore it from version control.") from error


def differences(now: Lock, before: Lock) -> list[str]:
    """A sentence on everything that differs."""
    sentences = []
    for name in sorted({*now, *before}):
        if name not in now:
            sentences.append(f"{name}: gone; take it out of identity.lock with --write.")
        elif name not in before:
            sentences.append(f"{name}: new; put it into identity.lock with --write.")
        elif now[name]["version"] != before[name]["version"]:
            sentences.append(
                f"{name}: version {before[name]['version']} became {now[name]['version']}; take it up with --write."
            )
        elif now[name]["code"] != before[name]["code"]:
            sentences.append(
                f"{name}: the code that measures it changed and its version did not. Raise the version, so that "
                f"records are measured again, and use --write; or, where every result stays the same, say so with "
                f"--same-results {name}."
            )
    return sentences


def taken_up(now: Lock, before: Lock, same: list[str]) -> Lock:
    """The lock after what may be taken up: new names, raised versions, and code declared to give the same results."""
    lock = {}
    for name, entry in now.items():
        old = before.get(name)
        changed = old is not None and old["version"] == entry["version"] and old["code"] != entry["code"]
        lock[name] = old if changed and old is not None and name not in same else entry
    return lock


def _hash(files: set[Path]) -> str:
    folders = {PACKAGE / folder for code, folder in _DATA.items() if PACKAGE / code in files}
    data = {f for folder in folders for f in folder.iterdir() if f.suffix in (".yaml", ".jsonl") or f.name[0] == "_"}
    ordered = sorted(files | {f for f in data if f.is_file()}, key=lambda f: f.relative_to(PACKAGE).as_posix())
    return code_hash(ordered, imports=False, derived=False)


def _files(*names: str) -> set[Path]:
    """The files of the package with these names, of those that there are."""
    return {file for name in names if (file := PACKAGE / name).is_file()}


def _imported_by_extensions() -> set[Path]:
    """What the tasks and methods that ship import of the package; their own code is hashed in every record."""
    folders = [place / name for place in (PACKAGE, PACKAGE.parent) for name in ("methods", "tasks")]
    own = {file for folder in folders for file in folder.glob("*.py")}
    return {target for file in own for target in _imported(file) if target not in own and not _apart(target)}


def _closure(roots: set[Path], without: Collection[Path] = ()) -> set[Path]:
    """The files of the package that the roots import, directly or not, without what only types need."""
    waiting = sorted(roots)
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += [f for f in _imported(file) if f not in seen and f not in without and not _apart(f)]
    return seen


def _apart(file: Path) -> bool:
    name = file.relative_to(PACKAGE).as_posix()
    return any(name == part or name.startswith(f"{part}/") for part in _APART)


def _imported(file: Path) -> frozenset[Path]:
    """The files of the package that a file imports from; the statistics' only where something is measured by them."""
    return _targets(file, file.read_text(encoding="utf-8"), PACKAGE)


@cache
def _targets(file: Path, text: str, package: Path) -> frozenset[Path]:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    targets: set[Path] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = file.parents[node.level - 1]
        elif node.module and node.module.split(".")[0] == package.name:
            base = package.parent
        else:
            continue
        place = base.joinpath(*(node.module.split(".") if node.module else []))
        names = [place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names), place / "__init__.py"]
        targets |= {name for name in names if name.is_file()}
    statistics = {package / name for name in _STATISTICS}
    if file.parent != package / "evaluation" and file not in statistics:  # measurements derive aggregates by them
        targets -= statistics
    return frozenset(targets)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attriboard.run.lock", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="take up new names and raised versions")
    parser.add_argument("--same-results", nargs="+", default=[], metavar="NAME", help="take up code of these names")
    asked = parser.parse_args(arguments)
    now = current()
    for name in asked.same_results:
        if name not in now:
            raise UnknownNameError("name in identity.lock", name, now)
    before = stored() if LOCK.exists() else {}
    if asked.write or asked.same_results:
        before = taken_up(now, before, asked.same_results)
        LOCK.write_text(json.dumps(before, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sentences = differences(now, before)
    for sentence in sentences:
        print(sentence)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
