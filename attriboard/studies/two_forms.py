"""One question asked in two ways: do the same heads answer it, and what do patches of the picture already say?

Measured as Yu and Ananiadou (arXiv:2411.10950) look at LLaVA: head scores of a visual and a textual form of the same
questions, the vocabulary view of image patches, and the same text questions to the language model before its visual
tuning. Everything is kept per example; what is concluded is computed from it in :mod:`comparison_report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..components import get_level
from ..errors import ConfigurationError, MethodError, SkipCell, TaskError
from ..evaluation.drawing import answered, draw
from ..log_prob import FrozenUnembedding
from ..model import hook_name
from ..stats.intervals import Array

if TYPE_CHECKING:
    from ..method import Method
    from ..model import EncodedExample, Model
    from ..task import Task

SPLIT = "train"
"""Head scores are found on it, as everywhere."""
MIN_TWINS = 4
TOP = 10
"""A word is in the vocabulary view if it is among so many top tokens."""
REGIONS = ("object", "other", "background")
"""The image regions that are compared: the asked object, other objects, neither."""
WORD_MARK = "object"
"""The mark of a prompt that covers the asked object's own word."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Answer(_Strict):
    """Whether the model's top token is the answer to the question ``twin``."""

    twin: str
    right: bool


class Asked(_Strict):
    """A task's questions as one model answered them."""

    model: str
    task: str
    answers: list[Answer]


class Pair(_Strict):
    """Head scores of the same questions in two conditions.

    Attributes:
        twins: the questions, ``N`` of them.
        first, second: ``[N][n]``, the heads layer by layer.
    """

    twins: list[str]
    first: list[list[float]]
    second: list[list[float]]


class View(_Strict):
    """Where the asked object's words are among the top tokens of a picture's patches.

    Attributes:
        twin: the question.
        words: "answer" and, where the prompt has the mark "object", "object": the words looked for.
        patches: by region the number of its patches.
        hits: by region and word the number of patches at which it is among the top tokens, at the embeddings and after
            every block, ``[L + 1]``.
    """

    twin: str
    words: dict[str, str]
    patches: dict[str, int]
    hits: dict[str, dict[str, list[int]]]


class ComparedModel(_Strict):
    """A model that was asked."""

    name: str
    source: str
    weights_sha256: str


class Comparison(_Strict):
    """All measurements of one comparison.

    Attributes:
        tasks: the two tasks' names; ``task_versions`` theirs.
        models: the model, and the one it is compared with if there is one.
        shape: (layers, heads).
        seed, limit: of the questions drawn from each task.
        asked: each task as the first model answered it; then the second task as the other model did.
        heads: by method, the two tasks on the first model, for questions it answers right in both.
        viewed: the task with pictures whose patches are viewed; None if neither has.
        views: one for each question of that task answered right.
        heads_against: by method, the second task on both models, for questions that both answer right.
        provenance: versions, machine and time.
    """

    version: int = 1
    tasks: tuple[str, str]
    task_versions: tuple[int, int]
    models: list[ComparedModel]
    shape: tuple[int, int]
    seed: int
    limit: int
    asked: list[Asked]
    heads: dict[str, Pair]
    viewed: str | None
    views: list[View]
    heads_against: dict[str, Pair]
    provenance: dict[str, str | int | None]


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Questions:
    """A task's questions on one model, by twin, in the order drawn."""

    asked: Asked
    right: dict[str, EncodedExample]


