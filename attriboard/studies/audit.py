"""What of a task can be answered without its question: shares, shortcuts, rules that need no model, and overlap.

A task measures what it names only if nothing simpler gives the answer. The audit draws examples of both splits and says

- where the answer and the foil stand and how often each label is right, and how far rules come that read no question
  (say the most frequent answer; say the first or last candidate word; copy the label of the last demonstration);
- what the two splits share, which should be nothing;
- of a model: how often it gives the answer, and the foil on the counterfactual; how much of the metric stays when
  another question about the same context is asked; and how many independent examples the kept ones are worth.

:func:`problems` says in sentences what is beyond its limit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigurationError, check_name
from ..evaluation.drawing import answered, draw, reversed_pair
from ..interventions import measure_all
from ..measurements.base import Measure, Strict
from ..model import EncodedExample, Model
from ..stats.intervals import bootstrap_interval
from ..task import SPLITS, Example, Task

WHOLE = ""
"""The name of the part that is the whole task."""
SHORTCUT_LIMIT = 0.2
"""The largest share of the metric that a question about something else may keep."""
CONSTANT_LIMIT = 0.1
"""How far above chance a constant answer may be right."""
COPYING_LIMIT = 0.2
"""How far above chance a rule that copies a word of the prompt may be right, or may favour the answer."""
STANDS_LIMIT = 0.2
"""How much more often the answer may stand in the prompt than the foil."""
FEWEST = 16
"""A part with fewer examples than this gets no verdict on where its answers stand, nor on its shortcut share."""

Texts = Callable[[Example], str]


# --- what is stored ---------------------------------------------------------------------------------------------------


class Stands(Strict):
    """Shares (0 to 1) of a part's examples in which a word stands in the prompt, and in which piece of it.

    A prompt without demonstrations is all question.

    Attributes:
        prompt, demonstrations, question: anywhere; in the solved examples; in what is asked.
        marks: by name of a mark, where its last occurrence is covered by that mark.
        first, between, last: it is the first candidate word of the prompt; it stands, but neither first nor last; the
            last one. A word that is the only one is both first and last.
    """

    prompt: float
    demonstrations: float
    question: float
    marks: dict[str, float]
    first: float
    between: float
    last: float


class Rule(Strict):
    """A rule that reads no question.

    Attributes:
        name: a key of :data:`RULES`.
        right: the share of examples whose answer it gives; where it gives none it is wrong.
        chance: the share that a word drawn at random from what the rule chooses from would get right: candidate words
            of the prompt (``first``, ``last``, ``label``) or the question, all that there are if fewer than two stand
            there; for ``constant`` all that there are.
        prefers: the share in which it puts the answer before the foil, a tie counted half; chance is one half. None
            without foils.
    """

    name: str
    right: float
    chance: float
    prefers: float | None


class Part(Strict):
    """The examples of one subset, or of the whole task, without any model.

    Attributes:
        subset: its name; :data:`WHOLE` for the whole task.
        n, items, frames, answers: how many examples, and distinct base items, frames and answers.
        labels: how many answers there could be: the task's labels, or those seen where a subset has its own.
        most_frequent, most_frequent_share: the most frequent answer and its share.
        pair, pair_share: the most frequent pair of answer and foil, and its share.
        entropy_bits: entropy of the answers; log2 of ``labels`` if all are equally frequent.
        answer, foil: where they stand; the foil's is None without foils.
        answer_later: of the examples in which both stand, the share whose answer stands later (by last occurrence);
            None if there are none.
        rules: how far rules come that read no question.
    """

    subset: str
    n: int
    items: int
    frames: int
    answers: int
    labels: int
    most_frequent: str
    most_frequent_share: float
    pair: tuple[str, str | None]
    pair_share: float
    entropy_bits: float
    answer: Stands
    foil: Stands | None
    answer_later: float | None
    rules: list[Rule]

    def rule(self, name: str) -> Rule | None:
        """The rule of that name; None where it cannot be applied (nothing was demonstrated)."""
        return next((rule for rule in self.rules if rule.name == name), None)


class Overlap(Strict):
    """How many distinct things stand in both splits.

    Attributes:
        items, frames, prompts: of the questions asked.
        demonstrations: base items that are shown solved in both.
        solved: base items that are asked in one split and shown solved in the other.
    """

    items: int
    frames: int
    prompts: int
    demonstrations: int
    solved: int


class Worth(Strict):
    """What ``groups`` groups of examples are worth, as independent ones.

    Attributes:
        groups: how many groups (base items or frames) the kept examples belong to.
        icc: intraclass correlation of the metric, one-way analysis of variance; None where it is not defined.
        n: effective number of examples.
    """

    groups: int
    icc: float | None
    n: float


class Asked(Strict):
    """What one model does with the examples of one subset, or of the whole task.

    Attributes:
        subset, n: as of :class:`Part`.
        answered: share of all examples whose answer the model gives (its top token; of a choice, the likelier one).
        counterfactual: share whose foil it gives on the counterfactual; None without counterfactuals or foils.
        kept: how many have both (or are answered, where there is no counterfactual); what follows is about these.
        metric: mean logit(answer) - logit(foil); None without foils or kept examples.
        asked_otherwise: how many of the kept examples have another question that the model can be asked.
        metric_there: their mean metric at that question.
        shortcut: ``metric_there`` over their mean metric at the prompt; negative where the foil is then favoured.
        interval: its 95 % bootstrap interval over base items.
        by_item, by_frame: what the kept examples are worth; ``by_frame`` is None where the task names no frames.
    """

    subset: str
    n: int
    answered: float
    counterfactual: float | None
    kept: int
    metric: float | None
    asked_otherwise: int
    metric_there: float | None
    shortcut: float | None
    interval: tuple[float, float] | None
    by_item: Worth | None
    by_frame: Worth | None


class Audit(Strict):
    """The audit of one task, on one model if one was given.

    Attributes:
        task, version, options: of the task.
        model, weights_sha256: of the model; empty without one.
        splits, examples, seed: what was drawn: so many examples of each split.
        provenance: the machine and versions.
        parts, asked: the whole task first, then its subsets if it has several; ``asked`` is empty without a model.
        overlap: None where a single split was drawn.
    """

    task: str
    version: int
    options: dict[str, Any]
    model: str
    weights_sha256: str
    splits: tuple[str, ...]
    examples: int
    seed: int
    provenance: dict[str, object]
    parts: list[Part]
    overlap: Overlap | None
    asked: list[Asked]


# --- where words stand ------------------------------------------------------------------------------------------------


def question_start(example: Example) -> int:
    """The index in the prompt at which the question starts: 0 where nothing is demonstrated.

    A demonstration and the question take equally many lines. Where a prompt has one line, the question is what follows
    its last sentence.
    """
    if not example.demonstrations:
        return 0
    text = example.prompt.rstrip("\n")
    lines = [match.start() for match in re.finditer(r"^.*\S.*$", text, flags=re.MULTILINE)]
    if len(lines) > 1:
        each = max(1, len(lines) // (len(example.demonstrations) + 1))
        return lines[-each]
    ends = [match.end() for match in re.finditer(r"[.;!?] ", text)]
    return ends[-1] if ends else 0


def occurrences(words: Sequence[str], text: str) -> list[tuple[int, str]]:
    """Where words stand in a text as whole words, in order: (index, word). Spaces around a word do not matter.

    Upper and lower case are told apart, as they are by a model's tokens.
    """
    bare = {word.strip(): word for word in words if word.strip()}
    if not bare:
        return []
    either = "|".join(re.escape(word) for word in sorted(bare, key=len, reverse=True))
    return [(m.start(), bare[m.group()]) for m in re.finditer(rf"(?<!\w)(?:{either})(?!\w)", text)]


@dataclass(frozen=True)
class Found:
    """An example, and the candidate words that stand in its prompt.

    Attributes:
        vocabulary: the candidate words of its subset.
        at: where each stands, in order.
        start: where the question starts.
    """

    example: Example
    vocabulary: tuple[str, ...]
    at: tuple[tuple[int, str], ...]
    start: int

    def words(self, where: str = "prompt") -> list[str]:
        """The candidate words in order: of the "prompt", its "demonstrations" or its "question"."""
        if where == "prompt":
            return [word for _, word in self.at]
        return [word for i, word in self.at if (i >= self.start) == (where == "question")]


def vocabularies(task: Task, examples: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """By subset the candidate words: its answers and foils, and the task's labels where the subsets share theirs."""
    seen: dict[str, set[str]] = {}
    for e in examples:
        seen.setdefault(e.subset, set()).update({e.answer} if e.foil is None else {e.answer, e.foil})
    shared = all(a & b for a, b in combinations(seen.values(), 2))
    return {subset: tuple(sorted(words | set(task.labels if shared else ()))) for subset, words in seen.items()}


