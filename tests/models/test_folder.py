"""Model folders that are damaged, or do not fit: one sentence each, and none of them hangs or runs anything."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from attriboard.errors import ModelError, UnknownNameError
from attriboard.loading import check_model_name, fingerprint, has_truth, load_model, outline
from attriboard.method import methods
from attriboard.models.folder import check_config, deciding_files, read_json
from attriboard.run.identity import record_identity
from attriboard.run.suite import Suite
from attriboard.task import Example, tasks
from tests.bench.cli import call
from tests.bench.models import fresh, tokenizer

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    fresh("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_config(folder: Path, **changes: Any) -> None:
    change_json(folder / "config.json", **changes)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_what_wrappers_put_before_every_name_is_taken_off(sound: Path, folder: Path, prefix: str) -> None:
    """Of torch.compile, DistributedDataParallel and PEFT: the numbers are those of the model itself."""
    change_weights(folder, lambda state: {prefix + key: value for key, value in state.items()})
    assert load_model(str(folder)).weights_sha256 == load_model(str(sound)).weights_sha256


DOES_NOT_FIT: dict[str, tuple[Change, str]] = {
    "an FFN is missing": (
        lambda f: change_weights(f, lambda s: {k: v for k, v in s.items() if "layers.1.mlp" not in k}),
        r"3 that the model needs and the files lack \(model\.layers\.1\.mlp\.down_proj\.weight, .*gate_proj",
    ),
    "a layer more is told of": (
        lambda f: change_config(f, num_hidden_layers=4),
        r"9 that the model needs and the files lack \(model\.layers\.3\.input_layernorm\.weight, .* and 6 more\)",
    ),
    "a layer less is told of": (
        lambda f: change_config(f, num_hidden_layers=2),
        r"9 that the files hold and the model has no place for \(model\.layers\.2\.input_layernorm\.weight, ",
    ),
    "the head is missing": (
        lambda f: change_weights(f, lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"}),
        r"1 that the model needs and the files lack \(lm_head\.weight\)",
    ),
    "another vocabulary": (
        lambda f: change_config(f, vocab_size=105),
        r"2 that have another shape in the files than in the model \(lm_head\.weight, model\.embed_tokens\.weight\)",
    ),
    "half of the names have an unknown prefix": (
        lambda f: change_weights(f, lambda s: {("mine." if "mlp" in k else "") + k: v for k, v in s.items()}),
        r"9 that the model needs and the files lack .*; 9 that the files hold and the model has no place for",
    ),
}


@pytest.mark.parametrize("what", DOES_NOT_FIT)
def test_weights_that_do_not_fit_the_configuration_are_named(folder: Path, what: str) -> None:
    change, message = DOES_NOT_FIT[what]
    change(folder)
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


@pytest.mark.parametrize("family", ["gpt2", "llama_biases_tied"])
def test_tied_weights_and_old_buffers_may_be_absent_or_left_over(tmp_path: Path, family: str) -> None:
    hf = fresh(family)
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64), "transformer.h.0.attn.masked_bias": torch.ones(())}
    old = old if family == "gpt2" else {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_weights(tmp_path, lambda state: {**state, **old})
    loaded = load_model(str(tmp_path)).hf.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in hf.state_dict().items())


def _cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def _into_shards(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _cut_shard(folder: Path) -> None:
    _into_shards(folder)
    _cut(folder / "model-00002-of-00002.safetensors", 0.5)


def _no_shard(folder: Path) -> None:
    _into_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _shard_elsewhere(folder: Path) -> None:
    _into_shards(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))


def _fifo(name: str) -> Change:
    def put(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return put


def _write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 123456\n"
DAMAGED: dict[str, tuple[Change, str]] = {
    "weights are a pointer": (_write("model.safetensors", POINTER), r"is a Git LFS pointer .* `git lfs pull`"),
    "tokenizer is a pointer": (_write("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
    "half of the weights": (lambda f: _cut(f / "model.safetensors", 0.5), r"model\.safetensors is .* cut short"),
    "no bytes of the weights": (lambda f: _cut(f / "model.safetensors", 0), r"model\.safetensors is .* cut short"),
    "half of a shard": (_cut_shard, r"model-00002-of-00002\.safetensors is missing, damaged or cut short"),
    "a shard is missing": (_no_shard, r"model-00002-of-00002\.safetensors cannot be read \(No such file"),
    "a shard is elsewhere": (_shard_elsewhere, r"names '\.\./model-00002.*', which is not in its folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"cannot be loaded \(.*no file named"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"cannot be loaded: it has no config\.json"),
    "the configuration is a list": (_write("config.json", "[1]"), r"holds a list, expected a JSON object"),
    "the configuration is cut": (lambda f: _cut(f / "config.json", 0.5), r"config\.json is not valid JSON"),
    "the configuration is deep": (_write("config.json", '{"a":' * 5000 + "1" + "}" * 5000), r"config\.json is n"),
    "100 objects deep": (_write("extra.json", '{"a":' * 100 + "1" + "}" * 100), r"nested more than 64 deep"),
    "a number of 5,000 digits": (_write("generation_config.json", f'{{"a": {"9" * 5000}}}'), r"not valid JSON"),
    "a fifo beside": (_fifo("notes.json"), r"notes\.json is no regular file"),
    "the vocabulary is a fifo": (_fifo("vocab.txt"), r"vocab\.txt is no regular file"),
    "the truth is a fifo": (_fifo("truth.json"), r"truth\.json is no regular file"),
    "a link to a device": (lambda f: (f / "x.bin").symlink_to("/dev/zero"), r"x\.bin is no regular file"),
    "a link to nothing": (lambda f: (f / "x.bin").symlink_to("nowhere"), r"x\.bin cannot be read \(No such file"),
    "a billion layers": (
        lambda f: change_config(f, num_hidden_layers=10**9),
        r"num_hidden_layers is 1,000,000,000, expected at most 30, and the files hold 30 weights",
    ),
    "layers as text": (lambda f: change_config(f, num_hidden_layers="many"), r"'many', expected a whole number"),
    "a billion heads": (lambda f: change_config(f, num_attention_heads=10**9), r"expected at most 65,536"),
    "a billion labels": (lambda f: change_config(f, num_labels=10**9), r"num_labels is 1,000,000,000"),
    "a vast width": (
        lambda f: change_config(f, intermediate_size=10**9),
        r"tells of a model of 288,\d{3},\d{3},\d{3} weights, and the files hold 2\d,\d{3}",
    ),
    "no heads": (lambda f: change_config(f, num_attention_heads=0), "cannot be loaded"),
    "heads that do not divide": (lambda f: change_config(f, num_attention_heads=3), "cannot be loaded|do not fit"),
    "a width as text": (lambda f: change_config(f, hidden_size="wide"), "cannot be loaded"),
    "an unknown activation": (lambda f: change_config(f, hidden_act="magic"), "cannot be loaded"),
    "an unknown type": (lambda f: change_config(f, model_type="xmodel"), "cannot be loaded"),
    "quantized": (lambda f: change_config(f, quantization_config={"load_in_8bit": True}), "quantized"),
    "a weight in int8": (
        lambda f: change_weights(f, lambda s: {**s, "lm_head.weight": s["lm_head.weight"].to(torch.int8)}),
        r"model\.safetensors holds quantized weights \(lm_head\.weight is I8\)",
    ),
    "attention from elsewhere": (lambda f: change_config(f, _attn_implementation="a/b"), "is never run"),
    "an adapter": (_adapter, r"holds an adapter \(adapter_config\.json\).* merge_and_unload"),
    "a tokenizer that cannot compare lengths": (
        lambda f: change_json(f / "tokenizer_config.json", model_max_length=[]),
        "cannot be loaded",
    ),
    "half of the tokenizer": (lambda f: _cut(f / "tokenizer.json", 0.5), "cannot be loaded"),
}


@pytest.mark.parametrize("name", ["config.json", "truth.json", "vocab.txt"])
def test_a_fifo_keeps_nothing_waiting(folder: Path, name: str) -> None:
    """Neither what names a model nor what only asks for its shape."""
    _fifo(name)(folder)
    check_model_name(str(folder))
    fingerprint(str(folder))
    assert not has_truth(str(folder))
    for door in (outline, load_model):
        with pytest.raises(ModelError, match=rf"{name} is no regular file"):
            door(str(folder))


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_folder_is_refused_in_one_sentence(folder: Path, what: str) -> None:
    change, message = DAMAGED[what]
    change(folder)
    fingerprint(str(folder))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_model_in_shards_and_one_in_bin_are_the_same_model(sound: Path, folder: Path) -> None:
    expected = load_model(str(sound)).weights_sha256
    _into_shards(folder)
    assert load_model(str(folder)).weights_sha256 == expected
    state = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(str(folder)).weights_sha256 == expected


@pytest.mark.parametrize("where", ["unknown type", "known type", "tokenizer"])
def test_code_that_comes_with_a_model_is_neither_asked_for_nor_run(
    folder: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands on standard input."""
    ran = folder / "RAN"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass X: pass\n")
    if where == "tokenizer":
        classes = {"AutoTokenizer": ["code.X", "code.X"]}
        change_json(folder / "tokenizer_config.json", tokenizer_class="X", auto_map=classes)
    else:
        classes = {"AutoConfig": "code.X", "AutoModelForCausalLM": "code.X"}
        other = {"model_type": "xmodel"} if where == "unknown type" else {}
        change_config(folder, auto_map=classes, **other)
    yes = io.StringIO("y\n" * 9)
    monkeypatch.setattr(sys, "stdin", yes)
    options = ["--method", "random", "--level", "heads", "--prompt", "w1", "--answer", " w2"]
    code, _, err = call(capsys, "attribute", "--model", folder, *options, "--out", folder / "o.safetensors")
    assert not ran.exists()
    assert yes.tell() == 0, "nothing was read from standard input"
    if where == "unknown type":
        assert code == 2 and "it needs code that comes with it, which is never run" in err


