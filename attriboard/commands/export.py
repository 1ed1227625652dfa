"""``attriboard export-lm-eval`` and ``export-mib``: tasks and scores for other people's tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError, ModelError
from ..files import kind_of
from .options import Include, include_files
from .output import err, out, writing

if TYPE_CHECKING:
    from ..model import Model
    from ..records.record import Record


def export_lm_eval(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files; made if there is none.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task (repeatable); all text tasks.")] = None,
    limit: Annotated[int, typer.Option(help="How many examples of every task.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the examples.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "test",
    include: Include = None,
) -> None:
    """Writes tasks as lm-eval tasks, so that any model can be evaluated on them."""
    from ..exchange.lm_eval import export

    include_files(include)
    exported = export(folder, task or (), limit, seed, split)
    for why in exported.skipped.values():
        err.print(f"skipped: {escape(why)}", highlight=False)
    for name, n in exported.written.items():
        out.print(f"attriboard_{escape(name)}: {n} examples", highlight=False)
    example = next(iter(exported.written), "TASK")
    out.print(
        f"wrote {len(exported.written)} tasks; evaluate a model on one with: lm-eval run --model hf --model_args "
        f"pretrained=MODEL --include_path {escape(str(folder))} --tasks attriboard_{example}",
        highlight=False,
    )


def export_mib(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SCORES|RUN",
            help="A .safetensors file with scores of heads, nodes or edges; or the folder of a run's records.",
        ),
    ],
    target: Annotated[
        Path, typer.Option("--out", help="A .json or .pt file; a folder with --submission, or for a run.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a file: the model, if it has another name here. Of a run: NAME=MIBNAME, what MIB calls a model "
            "(repeatable)."
        ),
    ] = None,
    submission: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="TASK MODEL",
            help="Of a file: write TASK_MODEL/importances.json, as MIB's leaderboard takes it, under MIB's names: "
            "ioi gpt2.",
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Of a run: NAME=MIBNAME, what MIB calls a task (repeatable).")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Of a run: only this method (repeatable).")] = None,
    level: Annotated[str | None, typer.Option(help="Of a run: edges, nodes or heads; edges by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Of a run: only this seed.")] = None,
    circuits: Annotated[
        bool, typer.Option("--circuits", help="Of a run: nine circuits of 0.1 to 50 % of the edges, not their scores.")
    ] = False,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="With --circuits: the edges with the largest scores, be they negative.")
    ] = False,
    include: Include = None,
) -> None:
    """Writes scores in the format of MIB's circuits: those of a file, or a submission from the folder of a run."""
    of_a_run = {"--task": task, "--method": method, "--level": level, "--seed": seed, "--circuits": circuits or None}
    include_files(include)
    kind = kind_of(source, "SCORES|RUN")
    if kind == "folder":
        if submission is not None:
            raise ConfigurationError(
                f"--submission belongs to a file of scores, and {source} is a folder; say with --task and --model "
                f"NAME=MIBNAME what MIB calls its tasks and models."
            )
        if absolute and not circuits:
            raise ConfigurationError("--absolute says which edges circuits keep; add --circuits.")
        _export_run(source, target, task or (), model or (), method or (), level or "edges", seed, circuits, absolute)
        return
    if kind == "missing" and not source.suffix:
        raise ConfigurationError(
            f"{source} does not exist; give a .safetensors file of scores, or the folder of a run."
        )
    if given := [option for option, value in {**of_a_run, "--absolute": absolute or None}.items() if value is not None]:
        raise ConfigurationError(f"{given[0]} belongs to the folder of a run, and {source} is none.")
    if model and len(model) > 1:
        raise ConfigurationError(f"--model is given {len(model)} times; a file of scores is of one model.")
    _export_file(source, target, model[0] if model else None, submission)


