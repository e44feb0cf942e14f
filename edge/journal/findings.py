"""What `verify` finds in a journal, in words too, and how times are said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from edge.journal.heads import KeptHead

__all__ = ["HeadsSeen", "Tombstone", "Verified", "account", "parse_time", "utc_text"]

TROUBLES = 100
"""So many are told; the others are counted."""


@dataclass
class HeadsSeen:
    """What came of one source of heads."""

    source: str
    matched: int = 0
    newest: KeptHead | None = None  # of those that matched
    other_epochs: int = 0
    not_reached: int = 0  # of verdicts that were retired


@dataclass(frozen=True)
class Tombstone:
    """What was left of verdicts that were retired."""

    first: int
    last: int
    chain_before: bytes
    chain_after: bytes
    file: str
    sha256: str
    who: str
    utc_ns: int


@dataclass
class Verified:
    """What `verify` found."""

    path: Path
    epoch: str = ""
    live: bool = False
    records: int = 0
    first: int = 0
    last: int = 0
    first_utc_ns: int = 0
    last_utc_ns: int = 0
    left_over: int = 0  # retired and still there: a retirement was cut short
    triggers: int = 0
    open_triggers: int = 0
    heads: list[HeadsSeen] = field(default_factory=list)
    tombstones: list[Tombstone] = field(default_factory=list)
    skipped: list[tuple[int, int]] = field(default_factory=list)  # numbers that power cuts may have taken
    segments: list[Verified] = field(default_factory=list)
    proved: int = 0  # all up to this verdict, by a head that matched
    troubles: list[str] = field(default_factory=list)
    more_troubles: int = 0

    @property
    def ok(self) -> bool:
        return not self.troubles and all(s.ok for s in self.segments)

    def trouble(self, what: str) -> None:
        if len(self.troubles) < TROUBLES:
            self.troubles.append(what)
        else:
            self.more_troubles += 1


def utc_text(utc_ns: int) -> str:
    """A time as people and programs read it, UTC, to the microsecond."""
    try:
        moment = datetime.fromtimestamp(utc_ns // 1_000_000_000, timezone.utc)
    except (OverflowError, ValueError, OSError, TypeError):
        return f"{utc_ns!r} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{utc_ns % 1_000_000_000 // 1000:06d}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 (UTC) of an ISO 8601 time or date; without an offset it is this machine's local time.

    Raises ValueError.
    """
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    return int(moment.astimezone(timezone.utc).timestamp() * 1_000_000) * 1000


def account(found: Verified) -> Iterator[str]:
    """What was found, in words."""
    yield f"{found.path}, epoch {found.epoch}{', a gate writes it' if found.live else ''}"
    if found.records:
        span = f"{utc_text(found.first_utc_ns)} to {utc_text(found.last_utc_ns)}"
        yield f"  {found.records} verdicts, {found.first} to {found.last}, decided {span}"
    else:
        yield "  no verdicts"
    yield f"  {found.triggers} triggers, {found.open_triggers} of them open: a gate answers them when it runs"
    shown = {s.path.name for s in found.segments}
    for stone in found.tombstones:
        checked = "" if Path(stone.file).name in shown else "; not looked at: name it with --segment"
        yield f"  {stone.first} to {stone.last} retired {utc_text(stone.utc_ns)} by {stone.who}: {stone.file}{checked}"
    for first, last in found.skipped:
        yield f"  {first} to {last} were skipped: a power cut may have taken verdicts with the first of these numbers"
    if found.left_over:
        yield f"  {found.left_over} retired verdicts are still there: the next `journal retire` deletes them"
    for seen in found.heads:
        newest = f", the newest of verdict {seen.newest.seq}, kept {seen.newest.utc}" if seen.newest else ""
        others = f", {seen.other_epochs} of other journals" if seen.other_epochs else ""
        unreached = f", {seen.not_reached} of retired verdicts" if seen.not_reached else ""
        match = "1 head matches" if seen.matched == 1 else f"{seen.matched} heads match"
        yield f"  {seen.source}: {match}{newest}{others}{unreached}"
    yield from _unproved(found)
    for trouble in found.troubles:
        yield f"  WRONG: {trouble}"
    if found.more_troubles:
        yield f"  WRONG: {found.more_troubles} more"
    for segment in found.segments:
        yield from account(segment)


def _unproved(found: Verified) -> Iterator[str]:
    if found.last > found.proved:
        first = max(found.proved + 1, found.first)
        yield f"  not proved: verdicts {first} to {found.last}, behind the newest head; and whether more followed"
    else:
        yield f"  not proved: whether verdicts followed {found.proved} of which no head was kept"
    yield "  not proved: triggers and late results, which are not in the chain"
