"""Path patching: what a component does over its direct paths to some of what reads the residual stream.

Two runs for each sender ``u`` and the receivers ``R`` (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023,
arXiv 2304.05969). In the first, heads write what they write on the prompt, but for ``u``, which writes what it writes
on the counterfactual; FFNs are recomputed, or write what they write on the prompt as well. In the second, the prompt is
run and receivers read what they read in the first; nothing else is held. So the second run is one in which all edges
into receivers are replaced by what sources write in the first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from .components import get_level
from .errors import UnknownNameError
from .graph import LOGITS, Graph
from .interventions import EdgeIntervention
from .model import Batch, Edit, Model, hook_name
from .models.edges import ReplacedEdges, Written
from .models.objective import measure


def check_receivers(graph: Graph, receivers: Iterable[str], model_name: str) -> None:
    """Refuses names that no destination of a model's graph has.

    Raises:
        UnknownNameError: carries near names.
    """
    known = set(graph.dst_nodes)
    for name in receivers:
        if name not in known:
            way_out = "A receiver is a head's query, key or value (a1.h0<q>), an FFN (m1) or the logits."
            raise UnknownNameError(f"receiver of {model_name}:", name, known, way_out)


def first_reads(graph: Graph, receivers: Collection[str]) -> list[int | None]:
    """By source the layer of the first receiver that reads it; None of sources that none reads."""
    asked = frozenset(receivers)
    own: list[int | None] = [None] * graph.sources_before(graph.n_layers)
    destinations = iter(graph.dst_nodes)
    for layer, block in zip(graph.block_layers, graph.blocks()):
        if not asked.isdisjoint([next(destinations) for _ in range(block.n_destinations)]):
            own[: block.n_sources] = [layer if first is None else first for first in own[: block.n_sources]]
    return own


class PathIntervention(EdgeIntervention):
    """Senders' effects over direct paths to some receivers, on one batch.

    Args:
        model: the model.
        batch: the examples, each with its counterfactual.
        receivers: names of destinations of the model's graph.
        through_ffns: FFNs are recomputed in the first run, so that paths through them count too.
        held: receivers read in the second run what they read in the first, whatever other receivers now write. Without,
            what each reads changes by what the sender alone writes: the edges from the sender to receivers are
            replaced, so that paths through several receivers count; only for FFNs that are not recomputed.

    Raises:
        UnknownNameError: a receiver that the model does not have.
        ConfigurationError: examples without a counterfactual.
    """

    def __init__(
        self, model: Model, batch: Batch, receivers: Collection[str], through_ffns: bool = True, held: bool = True
    ) -> None:
        check_receivers(model.graph, receivers, model.name)
        super().__init__(model, batch, get_level("edges"))
        self.receivers, self.through_ffns, self.held = frozenset(receivers), through_ffns, held
        graph = model.graph
        places = torch.tensor([name in self.receivers for name in graph.dst_nodes])
        self._into = places[torch.tensor(graph.edge_destinations)]
        self._sources = torch.tensor(graph.edge_sources)
        self._first_reads = first_reads(graph, self.receivers)

    def effects(self, senders: Sequence[str]) -> Tensor:
        """``[B, n]``: of heads and FFNs by name, the metric on the prompt minus that of the second run; exact.

        A sender that no receiver reads has 0.
        """
        nodes = self.model.graph.src_nodes
        places = [nodes.index(name) for name in senders]
        clean = measure(self.clean.logits, self.batch)[:, 0].float().cpu()
        lost = torch.zeros(len(self.batch), len(senders))
        read = [i for i, place in enumerate(places) if self._first_reads[place] is not None]
        rows = torch.cartesian_prod(torch.tensor(read, dtype=torch.long), torch.arange(len(self.batch)))
        for chunk in rows.view(-1, 2).split(self._most_rows):
            sender, example = chunk.T
            source = torch.tensor(places)[sender]
            batch = self.batch.rows(example)
            logits = self._patched(batch, source.tolist(), example.to(self.model.device))
            lost[example, sender] = clean[example] - measure(logits, batch)[:, 0].float().cpu()
        return lost

    def _patched(self, batch: Batch, sources: Sequence[int], example: Tensor) -> Tensor:
        """``[R, V]``: logits of the second run of each row's source."""
        first, logits = self._first_run(batch, sources, example)
        if logits is not None and self.held and LOGITS in self.receivers:
            return logits  # what they read in the first run is all that they are made of
        reads = [self._first_reads[source] or 0 for source in sources]
        at = min(reads)
        replaced = self._into.expand(len(sources), -1)
        if not self.held:
            replaced = replaced & (self._sources == torch.tensor(sources)[:, None])
        clean = self._written.rows(example)
        before = Written(clean.embed, clean.z[:at], clean.mlp[:at])
        masks = replaced.to(self.model.device)
        edges = ReplacedEdges(self.model, batch, masks, first, at, before, self.model.cost, reads)
        start = (at, self.clean.resid[at][example])
        return self.model.run(batch, start=start, needed=reads, also=edges.install).logits

    def _first_run(self, batch: Batch, sources: Sequence[int], example: Tensor) -> tuple[Written, Tensor | None]:
        """What sources write in the first run, and its logits where it has to be run."""
        model = self.model
        clean, other = self._written.rows(example), self._other.rows(example)
        z, mlp = clean.z.clone(), clean.mlp.clone()
        places = [divmod(source - 1, model.n_heads + 1) for source in sources]  # the layer, and which of its nodes
        layers = [layer for layer, _ in places]
        for row, (layer, index) in enumerate(places):
            if index < model.n_heads:
                z[layer, row, :, index] = other.z[layer, row, :, index]
            else:
                mlp[layer, row] = other.mlp[layer, row]
        if not self.through_ffns:
            return Written(clean.embed, z, mlp), None
        at, layers_run = min(layers), range(min(layers), model.n_layers)
        edits: dict[str, Edit] = {}
        for layer in layers_run:
            edits[hook_name("z", layer)] = _held(z[layer])
            own = [layer == of and index == model.n_heads for of, index in places]
            if any(own):
                edits[hook_name("mlp_out", layer)] = _held(mlp[layer], torch.tensor(own, device=model.device))
        outputs = [hook_name("mlp_out", layer) for layer in layers_run]
        run = model.run(batch, outputs, edits, (at, self.clean.resid[at][example]), needed=layers)
        mlp[at:] = torch.stack([run[name] for name in outputs])
        return Written(clean.embed, z, mlp), run.logits


def _held(value: Tensor, rows: Tensor | None = None) -> Edit:
    """An edit that puts ``value`` in the place of what is computed, in all rows or those of ``rows`` ``[R]`` bool."""
    return lambda x: value if rows is None else torch.where(rows[:, None, None], value, x)
