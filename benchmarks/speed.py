"""What the harness' shortcuts are worth, measured against the procedures they replace.

Pairs, each measured in turn in one run: a forward pass that captures every activation against a bare one; all heads
knocked out as batched rows against a deep copy of the model per head; the neurons' log-probability increase with a
provably exact top 100 against every neuron evaluated; all edges scored by one gradient pass against a copy of the
residual stream for every destination. Both sides of a pair must give the same numbers. A last pair says what a curve of
ten circuits costs on edges, and on nodes. Beside each stands the least time that the fast side's matrix products can
take, at rates measured in the same run (``floor.py``).

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from attriboard.components import get_level
from attriboard.edges import Changes, products, written
from attriboard.evaluation.speed import PeakMemory
from attriboard.interventions import intervene
from attriboard.loading import DTYPES, load_model
from attriboard.log_prob import last_token
from attriboard.method import methods
from attriboard.model import Batch, Cost, EncodedExample, Model, hook_name
from attriboard.models.edges import OwnGradients, through_norm
from attriboard.models.weights import Qkv
from attriboard.run.provenance import provenance
from attriboard.stats.sets import mib_sizes
from attriboard.task import Example

PROMPT = "The dog is red. The cat is blue. The color of the dog is"
COUNTERFACTUAL = "The dog is green. The cat is blue. The color of the dog is"
EXACT = 100
FLOOR = runpy.run_path(str(Path(__file__).with_name("floor.py")))


SHAPES = {
    "llama-7b-shape": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "smollm2-135m-shape": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "tiny-shape": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
}
"""Models with random weights, whose speed is that of the real ones."""


def model_and_example(name: str, device: str, dtype: str) -> tuple[Model, EncodedExample]:
    """A pretrained model with a real prompt, or one of :data:`SHAPES` with random weights and tokens."""
    if name not in SHAPES:
        model = load_model(name, device, dtype)
        return model, model.encode(Example(PROMPT, " red", " green", COUNTERFACTUAL))
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name]), dtype=DTYPES[dtype])
    model = Model(hf, name=name)
    return model, random_example(model, 16)


def random_example(model: Model, length: int) -> EncodedExample:
    """Random tokens, and a counterfactual that differs in one of the first."""
    generator = torch.Generator().manual_seed(length)
    tokens = tuple(torch.randint(3, model.d_vocab, (length,), generator=generator).tolist())
    other = (*tokens[:4], (tokens[4] + 1) % model.d_vocab, *tokens[5:])
    return EncodedExample(Example("", ""), tokens, 300, 400, other)


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


def passes(model: Model, example: EncodedExample, rows: int = 16) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The plain Hugging Face call, and a pass that keeps heads, neurons and residuals of every layer."""
    batch = model.batch([example] * rows)
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

    return bare, lambda: model.run(batch, names)


