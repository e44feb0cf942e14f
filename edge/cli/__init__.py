"""The command line: `maskline COMMAND`. Thin: every command calls one function that a program could call too."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edge import __version__
from edge.cli import (
    actuate,
    audit,
    bench,
    compare,
    engine,
    export,
    journal,
    keys,
    line,
    networks,
    recipe,
    record,
    recordings,
    replay,
    roll,
    scale,
)
from edge.errors import MasklineError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Watches a camera inspection line and answers for every part, in time: PASS, REJECT or UNINSPECTED.",
)

# In the order in which `maskline --help` lists them.
for command in (
    *(line.check, line.calibrate, line.run, line.watch, line.report, line.demo, line.simulate),
    *(scale.scale, roll.roll),
    *(record.record, replay.replay, recordings.recover, export.export),
    *(actuate.actuate, audit.audit),
    *(networks.engines, networks.fit, compare.compare, compare.bootstrap),
    bench.bench,
):
    app.command()(command)
app.command("import")(export.import_files)
app.add_typer(actuate.actuators, name="actuators")
app.add_typer(engine.engine, name="engine")
app.add_typer(journal.journal, name="journal")
app.add_typer(keys.keys, name="keys")
app.add_typer(recipe.recipe, name="recipe")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maskline {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the command: a user's mistake ends in one message and an exit code, never in a traceback."""
    try:
        app()
    except MasklineError as error:
        print(f"maskline: {error}", file=sys.stderr)  # noqa: T201 - the one place that speaks to the user's terminal
        sys.exit(error.exit_code)
