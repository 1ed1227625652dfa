"""Precomputed scores: files that come to the board as data, so that no method's code is run.

Two kinds of files are read: safetensors as :meth:`Scores.save` writes them, and MIB's files (:mod:`.mib`).
Names say which score belongs to which component; the order in the file says nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from ..components import COMPONENTS, LEVELS, get_level
from ..errors import ConfigurationError, ScoresError, UnknownNameError
from ..files import check_regular, is_file, kind_and_reason, kind_of, parse_json, reason
from ..graph import Graph
from ..loading import hash_file, load_model, outline
from ..model import Model
from ..scores import Scores
from ..zoo import planted
from . import mib
from .mib import listed

SUFFIXES = (".safetensors", *mib.SUFFIXES)
NAME = re.compile(r"\w[\w .,:=()+-]{0,59}")
"""What a row of the board can be called: it stands in tables, figures and file names."""


@dataclass(frozen=True)
class ScoreFile:
    """One file of scores.

    Attributes:
        path: as given.
        sha256: of the file.
        name: under which it stands on the board: the metadata's ``method``, else the file's name without ending (of a
            file called ``importances``, as MIB calls them, its folder's).
        scores: as they stand in the file, in its order; the values may be flat.
        model: the model they are of; "" where the file does not say.
        graph: the model's shape; None where the file does not say.
        task: the only task they are for; "" for any.
        seed: the only seed of examples they are for; None for any.
    """

    path: Path
    sha256: str
    name: str
    scores: Scores
    model: str = ""
    graph: Graph | None = None
    task: str = ""
    seed: int | None = None

    @property
    def level(self) -> str:
        return self.scores.level

    def fitting(self, model: Model) -> Scores:
        """The scores in the order and shape of a model's components.

        Raises:
            ScoresError: the model has another shape, or a component has no score, or a score no component.
        """
        if self.graph is not None and self.graph != model.graph:
            raise ScoresError(f"{self.path} is for {self.graph}, and {model.name} has {model.graph}.")
        level = get_level(self.level)
        expected, shape = level.names(model), level.shape(model)
        at = {name: i for i, name in enumerate(self.scores.names)}
        known = set(expected)
        faults = [
            f"{what} {listed(names)}"
            for what, names in (
                ("lacks", [name for name in expected if name not in at]),
                ("has beside them", [name for name in self.scores.names if name not in known]),
            )
            if names
        ]
        if faults:
            raise ScoresError(
                f"{self.path} does not score the {len(expected)} {self.level} of {model.name}: "
                f"it {' and '.join(faults)}."
            )
        values = self.scores.values
        if tuple(values.shape) not in (shape, (len(expected),)):
            raise ScoresError(
                f"{self.path} has scores of shape {tuple(values.shape)}, expected {shape} ({', '.join(level.axes)}) or "
                f"({len(expected)},)."
            )
        return Scores(values.flatten()[[at[name] for name in expected]].view(shape), self.level, expected)


def read_all(paths: Sequence[Path], levels: Sequence[str] = ()) -> list[ScoreFile]:
    """Every score file named, or standing in a folder named or below it; each once.

    Args:
        levels: those that are asked for; of a file of MIB's that scores nodes and edges, the nodes are read only where
            edges are not among them.

    Raises:
        ConfigurationError: no such file or folder, or a folder without score files.
        ScoresError: as :func:`read`.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        kind = kind_of(path, "--scores")
        if kind == "folder":
            try:
                inside = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and is_file(file))
            except OSError as error:
                raise ConfigurationError(f"--scores {path} cannot be read: {reason(error)}.") from error
            if not inside:
                raise ConfigurationError(f"--scores {path} holds no score file ({', '.join(SUFFIXES)}).")
        elif kind == "file":
            inside = [path]
        elif kind == "other":
            raise ConfigurationError(f"--scores {path} is no regular file (a pipe, socket or device), and is not read.")
        else:
            raise ConfigurationError(f"--scores {path} does not exist; give a file or folder of scores.")
        for file in inside:
            files.setdefault(file.resolve(), file)
    level = "" if any(level in LEVELS and LEVELS[level].edges for level in levels) else next(iter(levels), "")
    return [read(file, level) for file in files.values()]