def _export_file(file: Path, target: Path, model: str | None, submission: tuple[str, str] | None) -> None:
    from ..exchange import mib, precomputed

    if file.suffix != ".safetensors":
        raise ConfigurationError(f"{file} does not end in .safetensors; scores in that format are exported.")
    if submission is None and target.suffix not in mib.SUFFIXES:
        raise ConfigurationError(f"--out {target} does not end in {' or '.join(mib.SUFFIXES)}.")
    stored = precomputed.read(file)
    mib.check_level(stored.level)
    shape = precomputed.shape_of(model or stored.model)
    graph = shape.graph
    if submission is not None:
        target = mib.submission_file(target, *submission, graph)
    with writing(target):
        unscored = mib.save(stored.fitting(shape), graph, target)
    what = f"{len(stored.scores.names)} edges"
    if unscored:
        what = (
            f"{len(stored.scores.names)} nodes; without a score, so kept by MIB in every circuit: "
            f"{mib.listed(unscored)}"
        )
    out.print(f"wrote {escape(str(target))}: {what}", highlight=False)


def _export_run(
    run: Path,
    target: Path,
    task: Sequence[str],
    model: Sequence[str],
    method: Sequence[str],
    level: str,
    seed: int | None,
    circuits: bool,
    absolute: bool,
) -> None:
    from ..components import get_level
    from ..exchange import mib, mib_submission
    from ..exchange.precomputed import shape_of
    from ..records.store import Folder, newest
    from ..run.scoring import unpacked_components

    scores_of = get_level(level)
    if circuits and not scores_of.edges:
        raise ConfigurationError(f"--circuits are sets of edges, and --level is {level}; choose edges.")
    tasks, models = mib_submission.names_from(task, "--task"), mib_submission.names_from(model, "--model")
    folder = Folder(run)
    records, _ = newest(folder.filled())
    found, left_out = mib_submission.entries(records, level, tasks, models, method, seed)
    shapes: dict[str, Model] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(entry.record.cell.model for entry in found):
        try:
            shapes[name] = shape_of(name)
        except ModelError as error:
            failed[name] = str(error)
    at_hand = [entry for entry in found if entry.record.cell.model in shapes]
    places = [entry.file(target, shapes[entry.record.cell.model].graph) for entry in at_hand]  # before any is written
    written: list[mib_submission.Entry] = []
    for entry, place in zip(at_hand, places):
        content = folder.read_scores(entry.record)
        if content is None:
            failed[str(entry)] = _missing(folder.path, entry.record)
            continue
        shape = shapes[entry.record.cell.model]
        scores, _ = unpacked_components(content, shape, scores_of)
        order = _order(entry.record) if circuits else ""
        with writing(place):
            files = mib_submission.write(entry, scores, shape.graph, target, order, absolute)
        written.append(entry)
        what = f"{len(files)} circuits of edges" if circuits else f"{len(scores.names)} {level}"
        out.print(f"wrote {escape(str(place.parent if circuits else place))}: {what} by {entry}", highlight=False)
    for what in left_out:
        err.print(f"left out: {escape(what)}, which MIB does not evaluate.", highlight=False)
    if not written:
        raise ConfigurationError(next(iter(failed.values())))
    for why in failed.values():
        err.print(f"failed: {escape(why)}", highlight=False)
    pairs = [(entry.task, entry.model) for entry in written]
    for n, what in ((len({task for task, _ in pairs}), "task"), (len({name for _, name in pairs}), "model")):
        if n < mib.LEAST:
            err.print(f"note: MIB takes submissions of at least {mib.LEAST} {what}s, and these are of {n}.")
    if failed:
        raise typer.Exit(1)


def _order(record: Record) -> Literal["top", "greedy"]:
    """In which order a method's circuits take edges; from the best score down where the method is not known here."""
    from ..method import methods

    cell = record.cell
    if cell.precomputed is None and cell.method in methods.names():
        return methods.get(cell.method).circuits
    return "top"


def _missing(folder: Path, record: Record) -> str:
    """What to do about a file of scores that is not there."""
    assert record.scores is not None
    cell = record.cell
    again = f"--scores {cell.precomputed.file}" if cell.precomputed else f"--method {cell.method}"
    why = ", since git keeps no files of this size," if "/large/" in record.scores.file else ""
    return (
        f"{folder / record.scores.file}, with the scores of {cell}, is not there{why} or is not what its record says; "
        f"make it again: run suite {record.suite!r} with --out {folder} --task {cell.task} {again} --model "
        f"{cell.model} --level {cell.level} --seed {cell.seed} --force."
    )
