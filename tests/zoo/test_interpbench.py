"""Models of InterpBench from folders made here in the form of those that are published.

No published file is read. The judge of the weights is a pass written out below from TransformerLens' definitions, by
its names and shapes.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from attriboard.components import LEVELS
from attriboard.errors import ModelError
from attriboard.evaluation import ground_truth
from attriboard.exchange import mib
from attriboard.exchange.precomputed import shape_of
from attriboard.graph import Graph
from attriboard.interventions import EdgeIntervention
from attriboard.loading import fingerprint, has_truth, load_model
from attriboard.measurements.ground_truth import judge
from attriboard.model import Model
from attriboard.scores import Scores
from attriboard.task import Example
from attriboard.zoo.words import word_tokenizer
from tests.bench.cli import process

WORDS = [f"w{i}" for i in range(10)]
CFG: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 4,
    "d_model": 12,
    "d_head": 3,
    "d_mlp": 20,
    "n_ctx": 9,
    "d_vocab": len(WORDS) + 3,
    "d_vocab_out": 5,
    "act_fn": "gelu",
    "eps": 1e-5,
    "normalization_type": None,
    "attention_dir": "causal",
    "use_attn_scale": True,
    "positional_embedding_type": "standard",
    "attn_only": False,
    "gated_mlp": False,
    "parallel_attn_mlp": False,
    "use_local_attn": False,
    "final_rms": False,
    "n_key_value_heads": None,
    "dtype": torch.float32,
    "device": "cpu",
    "model_name": "custom",
    "tokenizer_name": None,
    "seed": 0,
}
"""As TransformerLens writes it, with more entries than matter."""
GRAPH = Graph(2, 4, False, 12)
TOKENS = torch.tensor([[1, 5, 4, 9, 3], [1, 11, 12, 3, 7]])
CIRCUIT = [
    ("hook_embed", "blocks.0.hook_q_input[1]"),
    ("hook_pos_embed", "blocks.0.hook_k_input[1]"),
    ("blocks.0.hook_q_input[1]", "blocks.0.attn.hook_q[1]"),
    ("blocks.0.attn.hook_q[1]", "blocks.0.attn.hook_result[1]"),
    ("blocks.0.attn.hook_result[1]", "blocks.1.hook_mlp_in"),
    ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"),
]
"""By hooks, with what stands within a head and an FFN, and what comes from position embeddings."""
EDGES = ("input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>", "a0.h1->m1", "m1->logits")


def state_dict(cfg: dict[str, Any], seed: int = 0) -> OrderedDict[str, Tensor]:
    """Random weights with TransformerLens' names and shapes, and its buffers."""
    torch.manual_seed(seed)
    d, h, k, m, out = (cfg[name] for name in ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab_out"))
    shapes = {"embed.W_E": (cfg["d_vocab"], d), "pos_embed.W_pos": (cfg["n_ctx"], d)}
    for i in range(cfg["n_layers"]):
        at = f"blocks.{i}"
        shapes |= {f"{at}.attn.W_{part}": (h, d, k) for part in "QKV"} | {f"{at}.attn.W_O": (h, k, d)}
        shapes |= {f"{at}.attn.b_{part}": (h, k) for part in "QKV"} | {f"{at}.attn.b_O": (d,)}
        shapes |= {f"{at}.mlp.W_in": (d, m), f"{at}.mlp.b_in": (m,), f"{at}.mlp.W_out": (m, d), f"{at}.mlp.b_out": (d,)}
        if cfg["normalization_type"] == "LN":
            shapes |= {f"{at}.{norm}.{kind}": (d,) for norm in ("ln1", "ln2") for kind in "wb"}
    if cfg["normalization_type"] == "LN":
        shapes |= {"ln_final.w": (d,), "ln_final.b": (d,)}
    shapes |= {"unembed.W_U": (d, out), "unembed.b_U": (out,)}
    state = OrderedDict((name, 0.4 * torch.randn(shape)) for name, shape in shapes.items())
    for i in range(cfg["n_layers"]):
        state[f"blocks.{i}.attn.mask"] = torch.ones(cfg["n_ctx"], cfg["n_ctx"]).tril().bool()
        state[f"blocks.{i}.attn.IGNORE"] = torch.tensor(-math.inf)
    return state


def literal(cfg: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """``[B, T, V]`` logits, head by head."""
    act: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": functional.gelu,
        "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": functional.relu,
    }

    def normed(x: Tensor, at: str) -> Tensor:
        if cfg["normalization_type"] is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + cfg["eps"]).sqrt()
        return x * state[f"{at}.w"] + state[f"{at}.b"] if cfg["normalization_type"] == "LN" else x

    n = tokens.shape[1]
    future = torch.ones(n, n).triu(1).bool()
    resid = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][:n]
    for i in range(cfg["n_layers"]):
        at, read = f"blocks.{i}", normed(resid, f"blocks.{i}.ln1")
        written = state[f"{at}.attn.b_O"]
        for h in range(cfg["n_heads"]):
            q, k, v = (read @ state[f"{at}.attn.W_{p}"][h] + state[f"{at}.attn.b_{p}"][h] for p in "QKV")
            scores = q @ k.transpose(1, 2) / (math.sqrt(cfg["d_head"]) if cfg["use_attn_scale"] else 1)
            written = written + scores.masked_fill(future, -math.inf).softmax(-1) @ v @ state[f"{at}.attn.W_O"][h]
        resid = resid + written
        hidden = act[cfg["act_fn"]](normed(resid, f"{at}.ln2") @ state[f"{at}.mlp.W_in"] + state[f"{at}.mlp.b_in"])
        resid = resid + hidden @ state[f"{at}.mlp.W_out"] + state[f"{at}.mlp.b_out"]
    return normed(resid, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def case(folder: Path, edges: Any = CIRCUIT, tokenizer: bool = False, **changes: Any) -> Path:
    cfg = {**CFG, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict(cfg), folder / "ll_model.pth")
    (folder / "ll_model_cfg.pkl").write_bytes(pickle.dumps(cfg))
    (folder / "meta.json").write_text(json.dumps({"epochs": 3}))
    if edges is not None:
        (folder / "edges.pkl").write_bytes(pickle.dumps(edges))
    if tokenizer:
        word_tokenizer(WORDS).save_pretrained(folder)
    return folder


def loaded(folder: Path) -> Model:
    return load_model(str(folder))


# --- the same model -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("norm", [None, "LN", "LNPre"])
def test_the_model_gives_the_logits_that_its_weights_say(norm: str | None, act: str, tmp_path: Path) -> None:
    cfg = {**CFG, "normalization_type": norm, "act_fn": act, "use_attn_scale": act != "relu"}
    model = loaded(case(tmp_path / "case", **cfg))  # which proves its heads, neurons and norms
    assert (model.n_layers, model.n_heads, model.d_head, model.d_mlp, model.d_vocab) == (2, 4, 3, 20, 5)
    assert model.graph == GRAPH and model.source == str(tmp_path / "case")
    state = {name: value.double() if value.is_floating_point() else value for name, value in state_dict(cfg).items()}
    found = model.hf.double()(TOKENS).logits
    assert torch.allclose(found, literal(cfg, state, TOKENS), rtol=1e-12, atol=1e-12)


def test_a_configuration_may_be_an_object_of_transformer_lens_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded(case(tmp_path / "dict")).hf.state_dict()
    module = types.ModuleType("transformer_lens.HookedTransformerConfig")
    kind = type("HookedTransformerConfig", (), {"__module__": module.__name__})
    module.HookedTransformerConfig = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformer_lens", types.ModuleType("transformer_lens"))
        patch.setitem(sys.modules, module.__name__, module)
        settings = kind()
        vars(settings).update(CFG, device=torch.device("cpu"))
        content = pickle.dumps(settings)
    (case(tmp_path / "object") / "ll_model_cfg.pkl").write_bytes(content)
    (case(tmp_path / "json") / "ll_model_cfg.pkl").unlink()
    (tmp_path / "json" / "ll_model_cfg.json").write_text(json.dumps({k: v for k, v in CFG.items() if k != "dtype"}))
    for name in ("object", "json"):
        found = loaded(tmp_path / name).hf.state_dict()
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    assert "transformer_lens" not in sys.modules


def test_names_may_say_more_and_the_shape_is_known_without_the_weights(tmp_path: Path) -> None:
    folder = case(tmp_path / "case")
    (folder / "ll_model.pth").rename(folder / "ll_model_510.pth")
    (folder / "ll_model_cfg.pkl").rename(folder / "ll_model_cfg_510.pkl")
    assert loaded(folder).graph == GRAPH
    (folder / "ll_model_510.pth").write_bytes(b"")
    assert shape_of(str(folder)).graph == GRAPH


@torch.no_grad()
@pytest.mark.parametrize("norm", [None, "LN", "LNPre"])
def test_without_an_edge_replaced_it_is_the_prompt_and_with_all_the_counterfactual(
    norm: str | None, tmp_path: Path
) -> None:
    model = loaded(case(tmp_path / "case", tokenizer=True, normalization_type=norm, d_vocab_out=CFG["d_vocab"]))
    encoded = model.encode(Example("w1 w2 w3 w4", " w5", " w6", "w1 w2 w7 w4"))
    batch = model.batch([encoded])
    assert batch.counterfactual is not None
    masks = torch.stack([torch.zeros(GRAPH.n_edges).bool(), torch.ones(GRAPH.n_edges).bool()])
    found = EdgeIntervention(model, batch, LEVELS["edges"])(masks, lambda logits, rows: logits)
    for values, expected in zip(found, (batch, batch.counterfactual)):
        assert torch.allclose(values.flatten(), model.run(expected).logits.flatten(), rtol=1e-5, atol=1e-5)


# --- the circuit ----------------------------------------------------------------------------------------------------


def test_the_circuit_is_of_heads_whose_every_input_counts(tmp_path: Path) -> None:
    folder = case(tmp_path / "case")
    model = loaded(folder)
    assert has_truth(str(folder)) and model.truth is not None
    truth = {level: {part.name for part in parts} for level, parts in model.truth.levels.items()}
    assert truth == {"edges": set(EDGES), "nodes": {"a0.h1", "m1"}, "heads": {"a0.h1"}}
    assert model.truth.at("edges", [Example("w1", " w2", " w3")]).helps == set(EDGES)
    (folder / "edges.pkl").unlink()
    assert not has_truth(str(folder)) and loaded(folder).truth is None


def test_scores_of_edges_are_judged_by_the_circuit(tmp_path: Path) -> None:
    model = loaded(case(tmp_path / "case", tokenizer=True, d_vocab_out=CFG["d_vocab"]))
    context: Any = types.SimpleNamespace(model=model, train=[model.encode(Example("w1 w2", " w5", " w6"))])
    names = list(GRAPH.edge_names)
    for wrong, expected in (((), 1.0), (EDGES, 0.0)):
        values = torch.tensor([float((name in EDGES) != bool(wrong)) for name in names])
        judged = ground_truth.evaluate(context, Scores(values, "edges", names), LEVELS["edges"])
        assert sum(judged.cases[0].truth) == len(EDGES) and len(judged.cases[0].truth) == GRAPH.n_edges
        assert judge(np.array(judged.cases[0].scores), np.array(judged.cases[0].truth))["truth_auroc"] == expected


def test_names_of_the_graph_are_taken_and_sets_of_them(tmp_path: Path) -> None:
    folder = case(tmp_path / "case", {("input", "a0.h1"), ("a0.h1", "m1"), ("m1", "logits")})
    truth = loaded(folder).truth
    assert truth is not None and {part.name for part in truth.levels["edges"]} == set(EDGES)


def test_mibs_graph_says_by_what_a_head_reads(tmp_path: Path) -> None:
    folder, own = case(tmp_path / "case"), ("input->a0.h1<k>", "a0.h1->logits")
    kept = torch.tensor([name in own for name in GRAPH.edge_names])
    scores = Scores(torch.zeros(GRAPH.n_edges), "edges", list(GRAPH.edge_names))
    mib.save(scores, GRAPH, folder / "interpbench_graph.json", kept)
    truth = loaded(folder).truth
    assert truth is not None and {part.name for part in truth.levels["edges"]} == set(own)


def test_the_circuit_and_the_weights_are_part_of_what_identifies_it(tmp_path: Path) -> None:
    folder = case(tmp_path / "case")
    before = fingerprint(str(folder))
    (folder / "edges.pkl").write_bytes(pickle.dumps(CIRCUIT[:-1]))
    other = fingerprint(str(folder))
    torch.save(state_dict(CFG, seed=1), folder / "ll_model.pth")
    assert len({before, other, fingerprint(str(folder))}) == 3


def test_the_command_scores_its_edges_and_the_file_comes_back(tmp_path: Path) -> None:
    folder = case(tmp_path / "case", tokenizer=True, d_vocab_out=CFG["d_vocab"])
    done = process(
        *("attribute", "--model", folder, "--method", "eap", "--level", "edges", "--out", tmp_path / "e.safetensors"),
        *("--prompt", "w1 w2 w3 w4", "--answer", " w5", "--foil", " w6", "--counterfactual", "w1 w2 w7 w4"),
    )
    assert done.returncode == 0, done.stderr
    scores = load_file(tmp_path / "e.safetensors")["scores"]
    assert tuple(scores.shape) == (GRAPH.n_edges,) and bool(scores.any())


# --- what is wrong --------------------------------------------------------------------------------------------------


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = state_dict(CFG)
        del state[name]
        torch.save(state, folder / "ll_model.pth")

    return change


def with_more(**tensors: Tensor) -> Callable[[Path], None]:
    return lambda folder: torch.save(
        {**state_dict(CFG), **{name.replace("__", "."): value for name, value in tensors.items()}},
        folder / "ll_model.pth",
    )


def pickled(name: str, value: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(value))


def configured(**changes: Any) -> Callable[[Path], Any]:
    return pickled("ll_model_cfg.pkl", {**CFG, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            configured(attention_dir="bidirectional"),
            "'bidirectional' as attention_dir, which is not computed here; known",
        ),
        (configured(positional_embedding_type="rotary"), "'rotary' as positional_embedding_type"),
        (configured(normalization_type="RMS"), "'RMS' as normalization_type, which is not computed here"),
        (configured(act_fn="solu_ln"), "'solu_ln' as act_fn"),
        (configured(n_heads="4"), "'4' as n_heads, expected a whole number from 1 to 1,024."),
        (configured(n_layers=10**9), "1000000000 as n_layers, expected a whole number from 1 to 1,024."),
        (configured(d_mlp=2**18), "does not fit its configuration: transformer.h.0.mlp.c_fc.weight would have shape"),
        (configured(act_fn=None), "None as act_fn, which is not computed here; known are 'gelu'"),
        (configured(eps="small"), "'small' as eps, expected a number between 0 and 1."),
        (configured(d_vocab_out=[[1]]), "a list as d_vocab_out, expected a whole number."),
        (configured(d_head=5), "4 heads of width 5 in a residual stream of width 12"),
        (configured(attn_scale=3.0), "3.0 as attn_scale, expected 1.73205."),
        (pickled("ll_model_cfg.pkl", [1, 2]), "holds a list, expected the settings of a HookedTransformer"),
        (pickled("ll_model_cfg.pkl", {**CFG, "x": Runs()}), "it needs pathlib"),
        (lambda f: (f / "ll_model_cfg.pkl").write_bytes(b"no pickle"), "cannot be read as plain values"),
        (
            lambda f: (f / "ll_model_cfg.pkl").unlink(),
            "should hold one file ll_model_cfg* of InterpBench's, and has none",
        ),
        (lambda f: (f / "ll_model_2.pth").write_bytes(b""), "has ll_model.pth, ll_model_2.pth; leave one."),
        (without("blocks.1.attn.W_Q"), "it lacks blocks.1.attn.W_Q."),
        (with_more(ln_final__w=torch.ones(12)), "it has beside them ln_final.w."),
        (with_more(embed__W_E=torch.ones(3, 12)), "does not fit its configuration"),
        (with_more(blocks__0__attn__W_Q=torch.ones(4)), "does not fit its configuration"),
        (lambda f: torch.save({"a": Runs()}, f / "ll_model.pth"), "cannot be read as tensors alone"),
        (lambda f: torch.save([torch.ones(2)], f / "ll_model.pth"), "is not a state dict"),
        (pickled("edges.pkl", [("hook_embed", "blocks.0.hook_q_input[7]")]), "names 'blocks.0.hook_q_input[7]', which"),
        (
            pickled("edges.pkl", [("hook_embed", "blocks.0.hook_resid_mid")]),
            "names 'blocks.0.hook_resid_mid', which is",
        ),
        (pickled("edges.pkl", [("m1", "m0")]), "has the edge 'm1->m0', which a model of 2 layers, 4 heads"),
        (pickled("edges.pkl", CIRCUIT[1:4]), "names no edge of a model of 2 layers, 4 heads and width 12"),
        (pickled("edges.pkl", {"a": 1}), "is not a list of edges, each a pair of names of hooks."),
        (pickled("edges.pkl", [Runs()]), "it needs pathlib"),
        (lambda f: (f / "my_graph.json").write_text('{"edges": []}'), "it has no edges by name."),
    ],
)
def test_what_is_no_case_is_one_sentence_and_runs_no_code(
    change: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change(case(tmp_path / "case"))
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path / "case")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


def test_a_pickle_that_tells_of_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    folder = case(tmp_path / "case")
    (folder / "edges.pkl").write_bytes(b"\x80\x02]r\xff\xff\xff\xff.")  # a list as the memo's entry 2^32 - 1
    with pytest.raises(ModelError, match=r"names no edge of a model"):
        loaded(folder)


def test_entries_that_are_not_there_are_what_transformer_lens_takes(tmp_path: Path) -> None:
    folder = case(tmp_path / "case", normalization_type="LN", d_vocab_out=CFG["d_vocab"])
    few = {key: CFG[key] for key in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn")}
    (folder / "ll_model_cfg.pkl").write_bytes(pickle.dumps(few))
    state = state_dict({**CFG, "normalization_type": "LN", "d_vocab_out": CFG["d_vocab"]})
    expected = literal({**CFG, "normalization_type": "LN"}, state, TOKENS)
    with torch.no_grad():
        assert torch.allclose(loaded(folder).hf(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_folder_of_transformers_is_none(toy: dict, tmp_path: Path) -> None:
    case(tmp_path / "both")
    (tmp_path / "both" / "config.json").write_text((toy["model"] / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"):
        loaded(tmp_path / "both")
