"""``attriboard selftest``: a method of one's own, findings for machines, and names that do not exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from attriboard.method import methods
from tests.bench.cli import call, environment, process

FILE = '''
"""Gradient times activation, once right and once with the sign turned."""
from dataclasses import dataclass

from attriboard.method import Method


@dataclass
class Right(Method):
    name = "right"
    paper = description = "a test"
    levels = ("heads",)
    properties = ("finite_differences", "uses_answer")

    def score_batch(self, model, batch, level):
        names = level.hooks(model)
        run = model.run(batch, names, gradients=True)
        gradients = run.gradients(model.metric(run.logits, batch), names)
        return level.reduce(model, {name: run[name].detach() * gradients[name] for name in names})


@dataclass
class Turned(Right):
    name = "turned"

    def score_batch(self, model, batch, level):
        return -super().score_batch(model, batch, level)
'''


def test_a_method_of_ones_own_is_tested_from_its_file_in_a_real_process(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    run = process("selftest", "right", "turned", "--include", file, env=environment(OMP_NUM_THREADS="1"))
    assert run.returncode == 1, run.stderr
    right, turned, failure = run.stdout.strip().splitlines()
    assert right == "right: 9 of 9 properties hold" and turned == "turned: 8 of 9 properties hold"
    assert re.match(
        r"  finite_differences fails: turned at level heads on the tiny gpt2 gives a\d.h\d \S+ instead", failure
    )
    assert "Traceback" not in run.stderr


def test_a_name_that_nobody_registered_exits_2_with_near_names() -> None:
    run = process("selftest", "head_ablatoin")
    assert run.returncode == 2
    assert "unknown method 'head_ablatoin': did you mean 'head_ablation'" in run.stderr


def test_findings_can_be_read_by_machines(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "selftest", "weight_norm", "--json")
    found = json.loads(out)
    assert code == 0
    assert {f["status"] for f in found} == {"holds"} and {f["method"] for f in found} == {"weight_norm"}
    assert [f["property"] for f in found][-3:] == list(methods.get("weight_norm").properties)
    code, out, _ = call(capsys, "selftest", "weight_norm", "center_prior")
    assert code == 0 and out.endswith("all properties of 2 methods that could be tested hold.\n")


@pytest.mark.parametrize("command", ["selftest", "validate"])
def test_a_file_that_declares_an_unknown_property_exits_2(command: str, tmp_path: Path) -> None:
    file = tmp_path / "typo.py"
    right = FILE.partition("@dataclass\nclass Turned")[0]
    file.write_text(right.replace('"uses_answer"', '"use_answer"').replace('"right"', '"typo"'))
    run = process(command, "--include", file)  # in a process of its own: the file stays registered
    code, err = run.returncode, run.stderr
    assert "properties hold" not in run.stdout  # before anything is judged
    assert code == 2 and "property of method 'typo': 'use_answer': did you mean 'uses_answer'" in err
