"""The audit trail of a line: who changed what, in a file that only grows.

One JSON object a line. Its `previous` is the SHA-256 of the line before it (64 zeros in the first), so a record that is
changed, removed, inserted or moved breaks the chain behind it. Nothing stands behind the newest record: its hash, the
head, is kept in a file beside the trail, and whoever records gets it to note elsewhere.

How far that goes: who can write both files can write another history from any point on. Only a head that was noted
elsewhere (printed, logged, mailed) finds that, and everything up to that record is then proved.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path

from edge.errors import MasklineError
from edge.paths import make_private, write_durably

__all__ = ["AuditError", "AuditTrail", "Verified", "audit_path", "locked", "operator", "verify"]

BROKEN = "audit.broken"
"""A record that the trail makes of itself: the one before it is not the one that was written last."""
FIRST = "0" * 64
MAX_RECORD_BYTES = 1 << 14
LOCK_PATIENCE_S = 5.0


class AuditError(MasklineError):
    """The audit trail cannot be read or written."""


@dataclass(frozen=True)
class Verified:
    """What `verify` found."""

    records: int
    head: str  # hash of the newest record, 64 hex digits; note it elsewhere
    troubles: tuple[str, ...]  # none: nothing was changed, as far as the heads reach


def audit_path(state_dir: Path) -> Path:
    """Where a line keeps its audit trail."""
    return state_dir / "audit.jsonl"


def operator() -> str:
    """Who runs this command, as far as the machine knows: the user, and who became it by sudo."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    before = os.environ.get("SUDO_USER")
    return f"{before} as {user}" if before else user


class AuditTrail:
    """Writes the trail; any number of processes and threads may, each with an object of its own or a shared one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, what: str, who: str, **fields: object) -> str:
        """Append a record, wait until it is on disk, and return the head. `fields` are what JSON can hold.

        Raises AuditError, and then leaves the trail as it was, unless the message says otherwise.
        """
        if clash := {"utc", "previous"} & set(fields):
            raise ValueError(f"{', '.join(clash)}: the trail sets this itself")
        make_private(self.path.parent)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"{self.path}: cannot open the audit trail: {error.strerror}") from error
        with os.fdopen(fd, "r+b", buffering=0) as file, locked(fd, self.path):
            try:
                end, before, last, torn = _tail(file)
                known = _read_head(self.path)
                if end != file.seek(0, os.SEEK_END):
                    os.ftruncate(fd, end)
                if known not in (before, last):
                    last = self._append(file, last, BROKEN, "maskline", {"head": known, "torn": torn})
                head = self._append(file, last, what, who, fields)
            except OSError as error:
                raise AuditError(f"{self.path}: cannot write the audit trail: {error.strerror}") from error
            try:
                write_durably(_head_path(self.path), f"{head}\n".encode())
            except OSError as error:
                raise AuditError(f"{_head_path(self.path)}: recorded, but not its head: {error.strerror}") from error
        return head

    def _append(self, file: FileIO, previous: str, what: str, who: str, fields: dict[str, object]) -> str:
        utc = datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds")
        record = {"utc": utc, "what": what, "who": who, **fields, "previous": previous}
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        if len(line) >= MAX_RECORD_BYTES:
            raise AuditError(f"{self.path}: a record of {len(line)} bytes; at most {MAX_RECORD_BYTES} are allowed")
        start = file.seek(0, os.SEEK_END)
        try:
            if file.write(line + b"\n") != len(line) + 1:
                raise OSError(0, "the disk is full")
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), start)
            raise
        return _sha256(line)


def verify(path: Path, heads: Iterable[str] = ()) -> Verified:
    """Follow the chain from the first record to the last, which must be the one that the file of the head names.

    `heads`: hashes that were noted elsewhere; each must be that of a record. Raises AuditError when it cannot be read.
    """
    troubles: list[str] = []
    noted = {head.lower() for head in heads}
    count, before, last = 0, FIRST, FIRST
    try:
        with path.open("rb") as file, locked(file.fileno(), path, shared=True):
            known = _read_head(path)
            while line := file.readline(MAX_RECORD_BYTES + 1):
                count += 1
                if not line.endswith(b"\n"):
                    troubles.append(f"line {count}: its end is missing: who wrote it died, or it was cut off")
                    break
                troubles += [f"line {count}: {what}" for what in _wrong_with(line[:-1], last)]
                before, last = last, _sha256(line[:-1])
                noted.discard(last)
    except FileNotFoundError:
        known = _read_head(path)
    except OSError as error:
        raise AuditError(f"{path}: cannot read the audit trail: {error.strerror}") from error
    if known not in (before, last):
        troubles.append(
            f"{_head_path(path)}: names {known[:12]}, which is neither the last record nor the one before it: "
            "the end was cut off, changed, or written by something else"
        )
    troubles += [f"no record has the noted head {head}: it was changed, or cut off" for head in sorted(noted)]
    return Verified(count, last, tuple(troubles))


@contextlib.contextmanager
def locked(fd: int, path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock on an open file or folder. Raises AuditError if another process does for LOCK_PATIENCE_S."""
    give_up = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                raise AuditError(f"{path}: another process has kept it locked for {LOCK_PATIENCE_S:.0f} s") from error
            time.sleep(0.01)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _wrong_with(line: bytes, previous: str) -> list[str]:
    """What is wrong with this record, which should follow the one of that hash."""
    try:
        record = json.loads(line)
        follows, what = record["previous"], record["what"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ["not a record"]
    wrong = []
    if follows != previous:
        wrong.append("does not follow the line before it: one of the two was changed, or one between them is missing")
    if what == BROKEN:
        wrong.append(f"the end of the trail was found cut off or changed here; its head was {record.get('head')}")
    return wrong


def _tail(file: FileIO) -> tuple[int, str, str, str]:
    """Where the last whole line ends, the hashes of the two last whole lines, and what is left of a torn one.

    A torn line is of a writer that died: nobody was told that it was recorded.
    """
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - 4 * MAX_RECORD_BYTES))
    *lines, torn = file.read(size - start).split(b"\n")
    if start and not lines:
        raise OSError(0, f"its last line is longer than {MAX_RECORD_BYTES} bytes, so this is no audit trail any more")
    hashes = [FIRST, FIRST, *(_sha256(line) for line in lines[-2:])]
    return size - len(torn), hashes[-2], hashes[-1], torn[:1000].decode("utf-8", "replace")


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head")


def _read_head(path: Path) -> str:
    try:
        with _head_path(path).open("rb") as file:
            return file.read(65).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return FIRST


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
