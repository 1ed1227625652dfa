"""What a method is: from a model and examples to one score per component, and the registry of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .components import InputLevel
from .errors import ConfigurationError, MethodError, SkipCell
from .interventions import means_for, replacement_kind, replacement_values, shared_prefix
from .levels import REPLACEMENTS, USUAL_REPLACEMENT, Replacement
from .registry import Registry
from .roles import SIGHTS, ControlKind, Sight
from .scores import Scores

if TYPE_CHECKING:
    from .components import Level
    from .model import Batch, EncodedExample, Model
    from .shape import Shape


EACH_BYTES = 2**27
"""The scores of single examples are kept beside their mean up to this size."""


@dataclass
class Method:
    """Base class of all attribution methods; a subclass is a dataclass whose fields are the method's options.

    A method implements :meth:`score_batch`; one that needs to see all examples together, or works in stages,
    overrides :meth:`attribute` instead. Higher = more responsible for the answer.

    Class attributes:
        name: as typed on the command line.
        paper: where the method comes from.
        description: one sentence for lists and tables.
        levels: the levels it can score.
        needs: of "weights", "forward", "gradients", "counterfactual", "marks:NAME" (a mark of the task), "subsets"
            (examples of several) and "answers" (several that more than one example has).
        modality: "any", or "vision" if it can score only examples with an image.
        uses: names of other methods it calls; a change to their files makes its records stale too.
        control: True for floors that use no knowledge of the answer.
        random: True if scores are drawn with the option ``seed``; the harness gives every group of train examples
            another draw, so that such a control is judged as the mean over many.
        control_kind: of a control, what methods are held against it for; see :data:`attriboard.roles.ControlKind`.
        reads: what of an example its scores depend on, beside the prompt and what its options make it see: the answer,
            the foil, labels. Through the metric or its gradient, that is the answer and the foil.
        default_for: studies that use this method unless others are named: "compare-forms".
        circuits: how a circuit of ``n`` edges is chosen by its scores: "top", the ``n`` best, or "greedy", the best of
            those that lead to what has been chosen, from the logits back
            (:func:`attriboard.circuits.greedy_order`).
        properties: what its definition implies, checked by ``attriboard selftest``; see docs/selftests.md. Names that
            do not exist are refused there and by ``attriboard validate``.
        rounding: how far rounding in float32 may move its scores, as a share of the largest: more where it divides by
            what can be near zero.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    description: ClassVar[str] = ""
    levels: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"forward"})
    modality: ClassVar[str] = "any"
    uses: ClassVar[tuple[str, ...]] = ()
    control: ClassVar[bool] = False
    random: ClassVar[bool] = False
    control_kind: ClassVar[ControlKind] = "trivial"
    reads: ClassVar[tuple[Sight, ...]] = ()
    default_for: ClassVar[tuple[str, ...]] = ()
    circuits: ClassVar[Literal["top", "greedy"]] = "top"
    properties: ClassVar[tuple[str, ...]] = ()
    rounding: ClassVar[float] = 1e-4

    @property
    def sees(self) -> tuple[Sight, ...]:
        """What of an example its scores can depend on beside the prompt, with these options."""
        return self.reads

    def seen(self, examples: Sequence[EncodedExample]) -> list[Sight]:
        """What it sees of these examples, in the order of :data:`attriboard.roles.SIGHTS`.

        Without the foil where none of them has one, and without the counterfactual likewise.
        """
        has = {
            "foil": any(e.foil is not None for e in examples),
            "counterfactual": any(e.counterfactual is not None for e in examples),
        }
        return [sight for sight in SIGHTS if sight in self.sees and has.get(sight, True)]

    def score_batch(self, model: Model, batch: Batch, level: Level) -> Tensor:
        """The scores of each example of a batch, which must not depend on the other rows or on padding.

        Returns:
            ``[B, *level.shape(model)]`` for a level of components; ``[B, T]``, one score for every column of the
            batch, for a level of inputs: the columns that the level scores are taken from it.
        """
        raise NotImplementedError(f"{type(self).__name__} implements neither score_batch nor attribute.")

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        """Scores averaged over examples (not over batches), accumulated in float64.

        They carry the scores of each example, as long as these take no more than :data:`EACH_BYTES`.

        Raises:
            MethodError: the level is not one of the method's, or ``score_batch`` returned another shape.
        """
        self.check_level(level)
        if level.inputs:
            raise MethodError(f"{level.name} are positions of single examples, whose scores have no average: use each.")
        if not examples:
            raise MethodError(f"{self.name} was given no examples.")
        total = torch.zeros(level.shape(model), dtype=torch.float64)
        each: list[Tensor] | None = [] if 4 * len(examples) * level.size(model) <= EACH_BYTES else None
        for batch in model.batches(examples):
            scores = self._batch_scores(model, batch, level)
            total += scores.double().sum(0).cpu()
            if each is not None:
                each += scores.to("cpu", torch.float32, copy=True)  # a view would keep alive what it looks into
        return replace(self.scores(total / len(examples), model, level), each=each)

    def each(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> list[Tensor]:
        """Each example's own scores, float32: ``level.shape(model)``, or ``level.example_shape(model, example)``.

        Raises:
            MethodError: as :meth:`attribute`.
            SkipCell: the method implements :meth:`attribute` alone, so it has no scores of single examples.
        """
        self.check_level(level)
        if type(self).score_batch is Method.score_batch:
            raise SkipCell(f"{self.name} scores all examples together and gives no scores of single ones.")
        each: list[Tensor] = []
        for batch in model.batches(examples):
            scores = self._batch_scores(model, batch, level).float().cpu()
            each += level.take(model, batch, scores) if isinstance(level, InputLevel) else list(scores)
        return each

    def _batch_scores(self, model: Model, batch: Batch, level: Level) -> Tensor:
        scores = self.score_batch(model, batch, level)
        if level.inputs:
            expected, axes = tuple(batch.tokens.shape), "columns of the batch"
        else:
            expected, axes = (len(batch), *level.shape(model)), ", ".join(level.axes)
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected:
            raise MethodError(
                f"{self.name}.score_batch returned {_describe(scores)}, expected shape {expected} (examples, {axes})."
            )
        return scores.detach()

    def scores(self, values: Tensor, model: Model, level: Level, **metadata: Any) -> Scores:
        """Wraps values shaped as the level."""
        return Scores(values.detach().float().cpu().contiguous(), level.name, level.names(model), metadata)

    @property
    def averages(self) -> bool:
        """Whether the scores of several examples are the mean of each one's own, whatever the others are."""
        return type(self).attribute is Method.attribute

    def passes(self, shape: Shape, level: Level) -> float:
        """What scoring one example takes, in forward passes: known from shapes alone, before anything runs.

        Relative to :attr:`Shape.full`, one forward pass of the example's prompt, as ``forward_equivalents`` of a record
        is. By default what :attr:`needs` implies: one forward pass, a backward pass counting as two more, and one pass
        of the counterfactual, both behind the prefix that they share. A method that does more, or other products,
        overrides this; work that is done once for all examples is divided by :attr:`Shape.examples`. No score may
        depend on it, so it is no part of what identifies a method's results.
        """
        return shape.usual(self.needs, counterfactual=not self.needs.isdisjoint(("counterfactual",)))

    def check_level(self, level: Level) -> None:
        if level.name not in self.levels:
            raise MethodError(f"{self.name} scores {', '.join(self.levels)}, not {level.name}.")

    def check_examples(self, examples: Sequence[EncodedExample]) -> None:
        """Refuses examples that lack what the method needs.

        Raises:
            SkipCell: says what is missing.
        """
        if self.modality == "vision" and any(e.image is None for e in examples):
            raise SkipCell(f"{self.name} needs examples with an image, which these do not have.")
        for need in sorted(self.needs):
            kind, _, mark = need.partition(":")
            if kind == "marks" and not all(e.example.marks.get(mark) for e in examples):
                raise SkipCell(f"{self.name} needs examples with a mark called {mark!r}, which these do not have.")


@dataclass
class ReplacingMethod(Method):
    """Base class of methods that exchange activations; the contract for what they exchange them for stands here.

    Options:
        replacement: one that every level takes (see :class:`attriboard.interventions.ReplacementKind`), such as
            "counterfactual" (the activation on the paired prompt, same position), "mean" or "zero".
    """

    replacement: Replacement = USUAL_REPLACEMENT
    _means: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.replacement not in REPLACEMENTS:
            raise ConfigurationError(
                f"replacement of {self.name} is {self.replacement!r}, expected one of {', '.join(REPLACEMENTS)}."
            )

    def attribute(self, model: Model, examples: Sequence[EncodedExample], level: Level) -> Scores:
        self.check_level(level)
        self._means = means_for(model, examples, level, self.replacement)
        return super().attribute(model, examples, level)

    def passes(self, shape: Shape, level: Level) -> float:
        """As of every method, with what the replacement takes: a pass of the counterfactual, or one for the means."""
        means = 0.0 if level.inputs else self.passes_for_means(shape)
        return means + shape.usual(self.needs, counterfactual=self.paired and not level.inputs)

    def passes_for_means(self, shape: Shape) -> float:
        """What the means of components take that the replacement needs, in forward passes per example."""
        return shape.forward() if replacement_kind(self.replacement).needs_means else 0.0

    @property
    def averages(self) -> bool:
        """As of every method; means over the examples given make each one's scores depend on the others."""
        own = type(self).attribute in (Method.attribute, ReplacingMethod.attribute)
        return own and not replacement_kind(self.replacement).needs_means

    @property
    def sees(self) -> tuple[Sight, ...]:
        return (*self.reads, "counterfactual") if self.paired else self.reads

    @property
    def paired(self) -> bool:
        """Whether activations are replaced by those of the counterfactual prompt."""
        return replacement_kind(self.replacement).paired

    def shared(self, model: Model, batch: Batch) -> Batch:
        """The batch behind the prefix it shares with its counterfactual, where that is exact."""
        return shared_prefix(model, batch, self.replacement)

    def values(self, model: Model, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        """What activations are replaced by, by name."""
        return replacement_values(model, batch, names, self.replacement, self._means)


def positive(method: Method, *names: str) -> None:
    """Refuses options that must be whole numbers of at least 1.

    Raises:
        ConfigurationError: names the option and its value.
    """
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name} of {method.name} is {value!r}, expected a whole number of at least 1.")


def whole_number(method: Method, *names: str) -> None:
    """Refuses options, such as seeds, that must be whole numbers.

    Raises:
        ConfigurationError: names the option and its value.
    """
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name} of {method.name} is {value!r}, expected a whole number.")


