"""InterpBench: models that were trained to have a known circuit, from a folder of what is published for one of them.

A case of InterpBench (Gupta et al. 2024, arXiv 2407.14494) is a folder of a TransformerLens model and its circuit:
``ll_model.pth`` (a state dict of a ``HookedTransformer``), ``ll_model_cfg.pkl`` (its configuration, a dictionary or a
``HookedTransformerConfig``; ``.json`` is read too) and ``edges.pkl`` (the circuit: pairs of names of hooks). MIB's own
copy has ``interpbench_graph.json`` instead, a circuit in the format of :mod:`attriboard.exchange.mib`. Names may say
more (``ll_model_510.pth``), as some of those published do. The model becomes a ``GPT2LMHeadModel`` with the same
weights: its norms as they are (``LN``), without weights of their own (``LNPre``: they are folded into what follows), or
none (null).

Pickles are read by an unpickler that makes plain values alone: no class of TransformerLens is imported, and no code in
a file is run.

The circuit is known by heads and FFNs: training does not say by which of its query, key and value a head reads. So an
edge into any of them is an edge into all three, unless MIB's graph says which. What comes from position embeddings is
no edge here, since they are no node of the graph.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ..errors import ModelError
from ..files import kind_and_reason, read_bytes
from ..graph import INPUT, LOGITS, PARTS, Graph
from ..models.folder import check_files, read_json
from ..truth import Part, Truth

WEIGHTS, CONFIG, EDGES, GRAPH = "ll_model*.pth", "ll_model_cfg*", "edges.pkl", "*graph.json"
"""The files of a case."""
NORMS = ("LN", "LNPre", None)
"""What TransformerLens calls norms with weights, without, and none."""
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_fast": "gelu_fast", "relu": "relu", "silu": "silu"}
"""By TransformerLens' name of an activation function, transformers'."""
EXPECTED: Mapping[str, tuple[Any, ...]] = {
    "normalization_type": NORMS,
    "act_fn": tuple(ACTIVATIONS),
    "attention_dir": ("causal",),
    "positional_embedding_type": ("standard",),
    "attn_only": (False, None),
    "gated_mlp": (False, None),
    "parallel_attn_mlp": (False, None),
    "use_local_attn": (False, None),
    "final_rms": (False, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
}
"""By entry of a configuration, what GPT-2's code computes."""
DEFAULTS: Mapping[str, Any] = {
    "normalization_type": "LN",
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "use_attn_scale": True,
    "attn_scale": -1.0,
    "eps": 1e-5,
    "d_vocab_out": -1,
}
"""What TransformerLens takes for an entry that is not there."""
SIZES = {"n_layers": 2**10, "n_heads": 2**10, "d_model": 2**16, "d_head": 2**16, "d_mlp": 2**18, "n_ctx": 2**16} | {
    "d_vocab": 2**20
}
"""The sizes of a model, and the largest that are read."""
INERT = 2.0**30
"""Norms that are none divide by this and multiply by it again: its square plus any mean square is its square."""
_LARGEST = 2**26
"""Bytes of a pickle of settings or names."""
_UNUSED = re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE)")
"""What a state dict holds beside weights."""


@dataclass(frozen=True)
class Case:
    """What a folder says of its model.

    Attributes:
        graph: of the model.
        cfg: the configuration, by TransformerLens' names.
    """

    folder: Path
    graph: Graph
    cfg: Mapping[str, Any]


def is_case(folder: Path) -> bool:
    """Whether a folder holds a model in InterpBench's form, and none in that of transformers."""
    return not (folder / "config.json").exists() and any(folder.glob(WEIGHTS))


