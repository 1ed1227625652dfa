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
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..language import ABSENT, CAPTION, caption, color_answer, question
from ..llava import GRID, PATCH, PATCHES, add_lora, build_llava, lora_off, pixel_values, save_weights
from ..llava import with_placeholders as full
from .packing import Packed, Said, pack
from ..scenes import COLORS, KINDS, Scene, random_scene

ORDER = ("first", "second", "third")
"""Words for an object's place from left to right."""

_PER_OBJECT_COVER = 0.12  # share of a patch that an object covers for the patch to be called the object's
_COVER_OF_NONE = 0.02  # share below which a patch is called background; between the two, nothing is asked of it
_IGNORED = -100
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
_THINGS_BY_STEP = (3, 2, 3, 1, 3, 2)
"""How many things the scenes of consecutive steps of stage b have."""


@dataclass(frozen=True)
class Settings:
    """Everything that determines the weights, besides the language model and the kind of machine.

    Attributes:
        steps_a, steps_b, batch_a, batch_b: steps, and pictures in a step, of the two stages.
        rate_a: peak learning rate of stage a.
        rate_vision, rate_projector, rate_lora: peak learning rates of stage b.
        rank, scale: of the low-rank parts.
        heads: weight of stage a's loss within stage b.
        function_words: weight of a caption's tokens that are neither a color nor a kind.
        text_every: a step of stage b in so many also asks the model to be what it was on text of its own.
        text_weight, texts, text_tokens, text_batch: weight of that loss, how many texts there are, their length, and
            how many are read at a time.
    """

    seed: int = 0
    steps_a: int = 2200
    steps_b: int = 210
    batch_a: int = 96
    batch_b: int = 8
    rate_a: float = 1e-3
    rate_vision: float = 2e-4
    rate_projector: float = 3e-4
    rate_lora: float = 1e-3
    rank: int = 8
    scale: float = 2.0
    heads: float = 0.2
    function_words: float = 0.2
    text_every: int = 4
    text_weight: float = 1.0
    texts: int = 96
    text_tokens: int = 40
    text_batch: int = 6

    @property
    def steps(self) -> dict[str, int]:
        return {"a": self.steps_a, "b": self.steps_b}


@dataclass(frozen=True)
class Batch:
    """Pictures of one step. ``B`` pictures.

    Attributes:
        pictures: [B, SIZE, SIZE, 3], uint8.
        labels: [3, B, PATCHES]; color, kind and place of each patch's object; the number after the last is background,
            and -100 asks nothing.
        things: how many things each picture has.
        packed: the texts about them; None in stage a.
    """

    pictures: np.ndarray
    labels: np.ndarray
    things: int
    packed: Packed | None


class Steps(Dataset[Batch]):
    """Step number to its batch; everything by chance in it comes from the seed, the stage and the number."""

    def __init__(self, settings: Settings, stage: str, tokenizer: Any):
        self.settings, self.stage, self.tokenizer = settings, stage, tokenizer

    def __len__(self) -> int:
        return self.settings.steps[self.stage]

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.settings.seed}/{self.stage}/{step}")
        if self.stage == "a":
            scenes = [random_scene(rng, rng.choice((1, 2, 3, 3))) for _ in range(self.settings.batch_a)]
        else:
            things = _THINGS_BY_STEP[step % len(_THINGS_BY_STEP)]
            count = pictures_in_step(self.settings.batch_b, step)
            scenes = [random_scene(rng, things) for _ in range(count)]
        packed = None
        if self.stage == "b":
            packed = pack([texts_about(s, self.tokenizer, rng, self.settings.function_words) for s in scenes])
        return Batch(
            pictures=np.stack([scene.pixels() for scene in scenes]),
            labels=np.stack([patch_labels(scene) for scene in scenes], axis=1),
            things=len(scenes[0].things),
            packed=packed,
        )


def pictures_in_step(batch: int, step: int) -> int:
    """How many pictures a step of stage b has: short rows are cheap, so there are more where there are fewer things."""
    return batch + 2 * (3 - _THINGS_BY_STEP[step % len(_THINGS_BY_STEP)])


def patch_labels(scene: Scene) -> np.ndarray:
    """Color, kind and place from left to right of the object on each patch, [3, PATCHES]; see :class:`Batch`."""
    masks = scene.masks().reshape(-1, GRID, PATCH, GRID, PATCH)
    cover = masks.mean(axis=(2, 4)).reshape(len(scene.things), PATCHES)
    owner, most = cover.argmax(axis=0), cover.max(axis=0)
    places = [scene.left_to_right.index(thing) for thing in scene.things]
    own = np.array(
        [
            [COLORS.index(thing.color) for thing in scene.things],
            [KINDS.index(thing.kind) for thing in scene.things],
            places,
        ]
    )
    labels = own[:, owner]
    nothing = np.array([len(COLORS), len(KINDS), len(ORDER)])[:, None]
    labels = np.where(most < _COVER_OF_NONE, nothing, labels)
    return np.where((most >= _COVER_OF_NONE) & (most < _PER_OBJECT_COVER), _IGNORED, labels)


def texts_about(scene: Scene, tokenizer: Any, rng: random.Random, function_words: float) -> list[Said]:
    """A question for each thing and one for something absent, and the caption."""
    absent = rng.choice([kind for kind in KINDS if kind not in {thing.kind for thing in scene.things}])
    asked = [(thing.kind, color_answer(thing.color)) for thing in scene.things] + [(absent, ABSENT)]
    said = [_said(tokenizer, question(kind), answer, "") for kind, answer in asked]
    end = tokenizer.eos_token or ""
    tokens, prompt, _ = _said(tokenizer, CAPTION, caption(scene.left_to_right), end)
    content = _content_words(tokenizer)
    return [*said, (tokens, prompt, [1.0 if token in content else function_words for token in tokens[prompt:]])]