@pytest.mark.parametrize(
    "file",
    [
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "tokenizer_config.json",
        "chat_template.jinja",
        "processor.bin",
        "x.pt",
    ],
)
def test_every_file_that_may_decide_a_result_is_in_the_fingerprint(folder: Path, file: str) -> None:
    before = fingerprint(str(folder))
    (folder / file).write_text("one")
    with_it = fingerprint(str(folder))
    (folder / file).write_text("two")
    assert len({before, with_it, fingerprint(str(folder))}) == 3


def test_a_shard_in_a_folder_of_its_own_is_in_the_fingerprint_and_notes_are_not(folder: Path) -> None:
    before = fingerprint(str(folder))
    (folder / "README.md").write_text("notes")
    (folder / ".git").mkdir()
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_text("an earlier one")
    assert fingerprint(str(folder)) == before
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "checkpoint-1/model.safetensors"}}')
    assert folder / "checkpoint-1" / "model.safetensors" in deciding_files(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no_such_folder", "the model folder './no_such_folder' does not exist; check the path"),
        ("/no/such/folder", "does not exist; check the path"),
        ("~/no_such_folder", "the model folder '~/no_such_folder' does not exist"),
        ("a/b/c", "the model folder 'a/b/c' does not exist"),
        ("./" + "x" * 5000, r"cannot be looked at \(File name too long\)"),
        ("smollm2-135", "unknown model 'smollm2-135': did you mean 'smollm2-135m'"),
        ("owner/na me", "unknown model 'owner/na me'"),
    ],
)
def test_a_mistyped_name_is_refused_before_anything_is_loaded(name: str, message: str) -> None:
    for door in (check_model_name, load_model, outline):
        with pytest.raises((ModelError, UnknownNameError), match=message):
            door(name)


