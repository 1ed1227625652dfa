"""Self-tests of methods: what a method's definition implies, checked on tiny random models.

Every function registered below is one property. Some are owed by every method; the others are declared by the methods
whose definition implies them (:attr:`Method.properties`). What a property compares with comes from plain passes of the
plain Hugging Face model (:mod:`attriboard.selftest.reference`), in float64 where it is a derivative.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..components import COMPONENTS, LEVELS, Level
from ..errors import AttriboardError, SkipCell, UnknownNameError
from ..interventions import REPLACEMENTS
from ..method import Method, ReplacingMethod, checked, checked_inputs, methods
from ..model import EncodedExample, Model
from .reference import EMBED, Part, Plain, in_out, metric, slope
from .tiny import hooked, in_double, linear_gpt2, tiny_examples, tiny_hf

TEXT = ("gpt2", "llama")
SEEING = ("llava",)
OTHER_ANSWERS = ("w11", "w11", "w12", "w12")
OTHER_FOILS = ("w13", "w14", "w15", "w16")
FOILS = ("w8", "w9", "w10", "w11")
"""For where what is explained has to be a difference of two logits."""


class PropertyError(Exception):
    """A property does not hold; the message is a sentence with the numbers."""


Status = Literal["holds", "fails", "not tested"]


@dataclass(frozen=True)
class Finding:
    """Whether one method has one property.

    Attributes:
        detail: of a failure the sentence with the numbers, of what was not tested the reason.
    """

    method: str
    property: str
    status: Status
    detail: str = ""


# --- what a property is checked on ------------------------------------------------------------------------------------


@functools.cache
def _tiny(family: str, double: bool, seed: int = 0) -> Any:
    """A Hugging Face model that nobody changes."""
    hf = tiny_hf(family, seed)
    return in_double(hf) if double else hf


@functools.cache
def _plain(family: str, double: bool) -> Plain:
    hf = _tiny(family, double)
    return Plain(hf, _processor(hooked(hf)))


def _processor(model: Model) -> Any:
    return None if model.vision is None else model.vision.processor


@functools.cache
def _questions(family: str, double: bool, seed: int, marks: tuple[str, ...], **changes: Any) -> tuple[Any, ...]:
    return tiny_examples(hooked(_tiny(family, double, seed)), marks, **changes)


@dataclass(frozen=True)
class Case:
    """One method at one level on one tiny model."""

    method: type[Method]
    level: str
    family: str

    def __str__(self) -> str:
        return f"{self.method.name} at level {self.level} on the tiny {self.family}"

    @property
    def inputs(self) -> bool:
        return LEVELS[self.level].inputs

    def model(self, double: bool = False, seed: int = 0, **settings: Any) -> Model:
        return hooked(_tiny(self.family, double, seed), **settings)

    def plain(self, double: bool = False) -> Plain:
        return _plain(self.family, double)

    def examples(self, double: bool = False, seed: int = 0, **changes: Any) -> tuple[EncodedExample, ...]:
        """Four questions with every mark that the method needs; ``changes`` as of :func:`tiny_examples`."""
        marks = (need.partition(":")[2] for need in self.method.needs if need.startswith("marks:"))
        return _questions(self.family, double, seed, tuple(sorted(marks)), **changes)

    def scores(self, model: Model, examples: Sequence[EncodedExample], **options: Any) -> Tensor:
        """``[n]`` float64: averaged over examples, or at a level of inputs those of one example after the other."""
        return self.scored_by(self.make(**options), model, examples)

    def make(self, **options: Any) -> Method:
        """The method with its default options; of ``samples``, which only buy precision, it takes few."""
        return self.method(**{**({"samples": 4} if "samples" in _options(self.method) else {}), **options})

    def scored_by(self, method: Method, model: Model, examples: Sequence[EncodedExample]) -> Tensor:
        method.check_examples(examples)
        level: Level = LEVELS[self.level]
        if level.inputs:
            found = checked_inputs(method.each(model, examples, level), method)
            return torch.cat([x.flatten() for x in found]).double()
        return checked(method.attribute(model, examples, level), method, model, level).values.flatten().double()

    def gathered(self, per_example: Sequence[Tensor]) -> Tensor:
        """What is expected of each example, ``[n]``, in the form of :meth:`scores`."""
        return torch.cat(list(per_example)) if self.inputs else torch.stack(list(per_example)).mean(0)

    def names(self, model: Model, examples: Sequence[EncodedExample]) -> list[str]:
        level: Any = LEVELS[self.level]
        if not level.inputs:
            return [str(name) for name in level.names(model)]
        return [f"{name} of example {i}" for i, e in enumerate(examples) for name in level.example_names(model, e)]

    def replacements(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What components are replaced by, and the options that say so: zero where the method has no choice."""
        if issubclass(self.method, ReplacingMethod):
            yield from ((kind, {"replacement": kind}) for kind in REPLACEMENTS)
        else:
            yield "zero", {}

    def agree(self, found: Tensor, expected: Tensor, tolerance: float, what: str, names: Sequence[str] = ()) -> None:
        """Refuses scores that are off by more than ``tolerance`` of the largest expected value.

        Raises:
            PropertyError: names the score that is furthest off.
        """
        if found.shape != expected.shape:
            raise PropertyError(f"{self} has {found.numel()} scores where {expected.numel()} are expected: {what}.")
        off, largest = (found - expected).abs(), float(expected.abs().max())
        worst = int(off.argmax())
        if not float(off[worst]) <= tolerance * largest:
            name = names[worst] if names else f"score {worst}"
            raise PropertyError(
                f"{self} gives {name} {float(found[worst]):.6g} instead of {float(expected[worst]):.6g} ({what}): off "
                f"by {float(off[worst]):.2g}, allowed {tolerance * largest:.2g}."
            )


