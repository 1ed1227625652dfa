"""What the harness' shortcuts are worth, measured against the procedures they replace.

Three pairs, each measured in turn in one run: a forward pass that captures every activation against a bare one; all
heads knocked out as batched rows against a deep copy of the model per head; the neurons' log-probability increase with
a provably exact top 100 against every neuron evaluated. Both sides of a pair must give the same numbers. Beside each
stands the least time that the fast side's matrix products can take, at rates measured in the same run (``floor.py``).

    python benchmarks/speed.py --out results/speed.json
    python benchmarks/speed.py --model llama-7b-shape --device cuda --dtype bfloat16 --out results/speed-7b.json
"""

from __future__ import annotations

import argparse
import copy
import json
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from attriboard.components import get_level
from attriboard.evaluation.speed import PeakMemory
from attriboard.loading import DTYPES, load_model
from attriboard.log_prob import FrozenUnembedding, last_token, level_candidates
from attriboard.method import methods
from attriboard.model import EncodedExample, Model, hook_name
from attriboard.run.provenance import provenance
from attriboard.task import Example

PROMPT = "The dog is red. The cat is blue. The color of the dog is"
COUNTERFACTUAL = "The dog is green. The cat is blue. The color of the dog is"
EXACT = 100
FLOOR = runpy.run_path(str(Path(__file__).with_name("floor.py")))


def model_and_example(name: str, device: str, dtype: str) -> tuple[Model, EncodedExample]:
    """A pretrained model with a real prompt, or the shape of Llama-7B with random weights and tokens."""
    if name != "llama-7b-shape":
        model = load_model(name, device, dtype)
        return model, model.encode(Example(PROMPT, " red", " green", COUNTERFACTUAL))
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    tokens = tuple(torch.randint(3, 32000, (16,)).tolist())
    other = (*tokens[:4], (tokens[4] + 1) % 32000, *tokens[5:])
    return Model(hf, name=name), EncodedExample(Example("", ""), tokens, 300, 400, other)


def clock(action: Callable[[], Any], device: torch.device) -> tuple[float, float, Any]:
    """Seconds, peak memory in MiB, and the result."""
    with PeakMemory(device) as memory:
        start = time.perf_counter()
        result = action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds, memory.mib, result


def pair(
    name: str,
    fast: Callable[[], Any],
    slow: Callable[[], Any],
    repeats: int,
    model: Model,
    rates: Any,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Times both sides in turn; ``scale`` is what the slow side's time must be multiplied by to do the whole work."""
    device = model.device
    with FLOOR["Products"]([model.hf]) as products:
        fast()  # warm
    rows: list[dict[str, Any]] = []
    for _ in range(repeats):
        fast_seconds, fast_mib, _ = clock(fast, device)
        slow_seconds, slow_mib, _ = clock(slow, device)
        rows.append({"fast": fast_seconds, "slow": slow_seconds * scale, "fast_mib": fast_mib, "slow_mib": slow_mib})
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    ratio = statistics.median(row["slow"] / row["fast"] for row in rows)
    print(f"{name}: {median['fast']:.4f} s against {median['slow']:.4f} s, ratio {ratio:.3f}", flush=True)
    return {
        "name": name,
        "median": median,
        "ratio_slow_to_fast": ratio,
        "slow_side_scaled_by": scale,
        "floor": products.json(rates),
        "repeats": rows,
    }


def capturing(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """A pass that keeps heads, neurons and residuals of every layer against the plain Hugging Face call."""
    batch = model.batch([example] * 16)
    sites = ("z", "post", "resid_pre", "attn_out", "mlp_out")
    names = [hook_name(site, layer) for site in sites for layer in range(model.n_layers)]

    def bare() -> None:
        with torch.no_grad():
            model.hf(
                input_ids=batch.tokens,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=1,
            )

    timed = pair("capturing forward / bare forward", bare, lambda: model.run(batch, names), repeats, model, rates)
    return {**timed, "note": "here fast is the bare pass; the ratio is what capturing costs"}


def head_sweep(model: Model, example: EncodedExample, repeats: int, rates: Any, copies: int) -> dict[str, Any]:
    """All heads as rows of batches against a deep copy of the model with zeroed weights for each head."""
    level = get_level("heads")
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    sample = heads[:: max(1, len(heads) // copies)][:copies]
    batch = model.batch([example])
    clean = float(model.metric(model.run(batch).logits, batch))

    def batched() -> torch.Tensor:
        return methods.make("head_ablation").attribute(model, [example], level).values

    def copied() -> list[float]:
        lost = []
        for layer, head in sample:
            other = copy.deepcopy(model.hf)
            weight = other.model.layers[layer].self_attn.o_proj.weight
            weight[:, head * model.d_head : (head + 1) * model.d_head] = 0
            with torch.no_grad():
                logits = other(input_ids=batch.tokens).logits[:, -1]
            lost.append(clean - float(model.metric(logits, batch)))
        return lost

    ours = torch.tensor([float(batched()[layer, head]) for layer, head in sample])
    worst = float((ours - torch.tensor(copied())).abs().max())
    timed = pair("all heads knocked out", batched, copied, repeats, model, rates, scale=len(heads) / len(sample))
    return {**timed, "heads": len(heads), "copies_measured": len(sample), "largest_difference": worst}


def neuron_increase(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """The exact top 100 neurons behind the tangent bound against every neuron's increase."""
    level = get_level("neurons")
    batch = model.batch([example])

    def bounded() -> torch.Tensor:
        return methods.make("log_prob_increase", {"exact_top_k": EXACT}).attribute(model, [example], level).values

    def naive() -> torch.Tensor:
        activations, resid = last_token(model, batch, ("post", "resid_mid"))
        unembedding = FrozenUnembedding(model, resid)
        every = level_candidates(model, level, activations["resid_mid"].float(), activations["post"])
        index = torch.arange(level.size(model), device=model.device)
        return torch.cat(
            [every.increases(unembedding, batch.answer, part)[0] for part in index.split(model.d_mlp)]
        ).view(level.shape(model))

    fast, slow = bounded().flatten().cpu(), naive().flatten().cpu()
    top = slow.argsort(descending=True)[:EXACT]
    same = set(fast.argsort(descending=True)[:EXACT].tolist()) == set(top.tolist())
    worst = float((fast[top] - slow[top]).abs().max())
    timed = pair("log-probability increase of all neurons", bounded, naive, repeats, model, rates)
    return {**timed, "neurons": level.size(model), "same_top_100": same, "largest_difference_in_top_100": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model name, or llama-7b-shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=270, help="heads for which the model is deep-copied")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, example = model_and_example(options.model, options.device, options.dtype)
    rates = FLOOR["Rates"].measured(model.device, model.dtype)
    result = {
        "model": options.model,
        "dtype": options.dtype,
        "weights_sha256": model.weights_sha256,
        "prompt_tokens": len(example.tokens),
        "provenance": provenance(model.device).model_dump(),
        "rates": rates.json(),
        "pairs": [
            capturing(model, example, 5 * options.repeats, rates),
            head_sweep(model, example, options.repeats, rates, options.copies),
            neuron_increase(model, example, options.repeats, rates),
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