def test_every_command_says_the_same_of_a_mistyped_folder(
    toy: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = str(tmp_path / "no_such_folder")
    suite = tmp_path / "suite.toml"
    suite.write_text(toy["suite"].read_text().replace(str(toy["model"]), wrong))
    included = ["--include", toy["task"], "--include", toy["methods"]]
    options = ["--method", "random", "--level", "heads", "--prompt", "w1", "--answer", "w2"]
    commands: list[list[object]] = [
        ["attribute", "--model", wrong, *options, "--out", tmp_path / "o.safetensors"],
        ["run", suite, "--out", tmp_path / "out", *included],
        ["run", toy["suite"], "--model", wrong, "--out", tmp_path / "out", *included],
        ["validate", suite, *included],
        ["audit", "repeat", "--model", wrong, *included[:2]],
    ]
    for command in commands:
        code, _, err = call(capsys, *command)
        assert (code, err.strip()) == (2, f"error: the model folder {wrong!r} does not exist; check the path."), command


def test_the_home_folder_is_where_a_tilde_says(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(sound.parent))
    name = f"~/{sound.name}"
    check_model_name(name)
    model = load_model(name)
    assert (model.name, model.source) == (name, str(sound))
    assert fingerprint(name) == fingerprint(str(sound))
    assert outline(name).n_layers == 3 and not has_truth(name)


def test_what_a_model_is_told_to_count_is_bounded_without_weights_too() -> None:
    check_config({"num_hidden_layers": 126, "max_position_embeddings": 10_485_760, "num_experts": 512}, "c")
    with pytest.raises(ModelError, match="c, text_config: num_hidden_layers is 1,000,000, expected at most 10,000"):
        check_config({"text_config": {"num_hidden_layers": 10**6}}, "c")


def test_json_of_sixty_four_levels_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a":' * 64 + "{}" + "}" * 64)
    with pytest.raises(ModelError, match="nested"):
        read_json(file)
    file.write_text('{"a":' * 60 + "{}" + "}" * 60)
    assert list(read_json(file)) == ["a"]


def test_a_pruned_model_that_was_saved_is_evaluated_again(tmp_path: Path) -> None:
    hf = fresh("llama")
    hf.model.layers[0].self_attn.o_proj.weight[:, :8] = 0
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert torch.isfinite(model.run(model.batch([model.encode(Example("w1 w2", " w3"))])).logits).all()


def test_cells_are_run_again_when_the_vocabulary_beside_the_weights_changes(toy: dict, folder: Path) -> None:
    tasks.include(toy["task"])
    methods.include(toy["methods"])
    file = folder / "suite.toml"
    file.write_text(toy["suite"].read_text().replace(str(toy["model"]), str(folder)))
    planned = Suite.load(file).plan()
    before = [record_identity(cell, settings) for cell, settings in planned]
    assert before == [record_identity(cell, settings) for cell, settings in planned]
    (folder / "vocab.txt").write_text("[UNK]\nw1\n")
    after = [record_identity(cell, settings) for cell, settings in planned]
    assert len(before) == 3 and not set(before) & set(after)
