"""Passes of ``llava-smollm2-135m`` that training and measuring share, and the losses of its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..llava import lora_off
from ..scenes import COLORS, KINDS
from .batches import IGNORED, ORDER, word_id


class PatchHeads(nn.Module):
    """What a patch shows, read off the vision tower; used in training alone."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, n + 1) for n in (len(COLORS), len(KINDS), len(ORDER)))

    def forward(self, features: Tensor) -> list[Tensor]:
        """[B, PATCHES, width] to logits of color, kind and place, [B, PATCHES, classes] each."""
        return [head(features) for head in self.heads]


class Words(nn.Module):
    """The language model's embeddings of the words for what a patch can show; the last of each list is background."""

    colors: Tensor
    kinds: Tensor
    order: Tensor

    def __init__(self, embeddings: Tensor, tokenizer: Any):
        super().__init__()
        background = [word_id(tokenizer, "background")]
        for name, words in (("colors", COLORS), ("kinds", KINDS), ("order", ORDER)):
            ids = [word_id(tokenizer, word) for word in words] + background
            self.register_buffer(name, embeddings[ids].detach().float().clone())

    def target(self, labels: Tensor) -> Tensor:
        """[3, B, PATCHES] to what a patch's projection is pulled to, [B, PATCHES, d_model]: the sum of its words."""
        color, kind, place = labels.clamp(min=0)
        words = self.colors[color] + self.kinds[kind] + self.order[place]
        return torch.where((color == len(COLORS))[..., None], self.colors[-1], words)


def features_and_projection(model: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The vision tower's patches, [B, PATCHES, width], and what the language model gets, [B, PATCHES, d_model]."""
    features = model.model.vision_tower(pictures).last_hidden_state[:, 1:]
    return features, model.model.multi_modal_projector(features)


def patch_loss(
    heads: PatchHeads, words: Words, features: Tensor, projected: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the three heads and the relative squared distance to the words, over all patches asked about."""
    logits = heads(features)
    asked = labels[0] != IGNORED
    losses = [
        nn.functional.cross_entropy(one.float().flatten(0, 1), label.flatten(), ignore_index=IGNORED)
        for one, label in zip(logits, labels)
    ]
    target = words.target(labels)
    distance = (projected.float() - target).square().sum(-1) / target.square().sum(-1)
    pull = distance[asked].mean()
    seen = asked & (labels[0] < len(COLORS))
    right = [(one.argmax(-1) == label)[seen].float().mean().item() for one, label in zip(logits, labels)]
    figures = {"color": right[0], "kind": right[1], "place": right[2], "pull": pull.item()}
    return torch.stack([*losses, pull]).sum(), figures


def answer_logits(model: Any, projected: Tensor, packed: dict[str, Tensor]) -> Tensor:
    """Logits of every answer token, [A, vocabulary], from the pictures' projections [B, PATCHES, d_model]."""
    embedded = model.get_input_embeddings()(packed["ids"])
    slots = (packed["ids"] == model.config.image_token_id)[..., None]
    embedded = embedded.masked_scatter(slots, projected.to(embedded.dtype))
    unseen = torch.zeros_like(packed["mask"], dtype=embedded.dtype)
    unseen.masked_fill_(~packed["mask"], torch.finfo(embedded.dtype).min)
    hidden = model.model.language_model(
        inputs_embeds=embedded, attention_mask=unseen, position_ids=packed["positions"], use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[packed["rows"], packed["nodes"]])


def text_loss(model: Any, ids: Tensor) -> Tensor:
    """KL divergence from the untouched language model to this one, per token of ``ids`` [B, T]."""

    def logits() -> Tensor:
        hidden = model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        return model.lm_head(hidden).float().log_softmax(-1)

    with torch.no_grad(), lora_off(model):
        before = logits()
    return nn.functional.kl_div(logits().flatten(0, 1), before.flatten(0, 1), reduction="batchmean", log_target=True)
