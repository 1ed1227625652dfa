"""``attriboard attribute``: the file it writes, and input that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.bench.cli import call


def _prompt(toy: dict, out: Path, *extra: object, level: str = "heads", method: str = "head_ablation") -> list[object]:
    base = ["attribute", "--model", toy["model"], "--method", method, "--level", level, "--out", out]
    return [*base, "--prompt", "w1 w2 w3", "--answer", "w3", *extra]


@pytest.mark.parametrize(
    ("level", "method", "shape"),
    [
        ("heads", "head_ablation", (3, 4)),
        ("neurons", "log_prob_increase", (3, 48)),
        ("attn_neurons", "log_prob_increase", (3, 4, 8)),
        ("nodes", "direct_logit_attribution", (3, 5)),
    ],
)
def test_attribute_writes_the_contracted_tensor_and_metadata(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, method: str, shape: tuple[int, ...]
) -> None:
    file = tmp_path / "scores.safetensors"
    code, out, err = call(capsys, *_prompt(toy, file, level=level, method=method))
    assert code == 0, err
    assert "p('w3')" in out
    with safe_open(file, "pt") as stored:
        assert list(stored.keys()) == ["scores"]
        scores, metadata = stored.get_tensor("scores"), stored.metadata()
    assert tuple(scores.shape) == shape and scores.dtype == torch.float32
    assert metadata["method"] == method and metadata["level"] == level and metadata["answer"] == "w3"
    assert metadata["model"] == str(toy["model"])
    assert len(json.loads(metadata["names"])) == scores.numel()


def _scores(file: Path) -> torch.Tensor:
    with safe_open(file, "pt") as stored:
        return stored.get_tensor("scores")


def test_attribute_zeroes_without_a_counterfactual_and_patches_with_one(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from attriboard.loading import load_model
    from attriboard.model import hook_name

    model = load_model(str(toy["model"]))
    ids = model.tokenizer("w1 w2 w3")["input_ids"]
    other = model.tokenizer("w1 w2 w7")["input_ids"]
    answer, foil = ids[-1], other[-1]

    def literal(replacement: str, with_foil: bool) -> torch.Tensor:
        def value(edits: dict) -> torch.Tensor:
            handles = [
                model.hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook)
                for layer, hook in edits.items()
            ]
            with torch.no_grad():
                logits = model.hf(torch.tensor([ids])).logits[0, -1]
            for handle in handles:
                handle.remove()
            return logits[answer] - logits[foil] if with_foil else logits.log_softmax(-1)[answer]

        stored: dict[int, torch.Tensor] = {}
        for layer in range(3):
            module = model.hf.model.layers[layer].self_attn.o_proj
            handle = module.register_forward_pre_hook(lambda m, a, layer=layer: stored.__setitem__(layer, a[0].clone()))
            with torch.no_grad():
                model.hf(torch.tensor([other]))
            handle.remove()
        out = torch.zeros(3, 4)
        for layer in range(3):
            for head in range(4):

                def hook(module, arguments, layer=layer, head=head):
                    x = arguments[0].clone()
                    at = slice(head * 8, head * 8 + 8)
                    x[..., at] = stored[layer][..., at] if replacement == "counterfactual" else 0.0
                    return (x,)

                out[layer, head] = value({}) - value({layer: hook})
        return out

    assert hook_name("z", 0)
    file = tmp_path / "s.safetensors"
    for method in ("head_ablation", "activation_patching"):
        assert call(capsys, *_prompt(toy, file, method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("zero", False), rtol=1e-4, atol=1e-5)
        assert call(capsys, *_prompt(toy, file, "--foil", "w7", method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("zero", True), rtol=1e-4, atol=1e-5)
        arguments = ["--foil", "w7", "--counterfactual", "w1 w2 w7"]
        assert call(capsys, *_prompt(toy, file, *arguments, method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("counterfactual", True), rtol=1e-4, atol=1e-5)


def test_attribute_scores_a_task(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.safetensors"
    arguments = ["--model", toy["model"], "--method", "eap_ig", "--level", "nodes", "--out", file]
    code, out, err = call(capsys, "attribute", *arguments, "--task", "repeat", "--limit", "6", "--include", toy["task"])
    assert code == 0, err
    assert "examples of repeat answered correctly" in out and _scores(file).shape == (3, 5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--answer", "w3 w4"], "the answer 'w3 w4' is 2 tokens for"),
        (["--foil", "w3 w4"], "the foil 'w3 w4' is 2 tokens for"),
        (["--foil", "w4", "--counterfactual", "w1 w2"], "the counterfactual is 2 tokens long and the prompt 3"),
        (["--prompt", "w1 " * 40], "the prompt is 40 tokens long"),
        (["--prompt", ""], "the prompt is empty"),
        (["--task", "arithmetic"], "give either --task, or --prompt with --answer."),
        (["--level", "neurons"], "head_ablation scores heads, nodes, not neurons."),
        (["--method", "in_context_heads"], "needs examples with a mark called 'label'"),
        (["--method", "head_ablatoin"], "unknown method 'head_ablatoin': did you mean 'head_ablation'"),
        (["--model", "nowhere-model"], "unknown model 'nowhere-model'"),
        (["--out", "scores.json"], "--out scores.json does not end in .safetensors"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
    ],
)
def test_attribute_refuses_bad_input_with_one_sentence(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    code, _, err = call(capsys, *_prompt(toy, tmp_path / "s.safetensors", *extra))
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "s.safetensors").exists()


def test_attribute_needs_an_answer(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", toy["model"], "--method", "random", "--level", "heads", "--out", tmp_path / "s.safetensors"]
    code, _, err = call(capsys, "attribute", *arguments, "--prompt", "w1")
    assert code == 2 and "--prompt and --answer belong together" in err
    code, _, err = call(capsys, "attribute", *arguments)
    assert code == 2 and "give either --task, or --prompt with --answer" in err


def test_a_folder_that_is_no_model_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _prompt({**toy, "model": tmp_path}, tmp_path / "s.safetensors")
    code, _, err = call(capsys, *arguments)
    assert code == 2 and "cannot be loaded" in err and "Traceback" not in err
