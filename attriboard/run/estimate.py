"""What cells will cost before they run: floating-point operations, passes and memory, without weights.

The work of a cell is that of its stages: drawing examples (of the first cell that uses them), scoring, the noise floor
and repeats with it, and its evaluations. Scoring follows from what the method says it takes
(:meth:`attriboard.method.Method.passes`); an evaluation's work from the functions in :data:`EVALUATIONS`. A model is
known from its configuration, prompts from a few examples of each subset. Work is an estimate: what depends on the
data, such as how many examples are kept, is taken at its most.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from ..components import Level, get_level
from ..edges import CHANGE_BYTES
from ..errors import AttriboardError, MethodError, ModelError, TaskError
from ..evaluation.crossfit import draws_of_group
from ..exchange.precomputed import shape_of
from ..files import kind_and_reason
from ..interventions import EDGE_BYTES, replacement_kind
from ..loading import DTYPES, MODELS, interpbench_case
from ..measurements.ablation import sizes as ablation_sizes
from ..measurements.localization import sizes as removal_sizes
from ..method import Method, make_method
from ..model import Model
from ..models.folder import folder_of
from ..models.pretrained import load_tokenizer, load_vision_outline
from ..models.quiet import quiet
from ..records.record import Planned
from ..records.settings import Settings
from ..shape import Shape
from ..stats.sets import curve_sizes
from ..task import IMAGE, Example, Task, tasks
from ..zoo import llava, planted
from . import noise
from .batch_size import ON_CPU
from .stored import Ahead
from .time_left import Piece

TOKENS_PER_WORD = 1.4
"""Of English prose, where no tokenizer is at hand."""
EXAMPLES = 2
"""How many examples of each subset stand for all."""
SPEED_SHARE = 0.1
"""What the repeats for timing take, of scoring."""
CACHE_BYTES = 2**30
"""Most memory in which a context keeps residuals (:class:`attriboard.evaluation.context.Context`)."""
LOGIT_BYTES = 4 * 48_000_000
"""Most memory of the logits that are held at a time (:mod:`attriboard.log_prob`)."""


# --- models and prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What is known of a model without its weights.

    Attributes:
        outline: the language model's shape.
        entries: of all its weights, those of its vision part included.
        tokenizer: None where there is none at hand.
        picture: positions that a picture takes; 0 of a model that reads text only.
        tower: operations in which a picture becomes features.
    """

    outline: Model
    entries: int
    tokenizer: Any
    picture: int = 0
    tower: int = 0


def facts(name: str, network: bool = True) -> Facts:
    """What is known of a model by name.

    Args:
        network: whether configuration and tokenizer may be asked for on the hub; no weights ever are.

    Raises:
        ModelError: nothing is known of it here; says why.
    """
    if not (network or _is_here(name)):
        raise ModelError(f"model {name!r} is not in the cache.")
    return _facts(name)


@functools.lru_cache(maxsize=16)
def _facts(name: str) -> Facts:
    with quiet():
        model = shape_of(name)
        entries = sum(p.numel() for p in model.hf.parameters())
        tokenizer = model.tokenizer
        if tokenizer is None:
            try:
                tokenizer = load_tokenizer(name)
            except ModelError:
                tokenizer = None  # words are counted instead
        beside, picture = _vision(name)
    # every weight of the tower is used once for each of a picture's patches
    return Facts(model, entries + beside, tokenizer, picture, 2 * beside * picture)


def _vision(name: str) -> tuple[int, int]:
    """As :func:`attriboard.models.pretrained.load_vision_outline`, of short names too."""
    if planted.is_planted(name) or interpbench_case(name) is not None:
        return 0, 0
    if name not in MODELS:
        return load_vision_outline(name)
    if MODELS[name].visual_tuning is None:
        return 0, 0
    with safe_open(llava.WEIGHTS, framework="pt") as file:
        names = [key for key in file.keys() if not key.startswith("lora.")]  # noqa: SIM118 (not a dict)
        return sum(math.prod(file.get_slice(key).get_shape()) for key in names), llava.PATCHES


def _is_here(name: str) -> bool:
    """Whether the configuration of a model can be read without the network."""
    if planted.is_planted(name) or folder_of(name) is not None:
        return True
    if name in MODELS and MODELS[name].installed:
        return True
    hub = (MODELS[name].hub if name in MODELS else None) or name
    return isinstance(try_to_load_from_cache(hub, "config.json"), str)


