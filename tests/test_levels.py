"""Levels and replacements are declared in their place, asked for by name nowhere else, and added there alone."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from attriboard import components, interventions, levels
from attriboard.components import InputLevel, Level, get_level, summed
from attriboard.errors import ConfigurationError, SkipCell
from attriboard.evaluation.ablation import AblationEvaluation
from attriboard.evaluation.context import Context
from attriboard.evaluation.crossfit import trials
from attriboard.evaluation.faithfulness import FaithfulnessEvaluation
from attriboard.evaluation.sets import Question
from attriboard.exchange.mib import check_level
from attriboard.exchange.precomputed import read
from attriboard.interventions import REPLACEMENT_KINDS, Intervention, ReplacementKind, component_means, single_effects
from attriboard.levels import USUAL_REPLACEMENT, InputReplacement, LevelFacts, check_replacement
from attriboard.loading import load_model
from attriboard.measurements.ablation import Ablation
from attriboard.method import methods
from attriboard.model import Batch, Model
from attriboard.scores import Scores
from attriboard.task import Task, tasks
from tests.bench.models import EXAMPLES, LAYERS, close, hooked, literal_means, literal_replacements, plain_run

ROOT = Path(__file__).parents[1]
OWN = ("attriboard/levels.py", "attriboard/components.py", "attriboard/interventions.py")
REPLACEMENTS = get_args(InputReplacement)
NAMES = {*levels.LEVELS, *REPLACEMENTS}


# --- nobody asks for a name -------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("attriboard", "methods", "tasks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if name not in OWN:
                yield name, ast.parse(file.read_text())


def strings(node: ast.AST | None) -> set[str]:
    """The strings that a literal is, or holds as elements or keys."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return set().union(*map(strings, node.elts))
    if isinstance(node, ast.Dict):
        return set().union(*map(strings, node.keys))
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("frozenset", "set", "tuple", "list"):
        return set().union(*map(strings, node.args))
    return set()


def collections(tree: ast.Module) -> dict[str, ast.AST]:
    """What is assigned to names in the module and its functions, but for strings; class attributes are declarations."""
    values: dict[str, ast.AST] = {}

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Assign, ast.AnnAssign)) and not isinstance(node, ast.ClassDef):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                if child.value is not None and not isinstance(child.value, ast.Constant):
                    values.update({target.id: child.value for target in targets if isinstance(target, ast.Name)})
            walk(child)

    walk(tree)
    return values


def asked_by_name(tree: ast.Module) -> list[str]:
    """Where a level or replacement is told by its name: comparisons, cases, tables looked up by what is no literal."""
    known = collections(tree)

    def named(node: ast.AST) -> bool:
        told = strings(known.get(node.id) if isinstance(node, ast.Name) else node)
        # a region of a picture can have the name of a replacement: then it stands beside other regions
        return bool(told & set(levels.LEVELS)) or (bool(told) and told <= NAMES)

    def looked_up(table: ast.AST, key: ast.AST) -> bool:
        literal = known.get(table.id, table) if isinstance(table, ast.Name) else table
        return isinstance(literal, ast.Dict) and named(literal) and not isinstance(key, ast.Constant)

    def by_name(node: ast.AST) -> bool:
        if isinstance(node, ast.Compare):
            return any(map(named, (node.left, *node.comparators)))
        if isinstance(node, ast.MatchValue):
            return named(node.value)
        if isinstance(node, ast.Subscript):
            return looked_up(node.value, node.slice)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            return bool(node.args) and looked_up(node.func.value, node.args[0])
        return False

    return [ast.unparse(node) for node in ast.walk(tree) if by_name(node)]


def test_no_module_but_their_own_tells_levels_or_replacements_by_name() -> None:
    places = {name: asked for name, tree in sources() if (asked := asked_by_name(tree))}
    assert places == {}


def test_no_module_but_their_own_keeps_a_list_of_levels() -> None:
    lists = [
        f"{name}: {ast.unparse(statement)}"
        for name, tree in sources()
        for statement in tree.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None
        if any(isinstance(n, ast.Constant) and n.value in levels.LEVELS for n in ast.walk(statement.value))
    ]
    assert lists == []


