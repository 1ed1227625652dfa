"""The commit of this package's own checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str | None:
    """The commit of this package's own checkout, ``+changes`` behind it where code differs; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", "attriboard", "tasks", "methods")
    head = git("rev-parse", "HEAD")
    return (head + ("+changes" if changed else "")) or None
