"""Heads of the chain, kept apart from the journal: what `verify` holds it against.

One line each: time (UTC), epoch, seq, chain (64 hex digits), separated by blanks. The line's own file stands beside its
journal; a copy on another machine proves more. The same heads go to the log, so that journald holds them too, and
`read_heads` reads such a log as well.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import structlog

from edge.errors import ResourceError
from edge.journal.schema import Head
from edge.paths import write_durably

__all__ = ["HEAD", "HeadsFile", "KeptHead", "heads_path", "read_heads"]

HEAD = "journal_head"
"""The event of a head in the log."""
KEEP_EVERY_S = 50.0
"""At least once a minute, and the disk may be slow."""
_LONGEST_LINE = 4096


class KeptHead(NamedTuple):
    """A head as somebody kept it."""

    utc: str
    epoch: str
    seq: int
    chain: str


def heads_path(journal: Path) -> Path:
    """Where the heads of a journal, or of a retired segment, are kept by default."""
    return journal.with_suffix(".heads")


class HeadsFile:
    """Appends the heads of one journal."""

    def __init__(self, path: Path, epoch: str) -> None:
        self.path, self._epoch = path, epoch
        self._kept = Head(0, b"")
        self._next = 0.0
        self._lock = threading.Lock()

    def keep(self, head: Head, *, at_once: bool = False) -> None:
        """Append a head that a power cut cannot take back, when it is time for one or `at_once`, and log it.

        The kernel may take half a minute to write it, which costs a proof, not a verdict; `at_once` waits for the disk.
        A disk that is full costs the line, not the journal.
        """
        due = head != self._kept and head.seq and time.monotonic() >= self._next
        if not due and not at_once:
            return
        self._next = time.monotonic() + KEEP_EVERY_S
        try:
            with self._lock, open(self.path, "a+b", buffering=0) as file:
                if head != self._kept and head.seq:
                    self._append(file, head)
                if at_once:
                    os.fsync(file.fileno())
        except OSError as error:
            structlog.get_logger().warning("journal_head_lost", path=str(self.path), error=str(error))

    def _append(self, file: FileIO, head: Head) -> None:
        kept, self._kept = KeptHead(_utc_now(), self._epoch, head.seq, head.chain.hex()), head
        structlog.get_logger().info(HEAD, epoch=kept.epoch, seq=kept.seq, chain=kept.chain)
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write(b"\n" * torn + _line(kept))

    def copy(self, upto_seq: int, to: Path) -> None:
        """Write the heads up to this verdict into another file: a segment takes its own with it. Raises OSError."""
        write_durably(to, b"".join(map(_line, self._split(upto_seq)[0])))

    def drop(self, upto_seq: int) -> None:
        """Remove the heads up to this verdict. Raises ResourceError."""
        with self._lock:
            gone, stay = self._split(upto_seq)
            if gone:
                try:
                    write_durably(self.path, b"".join(map(_line, stay)))
                except OSError as error:
                    raise ResourceError(f"{self.path}: cannot write heads: {error.strerror}") from error

    def _split(self, upto_seq: int) -> tuple[list[KeptHead], list[KeptHead]]:
        heads = list(read_heads(self.path)) if self.path.exists() else []
        gone = [h for h in heads if h.epoch == self._epoch and h.seq <= upto_seq]
        return gone, [h for h in heads if h.epoch != self._epoch or h.seq > upto_seq]


def _line(head: KeptHead) -> bytes:
    return f"{head.utc} {head.epoch} {head.seq} {head.chain}\n".encode()


def read_heads(path: Path) -> Iterator[KeptHead]:
    """The heads in a file: lines as above, or a log of the line (JSON lines). What is neither is passed over: a power
    cut may tear a line. Raises ResourceError when the file cannot be read."""
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if head := _parse(line):
                    yield head
    except OSError as error:
        raise ResourceError(f"{path}: cannot read heads: {error.strerror}") from error


def _parse(line: bytes) -> KeptHead | None:
    try:
        if line.startswith(b"{"):
            event = json.loads(line)
            if event.get("event") != HEAD:
                return None
            head = KeptHead(str(event["timestamp"]), str(event["epoch"]), int(event["seq"]), str(event["chain"]))
        else:
            utc, epoch, seq, chain = line.decode("ascii").split()
            head = KeptHead(utc, epoch, int(seq), chain)
        return head if len(bytes.fromhex(head.chain)) == 32 else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _utc_now() -> str:
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
