"""``python -m fuzz.page``: ``docs/reliability.md``, from the stored records of the three runs."""

from __future__ import annotations

import json
from pathlib import Path

from attriboard.records.settings import MAX_COUNT, MAX_EXAMPLES
from attriboard.records.store import DRAFT_DAYS
from attriboard.registry import IMPORT_SECONDS
from attriboard.run.claims import LEASE, RENEWED
from attriboard.run.suite import MAX_CELLS

from .__main__ import Fuzzed
from .common import SECONDS
from .crash import Crashes

RESULTS = Path(__file__).resolve().parents[1] / "results"
INTRO = f"""\
# What happens when something goes wrong

*Written by `python -m fuzz.page` from `results/reliability/` and `results/records_50k.json`; the figures are those of
the last `make fuzz`, `make crash` and `make records-50k`.*

## The rules

Bad input is one sentence that names the thing, the value and the way out, and exit code 2. A cell that fails is
recorded and the others run; exit code 1. Nothing finished is lost.

**Files.** Only regular files are read: a pipe, a socket, a device, or a link to one, is refused or passed over with
its name. What the operating system refuses (a name that is too long, a folder that may not be entered) is said in its
words.

**Counts** are bounded when a suite is read: at most {MAX_EXAMPLES:,} examples of a split, {MAX_COUNT:,} of anything
else that is counted (draws, steps, samples) and {MAX_CELLS:,} cells. A task whose candidates repeat themselves ends
with a sentence, also where its stream has no end.

**Records** are whole or not there: a record is written under a draft's name and renamed, its scores before it. Lists
in it are checked against each other when it is read; a file that is no sound record is named on the board and by
`run`, left out, and made anew by the next run of its cell. Drafts of processes that died are cleared by the next run
in the folder (of processes on another computer after {DRAFT_DAYS:g} day).

**Several processes** may run one suite in one folder, and share its work: cells with the same scores are claimed
together by a file `.claim-...` that holds the process and the computer. Each waits until everything is done; what a
killed one held is taken over at once on the same computer. On another computer that cannot be seen: a holder renews
its claims every {RENEWED:g} seconds, and one that was not renewed for {LEASE / 60:g} minutes is taken over. The
clocks of the computers need not agree. Where two should still run one cell (a computer that slept through its lease),
the results are equal and the last is kept.

**Resuming** reads `.index.jsonl` in the folder, which says of every record what must be known to pass it over; a
record whose file has another size or time than there is read again. The index can be deleted at any time.

**Included files** (`--include`) are run in this process and can do what you can. While one is imported, `sys.exit`,
`os._exit` and any exception become a sentence, and the import ends after {IMPORT_SECONDS:g} seconds. What never
returns from a library's own code, or kills the process by a signal, cannot be caught.
"""


def page() -> str:
    """The whole page."""
    fuzzed = Fuzzed.model_validate_json((RESULTS / "reliability" / "fuzz.json").read_text())
    crashes = Crashes.model_validate_json((RESULTS / "reliability" / "crash.json").read_text())
    parts = [INTRO, _fuzz(fuzzed), _crash(crashes)]
    records = RESULTS / "records_50k.json"
    if records.exists():
        parts.append(_records(json.loads(records.read_text())))
    return "\n".join(parts)


def _fuzz(fuzzed: Fuzzed) -> str:
    rows = [
        f"| {kind.replace('_', ' ')} | {o.cases:,} | {o.refused:,} | {len(o.tracebacks)} | {len(o.hangs)} |"
        for kind, o in fuzzed.kinds.items()
    ]
    return "\n".join(
        [
            "## Bad input",
            "",
            f"{fuzzed.cases:,} cases, seed {fuzzed.seed}. *Refused*: one sentence; the others were taken, most of them",
            "because what was changed does not matter, or, of records, because the bad one was named and left out. A",
            f"*traceback* is any other error, a *hang* a case of more than {SECONDS} seconds.",
            "",
            "| input | cases | refused | tracebacks | hangs |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )


def _crash(crashes: Crashes) -> str:
    points = [f"| {point} | {n} |" for point, n in {**crashes.at_points, **crashes.at_random}.items()]
    return "\n".join(
        [
            "## Kills",
            "",
            f"{crashes.kills} runs of a suite of {crashes.cells} cells on a planted model were killed: by SIGKILL at a",
            "point of a write, or by a signal at a random time. After each the suite was run to its end in the same",
            f"folder. Finished records lost or changed: {crashes.lost}. Folders whose final records differ from those",
            f"of a run that was left alone: {crashes.unequal}. Drafts and claims left over: {crashes.left_over}.",
            f"Finished cells that were run again: {crashes.twice}.",
            "",
            "| killed | runs |",
            "| --- | ---: |",
            *points,
            "",
        ]
    )


def _records(measured: dict) -> str:
    rows = [
        f"| {row['resume']['records']:,} | {row['mib_on_disk']:,} | "
        + " | ".join(f"{row[s]['processor_seconds']:g} | {row[s]['peak_mib']:,}" for s in ("resume", "board"))
        + " |"
        for row in measured["rows"]
    ]
    return "\n".join(
        [
            "## Very many records",
            "",
            "Copies of the records of `results/quick` under other models. A resume is what `attriboard run` does",
            "before it knows what is to be done, PyTorch's own memory included; the board is the Markdown page.",
            "Seconds are the processor's, one core.",
            "",
            "| records | MiB on disk | resume, s | resume, MiB | board, s | board, MiB |",
            "| ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
