"""What the cells of one task on one model share: examples, baselines and replacement values."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from ..components import Level
from ..errors import TaskError
from ..interventions import Asked, Intervention, component_means, distinct, intervene, measure_all, replacement_kind
from ..levels import Replacement
from ..measurements.base import Kept, Measure
from ..model import EncodedExample, Model
from ..stats.clusters import Clusters, effective_n
from ..stats.intervals import ALPHA
from ..task import SPLITS, Task, image_hash
from .division import divided
from .drawing import answered, draw, reversed_pair

MIN_PASSING = 0.1
"""A subset of which a smaller share of the examples passes is no task for the model."""
MIN_TURNED = 0.5
"""Nor is one of which a smaller share of the examples answered passes."""
MOST_TOGETHER = 16
"""The most examples that stand in one batch when sets of components are replaced on them."""


class Context:
    """One task on one model with one seed.

    Only examples that the model answers are kept, as in the papers, and only those whose counterfactual it answers by
    the foil; what was seen, answered and kept is reported. The train and the test half share no base item, no frame and
    no demonstration (:meth:`attriboard.task.Task.split`).

    Attributes:
        drawn: by split, all examples, answered or not; ``train`` and ``test`` are those kept.
        wrong: by split, those of them that are answered wrongly.
        n_eff: to how many independent examples those kept in both halves amount, as in
            :class:`attriboard.measurements.base.Kept`.

    Args:
        model: the model.
        task: the task.
        seed: of the examples.
        n_train, n_test: examples drawn per split.
        max_kept: most examples kept per split, ``max_train`` of them for scoring.
        min_kept: fewer than this in a split is an error.
        keep: "both" keeps an example whose prompt is answered by its answer and whose counterfactual by its foil;
            "answer" asks only for the first. Without a foil or a counterfactual there is no second.
        cache_bytes: most memory for replacement values and residuals of batches kept between measurements; what does
            not fit is computed again, so memory does not grow with the number of examples.

    Raises:
        TaskError: too few examples fit the tokenizer or are kept, or too few of one subset pass.
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
        keep: str = "both",
        cache_bytes: int = 2**30,
    ) -> None:
        self.model, self.task, self.seed = model, task, seed
        self.cache_bytes = cache_bytes
        self.kept: dict[str, Kept] = {}
        self.drawn: dict[str, list[EncodedExample]] = {}
        self.wrong: dict[str, list[EncodedExample]] = {}
        self.examples: dict[str, list[EncodedExample]] = {}
        digest = hashlib.sha256()
        limits = {"train": max_kept if max_train is None else min(max_kept, max_train), "test": max_kept}
        metric: dict[EncodedExample, float] = {}
        for split, n in zip(SPLITS, (n_train, n_test)):
            seen = self.drawn[split] = draw(model, task, split, n, seed)
            for encoded in seen:
                pictures = (encoded.example.image, encoded.example.counterfactual_image)
                looks = [None if picture is None else image_hash(picture) for picture in pictures]
                digest.update(
                    repr((split, encoded.tokens, encoded.answer, encoded.foil, encoded.counterfactual, looks)).encode()
                )
            measured = measure_all(model, seen)
            answers = measured[:, Measure.CORRECT].bool().tolist()
            right = [e for e, ok in zip(seen, answers) if ok]
            self.wrong[split] = [e for e, ok in zip(seen, answers) if not ok]
            turned = _turned(model, right) if keep == "both" else [True] * len(right)
            passing = [e for e, ok in zip(right, turned) if ok]
            chosen = _spread(passing, limits[split])
            self.examples[split] = chosen
            metric.update(zip(seen, measured[:, Measure.METRIC].tolist()))
            by_subset = {s: (_of(s, passing), _of(s, right), _of(s, seen)) for s in task.subsets}
            self.kept[split] = Kept(
                seen=len(seen),
                correct=len(right),
                passing=len(passing),
                kept=len(chosen),
                by_subset=by_subset,
                n_eff=_effective(chosen, metric),
            )
        for subset in task.subsets if keep == "both" else ():
            counts = [kept.by_subset[subset] for kept in self.kept.values()]
            _check_subset(model, task, subset, *(sum(column) for column in zip(*counts)))
        for split, kept in self.kept.items():
            if kept.kept < min(min_kept, limits[split]):
                how = f"answers only {kept.correct} of {kept.seen} {split} examples of task {task.name!r}"
                if kept.passing < kept.correct:
                    how += f", and the counterfactuals of {kept.passing} of these by their foil"
                raise TaskError(
                    f"{model.name} {how}; at least {min_kept} are needed: draw more examples, choose easier subsets, "
                    f"or another model."
                )
        self.data_sha256 = digest.hexdigest()
        self.n_eff = _effective(self.both, metric)
        self._interventions: OrderedDict[tuple[str, str, tuple[int, ...]], Intervention] = OrderedDict()
        self._means: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._groups: dict[tuple[str, int], list[list[int]]] = {}

    @property
    def train(self) -> list[EncodedExample]:
        return self.examples["train"]

    @property
    def test(self) -> list[EncodedExample]:
        return self.examples["test"]

    @property
    def both(self) -> list[EncodedExample]:
        """The examples kept: the train half, then the test half."""
        return [*self.train, *self.test]

    @property
    def test_half(self) -> list[int]:
        """Where the test examples stand in :attr:`both`."""
        return list(range(len(self.train), len(self.train) + len(self.test)))

    def groups(self, half: str, n: int) -> list[list[int]]:
        """Up to ``n`` groups of the examples of one half, as places in it; see :func:`.crossfit.divided`."""
        if (half, n) not in self._groups:
            self._groups[half, n] = divided(self.examples[half], n)
        return self._groups[half, n]

    def measure(
        self, level: Level, replacement: Replacement, masks: Tensor, members: Sequence[int] | None = None
    ) -> Tensor:
        """Replaces every set on every one of some examples.

        Args:
            masks: ``[S, n]`` bool: the components replaced in each set.
            members: of which examples, as places in :attr:`both`; by default the test half.

        Returns:
            ``[S, N, 3]`` float32 (see :class:`attriboard.measurements.base.Measure`).

        As :meth:`measure_all`.
        """
        return self.measure_all(level, replacement, [Asked(masks, self.test_half if members is None else members)])[0]

    def measure_all(self, level: Level, replacement: Replacement, asked: Sequence[Asked]) -> list[Tensor]:
        """Replaces sets of components on examples, each distinct set once on each example.

        Returns:
            Of each that is asked ``[S, N, 3]`` float32 (see :class:`attriboard.measurements.base.Measure`).

        Means are those of the other half. Nothing is remembered between calls: the same call gives the same bits,
        whatever ran before it.
        """
        n = len(self.both)
        sets, place = distinct(torch.cat([one.masks for one in asked]))
        places = place.split([len(one.masks) for one in asked])
        pairs = [at[:, None] * n + torch.tensor(list(one.members)) for at, one in zip(places, asked)]
        rows, found = torch.cat([pair.flatten() for pair in pairs]).unique(return_inverse=True)
        set_of, member_of = rows // n, rows % n
        measured = torch.empty(len(rows), len(Measure))
        for group in self._run_together(member_of.unique().tolist()):
            local = torch.full((n,), -1)
            local[list(group)] = torch.arange(len(group))
            own = torch.nonzero(local[member_of] >= 0)[:, 0]
            intervention = self._intervention(level, replacement, group)
            measured[own] = intervention.rows(sets, local[member_of[own]], sets=set_of[own])
        parts = measured[found].split([pair.numel() for pair in pairs])
        return [part.view(*pair.shape, -1) for part, pair in zip(parts, pairs)]

    def _run_together(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """Examples that stand in one batch: of one half, and such as share the longest prefixes.

        Those that differ from their counterfactual late share the longest, so they are sorted by that.
        """
        size = max(1, min(MOST_TOGETHER, self.model.batch_size // 8))
        halves = ([i for i in members if i < len(self.train)], [i for i in members if i >= len(self.train)])
        groups = []
        for half in halves:
            half.sort(key=lambda i: _suffix(self.both[i]))
            groups += [tuple(half[at : at + size]) for at in range(0, len(half), size)]
        return groups

    def forget(self) -> None:
        """Drops the replacement values and residuals that are kept between measurements."""
        self._interventions.clear()

    def _intervention(self, level: Level, replacement: Replacement, group: tuple[int, ...]) -> Intervention:
        key = (level.name, replacement, group)
        if key in self._interventions:
            self._interventions.move_to_end(key)
            return self._interventions[key]
        examples = self.both
        batch = self.model.batch([examples[i] for i in group])
        means = None
        if replacement_kind(replacement).needs_means:
            other = "test" if group[0] < len(self.train) else "train"
            if (level.name, other) not in self._means:
                self._means[level.name, other] = component_means(self.model, self.examples[other], level)
            means = self._means[level.name, other]
        intervention = intervene(self.model, batch, level, replacement, means)
        in_use = sum(other.nbytes for other in self._interventions.values())
        while self._interventions and in_use + intervention.nbytes > self.cache_bytes:
            in_use -= self._interventions.popitem(last=False)[1].nbytes
        if intervention.nbytes <= self.cache_bytes:
            self._interventions[key] = intervention
        return intervention


def clusters_of(examples: Sequence[EncodedExample]) -> Clusters:
    """How examples depend on each other: those that share a base item or a frame."""
    items, frames = ([getattr(e.example, name) for e in examples] for name in ("item", "frame"))
    return Clusters(len(examples), {"item": items, "frame": frames})


def _effective(examples: Sequence[EncodedExample], metric: Mapping[EncodedExample, float]) -> float | None:
    """To how many independent examples these amount, by the metric of each; None for fewer than two."""
    values = np.array([metric[encoded] for encoded in examples])
    return effective_n(values, clusters_of(examples)) if len(examples) > 1 else None


def _turned(model: Model, examples: Sequence[EncodedExample]) -> list[bool]:
    """Whether the model answers each example's counterfactual by the foil; True where there is none."""
    pairs = [reversed_pair(e) for e in examples]
    answers = iter(answered(model, [pair for pair in pairs if pair is not None]))
    return [pair is None or next(answers) for pair in pairs]


def _of(subset: str, examples: Sequence[EncodedExample]) -> int:
    return sum(e.example.subset == subset for e in examples)


def _check_subset(model: Model, task: Task, subset: str, passing: int, right: int, seen: int) -> None:
    """Refuses a subset that the model answers too rarely, or whose counterfactuals rarely change its answer.

    That is where its shares are significantly below :data:`MIN_PASSING` and :data:`MIN_TURNED` (exact binomial tests).

    Raises:
        TaskError: gives the figures.
    """
    shares = ((passing, seen, MIN_PASSING), (passing, right, MIN_TURNED))
    if not any(n and binomtest(k, n, least, alternative="less").pvalue < ALPHA for k, n, least in shares):
        return
    named = f"subset {subset!r} of task {task.name!r}" if subset else f"task {task.name!r}"
    raise TaskError(
        f"{named} is no task for {model.name}: of {seen} examples it answers {right}, and the counterfactuals of "
        f"{passing} of these by their foil. At least {MIN_PASSING:.0%} should pass both, and {MIN_TURNED:.0%} of those "
        f'answered: choose other subsets or another model, or set keep = "answer", which asks nothing of the '
        f"counterfactual."
    )


def _spread(examples: list[EncodedExample], n: int) -> list[EncodedExample]:
    """``n`` examples, taken from the subsets in turn, each time one whose item and frame were taken least often.

    A subset that has no new item left waits for those that have: more examples of few items are worth less than
    examples of other items.
    """
    queues: dict[str, list[EncodedExample]] = {}
    for example in examples:
        queues.setdefault(example.example.subset, []).append(example)
    taken: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    chosen: list[EncodedExample] = []

    def often(encoded: EncodedExample) -> int:
        example = encoded.example
        return sum(taken[kind, name] for kind, name in (("item", example.item), ("frame", example.frame)) if name)

    def repeats(encoded: EncodedExample) -> int:
        return asked[encoded.example.subset, encoded.example.item] if encoded.example.item else 0

    while len(chosen) < n and any(queues.values()):
        fewest = min(repeats(encoded) for queue in queues.values() for encoded in queue)
        for queue in queues.values():
            if len(chosen) < n and any(repeats(encoded) <= fewest for encoded in queue):
                encoded = queue.pop(min(range(len(queue)), key=lambda i: often(queue[i])))
                taken.update((("item", encoded.example.item), ("frame", encoded.example.frame)))
                asked[encoded.example.subset, encoded.example.item] += 1
                chosen.append(encoded)
    return chosen


def _suffix(example: EncodedExample) -> int:
    """How many tokens follow from the first in which the prompt and its counterfactual differ (all without one)."""
    pairs = zip(example.tokens, example.counterfactual or ())
    return len(example.tokens) - next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
