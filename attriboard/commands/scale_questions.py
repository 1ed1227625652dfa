"""``attriboard scale-questions``: answers on a scale, and their correlation with the gold values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import MAX_SEED, check_range
from .options import Device
from .output import make_folder_of, out, writing


def scale_questions(
    model: Annotated[str, typer.Option(help="A short name, folder or Hugging Face id.")],
    data: Annotated[str, typer.Option(help="own, or a JSON-lines file, folder or data set of such questions.")] = "own",
    limit: Annotated[int | None, typer.Option(help="Ask only this many questions of each scale.")] = None,
    shots: Annotated[int, typer.Option(help="Show this many scored texts before each; 0: the published prompt.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the texts shown.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    out_file: Annotated[Path | None, typer.Option("--out", help="A .json file with every item's value.")] = None,
) -> None:
    """Asks how strong a feeling is (0 to 1, -4 to 4) and correlates what the model expects with the gold values."""
    from ..loading import check_device, check_model_name, load_model
    from ..run.provenance import provenance
    from ..studies.scale_questions import measure, read_items

    check_device(device)
    check_model_name(model)
    if limit is not None:
        check_range("--limit", limit)
    check_range("--shots", shots, 0)
    items = read_items(data)  # before the model is loaded
    if out_file is not None:
        make_folder_of(out_file)
    loaded = load_model(model, device, dtype)
    measured = measure(loaded, data, items, limit, shots, seed, provenance(loaded.device).model_dump())
    for scale in measured.scales:
        r = "undefined (no spread)" if scale.pearson_r is None else f"{scale.pearson_r:.3f}"
        interval = "" if scale.interval is None else f" [{scale.interval[0]:.3f}, {scale.interval[1]:.3f}]"
        out.print(f"{scale.scale}: {scale.n} items, Pearson r = {r}{interval}", highlight=False, markup=False)
    if out_file is None:
        return
    with writing(out_file):
        out_file.write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
    out.print(f"wrote {escape(str(out_file))}", highlight=False)
