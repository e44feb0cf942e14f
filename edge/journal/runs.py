"""The runs of a line in its journal, and all that was said in one: for tools that look at a run that is over."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from edge.errors import ResourceError
from edge.messages import Verdict, decode

__all__ = ["Run", "find_run", "read_verdicts"]


class Run(NamedTuple):
    """One start of the line."""

    number: int
    started_utc_ns: int
    recipe: str  # JSON


def find_run(db: sqlite3.Connection, path: Path, number: int | None = None) -> Run:
    """A run of the journal at `path`, the newest by default. Raises ResourceError when there is none."""
    where, arguments = ("", ()) if number is None else ("WHERE run = ?", (number,))
    found = db.execute(
        f"SELECT run, started_utc_ns, recipe FROM runs {where} ORDER BY run DESC LIMIT 1", arguments
    ).fetchone()
    if found is None:
        asked = "" if number is None else number
        raise ResourceError(f"{path}: no run {asked} in this journal; it has never run")
    return Run(*found)


def read_verdicts(db: sqlite3.Connection, run: int | None = None) -> list[Verdict]:
    """Every verdict, or those of one run, by seq."""
    where, arguments = ("", ()) if run is None else ("WHERE run = ?", (run,))
    rows = db.execute(f"SELECT payload FROM verdicts {where} ORDER BY seq", arguments)
    return [decode(payload, Verdict) for (payload,) in rows]
