"""In-context heads: what a head gains for the answer by reading the demonstrations' labels (A3 at their positions)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import Level
from attriboard.log_prob import FrozenUnembedding, position_outputs
from attriboard.method import Method
from attriboard.model import Batch, Model, hook_name
from attriboard.shape import Shape


@dataclass
class InContextHeads(Method):
    """``sum_p I_t(alpha_p v_p W_O; x)`` over the token positions ``p`` of the mark "label".

    Each position's contribution through the head is added alone to the layer's input at the last token; the increases
    are summed over the marked positions. Exact.
    """

    name = "in_context_heads"
    paper = "Yu & Ananiadou 2024, arXiv 2402.02872"
    description = "log p(answer) gained through the head from the demonstrations' label positions"
    levels = ("heads",)
    needs = frozenset({"forward", "weights", "marks:label"})
    reads = ("answer", "labels")
    properties = ("adds_over_marks", "zero_for_idle", "zero_for_dead", "uses_answer", "ignores_foil")

    def passes(self, shape: Shape, level: Level) -> float:
        labels = shape.marks.get("label", 1)
        rows = shape.n_layers * (1 + shape.n_heads * labels)
        return super().passes(shape, level) + shape.unembedded(rows)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        layers = range(model.n_layers)
        last_resid = hook_name("resid_post", model.n_layers - 1)
        sites = ("resid_pre", "pattern", "v", "z")
        run = model.run(batch, [*(hook_name(site, layer) for site in sites for layer in layers), last_resid])
        rows = torch.arange(len(batch), device=model.device)
        unembedding = FrozenUnembedding(model, run[last_resid][rows, batch.last])
        first = model.first_position(batch)
        scores = torch.zeros(len(batch), *level.shape(model), device=model.device)
        for b, example in enumerate(batch.examples):
            q = int(batch.last[b])
            labels = (
                torch.tensor(model.mark_positions(example, "label"), dtype=torch.long, device=model.device) + first[b]
            )
            outputs = []
            for layer in layers:
                pattern = run[hook_name("pattern", layer)][b, :, q, labels]
                value = run[hook_name("v", layer)][b, :, labels]
                outputs.append(position_outputs(model, layer, pattern, value, run[hook_name("z", layer)][b, q]))
            base = torch.stack([run[hook_name("resid_pre", layer)][b, q].float() for layer in layers])
            delta = torch.stack(outputs)
            increase = unembedding.row(b).increase(base[None, :, None, None], delta[None], batch.answer[b : b + 1])
            scores[b] = increase[0].sum(-1)
        return scores
