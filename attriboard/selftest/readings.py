"""Edges, literally: plain passes in which one destination alone reads something else.

What a head's query, key or value reads is changed in three passes: one in which the whole layer reads it, from which
the projection is taken; one with that projection put in, from which the head's output is taken; and one with that
output put in. So no head but the one is touched, also where heads share keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..model import EncodedExample
from .reference import PROJECTED, Reference, Site, in_out

FFN, LOGITS = "ffn", "logits"


def destinations(reference: Reference) -> Iterator[tuple[str, int]]:
    """What reads the residual stream, in order: the queries, keys and values of a layer, its FFN; last the logits."""
    for layer in range(reference.n_layers):
        yield from ((part, layer) for part in (*PROJECTED, FFN))
    yield LOGITS, reference.n_layers - 1


def site_of(part: str, layer: int) -> Site:
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
        logits, _ = reference.run(start, {site_of(part, layer): moves})
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