@dataclass(frozen=True)
class Prompts:
    """The average prompt of a task.

    Attributes:
        text: tokens of its text.
        shared: of these, at the beginning, as in its counterfactual; none of what follows a picture that differs.
        picture: whether it is about a picture.
        marks: by mark, how many tokens it covers.
        foils, concepts: whether every example has a foil, and a concept.
    """

    text: float
    shared: float
    picture: bool
    marks: Mapping[str, float] = field(default_factory=dict)
    foils: bool = True
    concepts: bool = False


def prompts(task: Task, tokenizer: Any, seed: int = 0) -> Prompts:
    """The average of a few candidates of each of a task's subsets.

    Raises:
        TaskError: it has none, or they cannot be made.
    """
    try:
        chosen = [
            example
            for subset in task.subsets
            for example in itertools.islice(task.candidates(subset, random.Random(seed)), EXAMPLES)
        ]
    except (OSError, RecursionError, UnicodeError) as error:
        raise TaskError(f"task {task.name!r} cannot make its examples ({kind_and_reason(error)}).") from error
    if not chosen:
        raise TaskError(f"task {task.name!r} has no candidates.")
    n = len(chosen)
    names = {name for example in chosen for name in example.marks}
    return Prompts(
        text=sum(_length(e.prompt, tokenizer) for e in chosen) / n,
        shared=sum(_shared(e, tokenizer) for e in chosen) / n,
        picture=any(e.image is not None for e in chosen),
        marks={name: sum(_covered(e, name, tokenizer) for e in chosen) / n for name in names},
        foils=all(e.foil is not None for e in chosen),
        concepts=all(e.concept for e in chosen),
    )


def _pieces(text: str, tokenizer: Any) -> list[Any]:
    text = text.replace(IMAGE, " ")
    return re.findall(r"\S+", text) if tokenizer is None else tokenizer(text)["input_ids"]


def _length(text: str, tokenizer: Any) -> float:
    return len(_pieces(text, tokenizer)) * (TOKENS_PER_WORD if tokenizer is None else 1)


def _shared(example: Example, tokenizer: Any) -> float:
    """Tokens at the beginning of a prompt that its counterfactual has too."""
    prompt = example.prompt
    if example.counterfactual_image is not None:
        prompt = prompt.partition(IMAGE)[0]
    if example.counterfactual is None and example.counterfactual_image is None:
        return 0.0
    own, other = (_pieces(text, tokenizer) for text in (prompt, example.counterfactual or prompt))
    same = next((i for i, (a, b) in enumerate(zip(own, other)) if a != b), min(len(own), len(other)))
    return same * (TOKENS_PER_WORD if tokenizer is None else 1)


def _covered(example: Example, mark: str, tokenizer: Any) -> float:
    return sum(_length(example.prompt[a:b], tokenizer) for a, b in example.marks.get(mark, ()))


# --- cells ------------------------------------------------------------------------------------------------------------


REPLACED = 1.5
"""How much longer an operation takes where components are replaced than in a plain pass: each row has another
replacement, and a batch begins at the first layer that any of its rows needs."""
SHORT = 12.0
"""A row costs as much as so many positions on top of its own: what is done once for a row, or for a batch of them.

This and :data:`REPLACED` were set on the stored records of ``quick``, by which the time left is then tested: of 15
pairs tried, those with 6 to 30 here left it off by 6 to 14 % (median), those with 0 by 21 to 23 %.
"""


class Work(NamedTuple):
    """What is done.

    Attributes:
        flops: floating-point operations.
        weight: as many of a plain pass take the same time.
        rows: whole passes of one row that they amount to.
    """

    flops: float = 0.0
    weight: float = 0.0
    rows: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[Work]) -> Work:
        """All of them together."""
        columns = list(zip(*parts))
        return cls(*map(sum, columns)) if columns else cls()


@dataclass(frozen=True)
class Case:
    """A planned cell with what is known of it.

    Attributes:
        passes: what the method says it takes, in forward passes per example; 0 for precomputed scores.
        train, test: how many examples are kept at most.
        concepts: whether every example has one.
    """

    planned: Planned
    facts: Facts
    level: Level
    method: Method | None
    shape: Shape
    passes: float
    train: int
    test: int
    concepts: bool = False

    @property
    def settings(self) -> Settings:
        return self.planned.settings

    @property
    def paired(self) -> bool:
        return replacement_kind(self.planned.cell.replacement).paired

    @property
    def folds(self) -> int:
        """Into how many groups each half is divided, as far as it has examples."""
        if self.level.inputs or self.planned.cell.precomputed is not None:
            return 0
        return min(self.settings.folds, self.train, self.test)

    @property
    def scored(self) -> int:
        return self.test if self.level.inputs else self.train

    @property
    def judged(self) -> float:
        """How many rows of one example in one trial are judged."""
        return (self.train + self.test) * self.settings.repetitions if self.folds else self.test

    def row(self, share: float = 1.0) -> float:
        """A pass with components replaced that runs this share of the layers, in forward passes."""
        sums = self.shape.edge_products() if self.level.edges else 0.0
        return share * (self.shape.forward(shared=self.paired) + sums)