def read_case(folder: Path) -> Case:
    """The shape of a case, from its configuration.

    Raises:
        ModelError: the configuration is not there, cannot be read as plain values, or is of a model that GPT-2's code
            does not compute; names the entry and its value.
    """
    check_files(folder)
    file = _only(folder, CONFIG)
    cfg = read_json(file) if file.suffix == ".json" else _plain(file)
    cfg = vars(cfg) if isinstance(cfg, _Settings) else cfg
    if not isinstance(cfg, Mapping):
        raise ModelError(f"{file} holds a {type(cfg).__name__}, expected the settings of a HookedTransformer by name.")
    cfg = {**DEFAULTS, **cfg}
    for name, most in SIZES.items():
        value = cfg.get(name)
        if type(value) is not int or not 0 < value <= most:
            raise ModelError(f"{file} has {_shown(value)} as {name}, expected a whole number from 1 to {most:,}.")
    for name, able in EXPECTED.items():
        value = cfg.get(name)
        if not any(value is x or (type(value) is type(x) and value == x) for x in able):
            raise ModelError(
                f"{file} has {_shown(value)} as {name}, which is not computed here; known are "
                f"{', '.join(map(repr, able))}."
            )
    if cfg["n_heads"] * cfg["d_head"] != cfg["d_model"]:
        raise ModelError(
            f"{file} tells of {cfg['n_heads']} heads of width {cfg['d_head']} in a residual stream of width "
            f"{cfg['d_model']}; read are models whose heads are together as wide as it."
        )
    usual = math.sqrt(cfg["d_head"]) if cfg["use_attn_scale"] else 1.0
    for name, fine, expected in (
        ("use_attn_scale", lambda x: isinstance(x, bool), "true or false"),
        ("attn_scale", lambda x: _is_number(x) and (x == -1 or math.isclose(x, usual, rel_tol=1e-6)), f"{usual:g}"),
        ("eps", lambda x: _is_number(x) and 0 < x < 1, "a number between 0 and 1"),
        ("d_vocab_out", lambda x: type(x) is int and (x == -1 or 0 < x <= SIZES["d_vocab"]), "a whole number"),
    ):
        if not fine(cfg[name]):
            raise ModelError(f"{file} has {_shown(cfg[name])} as {name}, expected {expected}.")
    return Case(folder, Graph(cfg["n_layers"], cfg["n_heads"], False, cfg["d_model"]), cfg)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value as messages show it; of what is no plain value its kind alone, since it may be endless."""
    plain = value is None or isinstance(value, (str, int, float))
    return repr(value)[:60] if plain else f"a {type(value).__name__}"


def outline(folder: Path) -> GPT2LMHeadModel:
    """The model of a case without weights, on the meta device; raises as :func:`read_case`."""
    with torch.device("meta"):
        return _empty(read_case(folder))


def build(folder: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast | None, Truth | None]:
    """The model of a case in float32, the tokenizer if one lies beside it, and its circuit if one does.

    Raises:
        ModelError: as :func:`read_case`; or the weights or the circuit cannot be read as plain values, or do not fit
            the configuration.
    """
    case = read_case(folder)
    weights = _weights(case)
    with torch.device("meta"):  # before memory is taken for it
        expected = _empty(case).state_dict()
    if other := [name for name, value in weights.items() if value.shape != expected[name].shape]:
        found, right = (tuple(some[other[0]].shape) for some in (weights, expected))
        raise ModelError(
            f"{_only(folder, WEIGHTS)} does not fit its configuration: {other[0]} would have shape {found}, expected "
            f"{right}."
        )
    hf = _empty(case)
    hf.load_state_dict(weights)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
    return hf, tokenizer, read_circuit(case)


def _empty(case: Case) -> GPT2LMHeadModel:
    cfg = case.cfg
    none = cfg["normalization_type"] is None
    config = GPT2Config(
        vocab_size=cfg["d_vocab"],
        n_embd=cfg["d_model"],
        n_inner=cfg["d_mlp"],
        n_layer=cfg["n_layers"],
        n_head=cfg["n_heads"],
        n_positions=cfg["n_ctx"],
        activation_function=ACTIVATIONS[cfg["act_fn"]],
        layer_norm_epsilon=INERT**2 if none else float(cfg["eps"]),
        scale_attn_weights=cfg["use_attn_scale"],
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf = GPT2LMHeadModel(config)
    hf.lm_head = nn.Linear(cfg["d_model"], cfg["d_vocab"] if cfg["d_vocab_out"] == -1 else cfg["d_vocab_out"])
    if none:
        config.inert_norms = True  # the architecture's norms neither center nor scale
        for parent, name in [*((b, n) for b in hf.transformer.h for n in ("ln_1", "ln_2")), (hf.transformer, "ln_f")]:
            setattr(parent, name, nn.RMSNorm(cfg["d_model"], eps=INERT**2))
    return hf


def _weights(case: Case) -> dict[str, Tensor]:
    """The weights of a case by transformers' names."""
    file = _only(case.folder, WEIGHTS)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged archives and foreign pickles each raise their own kinds
        raise ModelError(
            f"{file} cannot be read as tensors alone ({type(error).__name__}); no file is opened that needs code for "
            f"it."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ModelError(f"{file} is not a state dict: it holds other things than tensors by name.")
    expected = _names(case)
    left = {str(name) for name in state if not _UNUSED.fullmatch(str(name))}
    if faults := [
        f"{what} {', '.join(some[:5])}"
        for what, some in (("lacks", sorted(expected - left)), ("has beside them", sorted(left - expected)))
        if some
    ]:
        raise ModelError(
            f"{file} does not hold the weights that its configuration tells of: it {' and '.join(faults)}."
        )
    values = {name: state[name].float() for name in expected}
    try:
        return _converted(case, values)
    except RuntimeError as error:  # a tensor with another number of axes
        raise ModelError(f"{file} does not fit its configuration ({kind_and_reason(error)}).") from error


def _names(case: Case) -> set[str]:
    """The weights that TransformerLens has of such a model."""
    normed = case.cfg["normalization_type"] == "LN"
    parts = [f"attn.{kind}_{part}" for kind in "Wb" for part in "QKVO"]
    parts += ["mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out"]
    parts += [f"{norm}.{kind}" for norm in ("ln1", "ln2") for kind in "wb"] if normed else []
    blocks = {f"blocks.{i}.{part}" for i in range(case.graph.n_layers) for part in parts}
    final = {"ln_final.w", "ln_final.b"} if normed else set()
    return blocks | final | {"embed.W_E", "pos_embed.W_pos", "unembed.W_U", "unembed.b_U"}


def _converted(case: Case, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TransformerLens' weights as GPT-2's: of projections ``[in, out]``, heads one after the other."""
    weights = {
        "transformer.wte.weight": state["embed.W_E"],
        "transformer.wpe.weight": state["pos_embed.W_pos"],
        "lm_head.weight": state["unembed.W_U"].T,
        "lm_head.bias": state["unembed.b_U"],
        **_norm(case, state, "ln_final", "transformer.ln_f"),
    }
    for i in range(case.graph.n_layers):
        old, new = f"blocks.{i}", f"transformer.h.{i}"
        # [H, d_model, d_head] -> [d_model, H d_head]
        made = [state[f"{old}.attn.W_{part}"].permute(1, 0, 2).flatten(1) for part in "QKV"]
        weights |= {
            f"{new}.attn.c_attn.weight": torch.cat(made, dim=1),
            f"{new}.attn.c_attn.bias": torch.cat([state[f"{old}.attn.b_{part}"].flatten() for part in "QKV"]),
            f"{new}.attn.c_proj.weight": state[f"{old}.attn.W_O"].flatten(0, 1),
            f"{new}.attn.c_proj.bias": state[f"{old}.attn.b_O"],
            f"{new}.mlp.c_fc.weight": state[f"{old}.mlp.W_in"],
            f"{new}.mlp.c_fc.bias": state[f"{old}.mlp.b_in"],
            f"{new}.mlp.c_proj.weight": state[f"{old}.mlp.W_out"],
            f"{new}.mlp.c_proj.bias": state[f"{old}.mlp.b_out"],
            **_norm(case, state, f"{old}.ln1", f"{new}.ln_1"),
            **_norm(case, state, f"{old}.ln2", f"{new}.ln_2"),
        }
    return weights


def _norm(case: Case, state: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    kind, ones = case.cfg["normalization_type"], torch.ones(case.graph.d_model)
    if kind == "LN":
        return {f"{new}.weight": state[f"{old}.w"], f"{new}.bias": state[f"{old}.b"]}
    return {f"{new}.weight": ones, f"{new}.bias": 0 * ones} if kind == "LNPre" else {f"{new}.weight": INERT * ones}


# --- the circuit --------------------------------------------------------------------------------------------------


def has_circuit(folder: Path) -> bool:
    """Whether a circuit lies beside the model of a case."""
    return (folder / EDGES).is_file() or any(folder.glob(GRAPH))


def read_circuit(case: Case) -> Truth | None:
    """The circuit beside a case's weights, as edges and as the nodes and heads at their ends; None where none is.

    Where both files are there, MIB's graph counts: it says by what a head reads.

    Raises:
        ModelError: the file cannot be read, or names an edge that the model does not have, or none that it has.
    """
    if any(case.folder.glob(GRAPH)):
        file = _only(case.folder, GRAPH)
        edges = _edges_of_graph(file)
    elif (case.folder / EDGES).is_file():
        file = case.folder / EDGES
        edges = _edges_of_hooks(case, file)
    else:
        return None
    known = set(case.graph.edge_names)
    if unknown := [edge for edge in edges if edge not in known]:
        raise ModelError(f"{file} has the edge {unknown[0]!r}, which a model of {case.graph} does not have.")
    if not edges:
        raise ModelError(f"{file} names no edge of a model of {case.graph}; remove it, or put the right one there.")
    ends = {end.split("<")[0] for edge in edges for end in edge.split("->")}
    nodes = [name for name in case.graph.src_nodes if name in ends and name != INPUT]
    return Truth(
        proof="Trained so that its parts do what those of a known program do (InterpBench, arXiv 2407.14494); the "
        "circuit is the published one, and is not proven here.",
        levels={
            "edges": _parts(name for name in case.graph.edge_names if name in set(edges)),
            "nodes": _parts(nodes),
            "heads": _parts(name for name in nodes if name.startswith("a")),
        },
    )


def _parts(names: Iterable[str]) -> tuple[Part, ...]:
    return tuple(Part(name=name) for name in names)


def _edges_of_graph(file: Path) -> list[str]:
    edges = read_json(file).get("edges")
    if not isinstance(edges, dict) or not all(isinstance(edge, dict) for edge in edges.values()):
        raise ModelError(f"{file} is not MIB's JSON of a circuit: it has no edges by name.")
    return [name for name, edge in edges.items() if edge.get("in_graph") is True]


def _edges_of_hooks(case: Case, file: Path) -> list[str]:
    pairs = _plain(file)
    if not isinstance(pairs, (list, tuple, set, frozenset)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(end, str) for end in pair)
        for pair in pairs
    ):
        raise ModelError(f"{file} is not a list of edges, each a pair of names of hooks.")
    edges: dict[str, None] = {}
    for source, target in pairs:
        here, there = (_node(file, case.graph, end) for end in (source, target))
        if here is None or here == there:  # position embeddings; within one head or FFN
            continue
        reads = [f"{there}<{part}>" for part in PARTS] if there is not None and there[0] == "a" else [there]
        edges |= {f"{here}->{read}": None for read in reads}
    return list(edges)


_HOOK = re.compile(r"blocks\.(\d+)\.(.+?)(?:\[(\d+)\])?")
_OF_HEADS = re.compile(r"(attn\.)?hook_(q|k|v|result|z|q_input|k_input|v_input)")
_OF_FFNS = re.compile(r"(hook_mlp_in|hook_mlp_out|mlp\.hook_pre|mlp\.hook_post)")


def _node(file: Path, graph: Graph, hook: str) -> str | None:
    """The node that a hook belongs to; None for position embeddings.

    Raises:
        ModelError: it belongs to none.
    """
    name, _, index = hook.partition("[")
    if name in ("hook_embed", "embed", INPUT):
        return INPUT
    if name in ("hook_pos_embed", "pos_embed"):
        return None
    if hook in (LOGITS, *graph.src_nodes):
        return hook
    if name in ("unembed", "ln_final", f"blocks.{graph.n_layers - 1}.hook_resid_post"):
        return LOGITS
    found = _HOOK.fullmatch(hook)
    if found is not None and int(found[1]) < graph.n_layers:
        if _OF_FFNS.fullmatch(found[2]) and not index:
            return f"m{int(found[1])}"
        if _OF_HEADS.fullmatch(found[2]) and index and int(found[3]) < graph.n_heads:
            return f"a{int(found[1])}.h{int(found[3])}"
    raise ModelError(f"{file} names {hook!r:.80}, which is no head, FFN, embedding or logits of a model of {graph}.")


# --- files --------------------------------------------------------------------------------------------------------


def _only(folder: Path, pattern: str) -> Path:
    """The file of a case that is called so.

    Raises:
        ModelError: there is none, or there are several.
    """
    files = sorted(file for file in folder.glob(pattern) if file.suffix in (".pth", ".pkl", ".json"))
    if len(files) != 1:
        there = f"has {', '.join(file.name for file in files)}; leave one" if files else "has none"
        raise ModelError(f"{folder} should hold one file {pattern} of InterpBench's, and {there}.")
    return files[0]


_TYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


class _Settings:
    """What stands for a ``HookedTransformerConfig`` in a pickle: its attributes, and nothing else."""


class _PlainValues(pickle._Unpickler):  # the one in C takes memory for as many values as a file says that it has
    """Makes plain values, torch's names of types and :class:`_Settings`; nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "HookedTransformerConfig" and module.partition(".")[0] == "transformer_lens":
            return _Settings
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) == ("torch", "device"):
            return torch.device
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset"):
            return set if name == "set" else frozenset
        raise pickle.UnpicklingError(f"it needs {module}.{name}")


def _plain(file: Path) -> Any:
    """What a pickle holds, where it is made of plain values.

    Raises:
        ModelError: it is not, or cannot be read.
    """
    content = read_bytes(file, error=ModelError, most=_LARGEST)
    try:
        return _PlainValues(io.BytesIO(content)).load()
    except Exception as error:  # what is damaged raises whatever the opcode at hand does
        raise ModelError(
            f"{file} cannot be read as plain values ({kind_and_reason(error)}); no file is opened that needs code for "
            f"it."
        ) from error
