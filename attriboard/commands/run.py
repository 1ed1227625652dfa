"""``attriboard run``: a suite's cells, one record each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError, check_name
from .dry_run import dry_run
from .options import Include, include_files
from .output import err, note_foreign_file, out
from .progress import progress_of_cells

if TYPE_CHECKING:
    from ..records.processes import Maker


def run(
    suite: Annotated[Path, typer.Argument(help="A suite file, or a name of `attriboard list suites`.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for records; results/SUITE by default.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task (repeatable).")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method (repeatable); a new one is added.")] = None,
    model: Annotated[str | None, typer.Option(help="This model instead of the suite's.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="Only this level (repeatable).")] = None,
    limit: Annotated[int | None, typer.Option(help="Draw only this many examples per split (a trial run).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="This seed instead of the suite's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the suite's by default.")] = None,
    include: Include = None,
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[
        int, typer.Option(help="With --executor local: how many processes run cells; they divide the threads.")
    ] = 1,
    shard: Annotated[
        str | None, typer.Option(help="Only the I-th of N parts of the run, as I/N: for several machines.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Most rows in one forward pass, or auto: as many as a GPU's memory holds.")
    ] = None,
    capability: Annotated[
        str | None,
        typer.Option(help="lm-eval tasks by which pruned and edited models are judged too: hellaswag,arc_easy."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is done.")] = False,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Measure precomputed scores: a .safetensors file, MIB's .json or .pt, or a folder of them "
            "(repeatable). Runs these alone; name methods with --method to run them too. Records that the folder holds "
            "already stay, so the board shows both."
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing: print what it would cost, by model and level.")
    ] = False,
    on: Annotated[
        str | None, typer.Option(help="The device that --dry-run speaks of: h100, h200, a100 or cpu (this computer).")
    ] = None,
) -> None:
    """Runs a suite and stores one record per cell; what is done already is skipped."""
    from ..exchange.precomputed import read_all
    from ..loading import check_device
    from ..records.store import Folder
    from ..run.batch_size import parsed
    from ..run.parts import Shard
    from ..run.runner import run_cells
    from ..run.suite import Suite, limited
    from ..run.workers import check_workers

    include_files(include)
    loaded = Suite.load(suite)
    check_name("executor", executor, ("local", "ray"))
    check_workers(workers)
    if executor == "ray" and workers > 1:
        raise ConfigurationError("--workers belongs to --executor local; how many cells Ray runs at once is Ray's own.")
    part = None if shard is None else Shard.parse(shard)
    if on is not None and not dry:
        raise ConfigurationError(f"--on {on} names the device that --dry-run speaks of; add --dry-run.")
    changes: dict[str, Any] = {}
    if limit is not None:
        changes |= limited(limit)
    if device is not None:
        changes["device"] = device
    if batch_size is not None:
        changes["batch_size"] = parsed(batch_size)
    if capability is not None:
        named = [name.strip() for name in capability.split(",") if name.strip()]
        if not named:
            raise ConfigurationError("--capability names no lm-eval task; give names with commas between them.")
        changes["capability"] = {"tasks": tuple(dict.fromkeys([*loaded.settings.capability.tasks, *named]))}
    if not dry:
        check_device(changes.get("device", loaded.settings.device))
    plan = (
        loaded.precomputed(read_all(scores, level or ()), task or (), level or (), model, seed, changes)
        if scores
        else []
    )
    if method or not scores:
        plan += loaded.plan(task or (), method or (), level or (), model, seed, changes)
    if part is not None:
        plan = part(plan)
    folder = Folder(out_dir or Path("results") / loaded.name)
    if dry:
        dry_run(plan, loaded.name, folder, force, on or "cpu")
        return
    folder.claim(
        loaded.name,
        description=loaded.description,
        expected=loaded.expected,
        smoke=loaded.smoke,
        not_run=loaded.not_run,
    )
    try:
        with progress_of_cells(None if executor == "ray" else workers) as (planned, started, finished):
            outcome = run_cells(
                loaded.name, plan, folder, force, executor, planned, started, finished, _waiting, workers
            )
    except KeyboardInterrupt:
        err.print("interrupted: finished cells are stored; the same command goes on from there.")
        raise typer.Exit(130) from None
    made = {record.filename for record in outcome.made}
    for name, why in sorted(
        (name, why) for name, why in folder.foreign.items() if name.removesuffix(".gz") not in made
    ):
        note_foreign_file(folder.path / name, why)
    done = f"{len(outcome.made) - len(outcome.failed)} cells run, {outcome.done_before} done before"
    if outcome.elsewhere:
        done += f", {outcome.elsewhere} run by another process meanwhile"
    out.print(f"{done}, {len(outcome.failed)} failed. Records: {folder.path}", highlight=False)
    for record in outcome.failed:
        err.print(f"failed: {escape(str(record.cell))}: {escape(record.reason)}", highlight=False)
    if outcome.failed:
        raise typer.Exit(1)


def _waiting(maker: Maker) -> None:
    """Says who runs what is left."""
    err.print(
        f"all that is left is being run by process {maker.pid} on {escape(maker.host)}; waiting for it. What it leaves "
        f"undone is run here.",
        highlight=False,
    )
