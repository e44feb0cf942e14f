"""The journal's writer: one process at a time.

A commit reaches the kernel, so it survives the death of any process; a committer thread makes it survive a power cut
by fdatasync of the write-ahead log at least every `commit_interval_ms`, off the publishing path. Once a minute it keeps
the chain's head, so that what is durable can be proved.

Closing any descriptor of the database file would drop SQLite's locks on it (POSIX locks belong to the process), so the
committer opens the write-ahead log only, which carries none.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge.errors import ResourceError
from edge.journal.ballast import Ballast, is_full
from edge.journal.connection import LOCK_PATIENCE_S, boot_id, checkpoint, connect, lock
from edge.journal.heads import HeadsFile, heads_path
from edge.journal.schema import begin, create, end, newest, origin, require_schema, topics

__all__ = ["Journal", "JournalBlockedError", "JournalBusyError", "JournalFullError", "OpenTrigger", "boot_id"]

CHECKPOINT_COMMITS = 1000
WAIT_FOR_CHECKPOINT_COMMITS = 4000
"""A log that is copied while commits go on is never copied whole, so it never starts over and grows. From here on the
writer waits for one copy, some milliseconds."""
RESERVE_AGAIN_S = 1.0
_T = TypeVar("_T")


class JournalBlockedError(ResourceError):
    """Nothing was written, and the same may be written a moment later."""

    trouble = ""
    """What the heartbeat says."""


class JournalFullError(JournalBlockedError):
    """The disk has no room left for the journal, not even its ballast."""

    trouble = "the disk is full: the journal cannot be written"


class JournalBusyError(JournalBlockedError):
    """Another program holds SQLite's write lock on the journal."""

    trouble = "another program has locked the journal: it cannot be written"


@dataclass(frozen=True)
class OpenTrigger:
    """A trigger that has no verdict yet."""

    run: int
    station: str
    number: int
    lane: str
    at_ns: int
    seen_utc_ns: int
    count: int | None
    part_id: int | None


