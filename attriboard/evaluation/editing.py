"""How editing is measured; what is judged of an edit stands in :mod:`attriboard.measurements.editing`.

The edits are those of :mod:`attriboard.edits`. k is chosen on the train split for each kind by itself: the one with the
highest harmonic mean of efficacy and locality there, the smaller of equals. Where no train example was answered
wrongly, boost takes efficacy by probability for that.

The other prompts of locality are neutral ones; for a rewrite a few of those, and a few other examples of the task, in a
fixed rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..edits import (
    Rewrite,
    WeightEdit,
    activation_edits,
    edited,
    first_layer,
    foil_wins,
    rewrite,
    scale,
    why_no_rewrite,
)
from ..errors import ConfigurationError, UnknownNameError
from ..measurements.editing import KINDS, SIZES, Editing, EditKind, EditResult, Values, harmonic_mean
from ..model import EncodedExample, hook_name
from ..stats.sets import up_to_half
from ..task import Example
from .base import Evaluation, Job
from .capability import neutral_prompts

if TYPE_CHECKING:
    from ..components import Level
    from ..measurements.capability import Capability
    from ..model import Batch, Model
    from ..scores import Scores
    from .context import Context

OTHERS = 8
"""How many neutral prompts, and how many other examples of the task, judge the locality of one example's rewrite."""


# --- what an edit does to a prompt ------------------------------------------------------------------------------------


class _Seen(IntEnum):
    """What is seen of one prompt under one edit; 1 or 0 but for KL, NaN where a foil is missing."""

    ANSWERED_BEFORE = 0
    ANSWERED = 1
    LOST = 2
    FOIL_GIVEN = 3
    FOIL_LIKELIER = 4
    ANSWER_ROSE = 5
    STAYS = 6
    KL = 7


_TARGET: dict[EditKind, _Seen] = {"suppress": _Seen.LOST, "boost": _Seen.ANSWERED, "rewrite": _Seen.FOIL_GIVEN}
_LIKELIER: dict[EditKind, _Seen] = {
    "suppress": _Seen.FOIL_LIKELIER,
    "boost": _Seen.ANSWER_ROSE,
    "rewrite": _Seen.FOIL_LIKELIER,
}


def _look(model: Model, batch: Batch, before: Tensor, after: Tensor) -> Tensor:
    """``[B, 8]`` float32: the columns of :class:`_Seen` from logits ``[B, V]`` untouched and under the edit."""
    rows = torch.arange(len(batch), device=after.device)
    p, q = before.float().log_softmax(-1), after.float().log_softmax(-1)
    answered_now = model.correct(after, batch)
    foil_likelier = (q[rows, batch.foil.clamp(min=0)] > q[rows, batch.answer]).float()
    columns = {
        _Seen.ANSWERED_BEFORE: model.correct(before, batch),
        _Seen.ANSWERED: answered_now,
        _Seen.LOST: ~answered_now,
        _Seen.FOIL_GIVEN: foil_wins(model, after, batch),
        _Seen.FOIL_LIKELIER: torch.where(batch.foil >= 0, foil_likelier, torch.nan),
        _Seen.ANSWER_ROSE: q[rows, batch.answer] > p[rows, batch.answer],
        _Seen.STAYS: p.argmax(-1) == q.argmax(-1),
        _Seen.KL: (p.exp() * (p - q)).sum(-1),
    }
    return torch.stack([columns[name].float() for name in _Seen], dim=1)


