"""`maskline roll`: the map of a web that a line has inspected. Thin, as `edge.cli` is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.errors import MasklineError

__all__ = ["roll"]


def roll(
    recipe: Annotated[str, typer.Argument(help="A recipe of a web.", metavar="RECIPE")],
    out: Annotated[Path, typer.Option(help="Writes OUT.png and OUT.csv.")] = Path("roll"),
    state_dir: Annotated[Path | None, typer.Option(help="Of the line; default ~/.local/state/maskline/LINE.")] = None,
    station: Annotated[str | None, typer.Option(help="Where several have a web.")] = None,
    run: Annotated[int | None, typer.Option(help="The run's number in the journal; default: the newest.")] = None,
    since: Annotated[str | None, typer.Option(help="The roll began then: 2026-11-22T10:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="The roll ended before this time.")] = None,
) -> None:
    """Draw the map of a roll from the journal: defects along and across the web, and what was not inspected.

    A roll is a run of the line, or of a run what lies between two times; its first frame is at 0 m.
    """
    from edge.journal.findings import parse_time
    from edge.paths import journal_path
    from edge.paths import state_dir as default
    from edge.recipes import load_recipe
    from edge.webs.geometry import web_geometry
    from edge.webs.journal import read_roll
    from edge.webs.picture import draw, write_picture
    from edge.webs.roll import roll_map
    from edge.webs.table import summary, write_table

    line = load_recipe(recipe).line
    try:
        since_ns, until_ns = (None if text is None else parse_time(text) for text in (since, until))
    except (ValueError, OverflowError) as error:
        raise MasklineError(f"{since!r}, {until!r}: expected a time such as 2026-11-22T10:00Z") from error
    found = read_roll(journal_path(state_dir or default(line)), station, run, since_ns, until_ns)
    mapped = roll_map(found.looks, web_geometry(found.station))
    simulated = ", simulated" if found.simulated else ""
    title = f"line {line}, station {found.station.name}, run {found.run}{simulated}"
    write_table(out.with_name(f"{out.name}.csv"), mapped)
    write_picture(out.with_name(f"{out.name}.png"), draw(mapped, title))
    typer.echo(f"{title}: {summary(mapped)}\n{out}.png, {out}.csv")
