"""`maskline audit`: who changed what on a line, and whether the trail is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from edge.errors import MasklineError

__all__ = ["audit"]


def audit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe of the line.")],
    state_dir: Annotated[Path | None, typer.Option(help="Where the line keeps its state.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="A head that was noted elsewhere; repeatable.")] = None,
) -> None:
    """Print who changed what: change-overs, keys, resets, commissioning. Exit code 1 for a trail that is not whole."""
    from edge.audit import audit_path, verify
    from edge.paths import state_dir as default_state_dir
    from edge.recipes import load_recipe

    path = audit_path(state_dir or default_state_dir(load_recipe(recipe).line))
    console = Console(soft_wrap=True)
    if not path.exists():
        console.print(f"{path}: nothing was changed yet")
        return
    found = verify(path, head or ())
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # it is among the troubles
        utc, what, who = (record.pop(field, "?") for field in ("utc", "what", "who"))
        more = " ".join(f"{k}={v}" for k, v in record.items() if k != "previous")
        console.print(escape(f"{utc}  {what:<14} {who}: {more}"), highlight=False)
    console.print(f"{found.records} records, head {found.head}", highlight=False)
    if found.troubles:
        raise MasklineError(f"{path}: {'; '.join(found.troubles)}")
