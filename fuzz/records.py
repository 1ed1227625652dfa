"""Stored records with something wrong in them, read for a board, a comparison and a resume."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attriboard.board.board import Board
from attriboard.board.check import check_folders
from attriboard.board.formats import render
from attriboard.records.store import MARKER, Folder
from attriboard.run.stored import Stored

from .common import Case, changed, mangled, nested, places, scratch

ROOT = Path(__file__).resolve().parents[1] / "results"
TEMPLATES = ("quick", "downstream", "sanity", "planted")


@functools.cache
def templates() -> list[list[dict[str, Any]]]:
    """Small groups of records of one table, of every kind of evaluation."""
    groups = []
    for suite in TEMPLATES:
        tables: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for file in sorted((ROOT / suite).glob("*.json")):
            if file.name == MARKER:
                continue
            record = json.loads(file.read_text())
            cell = record["cell"]
            key = tuple(str(cell[k]) for k in ("task", "level", "model", "variant", "seed", "replacement"))
            tables.setdefault((*key, *sorted(record["measurements"])), []).append(record)
        picked: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for table in tables.values():
            kinds = tuple(sorted(table[0]["measurements"]))
            if len(table) > 1 and kinds not in picked:
                picked[kinds] = table[:3]
        groups += list(picked.values())
    return groups


def cases(seed: int) -> Iterator[Case]:
    """One record of a table is changed; the others stay."""
    rng = random.Random(seed)
    while True:
        group = copy.deepcopy(rng.choice(templates()))
        record = group[0]
        kind = rng.random()
        name = f"{record['cell']['task']}.{record['cell']['level']}.json"
        content: bytes | None = None
        if kind < 0.85:
            fields = [path for path in places(record) if path[0] in ("measurements", "scores") or rng.random() < 0.3]
            how = "; ".join(changed(record, rng.choice(fields), rng) for _ in range(1))
        elif kind < 0.93:
            how, content = mangled(json.dumps(record).encode(), rng)
        elif kind < 0.97:
            how, content = f"nested {rng.choice((500, 5_000, 200_000))}", None
            content = b"[" * int(how.split()[1])
        else:
            how, content = "a file that is none", None
        yield f"{name}: {how}", functools.partial(_case, group, content, how, rng.random())


def _case(group: list[dict[str, Any]], content: bytes | None, how: str, door: float) -> None:
    with scratch() as folder:
        (folder / MARKER).write_text(json.dumps({"suite": group[0].get("suite", "x")}))
        for at, record in enumerate(group[1:]):
            (folder / f"whole{at}.json").write_text(json.dumps(record))
        first = folder / "first.json"
        if how == "a file that is none":
            if door < 0.5:
                os.mkfifo(first)
            else:
                first.symlink_to("/dev/zero" if door < 0.75 else first)
        else:
            first.write_bytes(json.dumps(group[0]).encode("utf-8", "replace") if content is None else content)
        if how.startswith("nested") and door < 0.5:
            (folder / MARKER).write_text(json.dumps({"suite": "x"})[:-1] + ', "a": ' + "[" * 20_000)
        if door < 0.6:
            board = Board.read(folder)
            render(board, ("md", "json", "csv", "html", "latex")[int(door * 1000) % 5])
        elif door < 0.8:
            check_folders(folder, folder, (), True)
        elif door < 0.9:
            Folder(folder).refresh()
        else:
            Stored.of(Folder(folder))


__all__ = ["cases", "nested"]