@pytest.mark.parametrize(
    "line",
    [
        'level.name == "heads"',
        '"neurons" != level.name',
        'level.name in ("heads", "neurons")',
        'level not in {"nodes"}',
        'SOME = ("heads",)\nlevel.name in SOME',
        'SOME: dict = {"heads": 1}\nlevel.name in SOME',
        '{"heads": 1, "neurons": 2}[level.name]',
        '{"heads": 1}.get(level.name, 2)',
        'def f():\n    sites = {"heads": 1}\n    return sites[level.name]',
        'match level.name:\n    case "tokens":\n        pass',
        'self.replacement == "mean"',
        'kind in frozenset({"blur"})',
    ],
)
def test_every_way_of_telling_them_by_name_is_seen(line: str) -> None:
    assert len(asked_by_name(ast.parse(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        'class M:\n    levels = ("heads",)\n\n    def f(self, level):\n        return level.name in self.levels',
        'get_level("heads")',
        'parts = {"heads": []}\nparts["heads"].append(1)',
        'content["nodes"]',
        "level.name == other.name",
        '{"object": 1, "background": 2}[region]',
    ],
)
def test_declarations_are_not(line: str) -> None:
    assert asked_by_name(ast.parse(line)) == []


# --- what is declared fits together -----------------------------------------------------------------------------------


def test_every_level_that_is_stated_has_its_class_in_the_same_order() -> None:
    assert list(components.LEVELS) == list(levels.LEVELS)
    for name, level in components.LEVELS.items():
        assert {key: getattr(level, key) for key in vars(levels.LEVELS[name])} == vars(levels.LEVELS[name])
        assert level.inputs == isinstance(level, InputLevel) and (level.inputs or not level.image)
        assert level.edges or (level.sites and (level.inputs or level.naming))
        assert pickle.loads(pickle.dumps(level)) == copy.deepcopy(level) == level
    assert tuple(components.COMPONENTS) == levels.COMPONENTS and tuple(components.INPUTS) == levels.INPUTS


def test_facts_are_what_the_classes_can_do() -> None:
    model = hooked("llama")
    for level in components.COMPONENTS.values():
        assert level.size(model) == len(level.names(model)) == len(set(level.names(model)))
        assert level.size(model) == len(level.layer_of(model))
        if level.edges:
            with pytest.raises(SkipCell, match="there is no literal judge of edges"):
                level.columns_of(model)
        else:
            assert len(level.columns_of(model)) * model.n_layers == level.size(model)
        if level.editable or level.one_vector:
            weights = level.output_weights(model, 0)
            assert len(weights) * model.n_layers == level.size(model) and weights.shape[-1] == model.d_model
            assert (weights.dim() == 2) == level.one_vector
        else:
            with pytest.raises(NotImplementedError, match=level.name):
                level.output_weights(model, 0)


def test_every_replacement_that_is_named_is_written_and_taken_by_a_level() -> None:
    assert tuple(REPLACEMENT_KINDS) == REPLACEMENTS
    assert {name for level in levels.LEVELS.values() for name in level.replacements} == set(REPLACEMENTS)
    for level in levels.LEVELS.values():
        assert set(levels.REPLACEMENTS) <= set(level.replacements) or level.replacements == (USUAL_REPLACEMENT,)
    with pytest.raises(ConfigurationError, match="not for edges, which have counterfactual"):
        check_replacement("zero", "edges")
    with pytest.raises(ConfigurationError, match="'blur' is for patches, not for heads, which have counterfactual"):
        check_replacement("blur", "heads")


# --- one more level: all heads and the FFN of a layer as one component ------------------------------------------------


class Layers(Level):
    sites = ("z", "mlp_out")

    def shape(self, model: Model) -> tuple[int, ...]:
        return (model.n_layers,)

    def masks(self, chosen: Tensor) -> dict[str, Tensor]:
        return {"z": chosen[:, None, None, None], "mlp_out": chosen[:, None, None]}

    def reduce(self, model: Model, products: Mapping[str, Tensor]) -> Tensor:
        return summed(model, products, "z").sum((-2, -1)) + summed(model, products, "mlp_out").sum(-1)


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Level:
    """The level, stated in the one module and written in the other."""
    facts = LevelFacts("layers", ("layer",), "whole layers", naming=lambda model, layer: [f"l{layer}"])
    level = Layers(**vars(facts))
    monkeypatch.setitem(levels.LEVELS, "layers", facts)
    monkeypatch.setitem(components.LEVELS, "layers", level)
    monkeypatch.setitem(components.COMPONENTS, "layers", level)
    return level


@pytest.mark.parametrize("replacement", levels.REPLACEMENTS)
def test_a_new_level_is_replaced_as_a_whole_plain_run_replaces_it(layers: Level, replacement: Any) -> None:
    model, plain = hooked("llama", batch_size=5), plain_run("llama")
    means = literal_means(plain, EXAMPLES, "nodes")
    masks = torch.cartesian_prod(*[torch.tensor([False, True])] * LAYERS)
    intervention = Intervention(
        model, model.batch(EXAMPLES), layers, replacement, component_means(model, EXAMPLES, layers)
    )
    logits = intervention(masks, lambda logits, batch: logits)
    for b, e in enumerate(EXAMPLES):
        values = literal_replacements(plain, e, "nodes", replacement, means)
        for mask, row in zip(masks, logits[:, b]):
            edits = {site: (lambda x, value=value: value) for site, value in values.items() if mask[site[1]]}
            assert close(row, plain.run(e.tokens, edits)[0], 1e-5)


def test_methods_score_a_new_level(layers: Level) -> None:
    model = hooked("llama")
    patched, estimated = (
        type(name, (methods.get(name),), {"levels": ("layers",)})() for name in ("activation_patching", "eap_ig")
    )
    scores = patched.attribute(model, EXAMPLES, get_level("layers"))
    effects = single_effects(Intervention(model, model.batch(EXAMPLES), layers))
    assert scores.names == ["l0", "l1", "l2"][:LAYERS] and close(scores.values, effects.mean(0), 1e-5)
    nodes = methods.make("eap_ig").attribute(model, EXAMPLES, get_level("nodes"))
    assert close(estimated.attribute(model, EXAMPLES, layers).values, nodes.values.sum(1), 1e-5)


def test_a_new_level_is_evaluated_and_goes_through_files(
    layers: Level, toy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.include(toy["task"])
    monkeypatch.setattr(Task, "levels", levels.names_where(image=False))
    assert "layers" in tasks.make("repeat").levels
    model = load_model(str(toy["model"]), batch_size=4)
    context = Context(model, tasks.make("repeat"), 0, 12, 12, 6, 4)
    values = torch.randn(layers.shape(model), generator=torch.Generator().manual_seed(3))
    scores = Scores(values, "layers", layers.names(model))
    check_replacement("mean", "layers")
    whole = trials(context, scores.values, None, 0, 1, ())
    faithful = FaithfulnessEvaluation().ask(Question(context, layers, whole, "mean"))
    assert faithful.sizes == sorted({1, model.n_layers // 2, model.n_layers}) and len(faithful.absolute) == len(
        faithful.sizes
    )
    assert AblationEvaluation().ask(Question(context, layers, whole), Ablation.Options(draws=2)).sizes
    with pytest.raises(Exception, match="scores of layers cannot be written for MIB: MIB's nodes are attention heads"):
        check_level("layers")
    scores.save(tmp_path / "mine.safetensors", model=str(toy["model"]))
    precomputed = read(tmp_path / "mine.safetensors").fitting(model)
    assert precomputed.names == scores.names and torch.equal(precomputed.values, scores.values)


# --- one more replacement ---------------------------------------------------------------------------------------------


class Halved(ReplacementKind):
    """Half of the activation, at the same position."""

    name: Any = "halved"

    def activations(self, model: Model, batch: Batch, names: Any, means: dict[str, Tensor] | None) -> dict[str, Tensor]:
        run = model.run(batch, names)
        return {name: run[name] / 2 for name in names}

    def literally(self, own: Any, counterfactual: Any, mean: Any) -> Any:
        return {key: x / 2 for key, x in own.items()}


def test_a_new_replacement_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interventions.REPLACEMENT_KINDS, "halved", Halved())
    model, level, halved = hooked("llama"), get_level("heads"), "halved"
    effects = single_effects(Intervention(model, model.batch(EXAMPLES), level, halved))  # type: ignore[arg-type]
    zeroed = single_effects(Intervention(model, model.batch(EXAMPLES), level, "zero"))
    assert effects.shape == zeroed.shape and not close(effects, zeroed, 1e-2) and bool(effects.any())