def true_or_false(method: Method, *names: str) -> None:
    """Refuses options that must be booleans.

    Raises:
        ConfigurationError: names the option and its value.
    """
    for name in names:
        value = getattr(method, name)
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name} of {method.name} is {value!r}, expected true or false.")


def checked_inputs(each: Sequence[Tensor], method: Method) -> list[Tensor]:
    """Each example's own scores, if every one is finite.

    Raises:
        MethodError: names the first example with a score that is NaN or infinite.
    """
    for i, values in enumerate(each):
        if not bool(torch.isfinite(values).all()):
            bad = int((~torch.isfinite(values)).sum())
            raise MethodError(f"{method.name} returned {bad} scores that are NaN or infinite for example {i}.")
    return list(each)


def checked(scores: Any, method: Method, model: Model, level: Level) -> Scores:
    """The scores a method returned, if they are scores.

    Raises:
        MethodError: not a :class:`Scores`, a wrong shape, or values that are not finite.
    """
    if not isinstance(scores, Scores):
        raise MethodError(f"{method.name} returned {_describe(scores)}, expected Scores.")
    expected = level.shape(model)
    if tuple(scores.values.shape) != expected:
        raise MethodError(
            f"{method.name} returned {_describe(scores.values)}, expected shape {expected} ({', '.join(level.axes)})."
        )
    bad = ~torch.isfinite(scores.values)
    if bool(bad.any()):
        first = scores.names[int(bad.flatten().nonzero()[0])]
        raise MethodError(
            f"{method.name} returned {int(bad.sum())} scores that are NaN or infinite, the first for {first}."
        )
    return scores


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


methods: Registry[Method] = Registry("method", Method, "attriboard.methods")


def make_method(name: str, options: Mapping[str, Any], seed: int) -> Method:
    """A registered method; one that draws at random takes ``seed`` unless its options name another.

    Raises:
        UnknownNameError: no such method. ConfigurationError: an option it does not have, or a wrong value.
    """
    seeded = "seed" in methods.get(name).__dataclass_fields__
    return methods.make(name, {**({"seed": seed} if seeded else {}), **options})
