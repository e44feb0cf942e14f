"""The command line: `maskline COMMAND`. Thin: every command calls one function that a program could call too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.errors import MasklineError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split(":")[0] if __doc__ else "")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a TOML file, or the name of one that ships.", metavar="RECIPE")]
StateDir = Annotated[Path | None, typer.Option(help="Journal, calibration and pictures; default ~/.local/state/maskline/LINE.")]


@app.command()
def check(recipe: RecipeArgument) -> None:
    """Check a recipe: print it as it is resolved, and its hash; or say which field is wrong (exit code 78)."""
    from edge.plan import plan_line
    from edge.settings import load_recipe

    resolved = load_recipe(recipe)
    plan = plan_line(resolved)
    console = Console(soft_wrap=True)
    console.print_json(resolved.model_dump_json())
    for name, station in plan.stations.items():
        count, height, width, channels = station.prepare.tiles_shape
        megabytes = station.layout.slot_bytes * station.layout.count / 2**20
        console.print(
            f"station {name}: {count} tile{'s' if count > 1 else ''} of {width} x {height} x {channels}, "
            f"bundle {station.bundle.manifest.name} ({station.bundle.sha256[:12]}), {megabytes:.0f} MiB of shared memory"
        )
    console.print(f"sha256 {resolved.sha256}")


@app.command()
def run(recipe: RecipeArgument, state_dir: StateDir = None) -> None:
    """Run a line until it is stopped (SIGTERM, Ctrl-C) or its sources end."""
    from edge.logs import configure_logs
    from edge.paths import runtime_dir
    from edge.paths import state_dir as default_state_dir
    from edge.settings import load_recipe
    from edge.supervisor import Supervisor

    configure_logs("supervisor")
    resolved = load_recipe(recipe)
    Supervisor(resolved, runtime_dir(resolved.line), state_dir or default_state_dir(resolved.line)).run()


def main() -> None:
    """Entry point of the command: a user's mistake ends in one message and an exit code, never in a traceback."""
    try:
        app()
    except MasklineError as error:
        print(f"maskline: {error}", file=sys.stderr)  # noqa: T201 - the one place that speaks to the user's terminal
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
