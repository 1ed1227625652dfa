"""Path patching: the effect of a head or FFN over its direct paths to the logits, or to named receivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attriboard.components import Level
from attriboard.edges import counterfactual_of
from attriboard.errors import ConfigurationError
from attriboard.graph import LOGITS
from attriboard.method import Method, true_or_false
from attriboard.model import Batch, Model
from attriboard.paths import PathIntervention, check_receivers, first_reads
from attriboard.shape import Shape


@dataclass
class PathPatching(Method):
    """The metric on the prompt minus the metric when some receivers alone read what one sender makes them read.

    Two runs for each sender. (1) The prompt, with every head held at what it writes there, but for the sender, which
    writes what it writes on the counterfactual; FFNs are recomputed, as in the IOI paper, or held too. (2) The prompt,
    with receivers reading what they read in (1) and nothing held. At all positions. Exact; one number for each sender
    and the whole set of receivers. With the logits among receivers that are held, nothing else plays a part: it is the
    direct effect.

    Options:
        receivers: "logits", or a list of what reads the residual stream, by MIB's names: a head's query, key or value
            input ("a9.h9<q>", three receivers each its own), an FFN ("m3"), "logits".
        through_ffns: FFNs are recomputed in (1), so that paths through FFNs count as direct.
        held: in (2) a receiver reads just what it read in (1), also where an earlier receiver now writes something
            else. If false, only what comes from the sender is exchanged in what receivers read, so that all receivers
            together are the sender's whole effect, ``activation_patching``; needs ``through_ffns = false``. The same
            where no receiver stands before another.
    """

    name = "path_patching"
    paper = "Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969"
    description = "metric lost when receivers (the logits) alone read the component's counterfactual output; exact"
    levels = ("heads", "nodes")
    needs = frozenset({"forward", "counterfactual"})
    reads = ("answer", "foil", "counterfactual")
    properties = ("zero_for_idle", "zero_for_dead", "uses_answer")

    receivers: str | Sequence[str] = LOGITS
    through_ffns: bool = True
    held: bool = True

    def __post_init__(self) -> None:
        given = [self.receivers] if isinstance(self.receivers, str) else self.receivers
        if not isinstance(given, (list, tuple)) or not given or not all(isinstance(name, str) for name in given):
            raise ConfigurationError(
                f"receivers of {self.name} is {self.receivers!r}, expected a name such as 'logits' or 'a9.h9<q>', or a "
                f"list of them."
            )
        self.receivers = tuple(given)
        true_or_false(self, "through_ffns", "held")
        if self.through_ffns and not self.held:
            raise ConfigurationError(
                f"{self.name} with held = false exchanges what comes from the sender alone, which FFNs that are "
                f"recomputed do not: set through_ffns = false too."
            )

    def passes(self, shape: Shape, level: Level) -> float:
        graph = shape.graph
        check_receivers(graph, self.receivers, "the model")
        reads = first_reads(graph, set(self.receivers))
        taken = shape.prefix() + 2 * (shape.forward(shared=True) + shape.look)
        second = not (self.through_ffns and self.held and LOGITS in self.receivers)
        for place, first in enumerate(reads):
            layer, index = divmod(place - 1, shape.n_heads + 1)
            if place == 0 or first is None or (index == shape.n_heads and "mlp_out" not in level.sites):
                continue
            if self.through_ffns:
                taken += shape.forward(layer, shared=True)
            if second:
                taken += shape.forward(first, shared=True) + shape.edge_sums(first)
        return taken

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        counterfactual_of(model, batch)
        paths = PathIntervention(model, batch, self.receivers, self.through_ffns, self.held)
        return paths.effects(level.names(model)).view(len(batch), *level.shape(model))
