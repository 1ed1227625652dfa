"""The edges of a mechanism that was built: which carry what makes the answer, for which counterfactuals.

They are read off the model. A source and a destination are wired if what the source writes on the examples is read by
the destination's real parts (:class:`attriboard.truth.Truth`): the queries and keys of real heads, their real
dimensions' values, real neurons, the unembedding. What an edge does for the answer is decided by its exact effect: a
wired edge whose source writes the same on the counterfactual (a position, the question), or that a backup stands in
for, belongs to the mechanism and changes nothing, so it is neither true nor false. Every other edge is false: no real
part reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .components import LEVELS
from .edges import counterfactual_of, written
from .errors import SkipCell
from .graph import LOGITS
from .interventions import intervene, single_effects
from .levels import names_where
from .model import Batch, EncodedExample, Model
from .models.edges import head_changes
from .models.parts import in_out
from .truth import ByRole, Truth

NEEDED = names_where(one_vector=True)
"""The levels of a truth from which the wiring follows: the dimensions of heads, and neurons."""
NOTHING = 1e-3
"""A product below is not read, an effect below (in the metric's units) is none; real ones are 1 and more."""


def edge_roles(model: Model, truth: Truth, examples: Sequence[EncodedExample]) -> ByRole:
    """The edges of a mechanism by what they do to the answers of some examples, on average.

    Left out are those that are wired and change nothing.

    Raises:
        SkipCell: the truth does not say which head dimensions and neurons are real.
        ConfigurationError: an example has no counterfactual.
    """
    if missing := [level for level in NEEDED if level not in truth.levels]:
        raise SkipCell(
            f"the truth of {model.name} says nothing about {missing[0]}, from which its edges would follow; give them, "
            f"or the edges themselves."
        )
    edges, names = LEVELS["edges"], model.graph.edge_names
    wired = torch.nonzero(wiring(model, truth, examples))[:, 0]
    lost = [single_effects(intervene(model, batch, edges), only=wired)[:, wired] for batch in model.batches(examples)]
    mean = torch.cat(lost).double().mean(0).tolist()
    by_name = {names[i]: effect for i, effect in zip(wired.tolist(), mean)}
    helps = frozenset(name for name, effect in by_name.items() if effect > NOTHING)
    hurts = frozenset(name for name, effect in by_name.items() if effect < -NOTHING)
    return ByRole(helps, hurts, frozenset(by_name) - helps - hurts)


def wiring(model: Model, truth: Truth, examples: Sequence[EncodedExample]) -> Tensor:
    """``[E]`` bool: the edges whose destination's real parts read what the source writes, on either prompt of a pair.

    Norms, which do nothing in models that are built so that everything is known of them, are left out.
    """
    graph = model.graph
    sources, destinations = torch.tensor(graph.edge_sources), torch.tensor(graph.edge_destinations)
    read = _read(model, truth)
    found = torch.zeros(graph.n_edges, dtype=torch.bool)
    for batch in model.batches(examples):
        for prompt in (batch, counterfactual_of(model, batch)):
            outputs = _outputs(model, prompt)
            for name, directions in read.items():
                sizes = (outputs @ directions.to(outputs)).abs().amax((0, 2, 3)).cpu()  # by source
                found |= (destinations == graph.dst_nodes.index(name)) & (sizes > NOTHING)[sources]
    return found


def _read(model: Model, truth: Truth) -> dict[str, Tensor]:
    """By destination ``[d_model, n]``: the directions that its real parts read."""
    real: dict[str, list[int]] = {}
    for part in (part for level in NEEDED for part in truth.levels[level]):
        whole, _, number = part.name.rpartition(".")
        real.setdefault(whole, []).append(int(number[1:]))
    found = {LOGITS: model.W_U.T}
    for whole, own in real.items():
        layer, _, head = whole[1:].partition(".h")
        if head:
            q, k, v = (weight(int(layer))[int(head)] for weight in (model.W_Q, model.W_K, model.W_V))
            found |= {f"{whole}<q>": q, f"{whole}<k>": k, f"{whole}<v>": v[:, own]}
        else:
            modules = model.parts.mlp_reads[int(layer)]
            found[whole] = torch.cat([in_out(module)[:, own] for module in modules], dim=1)
    return found


def _outputs(model: Model, batch: Batch) -> Tensor:
    """``[B, S, T, d_model]``: what every source adds to the residual stream, 0 at padding."""
    own = written(model, batch)
    parts = [own.embed[:, None]]
    for layer in range(model.n_layers):
        parts += [head_changes(model, layer, own.z[layer]) * model.residual_scale, own.mlp[layer][:, None]]
    return torch.cat(parts, dim=1) * batch.real[:, None, :, None]
