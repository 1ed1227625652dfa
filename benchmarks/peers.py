"""Other projects' own code beside this one: the same numbers, and what each takes for them, in turn on one thread.

captum and TransformerLens come from PyPI, EAP-IG and Wanda as folders of clones; none of their code is copied. What is
not there is skipped with a sentence. `make peers PEERS=DIR` makes an environment of its own for it.

    python benchmarks/peers.py --clones DIR --out results/peers.json
    python benchmarks/peers.py --page results/peers.json > docs/speed.md
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for a program that is run by its path
from attriboard.components import get_level
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.model import Cost, EncodedExample, Model, hook_name
from attriboard.run.provenance import provenance
from attriboard.task import Example
from benchmarks.gpu import rates
from benchmarks.speed import model_and_example, random_example

COLORS = ("red", "green", "blue", "black", "white", "brown", "pink", "gray")


class Absent(Exception):
    """A peer cannot be run here; the message says why."""


@dataclass
class Bench:
    """A model, prompts of one length with counterfactuals of theirs, and where other projects' clones are."""

    model: Model
    examples: list[EncodedExample]
    clones: Path

    @property
    def tokens(self) -> Tensor:
        return torch.tensor([e.tokens for e in self.examples])

    @property
    def counterfactual(self) -> Tensor:
        return torch.tensor([e.counterfactual for e in self.examples])

    def metric(self, logits: Tensor) -> Tensor:
        """``[B]``: logit(answer) - logit(foil) of logits ``[B, V]`` at the last token of every example."""
        rows = torch.arange(len(self.examples))
        answer = torch.tensor([e.answer for e in self.examples])
        foil = torch.tensor([-1 if e.foil is None else e.foil for e in self.examples])
        return logits[rows, answer] - logits[rows, foil]

    def scores(self, name: str, level: str, **options: Any) -> Tensor:
        """Ours."""
        return methods.make(name, options).attribute(self.model, self.examples, get_level(level)).values


@dataclass
class Pair:
    """The same scores from both, shaped alike; ``difference`` says what theirs needed to be the same."""

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    difference: str = ""


# --- the peers ----------------------------------------------------------------------------------------------------


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Absent(f"the package {name} is not installed ({error}); `make peers` installs it.") from None


@contextmanager
def _clone(bench: Bench, folder: str, source: str, url: str) -> Iterator[None]:
    path = bench.clones / folder
    if not (path / source).is_dir():
        raise Absent(f"there is no clone of {url} at {path}.")
    sys.path.insert(0, str(path / source))
    try:
        yield
    finally:
        sys.path.remove(str(path / source))


def captum_occlusion(bench: Bench) -> Pair:
    """One token after the other replaced by the mean of its prompt's embeddings, prompt by prompt."""
    captum = _package("captum.attr")
    model, level = bench.model, get_level("tokens")
    embed = model.parts.embed

    def theirs() -> Tensor:
        found = []
        for i, e in enumerate(bench.examples):
            with torch.no_grad():
                own = embed(torch.tensor([e.tokens]))

            def forward(embeddings: Tensor, i: int = i) -> Tensor:
                logits = model.hf(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1]
                return logits[:, bench.examples[i].answer] - logits[:, bench.examples[i].foil]

            with torch.no_grad():
                mask = torch.arange(own.shape[1])[None, :, None]
                found.append(
                    captum.FeatureAblation(forward).attribute(
                        own, own.mean(1, keepdim=True), feature_mask=mask, perturbations_per_eval=16
                    )[0, :, 0]
                )
        return torch.stack(found)

    return Pair(lambda: torch.stack(methods.make("occlusion").each(model, bench.examples, level)), theirs)


def captum_integrated_gradients(bench: Bench) -> Pair:
    """Five midpoints from zero embeddings to the tokens' own, all prompts together."""
    captum = _package("captum.attr")
    model, level = bench.model, get_level("tokens")
    options = {"steps": 5, "replacement": "zero"}

    def forward(embeddings: Tensor) -> Tensor:
        logits = model.hf(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1]
        times = len(embeddings) // len(bench.examples)
        return torch.cat([bench.metric(part) for part in logits.view(times, -1, logits.shape[-1])])

    def theirs() -> Tensor:
        with torch.no_grad():
            own = model.parts.embed(bench.tokens)
        attribution = captum.IntegratedGradients(forward).attribute(
            own, torch.zeros_like(own), n_steps=5, method="riemann_middle"
        )
        scores: Tensor = attribution.sum(-1).detach()
        return scores

    return Pair(
        lambda: torch.stack(methods.make("integrated_gradients", options).each(model, bench.examples, level)), theirs
    )


