"""First-order effects of edges: what a source would write differently, times the gradient at what a destination reads.

One pass with its gradient scores all edges: nothing is copied for each destination (:mod:`attriboard.models.edges`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .errors import ConfigurationError
from .graph import LOGITS
from .model import Batch, Edit, Model, hook_name
from .models.edges import OwnGradients, Written, head_changes

Gradients = dict[str, Tensor]
"""As :meth:`attriboard.models.edges.OwnGradients.gradients` returns them."""
CHANGE_BYTES = 2**29
"""The most that the changes of all sources take at a time; a single row may need more."""


def few_rows(model: Model, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """A batch in parts whose sources' changes fit into :data:`CHANGE_BYTES`: which rows, and the batch of them.

    A row takes ``n_sources T d_model`` numbers: 0.7 MB for each token of SmolLM2-135M, 17 MB of a Llama of 7 billion
    weights in float32.
    """
    sources = model.graph.sources_before(model.n_layers)
    per_row = sources * batch.tokens.shape[1] * model.d_model * max(4, model.dtype.itemsize)
    for rows in torch.arange(len(batch)).split(max(1, CHANGE_BYTES // per_row)):
        yield rows, batch if len(rows) == len(batch) else batch.rows(rows)


def written(model: Model, batch: Batch) -> Written:
    """What every source writes in a pass of a batch."""
    layers = range(model.n_layers)
    sites = [hook_name("resid_pre", 0), *(hook_name(site, layer) for site in ("z", "mlp_out") for layer in layers)]
    run = model.run(batch, sites)
    return Written(run[sites[0]], *(run.stack(site).transpose(0, 1) for site in ("z", "mlp_out")))


def counterfactual_of(model: Model, batch: Batch) -> Batch:
    """The paired prompts.

    Raises:
        ConfigurationError: there are none, or one that the model reads as it reads the prompt.
    """
    other = batch.counterfactual
    if other is None:
        raise ConfigurationError("edges are replaced by those of a counterfactual; give one for every example.")
    same = ((batch.tokens == other.tokens) | ~batch.real).all(1)
    if batch.images is not None and other.images is not None:
        same &= (batch.images == other.images).flatten(1).all(1)
    if bool(same.any()):
        at = int(same.int().argmax())
        prompt = batch.examples[at].example.prompt
        raise ConfigurationError(
            f"the counterfactual of {prompt[:60]!r} is the prompt itself, so that no edge carries anything else; give "
            f"another one."
        )
    return other


def own_gradients(model: Model, batch: Batch, edits: Mapping[str, Edit] | None = None) -> tuple[Written, Gradients]:
    """What sources write in a pass, and the gradients of the metric at what destinations read."""
    own = OwnGradients(model, batch)
    run = model.run(batch, edits=edits, gradients=True, also=own.install)
    found = own.gradients(model.metric(run.logits, batch))
    model.cost.back(model.sizes.rows(batch))
    return own.written, found


def changes(model: Model, batch: Batch, clean: Written, other: Written) -> Tensor:
    """``[B, S, T, d_model]``: how what each source adds to the residual stream would change; 0 at padding.

    Behind a norm after attention (Gemma 2 and 3, OLMo 2) to first order: through that norm's derivative at the clean
    sum of the heads.
    """
    parts = [(other.embed - clean.embed)[:, None]]
    for layer in range(model.n_layers):
        heads = head_changes(model, layer, other.z[layer] - clean.z[layer])
        norm = model.parts.attn_post_norm[layer]
        if norm is not None:
            total = torch.einsum("bthe,hed->btd", clean.z[layer], model.W_O(layer))
            bias = model.b_O(layer)
            at = (total if bias is None else total + bias)[:, None].expand_as(heads).contiguous()
            heads = torch.func.jvp(norm.forward, (at,), (heads,))[1]
        parts += [heads * model.residual_scale, (other.mlp[layer] - clean.mlp[layer])[:, None]]
    return torch.cat(parts, dim=1) * batch.real[:, None, :, None]


def products(model: Model, batch: Batch, changed: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
    """``[B, E]``: minus the sum over positions of each source's change times the gradient at each destination.

    So an edge without which the metric would be lower has a score above 0 (EAP, Syed et al. 2023, arXiv 2310.10348).

    Args:
        changed: ``[B, S, T, d_model]`` from :func:`changes`.
        gradients: from :func:`own_gradients`.
    """
    graph = model.graph
    names = [f"{kind}.{layer}" for layer in range(model.n_layers) for kind in ("heads", "ffn")]
    found = []
    for block, name in zip(graph.blocks(), [*names, LOGITS]):
        # [B, D, T d] @ [B, T d, S]
        at, sources = gradients[name].flatten(2), changed[:, : block.n_sources].flatten(2)
        found.append((at @ sources.transpose(1, 2)).flatten(1))
    model.cost.forward += sum(2 * graph.n_edges * positions * model.d_model for positions, _ in batch.spans)
    return -torch.cat(found, dim=1).float()
