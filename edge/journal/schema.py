"""The tables of the journal, and the chain of hashes over its verdicts.

Each verdict carries `chain`, the SHA-256 of the chain before it and of its own payload; the chain before the first is
the SHA-256 of the epoch. So the chain of one verdict, its head, stands for it and for every one before it: who keeps a
head elsewhere can prove them. Triggers and late results are not chained.

Verdicts that were retired leave a tombstone, from which the chain goes on.

No number is given twice. A power cut may take the newest verdicts, which others have acted upon; numbers that those may
have had are skipped, and the chain goes on from the verdict before them.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from edge.errors import ResourceError

__all__ = [
    "LOST_AT_MOST",
    "SCHEMA_VERSION",
    "Head",
    "begin",
    "create",
    "end",
    "epoch_of",
    "first_seq",
    "link",
    "newest",
    "open_for_reading",
    "skipped",
    "topics",
]

SCHEMA_VERSION = 2

LOST_AT_MOST = 1_000_000
"""So many numbers are skipped behind a power cut. It cannot have taken more verdicts: a gate whose disk is behind by
more than `journal.max_lag_ms`, a minute at most, publishes nothing."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, server_id INTEGER NOT NULL UNIQUE, started_utc_ns INTEGER NOT NULL, boot_id TEXT NOT NULL,
    recipe_sha256 TEXT NOT NULL, recipe TEXT NOT NULL);
CREATE TABLE triggers (
    run INTEGER NOT NULL, station TEXT NOT NULL, number INTEGER NOT NULL, lane TEXT NOT NULL, at_ns INTEGER NOT NULL,
    seen_utc_ns INTEGER NOT NULL, missed INTEGER NOT NULL, count INTEGER, part_id INTEGER,
    PRIMARY KEY (run, station, number)) WITHOUT ROWID;
CREATE TABLE verdicts (
    seq INTEGER PRIMARY KEY, run INTEGER NOT NULL, lane TEXT NOT NULL, part INTEGER NOT NULL, part_id INTEGER,
    decision TEXT NOT NULL, reason TEXT, late INTEGER NOT NULL, score REAL, threshold REAL, trigger_ns INTEGER NOT NULL,
    decided_ns INTEGER NOT NULL, decided_utc_ns INTEGER NOT NULL, topic_seq INTEGER NOT NULL, payload BLOB NOT NULL,
    chain BLOB NOT NULL, UNIQUE (run, lane, part), UNIQUE (lane, topic_seq));
CREATE INDEX verdicts_by_time ON verdicts (decided_utc_ns);
CREATE TABLE late_results (
    run INTEGER NOT NULL, station TEXT NOT NULL, number INTEGER NOT NULL, decision TEXT NOT NULL, reason TEXT,
    score REAL, threshold REAL, arrived_ns INTEGER NOT NULL, arrived_utc_ns INTEGER NOT NULL);
CREATE INDEX late_results_by_view ON late_results (run, station, number);
CREATE TABLE retired (
    first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, chain_before BLOB NOT NULL, chain_after BLOB NOT NULL,
    topics TEXT NOT NULL, file TEXT NOT NULL, sha256 TEXT NOT NULL, who TEXT NOT NULL, utc_ns INTEGER NOT NULL);
"""
# retired.topics: the newest topic_seq of each lane up to there, as JSON: topics go on where they were.


class Head(NamedTuple):
    """A verdict's number, and the hash over it and all before it."""

    seq: int
    chain: bytes


def link(chain: bytes, payload: bytes) -> bytes:
    """The chain behind a verdict: `chain` is the one before it."""
    return hashlib.sha256(chain + payload).digest()


def create(db: sqlite3.Connection, epoch: str) -> None:
    """Make the tables of an empty journal."""
    meta = f"INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}'), ('epoch', '{epoch}');"
    db.executescript(f"BEGIN; {_SCHEMA} {meta} COMMIT;")


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A read-only connection to a journal, live or not; short reads on it hold up nobody. Raises ResourceError if there
    is none, or one of another schema."""
    if not path.is_file():
        raise ResourceError(f"{path}: no journal here; a line that ran leaves one in its state directory")
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    try:
        require_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def require_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raises ResourceError for a journal of another schema, and for what is no journal."""
    try:
        row = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
    except sqlite3.Error as error:
        raise ResourceError(f"{path}: cannot open the journal: {error}") from error
    if row != (str(SCHEMA_VERSION),):
        raise ResourceError(
            f"{path}: journal of schema {row and row[0]}, this maskline writes {SCHEMA_VERSION}; move it away"
        )


def epoch_of(db: sqlite3.Connection) -> str:
    """The journal's identity."""
    return str(db.execute("SELECT value FROM meta WHERE key='epoch'").fetchone()[0])


def origin(db: sqlite3.Connection) -> Head:
    """What the verdicts that are there continue: the newest tombstone, or verdict 0, which never was."""
    row = db.execute("SELECT last_seq, chain_after FROM retired ORDER BY first_seq DESC LIMIT 1").fetchone()
    return Head(*row) if row else Head(0, hashlib.sha256(epoch_of(db).encode()).digest())


def newest(db: sqlite3.Connection) -> Head:
    """The newest number that was given or skipped, and the chain of the newest verdict, there or retired; that of
    `origin` when there is none."""
    row = db.execute("SELECT seq, chain FROM verdicts ORDER BY seq DESC LIMIT 1").fetchone()
    head = Head(*row) if row else origin(db)
    return Head(max(head.seq, *(last for _, last in skipped(db)), 0), head.chain)


def skipped(db: sqlite3.Connection) -> list[tuple[int, int]]:
    """The numbers, first and last of each row of them, that no verdict has because of a power cut."""
    row = db.execute("SELECT value FROM meta WHERE key='skipped'").fetchone()
    return [(int(first), int(last)) for first, last in json.loads(row[0])] if row else []


def begin(db: sqlite3.Connection, boot_id: str) -> None:
    """Note that a gate writes from now on. It must be durable before a verdict is published.

    If one of another boot began and never ended, the machine went down under it: the numbers that it may have given to
    verdicts that are not here are skipped.
    """
    before = db.execute("SELECT value FROM meta WHERE key='written_in'").fetchone()
    if before is not None and before[0] != boot_id:
        first = newest(db).seq + 1
        rows = json.dumps([*skipped(db), (first, first + LOST_AT_MOST - 1)])
        db.execute("INSERT OR REPLACE INTO meta VALUES ('skipped', ?)", (rows,))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('written_in', ?)", (boot_id,))


def end(db: sqlite3.Connection) -> None:
    """Note that all that was published is durable, and that no gate writes any more."""
    db.execute("DELETE FROM meta WHERE key='written_in'")


def first_seq(db: sqlite3.Connection) -> int:
    """The number of the first verdict that was not retired: the oldest that is there, or the next one."""
    return origin(db).seq + 1


def topics(db: sqlite3.Connection) -> dict[str, int]:
    """Per lane the newest `topic_seq` that was retired."""
    row = db.execute("SELECT topics FROM retired ORDER BY first_seq DESC LIMIT 1").fetchone()
    found: dict[str, int] = json.loads(row[0]) if row else {}
    return found
