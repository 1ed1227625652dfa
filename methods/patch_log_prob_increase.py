"""Log-probability increase of what the best heads read from each position (Yu and Ananiadou 2024b, D1 and D2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attriboard.components import InputLevel, Level
from attriboard.errors import ConfigurationError, MethodError
from attriboard.interventions import watched
from attriboard.log_prob import FrozenUnembedding, last_token, position_outputs, top_heads
from attriboard.method import Method, true_or_false
from attriboard.model import Batch, Model, hook_name
from attriboard.shape import Shape


@dataclass
class PatchLogProbIncrease(Method):
    """``sum_h I_t(alpha_p v_p W_O; x)`` over the heads that raise log p(answer) most on the same example.

    Heads are ranked by their own increase (A2: the head's whole output at the last token added alone to its layer's
    input). A position's score is the increase of what the head reads from that position (A3), summed over the heads
    chosen. Exact, from one forward pass; the published map, without its scaling to 0..1, which is for display.

    The increase is measured against a norm frozen at the last layer. Before the first layer the residual stream is
    the bare embedding of the last token, tiny against that norm, and adding nearly any head's output to it moves log p
    a lot, whatever the head read. Heads of the first ``skip_layers`` layers are therefore neither ranked nor summed.

    Options:
        heads: how many of the best heads are summed; "all" for every head outside the skipped layers (one row
            through the unembedding per head and position: many times the cost of a forward pass).
        skip_layers: first layers left out; 0 ranks all, as published.
        published: leave out the final norm's bias, as the published notebooks do (models with LayerNorm only).
    """

    name = "patch_log_prob_increase"
    paper = "Yu & Ananiadou 2024, arXiv 2411.10950"
    description = "log p(answer) gained from each position through the best head, final norm frozen"
    levels = ("patches", "tokens")
    needs = frozenset({"forward", "weights"})
    reads = ("answer",)
    properties = ("zero_for_idle", "uses_answer", "ignores_foil")

    heads: int | str = 1
    skip_layers: int = 1
    published: bool = False

    def __post_init__(self) -> None:
        if self.heads != "all" and (type(self.heads) is not int or self.heads < 1):
            raise ConfigurationError(
                f"heads of {self.name} is {self.heads!r}, expected a whole number of at least 1, or 'all'."
            )
        if type(self.skip_layers) is not int or self.skip_layers < 0:
            raise ConfigurationError(
                f"skip_layers of {self.name} is {self.skip_layers!r}, expected a whole number of at least 0."
            )
        true_or_false(self, "published")

    def passes(self, shape: Shape, level: Level) -> float:
        layers = shape.n_layers - self.skip_layers
        heads = layers * shape.n_heads
        if isinstance(self.heads, str):
            chosen, ranked = heads, 0
        else:
            chosen = min(self.heads, heads)
            ranked = 2 * layers + 2 * min(max(chosen, 8), heads)  # their tangents, then those with the highest bounds
        rows = ranked + min(chosen, layers) + chosen * shape.inputs
        return super().passes(shape, level) + shape.unembedded(rows)

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        assert isinstance(level, InputLevel)
        if self.skip_layers >= model.n_layers:
            raise MethodError(f"{self.name} skips {self.skip_layers} layers, all that {model.name} has.")
        rows = torch.arange(len(batch), device=model.device)
        read: dict[str, Tensor] = {}
        edits = {}
        for layer in range(self.skip_layers, model.n_layers):
            pattern, value = hook_name("pattern", layer), hook_name("v", layer)
            edits[pattern] = watched(read, pattern, lambda x: x[rows, :, batch.last])
            edits[value] = watched(read, value, lambda x: x)
        activations, last = last_token(model, batch, ("resid_pre", "z"), edits)
        unembedding = FrozenUnembedding(model, last, self.published)
        n = (model.n_layers - self.skip_layers) * model.n_heads
        if isinstance(self.heads, str):
            best = torch.arange(self.skip_layers * model.n_heads, model.n_layers * model.n_heads).expand(len(batch), n)
        else:
            k = min(self.heads, n)
            at_last = (activations["resid_pre"], activations["z"], batch.answer)
            best = top_heads(model, unembedding, *at_last, k, self.skip_layers)
        scores = torch.zeros(batch.tokens.shape, device=model.device)
        for b, columns in enumerate(level.columns(model, batch)):
            chosen: dict[int, list[int]] = {}
            for i in best[b].tolist():
                chosen.setdefault(i // model.n_heads, []).append(i % model.n_heads)
            for layer, heads in chosen.items():
                outputs = position_outputs(
                    model,
                    layer,
                    read[hook_name("pattern", layer)][b][:, columns],
                    read[hook_name("v", layer)][b][:, columns],
                    activations["z"][b, layer],
                    heads,
                )
                base = activations["resid_pre"][b, layer].float()
                gained = unembedding.row(b).increase(base[None, None, None], outputs[None], batch.answer[b : b + 1])
                scores[b, columns] += gained[0].sum(0)
        return scores
