"""A submission to MIB's circuit track from the records of a run.

A submission is a folder for each pair of a task and a model, ``ioi_gpt2``, with one file of importance scores or nine
circuits, one for each budget of edges (arXiv:2504.13151). Here stands which records belong to which pair, and which
edges a budget keeps; the files are :mod:`.mib`'s.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..circuits import as_taken, pruned
from ..errors import ConfigurationError, check_name
from ..graph import Graph
from ..records.record import Cell, Record
from ..scores import Scores, top_mask
from ..stats.sets import FRACTIONS, mib_sizes
from . import mib

MODELS = {
    "gpt2": "gpt2",
    "gpt2-small": "gpt2",
    "qwen2.5-0.5b": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "llama-3.1-8b": "llama3",
    "meta-llama-3.1-8b": "llama3",
    "interpbench": "interpbench",
}
"""By the last part of a hub id or of a folder's path, in small letters, what MIB calls the model."""
TASKS = {"copycolors_mcqa": "mcqa"}
"""By data set, what MIB calls the task, where it is another name."""
BUDGETS = FRACTIONS[:-1]
"""The nine shares of edges of which a circuit is handed in; of all edges there is but one circuit."""


@dataclass(frozen=True)
class Entry:
    """A record that belongs to a submission, and the task and model it is of, as MIB calls them."""

    record: Record
    task: str
    model: str

    @property
    def method(self) -> str:
        """The method's name with its options, as a folder can be called."""
        return re.sub(r"[^\w.=+-]+", "-", self.record.cell.method_label).strip("-")

    def file(self, folder: Path, graph: Graph) -> Path:
        """``folder/METHOD/TASK_MODEL/importances.json``; raises as :func:`.mib.submission_file`."""
        return mib.submission_file(folder / self.method, self.task, self.model, graph)

    def __str__(self) -> str:
        return f"{self.record.cell.method_label} on {self.task} with {self.model}"


def names_from(texts: Sequence[str], option: str) -> dict[str, str]:
    """What ``NAME=MIBNAME`` says of each name; the last ``=`` divides, since a name may be a path.

    Args:
        option: "--task" or "--model".

    Raises:
        ConfigurationError: no such form, or a name that is given two meanings. UnknownNameError: MIB has no such name.
    """
    known = mib.PAIRS if option == "--task" else {model for models in mib.PAIRS.values() for model in models}
    names: dict[str, str] = {}
    for text in texts:
        name, divided, theirs = text.rpartition("=")
        if not (divided and name and theirs):
            raise ConfigurationError(f"{option} {text!r} is not of the form NAME=MIBNAME, such as {_EXAMPLES[option]}.")
        theirs = theirs.replace("-", "_") if option == "--task" else theirs
        check_name(f"{option.removeprefix('--')} of MIB's", theirs, known)
        if names.setdefault(name, theirs) != theirs:
            raise ConfigurationError(f"{option} says that {name!r} is {names[name]!r} and {theirs!r} to MIB; say one.")
    return names


_EXAMPLES = {"--task": "my_ioi=ioi", "--model": "models/copy=gpt2"}


