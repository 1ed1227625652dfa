"""Other people's own code beside ours: are the values the same, and what does each take?

Every comparison is a small function that says what is computed, by our method and by the peer's published code, and how
the two should differ. Both run on the same weights, prompts and thread, in turn: ours, theirs, ours, theirs. The peers
live in an environment of their own (``make peers``), and nothing of them is copied here:

- EAP-IG and Wanda are read from clones: ``--peers DIR`` with ``DIR/EAP-IG`` (github.com/hannamw/EAP-IG) and
  ``DIR/wanda`` (github.com/locuslab/wanda);
- TransformerLens and captum come from PyPI.

A peer that is not there is left out, with a sentence that says what it needs. ::

    python benchmarks/peers.py --peers DIR --out results/peers.json
    python benchmarks/peers.py --page > docs/speed.md
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from attriboard.components import get_level
from attriboard.evaluation.drawing import draw
from attriboard.evaluation.speed import PeakMemory
from attriboard.evaluation.timing import timed
from attriboard.interventions import intervene
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.model import Batch, EncodedExample, Model
from attriboard.run.provenance import provenance
from attriboard.stats.ranks import rank_correlation
from attriboard.stats.sets import mib_sizes
from attriboard.task import Example, tasks

RESULTS = Path(__file__).resolve().parent.parent / "results"
FLOOR = runpy.run_path(str(Path(__file__).with_name("floor.py")))
CLONES = {"EAP-IG": "https://github.com/hannamw/EAP-IG", "wanda": "https://github.com/locuslab/wanda"}
PACKAGES = {"TransformerLens": "transformer-lens", "captum": "captum"}
"""Of TransformerLens a version before 4, which took HookedTransformer out; EAP-IG is written for it."""
ROUNDING = 1e-5
"""Values that should be equal differ by at most this share of the largest: float32, summed in another order."""
SAME = ("model", "weights_sha256", "prompt_tokens", "sentence_tokens", "pairs", "peers")
SAME_MACHINE = ("python", "torch", "transformers", "platform", "device", "threads", "batch_size")
"""What must be the same in a run that goes on with an earlier one; the second in its provenance."""
STEPS = 3
"""Gradients along a path."""
ORDERS = 10
"""In which tokens come in, for Shapley values; a regression is given as many passes."""
SENTENCE = Example("The dog is red. The cat is blue. The color of the dog is", " red", " green")
"""A short prompt, for methods that take many passes."""


class MissingPeer(Exception):
    """What a peer needs, as a sentence."""


class MixedRuns(Exception):
    """Why an earlier result cannot be gone on with, as a sentence."""


class Disagreement(Exception):
    """Which values that should be equal are not, as a sentence."""


@dataclass(frozen=True)
class Comparison:
    """One quantity, computed twice.

    Attributes:
        peer: whose code it is: a key of :data:`CLONES` or :data:`PACKAGES`.
        compared: the quantity.
        prompts: on how many.
        ours, theirs: compute it, as tensors of one shape.
        equal: whether the values should be the same but for rounding.
        difference: how they should differ, or what was done to make them comparable; a sentence.
        parts: the values cut into named parts, each compared by itself.
        modules: whose parameters are weights that both sides must read.
        timed: False where another comparison does the same work.
        exact: the same comparison in float64, by which equality is judged where float32 rounds much.
    """

    peer: str
    compared: str
    prompts: int
    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    equal: bool
    difference: str
    parts: Callable[[Tensor], Mapping[str, Tensor]] = lambda values: {"all": values}
    modules: Sequence[nn.Module] = ()
    timed: bool = True
    exact: Callable[[], Comparison] | None = None


@dataclass
class Bench:
    """What the comparisons share.

    Attributes:
        model: ours.
        prompts: examples of one length, with counterfactuals.
        sentence: one short example.
        clones: the folder of clones; None where there is none.
    """

    model: Model
    prompts: list[EncodedExample]
    sentence: EncodedExample
    clones: Path | None = None
    few: int = field(default=2)
    """Prompts where a peer makes one pass per component."""

    @cached_property
    def hooked(self) -> Any:
        """The same weights as a HookedTransformer, with its usual folding of norms into the weights behind them."""
        lens = package("TransformerLens", "transformer_lens", "HookedTransformer", "HookedTransformerConfig")
        convert = package("TransformerLens", "transformer_lens.pretrained.weight_conversions").convert_llama_weights
        hf = self.model.hf.config
        if hf.model_type != "llama":
            raise MissingPeer(f"TransformerLens is given weights of Llama's shape here, not of {hf.model_type}.")
        config = lens.HookedTransformerConfig(
            n_layers=hf.num_hidden_layers,
            d_model=hf.hidden_size,
            n_heads=hf.num_attention_heads,
            n_key_value_heads=hf.num_key_value_heads,
            d_head=self.model.d_head,
            d_mlp=hf.intermediate_size,
            d_vocab=hf.vocab_size,
            n_ctx=256,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            final_rms=True,
            eps=hf.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=self.model.d_head,
            rotary_base=hf.rope_parameters["rope_theta"],
            rotary_adjacent_pairs=False,
            original_architecture="LlamaForCausalLM",
            device="cpu",
            dtype=torch.float32,
        )
        hooked = lens.HookedTransformer(config, self.model.tokenizer, move_to_device=False)
        weights = convert(self.model.hf, config)
        hooked.load_and_process_state_dict(weights, fold_ln=True, center_writing_weights=False, center_unembed=False)
        return hooked.eval()

    def in_double(self) -> Bench:
        """The same prompts for the same weights in float64."""
        model = Model(copy.deepcopy(self.model.hf).double(), self.model.tokenizer, self.model.name)
        model.batch_size = self.model.batch_size
        return Bench(model, self.prompts, self.sentence, self.clones)

    def clone(self, name: str, path: str = ".") -> Path:
        """A folder or file in one of the clones."""
        found = None if self.clones is None else self.clones / name / path
        if found is None or not found.exists():
            where = "no folder of clones was given" if found is None else f"{found} does not exist"
            raise MissingPeer(f"{name} needs a clone of {CLONES[name]} as DIR/{name} (--peers DIR); {where}.")
        return found

    def attribute(self, method: str, level: str, examples: Sequence[EncodedExample], **options: Any) -> Tensor:
        """Our scores, averaged over examples."""
        return methods.make(method, options).attribute(self.model, examples, get_level(level)).values

    def each(self, method: str, examples: Sequence[EncodedExample], **options: Any) -> Tensor:
        """``[B, T]``: our scores of the tokens of every example."""
        return torch.stack(methods.make(method, options).each(self.model, examples, get_level("tokens")))

    def from_embeddings(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The metric of rows ``[n * B, T, d_model]`` of embeddings, on the plain Hugging Face model."""

        def forward(embeddings: Tensor) -> Tensor:
            times = len(embeddings) // len(batch)
            mask, positions = batch.mask.repeat(times, 1), batch.positions.repeat(times, 1)
            logits = self.model.hf(
                inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits[:, -1]
            return self.model.metric(logits, batch.rows(torch.arange(len(batch)).repeat(times)))

        return forward


def package(peer: str, module: str, *names: str) -> ModuleType:
    """A module of an installed peer, which has these names."""
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except (ImportError, AttributeError) as error:
        what = str(error).split(". ")[0].rstrip(".")
        raise MissingPeer(f"{peer} needs {PACKAGES[peer]} from PyPI (`make peers` installs it); {what}.") from error
    return found


# --- EAP-IG -------------------------------------------------------------------------------------------------------


def _eap_code(bench: Bench, name: str) -> tuple[ModuleType, ModuleType]:
    """One of EAP-IG's modules and its graphs, made fit for a processor and for token ids.

    Its code asks for a GPU by name and tokenizes strings itself: here tensors are made where the model is, and it is
    given the token ids of our prompts.
    """
    source = str(bench.clone("EAP-IG", "src"))
    if source not in sys.path:
        sys.path.insert(0, source)
    code = importlib.import_module(f"eap.{name}")

    def zeros(*size: Any, device: object = None, **kwargs: Any) -> Tensor:
        return torch.zeros(*size, **kwargs)

    def tokenized(model: object, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        return tokens, torch.ones_like(tokens), torch.full((len(tokens),), tokens.shape[1]), tokens.shape[1]

    vars(code).update(torch=_With(torch, zeros=zeros), tokenize_plus=tokenized)
    return code, importlib.import_module("eap.graph")


_WIRED = {
    "use_attn_result": True,
    "use_split_qkv_input": True,
    "use_hook_mlp_in": True,
    "ungroup_grouped_query_attention": True,
}
"""What EAP-IG asks of a HookedTransformer."""


def _paired(bench: Bench) -> tuple[Batch, list[tuple[Tensor, Tensor, None]]]:
    """Our prompts as a batch, and as EAP-IG takes them."""
    batch = bench.model.batch(bench.prompts)
    assert batch.counterfactual is not None
    return batch, [(batch.tokens, batch.counterfactual.tokens, None)]


def _eap(bench: Bench, method: str, at_output: bool, **options: Any) -> Callable[[], Tensor]:
    """``[layer, heads + 1]``: node scores by EAP-IG's own ``attribute_node``."""
    (code, graphs), hooked, model = _eap_code(bench, "attribute_node"), bench.hooked, bench.model

    def theirs() -> Tensor:
        batch, data = _paired(bench)

        def loss(logits: Tensor, clean: object, lengths: object, label: object) -> Tensor:
            return -model.metric(logits[:, -1], batch).sum()

        graph = graphs.Graph.from_model(hooked, node_scores=True)
        for layer in range(model.n_layers if at_output else 0):
            graph.nodes[f"m{layer}"].in_hook = graph.nodes[f"m{layer}"].out_hook
        with _settings(hooked, **_WIRED):
            code.attribute_node(hooked, graph, data, loss, method, quiet=True, **options)
        hooked.zero_grad()
        scores: Tensor = graph.nodes_scores[1:].view(model.n_layers, model.n_heads + 1)  # the first is the embedding
        return scores.clone()

    return theirs


def _scored_graph(bench: Bench, method: str, **options: Any) -> Any:
    """EAP-IG's graph of the model, its edges scored by its own ``attribute``."""
    (code, graphs), hooked, model = _eap_code(bench, "attribute"), bench.hooked, bench.model
    batch, data = _paired(bench)

    def loss(logits: Tensor, clean: object, lengths: object, label: object) -> Tensor:
        return -model.metric(logits[:, -1], batch).sum()

    graph = graphs.Graph.from_model(hooked)
    with _settings(hooked, **_WIRED):
        code.attribute(hooked, graph, data, loss, method, quiet=True, **options)
    hooked.zero_grad()
    return graph


def _edges(bench: Bench, matrix: Tensor) -> Tensor:
    """``[E]`` in our order, of what EAP-IG has as ``[sources, destinations]``."""
    graph = bench.model.graph
    return matrix[torch.tensor(graph.edge_sources), torch.tensor(graph.edge_destinations)].clone()


def _eap_edges(bench: Bench, ours: str, theirs: str, compared: str, **options: Any) -> Comparison:
    return Comparison(
        "EAP-IG",
        compared,
        len(bench.prompts),
        lambda: bench.attribute(ours, "edges", bench.prompts, **options),
        lambda: _edges(
            bench, _scored_graph(bench, theirs, **({"ig_steps": options["steps"]} if options else {})).scores
        ),
        equal=True,
        difference="Equal.",
        modules=(bench.model.hf, bench.hooked),
    )


def eap_edges(bench: Bench) -> Comparison:
    return _eap_edges(bench, "eap", "EAP", "EAP of all edges (`eap`)")


def eap_ig_edges(bench: Bench) -> Comparison:
    compared = f"EAP-IG-inputs of all edges, {STEPS} steps, its rule (`eap_ig`, rule left)"
    return _eap_edges(bench, "eap_ig", "EAP-IG-inputs", compared, steps=STEPS, rule="left")


def clean_corrupted_edges(bench: Bench) -> Comparison:
    return _eap_edges(
        bench, "eap_clean_corrupted", "clean-corrupted", "clean-corrupted of all edges (`eap_clean_corrupted`)"
    )


def circuits(bench: Bench) -> Comparison:
    """The metric of the circuits of MIB's ten sizes, of edges ranked by EAP-IG's own EAP."""
    evaluate, hooked, model = _eap_code(bench, "evaluate")[0], bench.hooked, bench.model
    graph = _scored_graph(bench, "EAP")
    scores, sizes = _edges(bench, graph.scores), mib_sizes(model.graph.n_edges)

    def ours() -> Tensor:
        order = scores.abs().argsort(descending=True)
        masks = torch.ones(len(sizes), len(scores), dtype=torch.bool)
        for mask, size in zip(masks, sizes):
            mask[order[:size]] = False
        return intervene(model, model.batch(bench.prompts), get_level("edges"))(masks)[:, :, 0]

    def theirs() -> Tensor:
        batch, data = _paired(bench)

        def metric(logits: Tensor, clean: object, lengths: object, label: object) -> Tensor:
            return model.metric(logits[:, -1], batch)

        found = []
        with _settings(hooked, **_WIRED):
            for size in sizes:
                graph.apply_topn(size, absolute=True, prune=True)
                found.append(evaluate.evaluate_graph(hooked, graph, data, metric, quiet=True))
        return torch.stack(found)

    return Comparison(
        "EAP-IG",
        "circuits of MIB's ten sizes, run on edges (faithfulness at `edges`)",
        len(bench.prompts),
        ours,
        theirs,
        equal=True,
        difference="Equal. EAP-IG drops edges that lead nowhere first, which changes no circuit's answer.",
        modules=(model.hf, hooked),
    )


class _With(SimpleNamespace):
    """A module with some of its names replaced."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        super().__init__(**replaced)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def _settings(hooked: Any, **settings: bool) -> Iterator[None]:
    """While open, a HookedTransformer has these settings."""
    before = {name: getattr(hooked.cfg, name) for name in settings}
    vars(hooked.cfg).update(settings)
    try:
        yield
    finally:
        vars(hooked.cfg).update(before)


def _nodes(values: Tensor) -> dict[str, Tensor]:
    return {"heads": values[:, :-1], "FFN nodes": values[:, -1:]}


def _eap_nodes(bench: Bench, compared: str, at_output: bool, difference: str, timed: bool = True) -> Comparison:
    """EAP with the gradient of an FFN node at its output, which is ours, or where EAP-IG takes it."""
    return Comparison(
        "EAP-IG",
        compared,
        len(bench.prompts),
        lambda: bench.attribute("attribution_patching", "nodes", bench.prompts),
        _eap(bench, "EAP", at_output=at_output),
        equal=at_output,
        difference=difference,
        parts=_nodes,
        modules=(bench.model.hf, bench.hooked) if timed else (),
        timed=timed,
    )


def eap(bench: Bench) -> Comparison:
    return _eap_nodes(
        bench,
        "EAP of heads and FFN nodes (`attribution_patching`)",
        at_output=True,
        difference="Equal where EAP-IG's graph is told to take the gradient of an FFN node at its output, as of heads.",
    )


def eap_as_published(bench: Bench) -> Comparison:
    return _eap_nodes(
        bench,
        "EAP of heads and FFN nodes, as published",
        at_output=False,
        difference=(
            "Equal for heads. Of an FFN node, EAP-IG's node-level code multiplies the difference of its outputs by the "
            "gradient at its input, which is another quantity."
        ),
        timed=False,
    )


def eap_ig(bench: Bench) -> Comparison:
    return Comparison(
        "EAP-IG",
        f"EAP-IG-inputs of heads and FFN nodes, {STEPS} steps (`eap_ig`)",
        len(bench.prompts),
        lambda: bench.attribute("eap_ig", "nodes", bench.prompts, steps=STEPS),
        _eap(bench, "EAP-IG-inputs", at_output=True, ig_steps=STEPS),
        equal=True,
        difference="Equal, FFN gradients at the output as above.",
        parts=_nodes,
        modules=(bench.model.hf, bench.hooked),
    )


# --- TransformerLens ----------------------------------------------------------------------------------------------


def activation_patching(bench: Bench) -> Comparison:
    patching = package("TransformerLens", "transformer_lens.patching")
    hooked, model, prompts = bench.hooked, bench.model, bench.prompts[: bench.few]

    @torch.no_grad()
    def theirs() -> Tensor:
        batch = model.batch(prompts)
        assert batch.counterfactual is not None
        _, other = hooked.run_with_cache(batch.counterfactual.tokens)

        def metric(logits: Tensor) -> Tensor:
            return model.metric(logits[:, -1], batch).mean()

        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            patched = patching.get_act_patch_attn_head_out_all_pos(hooked, batch.tokens, other, metric)
        return metric(hooked(batch.tokens)) - patched

    return Comparison(
        "TransformerLens",
        "activation patching of all heads, `get_act_patch_attn_head_out_all_pos` (`activation_patching`)",
        len(prompts),
        lambda: bench.attribute("activation_patching", "heads", prompts),
        theirs,
        equal=True,
        difference=(
            "Equal; the peer patches what it calls clean into what it calls corrupted, and is given the counterfactual "
            "as the first and the prompt as the second."
        ),
        modules=(bench.model.hf, hooked),
    )


def direct_logit_attribution(bench: Bench) -> Comparison:
    hooked, model = bench.hooked, bench.model

    @torch.no_grad()
    def theirs() -> Tensor:
        batch = model.batch(bench.prompts)
        _, cache = hooked.run_with_cache(batch.tokens)
        stack = cache.stack_head_results(pos_slice=-1)
        shares = cache.logit_attrs(stack, batch.answer, batch.foil, pos_slice=-1)  # [layer * head, B]
        mean: Tensor = shares.mean(1).view(model.n_layers, model.n_heads)
        return mean

    return Comparison(
        "TransformerLens",
        "direct logit attribution of heads, `stack_head_results` and `logit_attrs` (`direct_logit_attribution`)",
        len(bench.prompts),
        lambda: bench.attribute("direct_logit_attribution", "heads", bench.prompts),
        theirs,
        equal=True,
        difference="Equal; the peer keeps every activation of the pass and the outputs of heads at all positions.",
        modules=(bench.model.hf, hooked),
    )


# --- captum -------------------------------------------------------------------------------------------------------


def integrated_gradients(bench: Bench) -> Comparison:
    captum = package("captum", "captum.attr")
    model = bench.model

    def theirs() -> Tensor:
        batch = model.batch(bench.prompts)
        explained = captum.IntegratedGradients(bench.from_embeddings(batch))
        embeddings = model.embeddings(batch)
        # its steps are rows of one batch unless a size is given; ours are cut to model.batch_size / 2 with gradients
        found: Tensor = explained.attribute(
            embeddings, n_steps=STEPS, method="riemann_middle", internal_batch_size=model.batch_size // 2
        )
        return found.sum(-1).detach()

    return Comparison(
        "captum",
        f"integrated gradients of token embeddings, {STEPS} midpoints, zero baseline (`integrated_gradients`)",
        len(bench.prompts),
        lambda: bench.each("integrated_gradients", bench.prompts, steps=STEPS, replacement="zero"),
        theirs,
        equal=True,
        difference=(
            "Equal where captum is asked for midpoints (its default is another quadrature of the same integral), "
            "but for rounding: near a baseline of zero, gradients are large."
        ),
        modules=(model.hf,),
        exact=None if model.dtype == torch.float64 else lambda: integrated_gradients(bench.in_double()),
    )


def occlusion(bench: Bench) -> Comparison:
    captum = package("captum", "captum.attr")
    model = bench.model

    @torch.no_grad()
    def theirs() -> Tensor:
        batch = model.batch(bench.prompts)
        embeddings = model.embeddings(batch)
        found: Tensor = captum.Occlusion(bench.from_embeddings(batch)).attribute(
            embeddings,
            sliding_window_shapes=(1, embeddings.shape[-1]),
            perturbations_per_eval=max(1, model.batch_size // len(batch)),
        )
        return found[..., 0]  # every dimension of a token has the token's value

    return Comparison(
        "captum",
        "occlusion of token embeddings by zero (`occlusion`)",
        len(bench.prompts),
        lambda: bench.each("occlusion", bench.prompts, replacement="zero"),
        theirs,
        equal=True,
        difference="Equal.",
        modules=(model.hf,),
    )


def kernel_shap(bench: Bench) -> Comparison:
    captum = package("captum", "captum.attr")
    model, examples = bench.model, [bench.sentence]

    @torch.no_grad()
    def theirs() -> Tensor:
        batch = model.batch(examples)
        embeddings = model.embeddings(batch)
        players = torch.arange(embeddings.shape[1])[None, :, None]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found: Tensor = captum.KernelShap(bench.from_embeddings(batch)).attribute(
                embeddings,
                feature_mask=players,
                n_samples=ORDERS * embeddings.shape[1],
                perturbations_per_eval=model.batch_size,
            )
        return found[..., 0]

    return Comparison(
        "captum",
        f"Shapley values of tokens: `KernelShap` beside {ORDERS} sampled orders (`shap`), as many passes",
        1,
        lambda: bench.each("shap", examples, samples=ORDERS, replacement="zero"),
        theirs,
        equal=False,
        difference=(
            "Two estimates of the same values from different random passes: a weighted regression over random sets, "
            "and mean gains along random orders."
        ),
        modules=(model.hf,),
    )


# --- Wanda --------------------------------------------------------------------------------------------------------


def wanda(bench: Bench) -> Comparison:
    path = bench.clone("wanda", "lib/layerwrapper.py")
    spec = importlib.util.spec_from_file_location("wanda_layerwrapper", path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    model = bench.model

    @torch.no_grad()
    def theirs() -> Tensor:
        batch = model.batch(bench.prompts)
        layers = [block.mlp.down_proj for block in model.hf.model.layers]
        wrapped = [code.WrappedGPT(layer) for layer in layers]
        handles = [
            layer.register_forward_hook(lambda _, inputs, out, w=w: w.add_batch(inputs[0].data, out.data))
            for layer, w in zip(layers, wrapped)
        ]
        try:
            model.hf(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        norms = [w.scaler_row.sqrt() * len(batch) ** 0.5 for w in wrapped]
        return torch.stack([(w.layer.weight.abs() * norm).sum(0) for w, norm in zip(wrapped, norms)])

    return Comparison(
        "wanda",
        "Wanda's score of the FFN's output weights, summed to neurons (`wanda`)",
        len(bench.prompts),
        lambda: bench.attribute("wanda", "neurons", bench.prompts),
        theirs,
        equal=True,
        difference=(
            "Equal up to one factor for all: the published norms are averages over sequences, so they are multiplied "
            "by the root of the number of prompts here. The norms are made by the published code; the product with "
            "|W| stands in the middle of its pruning loop, and is written out here."
        ),
        modules=(model.hf,),
    )


COMPARISONS: tuple[Callable[[Bench], Comparison], ...] = (
    eap,
    eap_as_published,
    eap_ig,
    eap_edges,
    eap_ig_edges,
    clean_corrupted_edges,
    circuits,
    activation_patching,
    direct_logit_attribution,
    integrated_gradients,
    occlusion,
    kernel_shap,
    wanda,
)


# --- measuring ----------------------------------------------------------------------------------------------------


def agreement(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """The largest difference as a share of our largest value, and Spearman's correlation.

    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}.")
    a, b = ours.double().flatten(), theirs.double().flatten()
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise ValueError("a value is not finite.")
    largest = float(a.abs().max())
    return {
        "values": a.numel(),
        "largest_difference": float((a - b).abs().max()) / largest if largest else float(bool(b.any())),
        "rank_correlation": rank_correlation(a.numpy(), b.numpy()),
    }


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> dict[str, list[float]]:
    """Seconds of both, one after the other, ``pairs`` times; both have run before."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(pairs):
        for side, work in (("ours", ours), ("theirs", theirs)):
            seconds[side].append(timed(work, torch.device("cpu")))
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def agreements(comparison: Comparison) -> dict[str, dict[str, float]]:
    """The :func:`agreement` of every part, from a run of each side."""
    ours, theirs = (comparison.parts(work().detach()) for work in (comparison.ours, comparison.theirs))
    return {part: agreement(ours[part], theirs[part]) for part in ours}


def measured(comparison: Comparison, pairs: int, rates: Any) -> dict[str, Any]:
    """Values, work, memory and times of both sides; the first run of each warms up and gives the values.

    Raises:
        Disagreement: values that should be equal are not.
        ValueError: as :func:`agreement`.
    """
    found: dict[str, Any] = {
        "peer": comparison.peer,
        "compared": comparison.compared,
        "prompts": comparison.prompts,
        "should_be_equal": comparison.equal,
        "difference": comparison.difference,
        "agreement": agreements(comparison),
    }
    judged = found["agreement"]
    if comparison.exact is not None:
        judged = found["agreement_float64"] = agreements(comparison.exact())
    for part, values in judged.items():
        if comparison.equal and values["largest_difference"] > ROUNDING:
            raise Disagreement(
                f"{comparison.compared}, {part}: values that should be equal differ by "
                f"{values['largest_difference']:.2g} of the largest."
            )
    if not comparison.timed:
        return found
    memory, floors = {}, {}
    for side, work in (("ours", comparison.ours), ("theirs", comparison.theirs)):
        with PeakMemory(torch.device("cpu")) as peak, FLOOR["Products"](comparison.modules) as products:
            work()
        memory[side], floors[side] = peak.mib, products.json(rates)
    load = os.getloadavg()
    seconds = in_turn(comparison.ours, comparison.theirs, pairs)
    return found | {
        "seconds": seconds,
        "median_seconds": {side: statistics.median(times) for side, times in seconds.items()},
        "times_faster": spread([b / a for a, b in zip(seconds["ours"], seconds["theirs"])]),
        "peak_mib": memory,
        "floor": floors,
        "load_average": [load, os.getloadavg()],
    }


def sources(clones: Path | None) -> dict[str, str | None]:
    """The version or commit of each peer; None where it is not known."""
    found: dict[str, str | None] = {}
    for peer, name in PACKAGES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[peer] = importlib.metadata.version(name)
    for peer in CLONES if clones is not None else ():
        folder = str(clones / peer) if clones is not None else ""
        git = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        inside = (Path(folder) / ".git").exists()
        found[peer] = git.stdout.strip() if git.returncode == 0 and inside else None
    return found


def of_one_length(model: Model, task: str, n: int) -> list[EncodedExample]:
    """``n`` examples of a task whose prompts have the same length, so that no side needs padding."""
    drawn = draw(model, tasks.make(task), "test", 8 * n, 0)
    length, found = Counter(len(e.tokens) for e in drawn).most_common(1)[0]
    if found < n:
        raise SystemExit(f"only {found} of {len(drawn)} examples of {task} have one length; ask for fewer prompts.")
    return [e for e in drawn if len(e.tokens) == length][:n]


def run(
    bench: Bench,
    pairs: int,
    chosen: Sequence[Callable[[Bench], Comparison]] = COMPARISONS,
    before: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """What has been compared so far, after each comparison, and why the rest cannot be.

    Args:
        bench: what the comparisons share.
        pairs: how often both sides are timed.
        chosen: the comparisons.
        before: an earlier result, whose comparisons are not made again and whose rates are kept.

    Raises:
        MixedRuns: the earlier result is of something else.
    """
    device = torch.device("cpu")
    if before is None:
        rates = FLOOR["Rates"].measured(device, bench.model.dtype)
    else:
        rates = FLOOR["Rates"](before["rates"]["flops_per_second"], before["rates"]["bytes_per_second"])
    result: dict[str, Any] = {
        "model": bench.model.name,
        "weights_sha256": bench.model.weights_sha256,
        "prompt_tokens": len(bench.prompts[0].tokens),
        "sentence_tokens": len(bench.sentence.tokens),
        "pairs": pairs,
        "peers": sources(bench.clones),
        "rates": rates.json(),
        "provenance": provenance(device, batch_size=bench.model.batch_size).model_dump(mode="json"),
        "earlier": [],
        "comparisons": [],
        "skipped": [],
    }
    if before is not None:
        mixed = [name for name in SAME if before[name] != result[name]]
        mixed += [name for name in SAME_MACHINE if before["provenance"][name] != result["provenance"][name]]
        if mixed:
            raise MixedRuns(f"the earlier result has another {', another '.join(mixed)}; start anew, without --resume.")
        result["comparisons"] += before["comparisons"]
        result["earlier"] = [*before["earlier"], before["provenance"]]
    done = {found["compared"] for found in result["comparisons"]}
    for function in chosen:
        start = time.perf_counter()
        try:
            comparison = function(bench)
        except MissingPeer as missing:
            if str(missing) not in result["skipped"]:
                result["skipped"].append(str(missing))
                print(f"left out: {missing}", flush=True)
            yield result
            continue
        if comparison.compared in done:
            continue
        found = measured(comparison, pairs, rates)
        result["comparisons"].append(found)
        worst = max(part["largest_difference"] for part in found["agreement"].values())
        took = f", theirs takes {found['times_faster']['median']:.3g} times as long" if comparison.timed else ""
        print(f"{comparison.compared}: differs by {worst:.2g}{took}; {time.perf_counter() - start:.0f} s", flush=True)
        yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5, help="how often both sides are timed, in turn")
    parser.add_argument("--only", action="append", choices=[f.__name__ for f in COMPARISONS], help="for a trial")
    parser.add_argument("--peers", type=Path, help="a folder with clones EAP-IG and wanda")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--resume", action="store_true", help="go on with what --out holds, on the same machine")
    parser.add_argument("--page", action="store_true", help="only print docs/speed.md, from results/")
    given = parser.parse_args()
    if given.pairs < 1 or given.prompts < 1:
        parser.error("--pairs and --prompts are at least 1.")
    if given.page:
        paths = [RESULTS / name for name in ("peers.json", "speed.json")]
        if missing := [path.name for path in paths if not path.exists()]:
            parser.error(f"results/{missing[0]} does not exist; `make {missing[0].removesuffix('.json')}` writes it.")
        stored = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        sys.stdout.write(runpy.run_path(str(Path(__file__).with_name("speed_page.py")))["page"](*stored))
        return
    torch.set_num_threads(1)
    model = load_model(given.model)
    bench = Bench(model, of_one_length(model, given.task, given.prompts), model.encode(SENTENCE), given.peers)
    chosen = [f for f in COMPARISONS if not given.only or f.__name__ in given.only]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(given.out.read_text(encoding="utf-8")) if given.resume and given.out.exists() else None
    try:
        for result in run(bench, given.pairs, chosen, before):
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except MixedRuns as error:
        parser.error(f"{given.out}: {error}")
    except Disagreement as error:
        sys.exit(f"{error} What was compared before stands in {given.out}.")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
