"""Collects the frames of a roll from a line's journal. A roll is a run of the line, or a span of time in it."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from edge.errors import RecipeError, ResourceError
from edge.journal import open_for_reading
from edge.journal.runs import find_run
from edge.journal.select import Selection, pages
from edge.messages import Verdict, decode
from edge.settings import Recipe, Station
from edge.webs.roll import Look

__all__ = ["Roll", "read_roll"]

OPEN = "open"
"""Why a frame whose verdict is still owed is not inspected."""

_BETWEEN = "run = ? AND station = ? AND seen_utc_ns >= ? AND seen_utc_ns < ?"


@dataclass(frozen=True)
class Roll:
    """The frames of one station in one roll, by number."""

    run: int
    station: Station
    simulated: bool
    looks: list[Look]


def read_roll(
    path: Path,
    station: str | None = None,
    run: int | None = None,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Roll:
    """Read a roll from the journal `path`: of the newest run by default, and of the station with a web, if it is one.

    `since_ns`, `until_ns`: UTC, of the triggers; the first frame since then begins the roll. A frame whose verdict is
    not there yet is not inspected. Raises ResourceError without such a run or frames, RecipeError without such a web.
    """
    with contextlib.closing(open_for_reading(path)) as db:
        found = find_run(db, path, run)
        run, recipe = found.number, Recipe.model_validate_json(found.recipe)
        chosen = _station(recipe, station)
        span = (run, chosen.name, since_ns or 0, (1 << 63) - 1 if until_ns is None else until_ns)
        triggers = db.execute(f"SELECT number, count FROM triggers WHERE {_BETWEEN} ORDER BY number", span).fetchall()
        if not triggers:
            raise ResourceError(f"{path}: no frame of station {chosen.name} in run {run} and this time")
        counts = dict(triggers)
        looks = _looks(db, chosen, run, counts)
    return Roll(run, chosen, recipe.simulated, [looks.get(n) or Look(n, counts[n], reason=OPEN) for n in counts])


def _station(recipe: Recipe, name: str | None) -> Station:
    webs = {s.name: s for s in recipe.stations if s.web}
    if name is None and len(webs) == 1:
        return next(iter(webs.values()))
    if name not in webs:
        there = ", ".join(webs) or "none"
        asked = f"station {name!r} has no [stations.web]" if name else "which station?"
        raise RecipeError(f"line {recipe.line}: {asked}; stations with a web: {there}. Name one with --station")
    return webs[name]


def _looks(db: sqlite3.Connection, station: Station, run: int, counts: dict[int, int | None]) -> dict[int, Look]:
    """What was said of each frame of `counts`: of a station's view, whatever else its part had."""
    looks = {}
    for page in pages(db, "payload", Selection(run=run, lane=station.lane)):
        for (payload,) in page:
            verdict: Verdict = decode(payload, Verdict)
            view = next((v for v in verdict.views if v.station == station.name), None)
            if view is None or verdict.part not in counts:
                continue
            looks[verdict.part] = Look(
                number=verdict.part,
                count=counts[verdict.part],
                decision=view.decision,
                reason=view.reason.value if view.reason else "",
                boxes=view.boxes,
                rows_before=view.rows_before,
                score=view.score,
                picture=view.picture,
            )
    return looks
