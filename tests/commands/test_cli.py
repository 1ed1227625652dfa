"""The command line as a user types it: a real subprocess where it counts, exit codes and sentences everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from attriboard.cli import main
from tests.bench.toy import SUITE

BINARY = [sys.executable, "-m", "attriboard.cli"]


def _call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["attriboard", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def _process(*arguments: object, **kwargs) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [*BINARY, *map(str, arguments)], capture_output=True, text=True, env=env, check=False, **kwargs
    )


def test_run_then_board_then_rerun_in_real_processes(toy: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = _process("run", toy["suite"], "--out", out, "--include", toy["task"])
    assert run.returncode == 0, run.stderr
    assert "3 cells run, 0 done before, 0 failed" in run.stdout
    assert len(list(out.glob("repeat.heads.*.json"))) == 3
    again = _process("run", toy["suite"], "--out", out, "--include", toy["task"])
    assert again.returncode == 0
    assert "0 cells run, 3 done before, 0 failed" in again.stdout
    board = _process("leaderboard", out)
    assert board.returncode == 0
    assert "| head_ablation |" in board.stdout and "| *random* |" in board.stdout


def test_failed_cells_exit_1_after_everything_else_ran(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--include", toy["task"], "--include", toy["methods"], "--method", "raises", "--method", "random"]
    code, out, err = _call(capsys, "run", toy["suite"], "--out", tmp_path, *arguments)
    assert code == 1
    assert "1 cells run, 0 done before, 1 failed" in out
    assert "failed: repeat / heads / raises" in err and "its own mistake" in err
    code, out, _ = _call(capsys, "leaderboard", tmp_path)
    assert "failed: repeat / heads / raises" in out


@contextmanager
def _interruptible() -> Iterator[None]:
    """Children started inside obey SIGINT also where this process ignores it, as a background job's does.

    A child inherits an ignored signal; a handled one is set to its default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupting_a_run_keeps_finished_cells(toy: dict, tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nfrom dataclasses import dataclass\nfrom attriboard.method import Method\n\n\n"
        '@dataclass\nclass Slow(Method):\n    name = "slow"\n    levels = ("heads",)\n\n'
        "    def attribute(self, model, examples, level):\n        time.sleep(600)\n"
    )
    out = tmp_path / "out"
    arguments = ["run", toy["suite"], "--out", out, "--include", toy["task"], "--include", slow]
    arguments += ["--method", "random", "--method", "slow"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with _interruptible():
        process = subprocess.Popen([*BINARY, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=env)
    with process:
        deadline = time.monotonic() + 120
        while not list(out.glob("repeat.heads.random.*.json")) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished cells are stored" in err and "Traceback" not in err
    assert len(list(out.glob("repeat.heads.*.json"))) == 1


@pytest.mark.parametrize("kind", ["tasks", "methods", "models", "suites"])
def test_list_prints_names_and_json(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, "list", kind, "--json")
    assert code == 0
    rows = json.loads(out)
    expected = {"tasks": "arithmetic", "methods": "head_ablation", "models": "smollm2-135m", "suites": "quick"}[kind]
    assert expected in [row["name"] for row in rows]
    code, out, _ = _call(capsys, "list", kind)
    assert code == 0 and expected in out


def test_list_without_a_kind_prints_all_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, "list", "--json")
    assert code == 0 and set(json.loads(out)) == {"tasks", "methods", "models", "suites"}


def test_validate_accepts_the_shipped_suites_and_a_file(toy: dict, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _call(capsys, "validate")
    assert code == 0 and "quick:" in out and "full:" in out
    code, out, _ = _call(capsys, "validate", toy["suite"], "--include", toy["task"])
    assert code == 0 and "toy: 3 cells" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quikc"], "unknown suite 'quikc': did you mean 'quick'?"),
        (["run", "quick", "--task", "arithmetics"], "unknown task 'arithmetics': did you mean 'arithmetic'"),
        (["run", "quick", "--method", "cnaa"], "unknown method 'cnaa': did you mean 'cna'?"),
        (["run", "quick", "--level", "head"], "unknown level 'head': did you mean 'heads'?"),
        (["run", "quick", "--model", "smollm"], "unknown model 'smollm': did you mean 'smollm2-135m' or"),
        (["run", "quick", "--method", "cna", "--level", "heads"], "cna scores neurons, not heads."),
        (["run", "quick", "--executor", "rya"], "unknown executor 'rya': did you mean 'ray'?"),
        (["run", "quick", "--limit", "0"], "--limit is 0, expected at least 1."),
        (["run", "quick", "--device", "tpu"], "device is 'tpu', expected 'cpu' or 'cuda'."),
        (["run", "quick", "--include", "/nowhere.py"], "--include /nowhere.py does not exist."),
        (["list", "task"], "unknown kind 'task': did you mean 'tasks'"),
        (["leaderboard", "/nowhere"], "there is no results folder /nowhere"),
        (["leaderboard", "results", "--format", "markdown"], "unknown format 'markdown'"),
    ],
)
def test_wrong_names_exit_2_with_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _call(capsys, *arguments)
    assert code == 2
    assert message in err and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _call(capsys, "run", "quick", "--device", "cuda")
    assert code == 2 and "PyTorch sees no GPU here; use --device cpu" in err


