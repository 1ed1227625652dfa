"""The audit of a task in words: for a terminal, and as the page ``docs/audit.md`` of all stored audits.

``python -m attriboard.studies.audit_report results/audit`` prints the page.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from ..errors import ConfigurationError
from ..files import read_text
from .audit import (
    CONSTANT_LIMIT,
    COPYING_LIMIT,
    RULES,
    SHORTCUT_LIMIT,
    STANDS_LIMIT,
    Asked,
    Audit,
    Part,
    Stands,
    Worth,
    percent,
    problems,
    remarks,
)

WIDTH = 96
NONE = "–"


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return NONE if value is None else percent(value)


def number(value: float | None) -> str:
    """A number with two decimals, or a dash."""
    return NONE if value is None else f"{value:.2f}"


def shortcut(asked: Asked) -> str:
    """The shortcut share with its interval, or a dash."""
    if asked.shortcut is None:
        return NONE
    if asked.interval is None:
        return percent(asked.shortcut)
    low, high = (f"{100 * end:.0f}" for end in asked.interval)
    return f"{percent(asked.shortcut)} [{low}, {high}]"


def worth(value: Worth | None) -> str:
    """Effective n and the number of groups behind it, or a dash."""
    return NONE if value is None else f"{value.n:.0f} ({value.groups})"


def name_of(subset: str) -> str:
    """What a part is called in a table."""
    return subset or "whole task"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a plain table: the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in (head, *rows)
    ]


ANSWER_HEAD = ("examples", "n", "items", "frames", "most frequent", "pair", "answers", "entropy")
WORDS_HEAD = ("word", "in prompt", "in demonstrations", "in question", "first", "between", "last")
MODEL_HEAD = ("examples", "n", "answered", "counterfactual", "kept", "metric", "shortcut", "n by item", "n by frame")


NOTE = (
    "counterfactual: the foil is given on it; kept: both; shortcut: the metric at another question",
    "about the same context over the metric at the prompt; n by item and by frame: how many",
    "independent examples the kept ones are worth (and the number of items and frames).",
)


def answer_row(part: Part) -> tuple[str, ...]:
    """One part in the table of answers."""
    return (
        name_of(part.subset),
        str(part.n),
        str(part.items),
        str(part.frames) if part.frames else NONE,
        f"{part.most_frequent.strip()} {percent(part.most_frequent_share)}",
        percent(part.pair_share),
        f"{part.answers} of {part.labels}",
        f"{part.entropy_bits:.2f} bits",
    )


def words_row(name: str, stands: Stands) -> tuple[str, ...]:
    """Where a word stands, in a table."""
    places = (stands.prompt, stands.demonstrations, stands.question, stands.first, stands.between, stands.last)
    return (name, *map(percent, places))


def model_row(asked: Asked) -> tuple[str, ...]:
    """What a model does with one part, in a table."""
    return (
        name_of(asked.subset),
        str(asked.n),
        percent(asked.answered),
        share(asked.counterfactual),
        str(asked.kept),
        number(asked.metric),
        shortcut(asked),
        worth(asked.by_item),
        worth(asked.by_frame),
    )


def _wrapped(sentence: str) -> list[str]:
    whole = sentence.replace(" %", "\N{NO-BREAK SPACE}%")
    lines = textwrap.wrap(whole, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def marked(part: Part) -> str:
    """In which marks the answer and the foil stand, as a sentence; empty where no mark covers either."""
    said = []
    for word, stands in (("answer", part.answer), ("foil", part.foil)):
        if stands is not None and any(stands.marks.values()):
            named = ", ".join(f"{name} {percent(value)}" for name, value in stands.marks.items() if value)
            said.append(f"the {word} in {named}")
    return f"Last occurrence, by mark: {'; '.join(said)}." if said else ""


def recency(part: Part) -> str:
    """Which of answer and foil stands later, as a sentence; empty where never both stand."""
    if part.answer_later is None:
        return ""
    return f"Where both stand in the prompt, the answer stands later than the foil in {percent(part.answer_later)}."


def render(audit: Audit) -> str:
    """An audit as plain text, at most 100 columns wide where names are short."""
    whole = audit.parts[0]
    drawn = " and ".join(f"{audit.examples} {split}" for split in audit.splits)
    on = f" on {audit.model}" if audit.model else ""
    options = ", ".join(f"{name}={value}" for name, value in audit.options.items())
    lines = [
        f"{audit.task}, version {audit.version}{on}{f' ({options})' if options else ''}: {drawn} examples, "
        f"seed {audit.seed}",
        "",
        "What is right",
        *table(ANSWER_HEAD, [answer_row(part) for part in audit.parts]),
        "",
        "Where the words stand",
        *table(
            WORDS_HEAD,
            [words_row("answer", whole.answer), *([words_row("foil", whole.foil)] if whole.foil is not None else [])],
        ),
        *textwrap.wrap(f"{recency(whole)} {marked(whole)}".strip(), WIDTH),
        "",
        "Rules that read no question",
        *table(
            ("rule", "right", "chance", "answer before foil"),
            [(RULES[r.name], percent(r.right), percent(r.chance), share(r.prefers)) for r in whole.rules],
        ),
    ]
    if audit.overlap is not None:
        o = audit.overlap
        counts = (o.items, o.frames, o.prompts, o.demonstrations, o.solved)
        names = ("items", "frames", "prompts", "demonstrations", "asked here, solved there")
        lines += ["", "In both splits", ", ".join(f"{name} {count}" for name, count in zip(names, counts))]
    if audit.asked:
        lines += [
            "",
            f"What {audit.model} does",
            *table(MODEL_HEAD, [model_row(asked) for asked in audit.asked]),
            *NOTE,
        ]
    found, said = problems(audit), remarks(audit)
    lines += ["", _verdict(len(found))]
    for sentence in found:
        lines += _wrapped(sentence)
    if said:
        lines += ["", "Not judged"]
        for sentence in said:
            lines += _wrapped(sentence)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _verdict(n: int) -> str:
    if n == 0:
        return "Nothing is beyond its limit"
    return "One thing is beyond its limit" if n == 1 else f"{n} things are beyond their limits"


# --- the page ---------------------------------------------------------------------------------------------------------


def _points(limit: float) -> str:
    return f"{round(100 * limit)} points"


INTRODUCTION = f"""\
# Shortcut audits