def entries(
    records: Sequence[Record],
    level: str,
    tasks: Mapping[str, str],
    models: Mapping[str, str],
    methods: Collection[str] = (),
    seed: int | None = None,
) -> tuple[list[Entry], list[str]]:
    """The records of a level that belong to a submission, one for each method, task and model.

    Args:
        records: of one run, each cell once.
        level: of the scores.
        tasks, models: what MIB calls those that have another name here; see :func:`names_from`.
        methods: by name; all where none is named.
        seed: of the examples; any where it is None.

    Returns:
        the records, and what was left out: in words, pairs of a task and a model that MIB does not evaluate.

    Raises:
        ConfigurationError: no record belongs to a submission, or several differ that would be one entry of it; says
            what there is and the way out.
    """
    mib.check_level(level)
    scored = [r for r in records if r.scores is not None and r.cell.level == level]
    asked = [r for r in scored if (not methods or r.cell.method in methods) and (seed is None or r.cell.seed == seed)]
    if not asked:
        levels = sorted({r.cell.level for r in records if r.scores is not None})
        there = f"it has scores of {', '.join(levels) or 'no level'}: choose another --level, or run {level}"
        if scored:
            by, seeds = (mib.listed(sorted(names)) for names in _methods_and_seeds(scored))
            there = f"it has those by {by} of seed {seeds}: name one of them"
        raise ConfigurationError(f"the run has no scores of {level}{_narrowed(methods, seed)}; {there}.")
    for option, names, known in (
        ("--task", tasks, {name for r in asked for name in (r.cell.task, r.cell.task_label)}),
        ("--model", models, {r.cell.model for r in asked}),
    ):
        if unknown := [name for name in names if name not in known]:
            raise ConfigurationError(
                f"{option} names {unknown[0]!r}, which has no scores of {level} in the run; there are "
                f"{mib.listed(sorted(known))}."
            )
    found: dict[tuple[str, str, str], Entry] = {}
    left_out: dict[str, None] = {}
    for record in asked:
        entry = Entry(record, _task(record.cell, tasks), _model(record.cell, models))
        if entry.model not in mib.PAIRS.get(entry.task, ()):
            left_out[f"{record.cell.task_label} on {record.cell.model}"] = None
            continue
        other = found.setdefault((entry.method, entry.task, entry.model), entry)
        assert record.scores is not None and other.record.scores is not None
        if other.record.scores.values_sha256 != record.scores.values_sha256:
            differ = other.record.cell.seed != record.cell.seed
            way_out = "choose one with --seed" if differ else "keep them in folders of their own"
            raise ConfigurationError(
                f"{entry} would be handed in twice, as {other.record.cell} and as {record.cell}; {way_out}."
            )
    if not found:
        pairs = "; ".join(f"{task} with {', '.join(models)}" for task, models in mib.PAIRS.items())
        raise ConfigurationError(
            f"MIB does not evaluate {mib.listed(list(left_out))}; it evaluates {pairs}: say what these are to it with "
            f"--task NAME=MIBNAME and --model NAME=MIBNAME."
        )
    return list(found.values()), list(left_out)


def _methods_and_seeds(records: Sequence[Record]) -> tuple[set[str], set[str]]:
    return {r.cell.method for r in records}, {str(r.cell.seed) for r in records}


def _narrowed(methods: Collection[str], seed: int | None) -> str:
    parts = [f" by {', '.join(methods)}"] if methods else []
    return "".join([*parts, *([f" of seed {seed}"] if seed is not None else [])])


def _task(cell: Cell, names: Mapping[str, str]) -> str:
    """What MIB calls a task: as said, else by its name or, where it has but one subset, by that."""
    said = names.get(cell.task_label, names.get(cell.task))
    subsets = cell.task_options.get("subsets", ())
    own = [cell.task, *(subsets if isinstance(subsets, (list, tuple)) and len(subsets) == 1 else [])]
    called = [name.replace("-", "_") for name in (own if said is None else [said])]
    return next((TASKS.get(name, name) for name in called if TASKS.get(name, name) in mib.PAIRS), called[0])


def _model(cell: Cell, names: Mapping[str, str]) -> str:
    """What MIB calls a model: as said, else by the last part of its name."""
    last = cell.model.rstrip("/").rpartition("/")[2]
    return names.get(cell.model, MODELS.get(last.lower(), last))


def write(
    entry: Entry,
    scores: Scores,
    graph: Graph,
    folder: Path,
    circuits: Literal["top", "greedy", ""] = "",
    absolute: bool = False,
) -> list[Path]:
    """Writes what an entry hands in, its scores or its nine circuits; returns the files.

    Circuits are the first edges of an order, without those among them that lead nowhere
    (:func:`attriboard.circuits.pruned`).

    A circuit's file is named by the percentage of edges that it may keep: ``0.1.json`` to ``50.json``. The scores stand
    beside the membership, since MIB's reader asks for both.

    Args:
        circuits: their order: "top", from the highest score down, or "greedy", from the logits back; "" to hand in
            scores.
        absolute: circuits by size of scores, as MIB takes them for CMD; else by the scores as they are, as for CPR.

    Raises:
        ConfigurationError: other files of scores or circuits stand there.
        ScoresError: as :func:`.mib.save` and :func:`.mib.submission_file`. OSError: a file cannot be written.
    """
    target = entry.file(folder, graph)
    circuit_files = [target.with_name(f"{100 * budget:g}.json") for budget in BUDGETS]
    files = circuit_files if circuits else [target]
    there = [file for suffix in mib.SUFFIXES for file in target.parent.glob(f"*{suffix}") if file not in files]
    if there:
        raise ConfigurationError(
            f"{there[0]} stands already where {len(files)} other files are to be handed in; choose another --out."
        )
    if circuits:
        order = scores.ranking(absolute)
        order = as_taken(graph, order) if circuits == "greedy" else order
        for file, size in zip(files, mib_sizes(graph.n_edges)):
            mib.save(scores, graph, file, pruned(graph, top_mask(order, size)))
    else:
        mib.save(scores, graph, target)
    return files