def capturing(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """A pass that keeps activations against one that does not."""
    bare, captured = passes(model, example)
    timed = pair("capturing forward / bare forward", bare, captured, repeats, model, rates)
    return {**timed, "note": "here fast is the bare pass; the ratio is what capturing costs"}


def head_sweep(model: Model, example: EncodedExample, repeats: int, rates: Any, copies: int) -> dict[str, Any]:
    """All heads as rows of batches against a deep copy of the model with zeroed weights for each head."""
    level = get_level("heads")
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    sample = heads[:: max(1, len(heads) // copies)][:copies]
    batch = model.batch([example])
    clean = float(model.metric(model.run(batch).logits, batch))

    def batched() -> Tensor:
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


def naive_increase(model: Model, example: EncodedExample, layers: Sequence[int], rows: int = 2048) -> Tensor:
    """``[layers, d_mlp]``: every neuron's increase as it is defined: one row through the unembedding each, in float32.

    Args:
        rows: at most how many are taken at a time.
    """
    batch = model.batch([example])
    activations, resid = last_token(model, batch, ("post", "resid_mid"))
    scale, gamma, unembedding = model.final_norm_scale(resid), model.final_norm_weight, model.W_U.float()

    def log_prob(z: Tensor) -> Tensor:
        return torch.log_softmax((z / scale * gamma) @ unembedding.T, -1)[:, example.answer]

    found = []
    for layer in layers:
        base, coefficient = activations["resid_mid"][:, layer].float(), activations["post"][0, layer].float()
        parts = zip(model.W_out(layer).split(rows), coefficient.split(rows), strict=True)
        moved = torch.cat([log_prob(base + c[:, None] * w.float()) for w, c in parts])
        found.append(moved - log_prob(base))
    return torch.stack(found)


def bounded_increase(model: Model, example: EncodedExample) -> Tensor:
    """``[L, d_mlp]``: the same behind the tangent bound, the top 100 provably exact."""
    method = methods.make("log_prob_increase", {"exact_top_k": EXACT})
    return method.attribute(model, [example], get_level("neurons")).values


def agreement(fast: Tensor, slow: Tensor) -> dict[str, Any]:
    """How far both forms agree in the top 100 of the slow one."""
    fast, slow = fast.flatten().cpu(), slow.flatten().cpu()
    top = slow.argsort(descending=True)[:EXACT]
    same = set(fast.argsort(descending=True)[:EXACT].tolist()) & set(top.tolist())
    worst = float((fast[top] - slow[top]).abs().max())
    return {
        "neurons": len(slow),
        "same_of_top_100": len(same),
        "largest_difference_in_top_100": worst,
        "largest_increase": float(slow.max()),
    }


def neuron_increase(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """The exact top 100 neurons behind the tangent bound against every neuron's increase."""

    def bounded() -> Tensor:
        return bounded_increase(model, example)

    def naive() -> Tensor:
        return naive_increase(model, example, range(model.n_layers))

    agreed = agreement(bounded(), naive())
    timed = pair("log-probability increase of all neurons", bounded, naive, repeats, model, rates)
    return {**timed, **agreed}


class CopiedResiduals(OwnGradients):
    """Every query, key and value input of every head reads a copy of the residual stream, a leaf of the graph."""

    def __init__(self, model: Model, batch: Batch) -> None:
        super().__init__(model, batch)
        self.copies: list[Tensor] = []

    def enters(self, layer: int, resid: Tensor) -> None:
        super().enters(layer, resid)
        rows, positions, width = resid.shape
        leaf = torch.zeros(rows, 3 * self.weights.n_heads, positions, width, dtype=resid.dtype, device=resid.device)
        self.copies.append(leaf.requires_grad_())
        norm = self.weights.parts.ln1[layer]
        normed = (resid[:, None] + leaf) if norm is None else norm(resid[:, None] + leaf)
        made = []
        for part, weight in zip(normed.chunk(3, dim=1), self.weights.qkv_weights(layer)):
            groups = part.unflatten(1, (weight.shape[1], -1))
            made.append(torch.einsum("rgmtd,dge->rtgme", groups, weight).flatten(2, 3))
        self._heads = Qkv(*made)

    def projected(self, layer: int, run: int, role: str, make: Callable[[], Tensor]) -> Tensor:
        own = self.together[run].to(self.resid.device)
        heads = Qkv(self._heads.q, *(part.index_select(2, own) for part in self._heads[1:]))
        return self.weights.join_qkv(heads)[("query", "key", "value").index(role)]

    def gradients(self, value: Tensor) -> dict[str, Tensor]:
        ffn = [x for own in self._ffn for x in own]
        found = iter(torch.autograd.grad(value.sum(), [*self.copies, *ffn, self.final]))
        by_name = {f"heads.{layer}": next(found) for layer in range(self.weights.n_layers)}
        for layer, own in enumerate(self._ffn):
            at = torch.stack([next(found) for _ in own]).sum(0)[:, None]
            by_name[f"ffn.{layer}"] = through_norm(self.weights.parts.ln2[layer], self.mids[layer], at)
        return {**by_name, "logits": next(found)[:, None]}


def edge_scores(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """EAP's score of every edge against the form with a copy of the residual stream for each destination."""
    method, level = methods.make("eap"), get_level("edges")

    def ours() -> Tensor:
        return method.attribute(model, [example], level).values

    def copied() -> Tensor:
        batch = model.share_prefix(model.batch([example]))
        assert batch.counterfactual is not None
        own = CopiedResiduals(model, batch)
        run = model.run(batch, gradients=True, also=own.install)
        gradients = own.gradients(model.metric(run.logits, batch))
        changes = Changes(model, batch, own.written, written(model, batch.counterfactual))
        return products(model, batch, changes.at(own.written), gradients)[0].cpu()

    fast, slow = ours(), copied()
    model.cost = Cost()
    ours()
    forwards = model.forward_equivalents([example])
    timed = pair("every edge's score", ours, copied, repeats, model, rates)
    largest = float((fast - slow).abs().max() / slow.abs().max())
    return {**timed, "edges": len(fast), "largest_relative_difference": largest, "forward_equivalents": forwards}


def edge_curve(model: Model, example: EncodedExample, repeats: int, rates: Any) -> dict[str, Any]:
    """Circuits of MIB's ten sizes on edges against as many on nodes, each by scores drawn at random."""
    batch = model.batch([example])

    def curve(name: str) -> Callable[[], Any]:
        level = get_level(name)
        n = level.size(model)
        ranks = torch.rand(n, generator=torch.Generator().manual_seed(0)).argsort().argsort()
        masks = torch.stack([ranks >= max(1, k) for k in mib_sizes(n)])
        return lambda: intervene(model, batch, level)(masks)

    timed = pair("ten circuits of edges", curve("nodes"), curve("edges"), repeats, model, rates)
    return {**timed, "note": "here fast is the same curve on nodes; the ratio is what edges cost"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help=f"a model name, or one of {', '.join(SHAPES)}")
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
            edge_scores(model, example, options.repeats, rates),
            edge_curve(model, example, options.repeats, rates),
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
