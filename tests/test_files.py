"""The door for files: regular ones alone, of bounded size, and one sentence for whatever is wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from attriboard.errors import ConfigurationError, ExampleError, TaskError
from attriboard.files import MAX_LINE, is_file, json_lines, kind_and_reason, kind_of, parse_json, read_text
from attriboard.images import open_image
from attriboard.instructions import read_instructions


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """Things that are no regular file, by name."""
    found = {name: tmp_path / name for name in ("pipe", "zero", "loop", "socket")}
    os.mkfifo(found["pipe"])
    found["zero"].symlink_to("/dev/zero")
    found["loop"].symlink_to(found["loop"])
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(tmp_path)  # a socket's path is short
        made.bind("socket")
        os.chdir(before)
    return found


@pytest.mark.parametrize("name", ["pipe", "zero", "socket"])
def test_what_is_no_regular_file_is_never_read(odd: dict[str, Path], name: str) -> None:
    assert kind_of(odd[name]) == "other" and not is_file(odd[name])
    message = f"{odd[name]} is no regular file (a pipe, socket or device), and is not read."
    with pytest.raises(ConfigurationError) as caught:
        read_text(odd[name], "--data")
    assert str(caught.value) in (f"--data {message}", f"--data {odd[name]} cannot be read: No such device or address.")
    with pytest.raises(ExampleError, match="is no regular file"):
        open_image(odd[name])
    with pytest.raises(TaskError, match="is no regular file"):
        read_instructions(str(odd[name]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a" * 300, "File name too long"), ("a\0b", "embedded null byte"), ("loop", "Too many levels of symbolic links")],
)
def test_what_the_system_refuses_is_one_sentence(odd: dict[str, Path], name: str, reason: str) -> None:
    path = odd["loop"].parent / name
    with pytest.raises(ConfigurationError, match=f"^--scores .* cannot be used: {reason}.$") as caught:
        kind_of(path, "--scores")
    assert len(str(caught.value)) < 400


def test_a_path_through_a_file_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert kind_of(tmp_path / "file" / "more") == "missing"


def test_a_file_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("12345")
    assert read_text(tmp_path / "large", most=5) == "12345"
    with pytest.raises(ConfigurationError, match=r"large has 5 bytes; at most 4 are read\.$"):
        read_text(tmp_path / "large", most=4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ("9" * 5000, "it holds a number with too many digits"),
        ('"\\ud800"', "it holds half a surrogate pair, which is no character"),
        ("[1,", "Expecting value at line 1 column 4"),
    ],
)
def test_json_that_cannot_be_taken_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert str(caught.value) == reason


def test_a_line_that_cannot_be_taken_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n')
    assert list(json_lines(file, TaskError)) == [(1, {"a": 1}), (3, [2])]
    file.write_text("{}\n" + "[" * 9000)
    with pytest.raises(TaskError, match=r"^line 2 of rows.jsonl is not JSON \(it is nested too deeply\); correct"):
        list(json_lines(file, TaskError))
    file.write_text('"' + "a" * MAX_LINE + '"')
    with pytest.raises(TaskError, match=r"line 1 of rows.jsonl has 1,048,578 characters; at most 1,048,576 are read"):
        list(json_lines(file, TaskError))


def test_an_error_that_cannot_say_what_it_is_is_called_by_its_kind() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert kind_and_reason(Silent()) == "Silent"
    assert kind_and_reason(ValueError("one\ntwo")) == "ValueError: one"
