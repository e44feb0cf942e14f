"""The verdicts that a subscriber may ask for: the newest from memory, the older ones out of the journal, page by page.

The journal is read in a thread of its own. A disk that does not answer holds up whoever waits for old verdicts, and
nobody else.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sqlite3
import threading
from collections import deque
from pathlib import Path
from typing import NamedTuple

from edge.errors import MasklineError, ResourceError
from edge.journal import first_seq, open_for_reading

__all__ = ["JournalPages", "Memory", "Page", "Wanted"]

PAGE_VERDICTS = 256
PAGE_BYTES = 1 << 20


class Wanted(NamedTuple):
    """Verdicts that the journal is asked for: those after `after`, up to and including `upto`."""

    epoch: str
    after: int
    upto: int


class Page(NamedTuple):
    """What the journal had of what was wanted."""

    wanted: Wanted
    first: int | None  # the oldest verdict in the journal; None when it holds none
    payloads: list[tuple[int, bytes]]  # seq and payload, ascending; the beginning of what was wanted


class Memory:
    """The newest verdicts, as they were published: bounded, and with holes where PUB lost one."""

    def __init__(self, max_verdicts: int = 4096, max_bytes: int = 8 << 20) -> None:
        self._payloads: dict[int, bytes] = {}
        self._max_verdicts, self._max_bytes, self._bytes = max_verdicts, max_bytes, 0

    def add(self, seq: int, payload: bytes) -> None:
        """Remember a verdict, newer than all before it, and forget the oldest ones that do not fit any more."""
        self._payloads[seq] = payload
        self._bytes += len(payload)
        while len(self._payloads) > self._max_verdicts or self._bytes > self._max_bytes:
            self._bytes -= len(self._payloads.pop(next(iter(self._payloads))))

    def get(self, seq: int) -> bytes | None:
        return self._payloads.get(seq)

    def after(self, seq: int) -> int | None:
        """The oldest one that follows a number."""
        return next((s for s in self._payloads if s > seq), None)

    def clear(self) -> None:
        self._payloads.clear()
        self._bytes = 0


class JournalPages:
    """Reads pages of a journal that another process writes, one at a time, in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted: queue.SimpleQueue[Wanted | None] = queue.SimpleQueue()
        self._found: deque[Page | str] = deque()
        self._db: sqlite3.Connection | None = None
        self._inode = 0
        self.busy = False
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable once something was found; a poller waits for it."""
        self._thread = threading.Thread(target=self._read_forever, name="journal_pages", daemon=True)
        self._thread.start()

    def ask(self, wanted: Wanted) -> None:
        """Begin to read; not while `busy`."""
        self.busy = True
        self._wanted.put(wanted)

    def take(self) -> Page | str | None:
        """The page that was asked for, or why there is none, in words; None while it is being read."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        if not self._found:
            return None
        self.busy = False
        return self._found.popleft()

    def close(self) -> None:
        """Stop reading. A thread that waits for its disk is left behind; it ends with the process."""
        self._wanted.put(None)
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            os.close(self.fd)

    def _read_forever(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            try:
                found: Page | str = self._read(wanted)
            except (sqlite3.Error, OSError, MasklineError) as error:
                self._forget_connection()
                found = f"{self._path}: cannot be read: {error}"
            self._found.append(found)
            os.eventfd_write(self.fd, 1)
        self._forget_connection()

    def _read(self, wanted: Wanted) -> Page:
        db = self._connection()
        db.execute(
            "BEGIN"
        )  # one look at the journal for all three; it ends soon: a long one keeps the log from shrinking
        try:
            (epoch,) = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone() or ("",)
            if epoch != wanted.epoch:
                raise ResourceError(f"it is the journal {epoch}, and the gate writes {wanted.epoch}")
            first = first_seq(db)
            rows = db.execute(
                "SELECT seq, payload FROM verdicts WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (wanted.after, wanted.upto, PAGE_VERDICTS),
            )
            payloads, size = [], 0
            for seq, payload in rows:
                payloads.append((seq, bytes(payload)))
                size += len(payload)
                if size >= PAGE_BYTES:
                    break
            rows.close()
        finally:
            db.execute("ROLLBACK")
        return Page(wanted, first, payloads)

    def _connection(self) -> sqlite3.Connection:
        """A connection to the journal that is there now: it may have been moved away, and a new one begun."""
        inode = self._path.stat().st_ino
        if self._db is None or inode != self._inode:
            self._forget_connection()
            self._db, self._inode = open_for_reading(self._path), inode
            self._db.isolation_level = None
        return self._db

    def _forget_connection(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
