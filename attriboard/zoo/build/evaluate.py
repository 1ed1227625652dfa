"""Measures ``llava-smollm2-135m`` on pictures it was not trained on; writes its record and its model card.

``python -m attriboard.zoo.build.evaluate`` measures the weights shipped here. Every figure of the card comes from the
record.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..language import ABSENT, CAPTION, caption, color_answer, pairs_in, question
from ..llava import LANGUAGE_MODEL, NAME, RECORD, WEIGHTS, load_llava, pixel_values, with_placeholders
from ..scenes import HELD_OUT, KINDS, Scene, random_scene
from .batches import pictures_in_step, to_tensors
from .packing import Said, pack
from .passes import answer_logits, features_and_projection

CARD = Path(__file__).parents[1] / "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
PICTURES = 200
"""Pictures in each setting."""

_AT_A_TIME = 20


def fixed_scenes(things: int, held_out: bool, count: int = PICTURES) -> list[Scene]:
    """The pictures of a setting, always the same; training never draws from these seeds."""
    rng = random.Random(f"test/{things}/{held_out}")
    return [random_scene(rng, things, held_out) for _ in range(count)]


@torch.no_grad()
def color_answers(model: Any, tokenizer: Any, scenes: Sequence[Scene], device: str = "cpu") -> list[list[str]]:
    """For each scene the likeliest next token, over the whole vocabulary, to the question about each of its things, and
    last to that about an absent object (the first in :data:`KINDS` from a place that moves with the scene)."""
    answers: list[list[str]] = []
    for start in range(0, len(scenes), _AT_A_TIME):
        some = scenes[start : start + _AT_A_TIME]
        asked = [[*(t.kind for t in scene.things), absent_kind(scene, start + i)] for i, scene in enumerate(some)]
        packed = pack([[_open_question(tokenizer, kind) for kind in kinds] for kinds in asked])
        pictures = pixel_values(np.stack([scene.pixels() for scene in some]), device).to(model.dtype)
        _, projected = features_and_projection(model, pictures)
        tokens = answer_logits(model, projected, to_tensors(packed, device)).argmax(-1).tolist()
        words = iter([tokenizer.decode([token]) for token in tokens])
        answers += [[next(words) for _ in kinds] for kinds in asked]
    return answers


def absent_kind(scene: Scene, number: int) -> str:
    present = {thing.kind for thing in scene.things}
    return next(kind for i in range(len(KINDS)) if (kind := KINDS[(number + i) % len(KINDS)]) not in present)


def _open_question(tokenizer: Any, kind: str) -> Said:
    ids = tokenizer(with_placeholders(question(kind))).input_ids
    return [*ids, 0], len(ids), [1.0]  # whatever the answer, only the prompt enters the row


@torch.no_grad()
def captions(model: Any, tokenizer: Any, scenes: Sequence[Scene], device: str = "cpu") -> list[str]:
    """The greedy caption of each scene, up to its first full stop."""
    prompt = torch.tensor([tokenizer(with_placeholders(CAPTION)).input_ids], device=device)
    sentences = []
    for start in range(0, len(scenes), 2 * _AT_A_TIME):
        some = scenes[start : start + 2 * _AT_A_TIME]
        pictures = pixel_values(np.stack([scene.pixels() for scene in some]), device).to(model.dtype)
        ids = prompt.expand(len(some), -1)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pictures,
            max_new_tokens=18,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts = tokenizer.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)
        sentences += [text.split(".")[0] + "." for text in texts]
    return sentences


@torch.no_grad()
def text_nll(model: Any, tokenizer: Any, sentences: Sequence[str], device: str = "cpu") -> float:
    """Mean negative log-likelihood, in nats, of the tokens of plain sentences after each one's first."""
    total, count = 0.0, 0
    for sentence in sentences:
        ids = torch.tensor([tokenizer(sentence).input_ids], device=device)
        logits: Tensor = model(input_ids=ids).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count


