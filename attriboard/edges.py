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
from .models.edges import OwnGradients, Written, attention_sum, head_changes

Gradients = dict[str, Tensor]
"""As :meth:`attriboard.models.edges.OwnGradients.gradients` returns them."""
CHANGE_BYTES = 2**29
"""The most that the changes of all sources take at a time; a single row may need more."""


def few_rows(model: Model, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
    """A batch in parts whose sources' changes fit into :data:`CHANGE_BYTES`: which rows, and the batch of them.

    A row takes ``n_sources T d_model`` numbers: 0.7 MB for each token of SmolLM2-135M, 17 MB of a Llama of 7 billion
    weights in float32. The gradients at destinations take three times as much.
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


class Changes:
    """How what each source adds to the residual stream would change.

    Args:
        model: the model.
        batch: the rows.
        clean, other: what sources write, and what would stand in its place.
    """

    def __init__(self, model: Model, batch: Batch, clean: Written, other: Written) -> None:
        self._model, self._real = model, batch.real[:, None, :, None]
        self._embed, self._mlp = other.embed - clean.embed, other.mlp - clean.mlp
        layers = range(model.n_layers)
        self._heads = [head_changes(model, layer, other.z[layer] - clean.z[layer]) for layer in layers]
        self._normed = any(norm is not None for norm in model.parts.attn_post_norm)
        self._fixed = None if self._normed else self._put_together(self._heads)

    def at(self, run: Written) -> Tensor:
        """``[B, S, T, d_model]``, 0 at padding.

        Behind a norm after attention (Gemma 2 and 3, OLMo 2) to first order, through that norm's derivative.

        Args:
            run: what sources write in the pass at whose norms that is taken; it plays no part in other models.
        """
        if self._fixed is not None:
            return self._fixed
        return self._put_together([self._through_norm(layer, run.z[layer]) for layer in range(self._model.n_layers)])

    def _put_together(self, heads: list[Tensor]) -> Tensor:
        scale = self._model.residual_scale
        parts = [self._embed[:, None]]
        for of_heads, of_ffn in zip(heads, self._mlp):
            parts += [of_heads if scale == 1 else of_heads * scale, of_ffn[:, None]]
        return torch.cat(parts, dim=1) * self._real

    def _through_norm(self, layer: int, z: Tensor) -> Tensor:
        """``[B, H, T, d_model]``."""
        norm, heads = self._model.parts.attn_post_norm[layer], self._heads[layer]
        at = attention_sum(self._model, layer, z)[:, None].expand_as(heads).contiguous()
        changed: Tensor = torch.func.jvp(norm.forward, (at,), (heads,))[1]
        return changed


def products(model: Model, batch: Batch, changed: Tensor, gradients: Mapping[str, Tensor]) -> Tensor:
    """``[B, E]``: minus the sum over positions of each source's change times the gradient at each destination.

    So an edge without which the metric would be lower has a score above 0 (EAP, Syed et al. 2023, arXiv 2310.10348).

    Args:
        changed: ``[B, S, T, d_model]`` from :class:`Changes`.
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