def scoring(case: Case) -> dict[str, float]:
    """Stages of scoring: "scores" with the groups of cross-fitting and the noise floor, and "speed", in passes."""
    method = case.method
    if method is None:
        return {"scores": 0.0, "speed": 0.0}
    examples = float(case.scored)
    if case.folds:
        if method.random:
            examples += draws_of_group(case.folds) * (case.train + case.test)
        else:
            examples += case.test + (0 if method.averages else case.train)
    floor = 0.0
    if not method.random and method.needs - {"weights"}:
        # the repeats take about twice as long as other passes do
        floor = (1 + 2 * noise.REPEATS) * min(noise.EXAMPLES, case.scored)
    return {"scores": case.passes * (examples + floor), "speed": SPEED_SHARE * case.passes * case.scored}


def drawing(case: Case) -> float:
    """Answering every example drawn, and the counterfactuals of those that may be kept, in passes."""
    return 2.0 * (case.settings.train_examples + case.settings.test_examples)


# Evaluations: what each takes, in forward passes of the whole cell. One function each.

FEW_LAYERS, MOST_LAYERS = 0.5, 0.9
"""The share of layers that run where sets of a few hundred heads are replaced, which leave the first ones alone; and
where sets of many thousand neurons are, which touch nearly all."""
FEW = 2000
"""Components up to which they are few."""
CURVES = 4
"""Curves of faithfulness whose points are sets of their own: by score and by size of score, and their controls."""
OF_A_CURVE = 0.55
"""The work of a point of a curve, of that of a set drawn at random: those that keep few components or nearly all begin
at a late layer, and two curves may share a point. In the stored records of ``quick`` 0.54 on heads and 0.49 on neurons,
in cells of ``standard`` on a CPU 0.55 and 0.54."""
CAPABILITY_DOCUMENTS = {"two_choices": (3, 110, 24), "prose": (1, 56, 130)}
"""Of the tasks that ship: how many tasks, how many documents each has, and tokens of a document, both choices read."""


def _layers(case: Case) -> float:
    return FEW_LAYERS if case.shape.size(case.level) <= FEW else MOST_LAYERS


def _orders(case: Case) -> float:
    """In how many orders each trial's components are judged: one, but for controls at random."""
    if case.method is None or not case.method.random or not case.folds:
        return 1.0
    return max(1.0, draws_of_group(case.folds) / case.settings.repetitions)


def _trials(case: Case) -> int:
    return 2 * case.folds * case.settings.repetitions if case.folds else 1


def faithfulness(case: Case) -> float:
    """All curves, on every row that is judged; their last points, where all or nothing is replaced, take no pass."""
    sets = CURVES * (len(curve_sizes(case.shape.size(case.level))) - 1)
    return case.judged * sets * _orders(case) * OF_A_CURVE * case.row(_layers(case))


def ablation(case: Case) -> float:
    """Random sets of every size beside the top ones, which the curves have; the trials divide the draws."""
    options: Any = case.settings.of("ablation")
    orders = _orders(case)
    draws = max(orders, math.ceil(options.draws / _trials(case)))
    sizes = len(ablation_sizes(case.shape.size(case.level)))
    return case.judged * sizes * draws * case.row(_layers(case))


def localization(case: Case) -> float:
    """Insertion and deletion of positions, whole passes, for each ring around them."""
    options: Any = case.settings.of("localization")
    rings = len({0, *options.rings}) if case.level.image else 1
    sets = 2 + 2 * rings * len(removal_sizes(max(1, case.shape.inputs)))
    return case.test * sets * case.shape.forward()


def concepts(case: Case) -> float:
    """Scores of every test example and of its permuted copy, and passes with noise."""
    if not (case.level.hidden_units and case.concepts):
        return 0.0
    options: Any = case.settings.of("concepts")
    return case.test * (2 * case.passes + (1 + 2 * options.draws) * case.shape.forward())


def pruning(case: Case) -> float:
    """The curve by masks by both orders, the sliced model against the masked one, and what it can do."""
    options: Any = case.settings.of("pruning")
    passes = 1 + 2 * len(options.sparsities) + 2
    train = 3 * options.recovery_steps * batch_rows(case.settings)
    return case.settings.test_examples * passes * case.shape.forward() + train + 2 * _capability(case)


