"""The command line: list, validate, selftest, run, attribute, compare, regression, leaderboard, check, exports.

Exit codes: 0 success; 1 some cells or self-tests failed (after everything else ran), or a check found something worse,
slower or missing; 2 a name, option or input that cannot be used.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import AttriboardError, ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    from .records.record import Cell, Record
    from .run.suite import Suite

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

KINDS = ("tasks", "methods", "models", "suites")

Include = Annotated[
    list[Path] | None,
    typer.Option(help="A Python file or folder with tasks or methods of your own.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def main() -> None:
    """The entry point: one clear sentence for every error a user can cause."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
    try:
        app()
    except AttriboardError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2)


def _include(paths: list[Path] | None) -> None:
    from .method import methods
    from .task import tasks

    for path in paths or []:
        if not tasks.include(path) + methods.include(path):
            raise ConfigurationError(f"--include {path} defines no task and no method (a subclass with a name).")


@app.command("list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="tasks, methods, models or suites; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    include: Include = None,
) -> None:
    """Lists what there is: tasks, methods, models, suites."""
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    _include(include)
    found = {name: _listing(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        typer.echo(json.dumps(found if kind is None else found[kind], indent=1))
        return
    for name, rows in found.items():
        table = Table(title=name, title_justify="left", box=None, pad_edge=False)
        shown = [c for c in (rows[0] if rows else ()) if c not in ("paper", "needs", "version")]
        for column in shown:
            table.add_column(column, no_wrap=column in ("name", "installed"))
        for row in rows:
            values = [row.get(column, "") for column in shown]
            table.add_row(*(escape(", ".join(v) if isinstance(v, list) else str(v)) for v in values))
        out.print(table)
        out.print()


def _listing(kind: str) -> list[dict[str, Any]]:
    if kind == "tasks":
        from .task import tasks

        return [
            {
                "name": t.name,
                "version": t.version,
                "subsets": list(t.all_subsets),
                "description": t.description,
                "paper": t.paper,
            }
            for t in tasks
        ] + _broken(tasks)
    if kind == "methods":
        from .method import methods

        return [
            {
                "name": m.name,
                "levels": list(m.levels),
                "needs": sorted(m.needs),
                "description": m.description,
                "paper": m.paper,
            }
            for m in methods
        ] + _broken(methods)
    if kind == "models":
        from .loading import MODELS
        from .zoo import planted

        return [
            {
                "name": name,
                "installed": "yes" if m.installed else "no",
                "wheel": m.wheel,
                "hub": m.hub or "",
                "licence": m.licence,
            }
            for name, m in MODELS.items()
        ] + [
            {"name": name, "installed": "yes", "wheel": "none: built at load", "hub": "", "licence": "Apache-2.0"}
            for name in planted.NAMES
        ]
    from .run.suite import Suite, suites

    rows: list[dict[str, Any]] = []
    for name, path in suites().items():
        try:
            suite = Suite.load(path)
        except AttriboardError as error:
            rows.append({"name": name, "cells": 0, "expected": "", "description": f"cannot be used: {error}"})
            continue
        rows.append(
            {"name": name, "cells": len(suite.cells()), "expected": suite.expected, "description": suite.description}
        )
    return rows


def _broken(registry: Any) -> list[dict[str, Any]]:
    return [{"name": name, "description": f"cannot be imported: {why}"} for name, why in registry.broken.items()]


@app.command()
def validate(
    suite: Annotated[Path | None, typer.Argument(help="A suite file or name; all suites by default.")] = None,
    include: Include = None,
) -> None:
    """Checks a suite and every definition it names; runs nothing."""
    from .method import methods
    from .run.suite import Suite, suites
    from .task import tasks

    _include(include)
    for path in [suite] if suite else suites().values():
        loaded = Suite.load(path)
        out.print(f"{loaded.name}: {len(loaded.cells())} cells, all names and options are good.", highlight=False)
    for registry in (tasks, methods):
        for name, why in registry.broken.items():
            raise ConfigurationError(f"{registry.kind} file {name!r} cannot be imported: {why}")
        out.print(f"{len(registry.names())} {registry.kind}s can be imported.", highlight=False)


@app.command()
def selftest(
    method: Annotated[list[str] | None, typer.Argument(help="Only these methods; all by default.")] = None,
    include: Include = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Checks on tiny random models that methods have the properties that their definitions imply."""
    from .method import methods
    from .selftest.properties import examine

    _include(include)
    chosen = [methods.get(name) for name in method or methods.names()]
    if not method:
        for name, why in methods.broken.items():
            raise ConfigurationError(f"method file {name!r} cannot be imported: {why}")
    found = []
    for cls in chosen:
        findings = examine(cls)
        found += findings
        if as_json:
            continue
        held = [f.property for f in findings if f.status == "holds"]
        out.print(f"{cls.name}: {len(held)} of {len(findings)} properties hold", highlight=False, markup=False)
        for finding in findings:
            if finding.status != "holds":
                out.print(f"  {finding.property} {finding.status}: {finding.detail}", highlight=False, markup=False)
    failed = [f for f in found if f.status == "fails"]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in found], indent=1))
    elif not failed:
        out.print(f"all properties of {len(chosen)} methods that could be tested hold.", highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def run(
    suite: Annotated[Path, typer.Argument(help="A suite file, or the name of one in benchmarks/.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for records; results/SUITE by default.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task (repeatable).")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method (repeatable); a new one is added.")] = None,
    model: Annotated[str | None, typer.Option(help="This model instead of the suite's.")] = None,
    level: Annotated[list[str] | None, typer.Option(help="Only this level (repeatable).")] = None,
    limit: Annotated[int | None, typer.Option(help="Draw only this many examples per split (a trial run).")] = None,
    seed: Annotated[int | None, typer.Option(help="This seed instead of the suite's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; the suite's by default.")] = None,
    include: Include = None,
    executor: Annotated[str, typer.Option(help="local or ray.")] = "local",
    capability: Annotated[
        str | None,
        typer.Option(help="lm-eval tasks by which pruned and edited models are judged too: hellaswag,arc_easy."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what is done.")] = False,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="Enter scores made elsewhere: a .safetensors file, MIB's .json or .pt, or a folder of them "
            "(repeatable). Runs these alone; name methods with --method to run them too. Records that the folder holds "
            "already stay, so the board shows both."
        ),
    ] = None,
) -> None:
    """Runs a suite and stores one record per cell; what is done already is skipped."""
    from .exchange.precomputed import read_all
    from .loading import check_device
    from .records.record import Folder
    from .run.runner import run_cells
    from .run.suite import Suite, limited, without_settings

    _include(include)
    loaded = Suite.load(suite)
    if executor not in ("local", "ray"):
        raise UnknownNameError("executor", executor, ("local", "ray"))
    changes: dict[str, Any] = {}
    if limit is not None:
        changes |= limited(limit)
    if device is not None:
        changes["device"] = device
    if capability is not None:
        named = [name.strip() for name in capability.split(",") if name.strip()]
        if not named:
            raise ConfigurationError("--capability names no lm-eval task; give names with commas between them.")
        changes["capability"] = tuple(dict.fromkeys([*loaded.settings.capability, *named]))
    settings = loaded.settings.model_copy(update=changes)
    check_device(settings.device)
    cells = loaded.entered(read_all(scores), task or (), level or (), model, seed) if scores else []
    if method or not scores:
        cells += loaded.cells(task or (), method or (), level or (), model, seed)
    cells = without_settings(cells, changes)
    folder = Folder(out_dir or Path("results") / loaded.name)
    folder.claim(loaded.name, **_about(loaded))
    try:
        with _progress() as (planned, started, finished):
            outcome = run_cells(loaded.name, cells, settings, folder, force, executor, planned, started, finished)
    except KeyboardInterrupt:
        err.print("interrupted: finished cells are stored; the same command goes on from there.")
        raise typer.Exit(130) from None
    for name, why in sorted(folder.foreign.items()):
        _foreign(folder.path / name, why)
    done = f"{len(outcome.made) - len(outcome.failed)} cells run, {outcome.done_before} done before"
    out.print(f"{done}, {len(outcome.failed)} failed. Records: {folder.path}", highlight=False)
    for record in outcome.failed:
        err.print(f"failed: {escape(str(record.cell))}: {escape(record.reason)}", highlight=False)
    if outcome.failed:
        raise typer.Exit(1)


def _foreign(path: Path, why: str) -> None:
    err.print(f"note: {escape(str(path))} is not a record of this suite ({escape(why)}); left alone.", highlight=False)


def _about(suite: Suite) -> dict[str, Any]:
    return {"description": suite.description, "expected": suite.expected, "not_run": suite.not_run}


@contextmanager
def _progress() -> Iterator[tuple[Any, Any, Any]]:
    """A bar with the time left on a terminal; elsewhere one line per finished cell."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, speed_estimate_period=600) as bar:
        task = bar.add_task("starting", total=None)
        total = count = 0

        def planned(n: int) -> None:
            nonlocal total
            total = n
            bar.update(task, total=n)

        def started(cell: Cell) -> None:
            bar.update(task, description=escape(f"{cell.task_label} / {cell.level} / {cell.method_label}"))

        def finished(record: Record) -> None:
            nonlocal count
            count += 1
            bar.advance(task)
            if not err.is_terminal:
                seconds = sum(record.seconds.values())
                err.print(
                    f"[{count}/{total}] {record.status} {record.cell} ({seconds:.1f} s)", highlight=False, markup=False
                )

        yield planned, started, finished


@app.command()
def attribute(
    model: Annotated[str, typer.Option(help="A short name, folder or Hugging Face id.")],
    method: Annotated[str, typer.Option(help="See `attriboard list methods`.")],
    level: Annotated[str, typer.Option(help="heads, neurons, attn_neurons, nodes, patches or tokens.")],
    out_file: Annotated[Path, typer.Option("--out", help="A .safetensors file.")],
    task: Annotated[str | None, typer.Option(help="Score the examples of a task's train split.")] = None,
    limit: Annotated[int, typer.Option(help="With --task: how many examples are drawn.")] = 16,
    prompt: Annotated[str | None, typer.Option(help="Or score one prompt.")] = None,
    answer: Annotated[str | None, typer.Option(help="Its answer, exactly as typed: one token.")] = None,
    foil: Annotated[str | None, typer.Option(help="The wrong answer it is compared with.")] = None,
    counterfactual: Annotated[
        str | None, typer.Option(help="A prompt of equal length whose answer is the foil.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The picture that the prompt is about; <image> stands in the prompt once.")
    ] = None,
    counterfactual_image: Annotated[
        Path | None, typer.Option(help="The picture of the counterfactual; --image if only its text differs.")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="With --level patches and --image: draw the scores on it, a .png file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the task's examples and of random scores.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    include: Include = None,
) -> None:
    """Scores a model's components, or what it reads and sees, for one prompt or a task's examples; writes a file."""
    from safetensors import SafetensorError

    from .images import open_image
    from .loading import check_device, check_model_name
    from .run.attribute import Request, attribute_prompt, attribute_task, check_overlay
    from .task import Example

    _include(include)
    check_device(device)
    check_model_name(model)
    one_prompt = prompt is not None or answer is not None
    if one_prompt == (task is not None):
        raise ConfigurationError("give either --task, or --prompt with --answer.")
    if one_prompt and (prompt is None or answer is None):
        raise ConfigurationError("--prompt and --answer belong together; give both.")
    if task is not None and any(x is not None for x in (foil, counterfactual, image, counterfactual_image)):
        raise ConfigurationError("--foil, --counterfactual and images belong to --prompt; a task brings its own.")
    if counterfactual_image is not None and image is None:
        raise ConfigurationError("--counterfactual-image stands for another picture; give --image too.")
    if overlay is not None:
        check_overlay(level, image is not None, overlay)
    if out_file.suffix != ".safetensors":
        raise ConfigurationError(f"--out {out_file} does not end in .safetensors.")
    request = Request(model, method, level, dtype, device, seed)
    if task is not None:
        scores, said = attribute_task(request, task, limit)
    else:
        assert prompt is not None and answer is not None
        pictures = [None if file is None else open_image(file) for file in (image, counterfactual_image)]
        example = Example(prompt, answer, foil, counterfactual, image=pictures[0], counterfactual_image=pictures[1])
        scores, said = attribute_prompt(request, example, overlay)
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        drawn = {} if task is None else {"task": task, "seed": str(seed)}
        scores.save(out_file, method=method, model=model, answer=said["answer"], **drawn)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"cannot write {out_file}: {getattr(error, 'strerror', None) or error}.") from error
    out.print(escape(said["summary"]), highlight=False)
    pieces = dict(zip(scores.names, scores.metadata.get("tokens", ())))
    for name, value in scores.top(5):
        piece = f"  {pieces[name]!r}" if name in pieces else ""
        out.print(f"  {name}  {value:+.4f}{escape(piece)}", highlight=False)
    if overlay is not None:
        out.print(f"drew {escape(str(overlay))}", highlight=False)
    out.print(f"wrote {escape(str(out_file))}: scores {tuple(scores.values.shape)}", highlight=False)


@app.command()
def compare(
    task_a: Annotated[str, typer.Argument(help="A task.")],
    task_b: Annotated[str, typer.Argument(help="A task that asks the same questions in another way.")],
    model: Annotated[str, typer.Option(help="A short name, folder or Hugging Face id.")],
    against: Annotated[str | None, typer.Option(help="Also ask TASK_B of this model, of the same shape.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Scores heads (repeatable); log_prob_increase.")] = None,
    limit: Annotated[int, typer.Option(help="How many questions are drawn from each task.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="A .md file, with a .json beside it; TASK_A_vs_TASK_B.md by default.")
    ] = None,
    include: Include = None,
) -> None:
    """Compares two ways of asking the same questions: which heads answer, and what patches of a picture say."""
    from .loading import check_device, check_model_name
    from .run.attribute import Request
    from .run.runner import provenance
    from .studies.two_forms import Comparison
    from .studies.two_forms import compare as measure
    from .studies.two_forms_report import render
    from .task import tasks

    _include(include)
    check_device(device)
    for name in (model, *([against] if against else [])):
        check_model_name(name)
    if limit < 1:
        raise ConfigurationError(f"--limit is {limit}, expected at least 1.")
    out_file = out_file or Path(f"{task_a}_vs_{task_b}.md")
    if out_file.suffix != ".md":
        raise ConfigurationError(f"--out {out_file} does not end in .md.")
    pair = (tasks.make(task_a), tasks.make(task_b))
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        raise ConfigurationError(f"cannot write {out_file}: {error.strerror}.") from error
    requests = [Request(model, name, "heads", dtype, device, seed) for name in method or ["log_prob_increase"]]
    made = [request.make_method("counterfactual") for request in requests]
    loaded = requests[0].load_model()
    other = replace(requests[0], model=against).load_model() if against else None
    found = measure(loaded, pair, made, limit, seed, provenance(loaded.device).model_dump(), other)
    stored = found.model_dump_json()
    try:
        out_file.with_suffix(".json").write_text(stored + "\n")
        out_file.write_text(render(Comparison.model_validate_json(stored)))
    except OSError as error:
        raise ConfigurationError(f"cannot write {out_file}: {error.strerror}.") from error
    out.print(f"wrote {escape(str(out_file))} and {escape(out_file.with_suffix('.json').name)}", highlight=False)


@app.command()
def regression(
    model: Annotated[str, typer.Option(help="A short name, folder or Hugging Face id.")],
    data: Annotated[str, typer.Option(help="own, or a JSON-lines file, folder or data set of such questions.")] = "own",
    limit: Annotated[int | None, typer.Option(help="Ask only this many questions of each scale.")] = None,
    shots: Annotated[int, typer.Option(help="Show this many scored texts before each; 0: the published prompt.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the texts shown.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    out_file: Annotated[Path | None, typer.Option("--out", help="A .json file with every item's value.")] = None,
) -> None:
    """Asks how strong a feeling is (0 to 1, -4 to 4) and correlates what the model expects with the gold values."""
    from .loading import check_device, check_model_name, load_model
    from .run.runner import provenance
    from .studies.scale_questions import measure, read_items

    check_device(device)
    check_model_name(model)
    if limit is not None and limit < 1:
        raise ConfigurationError(f"--limit is {limit}, expected at least 1.")
    if shots < 0:
        raise ConfigurationError(f"--shots is {shots}, expected at least 0.")
    items = read_items(data)  # before the model is loaded
    if out_file is not None:
        try:
            out_file.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            raise ConfigurationError(f"cannot write {out_file}: {error.strerror}.") from error
    loaded = load_model(model, device, dtype)
    found = measure(loaded, data, items, limit, shots, seed, provenance(loaded.device).model_dump())
    for scale in found.scales:
        r = "undefined (no spread)" if scale.pearson_r is None else f"{scale.pearson_r:.3f}"
        interval = "" if scale.interval is None else f" [{scale.interval[0]:.3f}, {scale.interval[1]:.3f}]"
        out.print(f"{scale.scale}: {scale.n} items, Pearson r = {r}{interval}", highlight=False, markup=False)
    if out_file is None:
        return
    try:
        out_file.write_text(found.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write {out_file}: {error.strerror}.") from error
    out.print(f"wrote {escape(str(out_file))}", highlight=False)


@app.command()
def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of records.")],
    form: Annotated[str, typer.Option("--format", help="md, csv, latex, html or json.")] = "md",
    out_file: Annotated[Path | None, typer.Option("--out", help="A file; standard output by default.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Also draw curves and maps of every table into this folder.")
    ] = None,
) -> None:
    """Builds the board from stored records and nothing else."""
    from .board import formats
    from .board.board import Board

    formats.check_format(form)
    board = Board.read(folder)
    text = formats.render(board, form)
    for name, why in board.foreign.items():
        _foreign(folder / name, why)
    if figures is not None:
        from .board.figures import draw

        try:
            drawn = draw(board, figures)
        except OSError as error:
            raise ConfigurationError(f"cannot draw into {figures}: {error.strerror or error}.") from error
        for made in drawn:
            err.print(f"drew {escape(str(made))}", highlight=False)
    if out_file is None:
        typer.echo(text, nl=False)
        return
    try:
        out_file.parent.mkdir(parents=True, exist_ok=True)
        out_file.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"cannot write {out_file}: {error.strerror}.") from error
    err.print(f"wrote {escape(str(out_file))}", highlight=False)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of records.")],
    against: Annotated[Path, typer.Option(metavar="DIR", help="The folder of records it is held against.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare this metric (repeatable); the headlines by default.")
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Also compare times.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Fails if a method became significantly worse, slower, or is missing in DIR, cell by cell."""
    from .board.check import check_folders

    report = check_folders(folder, against, metric or (), speed)
    if as_json:
        said = {"failed": report.failed, "lines": report.lines(), **report.model_dump(mode="json")}
        typer.echo(json.dumps(said, indent=1))
    else:
        for line in report.lines():
            out.print(line, highlight=False, markup=False)
    if report.failed:
        raise typer.Exit(1)


@app.command("export-lm-eval")
def export_lm_eval(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files; made if there is none.")],
    task: Annotated[list[str] | None, typer.Option(help="Only this task (repeatable); all text tasks.")] = None,
    limit: Annotated[int, typer.Option(help="How many examples of every task.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the examples.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "test",
    include: Include = None,
) -> None:
    """Writes tasks as lm-eval tasks, so that any model can be evaluated on them."""
    from .exchange.lm_eval import export

    _include(include)
    found = export(folder, task or (), limit, seed, split)
    for why in found.skipped.values():
        err.print(f"skipped: {escape(why)}", highlight=False)
    for name, n in found.written.items():
        out.print(f"attriboard_{escape(name)}: {n} examples", highlight=False)
    out.print(
        f"wrote {len(found.written)} tasks; evaluate a model on one with: lm-eval run --model hf --model_args "
        f"pretrained=MODEL --include_path {escape(str(folder))} --tasks attriboard_{next(iter(found.written), 'TASK')}",
        highlight=False,
    )


@app.command("export-mib")
def export_mib(
    file: Annotated[Path, typer.Argument(metavar="SCORES", help="A .safetensors file with scores of heads or nodes.")],
    target: Annotated[Path, typer.Option("--out", help="A .json or .pt file; with --submission, a folder.")],
    model: Annotated[str | None, typer.Option(help="The model, if it has another name here than in the file.")] = None,
    submission: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="TASK MODEL",
            help="Write TASK_MODEL/importances.json, as MIB's leaderboard takes it, under MIB's names: ioi gpt2.",
        ),
    ] = None,
) -> None:
    """Writes scores in the format of MIB's circuits."""
    from .exchange import mib
    from .exchange import precomputed as entered

    if file.suffix != ".safetensors":
        raise ConfigurationError(f"{file} does not end in .safetensors; scores in that format are exported.")
    if submission is None and target.suffix not in mib.SUFFIXES:
        raise ConfigurationError(f"--out {target} does not end in {' or '.join(mib.SUFFIXES)}.")
    found = entered.read(file)
    mib.check_level(found.level)
    shape = entered.shape_of(model or found.model)
    graph = mib.Graph.of(shape)
    if submission is not None:
        target = mib.submission_file(target, *submission, graph)
    try:
        unscored = mib.save(found.fitting(shape), graph, target)
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror or error}.") from error
    out.print(
        f"wrote {escape(str(target))}: {len(found.scores.names)} nodes; without a score, so kept by MIB in every "
        f"circuit: {mib.listed(unscored)}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
