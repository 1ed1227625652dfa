"""Files of questions, one JSON object a line, with something wrong in a line."""

from __future__ import annotations

import copy
import functools
import json
import os
import random
from collections.abc import Iterator

from attriboard.instructions import read_instructions
from attriboard.studies.scale_questions import read_items

from .common import Case, changed, mangled, places, scratch

GOOD = [
    {"instruction": "How strong, 0 to 1? Tweet: fine", "input": "", "output": "0.5"},
    {"instruction": "From -4 to 4. Text: bad", "input": "more", "output": "-2"},
    {"conversations": [{"from": "human", "value": "0 to 1. Tweet: x"}, {"from": "assistant", "value": "0.1"}]},
]


def cases(seed: int) -> Iterator[Case]:
    """A value in a line is changed, a line is replaced, or the file is damaged."""
    rng = random.Random(seed)
    odd_lines = {
        "nested": lambda: b"[" * rng.choice((900, 20_000, 200_000)),
        "nested object": lambda: b'{"instruction": ' * rng.choice((900, 50_000)),
        "digits": lambda: b'{"instruction": ' + b"9" * rng.choice((4_000, 5_000, 50_000)) + b"}",
        "surrogate": lambda: b'{"instruction": "\\ud800 0 to 1", "output": "0.5"}',
        "long": lambda: b'{"instruction": "' + b"a" * rng.choice((2**20, 2**21)) + b'", "output": "1"}',
        "not UTF-8": lambda: b"\xff\xfe" + rng.randbytes(20),
        "no object": lambda: rng.choice((b"1", b"null", b'"x"', b"[]", b"NaN", b"1e999")),
        "zero byte": lambda: b'{"instruction": "\x00", "output": "1"}',
    }
    while True:
        rows = copy.deepcopy(GOOD)
        lines = [json.dumps(row).encode() for row in rows]
        at = rng.randrange(len(lines))
        kind = rng.random()
        if kind < 0.5:
            how = changed(rows[at], rng.choice(list(places(rows[at]))), rng)
            lines[at] = json.dumps(rows[at]).encode()
        elif kind < 0.8:
            how = rng.choice(list(odd_lines))
            lines[at] = odd_lines[how]()
        else:
            how, content = mangled(b"\n".join(lines), rng)
            lines = [content]
        yield f"line {at + 1}: {how}", functools.partial(_case, b"\n".join(lines), rng.random())


def _case(content: bytes, door: float) -> None:
    with scratch() as folder:
        file = folder / "questions.jsonl"
        if door < 0.01:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        read_items(str(file)) if door > 0.5 else read_instructions(str(file))
