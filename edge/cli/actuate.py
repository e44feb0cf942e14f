"""`maskline actuate` and `maskline actuators ...`: the ejectors of a line, and their panel. Thin, as `edge.cli` is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edge.cli.arguments import RecipeArgument, StateDir

if TYPE_CHECKING:
    from edge.settings import Recipe

__all__ = ["actuate", "actuators"]

actuators = typer.Typer(no_args_is_help=True, help="What the running actuators do, and what a person may tell them.")

NameArgument = Annotated[str, typer.Argument(help="Of the actuator.", metavar="NAME")]
Why = Annotated[str, typer.Option(help="For the audit trail.")]


def actuate(
    recipe: RecipeArgument,
    only: Annotated[str | None, typer.Option(help="This actuator alone; default: all of the recipe.")] = None,
    commissioning: Annotated[
        bool, typer.Option("--commissioning", help="Verdicts are live and the ejectors rest; audited.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Drive the ejectors of a line until it is stopped (SIGTERM, Ctrl-C): reject whatever has no timely PASS.

    With the recipe that the line on this machine changed over to last, if it did.
    """
    from edge.actuators.process import actuate as run
    from edge.audit import operator
    from edge.change_over import recipe_to_run
    from edge.logs import configure_logs
    from edge.paths import runtime_dir

    configure_logs("actuate")
    given, state = _line(recipe, state_dir)
    run(recipe_to_run(given, state), only, state, runtime_dir(given.line), operator() if commissioning else "")


@actuators.command()
def status(recipe: RecipeArgument, state_dir: StateDir = None) -> None:
    """Show what each actuator does; exit code 1 when one does not run, has a fault, or is in commissioning mode."""
    from edge.actuators.latch import Latch, actuator_dir
    from edge.actuators.panel import read_status
    from edge.audit import AuditTrail, audit_path
    from edge.paths import runtime_dir

    resolved, state = _line(recipe, state_dir)
    console, well = Console(soft_wrap=True), True
    for actuator in resolved.actuators:
        found = read_status(runtime_dir(resolved.line), actuator.name)
        if found is None:
            latch = Latch(actuator_dir(state, actuator.name), actuator.name, AuditTrail(audit_path(state)))
            faults = [{"fault": f.fault.name.lower(), "detail": f.detail} for f in latch.faults]
            console.print(f"{actuator.name}: [bold red]does not run[/]")
        else:
            faults = found.get("faults", [])
            says = f"[red]nothing passes: {found['unable']}[/]" if found.get("unable") else "[green]at work[/]"
            mode = "  [yellow]COMMISSIONING: the ejector rests[/]" if found.get("commissioning") else ""
            console.print(f"{actuator.name}: {says}{mode}  gate {found.get('gate')}  {found.get('trouble') or ''}")
            counted = ", ".join(f"{k} {v}" for k, v in sorted(found.get("counters", {}).items()))
            console.print(f"  {counted or 'no parts yet'}", highlight=False)
        for fault in faults:
            console.print(f"  [bold red]fault {fault['fault']}[/]: {fault['detail']}", highlight=False)
        well = well and found is not None and not faults and not found.get("commissioning")
    raise typer.Exit(0 if well else 1)


@actuators.command()
def reset(recipe: RecipeArgument, name: NameArgument, why: Why, state_dir: StateDir = None) -> None:
    """Reset the latched faults of an actuator, running or not. What still is wrong is a fault again at once."""
    from edge.actuators.latch import Latch, actuator_dir
    from edge.actuators.panel import ask, hold
    from edge.actuators.process import chosen
    from edge.audit import AuditTrail, audit_path, operator
    from edge.errors import LineBusyError

    resolved, state = _line(recipe, state_dir)
    chosen(resolved, name)
    try:
        held = hold(state, name)
    except LineBusyError:  # it runs, and resets itself
        typer.echo(f"{name}: {ask(state, name, 'reset', operator(), why)}")
        return
    with contextlib.closing(os.fdopen(held)):
        removed = Latch(actuator_dir(state, name), name, AuditTrail(audit_path(state))).reset(operator(), why)
    names = ", ".join(f.fault.name.lower() for f in removed) or "nothing was latched"
    typer.echo(f"{name}: reset: {names}; it does not run")


@actuators.command("test-fire")
def fire(recipe: RecipeArgument, name: NameArgument, why: Why, state_dir: StateDir = None) -> None:
    """Let the ejector act once; in commissioning mode only."""
    from edge.actuators.panel import ask
    from edge.actuators.process import chosen
    from edge.audit import operator

    resolved, state = _line(recipe, state_dir)
    chosen(resolved, name)
    typer.echo(f"{name}: {ask(state, name, 'test_fire', operator(), why)}")


@actuators.command()
def conveyor(
    recipe: RecipeArgument,
    parts: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    good: Annotated[
        Path | None, typer.Option(help="Instead: leave pictures of 50 good parts here, to calibrate from.")
    ] = None,
) -> None:
    """Run the simulated conveyor of a recipe (docs/actuators.md), and say which part ended where."""
    from edge.actuators.show_conveyor import save_good_parts, show_conveyor
    from edge.recipes import load_recipe

    resolved, console = load_recipe(recipe), Console(soft_wrap=True)
    if good:
        save_good_parts(resolved, good, 50)
        console.print(f"{good}: 50 good parts")
    else:
        show_conveyor(resolved, parts, console)


def _line(recipe: str, chosen_dir: Path | None) -> tuple[Recipe, Path]:
    """The recipe, and its line's state folder."""
    from edge.paths import state_dir
    from edge.recipes import load_recipe

    resolved = load_recipe(recipe)
    return resolved, chosen_dir or state_dir(resolved.line)