@cache
def _content_words(tokenizer: Any) -> frozenset[int]:
    return frozenset(word_id(tokenizer, word) for word in (*COLORS, *KINDS))


def word_id(tokenizer: Any, word: str) -> int:
    """The token of a word after a space."""
    ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens after a space, expected 1")
    return ids[0]


def _said(tokenizer: Any, prompt: str, answer: str, end: str) -> Said:
    before, after = _encode(tokenizer, prompt), _encode(tokenizer, prompt + answer + end)
    if after[: len(before)] != before or len(after) == len(before):
        raise ValueError(f"the tokens of {prompt!r} are not the first ones of {prompt + answer!r}")
    return after, len(before), [1.0] * (len(after) - len(before))


@cache
def _encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(full(text)).input_ids)


def _loader(dataset: Steps, start: int, workers: int) -> Iterator[Batch]:
    numbers = range(start, len(dataset))
    options: dict[str, Any] = {"num_workers": workers, "prefetch_factor": 4} if workers else {}
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, collate_fn=_as_it_is, **options))


def _as_it_is(batch: Any) -> Any:
    return batch


def to_tensors(packed: Packed, device: str) -> dict[str, Tensor]:
    return {field.name: torch.from_numpy(getattr(packed, field.name)).to(device) for field in fields(packed)}


class PatchHeads(nn.Module):
    """What a patch shows, read off the vision tower; used in training alone."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n + 1) for n in (len(COLORS), len(KINDS), len(ORDER)))

    def forward(self, features: Tensor) -> list[Tensor]:
        """[B, PATCHES, width] to logits of color, kind and place, [B, PATCHES, classes] each."""
        return [head(features) for head in self.heads]


class Words(nn.Module):
    """The language model's embeddings of the words for what a patch can show; the last of each list is background."""

    colors: Tensor
    kinds: Tensor
    order: Tensor

    def __init__(self, embeddings: Tensor, tokenizer: Any):
        super().__init__()
        background = [word_id(tokenizer, "background")]
        for name, words in (("colors", COLORS), ("kinds", KINDS), ("order", ORDER)):
            ids = [word_id(tokenizer, word) for word in words] + background
            self.register_buffer(name, embeddings[ids].detach().float().clone())

    def target(self, labels: Tensor) -> Tensor:
        """[3, B, PATCHES] to what a patch's projection is pulled to, [B, PATCHES, d_model]: the sum of its words."""
        color, kind, place = labels.clamp(min=0)
        words = self.colors[color] + self.kinds[kind] + self.order[place]
        return torch.where((color == len(COLORS))[..., None], self.colors[-1], words)


def features_and_projection(model: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The vision tower's patches, [B, PATCHES, width], and what the language model gets, [B, PATCHES, d_model]."""
    features = model.model.vision_tower(pictures).last_hidden_state[:, 1:]
    return features, model.model.multi_modal_projector(features)


def patch_loss(
    heads: PatchHeads, words: Words, features: Tensor, projected: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the three heads and the relative squared distance to the words, over all patches asked about."""
    logits = heads(features)
    asked = labels[0] != _IGNORED
    losses = [
        nn.functional.cross_entropy(one.float().flatten(0, 1), label.flatten(), ignore_index=_IGNORED)
        for one, label in zip(logits, labels)
    ]
    target = words.target(labels)
    distance = (projected.float() - target).square().sum(-1) / target.square().sum(-1)
    pull = distance[asked].mean()
    seen = asked & (labels[0] < len(COLORS))
    right = [(one.argmax(-1) == label)[seen].float().mean().item() for one, label in zip(logits, labels)]
    figures = {"color": right[0], "kind": right[1], "place": right[2], "pull": pull.item()}
    return torch.stack([*losses, pull]).sum(), figures


def answer_logits(model: Any, projected: Tensor, packed: dict[str, Tensor]) -> Tensor:
    """Logits of every answer token, [A, vocabulary], from the pictures' projections [B, PATCHES, d_model]."""
    embedded = model.get_input_embeddings()(packed["ids"])
    slots = (packed["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(slots, projected.to(embedded.dtype))
    unseen = torch.zeros_like(packed["mask"], dtype=embedded.dtype)
    unseen.masked_fill_(~packed["mask"], torch.finfo(embedded.dtype).min)
    hidden = model.model.language_model(
        inputs_embeds=embedded, attention_mask=unseen, position_ids=packed["positions"], use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[packed["rows"], packed["nodes"]])


def text_loss(model: Any, ids: Tensor) -> Tensor:
    """KL divergence from the untouched language model to this one, per token of ``ids`` [B, T]."""

    def logits() -> Tensor:
        hidden = model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden).float().log_softmax(-1)

    with torch.no_grad(), lora_off(model):
        before = logits()
    return nn.functional.kl_div(logits().flatten(0, 1), before.flatten(0, 1), reduction="batchmean", log_target=True)


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
            for batch in _loader(Steps(settings, stage, tokenizer), at.step, workers):
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

    from .evaluate import write_record
    from ..llava import LANGUAGE_MODEL

    parser = argparse.ArgumentParser(prog="python -m attriboard.zoo.build.train", description=(__doc__ or "").split("\n")[0])
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
