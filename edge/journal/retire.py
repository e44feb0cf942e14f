"""Retirement: old verdicts leave the journal as a closed segment, a file of its own, on explicit order.

The segment is written, made durable and read back before anything is deleted. Then a tombstone says what left, and the
chain goes on behind it; only then are the rows deleted, some at a time. So at any moment segment and journal together
hold every record, and what a death cuts short is finished by the next retirement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.audit import AuditTrail, audit_path
from edge.errors import ResourceError
from edge.journal.export import put_in_place
from edge.journal.heads import heads_path
from edge.journal.schema import Head, create, epoch_of, open_for_reading, origin, skipped, topics
from edge.journal.select import PAGE, Row
from edge.journal.verify import file_sha256, verify
from edge.journal.writer import Journal
from edge.paths import write_durably

__all__ = ["Retired", "finish", "retire"]

_STATIONS = """
WITH RECURSIVE stations(run, station) AS (
    SELECT run, (SELECT min(station) FROM triggers t WHERE t.run = runs.run) FROM runs
    UNION ALL
    SELECT run, (SELECT min(station) FROM triggers t WHERE t.run = stations.run AND t.station > stations.station)
    FROM stations WHERE station IS NOT NULL)
SELECT run, station FROM stations WHERE station IS NOT NULL
"""
_OF_VERDICTS = """
FROM verdicts v CROSS JOIN temp.stations s ON s.run = v.run
CROSS JOIN triggers t ON t.run = v.run AND t.station = s.station AND t.number = v.part AND t.lane = v.lane
"""  # CROSS: in this order, each by its key; SQLite left alone reads all triggers for each verdict
_LATE = "CROSS JOIN late_results l ON l.run = t.run AND l.station = t.station AND l.number = t.number"
_LEAVING = {
    "verdicts": "SELECT v.* FROM verdicts v WHERE v.seq BETWEEN ? AND ? ORDER BY v.seq",
    "triggers": f"SELECT t.* {_OF_VERDICTS} WHERE v.seq BETWEEN ? AND ? ORDER BY v.seq, t.station",
    "late_results": f"SELECT l.* {_OF_VERDICTS} {_LATE} WHERE v.seq BETWEEN ? AND ? ORDER BY l.rowid",
}
_KEYS = {
    "DELETE FROM late_results WHERE rowid = ?": f"SELECT l.rowid {_OF_VERDICTS} {_LATE} WHERE v.seq BETWEEN ? AND ?",
    "DELETE FROM triggers WHERE run = ? AND station = ? AND number = ?": (
        f"SELECT t.run, t.station, t.number {_OF_VERDICTS} WHERE v.seq BETWEEN ? AND ?"
    ),
    "DELETE FROM verdicts WHERE seq = ?": "SELECT seq FROM verdicts WHERE seq BETWEEN ? AND ?",
}


@dataclass(frozen=True)
class Retired:
    """What left the journal."""

    first: int
    last: int
    file: Path
    sha256: str


def retire(journal: Journal, before_ns: int, folder: Path, *, line: str, who: str) -> Retired | None:
    """Move all verdicts from before a time (UTC), with their triggers and late results, into a segment in `folder`.

    Verdicts leave in order: the first one from that time or later stays, and all behind it. Open triggers stay. The
    caller holds the journal open, so no gate runs. None when there is nothing to retire; what a retirement before this
    one left is deleted in any case. Raises ResourceError when the segment cannot be written or does not verify: then
    nothing has been deleted.
    """
    finish(journal)
    try:
        with contextlib.closing(open_for_reading(journal.path)) as db:
            db.isolation_level = None
            before, last = origin(db), _last_before(db, before_ns)
            if last.seq <= before.seq:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{line}-{journal.epoch}-{before.seq + 1}-{last.seq}.sqlite"
            made = Retired(before.seq + 1, last.seq, folder / name, _write_segment(db, before, last, folder / name))
            stone = _tombstone(db, made, before, last, who)
        journal.heads.copy(last.seq, heads_path(made.file))
        _prove(made)
        write_durably(made.file.with_suffix(".sha256"), f"{made.sha256}  {name}\n".encode())
    except (OSError, sqlite3.Error) as error:
        raise ResourceError(f"{folder}: cannot write the segment: {error}; nothing was deleted") from error
    about = {"first": made.first, "last": made.last, "file": str(made.file), "sha256": made.sha256}
    AuditTrail(audit_path(journal.path.parent)).record("journal_retire", who, epoch=journal.epoch, **about)
    journal.write(lambda db: db.execute("INSERT INTO retired VALUES (?,?,?,?,?,?,?,?,?)", stone))
    finish(journal)
    journal.write(_delete_runs)  # the segment has them all
    return made


def finish(journal: Journal) -> None:
    """Delete the verdicts that a tombstone stands for, and what belongs to them, a bounded number at a time."""
    while journal.write(_delete_some):
        journal.empty_log()
    journal.heads.drop(journal.retired_upto())


def _delete_runs(db: sqlite3.Connection) -> None:
    """Delete the runs of which nothing is left; the newest stays, since a restarted gate goes on with it."""
    (oldest,) = db.execute(
        "SELECT min(run) FROM (SELECT min(run) AS run FROM triggers UNION ALL SELECT min(run) FROM verdicts "
        "UNION ALL SELECT max(run) FROM runs)"
    ).fetchone()
    db.execute("DELETE FROM runs WHERE run < ?", (oldest,))


def _delete_some(db: sqlite3.Connection) -> bool:
    """Delete the oldest verdicts that were retired, and what belongs to them; whether there were any."""
    first, last = db.execute("SELECT min(seq) FROM verdicts").fetchone()[0], origin(db).seq
    if first is None or first > last:
        return False
    _note_stations(db)
    for delete, keys in _KEYS.items():
        db.executemany(delete, db.execute(keys, (first, min(first + PAGE - 1, last))).fetchall())
    return True


def _last_before(db: sqlite3.Connection, before_ns: int) -> Head:
    """The last verdict of those from before a time that no later one stands before."""
    row = db.execute(
        "SELECT seq, chain FROM verdicts "
        "WHERE seq < coalesce((SELECT min(seq) FROM verdicts WHERE decided_utc_ns >= ?), ?) ORDER BY seq DESC LIMIT 1",
        (before_ns, (1 << 63) - 1),
    ).fetchone()
    return Head(*row) if row else origin(db)


def _note_stations(db: sqlite3.Connection) -> None:
    """The stations of each run, in a table of this connection: triggers are found by station."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS stations (run INTEGER, station TEXT, PRIMARY KEY (run, station))")
    db.execute("DELETE FROM temp.stations")
    db.execute(f"INSERT INTO temp.stations {_STATIONS}")


