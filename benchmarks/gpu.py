"""What the harness gets out of a GPU: its passes and methods beside the device's own rates, in two minutes.

On models with random weights of the shapes of Llama-7B and SmolLM2-135M, made on the device in bfloat16. Every item is
measured by itself: one that fails or does not fit into the time is said to have, and the results are written after
each. Times are of CUDA events (of the clock on a CPU), after a warm-up.

    python benchmarks/gpu.py --out results/gpu.json --seconds 120
    python benchmarks/gpu.py --device cpu --small --out gpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from attriboard.components import get_level
from attriboard.evaluation.speed import PeakMemory
from attriboard.evaluation.timing import timed
from attriboard.loading import check_device
from attriboard.log_prob import last_token
from attriboard.method import methods
from attriboard.model import Cost, EncodedExample, Model
from attriboard.run.provenance import provenance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a program that is run by its path
from benchmarks.speed import (
    agreement,
    bounded_increase,
    model_and_example,
    naive_increase,
    passes,
    random_example,
)

LONG = 592
"""Tokens of a prompt with one of LLaVA-1.5's pictures (576) and a question."""


def seconds(action: Callable[[], Any], device: torch.device, repeats: int, warm: int = 1) -> list[float]:
    """How long it takes, each time."""
    for _ in range(warm):
        action()
    return [timed(action, device) for _ in range(repeats)]


def in_turn(actions: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, Any]:
    """Median seconds of each, all taken in turn."""
    for action in actions.values():
        action()
    rows = [{name: seconds(action, device, 1, warm=0)[0] for name, action in actions.items()} for _ in range(repeats)]
    return {f"{name}_seconds": statistics.median(row[name] for row in rows) for name in actions}


def waits(action: Callable[[], Any], device: torch.device) -> int | None:
    """How often the host waits for the device; None on a CPU."""
    if device.type != "cuda":
        return None
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return sum("synchroniz" in str(warning.message) for warning in caught)


def extra_memory(action: Callable[[], Any], device: torch.device) -> float | None:
    """Peak MiB of the device beyond what is held before; None on a CPU."""
    with PeakMemory(device) as memory:
        action()
    return memory.mib if device.type == "cuda" else None


def rates(device: torch.device, side: int) -> dict[str, Any]:
    """Products of square matrices in operations a second, and bytes copied (read and written) a second."""
    found: dict[str, Any] = {"side": side}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        best = min(seconds(lambda: a @ b, device, 5, warm=2))  # noqa: B023
        found[f"{str(dtype).removeprefix('torch.')}_flops_per_second"] = 2 * side**3 / best
    source = torch.empty(16 * side**2, dtype=torch.uint8, device=device)  # 1 GiB of a side of 8192
    target = torch.empty_like(source)
    found["copied_bytes_per_second"] = 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device, 5, warm=2))
    return found


def capturing(model: Model, example: EncodedExample) -> dict[str, Any]:
    """Sixteen rows: a pass that keeps activations of every layer against the plain Hugging Face call."""
    bare, captured = passes(model, example)
    found = in_turn({"bare": bare, "capturing": captured}, model.device, 15)
    found["ratio"] = found["capturing_seconds"] / found["bare_seconds"]
    return {**found, "waits_bare": waits(bare, model.device), "waits_capturing": waits(captured, model.device)}


def increase(model: Model, example: EncodedExample) -> dict[str, Any]:
    """Log-probability increase of all neurons: the top 100 provably exact, against every neuron in float32."""

    def bounded() -> Any:
        return bounded_increase(model, example)

    def naive() -> Any:
        return naive_increase(model, example, range(model.n_layers))

    agreed = agreement(bounded(), naive())
    found = in_turn({"bounded": bounded}, model.device, 7)
    found["naive_seconds"] = min(seconds(naive, model.device, 2, warm=0))
    batch = model.batch([example])
    forward = seconds(lambda: last_token(model, batch, ("post", "resid_mid")), model.device, 5)
    return {
        **found,
        "ratio": found["naive_seconds"] / found["bounded_seconds"],
        "of_which_forward_seconds": statistics.median(forward),
        "waits": waits(bounded, model.device),
        **agreed,
    }


def query_neurons(model: Model, length: int) -> dict[str, Any]:
    """Query neurons of one prompt: seconds and memory beyond the weights."""
    example, level = random_example(model, length), get_level("neurons")

    def score() -> Any:
        return methods.make("query_neurons").attribute(model, [example], level)

    score()
    return {
        "tokens": length,
        "extra_mib": extra_memory(score, model.device),
        "bare_pass_extra_mib": extra_memory(lambda: model.run(model.batch([example])), model.device),
        "seconds": min(seconds(score, model.device, 2, warm=0)),
        "waits": waits(score, model.device),
    }


def edges(model: Model, length: int) -> dict[str, Any]:
    """EAP of all edges of one prompt: seconds, memory beyond the weights, and work."""
    example, level = random_example(model, length), get_level("edges")
    method = methods.make("eap")

    def score() -> Any:
        batch = model.batch([example])
        return method.score_batch(model, batch, level)

    score()
    model.cost = Cost()
    extra = extra_memory(score, model.device)
    return {
        "tokens": length,
        "edges": level.size(model),
        "extra_mib": extra,
        "forward_equivalents": model.forward_equivalents([example]),
        "seconds": min(seconds(score, model.device, 2, warm=0)),
    }


