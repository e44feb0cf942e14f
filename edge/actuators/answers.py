"""The verdicts of one lane that wait for their parts, and which of them belongs to a part that the sensor sees.

Pure. A verdict is found for a part, never given to it: that no other part may have it as well, and that it is a PASS
worth anything, is decided in edge/actuators/fifo.py.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge.actuators.settings import MatchByCount, MatchById, MatchByTime
from edge.messages import Verdict

__all__ = ["MAX_WAITING", "Answers", "Seen", "Waiting"]

MAX_WAITING = 1024
"""Verdicts that are remembered; a part whose verdict was forgotten is rejected."""


@dataclass(frozen=True)
class Seen:
    """A part at the sensor."""

    at_ns: int  # this box's monotonic clock
    count: int | None
    part_id: int | None


@dataclass
class Waiting:
    """A verdict, and the part that took it."""

    verdict: Verdict
    trigger_ns: int | None  # of the part, by this box's monotonic clock, off by at most bound_ns; None: unknown
    bound_ns: int
    taken_by: Seen | None = None

    @property
    def identity(self) -> tuple[str, int, int]:
        """Which part of which start of which line."""
        return self.verdict.epoch, self.verdict.run, self.verdict.part


class Answers:
    """The verdicts that wait, oldest first."""

    def __init__(self, match: MatchById | MatchByCount | MatchByTime) -> None:
        self._match = match
        self._waiting: deque[Waiting] = deque(maxlen=MAX_WAITING)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting) -> bool:
        """Take a verdict; False for one that is known already, byte for byte."""
        if any(w.verdict == waiting.verdict for w in self._waiting if w.identity == waiting.identity):
            return False
        self._waiting.append(waiting)
        return True

    def find(self, seen: Seen) -> list[Waiting]:
        """Every verdict that could be of this part, those that another part took included."""
        match = self._match
        if isinstance(match, MatchById):
            return [w for w in self._waiting if seen.part_id is not None and w.verdict.part_id == seen.part_id]
        if isinstance(match, MatchByCount):
            if seen.count is None:
                return []
            expected, window = seen.count - match.distance_counts, match.window_counts
            counts = ((w, w.verdict.count) for w in self._waiting)
            return [w for w, count in counts if count is not None and abs(count - expected) <= window]
        expected_ns, window_ns = seen.at_ns - match.delay_ms * 1_000_000, match.window_ms * 1_000_000
        times = ((w, w.trigger_ns) for w in self._waiting)
        return [w for w, at_ns in times if at_ns is not None and abs(at_ns - expected_ns) <= window_ns]

    def forget_before(self, at_ns: int) -> None:
        """Drop verdicts of parts triggered before `at_ns`: with ids that wrap, another part may have their id now."""
        if isinstance(self._match, MatchById):
            while self._waiting and (self._waiting[0].trigger_ns or 0) < at_ns:
                self._waiting.popleft()

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
