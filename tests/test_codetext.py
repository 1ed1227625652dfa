"""The text of code as far as it decides results: what may be written otherwise, and what may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from attriboard.codetext import code_hash, normalized

MODULE = '''\
"""What the module is for."""

import os
from pathlib import (
    Path,
)

SIZES = (1, 2)
"""What sizes are."""

TEXT = """first

  second  # no comment
"""


class Tool:
    """What it does."""

    name = "tool"  # as it is called

    def use(self):
        """How it is used."""

        # first this
        return "a # b"
'''

MEASUREMENT = """
_UNIT = "a unit"
_LIMIT = 3


def _metric(name):
    return (name, "a text", _UNIT)


def _mean(values):
    return sum(values) / _LIMIT


class Width(base.Measurement):
    name = "width"
    metrics = (_metric("width"), _metric("height"))
    values: list

    def chosen(self):
        return [value for value in self.values if value < _LIMIT]

    def statistics(self):
        return {"width": _mean(self.values)}

    def scalars(self):
        return {"height": 1.0}

    @property
    def gaps(self):
        return {}


class Other:
    def statistics(self):
        return "its own"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "module.py"


def _of(file: Path, text: str, imports: bool = True, derived: bool = True) -> str:
    file.write_text(text, encoding="utf-8")
    return normalized(file, imports, derived)


def test_it_is_the_code_without_comments_docstrings_and_blank_lines(file: Path) -> None:
    assert _of(file, MODULE) == (
        "import os\n"
        "from pathlib import (\n"
        "    Path,\n"
        ")\n"
        "SIZES = (1, 2)\n"
        'TEXT = """first\n'
        "\n"
        "  second  # no comment\n"
        '"""\n'
        "class Tool:\n"
        '    name = "tool"\n'
        "    def use(self):\n"
        '        return "a # b"\n'
    )
    assert _of(file, MODULE, imports=False).startswith("SIZES")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""What the module is for."""', '"""Something else,\n\nat length."""'),
        ('"""What the module is for."""\n', ""),
        ("as it is called", "as nobody calls it"),
        ('    """What it does."""\n\n', ""),
        ("        # first this\n", "        # first that,\n        # then this\n\n"),
        ('"""What sizes are."""', '"""Numbers."""'),
        ('"""How it is used."""', '"""Wie es benutzt wird: «ä»."""'),
        ("import os\n", "import os  # «ä»\n"),
        ("SIZES = (1, 2)\n", "SIZES = (1, 2)   \n"),
    ],
)
def test_what_is_said_of_code_does_not_matter(file: Path, before: str, after: str) -> None:
    assert before in MODULE
    assert _of(file, MODULE.replace(before, after)) == _of(file, MODULE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "tool"', 'name = "tol"'),
        ("second  # no comment", "second  # another comment"),
        ("first\n\n", "first\n"),
        ("no comment\n", "no comment \n"),
        ('"a # b"', '"a # c"'),
        ("(1, 2)", "(1, 3)"),
        ("import os", "import io"),
    ],
)
def test_what_is_done_matters_and_so_do_strings_that_are_data(file: Path, before: str, after: str) -> None:
    assert before in MODULE
    assert _of(file, MODULE.replace(before, after)) != _of(file, MODULE)


def test_a_docstring_on_the_line_of_code_does_not_take_the_code_with_it(file: Path) -> None:
    one = _of(file, 'def f(x): "ä"; return 1\n')
    assert one == _of(file, 'def f(x): "another text"; return 1\n')
    assert one != _of(file, 'def f(x): "ä"; return 2\n')
    one = _of(file, 'x = "ä"; import os; y = 1\n', imports=False)
    assert one == _of(file, 'x = "ä"; import sys; y = 1\n', imports=False)
    assert one != _of(file, 'x = "ä"; import os; y = 2\n', imports=False)


def test_text_in_pieces_is_read_like_other_code(file: Path) -> None:
    text = 'X = (\n    "first"  # a comment\n\n    f"second {1}"\n)\nY = f"""a\n\n{1}b """\n'
    assert _of(file, text.replace("  # a comment\n\n", "\n")) == _of(file, text)
    assert _of(file, text.replace("a\n\n", "a\n")) != _of(file, text)
    assert _of(file, 'X = "a\fb"  # c\nY = 1  # d\n') == 'X = "a\fb"\nY = 1\n'


def test_of_measurements_what_follows_from_what_is_stored_can_be_left_out(file: Path) -> None:
    assert _of(file, MEASUREMENT, derived=False) == (
        "_LIMIT = 3\n"
        "class Width(base.Measurement):\n"
        '    name = "width"\n'
        "    values: list\n"
        "    def chosen(self):\n"
        "        return [value for value in self.values if value < _LIMIT]\n"
        "class Other:\n"
        "    def statistics(self):\n"
        '        return "its own"\n'
    )
    assert "a text" in _of(file, MEASUREMENT) and "@property" in _of(file, MEASUREMENT)


def test_the_hash_is_of_code_and_of_the_bytes_of_other_files(file: Path, tmp_path: Path) -> None:
    file.write_text("x = 1\n")
    data = tmp_path / "data.jsonl"
    data.write_text("# 1\n")
    before = code_hash([file, data])
    assert len(before) == 64 and before != code_hash([data, file])
    data.write_text("# 2\n")
    assert code_hash([file, data]) != before
    data.write_text("# 1\n")
    file.write_text("x = 1  # one\n")
    assert code_hash([file, data]) == before


METHOD = """\
from attriboard.method import Method
{imports}

class Mine(Method):
    name = "mine"

    def score_batch(self, model, batch, level):
        return model.run(batch)
{forecast}"""


def test_what_a_method_says_of_its_cost_is_no_part_of_its_code(tmp_path: Path):
    """Nor is the import that only it needs; any other is."""
    silent = METHOD.format(imports="", forecast="")
    said = "\n    def passes(self, shape: Shape, level) -> float:\n        return {}\n"
    imported = "from attriboard.shape import Shape"
    hashes = [
        code_hash([_written(tmp_path, text)])
        for text in (
            silent,
            METHOD.format(imports=imported, forecast=said.format(1.0)),
            METHOD.format(imports=imported, forecast=said.format("2 * shape.forward()")),
        )
    ]
    assert len(set(hashes)) == 1
    for other in (
        METHOD.format(imports="import math", forecast=said.format(1.0)),
        METHOD.format(imports=imported, forecast=""),
        METHOD.format(imports="", forecast="\n    def passes(self, example):\n        return 1.0\n"),
        METHOD.format(imports="", forecast="") + "\n\ndef passes(self, shape, level):\n    return 1.0\n",
    ):
        assert code_hash([_written(tmp_path, other)]) != hashes[0]


def _written(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text(text, encoding="utf-8")
    return file
