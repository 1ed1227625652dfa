"""``attriboard compare-forms``: the same questions asked in two ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError, check_range
from .options import Device, Include, include_files
from .output import make_folder_of, out, writing


def compare_forms(
    task_a: Annotated[str, typer.Argument(help="A task.")],
    task_b: Annotated[str, typer.Argument(help="A task that asks the same questions in another way.")],
    model: Annotated[str, typer.Option(help="A short name, folder or Hugging Face id.")],
    against: Annotated[str | None, typer.Option(help="Also ask TASK_B of this model, of the same shape.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Scores heads (repeatable); by default the methods that offer themselves for this.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many questions are drawn from each task.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the questions.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="A .md file, with a .json beside it; TASK_A_vs_TASK_B.md by default.")
    ] = None,
    include: Include = None,
) -> None:
    """Compares two ways of asking the same questions: which heads answer, and what patches of a picture say."""
    from ..loading import check_device, check_model_name
    from ..run.attribute import Request
    from ..run.provenance import provenance
    from ..studies.two_forms import TwoForms, default_methods, measure
    from ..studies.two_forms_report import render_report
    from ..task import tasks

    include_files(include)
    check_device(device)
    for name in (model, *([against] if against else [])):
        check_model_name(name)
    check_range("--limit", limit)
    out_file = out_file or Path(f"{task_a}_vs_{task_b}.md")
    if out_file.suffix != ".md":
        raise ConfigurationError(f"--out {out_file} does not end in .md.")
    pair = (tasks.make(task_a), tasks.make(task_b))
    make_folder_of(out_file)
    names = method or default_methods()
    requests = [Request(model, name, "heads", dtype, device, seed) for name in names]
    scoring = [request.make_method("counterfactual") for request in requests]
    loaded = requests[0].load_model()
    other = replace(requests[0], model=against).load_model() if against else None
    measured = measure(loaded, pair, scoring, limit, seed, provenance(loaded.device).model_dump(), other)
    stored = measured.model_dump_json()
    with writing(out_file):
        out_file.with_suffix(".json").write_text(stored + "\n", encoding="utf-8")
        out_file.write_text(render_report(TwoForms.model_validate_json(stored)), encoding="utf-8")
    out.print(f"wrote {escape(str(out_file))} and {escape(out_file.with_suffix('.json').name)}", highlight=False)