def editing(case: Case) -> float:
    """Two kinds of scaling and rewriting, of kept and wrong examples and of prompts that should stay as they are."""
    options: Any = case.settings.of("editing")
    kinds, others, sizes = 3, 16, len(options.sizes)
    return (kinds * sizes * (case.train + case.test) + others * case.test) * case.shape.forward() + 2 * _capability(
        case
    )


def bias(case: Case) -> float:
    """Every example drawn and prose, as the model is and with each number of components suppressed."""
    options: Any = case.settings.of("bias")
    settings = case.settings
    drawn = 1.5 * (settings.train_examples + settings.test_examples) * case.shape.forward()
    return (1 + len(options.sizes)) * (drawn + _documents(case, ("prose",)))


def reliability(case: Case) -> float:
    """Two halves scored again, where scores are no means over examples."""
    return 0.0 if case.method is None or case.method.averages else case.passes * case.train


def sanity(case: Case) -> float:
    """Scores again for each stage of randomized weights, and under other labels."""
    options: Any = case.settings.of("sanity")
    return (len(options.stages) + 1) * case.passes * case.scored


def ground_truth(case: Case) -> float:
    """Scores are compared with what is known; nothing is run."""
    return 0.0


def _capability(case: Case) -> float:
    return _documents(case, tuple(CAPABILITY_DOCUMENTS))


def _documents(case: Case, kinds: Iterable[str]) -> float:
    """Documents read once, in passes of the task's prompts."""
    limit = case.settings.capability.limit
    total = 0.0
    for kind in kinds:
        n_tasks, n, tokens = CAPABILITY_DOCUMENTS[kind]
        total += n_tasks * min(n, limit or n) * case.shape.sizes.flops(tokens, logits=tokens) / case.shape.full
    return total


EVALUATIONS: dict[str, Callable[[Case], float]] = {
    function.__name__: function
    for function in (
        faithfulness,
        ablation,
        localization,
        concepts,
        pruning,
        editing,
        bias,
        reliability,
        sanity,
        ground_truth,
    )
}
"""By name; one of another package counts as nothing."""


# --- estimates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a cell takes.

    Attributes:
        stages: by stage, its work; "drawing" is that of examples which other cells share.
        layers: of the model.
        batch: how many rows run together.
        memory: bytes at most.
    """

    stages: dict[str, Work]
    layers: int
    batch: int
    memory: float

    def work(self, stages: Iterable[str] | None = None) -> Work:
        """Of these stages together; of all by default."""
        names = self.stages if stages is None else stages
        return Work.total(self.stages[name] for name in names if name in self.stages)

    def layers_run(self, work: Work) -> float:
        """How many layers run one after the other, whole batches at a time."""
        return self.layers * math.ceil(work.rows / self.batch)


def estimate(planned: Planned, network: bool = True) -> Estimate:
    """What a cell takes, examples that it shares with others included.

    Raises:
        AttriboardError: its model, task or method is not known here; says why.
    """
    case = case_of(planned, network)
    in_passes = {"drawing": drawing(case), **scoring(case)}
    for name in planned.settings.measured(planned.cell.level):
        if name in EVALUATIONS:
            in_passes[name] = EVALUATIONS[name](case)
    full = case.shape.full
    stages = {
        name: Work(passes * full, passes * full * slowness(case, name), passes) for name, passes in in_passes.items()
    }
    return Estimate(stages, case.shape.n_layers, batch_rows(planned.settings), memory(case))


def batch_rows(settings: Settings) -> int:
    """The rows in one pass; where they follow the memory, as many as there are on a CPU."""
    return settings.batch_size if isinstance(settings.batch_size, int) else ON_CPU


def slowness(case: Case, stage: str) -> float:
    """How much longer an operation takes in a stage than in a plain pass of long rows."""
    replaced = stage in ("faithfulness", "ablation")
    positions = case.shape.positions - (case.shape.shared if replaced and case.paired else 0)
    return (REPLACED if replaced else 1.0) * (1 + SHORT / positions)


def case_of(planned: Planned, network: bool = True) -> Case:
    """What is known of a cell.

    Raises:
        AttriboardError: its model, task or method is not known here; says why.
    """
    cell, settings = planned
    known, level = facts(cell.model, network), get_level(cell.level)
    text = _prompts(cell.task, repr(sorted(cell.task_options.items())), cell.model, cell.task_options, known)
    picture = known.picture if text.picture else 0
    train = min(settings.train_examples, settings.max_kept, settings.max_train or settings.max_kept)
    test = min(settings.test_examples, settings.max_kept)
    shape = Shape.of(
        known.outline,
        positions=max(1, round(text.text) + picture),
        shared=min(round(text.shared), round(text.text) + picture - 1),
        inputs=(picture if level.image else round(text.text)) if level.inputs else 0,
        examples=test if level.inputs else train,
        marks=text.marks,
        foils=text.foils,
        tower=known.tower if picture else 0,
    )
    method = None if cell.precomputed is not None else make_method(cell.method, cell.method_options, cell.seed)
    passes = 0.0 if method is None else _checked(method.passes(shape, level), method)
    return Case(planned, known, level, method, shape, passes, train, test, text.concepts)


def _checked(passes: Any, method: Method) -> float:
    """What a method's :meth:`~attriboard.method.Method.passes` returned, if it is a number of passes."""
    if isinstance(passes, bool) or not isinstance(passes, int | float) or not 0 <= passes < math.inf:
        raise MethodError(f"passes of {method.name} returned {passes!r}, expected a number of at least 0.")
    return float(passes)