@functools.cache
def _usual(case: Case) -> Tensor:
    """The scores of the untouched model, 16 examples at most in a batch, padded on the left."""
    return case.scores(case.model(), case.examples())


# --- the registry -----------------------------------------------------------------------------------------------------

Check = Callable[[Case], None]


@dataclass(frozen=True)
class Property:
    """What a definition can imply.

    Attributes:
        check: raises :class:`PropertyError` where the property does not hold.
        levels: at which it can be judged, each by itself; empty if the method is judged as a whole.
        families: the tiny models it is judged on; empty for those that fit the method and the level.
        universal: owed by every method.
    """

    check: Check
    levels: tuple[str, ...]
    families: tuple[str, ...]
    universal: bool

    @property
    def name(self) -> str:
        return self.check.__name__

    @property
    def meaning(self) -> str:
        """The docstring in one line."""
        return " ".join((self.check.__doc__ or "").split())

    def cases(self, method: type[Method]) -> list[Case]:
        levels = [level for level in method.levels if level in self.levels] if self.levels else method.levels[:1]
        found = []
        for level in levels:
            fitting = SEEING if method.modality == "vision" or level == "patches" else TEXT
            found += [Case(method, level, family) for family in self.families or fitting]
        return found


PROPERTIES: dict[str, Property] = {}


def _property(
    *levels: str, whole: bool = False, families: tuple[str, ...] = (), universal: bool = False
) -> Callable[[Check], Check]:
    """Registers a property; without levels it is judged at all of them, or once if ``whole``."""

    def register(check: Check) -> Check:
        judged = () if whole else levels or tuple(LEVELS)
        PROPERTIES[check.__name__] = Property(check, judged, families, universal)
        return check

    return register


def check_names(method: type[Method]) -> None:
    """Refuses a method that declares a property that does not exist, or one that it has anyway.

    Raises:
        UnknownNameError: carries near names.
    """
    declarable = [name for name, one in PROPERTIES.items() if not one.universal]
    for name in method.properties:
        if name not in declarable:
            way_out = "Every method has that one without declaring it." if name in PROPERTIES else ""
            raise UnknownNameError(f"property of method {method.name!r}:", name, declarable, way_out)


# --- owed by every method ---------------------------------------------------------------------------------------------


@_property(universal=True)
def finite_scores(case: Case) -> None:
    """Scores are finite float32 numbers of the shape that the level declares, one for every name."""
    model, examples, level = case.model(), case.examples(), LEVELS[case.level]
    method = case.make()
    method.check_examples(examples)
    try:
        if not level.inputs:
            found = [checked(method.attribute(model, examples, level), method, model, level).values]
        else:
            found = checked_inputs(method.each(model, examples, level), method)
    except SkipCell:
        raise
    except AttriboardError as error:
        raise PropertyError(f"{case}: {error}") from error
    for scores in found:
        if scores.dtype != torch.float32:
            raise PropertyError(f"{case} gives scores of type {scores.dtype}, expected torch.float32.")
    n, names = sum(scores.numel() for scores in found), case.names(model, examples)
    if n != len(names):
        raise PropertyError(f"{case} gives {n} scores for {len(names)} names.")


@_property(universal=True)
def deterministic(case: Case) -> None:
    """The same call gives the same bits, of the same instance and of a new one."""
    model, examples, method = case.model(), case.examples(), case.make()
    first = _usual(case)
    for what, again in (("the same instance", method), ("a new instance", case.make())):
        second = case.scored_by(again, model, examples)
        if not torch.equal(first, second):
            off = (first - second).abs()
            name = case.names(model, examples)[int(off.argmax())]
            raise PropertyError(
                f"{case} gives {name} another score when {what} is asked again: off by {off.max():.2g}."
            )


@_property(universal=True)
def any_batch_size(case: Case) -> None:
    """Scores do not depend on how many examples share a forward pass.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    examples = case.examples()
    model = case.model(batch_size=3)
    found = case.scores(model, examples)
    case.agree(
        found, _usual(case), case.method.rounding, "a batch size of 3 instead of 16", case.names(model, examples)
    )


@_property(universal=True)
def any_padding_side(case: Case) -> None:
    """Scores do not depend on the side that shorter prompts are padded on.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    examples = case.examples()
    model = case.model(padding_side="right")
    found = case.scores(model, examples)
    case.agree(
        found,
        _usual(case),
        case.method.rounding,
        "padding on the right instead of the left",
        case.names(model, examples),
    )