def _under(model: Model, prompts: Sequence[EncodedExample], edits: Sequence[Sequence[WeightEdit]]) -> list[Tensor]:
    """What is seen of each prompt under each of its own edits: for every prompt ``[its edits, 8]`` (:class:`_Seen`).

    The untouched pass is run once for a prompt, and those under an edit start at the first layer that is edited.
    """
    tables: list[Tensor] = [torch.empty(0)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    for at in range(0, len(order), model.batch_size):
        group = order[at : at + model.batch_size]
        batch = model.batch([prompts[i] for i in group])
        pairs = [(row, edit) for row, i in enumerate(group) for edit in edits[i]]
        first = first_layer(model, (edit for _, edit in pairs))
        start = hook_name("resid_pre", first)
        untouched = model.run(batch, [start])
        seen = []
        for begin in range(0, len(pairs), model.batch_size):
            some = pairs[begin : begin + model.batch_size]
            rows = torch.tensor([row for row, _ in some], device=model.device)
            part, changes = batch.rows(rows), activation_edits(model, [edit for _, edit in some])
            logits = model.run(part, edits=changes, start=(first, untouched[start][rows])).logits
            seen.append(_look(model, part, untouched.logits[rows], logits).cpu())
        for i, table in zip(group, torch.cat(seen).split([len(edits[i]) for i in group])):
            tables[i] = table
    return tables


# --- the evaluation ---------------------------------------------------------------------------------------------------


class EditingEvaluation(Evaluation):
    """Every kind of edit that the level has."""

    name = "editing"
    measurement = Editing
    version = 2

    def measure(self, job: Job) -> Editing:
        options: Editing.Options = job.options
        capability_before = job.capability.before()
        return evaluate(
            job.context,
            job.component_scores,
            job.level,
            neutral_prompts(job.capability.limit),
            options.sizes,
            suppress_factor=options.suppress_factor,
            boost_factor=options.boost_factor,
            capability=job.capability.measure,
            capability_before=capability_before,
        )


def evaluate(
    context: Context,
    scores: Scores,
    level: Level,
    neutral: Sequence[str],
    sizes: Sequence[int] = SIZES,
    kinds: Sequence[EditKind] = KINDS,
    suppress_factor: float = 0.0,
    boost_factor: float = 2.0,
    capability: Callable[[Model], Capability] | None = None,
    capability_before: Capability | None = None,
    capability_edits: int = 1,
    others: int = OTHERS,
) -> Editing:
    """Edits the components with the highest (signed) scores, k chosen on the train split, judged on the test split.

    Args:
        neutral: prompts that have nothing to do with the task, for locality.
        sizes: the k to choose from; those above half of the level are left out.
        kinds: which kinds of edit.
        suppress_factor, boost_factor: what weights are scaled by.
        capability: measures what the model, as it stands, can do (see :func:`.capability.measure`).
        capability_before: the same of the untouched model.
        capability_edits: of how many test examples' rewrites it is measured.
        others: how many neutral prompts, and how many other examples, judge the locality of one example's rewrite.

    Raises:
        ConfigurationError: no neutral prompt, a size below 1, or none that is at most half of the level.
        UnknownNameError: another kind of edit.
        MethodError: the level cannot be edited.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of edit", kind, KINDS)
    editor = _Editor(context, scores, level, neutral, sizes, capability, others)
    wrong = context.wrong if "boost" in kinds else {"train": [], "test": []}
    results: dict[str, EditResult] = {}
    for kind in kinds:
        if kind == "rewrite":
            why_not = why_no_rewrite(context.model, level)
            if why_not is None and any(e.foil is None for e in context.train + context.test):
                why_not = "not every example has a foil."
            if why_not is None:
                results[kind] = editor.rewritten(capability_edits, len(wrong["test"]))
            else:
                editor.not_measured["edit_rewrite"] = why_not
        else:
            results[kind] = editor.scaled(kind, suppress_factor if kind == "suppress" else boost_factor, wrong)
    return Editing(
        base_items=[e.example.item for e in [*context.test, *wrong["test"]]],
        kept=len(context.test),
        wrong=len(wrong["test"]),
        kinds=results,
        capability=capability_before,
        not_measured=editor.not_measured,
    )


class _Editor:
    """What all kinds of edit share: the components to edit, the prompts to ask, and what could not be measured."""

    def __init__(
        self,
        context: Context,
        scores: Scores,
        level: Level,
        neutral: Sequence[str],
        sizes: Sequence[int],
        capability: Callable[[Model], Capability] | None,
        others: int,
    ) -> None:
        self.context, self.model, self.level = context, context.model, level
        self.capability, self.others = capability, others
        self.ranking = scores.ranking(seed=0)  # the model itself is changed: one random order of equal scores
        self.sizes = up_to_half(sizes, level.size(context.model), level.name, context.model.name)
        if not neutral:
            raise ConfigurationError("locality is measured on neutral prompts, and none was given.")
        self.neutral = [_prompt(context.model, text) for text in neutral]
        self.not_measured: dict[str, str] = {}

    def scaled(self, kind: EditKind, factor: float, wrong: dict[str, list[EncodedExample]]) -> EditResult:
        """Suppresses or boosts the top k."""
        edits = [scale(self.model, self.level, self.ranking[:k], factor) for k in self.sizes]
        elsewhere = torch.stack(_under(self.model, self.neutral, [edits] * len(self.neutral)))
        judged, target = self.context.train, _TARGET[kind]
        if kind == "boost":
            judged, target = (wrong["train"], target) if wrong["train"] else (judged, _LIKELIER[kind])
        train = []
        if len(edits) > 1:
            reached = torch.stack(_under(self.model, judged, [edits] * len(judged)))[:, :, target]
            train = list(zip(self.sizes, reached.mean(0).tolist(), elsewhere[:, :, _Seen.STAYS].mean(0).tolist()))
        at = _best(train) if train else 0
        edit = edits[at]

        examples = [*self.context.test, *wrong["test"]]
        asked = examples if kind == "boost" else self.context.test
        rest: Values = [None] * (len(examples) - len(asked))
        seen = torch.cat(_under(self.model, asked, [[edit]] * len(asked)))
        argmax = _values(seen[:, _TARGET[kind]])
        if kind == "boost":
            argmax = [None if i < len(self.context.test) else value for i, value in enumerate(argmax)]
            if not wrong["test"]:
                for metric in ("efficacy", "score"):
                    self.not_measured[f"edit_boost_{metric}"] = "no test example was answered wrongly before."
        return EditResult(
            factor=factor,
            k=self.sizes[at],
            train=train,
            argmax=argmax + rest,
            probability=_values(seen[:, _LIKELIER[kind]]) + rest,
            generality=self._generality(kind, asked, [edit] * len(asked)) + rest,
            stays=[elsewhere[:, at, _Seen.STAYS].tolist()],
            kl=[elsewhere[:, at, _Seen.KL].tolist()],
            strengths=None,
            capability=self._capability([edit]),
        )

    def rewritten(self, capability_edits: int, wrong: int) -> EditResult:
        """Rewrites the top k for each example; the ``wrong`` ones that follow the kept ones are not rewritten."""
        train = []
        for k in self.sizes if len(self.sizes) > 1 else ():
            edits = rewrite(self.model, self.context.train, self.level, self.ranking[:k])
            reached = torch.cat(_under(self.model, self.context.train, [[edit] for edit in edits]))
            stays, _ = self._around(self.context.train, edits)
            train.append((k, float(reached[:, _Seen.FOIL_GIVEN].mean()), float(np.mean([np.mean(s) for s in stays]))))
        k = self.sizes[_best(train) if train else 0]
        examples = self.context.test
        edits = rewrite(self.model, examples, self.level, self.ranking[:k])
        seen = torch.cat(_under(self.model, examples, [[edit] for edit in edits]))
        stays, kl = self._around(examples, edits)
        rest: Values = [None] * wrong
        empty: list[list[float]] = [[] for _ in rest]
        return EditResult(
            factor=None,
            k=k,
            train=train,
            argmax=_values(seen[:, _Seen.FOIL_GIVEN]) + rest,
            probability=_values(seen[:, _Seen.FOIL_LIKELIER]) + rest,
            generality=self._generality("rewrite", examples, edits) + rest,
            stays=stays + empty,
            kl=kl + empty,
            strengths=[edit.strength for edit in edits] + rest,
            capability=self._capability(edits[:capability_edits]),
        )

    def _capability(self, edits: Sequence[WeightEdit]) -> list[Capability]:
        """What the model can do under each edit; nothing where that is not to be measured."""
        if self.capability is None:
            return []
        capabilities = []
        for edit in edits:
            with edited(self.model, edit):
                capabilities.append(self.capability(self.model))
        return capabilities

    def _around(
        self, examples: Sequence[EncodedExample], edits: Sequence[Rewrite]
    ) -> tuple[list[list[float]], list[list[float]]]:
        """``[N][P]`` each: whether the top token of other prompts stays under each example's rewrite, and KL there."""
        n, m = len(examples), len(self.neutral)
        stays: list[list[float]] = [[] for _ in examples]
        kl: list[list[float]] = [[] for _ in examples]
        for prompts, places in (
            (self.neutral, [[(i * self.others + j) % m for j in range(min(self.others, m))] for i in range(n)]),
            (examples, [[(i + 1 + j) % n for j in range(min(self.others, n - 1))] for i in range(n)]),
        ):
            under = {p: [i for i in range(n) if p in places[i]] for p in range(len(prompts))}
            asked = [p for p in under if under[p]]
            seen = _under(self.model, [prompts[p] for p in asked], [[edits[i] for i in under[p]] for p in asked])
            rows = {(i, p): row for p, table in zip(asked, seen) for i, row in zip(under[p], table.tolist())}
            for i, mine in enumerate(places):
                stays[i] += [rows[i, p][_Seen.STAYS] for p in mine]
                kl[i] += [rows[i, p][_Seen.KL] for p in mine]
        return stays, kl

    def _generality(self, kind: EditKind, examples: Sequence[EncodedExample], edits: Sequence[WeightEdit]) -> Values:
        """``[N]``: efficacy on each example's paraphrases under its edit, None where there is none to judge by."""
        owners, prompts = [], []
        for i, encoded in enumerate(examples):
            for paraphrase in paraphrases(self.model, encoded):
                owners.append(i)
                prompts.append(paraphrase)
        reached: list[list[float]] = [[] for _ in examples]
        for i, table in zip(owners, _under(self.model, prompts, [[edits[i]] for i in owners])):
            if bool(table[0, _Seen.ANSWERED_BEFORE]) != (kind == "boost"):
                reached[i].append(float(table[0, _TARGET[kind]]))
        if not any(reached):
            why = "answers wrongly" if kind == "boost" else "answers"
            self.not_measured[f"edit_{kind}_generality"] = (
                f"no example has a paraphrase that the untouched model {why}."
                if prompts
                else "no example has a paraphrase that the model can use."
            )
        return [float(np.mean(values)) if values else None for values in reached]


def paraphrases(model: Model, encoded: EncodedExample) -> list[EncodedExample]:
    """The example's paraphrases that the model can use, in its tokens."""
    bare = replace(
        encoded.example, counterfactual=None, counterfactual_image=None, marks={}, regions={}, paraphrases=()
    )
    asked = [replace(bare, prompt=prompt) for prompt in encoded.example.paraphrases]
    return [model.encode(example) for example in asked if model.why_not(example) is None]


def _prompt(model: Model, text: str) -> EncodedExample:
    """A text in the model's tokens, without an answer to it."""
    return EncodedExample(Example(text, ""), model.tokens(text), 0, None, None)


def _best(train: Sequence[tuple[int, float, float]]) -> int:
    """The place of the ``(k, efficacy, locality)`` with the highest harmonic mean; the first of equals."""
    return int(np.argmax(harmonic_mean(np.array([values[1:] for values in train]).T)))


def _values(values: Tensor) -> Values:
    """``[N]`` as numbers, None for NaN."""
    return [None if np.isnan(value) else value for value in values.tolist()]