def _leaving(db: sqlite3.Connection, first: int, last: int) -> Iterator[tuple[str, list[Row]]]:
    """The rows that leave with these verdicts, table by table, some at a time."""
    _note_stations(db)
    yield "runs", db.execute("SELECT * FROM runs ORDER BY run").fetchall()
    for begin in range(first, last + 1, PAGE):
        for table, statement in _LEAVING.items():
            yield table, db.execute(statement, (begin, min(begin + PAGE - 1, last))).fetchall()


def _write_segment(db: sqlite3.Connection, before: Head, last: Head, path: Path) -> str:
    """Write the segment, durably, and read it back; its hash. It is a journal: every tool reads it."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    written, read = hashlib.sha256(), hashlib.sha256()
    with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as segment:
        segment.execute("PRAGMA journal_mode=OFF")  # a death leaves a part that is thrown away
        segment.execute("PRAGMA synchronous=OFF")
        create(segment, epoch_of(db))
        segment.execute("BEGIN")
        if holes := [(first, end) for first, end in skipped(db) if end < last.seq]:
            segment.execute("INSERT INTO meta VALUES ('skipped', ?)", (json.dumps(holes),))
        for stone in db.execute("SELECT * FROM retired ORDER BY first_seq"):
            segment.execute("INSERT INTO retired VALUES (?,?,?,?,?,?,?,?,?)", stone)
        for table, rows in _leaving(db, before.seq + 1, last.seq):
            written.update(repr((table, rows)).encode())
            if rows:
                segment.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
        segment.execute("COMMIT")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.chmod(0o444)
    with contextlib.closing(open_for_reading(part)) as segment:
        segment.isolation_level = None
        for table, rows in _leaving(segment, before.seq + 1, last.seq):
            read.update(repr((table, rows)).encode())
        count = segment.execute("SELECT count(*) FROM verdicts").fetchone()[0]
    there = db.execute("SELECT count(*) FROM verdicts WHERE seq > ? AND seq <= ?", (before.seq, last.seq)).fetchone()[0]
    if read.digest() != written.digest() or count != there:
        raise ResourceError(f"{part}: what was read back is not what was written; nothing was deleted")
    put_in_place(part, path)
    return file_sha256(path)


def _prove(made: Retired) -> None:
    """The segment by itself is whole: its chain, its columns, its triggers, the heads that were kept."""
    found = verify(made.file, [heads_path(made.file)])
    if found.troubles or found.last != made.last:
        why = found.troubles[0] if found.troubles else f"it holds records {found.first} to {found.last}"
        raise ResourceError(f"{made.file}: {why}; nothing was deleted, `maskline journal verify` says more")


def _tombstone(db: sqlite3.Connection, made: Retired, before: Head, last: Head, who: str) -> tuple[object, ...]:
    lanes = db.execute(
        "SELECT lane, max(topic_seq) FROM verdicts WHERE seq BETWEEN ? AND ? GROUP BY lane", (made.first, made.last)
    )
    newest_topics = json.dumps({**topics(db), **dict(lanes.fetchall())}, sort_keys=True)
    return (
        *(made.first, made.last, before.chain, last.chain, newest_topics, str(made.file.absolute()), made.sha256),
        *(who, time.time_ns()),
    )
