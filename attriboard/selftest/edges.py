"""What holds of edges, judged by plain passes in which one destination alone reads something else.

What a head's query, key or value reads is changed in three passes: one in which the whole layer reads it, from which
the projection is taken; one with that projection put in, from which the head's output is taken; and one with that
output put in. So no head but the one is touched, also where heads share keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..components import LEVELS
from ..model import Batch, EncodedExample
from .bench import Case, PropertyError, option_names
from .properties import register
from .reference import EMBED, PROJECTED, Part, Reference, Site, in_out, metric, slope

FFN, LOGITS = "ffn", "logits"


def destinations(reference: Reference) -> Iterator[tuple[str, int]]:
    """What reads the residual stream, in order: the queries, keys and values of a layer, its FFN; last the logits."""
    for layer in range(reference.n_layers):
        yield from ((part, layer) for part in (*PROJECTED, FFN))
    yield LOGITS, reference.n_layers - 1


def _site(part: str, layer: int) -> Site:
    """Where what a destination reads can be seen."""
    return {FFN: "ffn_in", LOGITS: "resid_post"}.get(part, "resid_pre"), layer


def moved(
    reference: Reference, part: str, layer: int, moves: Tensor, explained: Callable[[Tensor], Tensor], start: Tensor
) -> Tensor:
    """``[heads or 1, N]``: ``explained`` of the logits ``[V]`` where one destination reads ``moves`` more.

    Args:
        part, layer: as :func:`destinations` has them; of queries, keys and values each head's in turn.
        moves: ``[N, T, d_model]``, each in a pass of its own.
        start: ``[T, d_model]``: the embeddings.
    """
    heads = 1
    if part in PROJECTED:
        made, z = (part, layer), ("z", layer)
        plain = reference.read(start, [made, z])
        changed = reference.run(start, {("resid_pre", layer): moves}, [made])[1][made] - plain[made]
        change = reference.run(start, {made: changed}, [z])[1][z] - plain[z]
        heads = reference.n_heads
        alone = torch.eye(heads, dtype=moves.dtype).repeat_interleave(reference.d_head, dim=1)
        logits, _ = reference.run(start, {z: (change * alone[:, None, None]).flatten(0, 1)})
    else:
        logits, _ = reference.run(start, {_site(part, layer): moves})
    return torch.stack([explained(row) for row in logits]).view(heads, -1)


def written(reference: Reference, encoded: EncodedExample) -> Tensor:
    """``[S, T, d_model]``: what each source writes on the counterfactual minus what it writes on the prompt.

    The embedding, then of each layer the heads and the FFN.
    """
    sites = [(site, layer) for layer in range(reference.n_layers) for site in ("z", "mlp_out")]
    ends = [reference.embeddings(encoded, counterfactual) for counterfactual in (False, True)]
    clean, other = (reference.read(embeddings, sites) for embeddings in ends)
    found = [ends[1] - ends[0]]
    for layer in range(reference.n_layers):
        change, weight = other["z", layer] - clean["z", layer], in_out(reference.part("out", layer))
        for head in range(reference.n_heads):
            own = slice(head * reference.d_head, (head + 1) * reference.d_head)
            found.append(change[:, own] @ weight[own])
        found.append(other["mlp_out", layer] - clean["mlp_out", layer])
    return torch.stack(found)


def edges_one_at_a_time(
    reference: Reference,
    encoded: EncodedExample,
    explained: Callable[[Tensor], Tensor],
    share: float = 1.0,
    start: Tensor | None = None,
) -> Tensor:
    """``[E]``: ``explained`` of the logits with a share of each source's change carried over one edge alone.

    Args:
        start: embeddings in place of the example's own.
    """
    changes, start = written(reference, encoded), reference.embeddings(encoded) if start is None else start
    found = []
    for part, layer in destinations(reference):
        before = {FFN: reference.n_heads, LOGITS: reference.n_heads + 1}.get(part, 0)
        n_sources = 1 + layer * (reference.n_heads + 1) + before
        found.append(moved(reference, part, layer, share * changes[:n_sources], explained, start).flatten())
    return torch.cat(found)


def _points(case: Case, reference: Reference, e: EncodedExample) -> tuple[list[Tensor], dict[str, Any]]:
    """The embeddings at which a method takes gradients, two of them if it follows a path; the options that say so."""
    clean = reference.embeddings(e)
    if "rule" not in option_names(case.method):
        return [clean], {}
    corrupted = reference.embeddings(e, counterfactual=True)
    return [corrupted + share * (clean - corrupted) for share in (0.5, 1.0)], {"steps": 2, "rule": "right"}


def _sums(case: Case, judge: Callable[[Reference, EncodedExample, Tensor], Tensor], which: str, what: str) -> None:
    """Compares scores, added up by source or destination, with a judge at every point where gradients are taken."""
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)[-2:]
    graph = model.graph
    expected: list[Tensor] = []
    options: dict[str, Any] = {}
    for e in examples:
        points, options = _points(case, reference, e)
        expected.append(-torch.stack([judge(reference, e, point) for point in points]).mean(0))
    ends, names = (
        (graph.edge_sources, graph.src_nodes) if which == "source" else (graph.edge_destinations, graph.dst_nodes)
    )
    scores = case.scores(model, examples, **options)
    sums = torch.zeros(len(names), dtype=scores.dtype).index_add_(0, torch.tensor(ends), scores)
    case.agree(sums, torch.stack(expected).mean(0), 1e-5, what, [f"the sum of the edges of {name}" for name in names])


@register("edges")
def column_sums_to_nodes(case: Case) -> None:
    """The scores of all edges out of a source add up to minus the slope towards the source's counterfactual output.

    So edges add up to ``attribution_patching`` (``eap_ig``) of heads and FFNs, and of the embedding. Central five-point
    differences in float64, on the prompt or at every step of the path, to 1e-5 of the largest.
    """

    def judge(reference: Reference, e: EncodedExample, point: Tensor) -> Tensor:
        directions = reference.directions(e, "nodes", "counterfactual", [e])
        directions[EMBED] = reference.embeddings(e, counterfactual=True) - reference.embeddings(e)
        parts = [Part(EMBED), *reference.list_parts("nodes", e)]
        return slope(lambda t: reference.one_at_a_time(e, parts, directions, lambda x: metric(x, e), t, point))

    _sums(case, judge, "source", "minus the slope towards what it writes on the counterfactual")


@register("edges")
def row_sums_to_input(case: Case) -> None:
    """The scores of all edges into a destination add up to minus the slope towards what it reads in the counterfactual.

    ``sum over u of S(u -> v) = -sum over positions of (r'_v - r_v) . g_v``: one head's query, key or value, one FFN, or
    the logits alone read ``r_v + t (r'_v - r_v)``. Central five-point differences in float64, on the prompt or at every
    step of the path, to 1e-5 of the largest.
    """

    def judge(reference: Reference, e: EncodedExample, point: Tensor) -> Tensor:
        sites = list({_site(*one) for one in destinations(reference)})
        clean, other = (reference.read(reference.embeddings(e, c), sites) for c in (False, True))
        slopes = []
        for part, layer in destinations(reference):
            towards = (other[_site(part, layer)] - clean[_site(part, layer)])[None]

            def at(t: float, part: str = part, layer: int = layer, towards: Tensor = towards) -> Tensor:
                return moved(reference, part, layer, t * towards, lambda x: metric(x, e), point).flatten()

            slopes.append(slope(at))
        return torch.cat(slopes)

    _sums(case, judge, "destination", "minus the slope towards what it reads in the counterfactual")


@register("edges")
def all_edges_is_clean(case: Case) -> None:
    """The method's own runs (``method.intervention``) with no edge replaced answer as the model (1e-6, float64)."""
    _ends(case, replaced=False)


@register("edges")
def no_edges_is_corrupted(case: Case) -> None:
    """The method's own runs with every edge replaced answer as the model answers the counterfactual (1e-6, float64)."""
    _ends(case, replaced=True)


def _ends(case: Case, replaced: bool) -> None:
    model, reference, examples = case.model(double=True), case.reference(double=True), case.examples(double=True)
    method: Any = case.make()
    intervention = method.intervention(model, model.batch(examples), LEVELS[case.level])
    masks = torch.full((1, model.graph.n_edges), replaced)

    def logits(values: Tensor, batch: Batch) -> Tensor:
        return values

    for e, found in zip(examples, intervention(masks, logits)[0].double()):
        expected = reference.run(reference.embeddings(e, counterfactual=replaced))[0][0]
        off, largest = float((found - expected).abs().max()), float(expected.abs().max())
        if not off <= 1e-6 * largest:
            raise PropertyError(
                f"{case}: with {'every' if replaced else 'no'} edge replaced the logits of "
                f"{'the counterfactual' if replaced else 'the prompt'} are off by {off:.2g}, allowed "
                f"{1e-6 * largest:.2g}."
            )
