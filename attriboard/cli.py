"""The command line: list, validate, selftest, audit, run, attribute, leaderboard, refresh, check, studies, exports.

Exit codes: 0 success; 1 some cells or self-tests failed (after everything else ran), or a check found something worse,
slower or missing; 2 a name, option or input that cannot be used.
"""

from __future__ import annotations

import logging
import sys
import warnings

import typer
from rich.markup import escape

from .commands.attribute import attribute
from .commands.audit import audit
from .commands.check import check
from .commands.compare_forms import compare_forms
from .commands.export import export_lm_eval, export_mib
from .commands.leaderboard import leaderboard
from .commands.list import list_names
from .commands.output import err
from .commands.refresh import refresh
from .commands.run import run
from .commands.scale_questions import scale_questions
from .commands.selftest import selftest
from .commands.validate import validate
from .errors import AttriboardError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

app.command("list")(list_names)
for command in (
    validate,
    selftest,
    audit,
    run,
    attribute,
    compare_forms,
    scale_questions,
    leaderboard,
    refresh,
    check,
):
    app.command()(command)
app.command()(export_lm_eval)
app.command()(export_mib)

# what commands were called before
app.command("compare", hidden=True)(compare_forms)
app.command("regression", hidden=True)(scale_questions)


def main() -> None:
    """The entry point: one clear sentence for every error a user can cause."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
    try:
        app()
    except AttriboardError as error:
        # a name typed in other bytes than UTF-8 cannot be printed as it is
        text = str(error).encode("utf-8", "backslashreplace").decode()
        err.print(f"[red]error:[/red] {escape(text)}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
