"""Occlusion: the metric lost when a position of the input is replaced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import InputLevel, Level
from attriboard.errors import SkipCell
from attriboard.interventions import Replacement, input_replacement, replacing
from attriboard.method import ReplacingMethod, positive
from attriboard.model import Batch, CleanPass, Model, columns_from, in_parts
from attriboard.shape import Shape


@dataclass
class Occlusion(ReplacingMethod):
    """Metric on the clean input minus the metric with the position's embedding replaced.

    Positions before the first one replaced are not run again (see :class:`attriboard.models.prefix.CleanPass`).

    With a window, every square of ``window`` by ``window`` patches inside the grid (every ``window`` consecutive text
    tokens) is replaced in turn, and a position's score is the mean drop of the windows that cover it. Exact; one row
    of a forward pass per window.

    Options:
        replacement: what stands in place of the embedding: "mean" (of the example's own patches or text tokens),
            "zero", or "counterfactual" (the same position of the paired prompt, where positions at which both agree
            score 0); see :func:`attriboard.interventions.input_replacement`.
        window: side of the window.
    """

    name = "occlusion"
    paper = "Zeiler & Fergus 2014, arXiv 1311.2901; Li et al. 2016, arXiv 1612.08220"
    description = "metric lost when the position's embedding is replaced"
    levels = ("patches", "tokens")
    needs = frozenset({"forward"})
    reads = ("answer", "foil")
    properties = ("exact_effect", "exact_on_linear_model", "zero_for_idle", "uses_answer")

    replacement: Replacement = "mean"
    window: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "window")

    def passes(self, shape: Shape, level: Level) -> float:
        side = shape.inputs**0.5 if level.image else shape.inputs
        windows = max(1, side - self.window + 1) ** (2 if level.image else 1)
        # each window is run from its first position on: half of the positions, on average
        return (1 + 0.5 * windows) * shape.forward() + shape.look * (2 if self.paired else 1)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        return torch.cat([self._scores(model, part, level) for part in in_parts(model, batch)])

    def _scores(self, model: Model, batch: Batch, level: Level) -> Tensor:
        assert isinstance(level, InputLevel)
        value = input_replacement(model, batch, level, self.replacement)
        windows = [self._windows(level.example_shape(model, encoded)) for encoded in batch.examples]
        rows = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(w) for w in windows]))
        first, positions = model.first_position(batch).tolist(), [level.positions(model, e) for e in batch.examples]
        columns = [torch.tensor(p)[w] + start for p, w, start in zip(positions, windows, first)]
        masks = torch.zeros(len(rows), batch.tokens.shape[1], dtype=torch.bool)
        masks[torch.arange(len(rows))[:, None], torch.cat(columns)] = True
        unchanged = CleanPass(model, batch)
        clean = model.metric(unchanged.logits, batch)
        drops = torch.zeros(len(rows), device=model.device)
        for part, occluded, n in unchanged.behind(rows, masks):
            example, mask = rows[part].to(model.device), masks[part, n:, None].to(model.device)
            edits = replacing({"hook_embed": columns_from(value, n)}, {"hook_embed": mask}, example)
            left = model.metric(model.run(occluded, edits=edits).logits, occluded)
            drops[part.to(model.device)] = clean[example] - left
        covered = masks.to(model.device).float()
        total = torch.zeros(batch.tokens.shape, device=model.device)
        count = torch.zeros_like(total)
        total.index_add_(0, rows.to(model.device), covered * drops[:, None])
        count.index_add_(0, rows.to(model.device), covered)
        return total / count.clamp(min=1)

    def _windows(self, shape: tuple[int, ...]) -> Tensor:
        """``[n_windows, window ** len(shape)]``: which positions of the level each window covers."""
        if self.window > min(shape):
            raise SkipCell(f"a window of {self.window} does not fit into {' × '.join(map(str, shape))} positions.")
        index = torch.arange(int(torch.tensor(shape).prod())).view(shape)
        for axis in range(len(shape)):
            index = index.unfold(axis, self.window, 1)
        return index.reshape(-1, self.window ** len(shape))
