"""The verdict in words: a paragraph and a small table for each level, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence

from ..measurements.registry import METRICS
from .board import Board, LevelRanks
from .verdict import WORK, LevelVerdict, Place, ToldApart, Undecided, told_apart
from .wording import number

SHOWN = 6
"""How many published methods a level's table shows; the others are named below it."""
LINE = (
    "From those tables below in which paired tests tell methods apart by the level's headline. *Beside the best*: in "
    "how many of them a method is the best or not significantly worse (bold there). *Behind the best*: its distance to "
    "the best value of the table, the median of the tables with the smallest and the largest. *Better than the rules*: "
    "in how many it is significantly better than the best trivial control, of those that could show it. *forwards*: "
    "what scoring costs, the median in forward passes per example. *Italic*: the control that stands best."
)
WHY: dict[Undecided, tuple[str, str]] = {
    "few": ("has too few examples to tell methods apart", "have too few examples to tell methods apart"),
    "random": ("tells no method from random scores", "tell no method from random scores"),
    "beyond": ("has a value beyond the untouched model's", "have values beyond the untouched model's"),
    "alike": ("has no best method that can be compared", "have no best method that can be compared"),
}
"""Why a table does not count, and why several do not."""


def heading(board: Board) -> str:
    """What the section is called: no verdict, where all suites are smoke tests."""
    return "What so few examples say" if board.smoke and len(board.smoke) == len(board.suites) else "Verdict"


def intro(verdict: LevelVerdict, ranks: LevelRanks | None) -> str:
    """The paragraph above a level's table, without the level's name: who stands beside the best, and who leads."""
    if not verdict.tables:
        return f"no verdict by {_title(verdict)}: {_undecided(verdict)}."
    of = "its table" if verdict.of == verdict.tables == 1 else f"{verdict.tables} of {_count(verdict.of, 'table')}"
    said = [f"by {_title(verdict)}, {of} ({_count(verdict.blocks, 'task and model', 'tasks and models')})."]
    if verdict.passed_over:
        passed = _listed([METRICS[name].title for name in verdict.passed_over], "or")
        said[0] = f"{said[0][:-1]}; no table says who is best by {passed}."
    return " ".join([*said, _beside(verdict), *_led(ranks)])


def _beside(verdict: LevelVerdict) -> str:
    """Which methods cannot be told from the best, by counting tables."""
    methods, every = verdict.methods, verdict.never_worse
    if not methods:
        return "There are no published methods in them."
    if every:
        names = _listed([place.method for place in every])
        rest = "; every other method is in at least one" if len(every) < len(methods) else ""
        where = "significantly worse than the best in no table"
        return f"Not told from the best: {names} ({where}{rest})."
    top = methods[0]
    if not top.best:
        return "Every published method is significantly worse than the best in every table: a control is the best."
    return (
        f"No method stands beside the best in every table; most often {top.method} does, in {top.best} of {top.tables}."
    )


def _led(ranks: LevelRanks | None) -> list[str]:
    """Who leads by wins, and who is not told from that one; nothing where nothing could be resampled."""
    ranked = [rank for rank in ranks.ranks if rank.wins is not None] if ranks is not None else []
    if len(ranked) < 2 or any(rank.behind is None for rank in ranked):
        return []
    first, *others = ranked
    beside = [rank.method for rank in others if rank.behind is not None and rank.behind <= 0]
    metrics = _listed([METRICS[name].title for name in first.by_metric])
    told = f"{_listed(beside)} cannot be told from it" if beside else "every other one is told from it"
    return [f"By wins ({metrics}) {first.method} leads ({first.wins:.2f}); {told} (95 % interval of the difference)."]


def head(verdict: LevelVerdict) -> list[str]:
    """The heads of a level's table."""
    rules = ["better than the rules"] if _against_rules(verdict) else []
    costs = [METRICS[WORK].title] if _costed(verdict) else []
    return ["method", "beside the best", f"behind the best ({METRICS[verdict.metric].title})", *rules, *costs]


def rows(verdict: LevelVerdict) -> list[tuple[Place, list[str]]]:
    """The places shown, the best first, with their cells behind the name."""
    best = verdict.best_control
    shown = [*verdict.methods[:SHOWN], *([best] if best is not None else [])]
    return [(place, _cells(verdict, place)) for place in verdict.places if place in shown]


def _cells(verdict: LevelVerdict, place: Place) -> list[str]:
    metric = METRICS[verdict.metric]
    middle, least, most = (number(metric, value) for value in (place.behind, place.least, place.most))
    spread = f" ({least} to {most})" if place.tables > 1 else ""
    cells = [f"{place.best} of {place.tables}", f"{middle}{spread}"]
    if _against_rules(verdict):
        cells.append(f"{place.better} of {place.against}" if place.against else "")
    if _costed(verdict):
        cells.append("" if place.forwards is None else number(METRICS[WORK], place.forwards))
    return cells


def _against_rules(verdict: LevelVerdict) -> bool:
    return any(place.against for place in verdict.methods)


def _costed(verdict: LevelVerdict) -> bool:
    return any(place.forwards is not None for place in verdict.places)


def ending(verdict: LevelVerdict) -> str:
    """The paragraph below a level's table: who is further behind, who is thinly covered, and which tables do not count.

    Empty where there is nothing to say.
    """
    if not verdict.tables:
        return ""
    metric = METRICS[verdict.metric]
    said = []
    if further := [f"{place.method} {number(metric, place.behind)}" for place in verdict.methods[SHOWN:]]:
        said.append(f"Further methods, and how far they are behind the best: {', '.join(further)}.")
    if verdict.thin:
        said.append(f"In fewer than half of these tables: {', '.join(verdict.thin)}.")
    if verdict.undecided:
        said.append(f"Not counted: {_undecided(verdict)}.")
    return " ".join(said)


def _undecided(verdict: LevelVerdict) -> str:
    """Why tables do not count."""
    return "; ".join(
        f"{_count(count, 'table')} {WHY[why][0] if count == 1 else WHY[why][1]}"
        for why, count in verdict.undecided.items()
    )


def told_line(board: Board) -> str:
    """In how many columns methods are told apart; empty where no column is tested."""
    headlines, tested = told_apart(board.tables, headlines=True), told_apart(board.tables)
    if not tested.of:
        return ""
    every = f"{_share(tested)} that are tested"
    which = f"{_share(headlines)} of headlines, and in {every}," if headlines.of else every
    return f"In {which} at least half of the published methods can be told from the best."


def _share(told: ToldApart) -> str:
    return f"{told.columns} of {_count(told.of, 'column')} ({100 * told.columns / told.of:.0f} %)"


def _title(verdict: LevelVerdict) -> str:
    metric = METRICS[verdict.metric]
    return f"{metric.title} ({metric.better} is better)"


def _count(n: int, one: str, several: str = "") -> str:
    return f"{n} {one if n == 1 else several or one + 's'}"


def _listed(names: Sequence[str], word: str = "and") -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
