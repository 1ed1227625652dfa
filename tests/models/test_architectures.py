"""The architecture table: families outside it, and variants it does not fit, are refused with a way out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from attriboard.components import LEVELS
from attriboard.errors import ConfigurationError, ModelError
from attriboard.method import methods
from attriboard.model import Model
from attriboard.models.architectures import _NO_GRID, ARCHITECTURES, VISION, Table, architectures
from attriboard.task import Example
from tests.bench.models import CONFIGS, EVERY, SEEING, close, fresh, tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def test_families_outside_the_table_are_refused_with_those_inside() -> None:
    hf = fresh("gpt2")
    hf.config.model_type = "blooming"
    with pytest.raises(ModelError, match=r"'blooming'.*llama.*gpt2.*--include"):
        Model(hf)


def test_an_opt_model_that_normalizes_its_residual_stream_in_place_is_refused() -> None:
    config = CONFIGS["opt"]()
    config.do_layer_norm_before = False
    with pytest.raises(ModelError, match="in place"):
        Model(AutoModelForCausalLM.from_config(config))


def test_at_least_thirty_types_of_text_models_and_eight_that_see_are_proven_here() -> None:
    """Every type in the table has a tiny model that the tests of all families take."""
    built = {CONFIGS[family]().model_type for family in EVERY}
    inside = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}  # proven within the models that see
    assert built == {kind for entry in architectures for kind in entry.model_types} - inside
    assert len(built) >= 30
    assert set(VISION) == set(SEEING) and len(SEEING) >= 8


def test_the_page_of_families_says_what_the_table_says() -> None:
    text, _, seeing = PAGE.read_text(encoding="utf-8").partition("## With vision")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "`" in line]
    named = [(row[0].removeprefix("| "), tuple(re.findall(r"`(\w+)`", row[1]))) for row in rows[1:]]
    assert named == [(entry.family, entry.model_types) for entry in ARCHITECTURES]
    taken, _, refused = seeing.partition("Refused")
    assert re.findall(r"^\| `([\w-]+)` \| \w", taken, re.MULTILINE) == list(VISION)
    assert re.findall(r"^\| `([\w-]+)` \| (.*) \|$", refused, re.MULTILINE)[1:] == list(_NO_GRID.items())


# --- an architecture of one's own -------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The file that docs/adding.md shows, and a folder with a model of its type."""
    code = re.search(r"```python\n(# own_llama\.py\n.*?)```", (PAGE.parent / "adding.md").read_text("utf-8"), re.DOTALL)
    assert code is not None
    (tmp_path / "own_llama.py").write_text(code[1], encoding="utf-8")
    fresh("llama").save_pretrained(tmp_path / "own")
    tokenizer().save_pretrained(tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    return tmp_path


QUESTION = (
    *("attribute", "--model", "own", "--method", "direct_logit_attribution", "--level", "heads"),
    *("--out", "scores.safetensors", "--prompt", "w5 w17 w33 w21", "--answer", " w12", "--foil", " w30"),
)


def test_an_included_architecture_gives_the_scores_of_the_same_model_under_its_known_name(own: Path) -> None:
    command = [sys.executable, "-m", "attriboard.cli", *QUESTION, "--include", "own_llama.py"]
    done = subprocess.run(command, cwd=own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(own / "scores.safetensors")["scores"]
    method, model = methods.make("direct_logit_attribution"), Model(fresh("llama"), tokenizer())
    encoded = model.encode(Example(prompt="w5 w17 w33 w21", answer=" w12", foil=" w30"))
    assert close(found, method.attribute(model, (encoded,), LEVELS["heads"]).values, 1e-6)


def test_an_architecture_for_a_type_that_is_known_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from attriboard.models.architectures import ARCHITECTURES\n"
        "MINE = replace(ARCHITECTURES[0], family='Mine')\n"
    )
    table = Table()
    with pytest.raises(ConfigurationError, match="'Mine' is for models of type 'llama', which 'Llama' is for already"):
        table.include(file)
    file.write_text(file.read_text().replace("family='Mine'", "family='Mine', model_types=('mine',)"))
    assert table.include(file) == 1 and table.find("mine") is not None
    assert table.include(file) == 1 and sum(entry.family == "Mine" for entry in table) == 1
    assert Table().find("mine") is None
