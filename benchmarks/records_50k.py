"""What a folder of very many records costs: the time and memory of a resume and of the board, for a growing number.

Records are copies of those of ``results/quick``, each copy under a model of its own with other measurements, so that
tables, files and numbers are as large as real ones. A resume is what ``attriboard run`` does before it knows what is to
be done; the board is the Markdown page. Each is measured in a process of its own. ``make records-50k`` writes
``results/records_50k.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "results" / "quick"


def generate(folder: Path, n: int) -> None:
    """Writes ``n`` records (at least; whole copies of the source), in turn over its tables."""
    from attriboard.records.record import digest
    from attriboard.records.store import MARKER

    folder.mkdir(parents=True)
    sources = [json.loads(file.read_text()) for file in sorted(SOURCE.glob("*.json")) if file.name != MARKER]
    written = copy = 0
    while written < n:
        rng = random.Random(copy)
        shift = {source["cell"]["task"]: rng.uniform(0.9, 1.1) for source in sources}
        for source in sources:
            record = {**source, "cell": {**source["cell"], "model": f"{source['cell']['model']}-{copy}"}}
            record["identity"] = digest([source["identity"], copy])
            if record["model"]:
                record["model"] = {**record["model"], "weights_sha256": digest(["weights", copy])}
            for measured in record["measurements"].values():
                for name in ("absolute", "signed", "removed"):  # other numbers, alike for a whole table
                    if name in measured:
                        by = shift[source["cell"]["task"]]
                        measured = {**measured, name: [[by * x for x in row] for row in measured[name]]}
            name = f"{source['cell']['task']}.{source['cell']['level']}.{source['cell']['method']}"
            file = folder / f"{name}.{record['identity'][:12]}.json"
            file.write_text(json.dumps(record, separators=(",", ":")) + "\n")
            written += 1
        copy += 1
    (folder / MARKER).write_text(json.dumps({"suite": "quick"}) + "\n")


def resume(folder: Path) -> dict[str, Any]:
    """What a run does before it knows what is to be done."""
    from attriboard.records.store import Folder
    from attriboard.run.stored import Stored

    Folder(folder).claim("quick")
    return {"records": len(Stored.of(Folder(folder)).by_identity)}


def board(folder: Path) -> dict[str, Any]:
    """The Markdown page."""
    from attriboard.board.board import Board
    from attriboard.board.formats import render

    page = render(Board.read(folder, lean=True), "md")
    return {"characters": len(page)}


def measured(step: str, folder: Path) -> dict[str, Any]:
    """Seconds, those of the processor, and the most memory of one step, in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=("resume", "board"))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step:
        start, began = time.perf_counter(), time.process_time()
        facts = {"resume": resume, "board": board}[given.step](given.folder)
        seconds, worked = time.perf_counter() - start, time.process_time() - began
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps(
                {"seconds": round(seconds, 1), "processor_seconds": round(worked, 1), "peak_mib": round(most), **facts}
            )
        )
        return
    rows = []
    for n in given.records:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "records"
            generate(folder, n)
            size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
            rows.append({"asked": n, "mib_on_disk": round(size)})
            for step in ("resume", "board"):
                rows[-1][step] = measured(step, folder)
        print(rows[-1], flush=True)
    if given.out:
        given.out.write_text(json.dumps({"source": "results/quick", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
