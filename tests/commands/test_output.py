"""Files that commands cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest

from attriboard.commands.output import make_folder_of, writing
from attriboard.errors import ConfigurationError


def test_what_keeps_a_file_from_being_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "board.md"
    with pytest.raises(ConfigurationError) as caught:
        make_folder_of(inside)
    assert str(caught.value) == f"cannot write {inside}: File exists."
    with pytest.raises(ConfigurationError) as caught, writing(inside):
        inside.write_text("")
    assert str(caught.value) == f"cannot write {inside}: Not a directory."


def test_other_kinds_of_errors_count_where_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "scores"
    with pytest.raises(ConfigurationError) as caught, writing(file, KeyError):
        raise KeyError("scores")
    assert str(caught.value) == f"cannot write {file}: 'scores'."
    with pytest.raises(KeyError), writing(file):
        raise KeyError("scores")


def test_a_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    make_folder_of(tmp_path / "a" / "b" / "board.md")
    assert (tmp_path / "a" / "b").is_dir()
