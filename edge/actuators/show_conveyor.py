"""The simulated conveyor for people: run it beside a line, and see in which bin its parts end."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import cv2
import zmq
from rich.console import Console

from edge.actuators.belt import BeltSettings, End
from edge.actuators.conveyor import Conveyor
from edge.errors import LineBusyError, RecipeError, ResourceError
from edge.marker import draw
from edge.settings import Recipe, Station
from edge.sources.marker import background

__all__ = ["save_good_parts", "show_conveyor"]

SAY_S = 1.0


def show_conveyor(recipe: Recipe, parts: int | None, console: Console) -> None:
    """Run the conveyor until its parts have ended or somebody stops it, and print where they ended.

    Raises RecipeError when no station of the recipe is on a conveyor, LineBusyError when one runs there already.
    """
    station = _station(recipe)
    try:
        running = Conveyor(station.source.endpoint or "", BeltSettings(parts=parts), station.frame)
    except zmq.ZMQError as error:
        raise LineBusyError(f"{station.source.endpoint}: cannot be bound: {error.strerror}") from error
    try:
        with running:
            console.print("the belt runs as soon as LINE-OK toggles: start the line and its actuators")
            while not running.empty:
                time.sleep(SAY_S)
                _say(running, console)
    except KeyboardInterrupt:
        _say(running, console)


def save_good_parts(recipe: Recipe, folder: Path, parts: int) -> None:
    """Write pictures of good parts as the conveyor shows them. Raises RecipeError, ResourceError."""
    image = background(_station(recipe).frame)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot make this folder: {error.strerror}") from error
    for part in range(parts):
        draw(image, part, False)
        if not cv2.imwrite(str(folder / f"{part:04}.png"), image):
            raise ResourceError(f"{folder}: cannot write pictures here")


def _station(recipe: Recipe) -> Station:
    found = next((s for s in recipe.stations if s.source.kind == "conveyor"), None)
    if found is None:
        raise RecipeError(f'line {recipe.line}: no station has source.kind = "conveyor"')
    return found


def _say(conveyor: Conveyor, console: Console) -> None:
    where = Counter((p.end, p.bad) for p in conveyor.truth())
    escaped = where[End.GOOD, True]
    console.print(
        f"{'running' if conveyor.running else 'stopped'}  good bin: {where[End.GOOD, False]} good, "
        f"[{'bold red' if escaped else 'green'}]{escaped} bad[/]  reject bin: {where[End.REJECT, True]} bad, "
        f"{where[End.REJECT, False]} good",
        highlight=False,
    )
