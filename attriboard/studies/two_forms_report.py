"""One question asked in two forms, as Markdown: every number and sentence comes from the stored measurements alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ..stats.intervals import Array, bootstrap_interval
from .two_forms import DIVISIONS, REGIONS, TOP, Asked, Pair, TwoForms, overlap, resampled_mean, spearman, split_half

KS = (10, 20)
"""Sizes at which top heads are compared."""

Interval = tuple[float, float] | None
Statistic = Callable[[NDArray[np.intp]], Array]


def render_report(c: TwoForms) -> str:
    """The report, in Markdown."""
    a, b = c.tasks
    lines = [
        f"# {a} and {b}: the same questions asked in two ways",
        "",
        f"Model {c.models[0].name} ({c.models[0].source}); seed {c.seed}, {c.limit} questions drawn from each task. "
        f"Intervals are 95 % bootstrap intervals over questions, the same resamples in both conditions.",
        "",
        "| model | task | asked | answered right |",
        "| --- | --- | --- | --- |",
        *(_asked_row(asked) for asked in c.asked),
        "",
        "## Which heads",
        "",
    ]
    for method, pair in c.heads.items():
        lines += _heads(f"{method}: {a} and {b} on {c.models[0].name}", pair, a, b)
    lines += ["## What patches say", "", *_views(c)]
    if len(c.models) > 1:
        one, other = c.models[0].name, c.models[1].name
        lines += [f"## {one} and {other} on {b}", "", *_accuracy(c), ""]
        for method, pair in c.heads_against.items():
            lines += _heads(f"{method}: {one} and {other} on {b}", pair, one, other)
            lines += [*_ranks(c, pair, one, other), ""]
    provenance = ", ".join(f"{key} {value}" for key, value in c.provenance.items() if value is not None)
    return "\n".join([*lines, f"Made by: {provenance}."]) + "\n"


# --- sentences chosen by numbers --------------------------------------------------------------------------------------


def against(interval: Interval, low: float, high: float, above: str, below: str, neither: str) -> str:
    """One of three sentences: the interval lies above ``high``, below ``low``, or neither (or is undefined)."""
    if interval is not None and interval[0] > high:
        return above
    if interval is not None and interval[1] < low:
        return below
    return neither


def number(value: float, interval: Interval = None, with_interval: bool = True) -> str:
    """``0.62 [0.50, 0.71]``; a dash for a value that is not defined."""
    if not np.isfinite(value):
        return "–"
    if not with_interval:
        return _two(value)
    return f"{_two(value)} [{_two(interval[0])}, {_two(interval[1])}]" if interval is not None else f"{_two(value)} [–]"


def _two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # adding zero leaves no "-0.00"


def measured(n: int, statistic: Statistic) -> tuple[float, Interval]:
    """A statistic of all ``n`` questions, and its interval."""
    return float(statistic(np.arange(n))), bootstrap_interval(n, statistic)


# --- heads ------------------------------------------------------------------------------------------------------------


def _asked_row(asked: Asked) -> str:
    right = np.asarray([answer.right for answer in asked.answers], dtype=float)
    share, interval = measured(len(right), lambda index: right[index].mean(-1))
    return f"| {asked.model} | {asked.task} | {len(right)} | {number(share, interval)} |"


def _means(pair: Pair, index: NDArray[np.intp]) -> tuple[Array, Array]:
    return resampled_mean(np.asarray(pair.first), index), resampled_mean(np.asarray(pair.second), index)


def _heads(title: str, pair: Pair, first: str, second: str) -> list[str]:
    n_items, n = len(pair.twins), len(pair.first[0])
    rho, interval = measured(n_items, lambda index: spearman(*_means(pair, index)))
    unrelated = scipy.stats.norm.ppf(0.975) / np.sqrt(n - 1)
    verdict = against(
        interval,
        -unrelated,
        unrelated,
        f"{first} and {second} rank heads alike, beyond chance.",
        f"{first} and {second} rank heads in opposite order, beyond chance.",
        f"no common order of heads can be told from chance in {first} and {second}.",
    )
    halves = split_half(np.asarray(pair.first), np.asarray(pair.second))
    lines = [
        f"### {title}",
        "",
        f"{n_items} questions answered right in both; {n} heads, ranked by their mean score. Rank correlation "
        f"(Spearman) {number(rho, interval)}: {verdict} (Of two unrelated orders of {n} heads it lies within "
        f"±{_two(unrelated)} 19 times in 20.)",
        "",
        f"What sampling alone allows, as the rank correlation between two halves of the questions ({n_items // 2} "
        f"each; median and middle 95 % of {DIVISIONS} random divisions):",
        "",
        "| one half in | other half in | rank correlation |",
        "| --- | --- | --- |",
    ]
    spread: dict[str, Interval] = {}
    for name, (one, other) in {
        "first": (first, first),
        "second": (second, second),
        "between": (first, second),
    }.items():
        low, middle, high = np.quantile(halves[name], [0.025, 0.5, 0.975])
        spread[name] = (float(low), float(high)) if np.isfinite(low) else None
        lines.append(f"| {one} | {other} | {number(float(middle), spread[name])} |")
    lines += ["", _ceiling(halves, spread, first, second), ""]
    lines += ["| top k | shared | of unrelated orders: mean (middle 95 %) |", "| --- | --- | --- |"]
    sentences = []
    for k in (k for k in KS if k < n):
        share, low_high = measured(n_items, lambda index, k=k: overlap(*_means(pair, index), k))  # type: ignore[misc]
        low, high = scipy.stats.hypergeom.ppf([0.025, 0.975], n, k, k) / k
        lines.append(f"| {k} | {number(share, low_high)} | {_two(k / n)} ({_two(low)} to {_two(high)}) |")
        sentences.append(
            against(
                low_high,
                low,
                high,
                f"The top {k} share more heads than chance would give them.",
                f"The top {k} share fewer heads than chance would give them.",
                f"Whether the top {k} share more heads than by chance is open.",
            )
        )
    return [*lines, "", " ".join(sentences), ""]


def _ceiling(halves: dict[str, Array], spread: dict[str, Interval], first: str, second: str) -> str:
    between = float(np.median(halves["between"]))
    within = [spread["first"], spread["second"]]
    if not np.isfinite(between) or any(interval is None for interval in within):
        return "Where a correlation is not defined (equal scores), nothing can be sentences of this."
    if between < min(interval[0] for interval in within if interval is not None):
        return f"{first} and {second} agree less than halves of either do with each other."
    return f"That {first} and {second} agree less than halves of either do with each other cannot be told."


def _ranks(c: TwoForms, pair: Pair, one: str, other: str) -> list[str]:
    """Where the best heads of the first condition stand in the second."""
    x, y = np.asarray(pair.first).mean(0), np.asarray(pair.second).mean(0)
    place = np.empty(len(y), dtype=int)
    place[np.argsort(-y, kind="stable")] = np.arange(1, len(y) + 1)
    best = np.argsort(-x, kind="stable")[: KS[0]]
    unmoved = (len(best) + 1) / 2
    named = ", ".join(f"a{i // c.shape[1]}.h{i % c.shape[1]} ({place[i]})" for i in best)
    return [
        f"The best heads of {one}, and in brackets their rank in {other} among {len(y)}: {named}. Median rank "
        f"{np.median(place[best]):g}; the same heads in the same order would have {unmoved:g}, a "
        f"random order {(len(y) + 1) / 2:g} on average."
    ]


def _accuracy(c: TwoForms) -> list[str]:
    """Answers right in both models, on the questions asked of both."""
    one, other = ({answer.twin: answer.right for answer in asked.answers} for asked in c.asked[1:3])
    twins = [twin for twin in one if twin in other]
    gap = np.asarray([float(one[t]) - float(other[t]) for t in twins])
    both = sum(one[t] and other[t] for t in twins)
    value, interval = measured(len(twins), lambda index: gap[index].mean(-1))
    a, b = c.models[0].name, c.models[1].name
    verdict = against(
        interval,
        0.0,
        0.0,
        f"{a} answers more of them right than {b}.",
        f"{a} answers fewer of them right than {b}.",
        f"no difference between {a} and {b} can be told from chance.",
    )
    return [
        f"{len(twins)} questions were asked of both; both answer {both} of them right ({both / len(twins):.2f}). Share "
        f"answered right by {a} minus that of {b}: {number(value, interval)}: {verdict}"
    ]


# --- views ------------------------------------------------------------------------------------------------------------


def _views(c: TwoForms) -> list[str]:
    if c.viewed is None:
        return ["Neither task has pictures.", ""]
    lines = [
        f"At every patch of {c.viewed}'s pictures the residual is read through the model's own final norm and "
        f"unembedding, the norm's statistic taken at that residual. A patch shows a word if it is among the top {TOP} "
        f"tokens, whatever its spaces and case. Patches of the object asked for and of other objects are covered by "
        f"them by half or more, those of the background not at all. Shares are means over questions of the share of "
        f"the region's patches; depth 0 is what enters the first block, depth l what block l leaves.",
        "",
    ]
    for role in sorted({role for view in c.views for role in view.words}):
        shares = {region: _shares(c, region, role) for region in REGIONS}
        lines += [f"### The {'answer' if role == 'answer' else 'name of the object asked for'}", ""]
        lines += [f"| depth | {' | '.join(REGIONS)} | object − background | object − other |", f"|{' --- |' * 6}"]
        depths = len(shares["object"][0]) if len(shares["object"]) else 0
        for depth in range(depths):
            cells = [number(_nanmean(shares[r][:, depth]), with_interval=False) for r in REGIONS]
            for reference in REGIONS[2], REGIONS[1]:
                cells.append(number(*_difference(shares["object"], shares[reference], [depth])))
            lines.append(f"| {depth} | {' | '.join(cells)} |")
        lines.append("")
        for reference in REGIONS[2], REGIONS[1]:
            lines += [_view_sentence(shares["object"], shares[reference], reference, depths), ""]
    return lines


def _shares(c: TwoForms, region: str, role: str) -> Array:
    """``[N, L + 1]``: by question the share of a region's patches that show a word; NaN without such patches."""
    rows = []
    for view in c.views:
        n, hits = view.patches.get(region, 0), view.hits.get(region, {}).get(role)
        rows.append([h / n for h in hits] if n and hits is not None else [float("nan")] * (c.shape[0] + 1))
    return np.asarray(rows)


