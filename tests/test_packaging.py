"""The sdist makes the wheel, and the wheel alone is a working program: suites, reference records, tasks and models."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SOURCE = ("attriboard", "benchmarks", "docs", "fuzz", "methods", "results", "tasks", "tests")
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(what: str, source: Path, out: Path) -> Path:
    """Builds ``source`` as its own build backend does, without a network."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(out)]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist, named as its folder."""
    path = tmp_path_factory.mktemp("sdist")
    source = path / "source"
    for folder in SOURCE:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "scores"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy2(file, source)
    archive = build("sdist", source, path)
    with tarfile.open(archive) as file:
        file.extractall(path, filter="data")
    return path / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def program(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``attriboard`` of an environment that has the wheel, what it depends on, and nothing of the checkout."""
    path = tmp_path_factory.mktemp("clean")
    wheel = build("wheel", sdist, path)
    venv.create(path / "env", with_pip=False)
    python = path / "env" / "bin" / "python"
    inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip())
    # a .pth file only adds the folder: the .pth file by which the checkout is installed there is not read
    shared = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))}
    (packages / "dependencies.pth").write_text("\n".join(sorted(shared)) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    return python.parent / "attriboard"


def attriboard(program: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run([str(program), *arguments], cwd=cwd, env=env, check=False, capture_output=True, text=True)


def test_the_sdist_has_what_its_tests_and_pages_need(sdist: Path) -> None:
    for name in ("Makefile", "constraints.txt", "leaderboard.md", "LICENSE", "tests/bench/toy.py", "fuzz/common.py"):
        assert (sdist / name).is_file(), name
    assert {file.name for file in (sdist / "benchmarks").iterdir()} == {
        file.name for file in (ROOT / "benchmarks").iterdir() if file.is_file()
    }
    for suite in ("quick", "planted", "sanity", "downstream"):
        stored = {file.name for file in (ROOT / "results" / suite).glob("*.json")}
        assert stored and {file.name for file in (sdist / "results" / suite).glob("*.json")} == stored


def test_the_wheel_runs_a_suite_that_ships(program: Path, tmp_path: Path) -> None:
    inside = [str(program.parent / "python"), "-c", "import attriboard; print(attriboard.__file__)"]
    where = subprocess.run(inside, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert Path(where).is_relative_to(program.parents[1])

    assert not list(Path(where).parent.glob("suites/[!_]*.py"))

    listed = json.loads(attriboard(program, tmp_path, "list", "suites", "--json").stdout)
    assert {row["name"] for row in listed} == {file.stem for file in (ROOT / "benchmarks").glob("*.toml")}
    assert all(row["cells"] > 0 for row in listed)

    cells = ["--task", "planted_copy", "--model", "planted-copy", "--level", "heads"]
    methods = ["--method", "gradient_x_activation", "--method", "activation_norm"]
    ran = attriboard(program, tmp_path, "run", "planted", *cells, *methods, "--out", "mine")
    assert ran.returncode == 0, ran.stderr
    records = [json.loads(file.read_text()) for file in (tmp_path / "mine").glob("planted*.json")]
    assert sorted((r["cell"]["method"], r["status"]) for r in records) == [
        ("activation_norm", "ok"),
        ("gradient_x_activation", "ok"),
    ]
    board = attriboard(program, tmp_path, "leaderboard", "mine")
    assert board.returncode == 0 and "| gradient_x_activation |" in board.stdout


def test_entry_points_of_another_package_are_found(program: Path, tmp_path: Path) -> None:
    """The package of docs/adding.md, with the method, task and evaluation that the page shows."""
    page = (ROOT / "docs" / "adding.md").read_text()
    groups = tomllib.loads(next(b for b in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "entry-points" in b))
    points = groups["project"]["entry-points"]
    assert set(points) == {"attriboard.methods", "attriboard.tasks", "attriboard.evaluation"}
    (packages,) = (program.parents[1] / "lib").glob("python*/site-packages")
    (packages / "my_probes").mkdir()
    (packages / "my_probes" / "__init__.py").touch()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = []
    for group, named in points.items():
        lines.append(f"[{group}]")
        for name, where in named.items():
            code = next(block for block in blocks if f'    name = "{name}"\n' in block)
            module = where.partition(":")[0]
            (packages / f"{module.replace('.', '/')}.py").write_text(code)
            lines.append(f"{name} = {where}")
        lines.append("no_such = my_probes.no_such")
    about = packages / "my_probes-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-probes\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    listed = json.loads(attriboard(program, tmp_path, "list", "--json").stdout)
    for kind, name in (("methods", "output_size"), ("tasks", "capitals"), ("evaluations", "standing_out")):
        rows = {row["name"]: row for row in listed[kind]}
        assert name in rows and len(rows) > 10
        assert "No module named 'my_probes.no_such'" in str(rows["no_such"])

    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nmodels = ["planted-copy"]\n[settings]\nevaluations = ["standing_out"]\n'
        "[settings.standing_out]\npower = 2.0\n[[groups]]\n"
        'tasks = ["planted_copy"]\nmethods = ["activation_norm"]\nlevels = ["heads"]\n'
    )
    ran = attriboard(program, tmp_path, "run", "mine.toml", "--limit", "8", "--out", "mine")
    assert ran.returncode == 0, ran.stderr
    assert "stands out" in attriboard(program, tmp_path, "leaderboard", "mine").stdout


def test_the_wheel_has_reference_records_to_be_held_against(program: Path, tmp_path: Path) -> None:
    (folder,) = (program.parents[1] / "lib").glob("python*/site-packages/attriboard/reference/quick")
    ours = {file.name: file.read_bytes() for file in (ROOT / "results" / "quick").glob("*.json")}
    assert {file.name: file.read_bytes() for file in folder.glob("*.json")} == ours
    checked = attriboard(program, tmp_path, "check", "quick", "--against", "quick", "--metric", "necessity")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    unknown = attriboard(program, tmp_path, "leaderboard", "quikc")
    assert unknown.returncode == 2 and "there is no results folder quikc" in unknown.stderr
