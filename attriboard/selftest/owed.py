"""What every method owes: finite, repeatable scores that depend on nothing but the model and the examples."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch

from ..components import LEVELS
from ..errors import AttriboardError, SkipCell
from ..method import Method, checked, checked_inputs
from .bench import Case, PropertyError, tiny_model, usual_scores
from .properties import register
from .tiny import hooked


@register(universal=True)
def finite_scores(case: Case) -> None:
    """Scores are finite float32 numbers of the shape that the level declares, one for every name."""
    model, examples, level = case.model(), case.examples(), LEVELS[case.level]
    method = case.make()
    method.check_examples(examples)
    try:
        if not level.inputs:
            each = [checked(method.attribute(model, examples, level), method, model, level).values]
        else:
            each = checked_inputs(method.each(model, examples, level), method)
    except SkipCell:
        raise
    except AttriboardError as error:
        raise PropertyError(f"{case}: {error}") from error
    for scores in each:
        if scores.dtype != torch.float32:
            raise PropertyError(f"{case} gives scores of type {scores.dtype}, expected torch.float32.")
    n, names = sum(scores.numel() for scores in each), case.names(model, examples)
    if n != len(names):
        raise PropertyError(f"{case} gives {n} scores for {len(names)} names.")


@register(universal=True)
def deterministic(case: Case) -> None:
    """The same call gives the same bits, of the same instance and of a new one."""
    model, examples, method = case.model(), case.examples(), case.make()
    first = usual_scores(case)
    for what, again in (("the same instance", method), ("a new instance", case.make())):
        second = case.scored_by(again, model, examples)
        if not torch.equal(first, second):
            off = (first - second).abs()
            name = case.names(model, examples)[int(off.argmax())]
            raise PropertyError(
                f"{case} gives {name} another score when {what} is asked again: off by {off.max():.2g}."
            )


@register(universal=True)
def any_batch_size(case: Case) -> None:
    """Scores do not depend on how many examples share a forward pass.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    examples = case.examples()
    model = case.model(batch_size=3)
    scores = case.scores(model, examples)
    case.agree(
        scores, usual_scores(case), case.method.rounding, "a batch size of 3 instead of 16", case.names(model, examples)
    )


@register(universal=True)
def any_padding_side(case: Case) -> None:
    """Scores do not depend on the side that shorter prompts are padded on.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    examples = case.examples()
    model = case.model(padding_side="right")
    scores = case.scores(model, examples)
    case.agree(
        scores,
        usual_scores(case),
        case.method.rounding,
        "padding on the right instead of the left",
        case.names(model, examples),
    )


@register(universal=True)
def any_neighbors(case: Case) -> None:
    """An example's scores do not depend on the examples it is given with; scores of all together, not on their order.

    To the method's rounding, 1e-4 of the largest unless it says otherwise, float32.
    """
    model, examples, level = case.model(), case.examples(), LEVELS[case.level]
    method = case.make()
    method.check_examples(examples)
    if type(method).score_batch is Method.score_batch:
        scores = case.scores(model, examples[::-1])
        case.agree(
            scores,
            usual_scores(case),
            case.method.rounding,
            "the examples in another order",
            case.names(model, examples),
        )
        return
    together = method.each(model, examples, level)
    for i, example in enumerate(examples):
        (alone,) = method.each(model, [example], level)
        what = f"example {i} among {len(examples)} instead of alone"
        case.agree(together[i].flatten().double(), alone.flatten().double(), case.method.rounding, what)


@register(whole=True, universal=True)
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


@register(universal=True)
def model_untouched(case: Case) -> None:
    """Weights, hooks, module attributes, settings and torch's random state are afterwards what they were before."""
    hf = copy.deepcopy(tiny_model(case.family, False))
    model, examples = hooked(hf), case.examples()
    model.run(model.batch(examples))  # transformers hangs hooks of its own into a model at its first pass
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
