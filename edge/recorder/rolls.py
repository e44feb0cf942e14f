"""The files of a recording that never ends: their names, which of them must go, and what of them is worth keeping.

A *roll* is one file of it. *Marks* are the stretches of time round each reject, which outlive their roll. Pure but for
`find_rolls`, which looks into the folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

__all__ = ["Bounds", "Marks", "Roll", "Stretch", "beyond", "find_rolls", "marked_path", "roll_path"]

Stretch = tuple[int, int]
"""First and last moment, UTC, ns."""

_NAME = re.compile(
    r"(?P<line>[a-z0-9_-]+)\.(?:(?P<number>\d{8,12})\.)?(?P<start>\d{8}T\d{6}\.\d{6}Z)(?P<marked>\.marked)?\.mcap"
)
_START = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Roll:
    """One closed file of a recording, or a stretch that was cut out of one."""

    path: Path
    number: int  # in the order in which they were begun, whatever the clock said; 0: of a name without one
    start_ns: int  # UTC
    end_ns: int  # UTC: when it was last written
    nbytes: int
    marked: bool = False

    @property
    def stretch(self) -> Stretch:
        return self.start_ns, max(self.start_ns, self.end_ns)


@dataclass(frozen=True)
class Bounds:
    """How much of a disk a recording may take."""

    roll_bytes: int  # the open file is closed at so many
    total_bytes: int
    marked_bytes: int  # of the total

    @property
    def closed_bytes(self) -> int:
        """What closed files may hold when the next one begins: it grows, and a stretch may be cut out meanwhile."""
        return self.total_bytes - 2 * self.roll_bytes


class Marks:
    """Stretches of time that are protected: merged where they touch, oldest first."""

    def __init__(self, stretches: Iterable[Stretch] = ()) -> None:
        self.stretches: list[Stretch] = []
        for stretch in sorted(stretches):
            self.add(stretch)

    def add(self, new: Stretch) -> None:
        """Protect a stretch as well."""
        apart = [s for s in self.stretches if s[1] < new[0] or new[1] < s[0]]
        touched = [s for s in self.stretches if not (s[1] < new[0] or new[1] < s[0])]
        merged = (min(s[0] for s in [*touched, new]), max(s[1] for s in [*touched, new]))
        self.stretches = sorted([*apart, merged])

    def within(self, roll: Stretch) -> list[Stretch]:
        """What is protected of a roll."""
        cut = [(max(first, roll[0]), min(last, roll[1])) for first, last in self.stretches]
        return [(first, last) for first, last in cut if first <= last]

    def forget_before(self, at_ns: int) -> None:
        """Forget what ended before `at_ns`: no file is left of it."""
        self.stretches = [s for s in self.stretches if s[1] >= at_ns]


def beyond(rolls: Sequence[Roll], limit_bytes: int) -> list[Roll]:
    """Those that must go so that the rest holds at most `limit_bytes`: the oldest first, marked ones last of all."""
    excess = sum(roll.nbytes for roll in rolls) - limit_bytes
    gone = []
    for roll in sorted(rolls, key=lambda r: (r.marked, r.number, r.start_ns)):
        if excess <= 0:
            break
        gone.append(roll)
        excess -= roll.nbytes
    return gone


def roll_path(folder: Path, line: str, number: int, start_ns: int) -> Path:
    """The file of a line's roll of that number, which begins at `start_ns`, UTC."""
    seconds, rest_ns = divmod(start_ns, 1_000_000_000)
    start = datetime.fromtimestamp(seconds, timezone.utc).replace(microsecond=rest_ns // 1000)
    return folder / f"{line}.{number:08}.{start.strftime(_START)}.mcap"


def marked_path(roll: Path) -> Path:
    """Where the protected stretches of a roll are kept."""
    return roll.with_name(f"{roll.name.removesuffix('.mcap')}.marked.mcap")


def find_rolls(folder: Path, line: str) -> list[Roll]:
    """The rolls of a line in a folder, the oldest first. Other files are none of its business. Raises OSError."""
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None or match["line"] != line:
            continue
        with contextlib.suppress(FileNotFoundError, ValueError):  # just deleted; no date
            start = datetime.strptime(match["start"], _START).replace(tzinfo=timezone.utc)
            about = path.stat()
            start_ns = int(start.timestamp()) * 1_000_000_000 + start.microsecond * 1000
            number, marked = int(match["number"] or 0), bool(match["marked"])
            found.append(Roll(path, number, start_ns, about.st_mtime_ns, about.st_size, marked))
    return sorted(found, key=lambda roll: (roll.number, roll.start_ns, roll.path.name))
