"""`maskline recipe`: which of its recipes a running line works with."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

__all__ = ["recipe"]

recipe = typer.Typer(no_args_is_help=True, help="Change a running line over to another recipe.")


@recipe.callback()
def commands() -> None: ...


@recipe.command()
def use(
    wanted: Annotated[str, typer.Argument(metavar="RECIPE", help="Another recipe of the line: its TOML file.")],
    timeout_s: Annotated[float, typer.Option(min=1, help="For the line to be up again.")] = 120.0,
) -> None:
    """Change the running line over: parts in flight are finished, then it starts again with this recipe, and from now
    on always. It must be calibrated already; refused, the line goes on as it was."""
    from edge import change_over
    from edge.audit import operator
    from edge.paths import runtime_dir
    from edge.recipes import load_recipe

    console, resolved = Console(soft_wrap=True), load_recipe(wanted)
    change_over.use(wanted, operator(), runtime_dir(resolved.line), timeout_s, still=console.print)
    console.print(f"line {resolved.line} runs with {wanted} ({resolved.sha256[:12]})")