def test_an_output_folder_of_another_suite_exits_2(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.json").write_text('{"suite": "quick"}')
    code, _, err = _call(capsys, "run", toy["suite"], "--out", tmp_path, "--include", toy["task"])
    assert code == 2 and "holds the records of suite 'quick', not 'toy'" in err


def test_an_output_path_that_is_a_file_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = _call(capsys, "run", toy["suite"], "--out", tmp_path / "file", "--include", toy["task"])
    assert code == 2 and "cannot make the folder" in err


def test_a_broken_included_file_exits_2_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("import nosuchmodule\n")
    code, _, err = _call(capsys, "list", "--include", tmp_path / "broken.py")
    assert code == 2 and "broken.py cannot be imported: ModuleNotFoundError" in err
    (tmp_path / "empty.py").write_text("x = 1\n")
    code, _, err = _call(capsys, "list", "--include", tmp_path / "empty.py")
    assert code == 2 and "defines no task and no method" in err


def test_a_limited_run_draws_so_many_examples(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", tmp_path, "--include", toy["task"], "--method", "random", "--limit", "3", "--seed", "5"]
    code, _, _ = _call(capsys, "run", toy["suite"], *arguments)
    assert code == 0
    (file,) = tmp_path.glob("repeat.*.json")
    record = json.loads(file.read_text())
    assert record["kept"]["test"]["seen"] == 3 and record["cell"]["seed"] == 5


# --- attribute ----------------------------------------------------------------------------------------------------


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
    code, out, err = _call(capsys, *_prompt(toy, file, level=level, method=method))
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
        assert _call(capsys, *_prompt(toy, file, method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("zero", False), rtol=1e-4, atol=1e-5)
        assert _call(capsys, *_prompt(toy, file, "--foil", "w7", method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("zero", True), rtol=1e-4, atol=1e-5)
        arguments = ["--foil", "w7", "--counterfactual", "w1 w2 w7"]
        assert _call(capsys, *_prompt(toy, file, *arguments, method=method))[0] == 0
        torch.testing.assert_close(_scores(file), literal("counterfactual", True), rtol=1e-4, atol=1e-5)


def test_attribute_scores_a_task(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.safetensors"
    arguments = ["--model", toy["model"], "--method", "eap_ig", "--level", "nodes", "--out", file]
    code, out, err = _call(
        capsys, "attribute", *arguments, "--task", "repeat", "--limit", "6", "--include", toy["task"]
    )
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
    code, _, err = _call(capsys, *_prompt(toy, tmp_path / "s.safetensors", *extra))
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "s.safetensors").exists()


def test_attribute_needs_an_answer(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", toy["model"], "--method", "random", "--level", "heads", "--out", tmp_path / "s.safetensors"]
    code, _, err = _call(capsys, "attribute", *arguments, "--prompt", "w1")
    assert code == 2 and "--prompt and --answer belong together" in err
    code, _, err = _call(capsys, "attribute", *arguments)
    assert code == 2 and "give either --task, or --prompt with --answer" in err


def test_a_folder_that_is_no_model_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _prompt({**toy, "model": tmp_path}, tmp_path / "s.safetensors")
    code, _, err = _call(capsys, *arguments)
    assert code == 2 and "cannot be loaded" in err and "Traceback" not in err


def test_a_suite_with_an_unknown_key_exits_2(toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("colour = 1\n" + SUITE.format(model=toy["model"]))
    code, _, err = _call(capsys, "validate", file)
    assert code == 2 and "bad.toml: key 'colour' is not known here" in err
