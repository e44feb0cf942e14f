"""`maskline keys ...`: which boxes may listen to a line over TCP. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.arguments import RecipeArgument, StateDir

if TYPE_CHECKING:
    from edge.keys import Keyring

__all__ = ["keys"]

keys = typer.Typer(no_args_is_help=True, help="Say which boxes may listen to a line over TCP; nobody may by default.")

NameArgument = Annotated[str, typer.Argument(help="What the client is called from now on.", metavar="NAME")]


@keys.command()
def new(
    folder: Annotated[Path | None, typer.Argument(help="A client's pair goes here, on the client's own box.")] = None,
    line: Annotated[str | None, typer.Option(metavar="RECIPE", help="Instead: make this line's own pair.")] = None,
    state_dir: StateDir = None,
) -> None:
    """Make a pair of keys: a client's in FOLDER, or with --line the line's own."""
    from edge.audit import operator
    from edge.keys import KeysError, make_pair

    if (folder is None) == (line is None):
        raise KeysError("keys new: name either a folder for a client's pair, or --line RECIPE for the line's own")
    if line is not None:
        keyring = _keyring(line, state_dir)
        made = keyring.make(operator())
        typer.echo(f"The line's public key is {made.public.decode()}")
        typer.echo(f"Give this file to its clients: {keyring.public_path}")
    elif folder is not None:
        made = make_pair(folder, "client")
        typer.echo(f"Secret, never leaves this box: {folder / 'client.key_secret'}")
        typer.echo(f"The client's public key is {made.public.decode()}")
        typer.echo(f"On the line's box: maskline keys allow RECIPE NAME '{made.public.decode()}'")


# A key may begin with a dash.
@keys.command(context_settings={"ignore_unknown_options": True})
def allow(
    recipe: RecipeArgument,
    name: NameArgument,
    key: Annotated[str, typer.Argument(help="Its public key, in single quotes, or the .key file.", metavar="KEY")],
    state_dir: StateDir = None,
) -> None:
    """Let a client in, by its public key; a line that runs lets it in at once."""
    from edge.audit import operator
    from edge.keys import parse_public_key

    head = _keyring(recipe, state_dir).allow(name, parse_public_key(key), operator())
    typer.echo(f"{name} is allowed; the audit trail's head is now {head}")


@keys.command()
def revoke(recipe: RecipeArgument, name: NameArgument, state_dir: StateDir = None) -> None:
    """Let a client in no more; a line that runs cuts it off at once."""
    from edge.audit import operator

    head = _keyring(recipe, state_dir).revoke(name, operator())
    typer.echo(f"{name} is revoked; the audit trail's head is now {head}")


@keys.command("list")
def list_keys(recipe: RecipeArgument, state_dir: StateDir = None) -> None:
    """Print the line's public key, which its clients need, and who is allowed."""
    keyring = _keyring(recipe, state_dir)
    typer.echo(f"The line's public key is {keyring.pair().public.decode()}, in {keyring.public_path}")
    allowed = keyring.allowed()
    for name, key in allowed.items():
        typer.echo(f"{key.decode()}  {name}")
    if not allowed:
        typer.echo("Nobody is allowed: maskline keys allow RECIPE NAME KEY")


def _keyring(recipe: str, state_dir_: Path | None) -> Keyring:
    from edge.keys import Keyring
    from edge.paths import state_dir
    from edge.recipes import load_recipe

    return Keyring(state_dir_ or state_dir(load_recipe(recipe).line))