@_property(universal=True)
def any_neighbors(case: Case) -> None:
    """An example's scores do not depend on the examples it is given with; scores of all together, not on their order.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    model, examples, level = case.model(), case.examples(), LEVELS[case.level]
    method = case.make()
    method.check_examples(examples)
    if type(method).score_batch is Method.score_batch:
        found = case.scores(model, examples[::-1])
        case.agree(
            found, _usual(case), case.method.rounding, "the examples in another order", case.names(model, examples)
        )
        return
    together = method.each(model, examples, level)
    for i, example in enumerate(examples):
        (alone,) = method.each(model, [example], level)
        what = f"example {i} among {len(examples)} instead of alone"
        case.agree(together[i].flatten().double(), alone.flatten().double(), case.method.rounding, what)


@_property(whole=True, universal=True)
def options_checked(case: Case) -> None:
    """Every option refuses a value of a kind that no option has, when the method is made."""
    for option in fields(case.method):
        if not option.init:
            continue
        try:
            case.method(**{option.name: object()})
        except (AttriboardError, TypeError, ValueError):
            continue
        raise PropertyError(
            f"option {option.name!r} of {case.method.name} takes any value: an object of no use was not refused when "
            f"the method was made."
        )


@_property(universal=True)
def model_untouched(case: Case) -> None:
    """Weights, hooks, module attributes, settings and torch's random state are afterwards what they were before."""
    hf = copy.deepcopy(_tiny(case.family, False))
    model, examples = hooked(hf), case.examples()
    before = _state(hf)
    case.scores(model, examples)
    for what, value in _state(hf).items():
        if value != before[what]:
            numbers = f" from {before[what]} to {value}" if isinstance(value, int) else ""
            raise PropertyError(f"{case} changes the {what}{numbers}.")