def _in_transformer_lens(bench: Bench) -> Any:
    """The model as a HookedTransformer with the very same weights, none of them folded."""
    lens, model = _package("transformer_lens"), bench.model
    if not hasattr(lens, "HookedTransformer"):
        raise Absent("this TransformerLens has no HookedTransformer, which 4.0 removed; install one before 4.0.")
    conversions = _package("transformer_lens.pretrained.weight_conversions")
    if model.architecture.family != "llama":
        raise Absent(f"{model.name} is no Llama, which is what is converted here.")
    config = lens.HookedTransformerConfig(
        d_model=model.d_model,
        d_head=model.d_head,
        n_heads=model.n_heads,
        n_key_value_heads=model.n_kv_heads,
        d_mlp=model.d_mlp,
        n_layers=model.n_layers,
        n_ctx=256,
        d_vocab=model.d_vocab,
        eps=model.config.rms_norm_eps,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=model.d_head,
        rotary_base=int(model.config.rope_parameters["rope_theta"]),
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=False,
        device="cpu",
        dtype=torch.float32,
    )
    hooked = lens.HookedTransformer(config)
    hooked.load_and_process_state_dict(
        conversions.convert_llama_weights(model.hf, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    with torch.no_grad():
        own = model.run(model.batch(bench.examples)).logits
        off = float((hooked(bench.tokens)[:, -1] - own).abs().max() / own.abs().max())
    if off > 1e-3:
        raise Absent(f"{model.name} in TransformerLens gives logits that are {off:.2g} off, relative to the largest.")
    return hooked


def transformer_lens_cache(bench: Bench) -> Pair:
    """A pass that keeps heads and neurons of every layer: the neurons at the last token."""
    hooked, model = _in_transformer_lens(bench), bench.model
    names = [hook_name(site, layer) for site in ("z", "post") for layer in range(model.n_layers)]

    def ours() -> Tensor:
        return model.run(model.batch(bench.examples), names).stack("post")[:, :, -1]

    def theirs() -> Tensor:
        with torch.no_grad():
            _, cache = hooked.run_with_cache(bench.tokens, names_filter=lambda name: name in set(names))
        return torch.stack([cache[hook_name("post", layer)][:, -1] for layer in range(model.n_layers)], 1)

    return Pair(ours, theirs)


def transformer_lens_patching(bench: Bench) -> Pair:
    """Every head's output replaced by the counterfactual's, at all positions."""
    hooked = _in_transformer_lens(bench)
    patching = _package("transformer_lens.patching")

    def theirs() -> Tensor:
        with torch.no_grad():
            clean = bench.metric(hooked(bench.tokens)[:, -1]).mean()
            _, cache = hooked.run_with_cache(bench.counterfactual)
            left = patching.get_act_patch_attn_head_out_all_pos(
                hooked, bench.tokens, cache, lambda logits: bench.metric(logits[:, -1]).mean()
            )
        return clean - left

    return Pair(lambda: bench.scores("activation_patching", "heads"), theirs)


class _OnTheProcessor(TorchFunctionMode):
    """Tensors that are asked for on "cuda" are made on the processor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def eap_ig_nodes(bench: Bench, at_output: bool = True) -> Pair:
    """Attribution patching of all heads and FFN layers, EAP-IG's ``attribute_node`` with method "EAP"."""
    with _clone(bench, "EAP-IG", "src", "https://github.com/hannamw/EAP-IG"):
        hooked = _in_transformer_lens(bench)
        attribute = _package("eap.attribute_node")
        graphs = _package("eap.graph")
    for setting in ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "ungroup_grouped_query_attention"):
        getattr(hooked, f"set_{setting}")(True)

    def tokenized(model: Any, prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor, int]:
        tokens = torch.tensor(prompts)
        return tokens, torch.ones_like(tokens), torch.full((len(tokens),), tokens.shape[1]), tokens.shape[1]

    attribute.tokenize_plus = tokenized  # our tokens, not the texts once more
    prompts = [[e.tokens for e in bench.examples], [e.counterfactual for e in bench.examples], None]

    def theirs() -> Tensor:
        graph = graphs.Graph.from_model(hooked, node_scores=True)
        if at_output:
            for layer in range(bench.model.n_layers):
                node = graph.nodes[f"m{layer}"]
                node.in_hook = node.out_hook
        with _OnTheProcessor():
            attribute.attribute_node(
                hooked, graph, [prompts], lambda logits, *rest: bench.metric(logits[:, -1]).sum(), "EAP", quiet=True
            )
        return -graph.nodes_scores[1:].view(bench.model.n_layers, -1).detach()

    difference = "the sign turned"
    if at_output:
        difference += (
            "; the gradient of FFN layers taken at their output, where the published code takes it at the input"
        )
    return Pair(lambda: bench.scores("attribution_patching", "nodes"), theirs, difference)


def eap_ig_nodes_as_published(bench: Bench) -> Pair:
    """The same as it stands: the gradient at an FFN layer's input times the difference at its output."""
    return eap_ig_nodes(bench, at_output=False)


def wanda_neurons(bench: Bench) -> Pair:
    """Neurons by size of the output weights times the norm of the activation."""
    with _clone(bench, "wanda", "lib", "https://github.com/locuslab/wanda"):
        wrapper = _package("layerwrapper")
    model = bench.model

    def theirs() -> Tensor:
        layers = [model.parts.mlp_down[layer] for layer in range(model.n_layers)]
        wrapped = [wrapper.WrappedGPT(layer) for layer in layers]
        handles = [
            layer.register_forward_hook(lambda module, args, output, w=w: w.add_batch(args[0].data, output.data))
            for layer, w in zip(layers, wrapped)
        ]
        try:
            with torch.no_grad():
                model.hf(input_ids=bench.tokens, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([(w.layer.weight.abs() * (w.scaler_row * w.nsamples).sqrt()).sum(0) for w in wrapped])

    return Pair(lambda: bench.scores("wanda", "neurons"), theirs, "theirs times the root of the number of prompts")


PEERS: dict[str, tuple[str, Callable[[Bench], Pair]]] = {
    "captum: FeatureAblation of tokens": ("captum", captum_occlusion),
    "captum: IntegratedGradients of tokens": ("captum", captum_integrated_gradients),
    "TransformerLens: run_with_cache": ("transformer-lens", transformer_lens_cache),
    "TransformerLens: activation patching of heads": ("transformer-lens", transformer_lens_patching),
    "EAP-IG: attribute_node (EAP)": ("EAP-IG", eap_ig_nodes),
    "EAP-IG: attribute_node (EAP), as published": ("EAP-IG", eap_ig_nodes_as_published),
    "Wanda: neurons": ("wanda", wanda_neurons),
}
"""By name: the package or clone it comes from, and both sides."""


# --- measuring ----------------------------------------------------------------------------------------------------


def version(source: str, clones: Path) -> str | None:
    """A package's version, or the commit of a clone."""
    if (clones / source).is_dir():
        asked = subprocess.run(
            ["git", "-C", str(clones / source), "rev-parse", "HEAD"], check=False, capture_output=True, text=True
        )
        return asked.stdout.strip() or None
    try:
        return importlib.metadata.version(source)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure(name: str, bench: Bench, repeats: int, floor: dict[str, Any]) -> dict[str, Any]:
    """Both sides compared, and timed in turn."""
    source, make = PEERS[name]
    try:
        both = make(bench)
    except Absent as absent:
        return {"skipped": str(absent)}
    model = bench.model
    model.cost = Cost()
    ours = both.ours().double().flatten()
    flops, theirs = model.cost.flops, both.theirs().double().flatten()
    rows = []
    for _ in range(repeats):
        row = {}
        for side, action in (("ours", both.ours), ("theirs", both.theirs)):
            begun = time.perf_counter()
            action()
            row[side] = time.perf_counter() - begun
        rows.append(row)
    read = sum(weight.nbytes for weight in model.hf.parameters())
    return {
        "version": version(source, bench.clones),
        "what": " ".join((make.__doc__ or "").split()),
        "made_the_same_by": both.difference,
        "largest_difference": float((ours - theirs).abs().max() / theirs.abs().max()),
        "correlation": float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]),
        "ours_seconds": statistics.median(row["ours"] for row in rows),
        "theirs_seconds": statistics.median(row["theirs"] for row in rows),
        "ratio": statistics.median(row["theirs"] / row["ours"] for row in rows),
        "ratios": [row["theirs"] / row["ours"] for row in rows],
        "floor_of_flops_seconds": flops / floor["float32_flops_per_second"],
        "floor_of_bytes_seconds": 2 * read / floor["copied_bytes_per_second"],
        "flops": flops,
        "weight_bytes": read,
    }


