"""Makes the weights of ``llava-smollm2-135m``: ``python -m attriboard.zoo.build.train --out DIR``.

Stage a trains the vision tower and the projector alone: every patch says the color, the kind and the place in the order
from left to right of the object on it, and its projection is pulled towards the language model's own embeddings of
those words. Stage b trains everything together on questions and captions, with low-rank parts on the language model's
attention projections; on texts that the language model wrote itself it is held to what it was.

Every picture is drawn for its step from the seed, the stage and the step's number, and no picture is seen twice. A run
that was interrupted goes on with ``--resume`` and ends with the weights it would have had.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..llava import LANGUAGE_MODEL, add_lora, build_llava, pixel_values, save_weights
from .batches import Batch, Settings, Steps, loader, to_tensors
from .evaluate import write_record
from .passes import PatchHeads, Words, answer_logits, features_and_projection, patch_loss, text_loss

_OPENERS = (
    "The",
    "In",
    "I",
    "She",
    "When",
    "A",
    "It",
    "There",
    "They",
    "After",
    "My",
    "We",
    "What",
    "If",
    "For",
    "This",
)


def own_texts(lm: Any, tokenizer: Any, settings: Settings, device: str) -> Tensor:
    """Texts the language model writes, [texts, tokens]; half of them as answers in its chat format."""
    openers = [tokenizer(word, add_special_tokens=False).input_ids[:1] for word in _OPENERS]
    chat = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    starts = [[*(chat if i % 2 else openers[i // 2 % len(openers)])] for i in range(settings.texts)]
    starts = [start or openers[0] for start in starts]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(settings.seed)
        length = settings.text_tokens
        ids = torch.tensor(starts, device=device)
        options = {"do_sample": True, "top_k": 0, "pad_token_id": 0}
        return lm.generate(ids, attention_mask=torch.ones_like(ids), min_length=length, max_length=length, **options)


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: up over the first 5 % of the steps, then down along a cosine."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass
class Progressed:
    """Where a run stands; what a checkpoint holds besides tensors."""

    stage: str
    step: int
    seconds: dict[str, float]
    curve: list[dict[str, Any]]


def train(
    lm: Any,
    tokenizer: Any,
    out: Path,
    settings: Settings,
    device: str = "cpu",
    resume: bool = False,
    stop_after: int | None = None,
    every: int = 100,
    workers: int = 1,
    metadata: dict[str, str] | None = None,
) -> Path | None:
    """Both stages; returns the file with the weights, or None if it was stopped before the end.

    Args:
        lm: the language model; in bfloat16 training is faster. It stays as it is.
        tokenizer: of that model.
        out: where ``weights.safetensors``, ``training.json`` and, until the end, ``checkpoint.pt`` are written.
        settings: what to do.
        device: "cpu" or "cuda".
        resume: go on from the checkpoint in ``out``, if there is one.
        stop_after: stop, as if interrupted, after so many steps.
        every: steps between checkpoints.
        workers: processes that draw.
        metadata: goes into the weights file.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    torch.manual_seed(settings.seed)
    lm = lm.to(device).eval()
    model = build_llava(lm, tokenizer).to(device).eval().requires_grad_(False)
    model.set_attn_implementation("eager")  # for rows this short faster than the fused kernel, above all backward
    heads = PatchHeads(model.config.vision_config.hidden_size).to(device)
    words = Words(lm.get_input_embeddings().weight, tokenizer).to(device)
    generator = torch.Generator().manual_seed(settings.seed)
    lora = add_lora(model, settings.rank, settings.scale, generator)
    parts = nn.ModuleDict(
        {"vision": model.model.vision_tower, "projector": model.model.multi_modal_projector, "heads": heads}
    )
    parts.requires_grad_(True)
    low_rank = [p for one in lora for p in (one.A, one.B)]

    at = Progressed("a", 0, {"a": 0.0, "b": 0.0}, [])
    optimizer_state, texts = None, None
    if resume and checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if saved["settings"] != asdict(settings):
            raise ValueError(f"{checkpoint} was written with other settings: {saved['settings']}")
        at = Progressed(**saved["progress"])
        parts.load_state_dict(saved["parts"])
        for parameter, value in zip(low_rank, saved["low_rank"]):
            parameter.data.copy_(value)
        optimizer_state, texts = saved["optimizer"], saved["texts"]

    def save(optimizer: torch.optim.Optimizer | None) -> None:
        draft = checkpoint.with_suffix(".part")
        torch.save(
            {
                "settings": asdict(settings),
                "progress": asdict(at),
                "parts": parts.state_dict(),
                "low_rank": [p.detach().clone() for p in low_rank],
                "optimizer": optimizer.state_dict() if optimizer else None,
                "texts": texts,
            },
            draft,
        )
        draft.replace(checkpoint)

    console = Console()
    done = 0
    for stage in ("a", "b"):
        if at.stage > stage:
            continue
        steps = settings.steps[stage]
        if stage == "a":
            groups: list[dict[str, Any]] = [{"params": list(parts.parameters()), "lr": settings.rate_a}]
        else:
            groups = [
                {"params": [*parts["vision"].parameters(), *heads.parameters()], "lr": settings.rate_vision},
                {"params": list(parts["projector"].parameters()), "lr": settings.rate_projector},
                {"params": low_rank, "lr": settings.rate_lora},
            ]
            for parameter in low_rank:
                parameter.requires_grad_(True)
            if texts is None:
                texts = own_texts(lm, tokenizer, settings, device)
        trained = [p for group in groups for p in group["params"]]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        peaks = [group["lr"] for group in optimizer.param_groups]
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
            optimizer_state = None
        with _bar(console) as bar:
            task = bar.add_task(f"stage {stage}", total=steps, completed=at.step, figures="")
            window: list[dict[str, float]] = []
            for batch in loader(Steps(settings, stage, tokenizer), at.step, workers):
                began = time.perf_counter()
                for group, peak in zip(optimizer.param_groups, peaks):
                    group["lr"] = peak * rate_at(at.step, steps)
                with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                    loss, figures = _loss(model, heads, words, batch, texts, settings, at.step, device)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                at.seconds[stage] += time.perf_counter() - began
                at.step += 1
                done += 1
                window.append({"loss": loss.item(), **figures})
                if at.step % 25 == 0 or at.step == steps:
                    mean = _mean(window)
                    window = []
                    at.curve.append({"stage": stage, "step": at.step, **mean})
                    shown = " ".join(f"{k} {v:.3f}" for k, v in mean.items())
                    if console.is_terminal:
                        bar.update(task, figures=shown)
                    else:
                        console.print(f"{stage} {at.step}/{steps} {at.seconds[stage]:.0f} s  {shown}", soft_wrap=True)
                bar.update(task, completed=at.step)
                if stop_after is not None and done >= stop_after:
                    save(optimizer)
                    return None
                if at.step % every == 0 and at.step < steps:
                    save(optimizer)
        at.stage, at.step = ("b", 0) if stage == "a" else ("c", 0)
        save(None)

    weights = out / "weights.safetensors"
    save_weights(model, weights, metadata or {})
    training = {"settings": asdict(settings), "seconds": at.seconds, "machine": _machine(device), "curve": at.curve}
    (out / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
    return weights


def _loss(
    model: Any,
    heads: PatchHeads,
    words: Words,
    batch: Batch,
    texts: Tensor | None,
    settings: Settings,
    step: int,
    device: str,
) -> tuple[Tensor, dict[str, float]]:
    """One step's loss, and figures on its pictures, none of which was seen before."""
    labels = torch.from_numpy(batch.labels).to(device)
    features, projected = features_and_projection(model, pixel_values(batch.pictures, device))
    loss, figures = patch_loss(heads, words, features, projected, labels)
    if batch.packed is None:
        return loss, figures
    packed = to_tensors(batch.packed, device)
    logits = answer_logits(model, projected, packed).float()
    each = nn.functional.cross_entropy(logits, packed["targets"], reduction="none")
    answers = (each * packed["weights"]).sum() / packed["weights"].sum()
    # a text's number: questions about things, then about what is absent, then the caption
    right = (logits.argmax(-1) == packed["targets"]).float()
    n = batch.things
    content = (packed["texts"] == n + 1) & (packed["weights"] == 1)
    figures = {
        "answers": answers.item(),
        "kind": figures["kind"],
        f"color{n}": right[packed["texts"] < n].mean().item(),
        "none": right[packed["texts"] == n].mean().item(),
        f"caption{n}": right[content].mean().item(),
    }
    loss = answers + settings.heads * loss
    if texts is not None and step % settings.text_every == 0:
        first = step // settings.text_every * settings.text_batch
        chosen = [(first + i) % len(texts) for i in range(settings.text_batch)]
        drift = text_loss(model, texts[chosen])
        figures["text"] = drift.item()
        loss = loss + settings.text_weight * drift
    return loss, figures


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()}, torch {torch.__version__})"


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: round(sum(v) / len(v), 5) for name, v in values.items()}


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    last = (TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    return Progress(*columns, *last, console=console, disable=not console.is_terminal)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from attriboard.loading import DTYPES, check_device, load_hf
    from attriboard.models.quiet import quiet

    parser = argparse.ArgumentParser(
        prog="python -m attriboard.zoo.build.train", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("zoo-training"), help="folder for everything written")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps-a", type=int, default=Settings.steps_a, help="steps of the vision tower alone")
    parser.add_argument("--steps-b", type=int, default=Settings.steps_b, help="steps with the language model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    parser.add_argument("--no-measure", action="store_true", help="train only")
    given = parser.parse_args(arguments)
    check_device(given.device)
    settings = Settings(seed=given.seed, steps_a=given.steps_a, steps_b=given.steps_b)
    with quiet():
        lm, tokenizer, source = load_hf(LANGUAGE_MODEL, DTYPES["bfloat16"])
    weights = train(lm, tokenizer, given.out, settings, given.device, given.resume, metadata={"language_model": source})
    if weights is not None and not given.no_measure:
        write_record(weights, given.out / "training.json", given.out / "record.json", given.device)


if __name__ == "__main__":
    main()