def _state(hf: Any) -> dict[str, Any]:
    modules = dict(hf.named_modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = {f"weight {name}": w.detach().numpy().tobytes() for name, w in hf.state_dict().items()}
    return {
        **tensors,
        "number of hooks": sum(len(getattr(module, kind)) for module in modules.values() for kind in hooks),
        "number of weights that take gradients": sum(w.requires_grad for w in hf.parameters()),
        "attributes of modules": {
            name: {
                key: value if isinstance(value, (bool, int, float, str)) else None
                for key, value in vars(module).items()
            }
            for name, module in modules.items()
        },
        "training mode": {name: module.training for name, module in modules.items()},
        "kind of attention": {
            name: m.config._attn_implementation for name, m in modules.items() if hasattr(m, "config")
        },
        "state of torch's random generator": torch.get_rng_state().tolist(),
        "recording of gradients": torch.is_grad_enabled(),
    }


# --- derivatives ------------------------------------------------------------------------------------------------------


@_property("heads", "neurons", "attn_neurons", "nodes", "patches", "tokens")
def finite_differences(case: Case) -> None:
    """A score is minus the metric's derivative as its component alone moves from its activation to its replacement.

    ``-d/dt m(a + t (r - a))`` at ``t = 0``; the replacement ``r`` is the method's (all three kinds), or zero if it has
    none. Central five-point differences in float64, to 1e-5 of the largest.
    """
    for kind, options in case.replacements():
        _along(case, kind, options)


@_property("heads", "neurons", "attn_neurons", "nodes")
def path_finite_differences(case: Case) -> None:
    """As ``finite_differences``, averaged over the path of the embeddings from the corrupted to the clean prompt.

    Step ``k = 1 .. steps`` (two of them) puts every embedding at ``e' + k / steps (e - e')``; ``e'`` is the
    counterfactual's, or zero where the replacement is not the counterfactual. The direction ``r - a`` is that of the
    clean prompt. FFN layers among the nodes are judged at their output, like every other component.
    """
    for kind, options in case.replacements():
        _along(case, kind, options, steps=2)


def _along(case: Case, kind: str, options: dict[str, Any], steps: int = 0) -> None:
    """Compares with slopes on the clean prompt, or with their mean over so many steps from the corrupted one."""
    model, plain, examples = case.model(double=True), case.plain(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        parts, directions = plain.list_parts(case.level, e), plain.directions(e, case.level, kind, examples)
        clean = plain.embeddings(e)
        corrupted = plain.embeddings(e, counterfactual=True) if kind == "counterfactual" else torch.zeros_like(clean)
        points = [corrupted + k / steps * (clean - corrupted) for k in range(1, steps + 1)] or [clean]
        slopes = [_slope_of_each(plain, e, parts, directions, point) for point in points]
        expected.append(-torch.stack(slopes).mean(0))
    what = f"minus the slope towards the {kind} replacement" + (f", averaged over {steps} steps" if steps else "")
    found = case.scores(model, examples, **options, **({"steps": steps} if steps else {}))
    case.agree(found, case.gathered(expected), 1e-5, what, case.names(model, examples))


def _slope_of_each(
    plain: Plain, e: EncodedExample, parts: Sequence[Part], directions: dict[Any, Tensor], point: Tensor
) -> Tensor:
    return slope(lambda t: plain.one_at_a_time(e, parts, directions, lambda x: metric(x, e), t, point))


@_property("patches", "tokens")
def gradient_norm(case: Case) -> None:
    """A score is the Euclidean length of the metric's gradient at the position's embedding.

    One central difference for every coordinate, in float64, to 1e-5 of the largest.
    """
    model, plain, examples = case.model(double=True), case.plain(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        clean = plain.embeddings(e)
        width = clean.shape[-1]
        parts = [
            replace(part, columns=slice(i, i + 1)) for part in plain.list_parts(case.level, e) for i in range(width)
        ]
        slopes = _slope_of_each(plain, e, parts, {EMBED: torch.ones_like(clean)}, clean)
        expected.append(slopes.view(-1, width).norm(dim=1))
    found = case.scores(model, examples)
    what = "the length of the gradient by finite differences"
    case.agree(found, case.gathered(expected), 1e-5, what, case.names(model, examples))


@_property("heads", "neurons", families=SEEING)
def picture_finite_differences(case: Case) -> None:
    """A score is minus the derivative of the answer's logit as the component moves to zero where the picture stands.

    At the picture's positions alone; central differences in float64, to 1e-5 of the largest.
    """
    model, plain, examples = case.model(double=True), case.plain(double=True), case.examples(double=True)[-2:]
    expected = []
    for e in examples:
        directions = plain.directions(e, case.level, "zero", examples)
        words = plain.positions("tokens", e)
        for direction in directions.values():
            direction[words] = 0
        parts = plain.list_parts(case.level, e)

        def moved(t: float, e: EncodedExample = e, parts: Any = parts, directions: Any = directions) -> Tensor:
            return plain.one_at_a_time(e, parts, directions, lambda logits: logits[e.answer], t)

        expected.append(-slope(moved))
    found = case.scores(model, examples)
    what = "minus the slope of the answer's logit towards zero at the picture"
    case.agree(found, case.gathered(expected), 1e-5, what, case.names(model, examples))


# --- sums -------------------------------------------------------------------------------------------------------------


@_property("heads", "neurons", "attn_neurons", "patches", "tokens")
def completeness(case: Case) -> None:
    """Scores add up to f(input) - f(baseline): over a layer's components, or over an example's positions.

    The baseline has all of them replaced in the method's default way. A method with ``steps`` is a midpoint sum of
    ``f'``, whose error is at most ``integral |f'''| / (8 steps^2)`` (Peano): it is judged at 4 and at 32 steps within
    that bound, with ``f'''`` from third differences of 129 plain passes along the path. Others are exact. For rounding
    1e-5 is added, in float64.
    """
    model, plain, examples = case.model(double=True), case.plain(double=True), case.examples(double=True)[-2:]
    kind = getattr(case.make(), "replacement", "zero")
    counts: list[dict[str, Any]] = [{"steps": n} for n in (4, 32)] if "steps" in _options(case.method) else [{}]
    for e in examples:
        parts, directions = plain.list_parts(case.level, e), plain.directions(e, case.level, kind, [e])
        group = [0 if case.inputs else part.site[1] for part in parts]
        paths = [_path(plain, e, [p for p, g in zip(parts, group) if g == one], directions) for one in sorted({*group})]
        lost = torch.stack([path[0] - path[-1] for path in paths])
        bend = torch.stack([path.diff(n=3).abs().mean() * (len(path) - 1) ** 3 for path in paths])
        for options in counts:
            found = case.scores(model, [e], **options)
            total = torch.zeros_like(lost).index_add_(0, torch.tensor(group), found)
            allowed = (bend / (8 * options["steps"] ** 2) if options else torch.zeros_like(bend)) + 1e-5
            off = (total - lost).abs()
            worst = int((off / allowed).argmax())
            if not bool(off[worst] <= allowed[worst]):
                raise PropertyError(
                    f"{case}: the scores of {'an example' if case.inputs else f'layer {worst}'} add up to "
                    f"{float(total[worst]):.6g}, but f(input) - f(baseline) is {float(lost[worst]):.6g}"
                    f"{f' ({options})' if options else ''}: off by {float(off[worst]):.2g}, allowed "
                    f"{float(allowed[worst]):.2g}."
                )


def _path(plain: Plain, e: EncodedExample, parts: Sequence[Part], directions: dict[Any, Tensor]) -> Tensor:
    """``[129]``: the metric while all ``parts`` move together from their value to their replacement."""
    shares = torch.linspace(0, 1, 129, dtype=torch.float64)[:, None, None]
    moves: dict[Any, Tensor] = {}
    for part in parts:
        move = moves.setdefault(part.site, torch.zeros_like(directions[part.site]))
        move[part.rows, part.columns] = directions[part.site][part.rows, part.columns]
    logits, _ = plain.run(plain.embeddings(e), {site: shares * move for site, move in moves.items()})
    return torch.stack([metric(row, e) for row in logits])


def _options(method: type[Method]) -> set[str]:
    return {option.name for option in fields(method) if option.init}


@_property(whole=True, families=("llama",))
def telescoping(case: Case) -> None:
    """Log-probability increases add up along the residual stream to log p(answer) less that of the bare embedding.

    ``sum over layers of I(attention; its input) + I(FFN; the residual after attention) = log p(x^L) - log p(x^0)``, the
    final norm frozen. On a Llama whose layers have one head and one neuron each, which are then the whole sub-layer (of
    the head's two dimensions only one writes, so attention neurons add up too). To 1e-4 of the sum, float32.
    """
    sizes = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "intermediate_size": 1}
    plain = Plain(tiny_hf("llama", **sizes))
    for layer in range(plain.n_layers):
        in_out(plain.part("out", layer))[1] = 0
    model, examples = hooked(plain.hf), case.examples()
    expected = []
    for e in examples:
        embeddings = plain.embeddings(e)
        last_site = ("resid_post", plain.n_layers - 1)
        logits, seen = plain.run(embeddings, read=[last_site])
        bare = plain.frozen_logits(embeddings[-1], seen[last_site][0, -1])
        expected.append(torch.log_softmax(logits[0], -1)[e.answer] - torch.log_softmax(bare, -1)[e.answer])
    total = float(torch.stack(expected).double().mean())
    attention = [level for level in ("heads", "attn_neurons") if level in case.method.levels]
    if not attention or "neurons" not in case.method.levels:
        raise PropertyError(f"{case.method.name} declares telescoping and scores no attention or no neurons.")
    for level in attention:
        found = sum(float(replace(case, level=one).scores(model, examples).sum()) for one in (level, "neurons"))
        if not abs(found - total) <= 1e-4 * abs(total):
            raise PropertyError(
                f"{case.method.name}: {level} and neurons of a model with one of each add up to {found:.6g}, but log p "
                f"rises by {total:.6g} along the residual stream: off by {abs(found - total):.2g}, allowed "
                f"{1e-4 * abs(total):.2g}."
            )


@_property(whole=True, families=TEXT)
def shares_add_up(case: Case) -> None:
    """The shares of all nodes (of all heads and neurons), and of what no component writes, are the logit difference.

    What no component writes is the embedding and the biases: the last residual less all outputs, made from weights and
    activations read in a plain pass. To 1e-4 of the largest share, float32.
    """
    model, plain, examples = case.model(), case.plain(), case.examples(foils=FOILS)
    last_site = ("resid_post", plain.n_layers - 1)
    sites = [(site, layer) for layer in range(plain.n_layers) for site in ("z", "post", "mlp_out")]
    for levels in (("nodes",), ("heads", "neurons")):
        if not set(levels) <= set(case.method.levels):
            continue
        for e in examples:
            logits, seen = plain.run(plain.embeddings(e), read=[*sites, last_site])
            at = {site: x[0, -1] for site, x in seen.items()}
            rest = at[last_site].clone()
            for layer in range(plain.n_layers):
                rest -= at["z", layer] @ in_out(plain.part("out", layer))
                down = at["post", layer] @ in_out(plain.part("down", layer))
                rest -= at["mlp_out", layer] if levels == ("nodes",) else down
            unwritten = float(metric(plain.frozen_logits(rest, at[last_site]), e))
            scores = torch.cat([replace(case, level=level).scores(model, [e]) for level in levels])
            found, expected = float(scores.sum()), float(metric(logits[0], e)) - unwritten
            allowed = 1e-4 * float(scores.abs().max())
            if not abs(found - expected) <= allowed:
                raise PropertyError(
                    f"{case.method.name} on the tiny {case.family}: {' and '.join(levels)} add up to {found:.6g}, but "
                    f"they write {expected:.6g} of the logit difference: off by {abs(found - expected):.2g}, allowed "
                    f"{allowed:.2g}."
                )


@_property(whole=True, families=(*TEXT, *SEEING))
def sums_to_one(case: Case) -> None:
    """An example's scores, over all positions that the method can score, are never negative and add up to 1.

    Within 1e-5, float32; tokens of a text, tokens and patches of a text with a picture.
    """
    levels = ("tokens",) if case.family in TEXT else ("tokens", "patches")
    if not set(levels) <= set(case.method.levels):
        raise SkipCell(f"{case.method.name} does not score {' and '.join(levels)}.")
    for i, e in enumerate(case.examples()):
        scores = torch.cat([replace(case, level=level).scores(case.model(), [e]) for level in levels])
        if float(scores.min()) < 0 or not abs(float(scores.sum()) - 1) <= 1e-5:
            raise PropertyError(
                f"{case.method.name} on the tiny {case.family}: the scores of example {i} add up to "
                f"{float(scores.sum()):.6g}, the smallest is {float(scores.min()):.2g}; they are shares of 1."
            )


@_property(*COMPONENTS)
def adds_over_marks(case: Case) -> None:
    """The scores from several marked places are the sums of the scores from each alone (1e-4 of the largest)."""
    model, examples = case.model(), case.examples()
    (mark,) = (need.partition(":")[2] for need in case.method.needs if need.startswith("marks:"))
    alone = []
    for k in range(2):
        one = [replace(e, example=replace(e.example, marks={mark: e.example.marks[mark][k : k + 1]})) for e in examples]
        alone.append(case.scores(model, one))
    found = case.scores(model, examples)
    what = f"the sum over the places marked {mark!r}"
    case.agree(found, alone[0] + alone[1], 1e-4, what, case.names(model, examples))


# --- equality with literal passes -------------------------------------------------------------------------------------


@_property("heads", "neurons", "attn_neurons", "nodes", "patches", "tokens")
def exact_effect(case: Case) -> None:
    """A score is the metric lost in a pass of its own in which that component alone is replaced, at all positions.

    For each kind of replacement; in float64, to 1e-5 of the largest.
    """
    _effects(case, case.model(double=True), case.plain(double=True), case.examples(double=True)[-2:])


@_property("heads", "neurons", "attn_neurons", "nodes", "tokens", families=("gpt2",))
def exact_on_linear_model(case: Case) -> None:
    """Where the model is linear, the estimate is the exact effect of replacing the component (1e-5, float64).

    A GPT-2 with uniform attention (query and key weights zero), the identity for an activation function and norms that
    divide by nothing: its logits are an affine function of every activation. Logits are subtracted, since log p is not.
    """
    hf = in_double(linear_gpt2())
    model = hooked(hf)
    _effects(case, model, Plain(hf), case.examples(double=True, foils=FOILS)[:2])


def _effects(case: Case, model: Model, plain: Plain, examples: Sequence[EncodedExample]) -> None:
    for kind, options in case.replacements():
        expected = []
        for e in examples:
            parts, directions = plain.list_parts(case.level, e), plain.directions(e, case.level, kind, examples)
            clean = metric(plain.run(plain.embeddings(e))[0][0], e)
            expected.append(clean - plain.one_at_a_time(e, parts, directions, lambda x, e=e: metric(x, e)))  # type: ignore[misc]
        found = case.scores(model, examples, **options)
        what = f"the metric lost with the {kind} replacement"
        case.agree(found, case.gathered(expected), 1e-5, what, case.names(model, examples))


# --- zero where nothing can act ---------------------------------------------------------------------------------------


@_property()
def zero_for_idle(case: Case) -> None:
    """Components that write nothing score zero, and so do positions that no other position reads.

    One head (two neurons) of the first layer and all of the second have zero output weights; FFN layers a zero bias
    too. At levels of inputs no head writes anything, so nothing but the last position reaches the answer. Zero means
    1e-5 of the untouched model's largest score, float32.
    """
    plain = Plain(_tiny(case.family, False), _processor(case.model()))
    examples = case.examples()
    if case.inputs:
        for layer in range(plain.n_layers):
            in_out(plain.part("out", layer)).zero_()
        last = [len(e.tokens) - 1 for e in examples]
        idle = [at != end for e, end in zip(examples, last) for at in plain.positions(case.level, e)]
        _zero(case, hooked(plain.hf), torch.tensor(idle), "no other position reads")
        return
    role = "down" if case.level == "neurons" else "out"
    silent = [2, 5] if case.level == "neurons" else list(range(plain.d_head, 2 * plain.d_head))
    in_out(plain.part(role, 0))[silent] = 0
    in_out(plain.part(role, 1)).zero_()
    width = LEVELS[case.level].size(case.model()) // plain.n_layers
    mask = torch.zeros(plain.n_layers, width, dtype=torch.bool)
    mask[0, silent if case.level in ("neurons", "attn_neurons") else 1] = True
    mask[1] = True
    if case.level == "nodes":
        down = plain.part("down", 1)
        down.weight.zero_()
        if down.bias is not None:
            down.bias.zero_()
    _zero(case, hooked(plain.hf), mask.flatten(), "writes nothing")


@_property(*COMPONENTS)
def zero_for_dead(case: Case) -> None:
    """Components whose activation is zero on every input score zero.

    Neurons of the first two layers without input weights; heads of the first layer whose value weights are zero. Zero
    means 1e-5 of the untouched model's largest score, float32.
    """
    plain = Plain(_tiny(case.family, False), _processor(case.model()))
    width = LEVELS[case.level].size(case.model()) // plain.n_layers
    mask = torch.zeros(plain.n_layers, width, dtype=torch.bool)
    if case.level == "neurons":
        for layer, dead in ((0, [1, 4]), (1, [0])):
            _cut(plain.part("reads", layer), dead)
            mask[layer, dead] = True
    else:
        values = plain.part("values", 0)
        fused = plain.config.model_type == "gpt2"  # queries, keys and values in one projection
        start = 2 * plain.n_heads * plain.d_head if fused else 0
        _cut(values, list(range(start, start + plain.d_head)))
        heads = 1 if fused else plain.n_heads // plain.config.num_key_value_heads
        mask[0, : heads * (plain.d_head if case.level == "attn_neurons" else 1)] = True
    _zero(case, hooked(plain.hf), mask.flatten(), "is never active")


def _cut(projection: Any, outputs: list[int]) -> None:
    in_out(projection)[:, outputs] = 0
    if projection.bias is not None:
        projection.bias[outputs] = 0


def _zero(case: Case, model: Model, mask: Tensor, why: str) -> None:
    examples = case.examples()
    largest = float(_usual(case).abs().max())
    found = case.scores(model, examples).abs() * mask
    worst = int(found.argmax())
    if not float(found[worst]) <= 1e-5 * largest:
        raise PropertyError(
            f"{case} gives {case.names(model, examples)[worst]}, which {why}, the score {float(found[worst]):.6g}, "
            f"expected 0 (allowed {1e-5 * largest:.2g})."
        )


# --- what scores depend on --------------------------------------------------------------------------------------------


@_property()
def uses_answer(case: Case) -> None:
    """Scores change when answers and foils change, by more than 1e-3 of the largest."""
    before = _usual(case)
    after = case.scores(case.model(), case.examples(answers=OTHER_ANSWERS, foils=OTHER_FOILS))
    off, largest = float((after - before).abs().max()), float(before.abs().max())
    if not off > 1e-3 * largest:
        raise PropertyError(
            f"{case} ignores the answer: with other answers and foils no score moves by more than {off:.2g} "
            f"(largest score {largest:.2g})."
        )


@_property()
def ignores_answer(case: Case) -> None:
    """Scores are the same, bit for bit, when answers and foils change."""
    _same(case, "other answers and foils", answers=OTHER_ANSWERS, foils=OTHER_FOILS)


@_property()
def ignores_foil(case: Case) -> None:
    """Scores are the same, bit for bit, when foils change or are added."""
    _same(case, "other foils", foils=OTHER_FOILS)


def _same(case: Case, what: str, **changes: Any) -> None:
    model, examples = case.model(), case.examples()
    after = case.scores(model, case.examples(**changes))
    case.agree(after, _usual(case), 0.0, f"with {what}, which play no part", case.names(model, examples))


@_property()
def ignores_weights(case: Case) -> None:
    """Scores are the same, bit for bit, for a model of the same shape with other weights."""
    examples = case.examples()
    model = case.model()
    other = case.scores(case.model(seed=1), case.examples(seed=1))
    what = "with other weights, which play no part"
    case.agree(other, _usual(case), 0.0, what, case.names(model, examples))


@_property(*COMPONENTS)
def symmetric_in_subsets(case: Case) -> None:
    """Scores stay when the subsets of the task exchange their names (1e-6 of the largest)."""
    model, examples = case.model(), case.examples()
    found = case.scores(model, case.examples(subsets=("b", "b", "a", "a")))
    what = "with the subsets' names exchanged"
    case.agree(found, _usual(case), 1e-6, what, case.names(model, examples))


@_property(*COMPONENTS)
def scales_with_output(case: Case) -> None:
    """Output weights (and biases) of the last layer times 3 make its components' scores 3 times as large.

    Those of attention and of the FFN in turn; to 1e-4 of the largest, float32.
    """
    for found, before in _tripled(case):
        case.agree(found, 3 * before, 1e-4, "three times the score before its output weights were tripled")


@_property(*COMPONENTS)
def ignores_output_scale(case: Case) -> None:
    """Output weights (and biases) of the last layer times 3 leave its components' scores as they are.

    Those of attention and of the FFN in turn; to 1e-4 of the largest, float32.
    """
    for found, before in _tripled(case):
        case.agree(found, before, 1e-4, "the score before its output weights were tripled")


def _tripled(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores in the last layer of those whose output weights were tripled, and before."""
    examples, n_heads = case.examples(), case.model().n_heads
    whole: dict[str, dict[str, slice]] = {
        "neurons": {"down": slice(None)},
        "nodes": {"out": slice(n_heads), "down": slice(n_heads, None)},
    }
    for role, own in whole.get(case.level, {"out": slice(None)}).items():
        plain = Plain(_tiny(case.family, False), _processor(case.model()))
        for weight in plain.part(role, plain.n_layers - 1).parameters():
            weight.mul_(3)
        both = (case.scores(hooked(plain.hf), examples), _usual(case))
        after, before = (scores.view(plain.n_layers, -1)[-1, own] for scores in both)
        yield after, before


# --- controls ---------------------------------------------------------------------------------------------------------


@_property()
def standard_normal(case: Case) -> None:
    """Scores of many seeds, put together, are a sample of the standard normal distribution.

    Kolmogorov-Smirnov over 200 seeds, p above 0.001; the seeds are fixed, so that the outcome is too.
    """
    from scipy.stats import kstest  # takes half a second to import, and only this property needs it

    model, examples = case.model(), case.examples()
    drawn = torch.cat([case.scores(model, examples, seed=seed) for seed in range(200)])
    p = float(kstest(drawn.numpy(), "norm").pvalue)
    if not p > 1e-3:
        raise PropertyError(
            f"{case}: {len(drawn)} scores of 200 seeds have mean {float(drawn.mean()):.3g} and standard deviation "
            f"{float(drawn.std()):.3g}; that they are standard normal has p = {p:.2g}, expected above 0.001."
        )


@_property(*COMPONENTS)
def permutes_reference(case: Case) -> None:
    """Within each layer the scores are those of the method called ``reference``, in an order that the seed decides.

    Bit for bit.
    """
    model, examples = case.model(), case.examples()
    reference: Any = case.make()
    layers = LEVELS[case.level].shape(model)[0]
    truth = replace(case, method=methods.get(reference.reference)).scores(model, examples).view(layers, -1)
    found = [case.scores(model, examples, seed=seed).view(layers, -1) for seed in range(4)]
    for one in found:
        what = f"the scores of {reference.reference} in each layer, sorted"
        case.agree(one.sort(1).values.flatten(), truth.sort(1).values.flatten(), 0.0, what)
    if all(torch.equal(one, truth) for one in found) or all(torch.equal(one, found[0]) for one in found):
        raise PropertyError(f"{case} gives four seeds the same order, or that of {reference.reference}.")


@_property("patches")
def mirror_symmetric(case: Case) -> None:
    """A patch and its mirror images on the other side of the grid's centre have the same score (1e-6)."""
    model, examples = case.model(), case.examples()
    assert model.vision is not None
    maps = _usual(case).view(len(examples), *model.vision.grid)
    for axis, name in ((1, "upside down"), (2, "left to right")):
        case.agree(maps.flip(axis).flatten(), maps.flatten(), 1e-6, f"the grid turned {name}")


# --- asking -----------------------------------------------------------------------------------------------------------


def examine(method: type[Method]) -> list[Finding]:
    """Judges the properties that every method owes, and those that this one declares.

    What a method that changes models has left behind is not what the next one is judged on.
    """
    owed = [one for one in PROPERTIES.values() if one.universal]
    findings = [_judge(method, one) for one in (*owed, *(PROPERTIES[name] for name in method.properties))]
    if any(found.property == "model_untouched" and found.status == "fails" for found in findings):
        for made in (_tiny, _plain, _questions, _usual):
            made.cache_clear()
    return findings


def _judge(method: type[Method], one: Property) -> Finding:
    finding = functools.partial(Finding, method.name, one.name)
    cases = one.cases(method)
    if not cases:
        return finding(
            "fails",
            f"{method.name} declares {one.name}, which speaks of {', '.join(one.levels)}, and scores "
            f"{', '.join(method.levels)}.",
        )
    tested, reasons = 0, []
    for case in cases:
        try:
            one.check(case)
            tested += 1
        except SkipCell as reason:
            reasons.append(str(reason))
        except PropertyError as failure:
            return finding("fails", str(failure))
        except Exception as error:  # whatever a method raises is its failure, not the end of the others' tests
            return finding("fails", f"{case} raised {type(error).__name__}: {error}")
    return finding("holds") if tested else finding("not tested", reasons[0])


def page() -> str:
    """``docs/selftests.md``: every property in words, and which methods declare it."""
    lines = [
        "# Self-tests of methods",
        "",
        "Made from `attriboard/selftest.py` by `make docs`.",
        "",
        "`attriboard selftest [METHOD ...] [--include PATH] [--json]` checks, on tiny random models that are built on",
        "the spot (a GPT-2, a Llama with grouped queries, a LLaVA), what a method's definition implies. Exit code 0:",
        "every property holds; 1: one does not, and the sentence has the numbers; 2: a name is not known. The judges",
        "are plain passes of the plain Hugging Face model, one unpadded prompt at a time, which share no code with the",
        "methods or with the hooks that these use.",
        "",
        "## Owed by every method",
        "",
        "| property | what it says |",
        "|---|---|",
        *(f"| `{one.name}` | {_cell(one.meaning)} |" for one in PROPERTIES.values() if one.universal),
        "",
        "## Declared by a method whose definition implies it",
        "",
        "| property | what it says | levels | declared by |",
        "|---|---|---|---|",
    ]
    for one in PROPERTIES.values():
        if not one.universal:
            levels = "all" if one.levels == tuple(LEVELS) else ", ".join(one.levels) or "the method as a whole"
            declaring = ", ".join(f"`{m.name}`" for m in methods if one.name in m.properties)
            lines.append(f"| `{one.name}` | {_cell(one.meaning)} | {levels} | {declaring} |")
    lines += [
        "",
        "## Declaring properties",
        "",
        "A method lists what its definition implies in a class attribute; a name that does not exist is refused when",
        "the file is read, with the nearest names:",
        "",
        "```python",
        "@dataclass",
        "class MyMethod(ReplacingMethod):",
        '    name = "my_method"',
        '    levels = ("heads", "neurons")',
        '    properties = ("finite_differences", "exact_on_linear_model", "zero_for_idle", "uses_answer")',
        "```",
        "",
        "Then `attriboard selftest my_method --include my_method.py`. A declared property is judged at every level",
        "that the method and the property have in common, and fails if there is none. A property of a new kind is one",
        "function in `attriboard/selftest.py` whose docstring states the mathematics and the tolerance.",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
