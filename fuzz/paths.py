"""Names of files that no system takes, where a command asks for one, and files for ``--include`` that go wrong."""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from attriboard import cli
from attriboard.errors import AttriboardError
from attriboard.method import methods

from .common import Case, scratch

DOORS: tuple[tuple[str, ...], ...] = (
    ("run", "{}"),
    ("validate", "{}"),
    ("run", "quick", "--scores", "{}"),
    ("run", "quick", "--include", "{}"),
    ("list", "tasks", "--include", "{}"),
    ("leaderboard", "{}"),
    ("refresh", "{}"),
    ("check", "{}", "--against", "{}"),
    ("export-mib", "{}.safetensors", "--out", "x.json"),
    ("scale-questions", "--model", "planted-copy", "--data", "{}"),
    ("attribute", "--model", "planted-copy", "--method", "random", "--level", "heads", "--prompt", "a", "--answer", "a",
     "--image", "{}", "--out", "x.safetensors"),
    ("attribute", "--model", "planted-copy", "--method", "random", "--level", "heads", "--task", "planted_copy",
     "--limit", "2", "--out", "{}.safetensors"),
)  # fmt: skip
NAMES = ("long", "longer", "pipe", "zero", "loop", "inside a file", "missing", "empty", "folder", "socket",
         "locked", "quotes", "tilde")  # fmt: skip
METHOD = "from attriboard.method import Method\nclass M(Method):\n    name = {}\n    def score_batch(s, *a): pass"
ODD_CLASS = """from attriboard.method import Method
class T(type(Method)):
    def __getattr__(c, n): raise OSError(n)
class M(Method, metaclass=T):
    def score_batch(s, *a): pass
"""
ERROR = """class E(Exception):
    def __str__(self): raise ValueError('no')
raise E
"""
BAD_FILES = {
    "exit": "import sys; sys.exit(0)",
    "os exit": "import os; os._exit(0)",
    "base exception": "raise BaseException('x')",
    "error without words": ERROR,
    "syntax": "def (",
    "recursion": "def f(): f()\nf()",
    "number as a name": METHOD.format("5"),
    "slashes": METHOD.format("'../x'"),
    "no name": "x = 1",
    "zero byte": "x = '\0'",
    "deep": "x = " + "(" * 500 + ")" * 500,
    "generator exit": "raise GeneratorExit",
    "odd class": ODD_CLASS,
}


def cases(seed: int) -> Iterator[Case]:
    """A door and a name, or a file to include."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.4:
            bad = rng.choice(list(BAD_FILES))
            yield f"include: {bad}", functools.partial(_include, BAD_FILES[bad])
        else:
            door, name = rng.choice(DOORS), rng.choice(NAMES)
            yield f"{' '.join(door)}: {name}", functools.partial(_path, door, name)


def _include(text: str) -> None:
    with scratch() as folder:
        file = folder / "mine.py"
        file.write_text(text)
        if methods.include(file):
            raise AssertionError("it was taken")


def _path(door: tuple[str, ...], name: str) -> None:
    with scratch() as folder:
        place = _place(folder, name)
        arguments = [part.replace("{}", place) if "{}" in part else part for part in door]
        arguments = [str(folder / part) if part.startswith("x.") else part for part in arguments]
        before = sys.argv, os.getcwd()
        sys.argv = ["attriboard", *arguments]
        os.chdir(folder)
        try:
            cli.main()
        except SystemExit as end:
            if end.code == 2:
                raise AttriboardError("refused") from None
            if end.code not in (0, None, 1):
                raise
        finally:
            sys.argv = before[0]
            os.chdir(before[1])


def _place(folder: Path, name: str) -> str:
    if name in ("long", "longer"):
        return "a" * (300 if name == "long" else 5000)
    if name == "pipe":
        os.mkfifo(folder / "pipe")
        return str(folder / "pipe")
    if name == "zero":
        (folder / "zero").symlink_to("/dev/zero")
    elif name == "loop":
        (folder / "loop").symlink_to(folder / "loop")
    elif name == "inside a file":
        (folder / "file").write_text("x")
        return str(folder / "file" / "more")
    elif name == "folder":
        (folder / "folder").mkdir()
    elif name == "locked":
        (folder / "locked").mkdir(mode=0)
        return str(folder / "locked" / "file")
    elif name == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(folder / "socket"))
    return {"empty": "", "quotes": "\"[red]'", "tilde": "~nobody/x"}.get(name, str(folder / name))
