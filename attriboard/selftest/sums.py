"""Scores that add up to something known: a difference of two outputs, a log-probability, one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..components import COMPONENTS, LEVELS
from ..errors import SkipCell
from ..model import EncodedExample, Model
from .bench import FOILS, SEEING, TEXT, Case, PropertyError, option_names, tiny_model
from .properties import register
from .reference import Part, Reference, in_out, metric
from .tiny import hooked, tiny_hf


@register("heads", "neurons", "attn_neurons", "patches", "tokens")
def completeness(case: Case) -> None:
    """Scores add up to f(input) - f(baseline): over a layer's components, or over an example's positions.

    The baseline has all of them replaced in the method's default way. A method with ``steps`` is a midpoint sum of
    ``f'``, whose error is at most ``integral |f'''| / (8 steps^2)`` (Peano): it is judged at 4 and at 32 steps within
    that bound, with ``f'''`` from third differences of 129 plain passes along the path. Others are exact. For rounding
    1e-5 is added, in float64.
    """
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:]
    kind = getattr(case.make(), "replacement", "zero")
    counts: list[dict[str, Any]] = [{"steps": n} for n in (4, 32)] if "steps" in option_names(case.method) else [{}]
    for e in examples:
        parts, directions = reference.list_parts(case.level, e), reference.directions(e, case.level, kind, [e])
        group = [0 if case.inputs else part.site[1] for part in parts]
        paths = [
            _path(reference, e, [p for p, g in zip(parts, group) if g == one], directions) for one in sorted({*group})
        ]
        lost = torch.stack([path[0] - path[-1] for path in paths])
        bend = torch.stack([path.diff(n=3).abs().mean() * (len(path) - 1) ** 3 for path in paths])
        for options in counts:
            scores = case.scores(model, [e], **options)
            total = torch.zeros_like(lost).index_add_(0, torch.tensor(group), scores)
            allowed = (bend / (8 * options["steps"] ** 2) if options else torch.zeros_like(bend)) + 1e-5
            off = (total - lost).abs()
            worst = int((off / allowed).argmax())
            if not bool(off[worst] <= allowed[worst]):
                raise PropertyError(
                    f"{case}: the scores of {'an example' if case.inputs else f'layer {worst}'} add up to "
                    f"{float(total[worst]):.6g}, but f(input) - f(baseline) is {float(lost[worst]):.6g}"
                    f"{f' ({options})' if options else ''}: off by {float(off[worst]):.2g}, allowed "
                    f"{float(allowed[worst]):.2g}."
                )


def _path(reference: Reference, e: EncodedExample, parts: Sequence[Part], directions: dict[Any, Tensor]) -> Tensor:
    """``[129]``: the metric while all ``parts`` move together from their value to their replacement."""
    shares = torch.linspace(0, 1, 129, dtype=torch.float64)[:, None, None]
    moves: dict[Any, Tensor] = {}
    for part in parts:
        move = moves.setdefault(part.site, torch.zeros_like(directions[part.site]))
        move[part.rows, part.columns] = directions[part.site][part.rows, part.columns]
    logits, _ = reference.run(reference.embeddings(e), {site: shares * move for site, move in moves.items()})
    return torch.stack([metric(row, e) for row in logits])


@register(whole=True, families=("llama",))
def telescoping(case: Case) -> None:
    """Log-probability increases add up along the residual stream to log p(answer) less that of the bare embedding.

    ``sum over layers of I(attention; its input) + I(FFN; the residual after attention) = log p(x^L) - log p(x^0)``, the
    final norm frozen. On a Llama whose layers have one head and one neuron each, which are then the whole sub-layer (of
    the head's two dimensions only one writes, so attention neurons add up too). To 1e-4 of the sum, float32.
    """
    sizes = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 1}
    reference = Reference(tiny_hf("llama", **sizes))
    for layer in range(reference.n_layers):
        in_out(reference.part("out", layer))[1] = 0
    model, examples = hooked(reference.hf), case.examples()
    expected = []
    for e in examples:
        embeddings = reference.embeddings(e)
        last_site = ("resid_post", reference.n_layers - 1)
        logits, seen = reference.run(embeddings, read=[last_site])
        bare = reference.frozen_logits(embeddings[-1], seen[last_site][0, -1])
        expected.append(torch.log_softmax(logits[0], -1)[e.answer] - torch.log_softmax(bare, -1)[e.answer])
    total = float(torch.stack(expected).double().mean())
    attention = [level for level in case.method.levels if LEVELS[level].sites == ("z",)]
    ffn = [level for level in case.method.levels if LEVELS[level].hidden_units]
    if not attention or not ffn:
        raise PropertyError(f"{case.method.name} declares telescoping and scores no attention or no neurons.")
    for level in attention:
        added = sum(float(replace(case, level=one).scores(model, examples).sum()) for one in (level, *ffn))
        if not abs(added - total) <= 1e-4 * abs(total):
            raise PropertyError(
                f"{case.method.name}: {level} and neurons of a model with one of each add up to {added:.6g}, but log p "
                f"rises by {total:.6g} along the residual stream: off by {abs(added - total):.2g}, allowed "
                f"{1e-4 * abs(total):.2g}."
            )


@register(whole=True, families=TEXT)
def shares_add_up(case: Case) -> None:
    """The shares of all nodes (of all heads and neurons), and of what no component writes, are the logit difference.

    What no component writes is the embedding and the biases: the last residual less all outputs, made from weights and
    activations read in a plain pass. To 1e-4 of the largest share, float32.
    """
    model, reference, examples = case.model(), case.reference(), case.examples(foils=FOILS)
    last_site = ("resid_post", reference.n_layers - 1)
    sites = [(site, layer) for layer in range(reference.n_layers) for site in ("z", "post", "mlp_out")]
    for levels in (("nodes",), ("heads", "neurons")):
        if not set(levels) <= set(case.method.levels):
            continue
        whole_ffn = any("mlp_out" in LEVELS[level].sites for level in levels)
        for e in examples:
            logits, seen = reference.run(reference.embeddings(e), read=[*sites, last_site])
            at = {site: x[0, -1] for site, x in seen.items()}
            rest = at[last_site].clone()
            for layer in range(reference.n_layers):
                rest -= at["z", layer] @ in_out(reference.part("out", layer))
                down = at["post", layer] @ in_out(reference.part("down", layer))
                rest -= at["mlp_out", layer] if whole_ffn else down
            unwritten = float(metric(reference.frozen_logits(rest, at[last_site]), e))
            scores = torch.cat([replace(case, level=level).scores(model, [e]) for level in levels])
            added, expected = float(scores.sum()), float(metric(logits[0], e)) - unwritten
            allowed = 1e-4 * float(scores.abs().max())
            if not abs(added - expected) <= allowed:
                raise PropertyError(
                    f"{case.method.name} on the tiny {case.family}: {' and '.join(levels)} add up to {added:.6g}, but "
                    f"they write {expected:.6g} of the logit difference: off by {abs(added - expected):.2g}, allowed "
                    f"{allowed:.2g}."
                )


@register(whole=True, families=(*TEXT, *SEEING))
def sums_to_one(case: Case) -> None:
    """An example's scores, over all positions that the method can score, are never negative and add up to 1.

    Within 1e-5, float32; tokens of a text, tokens and patches of a text with a picture.
    """
    levels = ("tokens",) if case.family in TEXT else ("tokens", "patches")
    if not set(levels) <= set(case.method.levels):
        raise SkipCell(f"{case.method.name} does not score {' and '.join(levels)}.")
    for i, e in enumerate(case.examples()):
        scores = torch.cat([replace(case, level=level).scores(case.model(), [e]) for level in levels])
        if float(scores.min()) < 0 or not abs(float(scores.sum()) - 1) <= 1e-5:
            raise PropertyError(
                f"{case.method.name} on the tiny {case.family}: the scores of example {i} add up to "
                f"{float(scores.sum()):.6g}, the smallest is {float(scores.min()):.2g}; they are shares of 1."
            )


@register(whole=True, families=(*TEXT, *SEEING))
def parts_sum_to_one(case: Case) -> None:
    """What parts are of their sum is never negative and adds up to 1, where sources write all that the parts are of.

    At edges those into each destination; at tokens and patches what reaches an example's positions along the routes.
    Judged on models without position embeddings and without a bias of attention's output, which no source writes; the
    tiny gpt2 is given zeros for both. Within 1e-5, float32.
    """
    model, scored = _only_sources(case.family), set(case.method.levels)
    inputs = ["tokens", "patches"] if case.family in SEEING else ["tokens"]
    of_edges = [level for level in case.method.levels if LEVELS[level].edges]
    if not of_edges and not scored.issuperset(inputs):
        raise SkipCell(f"{case.method.name} scores neither edges nor {' and '.join(inputs)}.")
    into = torch.tensor(model.graph.edge_destinations)
    for i, e in enumerate(case.examples()):
        scores: list[Tensor] = []
        sums: dict[str, float] = {}
        for level in of_edges:
            scores.append(replace(case, level=level).scores(model, [e]))
            added = torch.zeros(len(model.graph.dst_nodes)).double().index_add_(0, into, scores[-1])
            sums |= {f"edges into {name}": float(x) for name, x in zip(model.graph.dst_nodes, added)}
        if scored.issuperset(inputs):
            scores += [replace(case, level=level).scores(model, [e]) for level in inputs]
            sums[" and ".join(inputs)] = float(sum(x.sum() for x in scores[-len(inputs) :]))
        worst, lowest = max(sums, key=lambda what: abs(sums[what] - 1)), min(float(x.min()) for x in scores)
        if lowest < 0 or not abs(sums[worst] - 1) <= 1e-5:
            raise PropertyError(
                f"{case.method.name} on the tiny {case.family}: the scores of {worst} of example {i} add up to "
                f"{sums[worst]:.6g}, the smallest score is {lowest:.2g}; they are shares of 1."
            )


def _only_sources(family: str) -> Model:
    """A tiny model in which nothing but sources writes: no position embeddings and no bias of attention's output."""
    if family != "gpt2":
        return hooked(tiny_model(family, False))
    hf = copy.deepcopy(tiny_model(family, False))
    for zero in (hf.transformer.wpe.weight, *(block.attn.c_proj.bias for block in hf.transformer.h)):
        zero.zero_()
    return hooked(hf)


@register(*COMPONENTS)
def adds_over_marks(case: Case) -> None:
    """The scores from several marked places are the sums of the scores from each alone (1e-4 of the largest)."""
    model, examples = case.model(), case.examples()
    (mark,) = (need.partition(":")[2] for need in case.method.needs if need.startswith("marks:"))
    alone = []
    for k in range(2):
        one = [replace(e, example=replace(e.example, marks={mark: e.example.marks[mark][k : k + 1]})) for e in examples]
        alone.append(case.scores(model, one))
    scores = case.scores(model, examples)
    what = f"the sum over the places marked {mark!r}"
    case.agree(scores, alone[0] + alone[1], 1e-4, what, case.names(model, examples))
