"""``attriboard attribute``: the scores of one prompt or of a task's examples, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import MAX_SEED, ConfigurationError, check_range
from .options import Device, Include, include_files
from .output import make_folder_of, out, writing


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
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of the task's examples and of random scores.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Device = "cpu",
    include: Include = None,
) -> None:
    """Scores a model's components, or what it reads and sees, for one prompt or a task's examples; writes a file."""
    from safetensors import SafetensorError

    from ..images import open_image
    from ..loading import check_device, check_model_name
    from ..run.attribute import Request, attribute_prompt, attribute_task, check_overlay
    from ..task import Example

    include_files(include)
    check_device(device)
    check_model_name(model)
    check_range("--limit", limit)
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
        scores, about = attribute_task(request, task, limit)
    else:
        assert prompt is not None and answer is not None
        pictures = [None if file is None else open_image(file) for file in (image, counterfactual_image)]
        example = Example(prompt, answer, foil, counterfactual, image=pictures[0], counterfactual_image=pictures[1])
        scores, about = attribute_prompt(request, example, overlay)
    drawn = {} if task is None else {"task": task, "seed": str(seed)}
    make_folder_of(out_file)
    with writing(out_file, SafetensorError):
        scores.save(out_file, method=method, model=model, answer=about["answer"], **drawn)
    out.print(escape(about["summary"]), highlight=False)
    pieces = dict(zip(scores.names, scores.metadata.get("tokens", ())))
    for name, value in scores.top(5):
        piece = f"  {pieces[name]!r}" if name in pieces else ""
        out.print(f"  {name}  {value:+.4f}{escape(piece)}", highlight=False)
    if overlay is not None:
        out.print(f"drew {escape(str(overlay))}", highlight=False)
    out.print(f"wrote {escape(str(out_file))}: scores {tuple(scores.values.shape)}", highlight=False)
