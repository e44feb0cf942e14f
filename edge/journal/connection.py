"""How a writer connects to a journal, and how there is only one."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from pathlib import Path

from edge.errors import LineBusyError, ResourceError

__all__ = ["boot_id", "checkpoint", "connect", "is_written", "lock"]

LOCK_PATIENCE_S = 5.0
BUSY_PATIENCE_S = 0.2
"""So long a writer waits for another program; the gate sends no heartbeat meanwhile."""


def boot_id() -> str:
    """The kernel's id of this boot: monotonic times of two boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits without a sync (the committer owns that) and never makes a checkpoint by itself.

    NORMAL, not OFF: it still syncs the header of a log that starts over, and checkpoints. Without that a power cut may
    lay old frames over a newer database (https://sqlite.org/src/info/ff5be73dee).
    """
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_PATIENCE_S)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0"):
        db.execute(f"PRAGMA {pragma}")
    return db


def checkpoint(db: sqlite3.Connection) -> bool:
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


def lock(path: Path) -> int:
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
                raise LineBusyError(f"{path}: another gate writes this journal; stop its line first") from error
            time.sleep(0.02)


def is_written(path: Path) -> bool:
    """Whether a process holds this lock file: the journal beside it is live."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
