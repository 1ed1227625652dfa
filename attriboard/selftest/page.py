"""docs/selftests.md: every property in words, and which methods declare it."""

from __future__ import annotations

from ..components import LEVELS
from ..method import methods
from .findings import PROPERTIES  # with every property registered


def page() -> str:
    """``docs/selftests.md``: every property in words, and which methods declare it."""
    lines = [
        "# Self-tests of methods",
        "",
        "Made from `attriboard/selftest/` by `make docs`.",
        "",
        "`attriboard selftest [METHOD ...] [--include PATH] [--json]` checks, on tiny random models that are built on",
        "the spot (a GPT-2, a Llama with grouped queries, a LLaVA), what a method's definition implies. Exit code 0:",
        "every property holds; 1: one does not, and the sentence has the numbers; 2: a name is not known. The judges",
        "are plain passes of the plain Hugging Face model, one unpadded prompt at a time, which share no code with the",
        "methods or with the hooks that these use.",
        "",
        "## Owed by every method",
        "",
        "| property | what it says |",
        "|---|---|",
        *(f"| `{one.name}` | {_cell(one.meaning)} |" for one in PROPERTIES.values() if one.universal),
        "",
        "## Declared by a method whose definition implies it",
        "",
        "| property | what it says | levels | declared by |",
        "|---|---|---|---|",
    ]
    for one in PROPERTIES.values():
        if not one.universal:
            levels = "all" if one.levels == tuple(LEVELS) else ", ".join(one.levels) or "the method as a whole"
            declaring = ", ".join(f"`{m.name}`" for m in methods if one.name in m.properties)
            lines.append(f"| `{one.name}` | {_cell(one.meaning)} | {levels} | {declaring} |")
    lines += [
        "",
        "## Declaring properties",
        "",
        "A method lists what its definition implies in a class attribute; a name that does not exist is refused by",
        "`attriboard validate` and `attriboard selftest`, with the nearest names:",
        "",
        "```python",
        "@dataclass",
        "class MyMethod(ReplacingMethod):",
        '    name = "my_method"',
        '    levels = ("heads", "neurons")',
        '    properties = ("finite_differences", "exact_on_linear_model", "zero_for_idle", "uses_answer")',
        "```",
        "",
        "Then `attriboard selftest my_method --include my_method.py`. A declared property is judged at every level",
        "that the method and the property have in common, and fails if there is none. A property of a new kind is one",
        "function in `attriboard/selftest/` whose docstring states the mathematics and the tolerance: in `owed.py`",
        "what every method owes; in `derivatives.py`, `sums.py`, `edges.py`, `literal.py`, `zeros.py`, `dependence.py`",
        "and `controls.py` what a method declares.",
        "",
        "## In a test suite of one's own",
        "",
        "`parametrize_with_properties` makes one pytest test of every property that a method owes or declares, as",
        "scikit-learn's `parametrize_with_checks` does for estimators. A property that does not hold fails with the",
        "sentence that has the numbers; one that cannot be tested is skipped with the reason.",
        "",
        "```python",
        "from attriboard.selftest import parametrize_with_properties",
        "",
        "from my_method import MyMethod",
        "",
        "",
        "@parametrize_with_properties([MyMethod])",
        "def test_my_method(method, check):",
        "    check(method)",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")