def _nanmean(values: Array) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _difference(x: Array, y: Array, depths: list[int]) -> tuple[float, Interval]:
    """Mean over questions that have both of ``x - y``, averaged over depths, with its interval."""
    gap = (x[:, depths] - y[:, depths]).mean(-1)
    gap = gap[np.isfinite(gap)]
    if not len(gap):
        return float("nan"), None
    return measured(len(gap), lambda index: gap[index].mean(-1))


def _view_sentence(x: Array, y: Array, reference: str, depths: int) -> str:
    value, interval = _difference(x, y, list(range(depths)))
    if not np.isfinite(value):
        return f"No question has patches both of the object asked for and of {reference}."
    named = {"other": "other objects", "background": "the background"}[reference]
    verdict = against(
        interval,
        0.0,
        0.0,
        f"patches of the object asked for show the word more often than those of {named}.",
        f"patches of the object asked for show the word less often than those of {named}.",
        f"no difference from patches of {named} can be told from chance.",
    )
    by_depth = [_difference(x, y, [depth]) for depth in range(depths)]
    clear = sum(low_high is not None and low_high[0] > 0 for _, low_high in by_depth)
    largest = int(np.argmax([v for v, _ in by_depth]))
    return (
        f"Object minus {reference}, averaged over all depths: {number(value, interval)}: {verdict} By itself the "
        f"difference is above 0 at {clear} of {depths} depths, without correction for looking at so many; it is "
        f"largest at depth {largest}."
    )
