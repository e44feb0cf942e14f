"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["RecipeArgument", "StateDir"]

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: a TOML file, or the name of one that ships.", metavar="RECIPE")
]
StateDir = Annotated[
    Path | None,
    typer.Option(help="The line's journal, calibration and pictures; default ~/.local/state/maskline/LINE."),
]