def occlusion(model: Model, length: int) -> dict[str, Any]:
    """Every position of a prompt occluded in turn, behind what it leaves as it is and without."""
    example, level = random_example(model, length), get_level("tokens")
    method = methods.make("occlusion")

    def score() -> Any:
        return method.each(model, [example], level)[0]

    score()  # warm
    found: dict[str, Any] = {"tokens": length}
    scores, shares = {}, model.shares_prefixes
    try:
        for name, shared in (("behind_prefixes", True), ("whole", False)):
            model.shares_prefixes, model.cost = shared, Cost()
            found[f"{name}_seconds"] = seconds(lambda: scores.update({name: score()}), model.device, 1, warm=0)[0]  # noqa: B023
            found[f"{name}_forward_equivalents"] = model.forward_equivalents([example])
    finally:
        model.shares_prefixes = shares
    largest = scores["whole"].abs().max()
    found["saved"] = 1 - found["behind_prefixes_seconds"] / found["whole_seconds"]
    found["largest_difference"] = float((scores["behind_prefixes"] - scores["whole"]).abs().max() / largest)
    return found


def head_ablation(model: Model, length: int, matrix_rate: float | None) -> dict[str, Any]:
    """Every head knocked out in turn: operations a second, as a share of what square matrices reach."""
    example, level = random_example(model, length), get_level("heads")
    method = methods.make("head_ablation")
    model.cost = Cost()
    taken = seconds(lambda: method.attribute(model, [example], level), model.device, 1, warm=0)[0]
    found = {
        "tokens": length,
        "heads": level.size(model),
        "seconds": taken,
        "forward_equivalents": model.forward_equivalents([example]),
        "flops_per_second": model.cost.flops / taken,
    }
    return {**found, "share_of_matrix_rate": found["flops_per_second"] / matrix_rate} if matrix_rate else found


Item = tuple[str, float, Callable[[], dict[str, Any]]]
"""Its name, the seconds it is given, and what measures it."""


def items(options: argparse.Namespace, done: dict[str, Any]) -> Iterator[Item]:
    """What is measured, the most wanted first; a model is made when its first item is asked for."""
    device, models = torch.device(options.device), dict[str, tuple[Model, EncodedExample]]()
    dtype = "float32" if options.small else "bfloat16"
    large, little = ("tiny-shape",) * 2 if options.small else ("llama-7b-shape", "smollm2-135m-shape")
    long = 24 if options.small else LONG

    def of(shape: str) -> tuple[Model, EncodedExample]:
        if shape not in models:
            models.clear()  # one at a time
            models[shape] = model_and_example(shape, options.device, dtype)
        return models[shape]

    def rate() -> float | None:
        found = done.get("rates", {}).get("float32_flops_per_second" if options.small else "bfloat16_flops_per_second")
        return float(found) if found else None

    yield "rates", 5, lambda: rates(device, 512 if options.small else 8192)
    yield "capturing, 7B", 25, lambda: capturing(*of(large))
    yield "log-probability increase, 7B", 15, lambda: increase(*of(large))
    yield "query neurons, 7B, short", 3, lambda: query_neurons(of(large)[0], 16)
    yield "query neurons, 7B, long", 5, lambda: query_neurons(of(large)[0], long)
    yield "edges, 7B", 10, lambda: edges(of(large)[0], 16 if options.small else 64)
    yield "occlusion, 7B", 25, lambda: occlusion(of(large)[0], long)
    yield "head ablation, 7B", 12, lambda: head_ablation(of(large)[0], long, rate())
    yield "capturing, 135M", 5, lambda: capturing(*of(little))
    yield "log-probability increase, 135M", 5, lambda: increase(*of(little))
    yield "query neurons, 135M, short", 3, lambda: query_neurons(of(little)[0], 16)
    yield "edges, 135M", 5, lambda: edges(of(little)[0], 16 if options.small else 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes in float32, to see that it runs")
    parser.add_argument("--seconds", type=float, default=120, help="after which no item is begun")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    check_device(options.device)
    torch.set_float32_matmul_precision("highest")
    begun = time.perf_counter()
    found: dict[str, Any] = {}
    result = {
        "provenance": provenance(torch.device(options.device)).model_dump(),
        "transformers": transformers.__version__,
        "small": options.small,
        "items": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, needs, measure in items(options, found):
        left = options.seconds - (time.perf_counter() - begun)
        start = time.perf_counter()
        if left < needs:
            skipped = f"it is given {needs:.0f} s, and {max(0.0, left):.0f} of {options.seconds:.0f} s are left"
            found[name] = {"skipped": skipped}
        else:
            try:
                found[name] = measure()
            except Exception as error:  # the other items are worth having without it
                found[name] = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        found[name]["item_seconds"] = time.perf_counter() - start
        print(f"{name}: {json.dumps({k: v for k, v in found[name].items() if k != 'traceback'})}", flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
