"""What the cells of one task on one model share: examples, baselines and replacement values."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from ..components import Level
from ..errors import TaskError
from ..interventions import Intervention, component_means, replacement_kind
from ..levels import Replacement
from ..measurements.base import Kept
from ..model import EncodedExample, Model
from ..task import SPLITS, Task, image_hash
from .drawing import answered, draw


class Context:
    """One task on one model with one seed.

    Only examples that the model answers are kept, as in the papers; what was seen and kept is reported.

    Attributes:
        drawn: by split, all examples, answered or not; ``train`` and ``test`` are those kept.
        wrong: by split, those of them that are answered wrongly.

    Args:
        model: the model.
        task: the task.
        seed: of the examples.
        n_train, n_test: examples drawn per split.
        max_kept: most correctly answered examples used per split, ``max_train`` of them for scoring.
        min_kept: fewer than this in a split is an error.
        cache_bytes: most memory for replacement values and residuals of test batches kept between measurements;
            what does not fit is computed again, so memory does not grow with the number of examples.

    Raises:
        TaskError: too few examples fit the tokenizer or are answered correctly.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        seed: int,
        n_train: int,
        n_test: int,
        max_kept: int,
        min_kept: int,
        max_train: int | None = None,
        cache_bytes: int = 2**30,
    ) -> None:
        self.model, self.task, self.seed = model, task, seed
        self.cache_bytes = cache_bytes
        self.kept: dict[str, Kept] = {}
        self.drawn: dict[str, list[EncodedExample]] = {}
        self.wrong: dict[str, list[EncodedExample]] = {}
        self.examples: dict[str, list[EncodedExample]] = {}
        digest = hashlib.sha256()
        for split, n in zip(SPLITS, (n_train, n_test)):
            seen = self.drawn[split] = draw(model, task, split, n, seed)
            for encoded in seen:
                pictures = (encoded.example.image, encoded.example.counterfactual_image)
                looks = [None if picture is None else image_hash(picture) for picture in pictures]
                digest.update(
                    repr((split, encoded.tokens, encoded.answer, encoded.foil, encoded.counterfactual, looks)).encode()
                )
            answers = answered(model, seen)
            right = [e for e, ok in zip(seen, answers) if ok]
            self.wrong[split] = [e for e, ok in zip(seen, answers) if not ok]
            limit = max_kept if split == "test" or max_train is None else min(max_kept, max_train)
            chosen = _spread(right, limit)
            by_subset = {
                s: (sum(e.example.subset == s for e in right), sum(e.example.subset == s for e in seen))
                for s in task.subsets
            }
            self.kept[split] = Kept(seen=len(seen), correct=len(right), kept=len(chosen), by_subset=by_subset)
            self.examples[split] = chosen
            if len(chosen) < min(min_kept, limit):
                raise TaskError(
                    f"{model.name} answers only {len(right)} of {len(seen)} {split} examples of task {task.name!r}; at "
                    f"least {min_kept} are needed: draw more examples, choose easier subsets, or another model."
                )
        self.data_sha256 = digest.hexdigest()
        # examples that differ from their counterfactual late share the longest prefixes when they stand together
        self._order = torch.tensor(sorted(range(len(self.test)), key=lambda i: _suffix(self.test[i])))
        self._interventions: OrderedDict[tuple[str, str, int], Intervention] = OrderedDict()
        self._means: dict[str, dict[str, Tensor]] = {}

    @property
    def train(self) -> list[EncodedExample]:
        return self.examples["train"]

    @property
    def test(self) -> list[EncodedExample]:
        return self.examples["test"]

    def measure(self, level: Level, replacement: Replacement, masks: Tensor) -> Tensor:
        """Replaces every set on every test example.

        Args:
            masks: ``[S, n]`` bool: the components replaced in each set.

        Returns:
            ``[S, N, 3]`` float32 (see :class:`attriboard.measurements.base.Measure`).

        Equal sets are run once. Nothing is remembered between calls: the same call gives the same bits, whatever ran
        before it.
        """
        distinct, place = masks.unique(dim=0, return_inverse=True)
        groups = self._order.split(max(1, self.model.batch_size // 8))
        measured = torch.cat([self._intervention(level, replacement, group)(distinct) for group in groups], dim=1)
        return measured[:, torch.argsort(self._order)][place]

    def _intervention(self, level: Level, replacement: Replacement, group: Tensor) -> Intervention:
        key = (level.name, replacement, int(group[0]))
        if key in self._interventions:
            self._interventions.move_to_end(key)
            return self._interventions[key]
        batch = self.model.batch([self.test[i] for i in group.tolist()])
        means = None
        if replacement_kind(replacement).needs_means:
            if level.name not in self._means:
                self._means[level.name] = component_means(self.model, self.train, level)
            means = self._means[level.name]
        intervention = Intervention(self.model, batch, level, replacement, means)
        in_use = sum(other.nbytes for other in self._interventions.values())
        while self._interventions and in_use + intervention.nbytes > self.cache_bytes:
            in_use -= self._interventions.popitem(last=False)[1].nbytes
        if intervention.nbytes <= self.cache_bytes:
            self._interventions[key] = intervention
        return intervention


def _spread(examples: list[EncodedExample], n: int) -> list[EncodedExample]:
    """The first ``n`` examples, taken from the subsets in turn."""
    queues: dict[str, list[EncodedExample]] = {}
    for example in examples:
        queues.setdefault(example.example.subset, []).append(example)
    chosen: list[EncodedExample] = []
    while len(chosen) < n and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < n:
                chosen.append(queue.pop(0))
    return chosen


def _suffix(example: EncodedExample) -> int:
    """How many tokens follow from the first in which the prompt and its counterfactual differ (all without one)."""
    pairs = zip(example.tokens, example.counterfactual or ())
    return len(example.tokens) - next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