def _stands(found: Sequence[Found], word_of: Texts) -> Stands:
    n = len(found)
    pieces = {
        where: sum(word_of(f.example) in f.words(where) for f in found) / n
        for where in ("prompt", "demonstrations", "question")
    }
    marks: Counter[str] = Counter()
    order: Counter[str] = Counter()
    for f in found:
        word = word_of(f.example)
        words = f.words()
        if word not in words:
            continue
        place = max(i for i, other in f.at if other == word)
        for name, spans in f.example.marks.items():
            marks[name] += any(start <= place < end for start, end in spans)
        order["first"] += words[0] == word
        order["last"] += words[-1] == word
        order["between"] += word not in (words[0], words[-1])
    names = sorted({name for f in found for name in f.example.marks})
    return Stands(
        **pieces,
        marks={name: marks[name] / n for name in names},
        **{name: order[name] / n for name in ("first", "between", "last")},
    )


# --- rules that read no question --------------------------------------------------------------------------------------

RULES = {
    "constant": "say the most frequent answer",
    "first": "say the first candidate word of the prompt",
    "last": "say the last candidate word of the prompt",
    "first_asked": "say the first candidate word of the question",
    "last_asked": "say the last candidate word of the question",
    "label": "copy the label of the last demonstration",
}
"""What each rule does. The most frequent answer is that of the subset in the other split, if both were drawn."""


