"""`maskline scale`: from a picture of a checkerboard to what a recipe says of the scale. Thin, as `edge.cli` is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edge.errors import SourceError

__all__ = ["scale"]


def scale(
    image: Annotated[Path, typer.Argument(help="A picture of a checkerboard that lies where the parts lie.")],
    squares: Annotated[str, typer.Option(help="Squares along its sides, such as 9x6; not the corners between them.")],
    square_mm: Annotated[float, typer.Option(min=0.001, help="Side of a square.")],
) -> None:
    """Measure millimetres per pixel, with their uncertainty: prints what to put into the recipe."""
    from edge.place.scale import measure_scale
    from edge.sources.folder import read_image
    from edge.sources.images import MAX_PIXELS, quiet_opencv

    sides = re.fullmatch(r"(\d{1,3})x(\d{1,3})", squares)
    if sides is None:
        raise SourceError(f"--squares {squares!r}: expected two numbers of squares, such as 9x6")
    quiet_opencv()
    shot = read_image(image, MAX_PIXELS)
    if shot.image is None:
        raise SourceError(f"{shot.detail}; name a picture of a checkerboard: PNG, JPEG, TIFF or BMP")
    try:
        found = measure_scale(shot.image, (int(sides[1]), int(sides[2])), square_mm)
    except SourceError as error:
        raise SourceError(f"{image}: {error}") from error
    console = Console(soft_wrap=True)
    console.print(found.recipe_line, highlight=False, markup=False)
    console.print(
        f"{found.corners} corners, {found.residual_px:.2f} px off a plane grid; tilt about {found.tilt_deg:.1f} "
        "degrees. It holds in the plane of the board and where it lay; the squares are taken for exact.",
        highlight=False,
    )
