"""Several texts about one picture in one row: what they share is computed once.

The texts of a row are the paths of a tree of tokens. A token sees its ancestors and itself, and its position is its
depth, so that every path gets exactly the logits it would get alone; the picture's 49 tokens and the words before the
first difference stand in the row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Said = tuple[Sequence[int], int, Sequence[float]]
"""Tokens of a whole text, how many of them are the prompt, and the weight of each token after it."""


@dataclass(frozen=True)
class Packed:
    """A batch of rows of texts; ``B`` rows, ``T`` tokens, ``A`` answer tokens in all rows together.

    Attributes:
        ids: [B, T]; rows are padded on the right with 0.
        positions: [B, T].
        mask: [B, 1, T, T], bool; which tokens (last axis) a token sees. Padding sees itself alone.
        rows, nodes: [A]; where each answer token is predicted.
        targets: [A]; the answer tokens.
        weights: [A].
        texts: [A]; which text of its row each answer token belongs to.
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    nodes: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    texts: np.ndarray


def pack(batch: Sequence[Sequence[Said]]) -> Packed:
    """One row for each element of ``batch``, which holds the texts about one picture.

    The last token of a text predicts nothing and is left out of the row.
    """
    trees: list[tuple[list[int], list[int]]] = []
    answers: list[tuple[int, int, int, float, int]] = []
    for row, texts in enumerate(batch):
        ids: list[int] = []
        parents: list[int] = []
        children: dict[tuple[int, int], int] = {}
        for number, (tokens, prompt, weights) in enumerate(texts):
            node = -1
            for place, token in enumerate(tokens):
                if place >= prompt:
                    answers.append((row, node, token, weights[place - prompt], number))
                if place == len(tokens) - 1:
                    break
                if (node, token) not in children:
                    children[node, token] = len(ids)
                    ids.append(token)
                    parents.append(node)
                node = children[node, token]
        trees.append((ids, parents))

    width = max(len(ids) for ids, _ in trees)
    packed_ids = np.zeros((len(batch), width), dtype=np.int64)
    positions = np.zeros((len(batch), width), dtype=np.int64)
    mask = np.broadcast_to(np.eye(width, dtype=bool), (len(batch), 1, width, width)).copy()
    for row, (ids, parents) in enumerate(trees):
        packed_ids[row, : len(ids)] = ids
        for node, parent in enumerate(parents):
            if parent >= 0:
                mask[row, 0, node] |= mask[row, 0, parent]
                positions[row, node] = positions[row, parent] + 1
    columns = list(zip(*answers))
    rows, nodes, targets, texts_of = (np.array(columns[i], dtype=np.int64) for i in (0, 1, 2, 4))
    return Packed(packed_ids, positions, mask, rows, nodes, targets, np.array(columns[3], dtype=np.float32), texts_of)