def compare(
    model: Model,
    tasks: tuple[Task, Task],
    methods: Sequence[Method],
    limit: int,
    seed: int,
    provenance: dict[str, str | int | None],
    against: Model | None = None,
) -> Comparison:
    """Asks the same questions in two ways, and in the second way to another model if one is given.

    Args:
        model: answers both tasks.
        tasks: two tasks whose examples share :attr:`~attriboard.task.Example.twin`.
        methods: score heads, each example by itself.
        limit: questions drawn from each task; those answered right in both conditions are scored.
        seed: of the questions.
        provenance: versions and machine, kept as they are.
        against: answers the second task; its layers and heads are those of ``model``.

    Raises:
        ConfigurationError: the models differ in their number of layers or heads.
        TaskError: an example without twin, or fewer than four questions answered right in both conditions.
        MethodError: a method does not score heads, or cannot do without something the examples lack.
    """
    if against is not None and (against.n_layers, against.n_heads) != (model.n_layers, model.n_heads):
        raise ConfigurationError(
            f"{against.name} has {against.n_layers} layers of {against.n_heads} heads and {model.name} "
            f"{model.n_layers} of {model.n_heads}; heads can be compared only where there are equally many."
        )
    for method in methods:
        method.check_level(get_level("heads"))
    first, second = (_ask(model, task, limit, seed) for task in tasks)
    twins = _shared(first, second)
    heads = {m.name: _pair(m, twins, (model, first), (model, second)) for m in methods}
    asked, heads_against = [first.asked, second.asked], {}
    if against is not None:
        other = _ask(against, tasks[1], limit, seed)
        asked.append(other.asked)
        same = _shared(second, other)
        heads_against = {m.name: _pair(m, same, (model, second), (against, other)) for m in methods}
    seen = next((q for q, task in zip((first, second), tasks) if task.modality == "vision"), None)
    return Comparison(
        tasks=(tasks[0].name, tasks[1].name),
        task_versions=(tasks[0].version, tasks[1].version),
        models=[
            ComparedModel(name=m.name, source=m.source, weights_sha256=m.weights_sha256)
            for m in (model, *([] if against is None else [against]))
        ],
        shape=(model.n_layers, model.n_heads),
        seed=seed,
        limit=limit,
        asked=asked,
        heads=heads,
        viewed=None if seen is None else seen.asked.task,
        views=[] if seen is None else views(model, list(seen.right.values())),
        heads_against=heads_against,
        provenance=provenance,
    )


def _ask(model: Model, task: Task, limit: int, seed: int) -> _Questions:
    drawn = draw(model, task, SPLIT, limit, seed)
    if not all(e.example.twin for e in drawn):
        raise TaskError(f"the examples of task {task.name!r} have no twin, so nothing says which of them ask the same.")
    right = answered(model, drawn)
    answers = [Answer(twin=e.example.twin, right=ok) for e, ok in zip(drawn, right)]
    by_twin = {e.example.twin: e for e, ok in zip(drawn, right) if ok}
    return _Questions(Asked(model=model.name, task=task.name, answers=answers), by_twin)


def _shared(a: _Questions, b: _Questions) -> list[str]:
    twins = [twin for twin in a.right if twin in b.right]
    if len(twins) < MIN_TWINS:
        raise TaskError(
            f"only {len(twins)} questions are answered right both in {a.asked.task} by {a.asked.model} and in "
            f"{b.asked.task} by {b.asked.model}; at least {MIN_TWINS} are needed: raise --limit, or choose tasks whose "
            f"examples share their twins."
        )
    return twins


def _pair(method: Method, twins: list[str], first: tuple[Model, _Questions], second: tuple[Model, _Questions]) -> Pair:
    found = []
    for model, questions in (first, second):
        examples = [questions.right[twin] for twin in twins]
        try:
            method.check_examples(examples)
        except SkipCell as error:
            raise MethodError(str(error)) from error
        # one example at a time, since some methods (in stages) say something only of all that they are given
        alone = [method.attribute(model, [example], get_level("heads")).values for example in examples]
        scores = torch.stack(alone).flatten(1)
        if not bool(torch.isfinite(scores).all()):
            raise MethodError(f"{method.name} returned scores of {questions.asked.task} that are NaN or infinite.")
        found.append(scores.double().tolist())
    return Pair(twins=twins, first=found[0], second=found[1])