def page(stored: dict[str, Any]) -> str:
    """The table of docs/speed.md."""
    rates = stored["rates"]
    lines = [
        "# Beside other projects' own code",
        "",
        "Made by `python benchmarks/peers.py --page results/peers.json > docs/speed.md`; do not edit.",
        "",
        f"{stored['model']}, {stored['prompts']} prompts of {stored['prompt_tokens']} tokens, float32, one thread of "
        f"{stored['provenance']['device']}. Both sides are run in turn; the ratio is the median over repeats, with the "
        f"smallest and the largest. The floor is what the matrix products that ours counts take at this processor's "
        f"own rate ({rates['float32_flops_per_second'] / 1e9:.3g} GFLOP/s) or, if that is more, reading every weight "
        f"once ({rates['copied_bytes_per_second'] / 1e9:.3g} GB/s).",
        "",
        "| peer | version | largest difference | correlation | ours | theirs | theirs / ours | floor |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    notes = []
    for name, row in stored["peers"].items():
        if "skipped" in row or "failed" in row:
            notes.append(f"- *{name}* was not run: {row.get('skipped') or row['failed']}")
            continue
        spread = f"{row['ratio']:.3g} ({min(row['ratios']):.3g} to {max(row['ratios']):.3g})"
        floor = max(row["floor_of_flops_seconds"], row["floor_of_bytes_seconds"])
        cells = [name, str(row["version"])[:12], f"{row['largest_difference']:.1e}", f"{row['correlation']:.4f}"]
        cells += [f"{row['ours_seconds']:.3g} s", f"{row['theirs_seconds']:.3g} s", spread, f"{floor:.3g} s"]
        lines.append(f"| {' | '.join(cells)} |")
        notes.append(f"- *{name}*: {row['what']}" + (f" {row['made_the_same_by']}." if row["made_the_same_by"] else ""))
    return "\n".join([*lines, "", *notes]) + "\n"


def bench_of(name: str, clones: Path) -> Bench:
    """A pretrained model with eight questions about colors, or ``tiny-shape`` with random tokens."""
    if name == "tiny-shape":
        model, _ = model_and_example(name, "cpu", "float32")
        return Bench(model, [random_example(model, 12) for _ in range(2)], clones)
    model = load_model(name, "cpu", "float32")
    examples = []
    for i, color in enumerate(COLORS):
        foil, third = COLORS[(i + 1) % len(COLORS)], COLORS[(i + 3) % len(COLORS)]
        text = "The dog is {}. The cat is " + third + ". The color of the dog is"
        examples.append(model.encode(Example(text.format(color), f" {color}", f" {foil}", text.format(foil))))
    return Bench(model, examples, clones)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a Llama by name, or tiny-shape")
    parser.add_argument("--clones", type=Path, default=Path("peers"), help="the folder of clones (EAP-IG, wanda)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/peers.json"))
    parser.add_argument("--page", type=Path, help="write the page made of these results, and measure nothing")
    options = parser.parse_args()
    if options.page is not None:
        print(page(json.loads(options.page.read_text(encoding="utf-8"))), end="")
        return
    torch.set_num_threads(1)
    bench = bench_of(options.model, options.clones)
    floor = rates(torch.device("cpu"), side=512 if options.model == "tiny-shape" else 2048)
    found: dict[str, Any] = {}
    stored = {
        "model": bench.model.name,
        "prompts": len(bench.examples),
        "prompt_tokens": len(bench.examples[0].tokens),
        "rates": floor,
        "provenance": provenance(torch.device("cpu")).model_dump(),
        "peers": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in PEERS:
        try:
            found[name] = measure(name, bench, options.repeats, floor)
        except Exception as error:  # a peer that breaks costs no other its row
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}: {found[name]}", flush=True)
        options.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
