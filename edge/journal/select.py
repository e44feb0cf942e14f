"""Reading verdicts out of a journal, live or not, in pages that are each one short look at it.

A long look would keep the write-ahead log of a running line from starting over.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Selection", "newest_rows", "pages", "snapshot"]

PAGE = 2_000
UNSETTLED = 20_000
"""A gate takes back what it has written and not published when its deadline passes meanwhile. So many of the newest
verdicts are read in one look, so that a page never continues what was taken back."""
INDEX_PAGE = 50_000

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Selection:
    """Which verdicts; None is any."""

    since_ns: int | None = None  # UTC, decided at or after
    until_ns: int | None = None  # UTC, decided before
    run: int | None = None
    lane: str | None = None
    part: int | None = None
    part_id: int | None = None
    decision: str | None = None
    reason: str | None = None
    score_min: float | None = None
    score_max: float | None = None

    def where(self) -> tuple[str, list[object]]:
        """SQL to follow `WHERE ...`, and its arguments."""
        tests = {
            "decided_utc_ns >= ?": self.since_ns,
            "decided_utc_ns < ?": self.until_ns,
            "run = ?": self.run,
            "lane = ?": self.lane,
            "part = ?": self.part,
            "part_id = ?": self.part_id,
            "decision = ?": self.decision,
            "reason = ?": self.reason,
            "score >= ?": self.score_min,
            "score <= ?": self.score_max,
        }
        asked = {test: value for test, value in tests.items() if value is not None}
        return "".join(f" AND {test}" for test in asked), list(asked.values())


@contextlib.contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Everything that is read in this block is of one moment."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


def pages(db: sqlite3.Connection, columns: str, chosen: Selection | None = None, after: int = 0) -> Iterator[list[Row]]:
    """The verdicts beyond `after`, by seq, as rows of `columns`; each page, which may be empty, is one short look."""
    chosen = chosen or Selection()
    where, arguments = chosen.where()
    last: int | None = None
    if chosen.since_ns is not None or chosen.until_ns is not None:
        after, last = _between(db, chosen, after)
    while True:
        with snapshot(db):
            first, newest = db.execute(
                "SELECT (SELECT min(seq) FROM verdicts WHERE seq > ?), max(seq) FROM verdicts", (after,)
            ).fetchone()
            newest = newest if last is None or newest is None else min(newest, last)
            if first is None or first > newest:
                return
            upto = newest if newest - first < PAGE + UNSETTLED else first + PAGE - 1
            rows = db.execute(
                f"SELECT {columns} FROM verdicts WHERE seq BETWEEN ? AND ?{where} ORDER BY seq",
                (first, upto, *arguments),
            ).fetchall()
        yield rows
        if upto == newest:
            return
        after = upto


def _between(db: sqlite3.Connection, chosen: Selection, after: int) -> tuple[int, int]:
    """(seq before the first, seq of the last) verdict of a time span. The wall clock may have been set meanwhile, so
    neither need be at an end of the span."""
    since = chosen.since_ns if chosen.since_ns is not None else -(1 << 63)
    until = chosen.until_ns if chosen.until_ns is not None else (1 << 63) - 1
    at, seq = since, -1
    lowest: int | None = None
    highest = 0
    while True:
        rows = db.execute(
            "SELECT decided_utc_ns, seq FROM verdicts WHERE (decided_utc_ns, seq) > (?, ?) AND decided_utc_ns < ? "
            "ORDER BY decided_utc_ns, seq LIMIT ?",
            (at, seq, until, INDEX_PAGE),
        ).fetchall()
        if not rows:
            return max(after, (lowest or 1) - 1), highest
        found = [row[1] for row in rows]
        lowest = min(found) if lowest is None else min(lowest, *found)
        highest = max(highest, *found)
        at, seq = rows[-1]


def newest_rows(db: sqlite3.Connection, columns: str, count: int) -> list[Row]:
    """The newest verdicts, by seq."""
    return db.execute(f"SELECT {columns} FROM verdicts ORDER BY seq DESC LIMIT ?", (count,)).fetchall()[::-1]
