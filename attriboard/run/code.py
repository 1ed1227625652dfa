"""The text of code as far as it decides results: without comments, docstrings and blank lines."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from functools import cache
from pathlib import Path

DERIVED = frozenset({"metrics", "statistics", "scalars", "gaps"})
"""Parts of a measurement that follow from what is stored; they have versions of their own (those of the metrics)."""


@cache
def normalized(file: Path, imports: bool = True, derived: bool = True) -> str:
    """The code of a Python file.

    Args:
        imports: whether import statements are kept; without them, moving what is imported changes nothing.
        derived: whether the parts of classes called as in :data:`DERIVED` are kept.

    The same on every Python version: lines are cut out of the text as it is, not printed anew.
    """
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "\n"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not imports:
            _cut(lines, node)
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for i, inner in enumerate(node.body):
                constant = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
                # a text that stands alone is a docstring, of the class, function or constant before it
                if constant and isinstance(inner.value.value, str) and (len(node.body) > 1 or i == 0):  # type: ignore[attr-defined]
                    _cut(lines, inner)
                if isinstance(node, ast.ClassDef) and not derived and _names(inner) & DERIVED:
                    _cut(lines, inner)
    return "".join(line for line in (line.rstrip() + "\n" for line in lines) if line.strip())


def _cut(lines: list[str], node: ast.stmt) -> None:
    assert node.end_lineno is not None
    for row in range(node.lineno - 1, node.end_lineno):
        lines[row] = "\n"


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def code_hash(files: list[Path], imports: bool = True, derived: bool = True) -> str:
    """SHA-256 of the code of Python files, and of the bytes of others, in the order given."""
    parts = [
        normalized(file, imports, derived).encode() if file.suffix == ".py" else file.read_bytes() for file in files
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