def _rule(name: str, found: Sequence[Found], frequent: Mapping[int, Counter[str]]) -> Rule:
    """One rule on some examples; ``frequent`` counts the answers that the rule may know, by id of an example."""
    right, chance, prefers = [], [], []
    for f in found:
        answer, foil = f.example.answer, f.example.foil
        if name == "constant":
            counts = frequent[id(f.example)]
            order = [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
            offered = len(f.vocabulary)
            strength = {word: float(counts[word]) for word in f.vocabulary}
        else:
            where = {"label": "demonstrations", "first_asked": "question", "last_asked": "question"}.get(name, "prompt")
            order = f.words(where) if name.startswith("first") else f.words(where)[::-1]
            distinct = len(set(f.words() if name == "label" else order))  # one label alone is no choice of labels
            offered = distinct if distinct > 1 else len(f.vocabulary)
            strength = {word: -float(order.index(word)) for word in set(order)}
        right.append(bool(order) and order[0] == answer)
        chance.append(1 / offered)
        if foil is not None:
            mine, its = strength.get(answer, -math.inf), strength.get(foil, -math.inf)
            prefers.append(0.5 if mine == its else float(mine > its))
    return Rule(
        name=name,
        right=float(np.mean(right)),
        chance=float(np.mean(chance)),
        prefers=float(np.mean(prefers)) if prefers else None,
    )


def _known_answers(by_split: Mapping[str, Sequence[Example]]) -> dict[int, Counter[str]]:
    """By id of an example the answers of its subset that a constant rule may know: those of the other split.

    Where only one split was drawn, they are that split's own.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for split, examples in by_split.items():
        for e in examples:
            counts.setdefault((split, e.subset), Counter())[e.answer] += 1
    known = {}
    for split, examples in by_split.items():
        other = next((s for s in by_split if s != split), split)
        for e in examples:
            known[id(e)] = counts.get((other, e.subset), Counter())
    return known


def _part(subset: str, found: Sequence[Found], frequent: Mapping[int, Counter[str]]) -> Part:
    examples = [f.example for f in found]
    n = len(examples)
    answers = Counter(e.answer for e in examples)
    pairs = Counter((e.answer, e.foil) for e in examples)
    (answer, most), (pair, often) = answers.most_common(1)[0], pairs.most_common(1)[0]
    shares = np.array(list(answers.values())) / n
    with_foil = [f for f in found if f.example.foil is not None]
    later = [
        words.index(f.example.answer) < words.index(str(f.example.foil))
        for f in with_foil
        if {f.example.answer, f.example.foil} <= set(words := f.words()[::-1])
    ]
    shown = any(e.demonstrations for e in examples)
    names = [name for name in RULES if shown or name in ("constant", "first", "last")]
    return Part(
        subset=subset,
        n=n,
        items=len({e.item or e.prompt for e in examples}),
        frames=len({e.frame for e in examples if e.frame}),
        answers=len(answers),
        labels=len({word for f in found for word in f.vocabulary}),
        most_frequent=answer,
        most_frequent_share=most / n,
        pair=pair,
        pair_share=often / n,
        entropy_bits=float(-(shares * np.log2(shares)).sum()) + 0.0,
        answer=_stands(found, lambda e: e.answer),
        foil=_stands(with_foil, lambda e: e.foil or "") if with_foil else None,
        answer_later=float(np.mean(later)) if later else None,
        rules=[_rule(name, found, frequent) for name in names],
    )


def parts_of(task: Task, by_split: Mapping[str, Sequence[Example]]) -> list[Part]:
    """What examples say without any model: of the whole task, then of each subset if there are several.

    Args:
        by_split: examples by the name of their split.

    Raises:
        ConfigurationError: there are no examples.
    """
    examples = [e for split in by_split.values() for e in split]
    if not examples:
        raise ConfigurationError(f"there are no examples of task {task.name!r} to audit.")
    words, frequent = vocabularies(task, examples), _known_answers(by_split)
    found = [
        Found(e, words[e.subset], tuple(occurrences(words[e.subset], e.prompt)), question_start(e)) for e in examples
    ]
    return [_part(name, [found[i] for i in chosen], frequent) for name, chosen in _by_subset(examples)]


def overlap_of(train: Sequence[Example], test: Sequence[Example]) -> Overlap:
    """What two splits share; all counts of distinct things."""

    def shared(
        of: Callable[[Example], Sequence[str]], of_test: Callable[[Example], Sequence[str]] | None = None
    ) -> int:
        ours = {thing for e in train for thing in of(e)}
        return len(ours & {thing for e in test for thing in (of_test or of)(e)})

    def item(e: Example) -> tuple[str, ...]:
        return (e.item or e.prompt,)

    def solved(e: Example) -> tuple[str, ...]:
        return e.demonstrations

    return Overlap(
        items=shared(item),
        frames=shared(lambda e: (e.frame,) if e.frame else ()),
        prompts=shared(lambda e: (e.key,)),
        demonstrations=shared(solved),
        solved=shared(solved, item) + shared(item, solved),
    )


def _by_subset(examples: Sequence[Example]) -> list[tuple[str, list[int]]]:
    """The indices of all examples under :data:`WHOLE`, then of each subset if there are several."""
    subsets: dict[str, list[int]] = {}
    for i, e in enumerate(examples):
        subsets.setdefault(e.subset, []).append(i)
    return [(WHOLE, list(range(len(examples)))), *(subsets.items() if len(subsets) > 1 else ())]


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a model does with one example; metrics are None where there is nothing to measure.

    Attributes:
        right: it gives the answer.
        turns: it gives the foil on the counterfactual.
        metric: logit(answer) - logit(foil).
        elsewhere: the metric at the other question about the same context.
    """

    right: bool
    turns: bool | None
    metric: float | None
    elsewhere: float | None

    @property
    def kept(self) -> bool:
        return self.right and self.turns is not False


def ask(model: Model, examples: Sequence[EncodedExample]) -> list[Answers]:
    """Asks a model every example, its counterfactual and its other question."""
    measured = measure_all(model, examples)
    right = measured[:, Measure.CORRECT].bool().tolist()
    metric = [m if e.foil is not None else None for m, e in zip(measured[:, Measure.METRIC].tolist(), examples)]
    turned = {i: pair for i, e in enumerate(examples) if (pair := reversed_pair(e)) is not None}
    turns = dict(zip(turned, answered(model, list(turned.values()))))
    others = {i: other for i, e in enumerate(examples) if (other := _other(model, e)) is not None}
    there = measure_all(model, list(others.values()))[:, Measure.METRIC].tolist() if others else []
    elsewhere = dict(zip(others, there))
    return [Answers(right[i], turns.get(i), metric[i], elsewhere.get(i)) for i in range(len(examples))]


def _other(model: Model, encoded: EncodedExample) -> EncodedExample | None:
    """The other question with the same answer and foil; None if there is none or the model cannot be asked it."""
    example = encoded.example
    if example.other_question is None or encoded.foil is None:
        return None
    asked = Example(
        example.other_question,
        example.answer,
        example.foil,
        image=example.image,
        choice=example.choice,
        item=example.item,
    )
    return model.encode(asked) if model.why_not(asked) is None else None


def worth(values: NDArray[np.float64], groups: Sequence[Hashable]) -> Worth:
    """What grouped values are worth as independent ones.

    The intraclass correlation is ICC(1) of the one-way analysis of variance, for groups of unequal size (Donner 1986),
    not below 0; the effective number is ``N / (1 + (m - 1) ICC)`` with ``m = sum n_i^2 / N``, the mean size of the
    group that a value stands in (Kish 1965). One group of several values is worth one value.

    Args:
        values: ``[N]``, N at least 1.
        groups: ``[N]``; an empty name is a group of its own.
    """
    names = [group if group != "" else ("", i) for i, group in enumerate(groups)]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = np.array([place[name] for name in names])
    n, k = len(values), len(place)
    sizes = np.bincount(index)
    size = float((sizes**2).sum() / n)
    if k == n:
        return Worth(groups=k, icc=None, n=float(n))
    if k == 1:
        return Worth(groups=1, icc=None, n=1.0)
    means = np.bincount(index, weights=values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum() / (k - 1))
    within = float(((values - means[index]) ** 2).sum() / (n - k))
    usual = (n - size) / (k - 1)
    total = between + (usual - 1) * within
    icc = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0
    return Worth(groups=k, icc=icc, n=n / (1 + (size - 1) * icc))


def asked_of(examples: Sequence[Example], answers: Sequence[Answers]) -> list[Asked]:
    """What a model's answers say of the whole task, and of each subset if there are several."""
    return [_asked(name, [examples[i] for i in of], [answers[i] for i in of]) for name, of in _by_subset(examples)]


def _asked(subset: str, examples: Sequence[Example], answers: Sequence[Answers]) -> Asked:
    turns = [a.turns for a in answers if a.turns is not None]
    kept = [(e, a) for e, a in zip(examples, answers) if a.kept]
    known = [(e, a.metric) for e, a in kept if a.metric is not None]
    metric = np.array([value for _, value in known], dtype=np.float64)
    again = [(e, a.metric, a.elsewhere) for e, a in kept if a.metric is not None and a.elsewhere is not None]
    there = np.array([value for *_, value in again], dtype=np.float64)
    here = np.array([value for _, value, _ in again], dtype=np.float64)

    def share(index: NDArray[np.intp]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.asarray(there[index].sum(-1) / here[index].sum(-1))

    defined = len(again) > 0 and here.sum() > 0
    return Asked(
        subset=subset,
        n=len(examples),
        answered=float(np.mean([a.right for a in answers])),
        counterfactual=float(np.mean(turns)) if turns else None,
        kept=len(kept),
        metric=float(metric.mean()) if len(metric) else None,
        asked_otherwise=len(again),
        metric_there=float(there.mean()) if again else None,
        shortcut=float(share(np.arange(len(again)))) if defined else None,
        interval=bootstrap_interval(len(again), share, items=[e.item for e, *_ in again]) if defined else None,
        by_item=worth(metric, [e.item for e, _ in known]) if len(metric) else None,
        by_frame=worth(metric, [e.frame for e, _ in known]) if any(e.frame for e, _ in known) else None,
    )


def measure(
    task: Task,
    model: Model | None = None,
    examples: int = 96,
    splits: Sequence[str] = SPLITS,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    about: Mapping[str, object] | None = None,
    write: Callable[[Example, int], str] | None = None,
) -> Audit:
    """Audits a task: without a model what its examples say by themselves, with one what the model makes of them too.

    Args:
        examples: drawn of each split.
        splits: "train", "test" or both.
        options: of the task, kept in the audit.
        about: the machine and versions, kept in the audit.
        write: what is written after a prompt, where a task's examples are made of that and there is no model.

    Raises:
        ConfigurationError: fewer than one example, or an unknown split. TaskError: too few candidates fit the model,
            or the examples are made of what a model writes and none is given.
    """
    if examples < 1:
        raise ConfigurationError(f"the number of examples is {examples}, expected at least 1.")
    for split in splits:
        check_name("split", split, SPLITS)
    encoded: dict[str, list[EncodedExample]] = {}
    drawn: dict[str, list[Example]] = {}
    for split in splits:
        if model is None:
            drawn[split] = task.examples(split, examples, seed, write=write)
        else:
            encoded[split] = draw(model, task, split, examples, seed)
            drawn[split] = [e.example for e in encoded[split]]
    everything = [e for split in splits for e in drawn[split]]
    asked = []
    if model is not None:
        asked = asked_of(everything, ask(model, [e for split in splits for e in encoded[split]]))
    return Audit(
        task=task.name,
        version=task.version,
        options=dict(options or {}),
        model="" if model is None else model.name,
        weights_sha256="" if model is None else model.weights_sha256,
        splits=tuple(splits),
        examples=examples,
        seed=seed,
        provenance=dict(about or {}),
        parts=parts_of(task, drawn),
        overlap=overlap_of(drawn["train"], drawn["test"]) if set(SPLITS) <= set(drawn) else None,
        asked=asked,
    )


# --- the verdict ------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    """A share as a whole percentage."""
    return f"{100 * value:.0f} %"


def of_part(subset: str) -> str:
    """The words for a part of a task."""
    return f"subset {subset}" if subset else "the whole task"


def _copied(part: Part) -> str:
    """That the answer stands in the prompt, or in the question, more often than the foil; else empty."""
    if part.foil is None or part.n < FEWEST:
        return ""
    for where in ("prompt", "question"):
        mine, its = getattr(part.answer, where), getattr(part.foil, where)
        if mine > its + STANDS_LIMIT:
            return (
                f"Copying: in {of_part(part.subset)} the answer stands in the {where} in {percent(mine)} and the foil "
                f"in {percent(its)}; at most {round(100 * STANDS_LIMIT)} points more are allowed."
            )
    return ""


def _kept_elsewhere(asked: Asked, model: str) -> str:
    """That another question keeps too much of the metric; else empty."""
    if asked.shortcut is None or asked.asked_otherwise < FEWEST or asked.shortcut <= SHORTCUT_LIMIT:
        return ""
    return (
        f"Shortcut: in {of_part(asked.subset)} another question about the same context keeps "
        f"{percent(asked.shortcut)} of the metric of {model}; at most {percent(SHORTCUT_LIMIT)} is allowed."
    )


def problems(audit: Audit) -> list[str]:
    """What is beyond its limit, one sentence each; empty for a task that passes.

    Rules that copy are judged on the whole task, whose subsets may well differ in where the answer stands; what share
    of the answers and foils stand in the prompt, and the shortcut share, also in each subset of at least
    :data:`FEWEST` examples. A model's shortcut share is judged on at least :data:`FEWEST` kept examples.
    """
    found = []
    if audit.overlap is not None:
        what = {
            "items": "base items are asked about in both splits",
            "frames": "frames stand in both splits",
            "prompts": "prompts stand in both splits",
            "demonstrations": "base items are demonstrated in both splits",
            "solved": "base items are asked about in one split and demonstrated in the other",
        }
        counts = audit.overlap.model_dump()
        found += [f"Overlap: {counts[name]} {words}." for name, words in what.items() if counts[name]]
    whole = audit.parts[0]
    for rule in whole.rules:
        limit = CONSTANT_LIMIT if rule.name == "constant" else COPYING_LIMIT
        if rule.right > rule.chance + limit:
            found.append(
                f"Rule: to {RULES[rule.name]} is right in {percent(rule.right)}, where chance is "
                f"{percent(rule.chance)} and at most {round(100 * limit)} points more are allowed."
            )
        if rule.prefers is not None and rule.prefers > 0.5 + COPYING_LIMIT:
            found.append(
                f"Rule: to {RULES[rule.name]} puts the answer before the foil in {percent(rule.prefers)}, where chance "
                f"is 50 % and at most {round(100 * COPYING_LIMIT)} points more are allowed."
            )
    copied = [sentence for part in audit.parts if (sentence := _copied(part))]
    kept = [sentence for asked in audit.asked if (sentence := _kept_elsewhere(asked, audit.model))]
    for sentences in (copied, kept):
        of_whole = [sentence for sentence in sentences if of_part(WHOLE) in sentence]
        found += of_whole or sentences  # of a whole task that fails, the subsets say the same again
    return found


def remarks(audit: Audit) -> list[str]:
    """What could not be judged and why, one sentence each."""
    said = []
    if not audit.asked:
        said.append("No model was asked, so there is no shortcut share.")
    elif audit.asked[0].metric is None and audit.asked[0].kept:
        said.append("There are no foils, so there is no difference of logits and no shortcut share.")
    elif not audit.asked[0].kept:
        said.append(f"{audit.model} keeps none of the examples, so there is no shortcut share.")
    elif not audit.asked[0].asked_otherwise:
        said.append("No example has another question about its context, so there is no shortcut share.")
    elif audit.asked[0].asked_otherwise < FEWEST:
        said.append(
            f"Only {audit.asked[0].asked_otherwise} kept examples have another question; the shortcut share is judged "
            f"on at least {FEWEST}."
        )
    if audit.asked and audit.asked[0].counterfactual is None:
        said.append("There are no counterfactuals with a foil, so every example that is answered is kept.")
    if audit.overlap is None:
        said.append("One split was drawn, so what both share is not known.")
    if audit.parts[0].frames == 0:
        said.append("The task names no frames.")
    return said
