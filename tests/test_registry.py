"""Files named by --include that go wrong: one sentence each, whatever they do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from attriboard import registry
from attriboard.errors import ConfigurationError
from attriboard.method import methods
from tests.bench.cli import process

METHOD = "from attriboard.method import Method\nclass M(Method):\n    name = {}\n    def score_batch(s, *a): pass\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(0)", "ends the program while it is imported (exit code 0); put what it runs under"),
        ("import os; os._exit(0)", "ends the program while it is imported (exit code 0); put what it runs under"),
        ("raise BaseException('x')", "cannot be imported: BaseException: x"),
        ("raise GeneratorExit", "cannot be imported: GeneratorExit"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "cannot be imported: E"),
        ("def (", "cannot be imported: SyntaxError: invalid syntax"),
        (METHOD.format("5"), "is called 5; a name is a text of at most 80 letters"),
        (METHOD.format("'../x'"), "is called '../x'; a name is a text of at most 80 letters"),
    ],
)
def test_a_file_that_goes_wrong_when_it_is_imported_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    file, leave = tmp_path / "mine.py", os._exit
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        methods.include(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert os._exit is leave, "the real one is put back"


def test_an_endless_import_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "IMPORT_SECONDS", 0.2)
    file = tmp_path / "mine.py"
    file.write_text("while True:\n    try:\n        while True: pass\n    except Exception: pass\n")
    with pytest.raises(ConfigurationError, match=r"takes longer than 0.2 seconds to import; is there an endless loop"):
        methods.include(file)
    time.sleep(0.3)  # a timer that still ran would end the tests


def test_a_file_that_would_end_the_program_as_a_success_ends_it_with_two(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os; os._exit(0)")
    done = process("list", "methods", "--include", file)
    assert done.returncode == 2 and "ends the program while it is imported" in done.stderr
    assert "Traceback" not in done.stderr