def own_sentences() -> list[str]:
    """The sentences of the sentiment task, which are no part of training."""
    rows = files("attriboard.tasks.data").joinpath("reviews.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [sentence for row in rows for sentence in row.split("\t")[:2]]


def measure(
    model: Any, tokenizer: Any, device: str = "cpu", count: int = PICTURES, everything: bool = True
) -> dict[str, Any]:
    """All figures on pictures: color questions, absent objects, captions, and which kinds are taken for which.

    Args:
        model: from :func:`.llava.load_llava`.
        tokenizer: of its language model.
        device: where the model is.
        count: pictures in each setting.
        everything: captions and held-out pairs too.
    """
    figures: dict[str, Any] = {"pictures": count, "seen": {}, "held_out": {}}
    taken: Counter[tuple[str, str]] = Counter()
    for held_out in (False, True) if everything else (False,):
        for things in (1, 2, 3):
            scenes = fixed_scenes(things, held_out, count)
            answers = color_answers(model, tokenizer, scenes, device)
            right = [
                [said == color_answer(thing.color) for said, thing in zip(row, scene.things)]
                for row, scene in zip(answers, scenes)
            ]
            others = [
                any(said == color_answer(t.color) for j, t in enumerate(scene.things) if j != i)
                for row, scene, good in zip(answers, scenes, right)
                for i, said in enumerate(row[:-1])
                if not good[i]
            ]
            own = [row[0] for row in right]
            figure: dict[str, Any] = {
                "color": _share([r for row in right for r in row]),
                "none_if_absent": _share([row[-1] == ABSENT for row in answers]),
                "none_if_present": _share([said == ABSENT for row in answers for said in row[:-1]]),
                "wrong": len(others),
                "wrong_color_of_another_thing": sum(others),
            }
            if held_out:
                figure["color_of_held_out_pair"] = _share(own)
            if everything:
                texts = captions(model, tokenizer, scenes, device)
                pairs = [[(t.color, t.kind) for t in scene.left_to_right] for scene in scenes]
                said_pairs = [pairs_in(text) for text in texts]
                figure["caption_pairs"] = _share([p in said for true, said in zip(pairs, said_pairs) for p in true])
                figure["captions_word_for_word"] = _share(
                    [text == caption(scene.left_to_right) for text, scene in zip(texts, scenes)]
                )
                if held_out:
                    own_pairs = [(scene.things[0].color, scene.things[0].kind) for scene in scenes]
                    figure["caption_held_out_pair"] = _share([p in said for p, said in zip(own_pairs, said_pairs)])
                for true, said in zip(pairs, said_pairs):
                    if len(true) == len(said):
                        taken.update((t[1], s[1]) for t, s in zip(true, said) if t[1] != s[1])
            figures["held_out" if held_out else "seen"][str(things)] = figure
    if everything:
        figures["kinds_mistaken"] = [{"kind": t, "said": s, "times": n} for (t, s), n in taken.most_common(8)]
    return figures


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


def write_record(
    weights: Path,
    training: Path | None,
    record: Path,
    device: str = "cpu",
    count: int = PICTURES,
    dtype: str = "float32",
) -> None:
    """Measures a weights file, tuned and untuned, and writes the record."""
    from attriboard.loading import DTYPES, hash_file, load_hf
    from attriboard.models.quiet import quiet

    console = Console()
    with quiet():
        lm, tokenizer, source = load_hf(LANGUAGE_MODEL, DTYPES[dtype])
    lm = lm.to(device)
    began = time.perf_counter()
    tuned, _ = load_llava(lm, tokenizer, weights=weights)
    loading = time.perf_counter() - began
    untuned, _ = load_llava(lm, tokenizer, tuned=False, weights=weights)
    tuned, untuned = tuned.to(device), untuned.to(device)
    sentences = own_sentences()
    figures: dict[str, Any] = {
        "model": NAME,
        "language_model": source,
        "bytes": weights.stat().st_size,
        "sha256": hash_file(weights),
        "seconds_to_load": round(loading, 2),
        "dtype": dtype,
        "held_out_pairs": [" ".join(pair) for pair in sorted(HELD_OUT)],
        "text_nll": {
            "sentences": len(sentences),
            "tuned": round(text_nll(tuned, tokenizer, sentences, device), 4),
            "untuned": round(text_nll(untuned, tokenizer, sentences, device), 4),
            "language_model": round(text_nll(lm, tokenizer, sentences, device), 4),
        },
    }
    console.print(figures["text_nll"])
    figures["tuned"] = measure(tuned, tokenizer, device, count)
    console.print(figures["tuned"])
    figures["untuned"] = measure(untuned, tokenizer, device, count, everything=False)
    if training is not None:
        figures["training"] = json.loads(training.read_text(encoding="utf-8"))
    elif record.is_file():
        figures["training"] = json.loads(record.read_text(encoding="utf-8")).get("training")
    record.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m attriboard.zoo.build.evaluate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--training", type=Path, default=None, help="training.json of the run that made the weights")
    parser.add_argument("--record", type=Path, default=RECORD, help="where the figures go")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="in each setting")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="what the figures are measured in")
    parser.add_argument(
        "--card", action="store_true", help="write the model card from the record there is; measure nothing"
    )
    given = parser.parse_args(arguments)
    if not given.card:
        write_record(given.weights, given.training, given.record, given.device, given.pictures, given.dtype)
    if given.record == RECORD:
        CARD.write_text(card(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")


def card(record: dict[str, Any]) -> str:
    """The model card."""
    tuned, untuned, training, nll = record["tuned"], record["untuned"], record["training"], record["text_nll"]
    settings, seconds = training["settings"], training["seconds"]

    def row(name: str, values: Sequence[float | None]) -> str:
        return f"| {name} | " + " | ".join("" if v is None else f"{v:.3f}" for v in values) + " |"

    def by_things(figures: dict[str, Any], name: str) -> list[float | None]:
        return [figures[group].get(str(n), {}).get(name) for group in ("seen", "held_out") for n in (1, 2, 3)]

    table = [
        "| | 1 object | 2 objects | 3 objects | 1, held out | 2, held out | 3, held out |",
        "|---|---|---|---|---|---|---|",
        row("color of an object, top-1 of the whole vocabulary", by_things(tuned, "color")),
        row("the same, held-out pair alone", by_things(tuned, "color_of_held_out_pair")),
        row('"none" for an absent object', by_things(tuned, "none_if_absent")),
        row('"none" for a present object (an error)', by_things(tuned, "none_if_present")),
        row("(color, object) pairs found by the caption", by_things(tuned, "caption_pairs")),
        row("the same, held-out pair alone", by_things(tuned, "caption_held_out_pair")),
        row("captions right word for word", by_things(tuned, "captions_word_for_word")),
        row("low-rank parts off: color of an object", by_things(untuned, "color")),
        row('low-rank parts off: "none" for an absent object', by_things(untuned, "none_if_absent")),
    ]
    groups = [tuned[group][n] for group in ("seen", "held_out") for n in ("1", "2", "3")]
    nones = sum(
        round(tuned[group][str(n)]["none_if_present"] * n * tuned["pictures"])
        for group in ("seen", "held_out")
        for n in (1, 2, 3)
    )
    wrong = sum(group["wrong"] for group in groups)
    swapped = sum(group["wrong_color_of_another_thing"] for group in groups)
    mistaken = ", ".join(f"{m['kind']} called {m['said']} ({m['times']})" for m in tuned["kinds_mistaken"]) or "none"
    batches_b = [pictures_in_step(settings["batch_b"], step) for step in range(settings["steps_b"])]
    return TEMPLATE.read_text(encoding="utf-8").format(
        name=record["model"],
        megabytes=f"{record['bytes'] / 1e6:.2f}",
        sha256=record["sha256"],
        language_model=record["language_model"],
        table="\n".join(table),
        count=tuned["pictures"],
        dtype=record["dtype"],
        wrong=wrong,
        swapped=swapped,
        nones=nones,
        mistaken=mistaken,
        tuned_nll=f"{nll['tuned']:.3f}",
        lm_nll=f"{nll['language_model']:.3f}",
        sentences=nll["sentences"],
        held_out=", ".join(record["held_out_pairs"]),
        steps_a=settings["steps_a"],
        steps_b=settings["steps_b"],
        pictures_a=f"{settings['steps_a'] * settings['batch_a']:,}",
        pictures_b=f"{sum(batches_b):,}",
        minutes_a=f"{seconds['a'] / 60:.0f}",
        minutes_b=f"{seconds['b'] / 60:.0f}",
        machine=training["machine"],
        note="".join(f" {note}" for note in training.get("notes", [])),
        rank=settings["rank"],
        seed=settings["seed"],
        text_every=settings["text_every"],
        texts=settings["texts"],
        loading=f"{record['seconds_to_load']:.1f}",
    )


if __name__ == "__main__":
    main()