class Journal:
    """The gate's own writer; one process at a time, guarded by a lock file."""

    def __init__(self, path: Path, *, commit_interval_ms: int, reserve_mib: int) -> None:
        """Open or make the journal, repair nothing, lock it.

        Raises LineBusyError when another process holds it, ResourceError when it cannot be opened or reserved.
        """
        self.path = path
        self._interval_s = commit_interval_ms / 1000
        self._lock = lock(path.with_suffix(".lock"))
        try:
            self._db = self._open()
            self.epoch = self.meta("epoch")
            self.head = newest(self._db)
            """The newest verdict that is final, or number that was skipped; whoever writes verdicts sets it."""
            self._begun = False
            self.ballast = Ballast(path.with_suffix(".ballast"), reserve_mib << 20)
        except BaseException:
            os.close(self._lock)
            raise
        self.heads = HeadsFile(heads_path(path), self.epoch)
        self.failure = ""
        self._dirty_since_ns: int | None = time.monotonic_ns()  # with what a gate before this one left in the log
        self._longest_lag_ms = 0.0
        self._syncing_since_ns: int | None = None
        self._commits = self._checkpointed = self._tried = 0
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._committer = threading.Thread(
            target=contextvars.copy_context().run, args=(self._commit_forever,), name="committer", daemon=True
        )
        self._committer.start()

    def _open(self) -> sqlite3.Connection:
        """The writer's connection to a journal of this schema, which is made if it is not there."""
        try:
            db = connect(self.path)
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                create(db, secrets.token_hex(8))
            require_schema(db, self.path)
            checkpoint(db)
        except sqlite3.Error as error:
            raise ResourceError(f"{self.path}: cannot open the journal: {error}") from error
        return db

    def meta(self, key: str) -> str:
        """A value of the journal's own description: `schema`, `epoch`."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return str(row[0]) if row else ""

    def run(self, server_id: int, recipe_sha256: str, recipe: str) -> int:
        """The number of this start of the line; a gate that was restarted gets the number of its predecessor.

        To be called before a verdict is published: if there was a power cut, `head` moves behind all numbers that may
        have been given before it.
        """

        def write(db: sqlite3.Connection) -> int:
            begin(db, boot_id())
            db.execute(
                "INSERT OR IGNORE INTO runs (server_id, started_utc_ns, boot_id, recipe_sha256, recipe) "
                "VALUES (?,?,?,?,?)",
                (server_id, time.time_ns(), boot_id(), recipe_sha256, recipe),
            )
            return int(db.execute("SELECT run FROM runs WHERE server_id=?", (server_id,)).fetchone()[0])

        give_up = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                number = self._write_durably(write)
                self.head, self._begun = newest(self._db), True
                return number
            except JournalBusyError:
                if time.monotonic() > give_up:
                    raise

    def _write_durably(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """`write`, and wait for the disk: the commit syncs the log, with all that stands in it."""
        self._db.execute("PRAGMA synchronous=FULL")
        try:
            return self.write(work)
        finally:
            self._db.execute("PRAGMA synchronous=NORMAL")

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` in one transaction, all of it or nothing. When the disk is full the ballast is given up, once.

        Raises JournalFullError when that does not help, JournalBusyError when another program locks the journal.
        """
        for last_try in (False, True):
            try:
                with self.transaction() as db:
                    return work(db)
            except (sqlite3.OperationalError, OSError) as error:
                if "locked" in str(error):
                    raise JournalBusyError(f"{self.path}: another program has locked the journal: {error}") from error
                if not is_full(error):
                    raise ResourceError(f"{self.path}: the journal cannot be written: {error}") from error
                if last_try or not self.ballast.release():
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

    def longest_lag_ms(self, now_ns: int) -> float:
        """The longest that a power cut would have gone back at any time since this journal was opened, ms."""
        return max(self._longest_lag_ms, self.lag_ms(now_ns))

    @property
    def has_reserve(self) -> bool:
        """Whether disk space is held back for a full disk."""
        return self.ballast.held

    def last_seq(self) -> int:
        """The newest verdict's number; 0 when there never was one."""
        return newest(self._db).seq

    def last_topic_seq(self, lane: str) -> int:
        """The newest verdict's number on the topic of a lane; 0 when there never was one."""
        row = self._db.execute("SELECT max(topic_seq) FROM verdicts WHERE lane=?", (lane,)).fetchone()
        return topics(self._db).get(lane, 0) if row[0] is None else int(row[0])

    def open_triggers(self) -> list[OpenTrigger]:
        """Every trigger that was seen and never answered, oldest first."""
        rows = self._db.execute(
            "SELECT t.run, t.station, t.number, t.lane, t.at_ns, t.seen_utc_ns, t.count, t.part_id "
            "FROM triggers t LEFT JOIN verdicts v "
            "ON v.run = t.run AND v.lane = t.lane AND v.part = t.number WHERE v.seq IS NULL ORDER BY t.run, t.at_ns"
        )
        return [OpenTrigger(*row) for row in rows]

    def lane_views(self, run: int, lane: str) -> tuple[str, ...]:
        """The stations that saw a part of this lane in that run, in the order of its recipe."""
        (recipe,) = self._db.execute("SELECT recipe FROM runs WHERE run=?", (run,)).fetchone() or ("{}",)
        stations = json.loads(recipe).get("stations", [])
        return tuple(s["name"] for s in stations if s["lane"] == lane)

    def next_numbers(self, run: int) -> dict[str, int]:
        """Per station the first trigger number that was not seen in this run."""
        rows = self._db.execute("SELECT station, max(number) + 1 FROM triggers WHERE run=? GROUP BY station", (run,))
        return {str(station): int(number) for station, number in rows}

    def has_verdict(self, run: int, lane: str, part: int) -> bool:
        """Whether the part was answered."""
        row = self._db.execute("SELECT 1 FROM verdicts WHERE run=? AND lane=? AND part=?", (run, lane, part))
        return row.fetchone() is not None

    def retired_upto(self) -> int:
        """The newest verdict that was retired; 0 when none was."""
        return origin(self._db).seq

    def empty_log(self) -> bool:
        """Copy the log into the database now, whatever that takes; whether all of it was copied."""
        with self._writing:
            return checkpoint(self._db)

    def close(self) -> None:
        """Make all durable, keep the last head, and let go of the lock."""
        self._stop.set()
        self._committer.join()
        if self._begun and not self.failure:
            with contextlib.suppress(ResourceError, sqlite3.Error):  # then the next boot skips numbers for nothing
                self._write_durably(end)
        self._db.close()
        os.close(self._lock)

    def _commit_forever(self) -> None:
        """The committer: fdatasync of the write-ahead log, and a checkpoint when enough has gathered in it."""
        next_reserve = 0.0
        try:
            with contextlib.ExitStack() as opened:
                wal = os.open(f"{self.path}-wal", os.O_RDWR)
                opened.callback(os.close, wal)
                checkpointer = opened.enter_context(contextlib.closing(connect(self.path)))
                stopping = False
                while not stopping:
                    stopping = self._stop.wait(self._interval_s)
                    head = self.head  # it was committed before, so the sync covers it
                    self._sync(wal)
                    self.heads.keep(head, at_once=stopping)
                    self._empty_log(checkpointer)
                    if not self.ballast.held and time.monotonic() >= next_reserve:
                        next_reserve = time.monotonic() + RESERVE_AGAIN_S
                        self.ballast.take_again()
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
            self._longest_lag_ms = self.longest_lag_ms(time.monotonic_ns())
            self._syncing_since_ns = None

    def _empty_log(self, checkpointer: sqlite3.Connection) -> None:
        """Copy the log into the database, so that it starts over with the next commit and never grows for long."""
        commits = self._commits - self._checkpointed
        if min(commits, self._commits - self._tried) < CHECKPOINT_COMMITS:  # a try holds the disk, whole or not
            return
        self._tried = self._commits
        patient = commits < WAIT_FOR_CHECKPOINT_COMMITS
        with contextlib.nullcontext() if patient else self._writing:
            upto = self._commits
            whole = checkpoint(checkpointer) and self._commits == upto
        if whole or not patient:  # if not even then, a reader is in the way: it must not hold up the gate again soon
            self._checkpointed = upto