Made by `make docs` from the audits in `results/audit/`, which `attriboard audit TASK --model M --json FILE` stores.

An audit asks what of a task can be answered without its question. **Answered** is the share of all examples whose
answer the model gives, **counterfactual** the share whose foil it gives on the counterfactual; **kept** examples have
both. The **shortcut** share is the mean metric, logit(answer) − logit(foil), at another question about the same context
over the mean metric at the prompt, on kept examples, with its 95 % interval over base items: what the metric keeps
without the question. It is negative where the foil is favoured then. **n by item** and **by frame** say how many
independent examples the kept ones are worth (with the number of items and frames), from the intraclass correlation of
the metric. Rules read no question; **chance** is that of a word drawn at random from those that the rule chooses from,
and **answer before foil** counts a tie as half, so that chance is 50 %.

Limits: a shortcut share of {percent(SHORTCUT_LIMIT)};
a constant answer right in {_points(CONSTANT_LIMIT)} more than chance;
a copying rule right in {_points(COPYING_LIMIT)} more than chance, or with the answer before the foil in as much more;
an answer that stands in the prompt in {_points(STANDS_LIMIT)} more than the foil; nothing in both splits.
"""


def read_audits(folder: Path) -> list[Audit]:
    """The stored audits of a folder, by task, options and model; none where there is no such folder.

    Raises:
        ConfigurationError: a .json file in it is no audit.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(Audit.model_validate_json(read_text(file)))
        except ValidationError as error:
            raise ConfigurationError(f"{file} is not an audit of this version; make it again.") from error
    return sorted(found, key=lambda audit: (audit.task, repr(sorted(audit.options.items())), audit.model))


def findings(audits: Iterable[Audit]) -> dict[tuple[str, int, str], tuple[str, ...]]:
    """What audits of tasks with their usual options found beyond the limits, as boards take it.

    By task, its version and the model's weights (SHA-256).
    """
    usual = [audit for audit in audits if not audit.options]
    return {(audit.task, audit.version, audit.weights_sha256): tuple(problems(audit)) for audit in usual}


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|".join(["---", *["--:"] * (len(head) - 1)])
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]


def page(audits: Sequence[Audit]) -> str:
    """``docs/audit.md``: a section for each task and options, with what each model does."""
    lines = INTRODUCTION.rstrip("\n").split("\n")
    if not audits:
        lines += ["", "No audit is stored."]
    groups: dict[str, list[Audit]] = {}
    for audit in audits:
        options = ", ".join(f"{name} = {value}" for name, value in audit.options.items())
        groups.setdefault(f"`{audit.task}`" + (f" ({options})" if options else ""), []).append(audit)
    for title, of in groups.items():
        lines += ["", f"## {title}"]
        for audit in of:
            lines += _section(audit)
    return "\n".join(lines) + "\n"


def _section(audit: Audit) -> list[str]:
    whole = audit.parts[0]
    drawn = " and ".join(f"{audit.examples} {split}" for split in audit.splits)
    on = f"On `{audit.model}`" if audit.model else "Without a model"
    lines = ["", f"### {on}", "", f"Version {audit.version}; {drawn} examples, seed {audit.seed}."]
    for found in problems(audit):
        lines += ["", f"**{found}**"]
    if not problems(audit):
        lines += ["", "Nothing is beyond its limit."]
    lines += ["", *remarks(audit)] if remarks(audit) else []
    if audit.asked:
        lines += ["", *_markdown(MODEL_HEAD, map(model_row, audit.asked))]
    lines += ["", *_markdown(ANSWER_HEAD, map(answer_row, audit.parts))]
    words = [words_row("answer", whole.answer), *([words_row("foil", whole.foil)] if whole.foil is not None else [])]
    lines += ["", *_markdown(WORDS_HEAD, words)]
    said = f"{recency(whole)} {marked(whole)}".strip()
    lines += ["", said] if said else []
    rules = [(RULES[r.name], percent(r.right), percent(r.chance), share(r.prefers)) for r in whole.rules]
    return [*lines, "", *_markdown(("rule", "right", "chance", "answer before foil"), rules)]


if __name__ == "__main__":
    print(page(read_audits(Path(sys.argv[1] if len(sys.argv) > 1 else "results/audit"))), end="")
