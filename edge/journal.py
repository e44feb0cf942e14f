"""The journal: what was seen and what was answered, in SQLite, before it is published.

A commit reaches the kernel, so it survives the death of any process; a committer thread makes it survive a power cut
by fdatasync of the write-ahead log at least every `commit_interval_ms`, off the publishing path. Disk space is held
back in a ballast file: when the disk is full it is given up, so that every open part can still be closed.

Closing any descriptor of the database file would drop SQLite's locks on it (POSIX locks belong to the process), so the
committer opens the write-ahead log only, which carries none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from edge.errors import LineBusyError, ResourceError

__all__ = ["Journal", "JournalFullError", "OpenTrigger", "boot_id", "open_for_reading"]

SCHEMA_VERSION = 2
CHECKPOINT_COMMITS = 1000
WAIT_FOR_CHECKPOINT_COMMITS = 4000
"""A log that is copied while commits go on is never copied whole, so it never starts over and grows. From here on the
writer waits for one copy, some milliseconds."""
LOCK_PATIENCE_S = 5.0
RESERVE_AGAIN_S = 1.0
_T = TypeVar("_T")

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
    seq INTEGER PRIMARY KEY, run INTEGER NOT NULL, lane TEXT NOT NULL, part INTEGER NOT NULL, decision TEXT NOT NULL,
    reason TEXT, late INTEGER NOT NULL, score REAL, threshold REAL, trigger_ns INTEGER NOT NULL,
    decided_ns INTEGER NOT NULL, topic_seq INTEGER NOT NULL, payload BLOB NOT NULL,
    UNIQUE (run, lane, part), UNIQUE (lane, topic_seq));
CREATE TABLE late_results (
    run INTEGER NOT NULL, station TEXT NOT NULL, number INTEGER NOT NULL, decision TEXT NOT NULL, reason TEXT,
    score REAL, threshold REAL, arrived_ns INTEGER NOT NULL);
"""


class JournalFullError(ResourceError):
    """The disk has no room left for the journal, not even its ballast."""


class OpenTrigger(NamedTuple):
    """A trigger that has no verdict yet."""

    run: int
    station: str
    number: int
    lane: str
    at_ns: int
    seen_utc_ns: int
    part_id: int | None


def boot_id() -> str:
    """The kernel's id of this boot: monotonic times of two boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A read-only connection to a journal, live or not. Raises ResourceError if there is none."""
    if not path.is_file():
        raise ResourceError(f"{path}: no journal here; a line that ran leaves one in its state directory")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


