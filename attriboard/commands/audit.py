"""``attriboard audit``: what of a task can be answered without its question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError, check_name, check_range
from ..files import parse_json
from .options import Device, Include, include_files
from .output import make_folder_of, out, writing


def audit(
    task: Annotated[str, typer.Argument(help="A task; see `attriboard list tasks`.")],
    model: Annotated[
        str | None,
        typer.Option(help="A short name, folder or Hugging Face id; without one only what needs no model is measured."),
    ] = None,
    examples: Annotated[int, typer.Option(help="How many examples are drawn of each split.")] = 96,
    split: Annotated[str, typer.Option(help="train, test or both.")] = "both",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the examples.")] = 0,
    subset: Annotated[list[str] | None, typer.Option(help="Only this subset (repeatable).", show_default=False)] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the task as NAME=VALUE (repeatable); a value is JSON, or else a text.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    out_file: Annotated[Path | None, typer.Option("--json", help="A .json file with all that was measured.")] = None,
    include: Include = None,
) -> None:
    """Audits a task for shortcuts: what a wrong question keeps of the metric, rules, frequencies, overlap of splits."""
    from ..loading import check_device, check_model_name, load_model
    from ..run.provenance import provenance
    from ..run.suite import check_options
    from ..studies.audit import measure
    from ..studies.audit_report import render
    from ..task import SPLITS, tasks

    include_files(include)
    check_device(device)
    check_name("split", split, (*SPLITS, "both"))
    check_range("--examples", examples)
    options = read_options(option or [])
    if subset:
        options["subsets"] = subset
    check_options(f"task {task!r}", options)
    audited = tasks.make(task, options)
    if out_file is not None and out_file.suffix != ".json":
        raise ConfigurationError(f"--json {out_file} does not end in .json.")
    if model is None and (audited.writes or dtype != "float32"):
        why = f"task {task!r} asks about what a model writes" if audited.writes else "--dtype is that of a model"
        raise ConfigurationError(f"{why}; give --model.")
    if model is not None:
        check_model_name(model)
    if out_file is not None:
        make_folder_of(out_file)
    loaded = None if model is None else load_model(model, device, dtype)
    about = {} if loaded is None else provenance(loaded.device).model_dump()
    measured = measure(audited, loaded, examples, SPLITS if split == "both" else (split,), seed, options, about)
    out.print(render(measured), end="", highlight=False, markup=False)
    if out_file is None:
        return
    with writing(out_file):
        out_file.write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    out.print(f"\nwrote {escape(str(out_file))}", highlight=False)


def read_options(given: list[str]) -> dict[str, Any]:
    """Options of a task from texts like ``shots=4``; a value that is no JSON is a text.

    Raises:
        ConfigurationError: one has no ``=``, or a name is given twice.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise ConfigurationError(f"--option is {text!r}, expected NAME=VALUE.")
        if name.strip() in options:
            raise ConfigurationError(f"--option {name.strip()} is given twice.")
        try:
            options[name.strip()] = parse_json(value)
        except ValueError:  # a text
            options[name.strip()] = value
    return options
