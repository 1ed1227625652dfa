"""What holds of the scores of edges, by source and by destination, and of the runs in which edges are replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..components import LEVELS
from ..model import Batch, EncodedExample
from .bench import Case, PropertyError, option_names
from .properties import register
from .readings import destinations, moved, site_of
from .reference import EMBED, Part, Reference, metric, slope


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
        sites = list({site_of(*one) for one in destinations(reference)})
        clean, other = (reference.read(reference.embeddings(e, c), sites) for c in (False, True))
        slopes = []
        for part, layer in destinations(reference):
            towards = (other[site_of(part, layer)] - clean[site_of(part, layer)])[None]

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