def views(model: Model, examples: Sequence[EncodedExample]) -> list[View]:
    """At every patch of a region and every depth: are the asked object's words among the top tokens?

    The view of a residual is the model's own final norm and unembedding, with the norm's statistic taken at that very
    residual (the logit lens). The last token's statistic, which :mod:`attriboard.log_prob` freezes for increases, would
    make early layers look uniform, since residuals grow with depth. Words are compared without spaces and case.
    """
    vocabulary = [model.tokenizer.decode([i]).strip().lower() for i in range(model.d_vocab)]
    ids: dict[str, list[int]] = {}
    for i, text in enumerate(vocabulary):
        ids.setdefault(text, []).append(i)
    found = []
    for encoded in examples:
        words = _words(encoded)
        chosen = _patches(model, encoded)
        names = [hook_name("resid_pre", 0), *(hook_name("resid_post", layer) for layer in range(model.n_layers))]
        run = model.run(model.batch([encoded]), names)
        at = torch.tensor(get_level("patches").positions(model, encoded), device=model.device)  # type: ignore[attr-defined]
        rows = torch.tensor([i for patches in chosen.values() for i in patches], dtype=torch.long, device=model.device)
        shown: dict[str, list[Tensor]] = {role: [] for role in words}
        for name in names:
            resid = run[name][0, at[rows]]
            top = FrozenUnembedding(model, resid).logits(resid).topk(min(TOP, model.d_vocab), dim=-1).indices.cpu()
            for role, word in words.items():
                shown[role].append(torch.isin(top, torch.tensor(ids.get(word, []), dtype=top.dtype)).any(-1))
        hits: dict[str, dict[str, list[int]]] = {}
        start = 0
        for region, patches in chosen.items():
            here = slice(start, start + len(patches))
            hits[region] = {role: [int(layer[here].sum()) for layer in layers] for role, layers in shown.items()}
            start += len(patches)
        counts = {region: len(patches) for region, patches in chosen.items()}
        found.append(View(twin=encoded.example.twin, words=words, patches=counts, hits=hits))
    return found


def _words(encoded: EncodedExample) -> dict[str, str]:
    example = encoded.example
    words = {"answer": example.answer.strip().lower()}
    spans = example.marks.get(WORD_MARK)
    if spans:
        words["object"] = example.prompt[slice(*spans[0])].strip().lower()
    return words


def _patches(model: Model, encoded: EncodedExample) -> dict[str, list[int]]:
    """By region the patches that belong to it: at least half covered by an object, or not at all by any."""
    covered = {r: model.patch_coverage(encoded, r).flatten() for r in REGIONS[:2] if r in encoded.example.regions}
    found = {region: (share >= 0.5).nonzero().flatten().tolist() for region, share in covered.items()}
    if covered:
        bare = torch.stack(list(covered.values())).amax(0) < 1e-6
        found[REGIONS[2]] = bare.nonzero().flatten().tolist()
    return found


# --- statistics -------------------------------------------------------------------------------------------------------


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis, ``[..., n]`` to ``[...]``; NaN where either is constant."""
    a, b = (scipy.stats.rankdata(v, axis=-1) for v in (x, y))
    a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def overlap(x: Array, y: Array, k: int) -> Array:
    """The share of the top ``k`` of ``x`` that is also in the top ``k`` of ``y``, ``[..., n]`` to ``[...]``."""
    tops = [_top(v, k) for v in (x, y)]
    return (tops[0] & tops[1]).sum(-1) / k


def _top(values: Array, k: int) -> NDArray[np.bool_]:
    best = np.argsort(-values, axis=-1, kind="stable")[..., :k]
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, best, True, axis=-1)
    return mask


def resampled_mean(scores: Array, index: NDArray[np.intp]) -> Array:
    """``[..., n]``: the mean of rows of ``scores`` ``[N, n]`` drawn by ``index`` ``[..., M]``."""
    flat = index.reshape(-1, index.shape[-1])
    weights = np.stack([np.bincount(row, minlength=len(scores)) for row in flat]) / index.shape[-1]
    return (weights @ scores).reshape(*index.shape[:-1], scores.shape[1])


DIVISIONS = 200


def split_half(x: Array, y: Array, seed: int = 0) -> dict[str, Array]:
    """Rank correlations between halves of the items, ``[DIVISIONS]`` each: what agreement sampling alone allows.

    Args:
        x, y: ``[N, n]``, scores of the same items in two conditions.

    Returns:
        "first" and "second": one half with the other half within a condition; "between": one half in the first
        condition with the other half in the second, so that it has as many items and none in common.
    """
    rng = np.random.default_rng(seed)
    half = len(x) // 2
    found: dict[str, list[float]] = {"first": [], "second": [], "between": []}
    for _ in range(DIVISIONS):
        order = rng.permutation(len(x))
        one, other = order[:half], order[half : 2 * half]
        found["first"].append(float(spearman(x[one].mean(0), x[other].mean(0))))
        found["second"].append(float(spearman(y[one].mean(0), y[other].mean(0))))
        found["between"].append(float(spearman(x[one].mean(0), y[other].mean(0))))
    return {name: np.asarray(values) for name, values in found.items()}