_PROMPTS: dict[tuple[str, str, str], Prompts] = {}


def _prompts(task: str, key: str, model: str, options: Mapping[str, Any], known: Facts) -> Prompts:
    place = (task, key, model)
    if place not in _PROMPTS:
        _PROMPTS[place] = prompts(tasks.make(task, dict(options)), known.tokenizer)
    return _PROMPTS[place]


def memory(case: Case) -> float:
    """Bytes held at once, at most: weights, what a batch keeps for its gradients, cached residuals, logits."""
    shape, size = case.shape, DTYPES[case.settings.dtype].itemsize
    batch = batch_rows(case.settings)
    # of each layer: inputs and outputs of its parts, the FFN's three factors, the pattern before and after softmax
    width = 10 * shape.d_model + 3 * shape.d_mlp + 2 * shape.n_heads * (shape.d_head + shape.positions)
    rows = batch * shape.positions * width * size
    kept = rows * shape.n_layers
    residuals = 2 * (case.train + case.test) * shape.n_layers * shape.positions * shape.d_model * size
    unembedding = 4 * shape.d_model * shape.d_vocab
    logits = 3 * max(LOGIT_BYTES, 4 * batch * shape.d_vocab)
    kept += 2 * max(EDGE_BYTES, CHANGE_BYTES) if case.level.edges else 0
    return case.facts.entries * size + kept + min(CACHE_BYTES, residuals) + unembedding + logits


# --- runs -------------------------------------------------------------------------------------------------------------


class Forecast(NamedTuple):
    """What a cell of a run will take, of the stages that it makes itself.

    Attributes:
        ahead: the cell.
        stages: the names of these; "drawing" where it is the first with its examples.
        estimate: None where it is not known.
        why_not: then, why, as a sentence.
    """

    ahead: Ahead
    stages: tuple[str, ...]
    estimate: Estimate | None
    why_not: str = ""


def forecasts(cells: Iterable[Ahead], network: bool = True) -> list[Forecast]:
    """What each cell of a run will take; a cell whose cost cannot be known says why."""
    drawn: set[str] = set()
    found = []
    for ahead in cells:
        cell, settings = ahead.planned
        context = repr((cell.model, cell.task, cell.task_options, cell.seed, settings.drawing()))
        stages = (*(() if context in drawn else ("drawing",)), *ahead.stages)
        drawn.add(context)
        try:
            found.append(Forecast(ahead, stages, estimate(ahead.planned, network)))
        except AttriboardError as error:
            found.append(Forecast(ahead, stages, None, str(error)))
        except Exception as error:  # a mistake in a method's forecast is no reason not to run it
            found.append(Forecast(ahead, stages, None, f"{cell.method_label}: {type(error).__name__}: {error}."))
    return found


REST = "rest"
"""What a cell takes beside its stages: loading the model, drawing examples, writing."""


def pieces(found: Iterable[Forecast]) -> dict[tuple[int, str], Piece]:
    """What is ahead for :class:`.time_left.TimeLeft`: every stage of every cell, by the cell's place and the stage."""
    loaded: set[str] = set()
    ahead: dict[tuple[int, str], Piece] = {}
    for place, (cell_ahead, stages, known, _) in enumerate(found):
        cell = cell_ahead.planned.cell
        for stage in cell_ahead.stages:
            traits = ((cell.model, cell.level), stage, (stage, cell.method_label))
            weight = known.stages[stage].weight if known is not None and stage in known.stages else None
            ahead[place, stage] = Piece(traits, weight)
        drawing = known.work([name for name in stages if name == "drawing"]).weight if known else 0.0
        ahead[place, REST] = Piece((cell.model, REST), drawing, first=cell.model not in loaded)
        loaded.add(cell.model)
    return ahead