class Journal:
    """The gate's own writer; one process at a time, guarded by a lock file."""

    def __init__(self, path: Path, *, commit_interval_ms: int, reserve_mib: int) -> None:
        """Open or make the journal, repair nothing, lock it.

        Raises LineBusyError when another process holds it, ResourceError when it cannot be opened or reserved.
        """
        self.path = path
        self._ballast = path.with_suffix(".ballast")
        self._reserve_bytes = reserve_mib << 20
        self._interval_s = commit_interval_ms / 1000
        self._lock = _lock(path.with_suffix(".lock"))
        try:
            self._db = self._open()
            self.epoch = self.meta("epoch")
            self.has_reserve = self._reserve()
        except BaseException:
            os.close(self._lock)
            raise
        self.failure = ""
        self._dirty_since_ns: int | None = None
        self._syncing_since_ns: int | None = None
        self._commits = self._checkpointed = 0
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._committer = threading.Thread(target=self._commit_forever, name="committer", daemon=True)
        self._committer.start()

    def _open(self) -> sqlite3.Connection:
        """The writer's connection to a journal of this schema, which is made if it is not there."""
        try:
            db = _connect(self.path)
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                meta = f"INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}'), ('epoch', '{secrets.token_hex(8)}');"
                db.executescript(f"BEGIN; {_SCHEMA} {meta} COMMIT;")
            version = db.execute("SELECT value FROM meta WHERE key='schema'").fetchone()
            if version != (str(SCHEMA_VERSION),):
                raise ResourceError(
                    f"{self.path}: journal of schema {version and version[0]}, this maskline writes {SCHEMA_VERSION}; "
                    "move it away"
                )
            _checkpoint(db)  # what a gate before this one left in the log, whether it was made durable or not
        except sqlite3.Error as error:
            raise ResourceError(f"{self.path}: cannot open the journal: {error}") from error
        return db

    def meta(self, key: str) -> str:
        """A value of the journal's own description: `schema`, `epoch`."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def run(self, server_id: int, recipe_sha256: str, recipe: str) -> int:
        """The number of this start of the line; a gate that was restarted gets the number of its predecessor."""

        def write(db: sqlite3.Connection) -> int:
            db.execute(
                "INSERT OR IGNORE INTO runs (server_id, started_utc_ns, boot_id, recipe_sha256, recipe) "
                "VALUES (?,?,?,?,?)",
                (server_id, time.time_ns(), boot_id(), recipe_sha256, recipe),
            )
            return int(db.execute("SELECT run FROM runs WHERE server_id=?", (server_id,)).fetchone()[0])

        return self.write(write)

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in one transaction, all of it or nothing. When the disk is full the ballast is given up, once.

        Raises JournalFullError when that does not help.
        """
        for last_try in (False, True):
            try:
                with self.transaction() as db:
                    return work(db)
            except (sqlite3.OperationalError, OSError) as error:
                if not _is_full(error):
                    raise ResourceError(f"{self.path}: the journal cannot be written: {error}") from error
                if last_try or not self._release_reserve():
                    raise JournalFullError(f"{self.path}: the disk is full, the journal cannot be written") from error
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction; it survives the death of this process once the block has ended."""
        with self._writing:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._commits += 1
            if self._dirty_since_ns is None:
                self._dirty_since_ns = time.monotonic_ns()

    def lag_ms(self, now_ns: int) -> float:
        """Age of the oldest commit that a power cut would lose, ms."""
        since = self._syncing_since_ns or self._dirty_since_ns
        return 0.0 if since is None else (now_ns - since) / 1e6

    def last_seq(self) -> int:
        """The newest verdict's number; 0 when there is none."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM verdicts").fetchone()[0])

    def last_topic_seq(self, lane: str) -> int:
        """The newest verdict's number on the topic of a lane; 0 when there is none."""
        row = self._db.execute("SELECT coalesce(max(topic_seq), 0) FROM verdicts WHERE lane=?", (lane,)).fetchone()
        return int(row[0])

    def open_triggers(self) -> list[OpenTrigger]:
        """Every trigger that was seen and never answered, oldest first."""
        rows = self._db.execute(
            "SELECT t.run, t.station, t.number, t.lane, t.at_ns, t.seen_utc_ns, t.part_id "
            "FROM triggers t LEFT JOIN verdicts v "
            "ON v.run = t.run AND v.lane = t.lane AND v.part = t.number WHERE v.seq IS NULL ORDER BY t.run, t.at_ns"
        )
        return [OpenTrigger(*row) for row in rows]

    def next_numbers(self, run: int) -> dict[str, int]:
        """Per station the first trigger number that was not seen in this run."""
        rows = self._db.execute("SELECT station, max(number) + 1 FROM triggers WHERE run=? GROUP BY station", (run,))
        return {str(station): int(number) for station, number in rows}

    def has_verdict(self, run: int, lane: str, part: int) -> bool:
        """Whether the part was answered."""
        row = self._db.execute("SELECT 1 FROM verdicts WHERE run=? AND lane=? AND part=?", (run, lane, part))
        return row.fetchone() is not None

    def close(self) -> None:
        """Make all durable and let go of the lock."""
        self._stop.set()
        self._committer.join()
        self._db.close()
        os.close(self._lock)

    def _commit_forever(self) -> None:
        """The committer: fdatasync of the write-ahead log, and a checkpoint when enough has gathered in it."""
        next_reserve = 0.0
        try:
            with contextlib.ExitStack() as opened:
                wal = os.open(f"{self.path}-wal", os.O_RDWR)
                opened.callback(os.close, wal)
                checkpointer = opened.enter_context(contextlib.closing(_connect(self.path)))
                stopping = False
                while not stopping:
                    stopping = self._stop.wait(self._interval_s)
                    self._sync(wal)
                    self._empty_log(checkpointer)
                    if not self.has_reserve and time.monotonic() >= next_reserve:
                        next_reserve = time.monotonic() + RESERVE_AGAIN_S
                        self.has_reserve = self._has_room() and self._reserve()
        except (OSError, sqlite3.Error, ResourceError) as error:
            # The kernel forgets what it failed to write, so a second fdatasync would lie. `lag_ms` grows from here on,
            # nothing is published, and a restarted gate begins anew.
            self._syncing_since_ns = self._syncing_since_ns or time.monotonic_ns()
            self.failure = f"cannot make the journal durable: {error}"

    def _sync(self, wal: int) -> None:
        # Taken before the fdatasync: a commit made while it runs is not covered by it and sets the mark again.
        since, self._dirty_since_ns = self._dirty_since_ns, None
        if since is not None:
            self._syncing_since_ns = since
            os.fdatasync(wal)
            self._syncing_since_ns = None

    def _empty_log(self, checkpointer: sqlite3.Connection) -> None:
        """Copy the log into the database, so that it starts over with the next commit and never grows for long."""
        commits = self._commits - self._checkpointed
        if commits < CHECKPOINT_COMMITS:
            return
        patient = commits < WAIT_FOR_CHECKPOINT_COMMITS
        with contextlib.nullcontext() if patient else self._writing:
            upto = self._commits
            whole = _checkpoint(checkpointer) and self._commits == upto
        if whole or not patient:  # if not even then, a reader is in the way: it must not hold up the gate again soon
            self._checkpointed = upto

    def _has_room(self) -> bool:
        """Whether the disk has room for the ballast and as much again for the journal."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize >= 2 * self._reserve_bytes

    def _reserve(self) -> bool:
        """Make the ballast if it is not there; False when the disk has no room for it."""
        try:
            fd = os.open(self._ballast, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._reserve_bytes)
            except OSError:
                os.ftruncate(fd, 0)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            if _is_full(error):
                return False
            raise ResourceError(
                f"{self._ballast}: cannot reserve {self._reserve_bytes} bytes: {error.strerror}"
            ) from error
        return True

    def _release_reserve(self) -> bool:
        """Give up the ballast; False when it was given up before."""
        had, self.has_reserve = self.has_reserve, False
        if had:
            os.truncate(self._ballast, 0)
        return had


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "full" in str(error) or "disk I/O error" in str(error)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that commits without a sync (the committer owns that) and never makes a checkpoint by itself.

    NORMAL, not OFF: it still syncs the header of a log that starts over, and checkpoints. Without that a power cut may
    lay old frames over a newer database (https://sqlite.org/src/info/ff5be73dee).
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=0.5)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0"):
        db.execute(f"PRAGMA {pragma}")
    return db


def _checkpoint(db: sqlite3.Connection) -> bool:
    """Copy the log into the database without waiting for anyone; whether all was copied that was there at the start.

    The database grows here: on a full disk the log is kept, and a later checkpoint goes on.
    """
    try:
        _, in_log, copied = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "locked" in str(error):
            return False
        raise
    return bool(in_log == copied)


def _lock(path: Path) -> int:
    """Hold a lock file; the kernel lets go of it when this process ends, however it ends."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(f"{path}: cannot lock the journal: {error.strerror}") from error
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if time.monotonic() > give_up:
                os.close(fd)
                raise LineBusyError(f"{path}: another gate writes this journal") from error
            time.sleep(0.02)
