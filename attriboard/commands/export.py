"""``attriboard export-lm-eval`` and ``export-mib``: tasks and scores for other people's tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError
from .options import Include, include_files
from .output import err, out, writing


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
    out.print(
        f"wrote {escape(str(target))}: {len(stored.scores.names)} nodes; without a score, so kept by MIB in every "
        f"circuit: {mib.listed(unscored)}",
        highlight=False,
    )