def read(path: Path, level: str = "") -> ScoreFile:
    """One file of scores, checked for everything that can be known without its model.

    Args:
        level: which scores are read of a file that has several kinds; see :func:`attriboard.exchange.mib.load`.

    Raises:
        ScoresError: it is not of a kind that is read, lacks something, names a component twice, or holds numbers that
            are not finite.
    """
    if path.suffix not in SUFFIXES:
        raise ScoresError(f"{path} is not a score file; known are {', '.join(SUFFIXES)}.")
    check_regular(path, error=ScoresError)
    try:
        sha256 = hash_file(path)
    except OSError as error:
        raise ScoresError(f"{path} cannot be read ({error.strerror}).") from error
    own_name = path.parent.name if path.stem == "importances" and path.parent.name else path.stem
    if path.suffix == ".safetensors":
        file = _from_safetensors(path, sha256, own_name)
    else:
        graph, scores = mib.load(path, level)
        file = ScoreFile(path, sha256, own_name, scores, graph=graph)
    if not NAME.fullmatch(file.name):
        raise ScoresError(
            f"{path} would stand on the board as {file.name!r}; give it a name of at most 60 letters, digits, spaces "
            f"and .,:=()+-_ as metadata 'method', or rename the file."
        )
    return file


def _from_safetensors(path: Path, sha256: str, own_name: str) -> ScoreFile:
    try:
        with safe_open(path, framework="pt") as stored:
            metadata: dict[str, str] = stored.metadata() or {}
            tensors = list(stored.keys())
            values = stored.get_tensor("scores") if "scores" in tensors else None
    except Exception as error:  # the library has errors of its own, and torch others for types it does not know
        raise ScoresError(f"{path} cannot be read as safetensors ({kind_and_reason(error)}).") from error
    if values is None:
        others = f"; it has {', '.join(tensors)}" if tensors else ""
        raise ScoresError(f"{path} has no tensor called 'scores'{others}.")
    if missing := [key for key in ("names", "level", "model") if not metadata.get(key)]:
        raise ScoresError(f"{path} lacks the metadata {', '.join(map(repr, missing))}.")
    level, names = metadata["level"], _names(path, metadata["names"])
    if level not in LEVELS:
        raise ScoresError(f"{path}: {UnknownNameError('level', level, COMPONENTS)}")
    if level not in COMPONENTS:
        raise ScoresError(
            f"{path} scores {level}, which belong to single examples and are not read; known are "
            f"{', '.join(COMPONENTS)}."
        )
    if values.numel() != len(names):
        raise ScoresError(f"{path} has {values.numel()} scores and {len(names)} names; they must be as many.")
    if values.is_complex() or values.dtype == torch.bool:
        raise ScoresError(f"{path} has scores of type {values.dtype}, expected real numbers.")
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise ScoresError(f"{path} names {listed(repeated)} more than once; name each component once.")
    try:
        values = values.float()
    except (RuntimeError, NotImplementedError) as error:
        raise ScoresError(f"{path} has scores of type {values.dtype}, which cannot be read as numbers.") from error
    if bad := [name for name, fine in zip(names, values.flatten().isfinite().tolist()) if not fine]:
        raise ScoresError(f"{path} has scores that are not finite numbers: {listed(bad)}.")
    seed = metadata.get("seed", "")
    if seed and not re.fullmatch(r"\d{1,9}", seed):
        raise ScoresError(f"{path} has {seed!r} as its seed, expected a whole number.")
    return ScoreFile(
        path,
        sha256,
        metadata.get("method") or own_name,
        Scores(values, level, names),
        metadata["model"],
        task=metadata.get("task", ""),
        seed=int(seed) if seed else None,
    )


def _names(path: Path, text: str) -> list[str]:
    try:
        names = parse_json(text)
    except ValueError as error:
        raise ScoresError(f"{path} has metadata 'names' that is not JSON ({error}).") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ScoresError(f"{path} has metadata 'names' that is not a list of component names.")
    return names


@cache
def shape_of(model: str) -> Model:
    """A model's :func:`attriboard.loading.outline`, made once; a planted model is built."""
    return load_model(model) if planted.is_planted(model) else outline(model)
