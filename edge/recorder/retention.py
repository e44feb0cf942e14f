"""Keeps the folder of a recording within its bounds: old rolls go, and what is marked in them is cut out before.

Cutting is work for idle moments: `step` copies one message, or does nothing. A roll is cut while the one before its end
is written; where that was not enough time, the bound wins, and what is lost is said.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import structlog

from edge.errors import SourceError
from edge.recorder.rolls import Bounds, Marks, Roll, Stretch, beyond, find_rolls, marked_path, roll_path
from edge.recording import Recording, cut

__all__ = ["OneFile", "Place", "RollFolder"]

_WORTH_WHOLE = 0.5
"""A roll of which more is marked is kept as it is."""
_PART = ".part"


class Place(Protocol):
    """Where recordings are put. All of it raises OSError."""

    rolls: bool
    """Whether a recording is closed, and the next one begun, when it is large or old."""

    def next_path(self, start_ns: int) -> Path:
        """Where the recording that begins now, UTC, is written."""
        ...

    def has_room(self, nbytes: int) -> bool:
        """Whether the disk takes so much more."""
        ...

    def mark(self, stretch: Stretch) -> None:
        """Protect a stretch of time."""
        ...

    def step(self) -> bool:
        """Do a piece of work in an idle moment; False when there is none."""
        ...


class OneFile:
    """A file for one recording, which is never rolled: nothing in it needs protection."""

    rolls = False

    def __init__(self, path: Path, keep_free_bytes: int) -> None:
        self._path, self._keep_free_bytes = path, keep_free_bytes

    def next_path(self, start_ns: int) -> Path:
        if self._path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._path))
        return self._path

    def has_room(self, nbytes: int) -> bool:
        return _free_bytes(self._path.parent) >= self._keep_free_bytes + nbytes

    def mark(self, stretch: Stretch) -> None: ...

    def step(self) -> bool:
        return False


class RollFolder:
    """The folder in which the rolls of a line lie, beside its marks."""

    rolls = True

    def __init__(self, folder: Path, line: str, bounds: Bounds, keep_free_bytes: int) -> None:
        """`keep_free_bytes` of the disk are left to others: the journal must never lack them."""
        self.folder, self._line, self._bounds, self._keep_free_bytes = folder, line, bounds, keep_free_bytes
        self._log = structlog.get_logger()
        self._marks_path = folder / f"{line}.marks"
        self._saved: set[Path] = set()  # rolls whose marks lie in a file of their own
        self._stretches: dict[Path, Stretch] = {}  # of the rolls that were asked for theirs
        self._last_number = 0
        self._cutting: tuple[Roll, Generator[None, None, None]] | None = None
        self._open: Path | None = None  # being written: nobody else's business
        self._nothing_to_cut = False  # until the next roll or mark
        self.marks = Marks()
        self._entered = False

    def _enter(self) -> None:
        """Make the folder, and take over what an earlier recorder left in it. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stretch in _read_marks(self._marks_path):
            self.marks.add(stretch)
        for part in self.folder.glob(f"{self._line}.*{_PART}"):
            part.unlink(missing_ok=True)
        self._entered = True

    def next_path(self, start_ns: int) -> Path:
        """Where the roll that begins now is written; makes room for it. Raises OSError."""
        if not self._entered:
            self._enter()
        self._open, self._nothing_to_cut = None, False
        rolls = self._closed()
        self._last_number = max([self._last_number, *(roll.number for roll in rolls)]) + 1
        for roll in beyond([r for r in rolls if r.marked], self._bounds.marked_bytes):
            self._delete(roll)
        rolls = [r for r in rolls if r.path.exists()]
        for roll in beyond(rolls, self._bounds.closed_bytes):
            self._delete(roll)
        rolls = [r for r in rolls if r.path.exists()]
        self.marks.forget_before(min((roll.start_ns for roll in rolls), default=start_ns))
        _write_marks(self._marks_path, self.marks)
        self._open = roll_path(self.folder, self._line, self._last_number, start_ns)
        return self._open

    def has_room(self, nbytes: int) -> bool:
        """Whether the disk takes so much more. Where it does not, old rolls that hold nothing marked make room."""
        for roll in [None, *self._closed()]:
            if roll is not None:
                if roll.marked or self._unsaved(roll):
                    continue
                self._delete(roll)
            if _free_bytes(self.folder) >= self._keep_free_bytes + nbytes:
                return True
        return False

    def mark(self, stretch: Stretch) -> None:
        """Protect a stretch of time. Raises OSError where it cannot be written down."""
        self.marks.add(stretch)
        self._nothing_to_cut = False
        with self._marks_path.open("a", encoding="ascii") as file:
            file.write(f"{stretch[0]} {stretch[1]}\n")

    def step(self) -> bool:
        """Do a piece of the work that the next roll would otherwise have to wait for; False when there is none."""
        if self._cutting is None:
            roll = self._next_to_cut() if self._entered and not self._nothing_to_cut else None
            if roll is None:
                self._nothing_to_cut = True
                return False
            self._cutting = roll, self._cut(roll)
        roll, pieces = self._cutting
        try:
            next(pieces)
        except StopIteration:
            self._saved.add(roll.path)
            self._cutting = None
        except (OSError, ValueError) as error:  # one that a killed recorder left has no index: it is kept whole
            self._log.warning("marked_roll_kept_whole", path=str(roll.path), why=str(error) or type(error).__name__)
            self._keep_whole(roll)
            self._cutting = None
        return True

    def _closed(self) -> list[Roll]:
        return [roll for roll in find_rolls(self.folder, self._line) if roll.path != self._open]

    def _next_to_cut(self) -> Roll | None:
        """The first of those that must go when the next roll begins, if anything in it is still to be saved."""
        doomed = beyond(self._closed(), self._bounds.closed_bytes - self._bounds.roll_bytes)
        return next((r for r in doomed if not r.marked and self._unsaved(r)), None)

    def _unsaved(self, roll: Roll) -> bool:
        return roll.path not in self._saved and bool(self.marks.within(self._stretch(roll)))

    def _stretch(self, roll: Roll) -> Stretch:
        """From when to when a roll goes by its own account, on the clock that its marks are on too: the box, which
        dated the file, may have set its clock meanwhile."""
        if roll.path not in self._stretches:
            span = None
            with contextlib.suppress(SourceError):  # nothing in it can be read
                span = Recording(roll.path).span_ns
            self._stretches[roll.path] = span or roll.stretch
        return self._stretches[roll.path]

    def _cut(self, roll: Roll) -> Generator[None, None, None]:
        first_ns, last_ns = self._stretch(roll)
        stretches = self.marks.within((first_ns, last_ns))
        marked_ns = sum(last - first for first, last in stretches)
        if marked_ns > _WORTH_WHOLE * (last_ns - first_ns):
            self._keep_whole(roll)
            return
        part = Path(f"{roll.path}{_PART}")
        yield from cut(roll.path, stretches, part)
        os.replace(part, marked_path(roll.path))
        self._log.info("marked_stretches_kept", path=str(marked_path(roll.path)), seconds=round(marked_ns / 1e9, 1))

    def _keep_whole(self, roll: Roll) -> None:
        Path(f"{roll.path}{_PART}").unlink(missing_ok=True)
        os.replace(roll.path, marked_path(roll.path))
        self._stretches.pop(roll.path, None)

    def _delete(self, roll: Roll) -> None:
        if self._cutting is not None and self._cutting[0] == roll:
            self._cutting[1].close()
            self._cutting = None
            Path(f"{roll.path}{_PART}").unlink(missing_ok=True)
        lost = roll.marked or self._unsaved(roll)
        say = self._log.warning if lost else self._log.info
        say("marked_roll_deleted" if lost else "roll_deleted", path=str(roll.path), mib=roll.nbytes >> 20)
        roll.path.unlink(missing_ok=True)
        self._saved.discard(roll.path)
        self._stretches.pop(roll.path, None)


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _read_marks(path: Path) -> list[Stretch]:
    """What was marked; a line that a dying recorder left unfinished is skipped."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            first, _, last = line.partition(" ")
            if first.isdecimal() and last.isdecimal() and int(first) <= int(last):
                found.append((int(first), int(last)))
    return found


def _write_marks(path: Path, marks: Marks) -> None:
    part = path.with_name(f"{path.name}{_PART}")
    part.write_text("".join(f"{first} {last}\n" for first, last in marks.stretches), encoding="ascii")
    os.replace(part, path)
