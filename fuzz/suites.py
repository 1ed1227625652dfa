"""Suite files with something wrong in them, read and planned."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

from attriboard.run.suite import Suite, limited

from .common import ODD, Case, changed, mangled, places, scratch

BASE: dict[str, Any] = {
    "name": "small",
    "description": "A suite.",
    "models": ["planted-copy"],
    "seeds": [0, 1],
    "not_run": ["nothing"],
    "settings": {
        "train_examples": 8,
        "test_examples": 8,
        "max_kept": 6,
        "min_kept": 2,
        "folds": 2,
        "repetitions": 1,
        "keep": "both",
        "evaluations": ["faithfulness", "ablation", "ground_truth", "speed"],
        "batch_size": 4,
        "dtype": "float32",
        "device": "cpu",
        "ablation": {"draws": 2},
        "speed": {"examples": 2, "repeats": 2},
    },
    "groups": [
        {
            "tasks": ["planted_copy", {"name": "ioi", "subsets": ["giver_first"]}],
            "methods": ["random", {"name": "attribution_patching", "replacement": "counterfactual"}],
            "levels": ["heads", "neurons"],
            "replacements": ["counterfactual", "mean"],
            "variant": "",
            "settings": {"evaluations": ["faithfulness"], "max_kept": 4},
        },
        {
            "tasks": ["planted_copy"],
            "methods": [{"name": "integrated_gradients", "steps": 4}],
            "levels": ["heads"],
            "seeds": [3],
            "models": ["planted-copy-seed1"],
        },
    ],
}


def cases(seed: int) -> Iterator[Case]:
    """One or two values of a suite are changed, or its text is damaged."""
    rng = random.Random(seed)
    while True:
        suite = copy.deepcopy(BASE)
        kind = rng.random()
        if kind < 0.8:
            how = "; ".join(changed(suite, rng.choice(list(places(suite))), rng) for _ in range(rng.choice((1, 1, 2))))
            content = _toml(suite).encode("utf-8", "surrogatepass")
        elif kind < 0.95:
            how, content = mangled(_toml(suite).encode(), rng)
        else:
            deep = rng.choice((200, 2_000, 100_000))
            how, content = f"nested {deep}", _toml(suite).encode() + b"\nmore = " + b"[" * deep + b"]" * deep
        yield f"suite: {how}", functools.partial(_case, content)


def _case(content: bytes) -> None:
    with scratch() as folder:
        file = folder / "suite.toml"
        file.write_bytes(content)
        Suite.load(file).plan(changes=limited(4))


def _toml(value: Any, name: str = "") -> str:
    """TOML of a nested value; lists of tables are written inline."""
    lines, tables = [], []
    for key, inner in value.items():
        if isinstance(inner, dict) and key == "settings" and not name:
            tables.append(f"[{_key(key)}]\n{_toml(inner, key)}")
        else:
            lines.append(f"{_key(key)} = {_inline(inner)}")
    return "\n".join([*lines, *tables]) + "\n"


def _key(key: str) -> str:
    return _inline(key)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(ch if ch.isprintable() and ch not in '"\\' else f"\\u{ord(ch):04x}" for ch in value) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return "nil" if value is None else str(value)


__all__ = ["ODD", "cases"]
