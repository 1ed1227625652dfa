"""What methods see of an example, and what controls are for: words that methods declare and records store.

``docs/board.md`` says how the board uses them.
"""

from __future__ import annotations

from typing import Literal, get_args

Sight = Literal["answer", "foil", "counterfactual", "labels"]
"""What a method may see beside the prompt: the answer; the foil; the counterfactual prompt, by which the evaluation
judges too; or labels, which are the subset of an example or the places of the labels in its demonstrations."""
SIGHTS: tuple[Sight, ...] = get_args(Sight)
"""In the order in which they are named."""
ABBREVIATED: dict[Sight, str] = {"answer": "answer", "foil": "foil", "counterfactual": "cf", "labels": "labels"}
"""As they stand in tables."""

ControlKind = Literal["random", "matched", "trivial"]
"""What a control is held against a method for: scores drawn at random; a method's own scores, drawn at random within
each layer; or a fixed rule that anyone could write down without attribution."""
