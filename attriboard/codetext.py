"""The text of code as far as it decides results.

Without comments, docstrings and blank lines, and without what a method says of its cost before it runs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

DERIVED = frozenset({"metrics", "statistics", "scalars", "gaps"})
"""Parts of a measurement that follow from what is stored; they have versions of their own (those of the metrics)."""
FORECAST = ("passes", ["self", "shape", "level"])
"""Name and parameters of :meth:`attriboard.method.Method.passes`, by which no score is computed."""


def normalized(file: Path, imports: bool = True, derived: bool = True) -> str:
    """The code of a Python file as it stands now.

    Args:
        imports: whether import statements are kept; without them, moving what is imported changes nothing.
        derived: whether the parts of measurements called as in :data:`DERIVED` are kept, and what only they use.

    The same on every Python version: lines are cut out of the text as it is, not printed anew.
    """
    return _normalized(file.read_text(encoding="utf-8"), imports, derived)


@lru_cache(maxsize=1024)
def _normalized(text: str, imports: bool, derived: bool) -> str:
    tree = ast.parse(text)
    code = _Code(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not imports:
            code.cut(node)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in node.body:
                # a text that stands alone is a docstring, of the class, function or constant before it
                text_alone = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
                if text_alone and isinstance(inner.value.value, str):  # type: ignore[attr-defined]
                    code.cut(inner)
    for node in _forecasts(tree, imports):
        code.cut(node)
    if not derived:
        for node in _derived(tree):
            code.cut(node)
    return str(code)


class _Code:
    """The lines of a file, from which parts are cut; comments are gone from the start."""

    def __init__(self, text: str) -> None:
        rows = list(io.StringIO(text))
        self._lines = [bytearray(row.encode()) for row in rows]
        self._in_text: set[int] = set()
        """Rows whose end stands inside a string: neither blank lines nor spaces at their ends may go."""
        starts = []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind, row = tokenize.tok_name[token.type], token.start[0]
            if kind == "COMMENT":
                before = rows[row - 1][: token.start[1]]
                del self._lines[row - 1][len(before.encode()) :]
            elif kind == "STRING":
                self._in_text.update(range(row, token.end[0]))
            elif kind.endswith("STRING_START"):  # one token on older Pythons
                starts.append(row)
            elif kind.endswith("STRING_END"):
                self._in_text.update(range(starts.pop(), token.end[0]))

    def cut(self, node: ast.stmt) -> None:
        """Takes a statement out, with its decorators."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        first = min([node, *getattr(node, "decorator_list", [])], key=lambda part: part.lineno)
        start = first.col_offset - (first is not node)  # a decorator begins behind its @
        for row in range(first.lineno, node.end_lineno + 1):
            line = self._lines[row - 1]
            begin = start if row == first.lineno else 0
            end = node.end_col_offset if row == node.end_lineno else len(line)
            line[begin:end] = bytes(end - begin)  # places of what stands behind stay what they are
            self._in_text.discard(row)

    def __str__(self) -> str:
        parts = []
        for row, line in enumerate(self._lines, start=1):
            text = line.replace(b"\0", b"").decode()
            if row in self._in_text:
                parts.append(text)
            elif text.strip():
                parts.append(text.rstrip() + "\n")
        return "".join(parts)


def _forecasts(tree: ast.Module, imports: bool) -> list[ast.stmt]:
    """The methods of :data:`FORECAST`, and the import statements at the top, if they count, that only they use."""
    parts: list[ast.stmt] = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef) and (inner.name, [a.arg for a in inner.args.args]) == FORECAST
    ]
    if not parts or not imports:
        return parts
    inside = {id(name) for part in parts for name in _uses(part)}
    elsewhere = {name.id for name in _uses(tree) if id(name) not in inside}
    used = {name.id for part in parts for name in _uses(part)}
    return parts + [
        node
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and (names := {(alias.asname or alias.name).split(".")[0] for alias in node.names}) <= used
        and not names & elsewhere
    ]


def _derived(tree: ast.Module) -> list[ast.stmt]:
    """The parts of measurements that follow from what is stored, and what the module has for them alone."""
    parts = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "Measurement" in {node.name, *map(_last_name, node.bases)}
        for inner in node.body
        if _names(inner) & DERIVED
    ]
    if not parts:
        return []
    private = [node for node in tree.body if any(name.startswith("_") for name in _names(node))]
    while True:
        inside = {id(name) for part in parts for name in _uses(part)}
        elsewhere = {name.id for name in _uses(tree) if id(name) not in inside}
        used = {name.id for part in parts for name in _uses(part)}
        more = [n for n in private if n not in parts and _names(n) <= used and not _names(n) & elsewhere]
        if not more:
            return parts
        parts += more


def _uses(tree: ast.AST) -> Iterator[ast.Name]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


def _last_name(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _names(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def code_hash(files: list[Path], imports: bool = True, derived: bool = True) -> str:
    """SHA-256 of the code of Python files, and of the bytes of others, in the order given."""
    parts = [
        normalized(file, imports, derived).encode() if file.suffix == ".py" else file.read_bytes() for file in files
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
